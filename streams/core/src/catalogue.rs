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
pub const LEAD_RECYCLED: u8 = 9;
pub const RETRACTED: u8 = 10;
pub const APPOINTMENT_SET: u8 = 11;
pub const TOUCH: u8 = 15;
pub const REVENUE_ADJUSTED: u8 = 16;

/// The ranks below are events of these stages.
pub const STAGES: usize = 6;
const STAGE_NAMES: [&str; STAGES] = ["created", "dialed", "connected", "reached", "qualified", "won"];

/// An own field: name, kind, the event's field, choices, the choice that is kept as none, whether it has to be given.
type KnownOwn = (&'static str, &'static str, &'static str, &'static [&'static str], &'static str, bool);

const MONEY: KnownOwn = ("amount", "money", "amount", &[], "", false);
const CURRENCY: KnownOwn = ("currency", "currency", "currency", &[], "", false);
const REASON: KnownOwn = ("reason", "text", "reason", &[], "", false);

/// The types that the core was made for, by rank. Others may follow, and fields may follow theirs.
pub const KNOWN: [(&str, &[KnownOwn]); 17] = [
    ("lead_created", &[("imported", "flag", "imported", &[], "", false)]),
    ("dial", &[]),
    (
        "connect",
        &[
            ("answered_by", "choice", "answered_by", &["human", "machine"], "unknown", false),
            ("direction", "choice", "direction", &["inbound"], "outbound", false),
        ],
    ),
    ("dm_reached", &[]),
    ("qualified", &[("expected_amount", "money", "expected_amount", &[], "", false), CURRENCY]),
    (
        "won",
        &[
            MONEY,
            CURRENCY,
            ("sale_kind", "choice", "sale_kind", &["new", "upsell", "cross_sell", "renewal"], "", false),
            ("product", "text", "product", &[], "", false),
            ("segment", "text", "segment", &[], "", false),
        ],
    ),
    (
        "call_ended",
        &[
            ("talk_ms", "seconds", "talk_seconds", &[], "", false),
            ("hangup_by", "choice", "hangup_by", &["customer", "agent", "system"], "", false),
        ],
    ),
    ("disqualified", &[REASON]),
    ("lost", &[REASON]),
    ("lead_recycled", &[]),
    (
        "retracted",
        &[
            ("retracts", "mark", "retracts", &[], "", false),
            ("retracts_type", "choice", "retracts_type", &RETRACTABLE, "", false),
        ],
    ),
    ("appointment_set", &[]),
    ("appointment_held", &[("outcome", "choice", "outcome", &["no_show", "cancelled"], "held", false)]),
    ("demo_held", &[]),
    ("proposal_sent", &[MONEY, CURRENCY]),
    (
        "touch",
        &[
            (
                "channel",
                "choice",
                "channel",
                &["email", "sms", "chat", "meeting", "mail", "video", "social", "visit"],
                "",
                true,
            ),
            ("automated", "flag", "automated", &[], "", false),
        ],
    ),
    (
        "revenue_adjusted",
        &[
            ("amount", "money", "amount", &[], "", true),
            ("currency", "currency", "currency", &[], "", true),
            ("adjusts", "mark", "adjusts", &[], "", false),
        ],
    ),
];
pub const MACHINE: i64 = 1;
pub const BY_AGENT: i64 = 1;
const RETRACTABLE: [&str; 16] = [
    "lead_created",
    "dial",
    "connect",
    "dm_reached",
    "qualified",
    "won",
    "call_ended",
    "disqualified",
    "lost",
    "lead_recycled",
    "appointment_set",
    "appointment_held",
    "demo_held",
    "proposal_sent",
    "touch",
    "revenue_adjusted",
];

/// `KNOWN` as Python gives it.
#[allow(dead_code, reason = "tests and fuzz targets need it")]
pub fn known() -> Vec<DeclaredType> {
    let text = |text: &&str| (*text).to_owned();
    let own = |(name, kind, given_as, choices, unsaid, is_required): &KnownOwn| {
        (text(name), text(kind), text(given_as), choices.iter().map(text).collect(), text(unsaid), *is_required)
    };
    KNOWN.iter().map(|(name, fields)| (text(name), fields.iter().map(own).collect())).collect()
}

/// The rank of a type that a retraction names.
pub fn retractable(choice: i64) -> u8 {
    let rank = choice as u8;
    if rank < RETRACTED { rank } else { rank + 1 }
}

/// As many as the head of an entry can tell apart.
const MOST_TYPES: usize = 32;
pub const MOST_OWN: usize = 8;
pub const MOST_ROLLUPS: usize = 8;

/// As Python gives it: name, and the own fields as in `KNOWN`.
pub type DeclaredType = (String, Vec<DeclaredOwn>);
pub type DeclaredOwn = (String, String, String, Vec<String>, String, bool);

/// How a log keeps an own field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Own {
    /// The place of one of so many.
    Choice(i64),
    /// 1 where it is set.
    Flag,
    Integer,
    /// The fingerprint of an id: 64 bits without a sign.
    Mark,
    Text,
}

/// How an own field is read from an event.
#[derive(Debug)]
pub struct OwnField {
    /// The place of the event's field among the names of all own fields.
    pub given_as: u8,
    pub is_required: bool,
    pub reads: Reads,
}

#[derive(Debug)]
pub enum Reads {
    /// With the one that is kept as none.
    Choice(Vec<Vec<u8>>, Vec<u8>),
    Flag,
    Mark,
    Seconds,
    Text,
    /// Sums of money and their currencies are the codec's.
    Money,
}

