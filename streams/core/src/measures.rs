//! What a lead adds to the rows: each measure, and what of it changes when the lead's log grows.

use crate::catalogue::{Columns, STAGES};
use crate::counts::{Counts, Place};
use crate::facts::{Arrival, Facts, Hangup, Origin, Response};
use crate::log::{Dimensions, Entry, Log};
use crate::texts::MISSING;

/// Of every entry, in force or not.
pub fn count_activity(entry: &Entry, n: i64, columns: &Columns, counts: &mut Counts) {
    let column =
        if entry.is_machine() { Some(columns.machine_answers) } else { columns.activity[usize::from(entry.rank)] };
    if let Some(column) = column {
        let place = counts.place(entry.at_ms, &entry.dimensions);
        counts.add(&place, column, n);
    }
}

/// All that a lead adds, so many times. Its facts are those of its log.
pub fn count_log(log: &Log, facts: &Facts, n: i64, columns: &Columns, counts: &mut Counts) {
    for entry in log.entries() {
        count_activity(entry, n, columns, counts);
    }
    count_hangups(&facts.hangups, n, columns, counts);
    count_progress(&facts.arrivals, &facts.origin, [true; STAGES], n, columns, counts);
    count_response(facts.response.as_ref(), &facts.origin, n, columns, counts);
}

/// What `after` adds, without what `before` added. Of a new lead, `before` are no facts.
pub fn count_change(before: &Facts, after: &Facts, columns: &Columns, counts: &mut Counts) {
    if before.hangups != after.hangups {
        count_hangups(&before.hangups, -1, columns, counts);
        count_hangups(&after.hangups, 1, columns, counts);
    }
    let moves = before.origin != after.origin;
    let other: [bool; STAGES] = std::array::from_fn(|at| moves || before.arrivals[at] != after.arrivals[at]);
    count_progress(&before.arrivals, &before.origin, other, -1, columns, counts);
    count_progress(&after.arrivals, &after.origin, other, 1, columns, counts);
    if moves || before.response != after.response {
        count_response(before.response.as_ref(), &before.origin, -1, columns, counts);
        count_response(after.response.as_ref(), &after.origin, 1, columns, counts);
    }
}

fn count_hangups(hangups: &[Hangup], n: i64, columns: &Columns, counts: &mut Counts) {
    for hangup in hangups {
        let place = counts.place(hangup.at_ms, &hangup.dimensions);
        counts.add(&place, if hangup.is_agents { columns.agent_hangups } else { columns.dm_hangups }, n);
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

fn count_response(
    response: Option<&Response>,
    [campaign, source, location]: &Origin,
    n: i64,
    columns: &Columns,
    counts: &mut Counts,
) {
    let Some(response) = response else { return };
    let created_ms = response.created_ms;
    let dimensions: Dimensions = [*campaign, *source, *location, MISSING, MISSING];
    let place = counts.response_place(created_ms, &dimensions);
    if response.dialed_ms.is_some_and(|dialed_ms| dialed_ms < created_ms) {
        counts.add(&place, columns.dialed_before_creation, n);
        return;
    }
    counts.add(&place, columns.awaited, n);
    if response.is_uncalled {
        counts.add(&place, columns.uncalled, n);
    }
    for (of, at_ms) in [(&columns.attempt, response.dialed_ms), (&columns.connect, response.connected_ms)] {
        if let Some(at_ms) = at_ms.filter(|&at_ms| at_ms >= created_ms) {
            let waited_ms = at_ms - created_ms;
            counts.add(&place, columns.bin(of, waited_ms), n);
            counts.add(&place, of.ms, n * waited_ms);
        }
    }
}
