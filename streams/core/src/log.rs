//! The log of a lead: what happened to it, in order, and the bytes that it is kept as.

use std::cmp::Ordering;
use std::ops::Range;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry::Vacant;

use crate::catalogue::{CONNECT, Catalogue, MACHINE, MOST_OWN, Own, RETRACTED, TOUCH, retractable};
use crate::texts::{MISSING, Text, Texts};
use crate::varint::{Bytes, Corrupt, put_uvarint, put_zigzag};

pub const DIMENSIONS: [&str; 5] = ["campaign", "source", "location", "team", "agent"];
/// Texts of a batch; of an entry in a log, the places of texts in the log.
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
    /// The place of the call in `Log::calls`, once the entry is in a log.
    pub call_place: u32,
    pub dimensions: Dimensions,
    pub rank: u8,
    /// Whether it is the one in force among those of its identity.
    pub is_in_force: bool,
    /// Whether facts look at it, once `Log::find_live` has said so.
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

    /// Whether it counts by itself, if its type does: what a machine writes is no touch.
    #[inline]
    pub fn counts(&self) -> bool {
        self.rank != TOUCH || self.own(1).is_none()
    }

    /// Of several entries with the same, one is in force.
    #[inline]
    fn identity(&self) -> (u64, u8, Option<[Option<i64>; 2]>) {
        (self.mark, self.rank, (self.rank == CONNECT).then(|| [self.own(0), self.own(1)]))
    }

    /// Whether a retraction names its type, or none.
    fn is_of_type(&self, retraction: &Entry) -> bool {
        retraction.own(1).is_none_or(|choice| retractable(choice) == self.rank)
    }
}

#[derive(Debug, PartialEq)]
pub enum Place {
    Free(usize),
    /// The log has the same entry.
    Taken,
    Crowded,
}

/// It is opened for one lead after the other, so that its memory is used again.
#[derive(Default)]
pub struct Log {
    entries: Vec<Entry>,
    texts: Held,
    /// The calls of the entries, each once.
    calls: Vec<u64>,
    opened: Opened,
    identities: HashTable<u32>,
    /// The retractions in force, and what became of them.
    pub retractions: Vec<Retraction>,
    text_order: Order,
    call_order: Order,
}

/// A retraction, by its place, and how many entries it takes back; how many of those are retractions themselves.
pub struct Retraction {
    pub place: usize,
    pub entries: usize,
    pub void: usize,
}

/// What a log was opened from; no entries once others were inserted between them.
#[derive(Default)]
struct Opened {
    entries: usize,
    texts: usize,
    calls: usize,
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

    /// How many calls the entries are of.
    pub fn calls(&self) -> usize {
        self.calls.len()
    }

    /// The text of the batch that an entry names.
    #[inline]
    pub fn number(&mut self, text: Text, texts: &mut Texts) -> Text {
        self.texts.number(text, texts)
    }

    pub fn clear(&mut self) {
        self.entries.clear();
        self.texts.clear();
        self.calls.clear();
        self.opened = Opened::default();
    }

    pub fn open(&mut self, record: &[u8], texts: &mut Texts, catalogue: &Catalogue) -> Result<(), Corrupt> {
        self.clear();
        self.texts.record.extend_from_slice(record);
        let mut from = Bytes(record);
        if from.byte()? != FORMAT {
            return Err(Corrupt);
        }
        let mut last = Entry::default();
        loop {
            last = read_entry(&mut from, last, &mut self.texts, &mut self.calls, catalogue)?;
            self.entries.push(last);
            if from.is_empty() {
                break;
            }
        }
        self.opened = Opened { entries: self.entries.len(), texts: self.texts.known.len(), calls: self.calls.len() };
        if self.texts.known.len() <= FEW_TEXTS {
            self.texts.number_all(texts);
        }
        self.find_in_force();
        Ok(())
    }

    /// Where an entry of the batch belongs, of a log that may have so many.
    pub fn place_for(&self, entry: &Entry, texts: &Texts, catalogue: &Catalogue, most: usize) -> Place {
        match self.entries.binary_search_by(|held| self.compare(held, entry, texts, catalogue)) {
            Ok(_) => Place::Taken,
            Err(_) if self.entries.len() >= most => Place::Crowded,
            Err(place) => Place::Free(place),
        }
    }

