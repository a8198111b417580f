//! What holds of the core's decoders for any bytes. Each function panics where it does not.
//!
//! The decoders are compiled from the core's own files, so that the core exports nothing more.

#![forbid(unsafe_code)]
#![allow(dead_code, reason = "the decoders are a part of what is in these files")]

#[path = "../../src/batch.rs"]
mod batch;
#[path = "../../src/catalogue.rs"]
mod catalogue;
#[path = "../../src/counts.rs"]
mod counts;
#[path = "../../src/facts.rs"]
mod facts;
#[path = "../../src/json.rs"]
mod json;
#[path = "../../src/log.rs"]
mod log;
#[path = "../../src/measures.rs"]
mod measures;
#[path = "../../src/msgpack.rs"]
mod msgpack;
#[path = "../../src/record.rs"]
mod record;
#[path = "../../src/rows.rs"]
mod rows;
#[path = "../../src/texts.rs"]
mod texts;
#[path = "../../src/time.rs"]
mod time;
#[path = "../../src/varint.rs"]
mod varint;

use std::sync::LazyLock;

use batch::Held;
use catalogue::{Catalogue, MOST_OWN, Own, known, resolutions, rollups};
use facts::Facts;
use log::{Dimensions, Entry, Log, Place};
use rows::{Changes, Rows};
use texts::Texts;

static CATALOGUE: LazyLock<Catalogue> =
    LazyLock::new(|| Catalogue::new(&known()).expect("these are the types that the core knows"));

/// The JSON of an event. What is accepted is within its bounds, and its log can be written and opened.
pub fn record(json: &[u8]) {
    let mut texts = Texts::new();
    let Some((lead_id, entry)) = record::read(json, &CATALOGUE, &mut texts) else { return };
    let characters = |text| str::from_utf8(text).expect("what is accepted is UTF-8").chars().count();
    assert!((1..=64).contains(&characters(lead_id)));
    assert!((0..10i64.pow(15)).contains(&entry.at_ms));
    assert!(entry.dimensions.iter().all(|&text| characters(texts.get(text)) <= 64));
    for (field, kind) in CATALOGUE.types[usize::from(entry.rank)].iter().enumerate() {
        let Some(value) = entry.own(field) else { continue };
        match kind {
            Own::Choice(choices) => assert!((0..*choices).contains(&value)),
            Own::Flag => assert_eq!(value, 1),
            Own::Integer => assert!((0..1 << 53).contains(&value)),
            Own::Mark => {}
            Own::Text => assert!((1..=64).contains(&characters(texts.get(value as u32)))),
        }
    }
    let mut log = Log::default();
    assert_eq!(log.place_for(&entry, &texts, &CATALOGUE, 1), Place::Free(0));
    log.insert(0, entry, &texts, &CATALOGUE);
    reopened(&mut log, &mut texts);
}

/// A lead's record. What opens has facts, and is the same when it is written, opened and written again.
pub fn log(record: &[u8]) {
    let (mut texts, mut log) = (Texts::new(), Log::default());
    if log.open(record, &mut texts, &CATALOGUE).is_err() {
        return;
    }
    Facts::default().find(&mut log, 15_000, &mut texts);
    let (written, mut again) = reopened(&mut log, &mut texts);
    assert_eq!(reopened(&mut again, &mut texts).0, written);
}

/// A row of the funnel: the size of the key in two bytes, the key, the value. What is restored is given back.
pub fn row(bytes: &[u8]) {
    let Some((size, rest)) = bytes.split_first_chunk() else { return };
    let Some((key, value)) = rest.split_at_checked(u16::from_le_bytes(*size).into()) else { return };
    let (mut rows, mut again) = (no_rows(), no_rows());
    if rows.restore(key, value).is_err() {
        return;
    }
    assert_eq!(rows.count(), 1);
    let (key, held) = rows.all().next().expect("there is one");
    assert_eq!(held, value);
    assert!(again.restore(&key, held).is_ok());
    assert!(again.all().eq(rows.all()));
    let mut changes = Changes::default();
    again.expire(i64::MAX, &mut changes);
    assert_eq!(again.count() + changes.iter().count(), 1);
    assert!(changes.iter().all(|change| change == (&key, None)));
}

/// The number of records in a byte, and what a record batch may have behind its head. Of what is read, each record is
/// behind the one before, and its key and its value are where it says.
pub fn batch(bytes: &[u8]) {
    let Some((&count, data)) = bytes.split_first() else { return };
    let _ = batch::unpack(data, &mut Vec::new());
    let mut held = Held::default();
    if held.read_records(data, 7, 255, count.into(), 9).is_err() {
        return;
    }
    assert!(held.records.len() <= count.into());
    assert!(held.records.is_sorted_by(|one, other| one.offset < other.offset));
    for record in &held.records {
        assert!((9..=262).contains(&record.offset));
        let sizes = [&record.key, &record.value].map(|part| held.part(part).unwrap_or_default().len());
        assert!(sizes.iter().sum::<usize>() <= data.len());
    }
}

fn reopened(log: &mut Log, texts: &mut Texts) -> (Vec<u8>, Log) {
    let (mut record, mut again) = (Vec::new(), Log::default());
    log.write_whole(&mut record, texts, &CATALOGUE);
    assert!(again.open(&record, texts, &CATALOGUE).is_ok(), "what was written is refused");
    assert!(fields(&mut again, texts) == fields(log, texts), "other entries come back");
    (record, again)
}

type Fields = (i64, u64, Option<u64>, Dimensions, u8, bool, [Option<i64>; MOST_OWN]);

fn fields(log: &mut Log, texts: &mut Texts) -> Vec<Fields> {
    let entries = log.entries().to_vec();
    let of_entry = |entry: Entry| {
        let kinds = &CATALOGUE.types[usize::from(entry.rank)];
        let own = std::array::from_fn(|field| match (entry.own(field), kinds.get(field)) {
            (Some(text), Some(Own::Text)) => Some(log.number(text as u32, texts).into()),
            (value, _) => value,
        });
        let dimensions = entry.dimensions.map(|text| log.number(text, texts));
        (entry.at_ms, entry.mark, entry.call, dimensions, entry.rank, entry.is_in_force, own)
    };
    entries.into_iter().map(of_entry).collect()
}

/// Of tables with the rollups and resolutions of `streams.measures` and `streams.panes`.
fn no_rows() -> Rows {
    let declared: [(i64, &[&str]); 3] = [(0, &["campaign", "source"]), (1, &["team", "agent"]), (2, &["location"])];
    let rollups = rollups(declared.map(|(id, names)| (id, owned(names), id == 0, 7_200)).into());
    let resolutions = resolutions(
        [(4, "1m", 60, 21_600), (1, "1h", 3_600, 259_200), (2, "1d", 86_400, 34_560_000), (3, "all", 0, 0)]
            .map(|(id, name, length_s, kept_s)| (id, name.into(), length_s, kept_s))
            .into(),
    );
    Rows::new(0, rollups.expect("they are known"), resolutions.expect("they are whole minutes"))
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.into()).collect()
}
