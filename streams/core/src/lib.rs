//! The tables of one partition: what `streams.by_definition` does in Python, and the same to the byte.
//!
//! Here is Python's way in. Leads and rows are held as the changelogs have them: nothing outlives a batch but bytes.

#![forbid(unsafe_code)]

mod batch;
mod catalogue;
mod counts;
mod days;
mod facts;
mod fold;
mod json;
mod log;
mod measures;
mod msgpack;
mod murmur2;
mod record;
mod records;
mod rows;
mod store;
mod sums;
mod texts;
mod time;
mod varint;

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::sync::Arc;

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyIterator, PyList, PySet, PyString, PyTuple};

use catalogue::{Catalogue, Columns, DeclaredHistogram, DeclaredType, Own};
use counts::Counts;
use days::Days;
use fold::{Batch, Bounds, Effects, Event, Fold, Gone, Limits, Part, Scratch};
use log::Entry;
use rows::{Changes, NotRestored, Rows};
use store::Store;
use texts::{MISSING, Text, Texts};

type ChangedRow<'py> = (Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>);
type Record<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>);
/// A rollup's place, the values of its dimensions, and how much more of each column's id.
type GivenArchived = (u32, Vec<String>, Vec<(i64, i64)>);
type GivenArchive<'py> = (Vec<ChangedRow<'py>>, Vec<Bound<'py, PyBytes>>, Option<usize>, Vec<GivenArchived>);
type GivenEffects<'py> = (
    Vec<ChangedRow<'py>>,
    Vec<Record<'py>>,
    Vec<usize>,
    Vec<usize>,
    Vec<(usize, i64)>,
    (usize, usize, usize),
    i64,
    Vec<GivenArchived>,
);

impl From<varint::Corrupt> for PyErr {
    fn from(_: varint::Corrupt) -> Self {
        PyValueError::new_err("not a lead's record")
    }
}

impl From<msgpack::Malformed> for PyErr {
    fn from(_: msgpack::Malformed) -> Self {
        PyValueError::new_err("not a row of the tables")
    }
}

impl From<NotRestored> for PyErr {
    fn from(why: NotRestored) -> Self {
        match why {
            NotRestored::Malformed => msgpack::Malformed.into(),
            NotRestored::OtherGeneration => PyValueError::new_err("a row of another generation of the tables"),
        }
    }
}

/// What the records of a batch say: an event each, or that it is none.
#[pyclass(module = "callfunnel.streams._core")]
struct Verdicts {
    batch: Batch,
    catalogue: Arc<Catalogue>,
    odd: Vec<usize>,
}

#[pymethods]
impl Verdicts {
    fn __len__(&self) -> usize {
        self.batch.events.len()
    }

    /// The indices of the records that Python has to look at.
    fn odd(&self) -> Vec<usize> {
        self.odd.clone()
    }

