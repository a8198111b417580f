//! Records of a changelog, and the record batches that a broker sends them in.
//!
//! Only what is an ordinary batch beyond doubt is read here: whole, in the format of today, and packed as this
//! product's writers pack. All else is left to `agents.kafka.batches`, which also says what is wrong with it.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyList};
use zstd::bulk::Decompressor;

use crate::varint::{Bytes, Corrupt};

/// Of a record batch: where its records begin. The fields before are those of Kafka's format 2.
const HEAD: usize = 61;
/// Its checksum is of all behind it.
const CHECKED_FROM: usize = 21;
const CODEC: u8 = 0x07;
const NOT_PACKED: u8 = 0;
const ZSTD: u8 = 4;
/// What a batch may unpack to; as `agents.kafka.batches.PORTION_BYTES`.
const MOST_UNPACKED: usize = 2 << 20;

/// A key or a value: where it is; none, where its record has none.
type Part = Option<Range<u32>>;

struct Record {
    offset: i64,
    key: Part,
    value: Part,
}

#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    records: Vec<Record>,
}

/// Records of one partition, in the order of their offsets.
#[pyclass(frozen, module = "callfunnel.streams._core")]
pub struct Records {
    held: Arc<Held>,
    range: Range<usize>,
}

impl Records {
    /// Key and value of each.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Option<&[u8]>, Option<&[u8]>)> + ExactSizeIterator {
        self.here().iter().map(|record| (self.held.part(&record.key), self.held.part(&record.value)))
    }

    fn here(&self) -> &[Record] {
        &self.held.records[self.range.clone()]
    }

    fn some(&self, range: Range<usize>) -> Self {
        Records { held: self.held.clone(), range }
    }
}

impl From<Held> for Records {
    fn from(held: Held) -> Self {
        let range = 0..held.records.len();
        Records { held: held.into(), range }
    }
}

#[pymethods]
impl Records {
    /// What was read in another way.
    #[staticmethod]
    fn of(offsets: &Bound<'_, PyAny>, keys: &Bound<'_, PyAny>, values: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut held = Held::default();
        let mut parts = keys.try_iter()?.zip(values.try_iter()?);
        for offset in offsets.try_iter()? {
            let (key, value) = parts.next().ok_or_else(|| PyValueError::new_err("a record has no key or value"))?;
            let (key, value) = (key?, value?);
            let (key, value): (Option<&[u8]>, Option<&[u8]>) = (key.extract()?, value.extract()?);
            let record = Record { offset: offset?.extract()?, key: held.keep(key)?, value: held.keep(value)? };
            held.records.push(record);
        }
        Ok(held.into())
    }

    /// The records from `position` on in the batches that lie here in `data`, and of how many batches they are.
    ///
    /// It ends behind the batch with which there are so many records or bytes, and before the first batch that is
    /// not an ordinary one.
    #[staticmethod]
    fn read(
        py: Python<'_>,
        data: &Bound<'_, PyBytes>,
        batches: Vec<(usize, usize)>,
        position: i64,
        most_records: usize,
        most_bytes: usize,
    ) -> (Self, usize) {
        let data = data.as_bytes();
        py.detach(|| {
            let mut held = Held::default();
            let is_read = |&(start, end): &(usize, usize)| {
                let is_full = held.records.len() >= most_records || held.bytes.len() >= most_bytes;
                !is_full && data.get(start..end).is_some_and(|batch| held.read(batch, position).is_ok())
            };
            let count = batches.iter().map(is_read).take_while(|&is_read| is_read).count();
            (held.into(), count)
        })
    }

    fn __len__(&self) -> usize {
        self.range.len()
    }

