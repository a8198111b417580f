//! The rows of all partitions as a view holds them, and what they add up to over spans of panes.
//!
//! A span is of the rows of one or more resolutions whose panes begin within it. It is kept as rows come: it costs the
//! rows that change, and where it moves, those of the panes that it leaves and enters.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::hint::black_box;
use std::ops::Range;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PySet, PyString, PyTuple};

use crate::msgpack::{Malformed, Reader};
use crate::records::Records;

/// Of base rows: no change of the fold makes them anew.
const BASE: i64 = -1;

/// The most dimensions that a rollup may have.
const MOST: usize = 3;

/// So many rows, or places that they are added to, are looked up before the first of them is changed.
const LOOKED_UP: usize = 64;

/// After so many times as many, what they add is added to the spans.
const SUMMED_UP: usize = 256;

/// The ids of a rollup and of a resolution; base rows have a resolution of their own.
type Table = (i64, i64);
/// The ids of a rollup and of the resolutions whose rows a span is the sum of.
type Summed = (i64, Vec<i64>);
type Columns = Vec<(i64, i64)>;

/// A row's key and its newest value, if it has one.
type Change<'a> = (&'a [u8], Option<&'a [u8]>);

/// What a row is known by within its pane.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Name {
    partition: i32,
    /// The number of the dimension values.
    place: u32,
    /// Of base rows, `BASE` less the number of the fold.
    generation: i64,
}

struct Row {
    name: Name,
    /// In msgpack.
    columns: Box<[u8]>,
}

/// A change, taken apart: where the row is held, and what it is to be.
struct Placed<'a> {
    table: Table,
    pane: i64,
    name: Name,
    hash: u64,
    value: Option<&'a [u8]>,
}

/// By depth, the numbers of the first so many dimension values of a row.
type Path = [u32; MOST + 1];

/// The dimension values of a rollup's rows, numbered by depth: the first 0, 1, … of them, and all. They are kept
/// when their last row goes; there are hardly more than the days have that are kept.
struct Rollup {
    levels: Vec<Level>,
    paths: Vec<Path>,
    spans: Vec<Span>,
}

#[derive(Default)]
struct Level {
    index: HashTable<u32>,
    places: Vec<Place>,
}

struct Place {
    dimensions: Box<[u8]>,
    values: Py<PyTuple>,
}

impl Rollup {
    fn depth(&self) -> usize {
        self.levels.len() - 1
    }

    fn find(&self, dimensions: &[u8], hash: u64) -> Option<u32> {
        let level = &self.levels[self.depth()];
        level.index.find(hash, |&number| *level.places[number as usize].dimensions == *dimensions).copied()
    }

    fn number(&mut self, py: Python<'_>, dimensions: &[u8], hasher: &DefaultHashBuilder) -> Result<u32, Malformed> {
        if let Some(known) = self.find(dimensions, hasher.hash_one(dimensions)) {
            return Ok(known);
        }
        let (mut path, mut from) = (Path::default(), Reader::new(dimensions));
        let whole = self.depth();
        for (depth, (level, number)) in self.levels.iter_mut().zip(&mut path).enumerate() {
            if depth > 0 {
                from.text()?;
            }
            if depth == whole {
                from.end()?;
            }
            let prefix = &dimensions[..dimensions.len() - from.rest().len()];
            *number = level.number(py, prefix, hasher)?;
        }
        self.paths.push(path);
        Ok(path[self.depth()])
    }
}

impl Level {
    fn number(&mut self, py: Python<'_>, dimensions: &[u8], hasher: &DefaultHashBuilder) -> Result<u32, Malformed> {
        let places = &mut self.places;
        let is_it = |&number: &u32| *places[number as usize].dimensions == *dimensions;
        let hash_of = |&number: &u32| hasher.hash_one(&*places[number as usize].dimensions);
        match self.index.entry(hasher.hash_one(dimensions), is_it, hash_of) {
            Entry::Occupied(known) => Ok(*known.get()),
            Entry::Vacant(free) => {
                let number = u32::try_from(places.len()).map_err(|_| Malformed)?;
                let values = values(py, dimensions).map_err(|_| Malformed)?;
                free.insert(number);
                places.push(Place { dimensions: dimensions.into(), values });
                Ok(number)
            }
        }
    }
}

