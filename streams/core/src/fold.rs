//! A batch of events into the tables: the logs of their leads grow, and the rows change by what that adds.

use std::ops::Range;

use hashbrown::HashMap;
use pyo3::PyResult;

use crate::catalogue::{Catalogue, Columns, Length};
use crate::counts::{Cells, Counts};
use crate::days::Days;
use crate::facts::Facts;
use crate::log::{Entry, Log, Place};
use crate::measures::{count_activity, count_change, count_log};
use crate::rows::{Changes, Name, Rows};
use crate::store::Store;
use crate::texts::{MISSING, Text, Texts};

/// So many leads are looked up before the first of them is folded: the processor then waits for the memory of
/// several at the same time.
const AT_ONCE: usize = 64;

/// The events of a batch; none where a record is no event, or not yet.
pub struct Batch {
    pub texts: Texts,
    pub leads: Texts,
    pub events: Vec<Option<Event>>,
}

/// What is taken in at once of a batch.
pub struct Part<'a> {
    pub batch: &'a mut Batch,
    pub range: Range<usize>,
    /// Of the records, in ms.
    pub timestamps: &'a [i64],
    pub catalogue: &'a Catalogue,
}

#[derive(Clone, Copy)]
pub struct Event {
    pub lead: Text,
    pub entry: Entry,
}

pub struct Limits {
    pub hangup_ms: i64,
    pub late_ms: i64,
    pub lead_events: usize,
}

/// What the partition knows of time.
#[derive(Clone, Copy)]
pub struct Bounds {
    /// The largest event time; -1 before the first event.
    pub watermark_ms: i64,
    /// What happened before it counts in the rows of all time alone.
    pub horizon_ms: i64,
}

/// What came of a batch.
pub struct Effects {
    pub rows: Changes,
    /// Leads whose records changed, and where those are in `Fold::records`.
    pub leads: Vec<(Text, Range<usize>)>,
    pub crowded: Vec<usize>,
    /// Events that are older than the horizon.
    pub old: Vec<usize>,
    pub foreign: Vec<(usize, i64)>,
    pub duplicates: usize,
    pub late: usize,
    /// Of the events that were taken in; -1 where there are none.
    pub newest_ms: i64,
}

/// The leads that were archived.
pub struct Gone {
    pub ids: Vec<Box<[u8]>>,
    /// Where to go on looking; none at the end.
    pub next: Option<usize>,
}

pub struct Fold {
    pub columns: Columns,
    pub limits: Limits,
    pub days: Days,
    pub leads: Store,
    pub rows: Rows,
    pub counts: Counts,
    /// What the leads add that were archived, by the minute.
    pub archived: Counts,
    pub scratch: Scratch,
}

/// Memory that is used again and again.
#[derive(Default)]
pub struct Scratch {
    log: Log,
    before: Facts,
    after: Facts,
    records: Vec<u8>,
    sums: Cells,
}

impl Fold {
    /// `home` says of a lead of another partition where it is. Nothing is held of a part that fails.
    pub fn add(&mut self, part: &mut Part, home: impl Fn(Text) -> Option<i64>, bounds: Bounds) -> PyResult<Effects> {
        let mut effects = Effects {
            rows: Changes::default(),
            leads: Vec::new(),
            crowded: Vec::new(),
            old: Vec::new(),
            foreign: Vec::new(),
            duplicates: 0,
            late: 0,
            newest_ms: -1,
        };
        let chains = Chains::new(part, home, bounds.horizon_ms, &mut effects);
        self.counts.clear();
        self.archived.clear();
        self.scratch.records.clear();
        let (mut places, mut changed) = (Vec::with_capacity(AT_ONCE), Vec::new());
        for some in chains.leads.chunks(AT_ONCE) {
            places.clear();
            places.extend(some.iter().map(|&(lead, _)| self.leads.place_of(part.batch.leads.get(lead))));
            for (&(lead, first), &place) in some.iter().zip(&places) {
                let start = self.scratch.records.len();
                let events = chains.from(first);
                if self.add_to_lead(part, place, events, bounds.horizon_ms, &mut effects)? {
                    effects.leads.push((lead, start..self.scratch.records.len()));
                    changed.push(place);
                }
            }
        }
        effects.crowded.sort_unstable();
        let bounds = Bounds { watermark_ms: bounds.watermark_ms.max(effects.newest_ms), ..bounds };
        self.sum_up(&part.batch.texts, bounds, &mut effects.rows)?;
        self.set_leads(&part.batch.leads, &effects.leads, &changed);
        Ok(effects)
    }

