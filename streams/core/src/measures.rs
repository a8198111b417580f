//! What a lead adds to the rows: each measure, and what of it changes when the lead's log grows.

use crate::catalogue::{Columns, Histogram, STAGES};
use crate::counts::{Counts, Place};
use crate::facts::{Arrival, Counted, Facts, Origin, Response, Unit, What};
use crate::log::{Entry, Log};
use crate::texts::Texts;

/// Of every entry, in force or not. Its dimensions are texts of the batch.
pub fn count_activity(entry: &Entry, n: i64, columns: &Columns, counts: &mut Counts) {
    let column =
        if entry.is_machine() { Some(columns.machine_answers) } else { columns.activity[usize::from(entry.rank)] };
    if let Some(column) = column.filter(|_| entry.counts()) {
        let place = counts.place(entry.at_ms, &entry.dimensions);
        counts.add(&place, column, n);
    }
}

/// All that a lead adds, so many times. Its facts are those of its log.
pub fn count_log(log: &mut Log, texts: &mut Texts, facts: &Facts, n: i64, columns: &Columns, counts: &mut Counts) {
    for at in 0..log.entries().len() {
        let mut entry = log.entries()[at];
        entry.dimensions = entry.dimensions.map(|text| log.number(text, texts));
        count_activity(&entry, n, columns, counts);
    }
    count_counted(&facts.counted, n, columns, counts);
    for unit in &facts.units {
        count_progress(&unit.arrivals, &unit.origin, [true; STAGES], n, columns, counts);
        count_response(unit.response.as_ref(), &unit.origin, n, columns, counts);
        for (histogram, (_, observe)) in columns.histograms.iter().zip(HISTOGRAMS) {
            count_duration(observe(unit), &unit.origin, n, histogram, counts);
        }
    }
}

/// What `after` adds, without what `before` added. Of a new lead, `before` are no facts.
pub fn count_change(before: &Facts, after: &Facts, columns: &Columns, counts: &mut Counts) {
    if before.counted != after.counted {
        count_counted(&before.counted, -1, columns, counts);
        count_counted(&after.counted, 1, columns, counts);
    }
    let none = Unit::default();
    for number in 0..before.units.len().max(after.units.len()) {
        let [before, after] = [before, after].map(|facts| facts.units.get(number).unwrap_or(&none));
        count_unit_change(before, after, columns, counts);
    }
}

fn count_unit_change(before: &Unit, after: &Unit, columns: &Columns, counts: &mut Counts) {
    let moves = before.origin != after.origin;
    let other: [bool; STAGES] = std::array::from_fn(|at| moves || before.arrivals[at] != after.arrivals[at]);
    count_progress(&before.arrivals, &before.origin, other, -1, columns, counts);
    count_progress(&after.arrivals, &after.origin, other, 1, columns, counts);
    if moves || before.response != after.response {
        count_response(before.response.as_ref(), &before.origin, -1, columns, counts);
        count_response(after.response.as_ref(), &after.origin, 1, columns, counts);
    }
    for (histogram, (_, observe)) in columns.histograms.iter().zip(HISTOGRAMS) {
        let (was, is) = (observe(before), observe(after));
        if moves || was != is {
            count_duration(was, &before.origin, -1, histogram, counts);
            count_duration(is, &after.origin, 1, histogram, counts);
        }
    }
}

/// Something that took so long, counted at a moment.
#[derive(PartialEq)]
pub struct Duration {
    at_ms: i64,
    ms: i64,
}

type Observe = fn(&Unit) -> Option<Duration>;

/// The histograms that are counted: the name that Python declares, and what of a unit is observed.
pub const HISTOGRAMS: &[(&str, Observe)] = &[("attempt", attempt), ("connect", connect)];

fn attempt(unit: &Unit) -> Option<Duration> {
    since_creation(unit, unit.response?.dialed_ms?)
}

fn connect(unit: &Unit) -> Option<Duration> {
    let response = unit.response.filter(|response| !response.is_dialed_before())?;
    since_creation(unit, response.connected_ms?)
}

fn since_creation(unit: &Unit, at_ms: i64) -> Option<Duration> {
    let created_ms = unit.response?.created_ms;
    (at_ms >= created_ms).then(|| Duration { at_ms: created_ms, ms: at_ms - created_ms })
}

fn count_counted(counted: &[Counted], n: i64, columns: &Columns, counts: &mut Counts) {
    for each in counted {
        let column = match each.what {
            What::TakenBack(rank) => match columns.retracted[usize::from(rank)] {
                Some(column) => column,
                None => continue,
            },
            What::MachineTakenBack => columns.retracted_machine,
            What::Open => columns.corrections_open,
            What::Void => columns.corrections_void,
            What::Hangup => columns.dm_hangups,
            What::AgentHangup => columns.agent_hangups,
            What::Inbound => columns.inbound_reached,
            What::Repeated => columns.reach_repeated,
            What::Voided => columns.connect_voided,
        };
        let place = counts.place(each.at_ms, &each.dimensions);
        counts.add(&place, column, n);
    }
}

fn count_progress(
    arrivals: &[Option<Arrival>; STAGES],
    [campaign, source, location]: &Origin,
    counted: [bool; STAGES],
    n: i64,
    columns: &Columns,
    counts: &mut Counts,
) {
    let mut last: Option<(Arrival, Place)> = None;
    for (stage, arrival) in arrivals.iter().enumerate() {
        let (Some(arrival), true) = (arrival, counted[stage]) else { continue };
        // An implied arrival is where the one is that implies it.
        let known = last.take().filter(|(known, _)| {
            (known.at_ms, known.team, known.agent) == (arrival.at_ms, arrival.team, arrival.agent)
        });
        let (_, place) = last.insert(known.unwrap_or_else(|| {
            let dimensions = [*campaign, *source, *location, arrival.team, arrival.agent];
            (*arrival, counts.place(arrival.at_ms, &dimensions))
        }));
        counts.add(place, columns.leads[stage], n);
        if arrival.is_implied {
            counts.add(place, columns.implied, n);
        }
    }
}

fn count_response(response: Option<&Response>, origin: &Origin, n: i64, columns: &Columns, counts: &mut Counts) {
    let Some(response) = response else { return };
    let place = counts.segment_place(response.created_ms, origin);
    if response.is_dialed_before() {
        counts.add(&place, columns.dialed_before_creation, n);
        return;
    }
    counts.add(&place, columns.awaited, n);
    if response.is_uncalled {
        counts.add(&place, columns.uncalled, n);
    }
}

fn count_duration(duration: Option<Duration>, origin: &Origin, n: i64, histogram: &Histogram, counts: &mut Counts) {
    let Some(Duration { at_ms, ms }) = duration else { return };
    let place = counts.segment_place(at_ms, origin);
    counts.add(&place, histogram.bin(ms), n);
    counts.add(&place, histogram.sum, n * ms);
}