    /// Key and value of each.
    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        let bytes = |part: Option<&[u8]>| part.map(|part| PyBytes::new(py, part));
        let pairs: Vec<_> = self.iter().map(|(key, value)| (bytes(key), bytes(value))).collect();
        PyList::new(py, pairs)?.try_iter()
    }

    /// Those from this offset on.
    fn since(&self, offset: i64) -> Self {
        let before = self.here().partition_point(|record| record.offset < offset);
        self.some(self.range.start + before..self.range.end)
    }

    /// The first so many, and the others.
    fn split(&self, count: usize) -> (Self, Self) {
        let at = self.range.end.min(self.range.start + count);
        (self.some(self.range.start..at), self.some(at..self.range.end))
    }

    /// How many there are up to the last one with this key.
    fn up_to(&self, key: &[u8]) -> usize {
        self.iter().rposition(|(its, _)| its == Some(key)).map_or(0, |at| at + 1)
    }

    /// The newest value of this key.
    fn newest<'py>(&self, py: Python<'py>, key: &[u8]) -> Option<Bound<'py, PyBytes>> {
        let (_, value) = self.iter().rfind(|(its, _)| *its == Some(key))?;
        value.map(|value| PyBytes::new(py, value))
    }

    /// Whether a key begins with this byte, other than this one.
    fn has_key_with(&self, first: u8, besides: &[u8]) -> bool {
        self.iter().any(|(key, _)| key.is_some_and(|key| key.first() == Some(&first) && key != besides))
    }
}

