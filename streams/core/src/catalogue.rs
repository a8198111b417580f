//! What Python declares: the types of events with their own fields, the columns, the histograms, the
//! rollups, the panes.

use std::collections::BTreeMap;

use crate::log::DIMENSIONS;
use crate::measures::HISTOGRAMS;

pub const LEAD_CREATED: u8 = 0;
pub const DIAL: u8 = 1;
pub const CONNECT: u8 = 2;
pub const DM_REACHED: u8 = 3;
pub const QUALIFIED: u8 = 4;
pub const WON: u8 = 5;
pub const CALL_ENDED: u8 = 6;
pub const DISQUALIFIED: u8 = 7;
pub const LOST: u8 = 8;

/// The ranks below are events of these stages.
pub const STAGES: usize = 6;
const STAGE_NAMES: [&str; STAGES] = ["created", "dialed", "connected", "reached", "qualified", "won"];

/// Name, kind and choices.
type KnownOwn = (&'static str, &'static str, &'static [&'static str]);

/// The types that the core knows more of than their own fields, by rank.
pub const KNOWN: [(&str, &[KnownOwn]); 9] = [
    ("lead_created", &[]),
    ("dial", &[]),
    ("connect", &[("answered_by", "choice", &["human", "machine"])]),
    ("dm_reached", &[]),
    ("qualified", &[("expected_amount", "integer", &[]), ("currency", "text", &[])]),
    ("won", &[("amount", "integer", &[]), ("currency", "text", &[])]),
    ("call_ended", &[("talk_ms", "integer", &[]), ("hangup_by", "choice", &["customer", "agent", "system"])]),
    ("disqualified", &[("reason", "text", &[])]),
    ("lost", &[("reason", "text", &[])]),
];
pub const MACHINE: i64 = 1;
pub const BY_AGENT: i64 = 1;

/// As many as the head of an entry can tell apart.
const MOST_TYPES: usize = 32;
pub const MOST_OWN: usize = 8;
pub const MOST_ROLLUPS: usize = 8;

/// As Python gives it: name, and the own fields' names, kinds and choices.
pub type DeclaredType = (String, Vec<(String, String, Vec<String>)>);

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Own {
    Choice(i64),
    Integer,
    Text,
}

#[derive(Debug)]
pub struct Catalogue {
    /// By rank.
    names: Vec<String>,
    /// The own fields of each type, by rank.
    pub types: Vec<Vec<Own>>,
}

impl Catalogue {
    pub fn new(declared: &[DeclaredType]) -> Result<Self, String> {
        for (rank, (name, own)) in KNOWN.iter().enumerate() {
            let as_known = declared.get(rank).is_some_and(|(declared_name, declared_own)| {
                declared_name == name
                    && declared_own.len() == own.len()
                    && declared_own
                        .iter()
                        .zip(*own)
                        .all(|(one, other)| one.0 == other.0 && one.1 == other.1 && one.2.iter().eq(other.2.iter()))
            });
            if !as_known {
                return Err(format!("the core knows another type {name}, or another place of it"));
            }
        }
        if declared.len() > MOST_TYPES {
            return Err(format!("the core takes up to {MOST_TYPES} types"));
        }
        let types = declared.iter().map(|(name, own)| {
            if own.len() > MOST_OWN {
                return Err(format!("{name} has more than {MOST_OWN} fields of its own"));
            }
            own.iter().map(|(field, kind, choices)| own_field(field, kind, choices)).collect()
        });
        let names = declared.iter().map(|(name, _)| name.clone()).collect();
        Ok(Catalogue { names, types: types.collect::<Result<_, _>>()? })
    }

    /// The rank of a type all of whose fields the core reads: those of its own are none, or known.
    pub fn readable(&self, name: &[u8]) -> Option<u8> {
        let rank = self.names.iter().position(|known| known.as_bytes() == name)?;
        (rank < KNOWN.len() || self.types[rank].is_empty()).then_some(rank as u8)
    }
}

