//! The log of a lead: what happened to it, in order, and the bytes that it is kept as.

use std::cmp::Ordering;

use hashbrown::HashSet;

use crate::catalogue::{CONNECT, Catalogue, MACHINE, MOST_OWN, Own};
use crate::texts::{MISSING, Text, Texts};
use crate::varint::{Bytes, Corrupt, put_uvarint, put_zigzag};

pub const DIMENSIONS: [&str; 5] = ["campaign", "source", "location", "team", "agent"];
pub type Dimensions = [Text; DIMENSIONS.len()];

const FORMAT: u8 = 1;
const RANK: u8 = 0x1f;
const HAS_OWN: u8 = 0x20;
const HAS_CALL: u8 = 0x40;
const OTHER_DIMENSIONS: u8 = 0x80;

#[derive(Clone, Copy, Default)]
pub struct Entry {
    pub at_ms: i64,
    /// The fingerprint of the event's id.
    pub mark: u64,
    /// The fingerprint of the call's id.
    pub call: Option<u64>,
    pub dimensions: Dimensions,
    pub rank: u8,
    /// Whether it is the one in force among those of its identity.
    pub is_live: bool,
    present: u8,
    own: [i64; MOST_OWN],
}

impl Entry {
    pub fn new(at_ms: i64, rank: u8, mark: u64, call: Option<u64>) -> Self {
        Entry { at_ms, rank, mark, call, ..Entry::default() }
    }

    /// An own field: an integer, the place of a choice or the number of a text.
    #[inline]
    pub fn own(&self, field: usize) -> Option<i64> {
        (self.present >> field & 1 == 1).then(|| self.own[field])
    }

    pub fn set_own(&mut self, field: usize, value: Option<i64>) {
        if let Some(value) = value {
            self.own[field] = value;
            self.present |= 1 << field;
        }
    }

    #[inline]
    pub fn is_machine(&self) -> bool {
        self.rank == CONNECT && self.own(0) == Some(MACHINE)
    }

    /// Of several entries with the same, one is in force.
    #[inline]
    fn identity(&self) -> (u64, u8, Option<i64>) {
        (self.mark, self.rank, if self.rank == CONNECT { self.own(0) } else { None })
    }

    #[inline]
    fn compare(&self, other: &Entry, texts: &Texts, catalogue: &Catalogue) -> Ordering {
        let place = |entry: &Entry| (entry.at_ms, entry.rank, entry.mark);
        place(self).cmp(&place(other)).then_with(|| self.compare_rest(other, texts, catalogue))
    }

    fn compare_rest(&self, other: &Entry, texts: &Texts, catalogue: &Catalogue) -> Ordering {
        let by_dimension = self.dimensions.iter().zip(&other.dimensions).map(|(a, b)| texts.compare(*a, *b));
        let own = catalogue.types[usize::from(self.rank)].iter().enumerate();
        let by_own = own.map(|(field, kind)| match (self.own(field), other.own(field)) {
            (Some(a), Some(b)) if *kind == Own::Text => texts.compare(a as Text, b as Text),
            (a, b) => a.cmp(&b),
        });
        by_dimension.chain(by_own).fold(self.call.cmp(&other.call), Ordering::then)
    }
}

#[derive(PartialEq)]
pub enum Added {
    Entry,
    Duplicate,
    Crowded,
}

/// It is opened for one lead after the other, so that its memory is used again.
#[derive(Default)]
pub struct Log {
    entries: Vec<Entry>,
    table: Table,
}

/// What texts and calls a record has named so far.
#[derive(Default)]
struct Table {
    texts: Vec<Text>,
    calls: Vec<u64>,
    /// Of each text, where a record has it; what another round wrote does not count.
    places: Vec<(u32, u32)>,
    round: u32,
}

impl Log {
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Of a log that has entries.
    pub fn newest_ms(&self) -> i64 {
        self.entries.last().map_or(i64::MAX, |entry| entry.at_ms)
    }