/// The rows of a rollup and a resolution, and what is kept of them.
#[derive(Default)]
struct Held {
    panes: BTreeMap<i64, HashTable<Row>>,
    firsts: Vec<First>,
    /// What the spans do not hold yet.
    pending: Additions,
}

/// What rows have more than before.
#[derive(Default)]
struct Additions {
    rows: Vec<Addition>,
    columns: Columns,
}

struct Addition {
    pane: i64,
    place: u32,
    /// Whether a row comes, 1, or goes, -1.
    rows: i64,
    /// In the columns of all.
    columns: Range<usize>,
}

impl Additions {
    fn push(&mut self, pane: i64, place: u32, rows: i64, put: impl FnOnce(&mut Columns)) {
        let start = self.columns.len();
        put(&mut self.columns);
        if self.columns.len() > start || rows != 0 {
            self.rows.push(Addition { pane, place, rows, columns: start..self.columns.len() });
        }
    }

    /// Those of the panes, with their columns.
    fn within<'a>(
        &'a self,
        rows: &'a [Addition],
        panes: &'a Range<i64>,
    ) -> impl Iterator<Item = (u32, &'a [(i64, i64)])> {
        let columns = |row: &Addition| &self.columns[row.columns.clone()];
        let is_there = |row: &&Addition| !row.columns.is_empty() && panes.contains(&row.pane);
        rows.iter().filter(is_there).map(move |row| (row.place, columns(row)))
    }

    /// What they are for a span that does not keep columns as they are.
    fn kept_as(&self, kept: &Kept, panes: &Range<i64>) -> Additions {
        let (mut made, mut sums) = (Additions::default(), Columns::new());
        for row in self.rows.iter().filter(|row| panes.contains(&row.pane)) {
            sums.clear();
            match kept {
                Kept::Rows => sums.push((0, row.rows)),
                Kept::Columns => sums.extend_from_slice(&self.columns[row.columns.clone()]),
                Kept::Figures(parts) => {
                    for &(column, n) in &self.columns[row.columns.clone()] {
                        if let Some(&Some(figure)) = parts.get(column as usize) {
                            add(&mut sums, &[(figure, n)]);
                        }
                    }
                }
            }
            made.push(row.pane, row.place, 0, |to| to.extend(sums.iter().filter(|(_, n)| *n != 0)));
        }
        made
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.columns.clear();
    }
}

/// By the number of the dimension values, in which panes how many rows have something in a column.
struct First {
    column: i64,
    panes: HashMap<u32, BTreeMap<i64, usize>>,
}

/// The panes whose starts are in a range, and what their rows add up to by the first so many dimension values.
struct Span {
    name: String,
    resolutions: Vec<i64>,
    depth: usize,
    panes: Range<i64>,
    kept: Kept,
    totals: Totals,
    /// The dimension values that have something, unless they have changed since they were asked for.
    seen: Option<Py<PySet>>,
}

/// What is added up.
#[derive(PartialEq)]
enum Kept {
    Columns,
    /// By column, the figure that it is a part of.
    Figures(Vec<Option<i64>>),
    Rows,
}

impl Kept {
    fn figures(figures: &[Vec<i64>]) -> Self {
        let figure_of = |column| (0..).zip(figures).find(|(_, of)| of.contains(&column)).map(|(figure, _)| figure);
        let columns = figures.iter().flatten().max().map_or(0, |&last| last + 1);
        Kept::Figures((0..columns).map(figure_of).collect())
    }
}

/// A span as it is asked for. Its panes may move; by the rest it is known.
struct Asked<'a> {
    name: &'a str,
    summed: Summed,
    panes: Range<i64>,
    depth: usize,
    kept: Kept,
}