    /// The records that the last batch changed, one behind the other.
    pub fn records(&self) -> &[u8] {
        &self.scratch.records
    }

    fn set_leads(&mut self, ids: &Texts, leads: &[(Text, Range<usize>)], places: &[Option<usize>]) {
        let records = &self.scratch.records;
        for ((lead, record), place) in leads.iter().zip(places) {
            if let Some(place) = *place {
                self.leads.replace(place, ids.get(*lead), &records[record.clone()]);
            }
        }
        // These after all others: places change when leads come.
        for ((lead, record), _) in leads.iter().zip(places).filter(|(_, place)| place.is_none()) {
            self.leads.set(ids.get(*lead), &records[record.clone()]);
        }
    }

    /// Counts all that a log adds.
    pub fn count_record(&mut self, record: &[u8], texts: &mut Texts, catalogue: &Catalogue) -> PyResult<()> {
        let Scratch { log, after, .. } = &mut self.scratch;
        log.open(record, texts, catalogue)?;
        after.find(log, self.limits.hangup_ms, texts);
        count_log(log, texts, after, 1, &self.columns, &mut self.counts);
        Ok(())
    }

    /// Looks at up to so many places where leads may be, takes those out of which nothing happened since the
    /// horizon.
    pub fn archive(
        &mut self,
        place: usize,
        most: usize,
        bounds: Bounds,
        texts: &mut Texts,
        catalogue: &Catalogue,
        changes: &mut Changes,
    ) -> PyResult<Gone> {
        self.counts.clear();
        self.archived.clear();
        let end = place.saturating_add(most);
        let mut ids: Vec<Box<[u8]>> = Vec::new();
        for place in place..end.min(self.leads.places()) {
            let Some((id, record)) = self.leads.at(place) else { continue };
            let Scratch { log, before, .. } = &mut self.scratch;
            log.open(record, texts, catalogue)?;
            if log.newest_ms() >= bounds.horizon_ms {
                continue;
            }
            before.find(log, self.limits.hangup_ms, texts);
            count_log(log, texts, before, -1, &self.columns, &mut self.counts);
            count_log(log, texts, before, 1, &self.columns, &mut self.archived);
            ids.push(id.into());
        }
        self.sum_up(texts, bounds, changes)?;
        for id in &ids {
            self.leads.remove(id);
        }
        Ok(Gone { ids, next: (end < self.leads.places()).then_some(end) })
    }

    /// What was counted goes into the rows.
    pub fn sum_up(&mut self, texts: &Texts, bounds: Bounds, changes: &mut Changes) -> PyResult<()> {
        let panes = self.panes(bounds)?;
        self.add_rows(texts, &panes, bounds.watermark_ms, changes)
    }

    /// Whether the lead's record changed; then the new one is the last of the records.
    fn add_to_lead(
        &mut self,
        part: &mut Part,
        place: Option<usize>,
        events: impl Iterator<Item = usize> + Clone,
        horizon_ms: i64,
        effects: &mut Effects,
    ) -> PyResult<bool> {
        let Scratch { log, before, after, records, .. } = &mut self.scratch;
        let (timestamps, catalogue) = (part.timestamps, part.catalogue);
        let Batch { texts, events: all, .. } = &mut *part.batch;
        log.clear();
        if let Some((_, record)) = place.and_then(|place| self.leads.at(place)) {
            log.open(record, texts, catalogue)?;
            if log.newest_ms() < horizon_ms {
                before.find(log, self.limits.hangup_ms, texts);
                count_log(log, texts, before, -1, &self.columns, &mut self.counts);
                count_log(log, texts, before, 1, &self.columns, &mut self.archived);
                log.clear();
            }
        }
        let mut has_changed = false;
        for at in events {
            let Some(event) = all[at] else { continue };
            match log.place_for(&event.entry, texts, catalogue, self.limits.lead_events) {
                Place::Taken => effects.duplicates += 1,
                Place::Crowded => effects.crowded.push(at),
                Place::Free(place) => {
                    if !has_changed {
                        before.find(log, self.limits.hangup_ms, texts);
                    }
                    has_changed = true;
                    log.insert(place, event.entry, texts, catalogue);
                    let at_ms = event.entry.at_ms;
                    effects.newest_ms = effects.newest_ms.max(at_ms);
                    effects.late += usize::from(timestamps[at].saturating_sub(at_ms) > self.limits.late_ms);
                    count_activity(&event.entry, 1, &self.columns, &mut self.counts);
                }
            }
        }
        if has_changed {
            after.find(log, self.limits.hangup_ms, texts);
            count_change(before, after, &self.columns, &mut self.counts);
            log.write(records, texts, catalogue);
        }
        Ok(has_changed)
    }