    pub fn live(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.is_live)
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }

    pub fn open(&mut self, record: &[u8], texts: &mut Texts, catalogue: &Catalogue) -> Result<(), Corrupt> {
        self.entries.clear();
        self.table.texts.clear();
        self.table.calls.clear();
        let mut from = Bytes(record);
        if from.byte()? != FORMAT {
            return Err(Corrupt);
        }
        let mut last = Entry::default();
        loop {
            last = read_entry(&mut from, last, &mut self.table, texts, catalogue)?;
            self.entries.push(last);
            if from.is_empty() {
                break;
            }
        }
        self.find_live();
        Ok(())
    }

    pub fn add(&mut self, mut entry: Entry, texts: &Texts, catalogue: &Catalogue, most: usize) -> Added {
        let place = match self.entries.binary_search_by(|held| held.compare(&entry, texts, catalogue)) {
            Ok(_) => return Added::Duplicate,
            Err(place) => place,
        };
        if self.entries.len() >= most {
            return Added::Crowded;
        }
        let same = |held: &Entry| held.mark == entry.mark && held.identity() == entry.identity();
        let in_force = self.entries.iter().position(|held| held.is_live && same(held));
        entry.is_live = in_force.is_none_or(|other| place <= other);
        if let Some(other) = in_force
            && entry.is_live
        {
            self.entries[other].is_live = false;
        }
        self.entries.insert(place, entry);
        Added::Entry
    }

    pub fn write(&mut self, to: &mut Vec<u8>, texts: &Texts, catalogue: &Catalogue) {
        self.table.start(texts.len());
        to.push(FORMAT);
        let mut last = Entry::default();
        for entry in &self.entries {
            write_entry(to, entry, &last, &mut self.table, texts, catalogue);
            last = *entry;
        }
    }

    /// In order, the first of each identity is in force.
    fn find_live(&mut self) {
        if self.entries.len() > 64 {
            let mut identities = HashSet::with_capacity(self.entries.len());
            for entry in &mut self.entries {
                entry.is_live = identities.insert(entry.identity());
            }
            return;
        }
        for at in 0..self.entries.len() {
            let (before, rest) = self.entries.split_at_mut(at);
            let entry = &mut rest[0];
            entry.is_live = !before.iter().any(|held| held.mark == entry.mark && held.identity() == entry.identity());
        }
    }
}

fn read_entry(
    from: &mut Bytes,
    last: Entry,
    table: &mut Table,
    texts: &mut Texts,
    catalogue: &Catalogue,
) -> Result<Entry, Corrupt> {
    let head = from.byte()?;
    let rank = head & RANK;
    let kinds = catalogue.types.get(usize::from(rank)).ok_or(Corrupt)?;
    let later_ms = i64::try_from(from.uvarint()?).map_err(|_| Corrupt)?;
    let mut entry = Entry {
        at_ms: last.at_ms.checked_add(later_ms).ok_or(Corrupt)?,
        mark: from.u64()?,
        dimensions: last.dimensions,
        rank,
        ..Entry::default()
    };
    if head & OTHER_DIMENSIONS != 0 {
        let others = mask(from, DIMENSIONS.len())?;
        for (place, dimension) in entry.dimensions.iter_mut().enumerate() {
            if others >> place & 1 == 1 {
                *dimension = table.read_text(from, texts)?;
            }
        }
    }
    if head & HAS_CALL != 0 {
        entry.call = Some(table.read_call(from)?);
    }
    if head & HAS_OWN != 0 {
        let present = mask(from, kinds.len())?;
        for (field, kind) in kinds.iter().enumerate() {
            if present >> field & 1 == 1 {
                let value = match kind {
                    Own::Text => Some(table.read_text(from, texts)?).filter(|&text| text != MISSING).map(i64::from),
                    Own::Integer => Some(from.zigzag()?),
                    Own::Choice(choices) => Some(read_choice(from, *choices)?),
                };
                entry.set_own(field, value);
            }
        }
    }
    Ok(entry)
}