    /// The first event from `start` on, at this moment or later, of a lead that is not `away`.
    fn first_at(&self, at_ms: i64, start: usize, away: &Bound<'_, PyDict>) -> PyResult<Option<usize>> {
        for (at, event) in self.batch.events.iter().enumerate().skip(start) {
            let Some(event) = event.as_ref().filter(|event| event.entry.at_ms >= at_ms) else { continue };
            let id = PyBytes::new(away.py(), self.batch.leads.get(event.lead));
            if away.is_empty() || !away.contains(id)? {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// What Python made of an odd record.
    fn tell(&mut self, i: usize, entry: &Bound<'_, PyTuple>) -> PyResult<()> {
        let event = told(entry, &self.catalogue, &mut self.batch)?;
        *self.event(i)? = Some(event);
        Ok(())
    }

    /// The record is no event, or is one no more.
    fn refuse(&mut self, i: usize) -> PyResult<()> {
        *self.event(i)? = None;
        Ok(())
    }
}

impl Verdicts {
    fn event(&mut self, i: usize) -> PyResult<&mut Option<Event>> {
        self.batch.events.get_mut(i).ok_or_else(|| PyIndexError::new_err("the batch has no such record"))
    }
}

type Told<'py> = (Bound<'py, PyString>, u64, u8, i64, Option<u64>, Bound<'py, PyTuple>, Bound<'py, PyTuple>);

fn told(entry: &Bound<'_, PyTuple>, catalogue: &Catalogue, batch: &mut Batch) -> PyResult<Event> {
    let not_an_entry = || PyValueError::new_err("not an entry of a lead's log");
    let (lead_id, mark, rank, at_ms, call, dimensions, own): Told = entry.extract()?;
    let kinds = catalogue.types.get(usize::from(rank)).ok_or_else(not_an_entry)?;
    let mut entry = Entry::new(at_ms, rank, mark, call);
    let lead_id = lead_id.to_str()?;
    let is_one = at_ms >= 0
        && !lead_id.is_empty()
        && lead_id.len() <= u16::MAX.into()
        && dimensions.len() == entry.dimensions.len()
        && own.len() == kinds.len();
    if !is_one {
        return Err(not_an_entry());
    }
    for (dimension, value) in entry.dimensions.iter_mut().zip(&dimensions) {
        *dimension = text(&value, &mut batch.texts)?;
    }
    for (field, (kind, value)) in kinds.iter().zip(&own).enumerate() {
        let value = match kind {
            Own::Text => Some(text(&value, &mut batch.texts)?).filter(|&text| text != MISSING).map(i64::from),
            Own::Integer => value.extract()?,
            Own::Mark => value.extract::<Option<u64>>()?.map(|mark| mark as i64),
            Own::Flag => value.extract()?,
            Own::Choice(choices) => {
                let choice: Option<i64> = value.extract()?;
                if choice.is_some_and(|choice| !(0..*choices).contains(&choice)) {
                    return Err(not_an_entry());
                }
                choice
            }
        };
        entry.set_own(field, value);
    }
    Ok(Event { lead: batch.leads.number_of(lead_id.as_bytes()), entry })
}

fn text(value: &Bound<'_, PyAny>, texts: &mut Texts) -> PyResult<Text> {
    if value.is_none() {
        return Ok(MISSING);
    }
    Ok(texts.optional(value.cast::<PyString>()?.to_str()?.as_bytes()))
}

/// The tables of one partition.
#[pyclass(module = "callfunnel.streams._core")]
struct Tables {
    catalogue: Arc<Catalogue>,
    fold: Fold,
    max_bytes: usize,
}

#[pymethods]
impl Tables {
    #[new]
    #[pyo3(signature = (*, types, columns, rollups, resolutions, activity, retracted, histograms, day_of, hangup_ms, late_ms, lead_events, max_bytes, generation))]
    #[expect(clippy::too_many_arguments, reason = "each has a name")]
    fn new(
        types: Vec<DeclaredType>,
        columns: BTreeMap<String, i64>,
        rollups: Vec<(i64, Vec<String>, bool, i64)>,
        resolutions: Vec<(i64, String, i64, i64)>,
        activity: BTreeMap<String, String>,
        retracted: BTreeMap<String, String>,
        histograms: Vec<DeclaredHistogram>,
        day_of: Py<PyAny>,
        hangup_ms: i64,
        late_ms: i64,
        lead_events: usize,
        max_bytes: usize,
        generation: i64,
    ) -> PyResult<Self> {
        let unfit = PyValueError::new_err;
        let catalogue = Catalogue::new(&types).map_err(unfit)?;
        let columns = Columns::new(&columns, &activity, &retracted, &types, histograms).map_err(unfit)?;
        let rollups = catalogue::rollups(rollups).map_err(unfit)?;
        let resolutions = catalogue::resolutions(resolutions).map_err(unfit)?;
        let counts =
            || Counts::new(&rollups).ok_or_else(|| unfit("there is no rollup by campaign and source".to_string()));
        let (counts, archived) = (counts()?, counts()?);
        Ok(Tables {
            catalogue: Arc::new(catalogue),
            fold: Fold {
                columns,
                limits: Limits { hangup_ms, late_ms, lead_events },
                days: Days::new(day_of),
                leads: Store::default(),
                rows: Rows::new(generation, rollups, resolutions),
                counts,
                archived,
                scratch: Scratch::default(),
            },
            max_bytes,
        })
    }

    /// Takes everything out of both, so that the memory is not held twice.
    fn restore(&mut self, rows: &mut Store, leads: &mut Store) -> PyResult<()> {
        for row in rows.drain(usize::MAX) {
            let (key, value) = store::parts(&row);
            self.fold.rows.restore(key, value)?;
        }
        self.fold.leads = mem::take(leads);
        Ok(())
    }

    /// Takes up to so many logs out of `leads`, holds them, and counts all that they add.
    fn derive(&mut self, leads: &mut Store, most: usize, bounds: (i64, i64)) -> PyResult<()> {
        let mut texts = Texts::new();
        self.fold.counts.clear();
        for lead in leads.drain(most) {
            let (id, record) = store::parts(&lead);
            self.fold.leads.set(id, record);
            self.fold.count_record(record, &mut texts, &self.catalogue)?;
        }
        self.fold.sum_up(&texts, bounds.into(), &mut Changes::default())
    }

    /// Rows, the ids of leads that are held no more, where to go on, and what those leads add.
    fn archive<'py>(
        &mut self,
        py: Python<'py>,
        place: usize,
        most: usize,
        bounds: (i64, i64),
    ) -> PyResult<GivenArchive<'py>> {
        let (mut texts, mut rows) = (Texts::new(), Changes::default());
        let Gone { ids, next } =
            self.fold.archive(place, most, bounds.into(), &mut texts, &self.catalogue, &mut rows)?;
        let ids = ids.iter().map(|id| PyBytes::new(py, id)).collect();
        Ok((changed(py, &rows), ids, next, self.fold.archived(&texts)))
    }