/// By the number of dimension values, a sum for each column or figure: in one piece of memory, because a row that
/// changes is added to many of them, and each is somewhere else.
struct Totals {
    width: usize,
    /// For each number its head and its sums: which columns have changed since Python was given them, a bit for each
    /// (the last one is for those beyond it, too), and how many of the sums are not 0.
    cells: Vec<i64>,
    /// The numbers of which something has changed.
    changed: Vec<u32>,
    given: Py<PyDict>,
}

const CHANGED: usize = 0;
const FILLED: usize = 1;
const SUMS: usize = 2;

impl Span {
    /// Adds what rows of these panes have more.
    fn add(&mut self, paths: &[Path], more: &Additions, panes: &Range<i64>) {
        let made;
        let more = match &self.kept {
            Kept::Columns => more,
            kept => {
                made = more.kept_as(kept, panes);
                &made
            }
        };
        // Where it goes is looked up for many before the first is added, so that the processor waits for all those
        // places in memory at once.
        for some in more.rows.chunks(LOOKED_UP) {
            let mut seen = 0;
            for (place, columns) in more.within(some, panes) {
                seen ^= self.totals.look_up(paths[place as usize][self.depth], columns);
            }
            black_box(seen);
            for (place, columns) in more.within(some, panes) {
                if self.totals.add(paths[place as usize][self.depth], columns) {
                    self.seen = None;
                }
            }
        }
    }
}

impl Totals {
    fn new(py: Python<'_>) -> Self {
        Totals { width: 0, cells: Vec::new(), changed: Vec::new(), given: PyDict::new(py).unbind() }
    }

    fn stride(&self) -> usize {
        SUMS + self.width
    }

    /// Makes room for a column: rows of few columns are not to take the memory of all.
    fn widen(&mut self, width: usize) {
        let mut cells = vec![0; self.cells.len() / self.stride() * (SUMS + width)];
        for (wide, narrow) in cells.chunks_exact_mut(SUMS + width).zip(self.cells.chunks_exact(self.stride())) {
            wide[..narrow.len()].copy_from_slice(narrow);
        }
        (self.cells, self.width) = (cells, width);
    }

    fn look_up(&self, number: u32, difference: &[(i64, i64)]) -> i64 {
        let start = number as usize * self.stride();
        let sum = |&(column, _): &(i64, i64)| self.cells.get(start + SUMS + column as usize);
        difference.iter().filter_map(sum).fold(self.cells.get(start).copied().unwrap_or(0), |seen, n| seen ^ n)
    }

    /// Whether there was nothing but zeros before, or is now.
    fn add(&mut self, number: u32, difference: &[(i64, i64)]) -> bool {
        let last = difference[difference.len() - 1].0 as usize;
        if last >= self.width {
            self.widen(last + 1);
        }
        let (start, stride) = (number as usize * self.stride(), self.stride());
        if self.cells.len() < start + stride {
            self.cells.resize(start + stride, 0);
        }
        let (head, sums) = self.cells[start..start + stride].split_at_mut(SUMS);
        let was_filled = head[FILLED] > 0;
        if head[CHANGED] == 0 {
            self.changed.push(number);
        }
        for &(column, n) in difference {
            let sum = &mut sums[column as usize];
            let before = *sum;
            *sum = before.wrapping_add(n);
            head[FILLED] += i64::from(*sum != 0) - i64::from(before != 0);
            head[CHANGED] |= bit(column as usize);
        }
        was_filled != (head[FILLED] > 0)
    }

