//! What a lead's log says: where it is on the ladder, which calls ended at once, how fast it was called. One small
//! function for each measure.

use crate::catalogue::{
    APPOINTMENT_SET, BY_AGENT, CALL_ENDED, CONNECT, DIAL, DISQUALIFIED, DM_REACHED, LEAD_CREATED, LEAD_RECYCLED, LOST,
    QUALIFIED, REVENUE_ADJUSTED, STAGES, WON,
};
use crate::log::{Dimensions, Entry, Log};
use crate::texts::{MISSING, Text, Texts};

/// Equal facts add the same to the rows.
#[derive(Default)]
pub struct Facts {
    pub counted: Vec<Counted>,
    pub units: Vec<Unit>,
    /// As in `Log::calls`.
    by_call: Vec<Call>,
    cycles: Cycles,
}

/// What is counted in the funnel: a cycle of a lead that has entries.
#[derive(Default)]
pub struct Unit {
    pub origin: Origin,
    /// By stage.
    pub arrivals: [Option<Arrival>; STAGES],
    pub response: Option<Response>,
}

/// Campaign, source and location, each of the earliest entry that carries it.
pub type Origin = [Text; 3];

/// An entry of which only the others say how it counts.
#[derive(Clone, Copy, PartialEq)]
pub struct Counted {
    pub at_ms: i64,
    pub dimensions: Dimensions,
    pub what: What,
}

#[derive(Clone, Copy, PartialEq)]
pub enum What {
    /// An event of this rank, which counts by itself, is no longer in force.
    TakenBack(u8),
    MachineTakenBack,
    /// A retraction whose events have not come.
    Open,
    /// A retraction of retractions, which stay.
    Void,
    /// The decision maker hung up at once.
    Hangup,
    AgentHangup,
    /// The lead called.
    Inbound,
    /// The call has reached somebody before.
    Repeated,
    /// A connect that was a machine's after all.
    Voided,
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
    /// Of the earliest of each.
    reached_ms: Option<i64>,
    answered_ms: Option<i64>,
    /// Of the last end: when, and whether by the agent.
    end: Option<(i64, bool)>,
    longest_talk_ms: Option<i64>,
    has_verdict: bool,
    has_dial: bool,
    has_machine: bool,
    /// Whether the earliest connect is of a call from the lead.
    from_lead: Option<bool>,
    hangup: Option<What>,
    /// Whether its earliest reach was counted.
    reached: bool,
}

impl Call {
    fn is_inbound(&self) -> bool {
        !self.has_dial && self.from_lead == Some(true)
    }

    /// Whether its connects that do not say who answered were a machine's.
    fn is_machine(&self) -> bool {
        self.has_machine && self.reached_ms.is_none()
    }

    /// Nobody was reached: the decision maker hung up at once.
    fn is_void(&self) -> bool {
        self.hangup == Some(What::Hangup)
    }
}

impl Facts {
    pub fn clear(&mut self) {
        self.counted.clear();
        self.units.clear();
        self.by_call.clear();
    }

    /// Their texts are those of the batch.
    pub fn find(&mut self, log: &mut Log, hangup_ms: i64, texts: &mut Texts) {
        self.clear();
        log.find_live();
        find_corrections(log, &mut self.counted);
        find_calls(log, &mut self.by_call);
        for call in &mut self.by_call {
            call.hangup = hangup(call, hangup_ms);
        }
        find_of_calls(log, &mut self.by_call, &mut self.counted);
        self.cycles.find(log);
        let mut before = Origin::default();
        for number in 0..self.cycles.starts.len() {
            let cycle = self.cycles.of(log, number);
            let is_last = number + 1 == self.cycles.starts.len();
            let origin = origin(cycle.clone(), before);
            let arrivals = arrivals(cycle.clone(), &self.by_call);
            let response = response(cycle, &arrivals, &self.by_call, is_last);
            self.units.push(Unit { origin, arrivals, response });
            before = origin;
        }

        for unit in &mut self.units {
            unit.origin = unit.origin.map(|text| log.number(text, texts));
            for Arrival { team, agent, .. } in unit.arrivals.iter_mut().flatten() {
                *team = log.number(*team, texts);
                *agent = log.number(*agent, texts);
            }
        }
        for Counted { dimensions, .. } in &mut self.counted {
            *dimensions = dimensions.map(|text| log.number(text, texts));
        }
    }
}

/// The cycles of a lead: one opens where a lead is recycled, or worked on after it was closed.
#[derive(Default)]
struct Cycles {
    /// The places of the entries, cycle by cycle, and where each begins.
    places: Vec<usize>,
    starts: Vec<usize>,
}