    /// What the records say, as far as they are ordinary events within these times.
    fn read(
        &self,
        values: &Bound<'_, PyList>,
        keys: &Bound<'_, PyList>,
        earliest_ms: i64,
        latest_ms: i64,
    ) -> PyResult<Verdicts> {
        if values.len() != keys.len() {
            return Err(PyValueError::new_err("a batch has a key for each value"));
        }
        let batch = Batch { texts: Texts::new(), leads: Texts::default(), events: Vec::with_capacity(values.len()) };
        let mut verdicts = Verdicts { batch, catalogue: self.catalogue.clone(), odd: Vec::new() };
        let Batch { texts, leads, events } = &mut verdicts.batch;
        for (value, key) in values.iter().zip(keys) {
            let value: Option<&Bound<'_, PyBytes>> = if value.is_none() { None } else { Some(value.cast()?) };
            let key: Option<&Bound<'_, PyBytes>> = if key.is_none() { None } else { Some(key.cast()?) };
            let event = value
                .map(|value| value.as_bytes())
                .filter(|json| json.len() <= self.max_bytes)
                .and_then(|json| record::read(json, &self.catalogue, texts))
                .filter(|(_, entry)| (earliest_ms..=latest_ms).contains(&entry.at_ms))
                .filter(|(lead_id, _)| key.is_none_or(|key| key.as_bytes() == *lead_id))
                .map(|(lead_id, entry)| Event { lead: leads.number_of(lead_id), entry });
            if event.is_none() {
                verdicts.odd.push(events.len());
            }
            events.push(event);
        }
        Ok(verdicts)
    }