    /// What Python gets: what it was given before where nothing has changed, else a new dict.
    fn give<'py>(
        &mut self,
        py: Python<'py>,
        places: &[Place],
        value_of: impl Fn(&[i64], i64, Option<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyDict>> {
        if !self.changed.is_empty() {
            let given = self.given.bind(py).copy()?;
            let stride = self.stride();
            for &number in &self.changed {
                let values = &places[number as usize].values;
                let (head, sums) = self.cells[number as usize * stride..][..stride].split_at(SUMS);
                if head[FILLED] > 0 {
                    given.set_item(values, value_of(sums, head[CHANGED], given.get_item(values)?)?)?;
                } else if given.contains(values)? {
                    given.del_item(values)?;
                }
            }
            for number in self.changed.drain(..) {
                self.cells[number as usize * stride + CHANGED] = 0;
            }
            self.given = given.unbind();
        }
        Ok(self.given.clone_ref(py))
    }
}

#[pyclass(module = "callfunnel.streams._core")]
pub struct Sums {
    /// By their ids.
    rollups: HashMap<i64, Rollup>,
    /// By the id of a column.
    names: Vec<Option<Py<PyString>>>,
    tables: HashMap<Table, Held>,
    /// By partition, the generation of the rows that are summed.
    shown: HashMap<i32, i64>,
    /// Of which there are base rows.
    folds: Vec<Box<str>>,
    hasher: DefaultHashBuilder,
    count: usize,
    scratch: Scratch,
}

/// Memory that is used again and again.
#[derive(Default)]
struct Scratch {
    columns: Columns,
    before: Columns,
}

#[pymethods]
impl Sums {
    #[new]
    fn new(rollups: BTreeMap<i64, usize>, names: BTreeMap<i64, Py<PyString>>) -> PyResult<Self> {
        if rollups.values().any(|&dimensions| dimensions > MOST) {
            return Err(PyValueError::new_err("a rollup has too many dimensions"));
        }
        let levels = |dimensions| (0..=dimensions).map(|_| Level::default()).collect();
        let mut by_id = Vec::new();
        for (id, name) in names {
            let id = usize::try_from(id)?;
            by_id.resize_with(id, || None);
            by_id.push(Some(name));
        }
        Ok(Sums {
            rollups: rollups
                .into_iter()
                .map(|(id, dimensions)| {
                    (id, Rollup { levels: levels(dimensions), paths: Vec::new(), spans: Vec::new() })
                })
                .collect(),
            names: by_id,
            tables: HashMap::new(),
            shown: HashMap::new(),
            folds: Vec::new(),
            hasher: DefaultHashBuilder::default(),
            count: 0,
            scratch: Scratch::default(),
        })
    }

    fn __len__(&self) -> usize {
        self.count
    }

    /// Takes the newest value of each row; None deletes it. What has the key `besides` is no row.
    fn apply(&mut self, py: Python<'_>, partition: i32, records: &Records, besides: &[u8]) -> PyResult<()> {
        let changes: Vec<Change> = records
            .iter()
            .map(|(key, value)| (key.unwrap_or_default(), value))
            .filter(|(key, _)| *key != besides)
            .collect();
        let mut applied = Ok(());
        for (number, some) in changes.chunks(LOOKED_UP).enumerate() {
            if let Err(wrong) = self.apply_some(py, partition, some) {
                let key = PyBytes::new(py, some[wrong].0).unbind();
                applied = Err(PyValueError::new_err(("not a row of the tables", key)));
                break;
            }
            if number % SUMMED_UP == SUMMED_UP - 1 {
                self.sum_up();
            }
        }
        self.sum_up();
        applied
    }

    /// From here on, the rows of this generation are those of the partition that are summed.
    fn show(&mut self, number: i32, shown: i64) {
        let before = self.shown.insert(number, shown).unwrap_or(0);
        if before == shown {
            return;
        }
        let mut columns_of_row = Columns::new();
        for held in self.tables.values_mut() {
            let Held { panes, firsts, pending, .. } = held;
            for (&pane, rows) in panes {
                rows.retain(|row| {
                    if row.name.partition != number || row.name.generation <= BASE {
                        return true;
                    }
                    let Name { place, generation, .. } = row.name;
                    let n = i64::from(generation == shown) - i64::from(generation == before);
                    if n != 0 {
                        read_held(row, &mut columns_of_row);
                        for first in firsts.iter_mut() {
                            first.count(place, pane, &columns_of_row, n > 0);
                        }
                        pending.push(pane, place, n, |to| put_times(to, &columns_of_row, n));
                    }
                    self.count -= usize::from(generation == before);
                    generation != before
                });
            }
        }
        self.sum_up();
    }