    /// By resolution, the pane of each minute of the batch; none before the horizon.
    fn panes(&mut self, bounds: Bounds) -> PyResult<Vec<Vec<Option<i64>>>> {
        let mut panes = Vec::new();
        let first_minute = bounds.horizon_ms.div_euclid(1000);
        for resolution in self.rows.resolutions() {
            let mut of_minutes = Vec::with_capacity(self.counts.minutes.len());
            for &minute in &self.counts.minutes {
                let pane = match resolution.length {
                    Length::Seconds(length) => minute - minute.rem_euclid(length),
                    Length::Day => self.days.start_of(minute)?,
                    Length::AllTime => 0,
                };
                let is_known = minute >= first_minute || resolution.length == Length::AllTime;
                of_minutes.push(is_known.then_some(pane));
            }
            panes.push(of_minutes);
        }
        Ok(panes)
    }

    fn add_rows(
        &mut self,
        texts: &Texts,
        panes: &[Vec<Option<i64>>],
        watermark_ms: i64,
        changes: &mut Changes,
    ) -> PyResult<()> {
        let names: Vec<Name> = self
            .counts
            .groups
            .iter()
            .map(|group| {
                let values = group.values.iter().filter(|&&value| value != MISSING);
                self.rows.name(group.rollup as usize, values.map(|&value| texts.get(value)))
            })
            .collect();
        for (resolution, of_minutes) in panes.iter().enumerate() {
            let (its, rollups) = (&self.rows.resolutions()[resolution], self.rows.rollups());
            let is_all_time = its.length == Length::AllTime;
            let gone: Vec<i64> = rollups.iter().map(|rollup| its.gone(rollup, watermark_ms)).collect();
            let (mut starts, mut index) = (Vec::new(), HashMap::new());
            let mut place_of = |pane: i64| {
                *index.entry(pane).or_insert_with(|| {
                    starts.push(pane);
                    starts.len() as u32 - 1
                })
            };
            let places: Vec<Option<u32>> = of_minutes.iter().map(|pane| pane.map(&mut place_of)).collect();
            let is_counted = |group: u32, pane: u32| {
                let rollup = self.counts.groups[group as usize].rollup as usize;
                if is_all_time { rollups[rollup].of_all_time } else { starts[pane as usize] > gone[rollup] }
            };
            let each_its_own = !is_all_time
                && places.iter().copied().eq((0..places.len() as u32).map(Some))
                && starts.iter().min() > gone.iter().max();
            let cells = if each_its_own {
                &self.counts.cells
            } else {
                let sums = &mut self.scratch.sums;
                sums.clear();
                for (group, minute, cell) in self.counts.cells.iter() {
                    if let Some(pane) = places[minute as usize].filter(|&pane| is_counted(group, pane)) {
                        sums.add(group, pane, cell);
                    }
                }
                sums
            };
            for (group, pane, cell) in cells.iter() {
                let (name, pane) = (&names[group as usize], starts[pane as usize]);
                self.rows.add(resolution, pane, name, cell, &self.columns, changes)?;
            }
        }
        self.rows.expire(watermark_ms, changes);
        Ok(())
    }
}

/// The events of each lead, in the order of the batch.
struct Chains {
    /// With the first event of each.
    leads: Vec<(Text, usize)>,
    next: Vec<u32>,
}

const NO_MORE: u32 = u32::MAX;
const UNSEEN: u32 = u32::MAX;

impl Chains {
    fn new(part: &Part, home: impl Fn(Text) -> Option<i64>, horizon_ms: i64, effects: &mut Effects) -> Self {
        let batch = &*part.batch;
        let mut chains = Chains { leads: Vec::new(), next: vec![NO_MORE; batch.events.len()] };
        let mut last = vec![UNSEEN; batch.leads.len()];
        for at in part.range.clone() {
            let Some(event) = &batch.events[at] else { continue };
            if let Some(home) = home(event.lead) {
                effects.foreign.push((at, home));
                continue;
            }
            if event.entry.at_ms < horizon_ms {
                effects.old.push(at);
                continue;
            }
            let last = &mut last[event.lead as usize];
            if *last == UNSEEN {
                chains.leads.push((event.lead, at));
            } else {
                chains.next[*last as usize] = at as u32;
            }
            *last = at as u32;
        }
        chains
    }

    fn from(&self, first: usize) -> impl Iterator<Item = usize> + Clone {
        std::iter::successors(Some(first), |&at| match self.next[at] {
            NO_MORE => None,
            next => Some(next as usize),
        })
    }
}