    /// The ids of the batch's leads of which nothing is held.
    fn new_leads<'py>(&self, py: Python<'py>, verdicts: &Verdicts) -> PyResult<Bound<'py, PySet>> {
        let batch = &verdicts.batch;
        let mut has_event = vec![false; batch.leads.len()];
        for event in batch.events.iter().flatten() {
            has_event[event.lead as usize] = true;
        }
        let ids = PySet::empty(py)?;
        for (lead, _) in has_event.iter().enumerate().filter(|(_, has_event)| **has_event) {
            let id = batch.leads.get(lead as Text);
            if self.fold.leads.place_of(id).is_none() {
                ids.add(PyBytes::new(py, id))?;
            }
        }
        Ok(ids)
    }

    /// Rows, leads, crowded, old, foreign, how many are duplicates, conflicting and late, newest_ms, archived. Events
    /// of leads that are `away` are foreign.
    #[expect(clippy::too_many_arguments, reason = "one call for each part of a batch")]
    fn add<'py>(
        &mut self,
        py: Python<'py>,
        verdicts: &mut Verdicts,
        timestamps: Vec<i64>,
        away: &Bound<'py, PyDict>,
        bounds: (i64, i64),
        start: usize,
        stop: usize,
    ) -> PyResult<GivenEffects<'py>> {
        let batch = &mut verdicts.batch;
        if batch.events.len() != timestamps.len() || stop > timestamps.len() {
            return Err(PyValueError::new_err("a batch has a time for each value"));
        }
        let mut homes = HashMap::new();
        for (id, home) in away {
            if let Some(lead) = batch.leads.find(id.cast::<PyBytes>()?.as_bytes()) {
                homes.insert(lead, home.extract::<i64>()?);
            }
        }
        let home = |lead| if homes.is_empty() { None } else { homes.get(&lead).copied() };
        let mut part = Part { batch, range: start..stop, timestamps: &timestamps, catalogue: &verdicts.catalogue };
        let effects = self.fold.add(&mut part, home, bounds.into())?;
        let Effects { rows, leads, crowded, old, foreign, duplicates, conflicting, late, newest_ms } = effects;
        let bytes = |bytes: &[u8]| PyBytes::new(py, bytes);
        let leads = leads
            .iter()
            .map(|(lead, record)| (bytes(batch.leads.get(*lead)), bytes(&self.fold.records()[record.clone()])))
            .collect();
        let archived = self.fold.archived(&batch.texts);
        let counts = (duplicates, conflicting, late);
        Ok((changed(py, &rows), leads, crowded, old, foreign, counts, newest_ms, archived))
    }

    fn rows<'py>(&self, py: Python<'py>) -> Vec<Record<'py>> {
        self.fold.rows.all().map(|(key, value)| (PyBytes::new(py, &key), PyBytes::new(py, value))).collect()
    }

    fn leads<'py>(&self, py: Python<'py>) -> Vec<Record<'py>> {
        self.fold.leads.all().map(|(id, record)| (PyBytes::new(py, id), PyBytes::new(py, record))).collect()
    }

    fn row_count(&self) -> usize {
        self.fold.rows.count()
    }

    fn lead_count(&self) -> usize {
        self.fold.leads.len()
    }
}

impl From<(i64, i64)> for Bounds {
    fn from((watermark_ms, horizon_ms): (i64, i64)) -> Self {
        Bounds { watermark_ms, horizon_ms }
    }
}

fn changed<'py>(py: Python<'py>, rows: &Changes) -> Vec<ChangedRow<'py>> {
    let bytes = |bytes: &[u8]| PyBytes::new(py, bytes);
    rows.iter().map(|(key, value)| (bytes(key), value.map(bytes))).collect()
}

impl Fold {
    /// What the leads add that were archived.
    fn archived(&self, texts: &Texts) -> Vec<GivenArchived> {
        let text = |&value: &Text| String::from_utf8_lossy(texts.get(value)).into_owned();
        let groups = self.archived.of_all_time(self.rows.rollups());
        groups
            .map(|(group, cell)| {
                let values = group.values.iter().filter(|&&value| value != MISSING).map(text).collect();
                (group.rollup, values, cell.changes().map(|(column, n)| (self.columns.id(column), n)).collect())
            })
            .collect()
    }
}

#[pymodule]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::{Store, Tables, Verdicts, records::Records, sums::Sums};

    /// `agents.choice.digest` when this was built.
    #[pymodule_export]
    const SOURCES: &str = env!("CALLFUNNEL_SOURCES");

    /// Kafka's hash of each key, with the sign bit cleared.
    #[pyfunction]
    fn murmur2<'py>(keys: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
        let hashes = PyDict::new(keys.py());
        for key in PyIterator::from_object(keys)? {
            let key = key?.cast_into::<PyBytes>()?;
            hashes.set_item(&key, crate::murmur2::murmur2(key.as_bytes()))?;
        }
        Ok(hashes)
    }
}