#[derive(Debug)]
pub struct Catalogue {
    /// By rank.
    names: Vec<String>,
    /// The own fields of each type, by rank.
    pub types: Vec<Vec<Own>>,
    pub fields: Vec<Vec<OwnField>>,
    /// The names of own fields in events.
    given_as: Vec<Vec<u8>>,
}

impl Catalogue {
    pub fn new(declared: &[DeclaredType]) -> Result<Self, String> {
        for (rank, (name, own)) in KNOWN.iter().enumerate() {
            let as_known = declared.get(rank).is_some_and(|(declared_name, declared_own)| {
                let mut pairs = declared_own.iter().zip(*own);
                declared_name == name
                    && declared_own.len() >= own.len()
                    && pairs.all(|(one, other)| is_same(one, other))
            });
            if !as_known {
                return Err(format!("the core knows another type {name}, or another place of it"));
            }
        }
        if declared.len() > MOST_TYPES {
            return Err(format!("the core takes up to {MOST_TYPES} types"));
        }
        let mut catalogue =
            Catalogue { names: Vec::new(), types: Vec::new(), fields: Vec::new(), given_as: Vec::new() };
        for (name, own) in declared {
            if own.len() > MOST_OWN {
                return Err(format!("{name} has more than {MOST_OWN} fields of its own"));
            }
            let fields: Vec<_> = own.iter().map(|field| catalogue.field(field)).collect::<Result<_, _>>()?;
            let (kept_as, fields) = fields.into_iter().unzip();
            catalogue.names.push(name.clone());
            catalogue.types.push(kept_as);
            catalogue.fields.push(fields);
        }
        Ok(catalogue)
    }

    /// How a log keeps it, and how it is read.
    fn field(&mut self, declared: &DeclaredOwn) -> Result<(Own, OwnField), String> {
        let (name, kind, given_as, choices, unsaid, is_required) = declared;
        let bytes = |text: &String| text.clone().into_bytes();
        let (own, reads) = match kind.as_str() {
            "choice" => {
                let reads = Reads::Choice(choices.iter().map(bytes).collect(), bytes(unsaid));
                (Own::Choice(choices.len() as i64), reads)
            }
            "flag" => (Own::Flag, Reads::Flag),
            "mark" => (Own::Mark, Reads::Mark),
            "seconds" => (Own::Integer, Reads::Seconds),
            "money" => (Own::Integer, Reads::Money),
            "text" => (Own::Text, Reads::Text),
            "currency" => (Own::Text, Reads::Money),
            _ => return Err(format!("{name} is of a kind that the core does not know: {kind}")),
        };
        let given_as = self.given_as(given_as.as_bytes()).unwrap_or_else(|| {
            self.given_as.push(bytes(given_as));
            self.given_as.len() as u8 - 1
        });
        Ok((own, OwnField { given_as, is_required: *is_required, reads }))
    }

    /// The place of an own field's name in events.
    #[inline]
    pub fn given_as(&self, name: &[u8]) -> Option<u8> {
        self.given_as.iter().position(|known| known == name).map(|place| place as u8)
    }

    pub fn rank(&self, name: &[u8]) -> Option<u8> {
        self.names.iter().position(|known| known.as_bytes() == name).map(|rank| rank as u8)
    }
}

fn is_same(declared: &DeclaredOwn, known: &KnownOwn) -> bool {
    let (name, kind, given_as, choices, unsaid, is_required) = declared;
    (&**name, &**kind, &**given_as, &**unsaid, *is_required) == (known.0, known.1, known.2, known.4, known.5)
        && choices.iter().eq(known.3)
}

/// A column's place among those that the core counts, in the order of their ids.
pub type Column = u16;

pub struct Columns {
    ids: Vec<i64>,
    /// By rank. A machine's answer is counted apart.
    pub activity: Vec<Option<Column>>,
    pub machine_answers: Column,
    /// Of these, those that are taken back.
    pub retracted: Vec<Option<Column>>,
    pub retracted_machine: Column,
    pub corrections_open: Column,
    pub corrections_void: Column,
    pub connect_voided: Column,
    pub inbound_reached: Column,
    pub reach_repeated: Column,
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
        retracted: &BTreeMap<String, String>,
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
            "corrections_open",
            "corrections_void",
            "connect_voided",
            "inbound_reached",
            "reach_repeated",
            "dm_hangups",
            "agent_hangups",
            "implied",
            "awaited",
            "uncalled",
            "dialed_before_creation",
        ];
        let of_histograms = histograms.iter().flat_map(|(_, _, bins, sum)| bins.iter().chain([sum]));
        let of_events = activity.values().chain(retracted.values());
        let counted = of_histograms.chain(&leads).chain(of_events).map(String::as_str);
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
        let Some(retracted_machine) = retracted.get("machine_answers") else {
            return Err("machine answers that are taken back have no column".into());
        };
        let of_type = |(name, _): &DeclaredType| activity.get(name);
        let taken_back = |column: &String| retracted.get(column).map(|column| place(column));
        Ok(Columns {
            activity: types.iter().map(|its| of_type(its).map(|column| place(column))).collect(),
            machine_answers: place("machine_answers"),
            retracted: types.iter().map(|its| of_type(its).and_then(taken_back)).collect(),
            retracted_machine: place(retracted_machine),
            corrections_open: place("corrections_open"),
            corrections_void: place("corrections_void"),
            connect_voided: place("connect_voided"),
            inbound_reached: place("inbound_reached"),
            reach_repeated: place("reach_repeated"),
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