thread_local! {
    /// To make one takes longer than to unpack a small batch.
    static UNPACKER: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>, Corrupt> {
    UNPACKER.with_borrow_mut(|held| {
        let unpacker = match held {
            Some(unpacker) => unpacker,
            none => none.insert(Decompressor::new().map_err(|_| Corrupt)?),
        };
        unpacker.decompress(packed, MOST_UNPACKED).map_err(|_| Corrupt)
    })
}

impl Held {
    fn part(&self, part: &Part) -> Option<&[u8]> {
        part.as_ref().map(|part| &self.bytes[part.start as usize..part.end as usize])
    }

    fn keep(&mut self, part: Option<&[u8]>) -> Result<Part, Corrupt> {
        let Some(part) = part else { return Ok(None) };
        let start = self.bytes.len();
        let end = u32::try_from(start + part.len()).map_err(|_| Corrupt)?;
        self.bytes.extend_from_slice(part);
        Ok(Some(start as u32..end))
    }

    /// Nothing is kept of a batch that is not an ordinary one.
    fn read(&mut self, batch: &[u8], position: i64) -> Result<(), Corrupt> {
        let before = (self.records.len(), self.bytes.len());
        let read = self.read_batch(batch, position);
        if read.is_err() {
            self.records.truncate(before.0);
            self.bytes.truncate(before.1);
        }
        read
    }

    fn read_batch(&mut self, batch: &[u8], position: i64) -> Result<(), Corrupt> {
        let (head, packed) = batch.split_at_checked(HEAD).ok_or(Corrupt)?;
        let checksum = u32::from_be_bytes(field(head, 17));
        if head[16] != 2 || crc32c::crc32c(&batch[CHECKED_FROM..]) != checksum {
            return Err(Corrupt);
        }
        let (base, last, count) = (
            i64::from_be_bytes(field(head, 0)),
            i64::from(i32::from_be_bytes(field(head, 23))),
            i32::from_be_bytes(field(head, 57)),
        );
        match head[22] & CODEC {
            NOT_PACKED if packed.len() <= MOST_UNPACKED => self.read_records(packed, base, last, count, position),
            ZSTD => self.read_records(&unpack(packed)?, base, last, count, position),
            _ => Err(Corrupt),
        }
    }

    fn read_records(&mut self, data: &[u8], base: i64, last: i64, count: i32, position: i64) -> Result<(), Corrupt> {
        let (mut all, mut next) = (Bytes(data), 0);
        for _ in 0..count {
            let size = size(&mut all)?.ok_or(Corrupt)?;
            let mut record = Bytes(all.take(size)?);
            record.byte()?; // attributes: none is in use
            record.zigzag()?; // its time
            let delta = record.zigzag()?;
            if !(next..=last).contains(&delta) {
                return Err(Corrupt);
            }
            next = delta + 1;
            let (key, value) = (part(&mut record)?, part(&mut record)?);
            for _ in 0..record.zigzag()? {
                part(&mut record)?.ok_or(Corrupt)?;
                part(&mut record)?;
            }
            if !record.is_empty() {
                return Err(Corrupt);
            }
            let offset = base + delta;
            if offset >= position {
                let (key, value) = (self.keep(key)?, self.keep(value)?);
                self.records.push(Record { offset, key, value });
            }
        }
        if all.is_empty() { Ok(()) } else { Err(Corrupt) }
    }
}

fn field<const SIZE: usize>(head: &[u8], at: usize) -> [u8; SIZE] {
    head[at..at + SIZE].try_into().expect("the head is longer")
}

/// None for -1.
fn size(from: &mut Bytes<'_>) -> Result<Option<usize>, Corrupt> {
    match from.zigzag()? {
        -1 => Ok(None),
        size => usize::try_from(size).map(Some).map_err(|_| Corrupt),
    }
}

fn part<'a>(from: &mut Bytes<'a>) -> Result<Option<&'a [u8]>, Corrupt> {
    size(from)?.map(|size| from.take(size)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::varint::put_zigzag;

    /// By how much its offset is more than the first, key and value.
    type Given = (i64, Option<&'static [u8]>, Option<&'static [u8]>);

    fn batch(records: &[Given], packs: bool) -> Vec<u8> {
        let mut data = Vec::new();
        for (delta, key, value) in records {
            let mut record = vec![0, 0];
            put_zigzag(&mut record, *delta);
            for part in [key, value] {
                put_zigzag(&mut record, part.map_or(-1, |part| part.len() as i64));
                record.extend_from_slice(part.unwrap_or_default());
            }
            record.push(0);
            put_zigzag(&mut data, record.len() as i64);
            data.extend(record);
        }
        if packs {
            data = zstd::bulk::compress(&data, 3).unwrap();
        }
        let mut all = vec![0; HEAD];
        all[..8].copy_from_slice(&100i64.to_be_bytes());
        all[16] = 2;
        all[22] = if packs { ZSTD } else { NOT_PACKED };
        all[23..27].copy_from_slice(&9i32.to_be_bytes());
        all[57..].copy_from_slice(&(records.len() as i32).to_be_bytes());
        all.extend(data);
        let checksum = crc32c::crc32c(&all[CHECKED_FROM..]);
        all[17..21].copy_from_slice(&checksum.to_be_bytes());
        all
    }

    const SOME: [Given; 3] = [(0, Some(b"a"), Some(b"1")), (4, None, Some(b"")), (9, Some(b"b"), None)];

    #[test]
    fn records_are_those_of_the_batch_from_the_position_on() {
        for packs in [false, true] {
            let mut held = Held::default();
            assert_eq!(held.read(&batch(&SOME, packs), 104), Ok(()));
            let records = Records::from(held);
            let found: Vec<_> = records.iter().collect();
            assert_eq!(found, [(None, Some(&b""[..])), (Some(&b"b"[..]), None)]);
            assert_eq!(records.here()[1].offset, 109);
        }
    }

    #[test]
    fn what_is_not_an_ordinary_batch_leaves_nothing() {
        let good = batch(&SOME, false);
        let mut held = Held::default();
        for end in 0..good.len() {
            assert_eq!(held.read(&good[..end], 0), Err(Corrupt));
        }
        for at in 16..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert_eq!(held.read(&bad, 0), Err(Corrupt), "byte {at}");
        }
        assert_eq!(held.read(&batch(&[SOME[1], SOME[0]], false), 0), Err(Corrupt));
        assert!(held.records.is_empty() && held.bytes.is_empty());
    }
}