fn own_field(name: &str, kind: &str, choices: &[String]) -> Result<Own, String> {
    match kind {
        "choice" => Ok(Own::Choice(choices.len() as i64)),
        "integer" => Ok(Own::Integer),
        "text" => Ok(Own::Text),
        _ => Err(format!("{name} is of a kind that the core does not know: {kind}")),
    }
}

/// A column's place among those that the core counts, in the order of their ids.
pub type Column = u16;

pub struct Columns {
    ids: Vec<i64>,
    /// By rank. A machine's answer is counted apart.
    pub activity: Vec<Option<Column>>,
    pub machine_answers: Column,
    pub dm_hangups: Column,
    pub agent_hangups: Column,
    pub leads: [Column; STAGES],
    pub implied: Column,
    pub awaited: Column,
    pub uncalled: Column,
    pub dialed_before_creation: Column,
    /// In the order of `HISTOGRAMS`.
    pub histograms: Vec<Histogram>,
}

/// As Python gives it: name, bounds in seconds, the columns of the bins and of the sum.
pub type DeclaredHistogram = (String, Vec<i64>, Vec<String>, String);

pub struct Histogram {
    bounds_ms: Vec<i64>,
    bins: Vec<Column>,
    pub sum: Column,
}

impl Histogram {
    /// The column of the smallest bound that the duration does not exceed.
    pub fn bin(&self, ms: i64) -> Column {
        self.bins[self.bounds_ms.partition_point(|&bound| bound < ms)]
    }
}

impl Columns {
    pub fn new(
        declared: &BTreeMap<String, i64>,
        activity: &BTreeMap<String, String>,
        types: &[DeclaredType],
        histograms: Vec<DeclaredHistogram>,
    ) -> Result<Self, String> {
        for (name, bounds, bins, _) in &histograms {
            if HISTOGRAMS.iter().all(|(known, _)| known != name) {
                return Err(format!("the core counts no histogram {name}"));
            }
            if !bounds.is_sorted() || bins.len() != bounds.len() + 1 {
                return Err(format!("the bounds of {name} are not in ascending order, one less than the bins"));
            }
        }
        let leads = STAGE_NAMES.map(|stage| format!("leads_{stage}"));
        let others = [
            "machine_answers",
            "dm_hangups",
            "agent_hangups",
            "implied",
            "awaited",
            "uncalled",
            "dialed_before_creation",
        ];
        let of_histograms = histograms.iter().flat_map(|(_, _, bins, sum)| bins.iter().chain([sum]));
        let counted = of_histograms.chain(&leads).chain(activity.values()).map(String::as_str);
        let mut ids = Vec::new();
        for name in counted.chain(others) {
            match declared.get(name) {
                Some(&id) if id >= 0 => ids.push(id),
                _ => return Err(format!("there is no column {name}, which the core counts")),
            }
        }
        ids.sort_unstable();
        ids.dedup();
        let place = |name: &str| ids.binary_search(&declared[name]).expect("it was looked up above") as Column;
        let histogram = |(known, _): &(&str, _)| {
            let declared = histograms.iter().find(|(name, ..)| name == known);
            let (_, bounds, bins, sum) =
                declared.ok_or(format!("there is no histogram {known}, which the core counts"))?;
            Ok(Histogram {
                bounds_ms: bounds.iter().map(|bound| bound * 1000).collect(),
                bins: bins.iter().map(|name| place(name)).collect(),
                sum: place(sum),
            })
        };
        if let Some(name) = activity.keys().find(|name| types.iter().all(|(known, _)| known != *name)) {
            return Err(format!("there is no type {name}"));
        }
        Ok(Columns {
            activity: types.iter().map(|(name, _)| activity.get(name).map(|column| place(column))).collect(),
            machine_answers: place("machine_answers"),
            dm_hangups: place("dm_hangups"),
            agent_hangups: place("agent_hangups"),
            leads: std::array::from_fn(|stage| place(&leads[stage])),
            implied: place("implied"),
            awaited: place("awaited"),
            uncalled: place("uncalled"),
            dialed_before_creation: place("dialed_before_creation"),
            histograms: HISTOGRAMS.iter().map(histogram).collect::<Result<_, String>>()?,
            ids,
        })
    }

