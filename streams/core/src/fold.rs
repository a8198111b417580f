//! A batch of events into the tables: the logs of their leads grow, and the rows change by what that adds.

use std::collections::BTreeMap;
use std::ops::Range;

use hashbrown::HashMap;
use pyo3::PyResult;

use crate::catalogue::{Catalogue, Columns, Length, MINUTES};
use crate::counts::{Cell, Cells, Counts};
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
    /// Events that were taken in and contradict another one of the same id.
    pub conflicting: usize,
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
            conflicting: 0,
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

    /// What was counted goes into the rows, and so does what is in rows of minutes that expire.
    pub fn sum_up(&mut self, texts: &Texts, bounds: Bounds, changes: &mut Changes) -> PyResult<()> {
        let counted = self.panes(&self.counts.minutes.clone(), bounds)?;
        self.add_rows(texts, &counted, bounds, changes)?;
        self.expire(bounds, changes)
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
                    let is_conflicting = log.insert(place, event.entry, texts, catalogue);
                    effects.conflicting += usize::from(is_conflicting);
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

    /// By resolution, the pane of each minute; none before the horizon.
    fn panes(&mut self, minutes: &[i64], bounds: Bounds) -> PyResult<Vec<Vec<Option<i64>>>> {
        let first_minute = bounds.horizon_ms.div_euclid(1000);
        let mut panes = Vec::new();
        for resolution in self.rows.resolutions() {
            let mut of_minutes = Vec::with_capacity(minutes.len());
            for &minute in minutes {
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

    /// What was counted goes into the rows of its minutes; where these have expired, into all coarser ones.
    fn add_rows(
        &mut self,
        texts: &Texts,
        panes: &[Vec<Option<i64>>],
        bounds: Bounds,
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
        let kept = self.rows.kept(bounds.watermark_ms);
        let rollup_of = |group: u32| self.counts.groups[group as usize].rollup as usize;
        let pane_of = |resolution: usize, group: u32, minute: u32| {
            panes[resolution][minute as usize].filter(|&pane| kept[resolution].holds(rollup_of(group), pane))
        };
        let mut is_any_expired = false;
        for (group, minute, cell) in self.counts.cells.iter() {
            match pane_of(MINUTES, group, minute) {
                Some(pane) => self.rows.add(MINUTES, pane, &names[group as usize], cell, &self.columns, changes)?,
                None => is_any_expired = true,
            }
        }
        if !is_any_expired {
            return Ok(());
        }
        for resolution in MINUTES + 1..panes.len() {
            let (mut starts, mut index) = (Vec::new(), HashMap::new());
            let sums = &mut self.scratch.sums;
            sums.clear();
            for (group, minute, cell) in self.counts.cells.iter() {
                if pane_of(MINUTES, group, minute).is_some() {
                    continue;
                }
                let Some(pane) = pane_of(resolution, group, minute) else { continue };
                let place = *index.entry(pane).or_insert_with(|| {
                    starts.push(pane);
                    starts.len() as u32 - 1
                });
                sums.add(group, place, cell);
            }
            for (group, pane, cell) in sums.iter() {
                let (name, pane) = (&names[group as usize], starts[pane as usize]);
                self.rows.add(resolution, pane, name, cell, &self.columns, changes)?;
            }
        }
        Ok(())
    }

    /// What rows of minutes hold goes into all coarser ones when they expire.
    fn expire(&mut self, bounds: Bounds, changes: &mut Changes) -> PyResult<()> {
        let expired = self.rows.expire(bounds.watermark_ms, changes);
        if expired.is_empty() {
            return Ok(());
        }
        let minutes: Vec<i64> = expired.iter().map(|rows| rows.pane).collect();
        let panes = self.panes(&minutes, bounds)?;
        let kept = self.rows.kept(bounds.watermark_ms);
        for resolution in MINUTES + 1..panes.len() {
            // By pane and name: several minutes may go into one row.
            let mut sums: BTreeMap<(i64, &[u8]), Cell> = BTreeMap::new();
            for (rows, pane) in expired.iter().zip(&panes[resolution]) {
                let Some(pane) = pane.filter(|&pane| kept[resolution].holds(rows.rollup, pane)) else { continue };
                for (name, value) in rows.iter() {
                    sums.entry((pane, name)).or_default().add_value(value, &self.columns)?;
                }
            }
            for ((pane, name), cell) in &sums {
                let name = self.rows.named(name);
                self.rows.add(resolution, *pane, &name, cell, &self.columns, changes)?;
            }
        }
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