    /// The sums of the rows whose panes begin in the range, by the first so many values of their dimensions.
    ///
    /// A span is known by its name, and its range may move.
    fn total(
        &mut self,
        py: Python<'_>,
        name: &str,
        summed: Summed,
        start: i64,
        end: i64,
        depth: usize,
    ) -> PyResult<Py<PyDict>> {
        let asked = Asked { name, summed, panes: start..end, depth, kept: Kept::Columns };
        let (names, (span, places)) = (&self.names, span(&self.tables, &mut self.rollups, &self.shown, py, asked)?);
        let named = |sums: &_, changed, before| Ok(named(py, sums, names, changed, before)?.into_any());
        span.totals.give(py, places, named)
    }

    /// As `total`, but of each row figures, each the sum of a few columns. A row whose figures are all 0 is left out.
    #[expect(clippy::too_many_arguments, reason = "one call for each span")]
    fn figures(
        &mut self,
        py: Python<'_>,
        name: &str,
        summed: Summed,
        start: i64,
        end: i64,
        figures: Vec<Vec<i64>>,
        depth: usize,
    ) -> PyResult<Py<PyDict>> {
        let asked = Asked { name, summed, panes: start..end, depth, kept: Kept::figures(&figures) };
        let (count, (span, places)) = (figures.len(), span(&self.tables, &mut self.rollups, &self.shown, py, asked)?);
        span.totals.give(py, places, |sums, _, _| {
            let mut figures = vec![0; count];
            figures[..sums.len()].copy_from_slice(sums);
            Ok(PyTuple::new(py, figures)?.into_any())
        })
    }

    /// The values of the dimensions of the rows whose panes begin in the range.
    fn seen(&mut self, py: Python<'_>, name: &str, summed: Summed, start: i64, end: i64) -> PyResult<Py<PySet>> {
        let depth = self.rollups.get(&summed.0).map_or(0, Rollup::depth);
        let asked = Asked { name, summed, panes: start..end, depth, kept: Kept::Rows };
        let (span, places) = span(&self.tables, &mut self.rollups, &self.shown, py, asked)?;
        if let Some(seen) = &span.seen {
            return Ok(seen.clone_ref(py));
        }
        let (seen, cells) = (PySet::empty(py)?, span.totals.cells.chunks_exact(span.totals.stride()));
        for (_, place) in cells.zip(places).filter(|(cell, _)| cell[FILLED] > 0) {
            seen.add(&place.values)?;
        }
        Ok(span.seen.insert(seen.unbind()).clone_ref(py))
    }