    /// An entry of the batch; `place_for` gave the place. Whether it contradicts another one.
    pub fn insert(&mut self, place: usize, mut entry: Entry, texts: &Texts, catalogue: &Catalogue) -> bool {
        let same = |held: &Entry| held.mark == entry.mark && held.identity() == entry.identity();
        let in_force = self.entries.iter().position(|held| held.is_in_force && same(held));
        entry.is_in_force = in_force.is_none_or(|other| place <= other);
        if let Some(other) = in_force
            && entry.is_in_force
        {
            self.entries[other].is_in_force = false;
        }
        if let Some(call) = entry.call {
            // From the last: most entries are of a call of late.
            let place = self.calls.iter().rposition(|known| *known == call).unwrap_or_else(|| {
                self.calls.push(call);
                self.calls.len() - 1
            });
            entry.call_place = place as u32;
        }
        for dimension in &mut entry.dimensions {
            *dimension = self.texts.place_of(*dimension, texts);
        }
        for (field, kind) in catalogue.types[usize::from(entry.rank)].iter().enumerate() {
            if let (Own::Text, Some(text)) = (kind, entry.own(field)) {
                entry.set_own(field, Some(self.texts.place_of(text as Text, texts).into()));
            }
        }
        if place < self.opened.entries {
            self.opened.entries = 0;
        }
        self.entries.insert(place, entry);
        in_force.is_some()
    }

    /// Says which entries facts look at: those in force that are no retractions and that none takes back.
    pub fn find_live(&mut self) {
        self.retractions.clear();
        for (place, entry) in self.entries.iter_mut().enumerate() {
            entry.is_live = entry.is_in_force && entry.rank != RETRACTED;
            if entry.rank == RETRACTED && entry.is_in_force {
                self.retractions.push(Retraction { place, entries: 0, void: 0 });
            }
        }
        if self.retractions.is_empty() {
            return;
        }
        for retraction in &mut self.retractions {
            let by = self.entries[retraction.place];
            let Some(mark) = by.own(0) else { continue };
            for entry in self.entries.iter_mut().filter(|entry| entry.mark == mark as u64 && entry.is_of_type(&by)) {
                entry.is_live = false;
                retraction.entries += 1;
                retraction.void += usize::from(entry.rank == RETRACTED);
            }
        }
        // Those by a type alone take what these have left.
        for retraction in &mut self.retractions {
            let by = self.entries[retraction.place];
            if by.own(0).is_some() {
                continue;
            }
            let mut up_to = self.entries.iter_mut().rev().skip_while(|entry| entry.at_ms > by.at_ms);
            if let Some(entry) = up_to.find(|entry| entry.is_live && entry.is_of_type(&by)) {
                entry.is_live = false;
                retraction.entries = 1;
            }
        }
    }

    /// Where all that is new is behind what the log was opened from, that is copied, and not written again.
    pub fn write(&mut self, to: &mut Vec<u8>, texts: &Texts, catalogue: &Catalogue) {
        let Some(last) = self.opened.entries.checked_sub(1) else { return self.write_whole(to, texts, catalogue) };
        self.text_order.start(self.opened.texts, self.texts.known.len());
        self.call_order.start(self.opened.calls, self.calls.len());
        to.extend_from_slice(&self.texts.record);
        self.write_from(last, to, texts, catalogue);
    }

    pub fn write_whole(&mut self, to: &mut Vec<u8>, texts: &Texts, catalogue: &Catalogue) {
        self.text_order.start(0, self.texts.known.len());
        self.call_order.start(0, self.calls.len());
        to.push(FORMAT);
        if let Some(first) = self.entries.first().copied() {
            self.write_entry(to, &first, &Entry::default(), texts, catalogue);
            self.write_from(0, to, texts, catalogue);
        }
    }

    /// Those behind one that is written.
    fn write_from(&mut self, last: usize, to: &mut Vec<u8>, texts: &Texts, catalogue: &Catalogue) {
        for at in last + 1..self.entries.len() {
            let (last, entry) = (self.entries[at - 1], self.entries[at]);
            self.write_entry(to, &entry, &last, texts, catalogue);
        }
    }

