//! A batch of events into the tables: the logs of their leads grow, and the rows change by what that adds.

use hashbrown::HashMap;
use pyo3::PyResult;

use crate::catalogue::{Catalogue, Columns, Length};
use crate::counts::{Cells, Counts};
use crate::days::Days;
use crate::facts::Facts;
use crate::leads::Leads;
use crate::log::{Added, Entry, Log};
use crate::measures::{count_activity, count_change};
use crate::rows::{Changes, Name, Rows};
use crate::texts::{MISSING, Text, Texts};

/// The events of a batch; none where a record is no event, or not yet.
pub struct Batch {
    pub texts: Texts,
    pub leads: Texts,
    pub events: Vec<Option<Event>>,
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

/// What came of a batch.
pub struct Effects {
    pub rows: Changes,
    /// Leads whose records changed.
    pub leads: Vec<Text>,
    pub crowded: Vec<usize>,
    pub foreign: Vec<(usize, i64)>,
    pub duplicates: usize,
    pub late: usize,
    /// Of the events that were taken in; -1 where there are none.
    pub newest_ms: i64,
}

pub struct Fold {
    pub columns: Columns,
    pub limits: Limits,
    pub days: Days,
    pub leads: Leads,
    pub rows: Rows,
    pub counts: Counts,
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
    /// `home` says of a lead of another partition where it is. Nothing is held of a batch that fails.
    pub fn add(
        &mut self,
        batch: &mut Batch,
        catalogue: &Catalogue,
        timestamps: &[i64],
        home: impl Fn(Text) -> Option<i64>,
        watermark_ms: i64,
    ) -> PyResult<Effects> {
        let mut effects = Effects {
            rows: Changes::default(),
            leads: Vec::new(),
            crowded: Vec::new(),
            foreign: Vec::new(),
            duplicates: 0,
            late: 0,
            newest_ms: -1,
        };
        let chains = Chains::new(batch, home, &mut effects.foreign);
        self.counts.clear();
        self.scratch.records.clear();
        let mut records = Vec::new();
        for &(lead, first) in &chains.leads {
            let start = self.scratch.records.len();
            if self.add_to_lead(batch, catalogue, timestamps, lead, chains.from(first), &mut effects)? {
                effects.leads.push(lead);
                records.push(start..self.scratch.records.len());
            }
        }
        effects.crowded.sort_unstable();
        let watermark_ms = watermark_ms.max(effects.newest_ms);
        let panes = self.panes(watermark_ms)?;
        self.add_rows(&batch.texts, &panes, watermark_ms, &mut effects.rows)?;
        for (&lead, record) in effects.leads.iter().zip(records) {
            self.leads.set(batch.leads.get(lead), &self.scratch.records[record]);
        }
        Ok(effects)
    }

    /// Counts all that a log adds.
    pub fn count_log(&mut self, record: &[u8], texts: &mut Texts, catalogue: &Catalogue) -> PyResult<()> {
        let Scratch { log, before, after, .. } = &mut self.scratch;
        log.open(record, texts, catalogue)?;
        for entry in log.entries() {
            count_activity(entry, &self.columns, &mut self.counts);
        }
        before.clear();
        after.find(log, self.limits.hangup_ms);
        count_change(before, after, &self.columns, &mut self.counts);
        Ok(())
    }

    /// What was counted goes into the rows, and nobody asks which of them changed.
    pub fn sum_up(&mut self, texts: &Texts, watermark_ms: i64) -> PyResult<()> {
        let panes = self.panes(watermark_ms)?;
        self.add_rows(texts, &panes, watermark_ms, &mut Changes::default())
    }

    /// Whether the lead's record changed; then the new one is the last of the records.
    fn add_to_lead(
        &mut self,
        batch: &mut Batch,
        catalogue: &Catalogue,
        timestamps: &[i64],
        lead: Text,
        events: impl Iterator<Item = usize> + Clone,
        effects: &mut Effects,
    ) -> PyResult<bool> {
        let Scratch { log, before, after, records, .. } = &mut self.scratch;
        let Batch { texts, leads, events: all } = batch;
        match self.leads.get(leads.get(lead)) {
            Some(record) => {
                log.open(record, texts, catalogue)?;
                before.find(log, self.limits.hangup_ms);
            }
            None => {
                log.clear();
                before.clear();
            }
        }
        let mut has_changed = false;
        for at in events {
            let Some(event) = all[at] else { continue };
            match log.add(event.entry, texts, catalogue, self.limits.lead_events) {
                Added::Duplicate => effects.duplicates += 1,
                Added::Crowded => effects.crowded.push(at),
                Added::Entry => {
                    has_changed = true;
                    let at_ms = event.entry.at_ms;
                    effects.newest_ms = effects.newest_ms.max(at_ms);
                    effects.late += usize::from(timestamps[at].saturating_sub(at_ms) > self.limits.late_ms);
                    count_activity(&event.entry, &self.columns, &mut self.counts);
                }
            }
        }
        if has_changed {
            after.find(log, self.limits.hangup_ms);
            count_change(before, after, &self.columns, &mut self.counts);
            log.write(records, texts, catalogue);
        }
        Ok(has_changed)
    }

    /// By resolution, the pane of each minute of the batch; none where it has expired.
    fn panes(&mut self, watermark_ms: i64) -> PyResult<Vec<Vec<Option<i64>>>> {
        let mut panes = Vec::new();
        for resolution in self.rows.resolutions() {
            let horizon = resolution.horizon(watermark_ms);
            let mut of_minutes = Vec::with_capacity(self.counts.minutes.len());
            for &minute in &self.counts.minutes {
                let pane = match resolution.length {
                    Length::Seconds(length) => minute - minute.rem_euclid(length),
                    Length::Day => self.days.start_of(minute)?,
                    Length::AllTime => 0,
                };
                of_minutes.push(horizon.is_none_or(|horizon| pane > horizon).then_some(pane));
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
            let is_all_time = self.rows.resolutions()[resolution].length == Length::AllTime;
            let (mut starts, mut index) = (Vec::new(), HashMap::new());
            let mut place_of = |pane: i64| {
                *index.entry(pane).or_insert_with(|| {
                    starts.push(pane);
                    starts.len() as u32 - 1
                })
            };
            let places: Vec<Option<u32>> = of_minutes.iter().map(|pane| pane.map(&mut place_of)).collect();
            let is_counted = |group: u32| {
                let rollup = self.counts.groups[group as usize].rollup;
                !is_all_time || self.rows.rollups()[rollup as usize].of_all_time
            };
            let each_its_own = !is_all_time && places.iter().copied().eq((0..places.len() as u32).map(Some));
            let cells = if each_its_own {
                &self.counts.cells
            } else {
                let sums = &mut self.scratch.sums;
                sums.clear();
                for (group, minute, cell) in self.counts.cells.iter() {
                    if let Some(pane) = places[minute as usize].filter(|_| is_counted(group)) {
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
    fn new(batch: &Batch, home: impl Fn(Text) -> Option<i64>, foreign: &mut Vec<(usize, i64)>) -> Self {
        let mut chains = Chains { leads: Vec::new(), next: vec![NO_MORE; batch.events.len()] };
        let mut last = vec![UNSEEN; batch.leads.len()];
        for (at, event) in batch.events.iter().enumerate() {
            let Some(event) = event else { continue };
            if let Some(home) = home(event.lead) {
                foreign.push((at, home));
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