    /// By the values of the dimensions, the first pane with something in the column; of those that are wanted.
    fn first(
        &mut self,
        py: Python<'_>,
        summed: Summed,
        column: i64,
        wanted: &Bound<'_, PySet>,
    ) -> PyResult<Py<PyDict>> {
        let found = PyDict::new(py);
        let (rollup, resolutions) = summed;
        let Some(of_rollup) = self.rollups.get(&rollup) else { return Ok(found.unbind()) };
        for &resolution in &resolutions {
            if let Some(held) = self.tables.get_mut(&(rollup, resolution)) {
                held.first(column, &self.shown);
            }
        }
        let held = |resolution: &i64| self.tables.get(&(rollup, *resolution));
        let firsts: Vec<&First> = resolutions.iter().filter_map(held).flat_map(|held| held.first_of(column)).collect();
        let mut dimensions = Vec::new();
        for values in wanted {
            dimensions.clear();
            for value in values.cast::<PyTuple>()? {
                crate::msgpack::put_text(&mut dimensions, value.cast::<PyString>()?.to_str()?.as_bytes());
            }
            let Some(place) = of_rollup.find(&dimensions, self.hasher.hash_one(&dimensions[..])) else { continue };
            let panes = firsts.iter().filter_map(|first| Some(*first.panes.get(&place)?.first_key_value()?.0));
            if let Some(pane) = panes.min() {
                found.set_item(values, pane)?;
            }
        }
        Ok(found.unbind())
    }
}

impl Sums {
    /// Takes rows in steps, each for all of them before the next: the processor then waits for many places in memory
    /// at a time. Where one of them is no row, its number: those before it have been taken.
    fn apply_some(&mut self, py: Python<'_>, partition: i32, changes: &[Change]) -> Result<(), usize> {
        let mut placed = Vec::with_capacity(changes.len());
        for change in changes {
            match self.placed(py, partition, change) {
                Ok(row) => placed.push(row),
                Err(Malformed) => break,
            }
        }
        let mut seen = None; // the row, then its columns, which are elsewhere
        for touch in [|_: &Row| None, |row: &Row| row.columns.first().copied()] {
            for row in &placed {
                let rows = self.tables.get(&row.table).and_then(|held| held.panes.get(&row.pane));
                rows.and_then(|rows| {
                    rows.find(row.hash, |held| {
                        seen = seen.max(touch(held));
                        false
                    })
                });
            }
        }
        black_box(seen);
        let count = placed.len();
        for (number, row) in placed.into_iter().enumerate() {
            self.apply_one(row).map_err(|Malformed| number)?;
        }
        if count == changes.len() { Ok(()) } else { Err(count) }
    }

    fn placed<'a>(&mut self, py: Python<'_>, partition: i32, change: &Change<'a>) -> Result<Placed<'a>, Malformed> {
        let (mut key, value) = (Reader::new(change.0), change.1);
        let (size, generation, rollup) = (key.array()?, key.integer()?, key.integer()?);
        let of_rollup = self.rollups.get_mut(&rollup).ok_or(Malformed)?;
        let (generation, resolution, pane, others) = match generation {
            BASE => (BASE - number_of(&mut self.folds, key.text()?)?, BASE, 0, 3),
            0.. => (generation, key.integer()?, key.integer()?, 4),
            _ => return Err(Malformed),
        };
        if size != others + of_rollup.depth() {
            return Err(Malformed);
        }
        let place = of_rollup.number(py, key.rest(), &self.hasher)?;
        let name = Name { partition, place, generation };
        Ok(Placed { table: (rollup, resolution), pane, name, hash: self.hasher.hash_one(name), value })
    }

    /// Adds what is pending, span by span.
    fn sum_up(&mut self) {
        for ((rollup, resolution), Held { pending, .. }) in &mut self.tables {
            let Some(Rollup { paths, spans, .. }) = self.rollups.get_mut(rollup) else { continue };
            for span in spans.iter_mut().filter(|span| span.resolutions.contains(resolution)) {
                span.add(paths, pending, &span.panes.clone());
            }
            pending.clear();
        }
    }

    fn apply_one(&mut self, row: Placed<'_>) -> Result<(), Malformed> {
        let Placed { table, pane, name, hash, value } = row;
        let Scratch { columns: more, before } = &mut self.scratch;
        more.clear();
        if let Some(value) = value {
            read(value, more)?;
        }
        let known = 0..self.names.len() as i64;
        if more.first().is_some_and(|(id, _)| !known.contains(id))
            || more.last().is_some_and(|(id, _)| !known.contains(id))
        {
            return Err(Malformed);
        }
        let Held { panes, firsts, pending, .. } = self.tables.entry(table).or_default();
        let rows = panes.entry(pane).or_default();
        let hash_of = |row: &Row| self.hasher.hash_one(row.name);
        before.clear();
        let count = self.count;
        match (rows.entry(hash, |row| row.name == name, hash_of), value) {
            (Entry::Occupied(mut held), Some(value)) => {
                let row = held.get_mut();
                read_held(row, before);
                if row.columns.len() == value.len() {
                    row.columns.copy_from_slice(value);
                } else {
                    row.columns = value.into();
                }
            }
            (Entry::Occupied(held), None) => {
                self.count -= 1;
                read_held(&held.remove().0, before);
            }
            (Entry::Vacant(free), Some(value)) => {
                self.count += 1;
                free.insert(Row { name, columns: value.into() });
            }
            (Entry::Vacant(_), None) => {}
        }
        if rows.is_empty() {
            panes.remove(&pane);
        }
        if is_shown(&self.shown, name) {
            for first in firsts {
                first.count(name.place, pane, before, false);
                first.count(name.place, pane, more, true);
            }
            let comes = self.count as i64 - count as i64;
            pending.push(pane, name.place, comes, |to| put_difference(to, before, more));
        }
        Ok(())
    }
}

impl Held {
    /// Keeps what there is of a column from now on.
    fn first(&mut self, column: i64, shown: &HashMap<i32, i64>) {
        if self.first_of(column).is_some() {
            return;
        }
        let (mut first, mut columns) = (First { column, panes: HashMap::new() }, Columns::new());
        for (&pane, rows) in &self.panes {
            for row in rows.iter().filter(|row| is_shown(shown, row.name)) {
                read_held(row, &mut columns);
                first.count(row.name.place, pane, &columns, true);
            }
        }
        self.firsts.push(first);
    }