    #[inline]
    fn write_entry(&mut self, to: &mut Vec<u8>, entry: &Entry, last: &Entry, texts: &Texts, catalogue: &Catalogue) {
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
                    self.write_text(to, dimension, texts);
                }
            }
        }
        if let Some(call) = entry.call {
            let (place, is_new) = self.call_order.place_of(entry.call_place as usize);
            put_uvarint(to, place.into());
            if is_new {
                to.extend_from_slice(&call.to_le_bytes());
            }
        }
        if entry.present != 0 {
            to.push(entry.present);
            for (field, kind) in catalogue.types[usize::from(entry.rank)].iter().enumerate() {
                match entry.own(field) {
                    Some(text) if *kind == Own::Text => self.write_text(to, text as Text, texts),
                    Some(mark) if *kind == Own::Mark => to.extend_from_slice(&mark.to_le_bytes()),
                    Some(integer) => put_zigzag(to, integer),
                    None => {}
                }
            }
        }
    }

    #[inline]
    fn write_text(&mut self, to: &mut Vec<u8>, text: Text, texts: &Texts) {
        if text == MISSING {
            to.push(0);
            return;
        }
        let (place, is_new) = self.text_order.place_of(text as usize - 1);
        put_uvarint(to, u64::from(place) + 1);
        if is_new {
            let text = self.texts.get(text, texts);
            put_uvarint(to, text.len() as u64);
            to.extend_from_slice(text);
        }
    }

    /// Of an entry of this log and one of the batch.
    #[inline]
    fn compare(&self, held: &Entry, other: &Entry, texts: &Texts, catalogue: &Catalogue) -> Ordering {
        let place = |entry: &Entry| (entry.at_ms, entry.rank, entry.mark);
        place(held).cmp(&place(other)).then_with(|| self.compare_rest(held, other, texts, catalogue))
    }

    fn compare_rest(&self, held: &Entry, other: &Entry, texts: &Texts, catalogue: &Catalogue) -> Ordering {
        // What is missing comes first.
        let by_text = |a: Text, b: Text| {
            (a != MISSING).cmp(&(b != MISSING)).then_with(|| self.texts.get(a, texts).cmp(texts.get(b)))
        };
        let by_dimension = held.dimensions.iter().zip(&other.dimensions).map(|(a, b)| by_text(*a, *b));
        let own = catalogue.types[usize::from(held.rank)].iter().enumerate();
        let by_own = own.map(|(field, kind)| match (held.own(field), other.own(field)) {
            (Some(a), Some(b)) if *kind == Own::Text => by_text(a as Text, b as Text),
            (Some(a), Some(b)) if *kind == Own::Mark => (a as u64).cmp(&(b as u64)),
            (a, b) => a.cmp(&b),
        });
        by_dimension.chain(by_own).fold(held.call.cmp(&other.call), Ordering::then)
    }

    /// In order, the first of each identity is in force.
    fn find_in_force(&mut self) {
        if self.entries.len() > 64 {
            self.identities.clear();
            for at in 0..self.entries.len() {
                // The mark is a hash already.
                let (entry, entries) = (&self.entries[at], &self.entries);
                let is_same = |&other: &u32| entries[other as usize].identity() == entry.identity();
                let hash = |&other: &u32| entries[other as usize].mark;
                let held = self.identities.entry(entry.mark, is_same, hash);
                let is_in_force = matches!(held, Vacant(_));
                if let Vacant(place) = held {
                    place.insert(at as u32);
                }
                self.entries[at].is_in_force = is_in_force;
            }
            return;
        }
        for at in 0..self.entries.len() {
            let (before, rest) = self.entries.split_at_mut(at);
            let entry = &mut rest[0];
            entry.is_in_force =
                !before.iter().any(|held| held.mark == entry.mark && held.identity() == entry.identity());
        }
    }
}

fn read_entry(
    from: &mut Bytes,
    last: Entry,
    texts: &mut Held,
    calls: &mut Vec<u64>,
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
                *dimension = texts.read(from)?;
            }
        }
    }
    if head & HAS_CALL != 0 {
        entry.call_place = read_call(from, calls)?;
        entry.call = Some(calls[entry.call_place as usize]);
    }
    if head & HAS_OWN != 0 {
        let present = mask(from, kinds.len())?;
        for (field, kind) in kinds.iter().enumerate() {
            if present >> field & 1 == 1 {
                let value = match kind {
                    Own::Text => Some(texts.read(from)?).filter(|&text| text != MISSING).map(i64::from),
                    Own::Integer => Some(from.zigzag()?),
                    Own::Mark => Some(from.u64()? as i64),
                    Own::Flag => Some(read_choice(from, 1..2)?),
                    Own::Choice(choices) => Some(read_choice(from, 0..*choices)?),
                };
                entry.set_own(field, value);
            }
        }
    }
    Ok(entry)
}

fn read_choice(from: &mut Bytes, choices: Range<i64>) -> Result<i64, Corrupt> {
    let choice = from.zigzag()?;
    if choices.contains(&choice) { Ok(choice) } else { Err(Corrupt) }
}