fn read_choice(from: &mut Bytes, choices: i64) -> Result<i64, Corrupt> {
    let choice = from.zigzag()?;
    if (0..choices).contains(&choice) { Ok(choice) } else { Err(Corrupt) }
}

/// A byte with a bit for each of so many.
fn mask(from: &mut Bytes, size: usize) -> Result<u8, Corrupt> {
    let mask = from.byte()?;
    if u32::from(mask) >> size == 0 { Ok(mask) } else { Err(Corrupt) }
}

#[inline]
fn write_entry(to: &mut Vec<u8>, entry: &Entry, last: &Entry, table: &mut Table, texts: &Texts, catalogue: &Catalogue) {
    let others = (0..DIMENSIONS.len())
        .filter(|&place| entry.dimensions[place] != last.dimensions[place])
        .fold(0, |mask, place| mask | 1u8 << place);
    let mut head = entry.rank;
    head |= if entry.present != 0 { HAS_OWN } else { 0 };
    head |= if entry.call.is_some() { HAS_CALL } else { 0 };
    head |= if others != 0 { OTHER_DIMENSIONS } else { 0 };
    to.push(head);
    // A record that came in disorder is written as it came.
    put_uvarint(to, entry.at_ms.wrapping_sub(last.at_ms) as u64);
    to.extend_from_slice(&entry.mark.to_le_bytes());
    if others != 0 {
        to.push(others);
        for (place, &dimension) in entry.dimensions.iter().enumerate() {
            if others >> place & 1 == 1 {
                table.write_text(to, dimension, texts);
            }
        }
    }
    if let Some(call) = entry.call {
        table.write_call(to, call);
    }
    if entry.present != 0 {
        to.push(entry.present);
        for (field, kind) in catalogue.types[usize::from(entry.rank)].iter().enumerate() {
            match entry.own(field) {
                Some(text) if *kind == Own::Text => table.write_text(to, text as Text, texts),
                Some(integer) => put_zigzag(to, integer),
                None => {}
            }
        }
    }
}

impl Table {
    fn start(&mut self, texts: usize) {
        self.texts.clear();
        self.calls.clear();
        self.places.resize(texts.max(self.places.len()), (0, 0));
        if self.round == u32::MAX {
            self.places.fill((0, 0));
            self.round = 0;
        }
        self.round += 1;
    }

    fn read_text(&mut self, from: &mut Bytes, texts: &mut Texts) -> Result<Text, Corrupt> {
        let place = from.index(self.texts.len() + 1)?;
        if place == 0 {
            return Ok(MISSING);
        }
        if let Some(&text) = self.texts.get(place - 1) {
            return Ok(text);
        }
        let size = usize::try_from(from.uvarint()?).map_err(|_| Corrupt)?;
        let text = str::from_utf8(from.take(size)?).map_err(|_| Corrupt)?;
        let text = texts.number_of(text.as_bytes());
        self.texts.push(text);
        Ok(text)
    }

    #[inline]
    fn write_text(&mut self, to: &mut Vec<u8>, text: Text, texts: &Texts) {
        if text == MISSING {
            to.push(0);
            return;
        }
        let known = &mut self.places[text as usize];
        if known.0 == self.round {
            put_uvarint(to, known.1.into());
            return;
        }
        self.texts.push(text);
        *known = (self.round, self.texts.len() as u32);
        put_uvarint(to, known.1.into());
        let text = texts.get(text);
        put_uvarint(to, text.len() as u64);
        to.extend_from_slice(text);
    }

    fn read_call(&mut self, from: &mut Bytes) -> Result<u64, Corrupt> {
        let place = from.index(self.calls.len())?;
        if let Some(&call) = self.calls.get(place) {
            return Ok(call);
        }
        let call = from.u64()?;
        self.calls.push(call);
        Ok(call)
    }