impl Cycles {
    fn of<'a>(&'a self, log: &'a Log, number: usize) -> impl Iterator<Item = &'a Entry> + Clone {
        let end = self.starts.get(number + 1).copied().unwrap_or(self.places.len());
        self.places[self.starts[number]..end].iter().map(|&place| &log.entries()[place])
    }

    fn find(&mut self, log: &Log) {
        self.places.clear();
        self.starts.clear();
        let entries = log.entries();
        let is_of_any = |place: &usize| entries[*place].is_live && entries[*place].rank != REVENUE_ADJUSTED;
        self.places.extend((0..entries.len()).filter(is_of_any));
        if log.live().any(|entry| entry.rank == LEAD_RECYCLED) {
            let is_recycled = |place: &&usize| entries[**place].rank == LEAD_RECYCLED;
            let moments: Vec<i64> = self.places.iter().filter(is_recycled).map(|&at| entries[at].at_ms).collect();
            self.places.sort_by_key(|&place| {
                let entry = &entries[place];
                let turn = match entry.rank {
                    WON..=LOST => 0,
                    _ if moments.binary_search(&entry.at_ms).is_err() => 0,
                    LEAD_RECYCLED => 1,
                    _ => 2,
                };
                (entry.at_ms, turn)
            });
        }
        let mut now = Cycle::default();
        for (at, &place) in self.places.iter().enumerate() {
            let entry = &entries[place];
            if at == 0 || now.ends_before(entry) {
                self.starts.push(at);
                now = Cycle { campaign: MISSING, earlier: now.campaign(), ..Cycle::default() };
                now.recycled_ms = (entry.rank == LEAD_RECYCLED).then_some(entry.at_ms);
            }
            now.take(entry);
        }
    }
}

/// What of a cycle says whether the next entry opens another one.
#[derive(Default)]
struct Cycle {
    recycled_ms: Option<i64>,
    is_won: bool,
    is_given_up: bool,
    campaign: Text,
    /// Of the cycle before.
    earlier: Text,
}

impl Cycle {
    fn take(&mut self, entry: &Entry) {
        match entry.rank {
            WON => self.is_won = true,
            QUALIFIED => self.is_given_up = false,
            DISQUALIFIED | LOST => self.is_given_up = true,
            _ => {}
        }
        if self.campaign == MISSING {
            self.campaign = entry.dimensions[0];
        }
    }

    fn campaign(&self) -> Text {
        if self.campaign == MISSING { self.earlier } else { self.campaign }
    }

    fn is_closed(&self) -> bool {
        self.is_won || self.is_given_up
    }

    fn ends_before(&self, entry: &Entry) -> bool {
        let other = entry.dimensions[0];
        match entry.rank {
            LEAD_RECYCLED => self.recycled_ms != Some(entry.at_ms),
            LEAD_CREATED => self.is_closed(),
            DIAL => self.is_closed() && other != MISSING && ![MISSING, other].contains(&self.campaign()),
            _ => false,
        }
    }
}

impl Counted {
    fn new(entry: &Entry, what: What) -> Self {
        Counted { at_ms: entry.at_ms, dimensions: entry.dimensions, what }
    }
}

fn find_corrections(log: &Log, found: &mut Vec<Counted>) {
    for entry in log.entries().iter().filter(|entry| !entry.is_live && entry.counts()) {
        let what = if entry.is_machine() { What::MachineTakenBack } else { What::TakenBack(entry.rank) };
        found.push(Counted::new(entry, what));
    }
    for retraction in &log.retractions {
        let what = match (retraction.entries, retraction.void) {
            (0, _) => What::Open,
            (entries, void) if entries == void => What::Void,
            _ => continue,
        };
        found.push(Counted::new(&log.entries()[retraction.place], what));
    }
}

fn find_calls(log: &Log, calls: &mut Vec<Call>) {
    calls.resize(log.calls(), Call::default());
    for entry in log.live().filter(|entry| entry.call.is_some()) {
        let call = &mut calls[entry.call_place as usize];
        match entry.rank {
            DIAL => call.has_dial = true,
            CONNECT => {
                call.from_lead.get_or_insert(entry.own(1).is_some());
                if entry.is_machine() {
                    call.has_machine = true;
                } else {
                    call.answered_ms.get_or_insert(entry.at_ms);
                }
            }
            DM_REACHED => _ = call.reached_ms.get_or_insert(entry.at_ms),
            CALL_ENDED => {
                call.end = Some((entry.at_ms, entry.own(1) == Some(BY_AGENT)));
                call.longest_talk_ms = call.longest_talk_ms.max(entry.own(0));
            }
            QUALIFIED | WON | DISQUALIFIED | APPOINTMENT_SET => call.has_verdict = true,
            _ => {}
        }
    }
}