/// A byte with a bit for each of so many.
fn mask(from: &mut Bytes, size: usize) -> Result<u8, Corrupt> {
    let mask = from.byte()?;
    if u32::from(mask) >> size == 0 { Ok(mask) } else { Err(Corrupt) }
}

#[inline]
fn read_call(from: &mut Bytes, calls: &mut Vec<u64>) -> Result<u32, Corrupt> {
    let place = from.index(calls.len())?;
    if place == calls.len() {
        calls.push(from.u64()?);
    }
    Ok(place as u32)
}

/// A log with more texts looks for them among those of the batch only where they are counted: most are not.
const FEW_TEXTS: usize = 16;

/// The texts of a log, by their places, which begin with 1.
#[derive(Default)]
struct Held {
    record: Vec<u8>,
    known: Vec<Known>,
    /// By the texts of the batch, their places in the log; what another round wrote does not count.
    places: Vec<(u32, Text)>,
    round: u32,
}

struct Known {
    /// Where it is in the record, if it is there.
    range: Range<u32>,
    number: Option<Text>,
}

impl Held {
    fn clear(&mut self) {
        self.record.clear();
        self.known.clear();
        if self.round == u32::MAX {
            self.places.fill((0, MISSING));
            self.round = 0;
        }
        self.round += 1;
    }

    #[inline]
    fn read(&mut self, from: &mut Bytes) -> Result<Text, Corrupt> {
        let place = from.index(self.known.len() + 1)?;
        if place > self.known.len() {
            let size = usize::try_from(from.uvarint()?).map_err(|_| Corrupt)?;
            let text = from.take(size)?;
            if !text.is_ascii() && str::from_utf8(text).is_err() {
                return Err(Corrupt);
            }
            let end = self.record.len() - from.0.len();
            self.known.push(Known { range: (end - size) as u32..end as u32, number: None });
        }
        Ok(place as Text)
    }

    fn get<'a>(&'a self, text: Text, texts: &'a Texts) -> &'a [u8] {
        if text == MISSING {
            return b"";
        }
        let known = &self.known[text as usize - 1];
        match known.number {
            Some(number) => texts.get(number),
            None => &self.record[known.range.start as usize..known.range.end as usize],
        }
    }

    fn number_all(&mut self, texts: &mut Texts) {
        for place in 1..=self.known.len() {
            self.number(place as Text, texts);
        }
    }

    #[inline]
    fn number(&mut self, text: Text, texts: &mut Texts) -> Text {
        if text == MISSING {
            return MISSING;
        }
        let Known { range, number } = &mut self.known[text as usize - 1];
        *number.get_or_insert_with(|| texts.number_of(&self.record[range.start as usize..range.end as usize]))
    }

    /// The place of a text of the batch.
    fn place_of(&mut self, number: Text, texts: &Texts) -> Text {
        if number == MISSING {
            return MISSING;
        }
        if self.known.len() <= FEW_TEXTS
            && let Some(place) = self.known.iter().position(|known| known.number == Some(number))
        {
            return place as Text + 1;
        }
        if self.places.len() < texts.len() {
            self.places.resize(texts.len(), (0, MISSING));
        }
        let (round, place) = self.places[number as usize];
        if round == self.round && place != MISSING {
            return place;
        }
        let (record, text) = (&self.record, texts.get(number));
        let is_it = |known: &Known| match known.number {
            Some(other) => other == number,
            None => &record[known.range.start as usize..known.range.end as usize] == text,
        };
        let at = self.known.iter().position(is_it).unwrap_or_else(|| {
            self.known.push(Known { range: 0..0, number: Some(number) });
            self.known.len() - 1
        });
        self.known[at].number = Some(number);
        let place = at as Text + 1;
        self.places[number as usize] = (self.round, place);
        place
    }
}

/// In which order a record names texts or calls: each has a place in the log and one in the record.
#[derive(Default)]
struct Order {
    places: Vec<u32>,
    named: u32,
}

const NOT_NAMED: u32 = u32::MAX;

impl Order {
    /// The first ones of the log are named, in the same order; of all there are so many.
    fn start(&mut self, named: usize, all: usize) {
        self.places.clear();
        self.places.extend(0..named as u32);
        self.places.resize(all, NOT_NAMED);
        self.named = named as u32;
    }

