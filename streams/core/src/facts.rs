//! What a lead's log says: where it is on the ladder, which calls ended at once, how fast it was called. One small
//! function for each measure.

use crate::catalogue::{
    APPOINTMENT_SET, BY_AGENT, CALL_ENDED, CONNECT, DIAL, DISQUALIFIED, DM_REACHED, LEAD_CREATED, LOST, QUALIFIED,
    STAGES, WON,
};
use crate::log::{Dimensions, Entry, Log};
use crate::texts::{MISSING, Text, Texts};

/// Equal facts add the same to the rows.
#[derive(Default)]
pub struct Facts {
    pub corrections: Vec<Correction>,
    pub origin: Origin,
    pub hangups: Vec<Hangup>,
    /// By stage.
    pub arrivals: [Option<Arrival>; STAGES],
    pub response: Option<Response>,
    /// As in `Log::calls`.
    calls: Vec<Call>,
}

/// Campaign, source and location, each of the earliest entry that carries it.
pub type Origin = [Text; 3];

/// What is no longer in force, or takes nothing back.
#[derive(Clone, Copy, PartialEq)]
pub struct Correction {
    pub at_ms: i64,
    pub dimensions: Dimensions,
    pub of: Corrected,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Corrected {
    /// An event of this rank that counts by itself.
    Event(u8),
    MachineAnswer,
    /// A retraction whose events have not come.
    Open,
    /// A retraction of retractions, which stay.
    Void,
}

/// A decision maker's call that ended at once.
#[derive(Clone, Copy, PartialEq)]
pub struct Hangup {
    pub at_ms: i64,
    pub dimensions: Dimensions,
    pub is_agents: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub struct Arrival {
    pub at_ms: i64,
    pub team: Text,
    pub agent: Text,
    /// A later stage proves it, no event of its own.
    pub is_implied: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub struct Response {
    pub created_ms: i64,
    pub dialed_ms: Option<i64>,
    pub connected_ms: Option<i64>,
    pub is_uncalled: bool,
}

impl Response {
    pub fn is_dialed_before(&self) -> bool {
        self.dialed_ms.is_some_and(|dialed_ms| dialed_ms < self.created_ms)
    }
}

#[derive(Clone, Default)]
struct Call {
    reach: Option<(i64, Dimensions)>,
    end: Option<End>,
    has_verdict: bool,
    /// A decision maker hung up at once: nobody was reached.
    is_void: bool,
}

#[derive(Clone, Copy)]
struct End {
    at_ms: i64,
    talk_ms: Option<i64>,
    by_agent: bool,
}

impl Facts {
    pub fn clear(&mut self) {
        self.origin = Origin::default();
        self.arrivals = Default::default();
        self.response = None;
        self.corrections.clear();
        self.hangups.clear();
        self.calls.clear();
    }

    /// Their texts are those of the batch.
    pub fn find(&mut self, log: &mut Log, hangup_ms: i64, texts: &mut Texts) {
        self.clear();
        log.find_live();
        find_corrections(log, &mut self.corrections);
        find_calls(log, &mut self.calls);
        for call in &mut self.calls {
            if let Some(hangup) = hangup(call, hangup_ms) {
                call.is_void = !hangup.is_agents;
                self.hangups.push(hangup);
            }
        }
        self.origin = origin(log);
        self.arrivals = arrivals(log, &self.calls);
        self.response = response(log, &self.arrivals);

        self.origin = self.origin.map(|text| log.number(text, texts));
        for Arrival { team, agent, .. } in self.arrivals.iter_mut().flatten() {
            *team = log.number(*team, texts);
            *agent = log.number(*agent, texts);
        }
        let of_corrections = self.corrections.iter_mut().map(|correction| &mut correction.dimensions);
        let of_hangups = self.hangups.iter_mut().map(|hangup| &mut hangup.dimensions);
        for dimensions in of_corrections.chain(of_hangups) {
            *dimensions = dimensions.map(|text| log.number(text, texts));
        }
    }
}

fn find_corrections(log: &Log, corrections: &mut Vec<Correction>) {
    let correction = |entry: &Entry, of| Correction { at_ms: entry.at_ms, dimensions: entry.dimensions, of };
    for entry in log.entries().iter().filter(|entry| !entry.is_live && entry.counts()) {
        let of = if entry.is_machine() { Corrected::MachineAnswer } else { Corrected::Event(entry.rank) };
        corrections.push(correction(entry, of));
    }
    for retraction in &log.retractions {
        let of = match (retraction.entries, retraction.void) {
            (0, _) => Corrected::Open,
            (entries, void) if entries == void => Corrected::Void,
            _ => continue,
        };
        corrections.push(correction(&log.entries()[retraction.place], of));
    }
}

fn find_calls(log: &Log, calls: &mut Vec<Call>) {
    calls.resize(log.calls(), Call::default());
    for entry in log.live() {
        let (Some(_), DM_REACHED..=DISQUALIFIED | APPOINTMENT_SET) = (entry.call, entry.rank) else { continue };
        let call = &mut calls[entry.call_place as usize];
        match entry.rank {
            DM_REACHED => {
                call.reach.get_or_insert((entry.at_ms, entry.dimensions));
            }
            CALL_ENDED => {
                call.end.get_or_insert(End {
                    at_ms: entry.at_ms,
                    talk_ms: entry.own(0),
                    by_agent: entry.own(1) == Some(BY_AGENT),
                });
            }
            QUALIFIED | WON | DISQUALIFIED | APPOINTMENT_SET => call.has_verdict = true,
            _ => {}
        }
    }
}

fn hangup(call: &Call, hangup_ms: i64) -> Option<Hangup> {
    let ((at_ms, dimensions), end) = (call.reach?, call.end?);
    let ended_at_once = (0..hangup_ms).contains(&end.at_ms.wrapping_sub(at_ms))
        || end.talk_ms.is_some_and(|talk_ms| talk_ms < hangup_ms);
    (ended_at_once && !call.has_verdict).then_some(Hangup { at_ms, dimensions, is_agents: end.by_agent })
}

fn origin(log: &Log) -> Origin {
    let mut origin = Origin::default();
    for entry in log.live() {
        for (first, value) in origin.iter_mut().zip(entry.dimensions) {
            if *first == MISSING {
                *first = value;
            }
        }
        if !origin.contains(&MISSING) {
            break;
        }
    }
    origin
}

fn arrivals(log: &Log, calls: &[Call]) -> [Option<Arrival>; STAGES] {
    let mut arrivals = [None; STAGES];
    let mut next = 0; // a lead at a stage has passed the ones before it
    let has_void = calls.iter().any(|call| call.is_void);
    for entry in log.live() {
        let is_void = has_void && entry.rank == DM_REACHED && is_void(entry, calls);
        let stage = match entry.rank {
            _ if is_void => CONNECT.into(),
            CONNECT if entry.is_machine() => continue,
            LEAD_CREATED..=WON => usize::from(entry.rank),
            _ => continue,
        };
        let [.., team, agent] = entry.dimensions;
        while next <= stage {
            let is_implied = is_void || next != stage;
            arrivals[next] = Some(Arrival { at_ms: entry.at_ms, team, agent, is_implied });
            next += 1;
        }
    }
    arrivals
}

fn is_void(reach: &Entry, calls: &[Call]) -> bool {
    reach.call.is_some() && calls[reach.call_place as usize].is_void
}

fn response(log: &Log, arrivals: &[Option<Arrival>; STAGES]) -> Option<Response> {
    let (mut created_ms, mut dialed_ms, mut connected_ms, mut is_closed) = (None, None, None, false);
    for entry in log.live() {
        match entry.rank {
            LEAD_CREATED => _ = created_ms.get_or_insert(entry.at_ms),
            DIAL => _ = dialed_ms.get_or_insert(entry.at_ms),
            CONNECT if !entry.is_machine() => _ = connected_ms.get_or_insert(entry.at_ms),
            WON | DISQUALIFIED | LOST => is_closed = true,
            _ => {}
        }
    }
    let is_uncalled = !is_closed && arrivals[usize::from(DIAL)].is_none();
    Some(Response { created_ms: created_ms?, dialed_ms, connected_ms, is_uncalled })
}