    fn first_of(&self, column: i64) -> Option<&First> {
        self.firsts.iter().find(|first| first.column == column)
    }
}

impl First {
    /// A row comes or goes.
    fn count(&mut self, place: u32, pane: i64, columns: &[(i64, i64)], comes: bool) {
        if !columns.iter().any(|&(id, n)| id == self.column && n != 0) {
            return;
        }
        if comes {
            *self.panes.entry(place).or_default().entry(pane).or_default() += 1;
        } else if let Some(panes) = self.panes.get_mut(&place) {
            let rows = panes.entry(pane).or_default();
            *rows = rows.saturating_sub(1);
            if *rows == 0 {
                panes.remove(&pane);
            }
            if panes.is_empty() {
                self.panes.remove(&place);
            }
        }
    }
}

fn is_shown(shown: &HashMap<i32, i64>, Name { partition, generation, .. }: Name) -> bool {
    generation <= BASE || generation == shown.get(&partition).copied().unwrap_or(0)
}

/// The number of a fold: there are few.
fn number_of(folds: &mut Vec<Box<str>>, fold: &str) -> Result<i64, Malformed> {
    let number = folds.iter().position(|known| **known == *fold).unwrap_or_else(|| {
        folds.push(fold.into());
        folds.len() - 1
    });
    i64::try_from(number).map_err(|_| Malformed)
}

/// The span that is asked for, where it is by now, and the dimension values that its totals are of.
fn span<'a>(
    tables: &HashMap<Table, Held>,
    rollups: &'a mut HashMap<i64, Rollup>,
    shown: &HashMap<i32, i64>,
    py: Python<'_>,
    asked: Asked<'_>,
) -> PyResult<(&'a mut Span, &'a [Place])> {
    let Asked { name, summed: (rollup, resolutions), panes: is, depth, kept } = asked;
    let Rollup { levels, paths, spans } =
        rollups.get_mut(&rollup).ok_or_else(|| PyValueError::new_err("no such rollup"))?;
    let level = levels.get(depth).ok_or_else(|| PyValueError::new_err("the rollup has fewer dimensions"))?;
    let is_it =
        |span: &Span| span.name == name && span.depth == depth && span.kept == kept && span.resolutions == resolutions;
    let number = spans.iter().position(is_it).unwrap_or_else(|| {
        let (name, panes, totals) = (name.into(), is.start..is.start, Totals::new(py));
        spans.push(Span { name, resolutions, depth, panes, kept, totals, seen: None });
        spans.len() - 1
    });
    let span = &mut spans[number];
    let (was, is) = (span.panes.clone(), is.start..is.end.max(is.start));
    let moves = [
        (was.start..was.end.min(is.start), -1),
        (was.start.max(is.end)..was.end, -1),
        (is.start..is.end.min(was.start), 1),
        (is.start.max(was.end)..is.end, 1),
    ];
    let (mut columns, mut more) = (Columns::new(), Additions::default());
    for (range, n) in moves.into_iter().filter(|(range, _)| !range.is_empty()) {
        let held: Vec<&Held> = span.resolutions.iter().filter_map(|&id| tables.get(&(rollup, id))).collect();
        for (&pane, rows) in held.iter().flat_map(|held| held.panes.range(range.clone())) {
            for row in rows.iter().filter(|row| is_shown(shown, row.name)) {
                read_held(row, &mut columns);
                more.push(pane, row.name.place, n, |to| put_times(to, &columns, n));
            }
            span.add(paths, &more, &range);
            more.clear();
        }
    }
    span.panes = is;
    Ok((span, &level.places))
}