    /// The place in the record, and whether it is named for the first time.
    #[inline]
    fn place_of(&mut self, place: usize) -> (u32, bool) {
        let known = &mut self.places[place];
        let is_new = *known == NOT_NAMED;
        if is_new {
            *known = self.named;
            self.named += 1;
        }
        (*known, is_new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{KNOWN, known};

    fn catalogue() -> Catalogue {
        Catalogue::new(&known()).unwrap()
    }

    fn record() -> Vec<u8> {
        let (mut texts, mut log, mut record) = (Texts::new(), Log::default(), Vec::new());
        let mut entry = Entry::new(1_000_000, 7, 5, Some(u64::MAX));
        entry.dimensions[1] = texts.number_of("caf\u{e9}".as_bytes());
        entry.set_own(0, Some(texts.number_of(b"no money").into()));
        for at_ms in [1_000_000, 999_999] {
            entry.at_ms = at_ms;
            entry.mark += 1;
            assert_eq!(log.place_for(&entry, &texts, &catalogue(), 2), Place::Free(0));
            log.insert(0, entry, &texts, &catalogue());
        }
        log.write_whole(&mut record, &texts, &catalogue());
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
        log.write_whole(&mut again, &texts, &catalogue());
        assert_eq!(again, record());
    }

    #[test]
    fn what_is_new_is_written_the_same_behind_the_record_as_in_a_whole_one() {
        for at_ms in [999_998, 999_999, 1_000_000, 1_000_001] {
            let (mut texts, mut log) = (Texts::new(), Log::default());
            let (mut added, mut whole) = (Vec::new(), Vec::new());
            log.open(&record(), &mut texts, &catalogue()).unwrap();
            for (mark, call) in [(8, 1), (9, u64::MAX), (10, 1)] {
                let mut entry = Entry::new(at_ms, 8, mark, Some(call));
                entry.dimensions[1] = texts.number_of("caf\u{e9}".as_bytes());
                entry.dimensions[2] = texts.number_of(b"leeds");
                let Place::Free(place) = log.place_for(&entry, &texts, &catalogue(), 9) else { panic!("it is new") };
                log.insert(place, entry, &texts, &catalogue());
            }
            log.write(&mut added, &texts, &catalogue());
            log.write_whole(&mut whole, &texts, &catalogue());
            assert_eq!(added, whole);
            assert_eq!(open(&added).unwrap().entries().len(), 5);
        }
    }

    #[test]
    fn an_entry_is_the_same_whatever_numbers_its_texts_have_in_the_batch() {
        let (mut texts, mut log) = (Texts::new(), Log::default());
        log.open(&record(), &mut texts, &catalogue()).unwrap();
        let mut entry = Entry::new(999_999, 7, 7, Some(u64::MAX));
        entry.set_own(0, Some(texts.number_of(b"no money").into()));
        entry.dimensions[1] = texts.number_of("caf\u{e9}".as_bytes());
        assert_eq!(log.place_for(&entry, &texts, &catalogue(), 9), Place::Taken);
        entry.dimensions[1] = texts.number_of(b"cafe");
        assert_eq!(log.place_for(&entry, &texts, &catalogue(), 9), Place::Free(0));
        entry.dimensions[1] = MISSING;
        assert_eq!(log.place_for(&entry, &texts, &catalogue(), 9), Place::Free(0));
        entry.dimensions[1] = texts.number_of(b"d");
        assert_eq!(log.place_for(&entry, &texts, &catalogue(), 9), Place::Free(1));
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
        assert!(!of(KNOWN.len() as u8, &[]), "rank");
        assert!(!of(OTHER_DIMENSIONS, &[0x20]), "a sixth dimension");
        assert!(of(OTHER_DIMENSIONS, &[1, 1, 1, b'a']));
        assert!(!of(OTHER_DIMENSIONS, &[1, 2, 1, b'a']), "the second text before the first");
        assert!(!of(OTHER_DIMENSIONS, &[1, 1, 1, 0xff]), "not UTF-8");
        assert!(!of(HAS_CALL, &[1, 0, 0, 0, 0, 0, 0, 0, 0]), "the second call before the first");
        assert!(!of(HAS_OWN | 1, &[1, 0]), "a field that the type does not have");
        assert!(of(HAS_OWN, &[1, 2]));
        assert!(!of(HAS_OWN, &[1, 0]), "a flag that is not set");
        assert!(!of(HAS_OWN | 7, &[2, 0]), "a second field where there is one");
        assert!(of(HAS_OWN | 2, &[1, 2]));
        assert!(!of(HAS_OWN | 2, &[1, 4]), "a third choice of two");
        assert!(open(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err(), "another format");
        assert!(open(&[FORMAT]).is_err(), "no entry");
    }
}