    #[inline]
    fn write_call(&mut self, to: &mut Vec<u8>, call: u64) {
        // From the last: most entries are of the call of the one before.
        if let Some(place) = self.calls.iter().rposition(|known| *known == call) {
            put_uvarint(to, place as u64);
            return;
        }
        put_uvarint(to, self.calls.len() as u64);
        to.extend_from_slice(&call.to_le_bytes());
        self.calls.push(call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::KNOWN;

    fn catalogue() -> Catalogue {
        let owned = |text: &&str| (*text).to_owned();
        let own = |(name, kind, choices): &(&str, &str, &[&str])| {
            (owned(name), owned(kind), choices.iter().map(owned).collect())
        };
        let types: Vec<_> =
            KNOWN.iter().map(|(name, fields)| (owned(name), fields.iter().map(own).collect())).collect();
        Catalogue::new(&types).unwrap()
    }

    fn record() -> Vec<u8> {
        let (mut texts, mut log, mut record) = (Texts::new(), Log::default(), Vec::new());
        let mut entry = Entry::new(1_000_000, 7, 5, Some(u64::MAX));
        entry.dimensions[1] = texts.number_of("caf\u{e9}".as_bytes());
        entry.set_own(0, Some(texts.number_of(b"no money").into()));
        for at_ms in [1_000_000, 999_999] {
            entry.at_ms = at_ms;
            entry.mark += 1;
            assert!(log.add(entry, &texts, &catalogue(), 2) == Added::Entry);
        }
        log.write(&mut record, &texts, &catalogue());
        record
    }

    fn open(record: &[u8]) -> Result<Log, Corrupt> {
        let mut log = Log::default();
        log.open(record, &mut Texts::new(), &catalogue()).map(|()| log)
    }

    #[test]
    fn a_record_comes_back_by_another_batch_with_other_numbers() {
        let (mut texts, mut log, mut again) = (Texts::new(), Log::default(), Vec::new());
        texts.number_of(b"another");
        texts.number_of(b"no money");
        log.open(&record(), &mut texts, &catalogue()).unwrap();
        log.write(&mut again, &texts, &catalogue());
        assert_eq!(again, record());
    }

    #[test]
    fn what_ends_too_early_or_too_late_is_corrupt() {
        let record = record();
        let entries: Vec<usize> = (0..record.len()).filter(|&size| open(&record[..size]).is_ok()).collect();
        assert_eq!(entries.len(), 1, "only where the second entry begins");
        assert!(open(&[&record[..], b"\0"].concat()).is_err());
    }

    #[test]
    fn any_byte_may_be_another() {
        let record = record();
        for place in 0..record.len() {
            for byte in 0..=255 {
                let mut other = record.clone();
                other[place] = byte;
                let _ = open(&other); // it must not panic
            }
        }
    }

    #[test]
    fn what_is_beyond_the_catalogue_or_the_tables_is_corrupt() {
        let mark = [0; 8];
        let of = |head: u8, rest: &[u8]| open(&[&[FORMAT, head, 0][..], &mark, rest].concat()).is_ok();
        assert!(of(0, &[]));
        assert!(!of(9, &[]), "rank");
        assert!(!of(OTHER_DIMENSIONS, &[0x20]), "a sixth dimension");
        assert!(of(OTHER_DIMENSIONS, &[1, 1, 1, b'a']));
        assert!(!of(OTHER_DIMENSIONS, &[1, 2, 1, b'a']), "the second text before the first");
        assert!(!of(OTHER_DIMENSIONS, &[1, 1, 1, 0xff]), "not UTF-8");
        assert!(!of(HAS_CALL, &[1, 0, 0, 0, 0, 0, 0, 0, 0]), "the second call before the first");
        assert!(!of(HAS_OWN, &[1, 0]), "a field that the type does not have");
        assert!(!of(HAS_OWN | 7, &[2, 0]), "a second field where there is one");
        assert!(of(HAS_OWN | 2, &[1, 2]));
        assert!(!of(HAS_OWN | 2, &[1, 4]), "a third choice of two");
        assert!(open(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err(), "another format");
        assert!(open(&[FORMAT]).is_err(), "no entry");
    }
}