/// The columns of a value, in ascending order.
fn read(value: &[u8], columns: &mut Columns) -> Result<(), Malformed> {
    let mut from = Reader::new(value);
    let size = from.map()?;
    columns.clear();
    for _ in 0..size {
        columns.push((from.integer()?, from.integer()?));
    }
    from.end()?;
    if columns.is_sorted_by(|(one, _), (other, _)| one < other) { Ok(()) } else { Err(Malformed) }
}

fn read_held(row: &Row, into: &mut Columns) {
    read(&row.columns, into).expect("it was read before it was held");
}

/// Columns so many times.
fn put_times(to: &mut Columns, columns: &[(i64, i64)], n: i64) {
    to.extend(columns.iter().map(|&(id, sum)| (id, sum.wrapping_mul(n))));
}

/// What a row adds more than before, where that is not 0.
fn put_difference(to: &mut Columns, before: &[(i64, i64)], after: &[(i64, i64)]) {
    let mut before = before.iter().copied().peekable();
    for &(id, n) in after {
        while let Some((gone, n)) = before.next_if(|&(known, _)| known < id) {
            to.push((gone, n.wrapping_neg()));
        }
        let was = before.next_if(|&(known, _)| known == id).map_or(0, |(_, n)| n);
        if n != was {
            to.push((id, n.wrapping_sub(was)));
        }
    }
    to.extend(before.map(|(id, n)| (id, n.wrapping_neg())));
}

/// Columns that become 0 are left out.
fn add(sums: &mut Columns, more: &[(i64, i64)]) {
    let mut has_zero = false;
    for &(id, n) in more {
        let place = sums.partition_point(|&(known, _)| known < id);
        match sums.get_mut(place) {
            Some((known, sum)) if *known == id => {
                *sum = sum.wrapping_add(n);
                has_zero |= *sum == 0;
            }
            _ if n != 0 => sums.insert(place, (id, n)),
            _ => {}
        }
    }
    if has_zero {
        sums.retain(|&(_, n)| n != 0);
    }
}

fn values(py: Python<'_>, dimensions: &[u8]) -> PyResult<Py<PyTuple>> {
    let mut from = Reader::new(dimensions);
    let mut values = Vec::new();
    while from.end().is_err() {
        values.push(from.text()?);
    }
    Ok(PyTuple::new(py, values)?.unbind())
}

/// Sums by the names of their columns: those of before, with what has changed.
fn named<'py>(
    py: Python<'py>,
    sums: &[i64],
    names: &[Option<Py<PyString>>],
    changed: i64,
    before: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let was_given = before.is_some();
    let (dict, changed) = match before {
        Some(before) => (before.cast::<PyDict>()?.copy()?, changed),
        None => (PyDict::new(py), !0),
    };
    for (column, (name, &n)) in names.iter().zip(sums).enumerate() {
        if changed & bit(column) == 0 {
            continue;
        }
        if n != 0 {
            dict.set_item(name.as_ref().ok_or(Malformed)?, n)?;
        } else if let Some(name) = name.as_ref().filter(|_| was_given)
            && dict.contains(name)?
        {
            dict.del_item(name)?;
        }
    }
    Ok(dict)
}

/// The bit of a column in the head of a cell.
fn bit(column: usize) -> i64 {
    1 << column.min(63)
}
