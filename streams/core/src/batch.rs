//! Record batches as a broker sends them.
//!
//! Only what is an ordinary batch beyond doubt is read here: whole, in the format of today, and packed as this
//! product's writers pack. All else is left to `agents.kafka.batches`, which also says what is wrong with it.

use std::cell::RefCell;
use std::ops::Range;

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
pub type Part = Option<Range<u32>>;

pub struct Record {
    pub offset: i64,
    pub key: Part,
    pub value: Part,
}

/// Records, and the bytes that their keys and values are in.
#[derive(Default)]
pub struct Held {
    pub bytes: Vec<u8>,
    pub records: Vec<Record>,
}

thread_local! {
    /// To make one takes longer than to unpack a small batch.
    static UNPACKER: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Into memory that is used again and again.
pub fn unpack(packed: &[u8], to: &mut Vec<u8>) -> Result<(), Corrupt> {
    to.clear();
    to.reserve(MOST_UNPACKED);
    UNPACKER.with_borrow_mut(|held| {
        let unpacker = match held {
            Some(unpacker) => unpacker,
            none => none.insert(Decompressor::new().map_err(|_| Corrupt)?),
        };
        unpacker.decompress_to_buffer(packed, to).map(|_| ()).map_err(|_| Corrupt)
    })
}

impl Held {
    pub fn part(&self, part: &Part) -> Option<&[u8]> {
        part.as_ref().map(|part| &self.bytes[part.start as usize..part.end as usize])
    }

    pub fn keep(&mut self, part: Option<&[u8]>) -> Result<Part, Corrupt> {
        let Some(part) = part else { return Ok(None) };
        let start = self.bytes.len();
        let end = u32::try_from(start + part.len()).map_err(|_| Corrupt)?;
        self.bytes.extend_from_slice(part);
        Ok(Some(start as u32..end))
    }

    /// Nothing is kept of a batch that is not an ordinary one.
    pub fn read(&mut self, batch: &[u8], position: i64, scratch: &mut Vec<u8>) -> Result<(), Corrupt> {
        let before = (self.records.len(), self.bytes.len());
        let read = self.read_batch(batch, position, scratch);
        if read.is_err() {
            self.records.truncate(before.0);
            self.bytes.truncate(before.1);
        }
        read
    }

    fn read_batch(&mut self, batch: &[u8], position: i64, scratch: &mut Vec<u8>) -> Result<(), Corrupt> {
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
            ZSTD => {
                unpack(packed, scratch)?;
                self.read_records(scratch, base, last, count, position)
            }
            _ => Err(Corrupt),
        }
    }

    pub fn read_records(
        &mut self,
        data: &[u8],
        base: i64,
        last: i64,
        count: i32,
        position: i64,
    ) -> Result<(), Corrupt> {
        let (mut all, mut next) = (Bytes(data), 0);
        for _ in 0..count {
            let length = size(&mut all)?.ok_or(Corrupt)?;
            let mut record = Bytes(all.take(length)?);
            record.byte()?; // attributes: none is in use
            record.zigzag()?; // its time
            let delta = record.zigzag()?;
            if !(next..=last).contains(&delta) {
                return Err(Corrupt);
            }
            next = delta + 1;
            let (key, value) = (part(&mut record)?, part(&mut record)?);
            for _ in 0..size(&mut record)?.ok_or(Corrupt)? {
                part(&mut record)?.ok_or(Corrupt)?;
                part(&mut record)?;
            }
            if !record.is_empty() {
                return Err(Corrupt);
            }
            let offset = base.checked_add(delta).ok_or(Corrupt)?;
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
            assert_eq!(held.read(&batch(&SOME, packs), 104, &mut Vec::new()), Ok(()));
            let of_one = |record: &Record| (held.part(&record.key), held.part(&record.value));
            let found: Vec<_> = held.records.iter().map(of_one).collect();
            assert_eq!(found, [(None, Some(&b""[..])), (Some(&b"b"[..]), None)]);
            assert_eq!(held.records[1].offset, 109);
        }
    }

    #[test]
    fn a_negative_number_of_headers_is_none() {
        let record = [14, 0, 0, 0, 2, b'k', 1, 1];
        assert_eq!(Held::default().read_records(&record, 0, 0, 1, 0), Err(Corrupt));
    }

    #[test]
    fn what_is_not_an_ordinary_batch_leaves_nothing() {
        let good = batch(&SOME, false);
        let mut held = Held::default();
        for end in 0..good.len() {
            assert_eq!(held.read(&good[..end], 0, &mut Vec::new()), Err(Corrupt));
        }
        for at in 16..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert_eq!(held.read(&bad, 0, &mut Vec::new()), Err(Corrupt), "byte {at}");
        }
        assert_eq!(held.read(&batch(&[SOME[1], SOME[0]], false), 0, &mut Vec::new()), Err(Corrupt));
        assert!(held.records.is_empty() && held.bytes.is_empty());
    }
}