    pub fn id(&self, column: Column) -> i64 {
        self.ids[usize::from(column)]
    }

    /// None where the core counts no column of this id.
    pub fn place(&self, id: i64) -> Option<Column> {
        self.ids.binary_search(&id).ok().map(|place| place as Column)
    }
}

pub struct Rollup {
    pub id: i64,
    /// One or two places among an entry's dimensions.
    pub dimensions: Vec<usize>,
    pub of_all_time: bool,
    minutes_kept_s: i64,
}

pub fn rollups(declared: Vec<(i64, Vec<String>, bool, i64)>) -> Result<Vec<Rollup>, String> {
    let rollups: Vec<Rollup> = declared
        .into_iter()
        .map(|(id, names, of_all_time, minutes_kept_s)| {
            let place = |name| DIMENSIONS.iter().position(|known| *known == name);
            let dimensions: Option<Vec<usize>> = names.iter().map(place).collect();
            match dimensions {
                Some(dimensions) if matches!(dimensions.len(), 1 | 2) => {
                    Ok(Rollup { id, dimensions, of_all_time, minutes_kept_s })
                }
                _ => Err(format!("a rollup has one or two of the dimensions, and not {}", names.join("+"))),
            }
        })
        .collect::<Result<_, _>>()?;
    if rollups.len() > MOST_ROLLUPS {
        return Err(format!("the core takes up to {MOST_ROLLUPS} rollups"));
    }
    Ok(rollups)
}

#[derive(Clone, Copy, PartialEq)]
pub enum Length {
    Seconds(i64),
    /// From one local midnight to the next.
    Day,
    AllTime,
}

/// The place of the finest resolution, the first: what its rows hold is in no coarser one until they expire.
pub const MINUTES: usize = 0;

pub struct Resolution {
    pub id: i64,
    pub length: Length,
    length_s: i64,
    /// None for ever.
    kept_s: Option<i64>,
}

const MINUTE_S: i64 = 60;

/// Refused where the first is not that of minutes, or where another is kept for less.
pub fn resolutions(declared: Vec<(i64, String, i64, i64)>) -> Result<Vec<Resolution>, String> {
    let resolutions: Vec<Resolution> = declared
        .iter()
        .map(|(id, name, length_s, kept_s)| Resolution::new(*id, name, *length_s, *kept_s))
        .collect::<Result<_, _>>()?;
    let kept = |resolution: &Resolution| resolution.kept_s.unwrap_or(i64::MAX);
    match resolutions.split_first() {
        Some((first, others)) if first.length == Length::Seconds(MINUTE_S) => {
            match others.iter().all(|other| kept(other) >= kept(first)) {
                true => Ok(resolutions),
                false => Err("rows of minutes are kept for longer than others that they go into".into()),
            }
        }
        _ => Err("the first resolution is that of minutes".into()),
    }
}

impl Resolution {
    fn new(id: i64, name: &str, length_s: i64, kept_s: i64) -> Result<Self, String> {
        let length = match (name, length_s) {
            ("1d", _) => Length::Day,
            (_, 0) => Length::AllTime,
            (_, 1..) if length_s % 60 == 0 => Length::Seconds(length_s),
            _ => return Err(format!("panes are whole minutes long, and {name} is not")),
        };
        Ok(Resolution { id, length, length_s, kept_s: (kept_s > 0).then_some(kept_s) })
    }

    /// The rollup's last pane that is expired then; before all panes where none expires.
    pub fn gone(&self, rollup: &Rollup, watermark_ms: i64) -> i64 {
        let Some(mut kept_s) = self.kept_s else { return i64::MIN };
        if self.length == Length::Seconds(MINUTE_S) {
            kept_s = kept_s.min(rollup.minutes_kept_s);
        }
        watermark_ms.div_euclid(1000) - kept_s - self.length_s
    }
}