fn hangup(call: &Call, hangup_ms: i64) -> Option<What> {
    let (reached_ms, (ended_ms, by_agent)) = (call.reached_ms?, call.end?);
    let is_soon = |since_ms: i64| (0..hangup_ms).contains(&ended_ms.wrapping_sub(since_ms));
    let is_short = match call.longest_talk_ms {
        Some(talk_ms) => talk_ms < hangup_ms,
        // The reach was noted after the call: then the answer says how long it was.
        None => ended_ms < reached_ms && call.answered_ms.is_some_and(is_soon),
    };
    let ended_at_once = !call.has_verdict && (is_soon(reached_ms) || is_short);
    ended_at_once.then_some(if by_agent { What::AgentHangup } else { What::Hangup })
}

fn find_of_calls(log: &Log, calls: &mut [Call], found: &mut Vec<Counted>) {
    let counts = |call: &Call| call.hangup.is_some() || call.is_machine() || call.reached_ms.is_some();
    if !calls.iter().any(counts) {
        return;
    }
    for entry in log.live().filter(|entry| entry.call.is_some() && matches!(entry.rank, CONNECT | DM_REACHED)) {
        let call = &mut calls[entry.call_place as usize];
        let mut add = |what| found.push(Counted::new(entry, what));
        match (entry.rank, call.reached) {
            (CONNECT, _) if is_voided(entry, call) => add(What::Voided),
            (DM_REACHED, true) => add(What::Repeated),
            (DM_REACHED, false) => {
                call.reached = true;
                if let Some(hangup) = call.hangup {
                    add(hangup);
                }
                if call.is_inbound() && !call.is_void() {
                    add(What::Inbound);
                }
            }
            _ => {}
        }
    }
}

/// Whether a connect was a machine's after all.
fn is_voided(connect: &Entry, call: &Call) -> bool {
    call.is_machine() && connect.own(0).is_none()
}

/// What no entry carries is as in the cycle before.
fn origin<'a>(cycle: impl Iterator<Item = &'a Entry>, before: Origin) -> Origin {
    let mut origin = Origin::default();
    for entry in cycle {
        for (first, value) in origin.iter_mut().zip(entry.dimensions) {
            if *first == MISSING {
                *first = value;
            }
        }
        if !origin.contains(&MISSING) {
            break;
        }
    }
    for (first, earlier) in origin.iter_mut().zip(before) {
        if *first == MISSING {
            *first = earlier;
        }
    }
    origin
}

fn arrivals<'a>(cycle: impl Iterator<Item = &'a Entry>, calls: &[Call]) -> [Option<Arrival>; STAGES] {
    let mut arrivals = [None; STAGES];
    let mut next = 0; // a lead at a stage has passed the ones before it
    for (at, entry) in cycle.enumerate() {
        let call = entry.call.map(|_| &calls[entry.call_place as usize]);
        let is_void = entry.rank == DM_REACHED && call.is_some_and(Call::is_void);
        let stage = match entry.rank {
            _ if is_void => CONNECT.into(),
            CONNECT if !is_answer(entry, call) => continue,
            LEAD_CREATED..=WON => usize::from(entry.rank),
            LEAD_RECYCLED if at == 0 => LEAD_CREATED.into(),
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

/// Whether somebody answered, as far as the call of a connect knows.
fn is_answer(connect: &Entry, call: Option<&Call>) -> bool {
    !connect.is_machine() && !call.is_some_and(|call| is_voided(connect, call))
}

fn response<'a>(
    cycle: impl Iterator<Item = &'a Entry>,
    arrivals: &[Option<Arrival>; STAGES],
    calls: &[Call],
    is_last: bool,
) -> Option<Response> {
    let (mut created_ms, mut dialed_ms, mut connected_ms, mut its) = (None, None, None, Cycle::default());
    for (at, entry) in cycle.enumerate() {
        its.take(entry);
        match entry.rank {
            LEAD_RECYCLED if at == 0 => created_ms = Some(entry.at_ms),
            LEAD_CREATED => _ = created_ms.get_or_insert(entry.at_ms),
            DIAL => _ = dialed_ms.get_or_insert(entry.at_ms),
            CONNECT if is_answer(entry, entry.call.map(|_| &calls[entry.call_place as usize])) => {
                connected_ms.get_or_insert(entry.at_ms);
            }
            _ => {}
        }
    }
    let is_uncalled = is_last && !its.is_closed() && arrivals[usize::from(DIAL)].is_none();
    Some(Response { created_ms: created_ms?, dialed_ms, connected_ms, is_uncalled })
}
