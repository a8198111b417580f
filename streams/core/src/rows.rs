//! The rows, held as the bytes of their values, by resolution and pane.

use std::collections::BTreeMap;
use std::collections::btree_map::OccupiedEntry;
use std::hash::BuildHasher;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

use crate::catalogue::{Columns, Length, MINUTES, Resolution, Rollup};
use crate::counts::Cell;
use crate::msgpack::{Malformed, Reader, put_array, put_integer, put_map_head, put_text};

/// A row's name within its pane, with its hash: the place of its rollup, then its dimensions in msgpack.
pub struct Name {
    pub bytes: Box<[u8]>,
    hash: u64,
}

/// The size of the name, the name, the value: one piece of memory for each row.
type Row = Box<[u8]>;
type Pane = HashTable<Row>;

/// Records for the changelog: keys and values, None to delete. All in one piece of memory: there are many.
#[derive(Default)]
pub struct Changes {
    bytes: Vec<u8>,
    /// Where each key ends, and where its value does.
    ends: Vec<(usize, Option<usize>)>,
}

impl Changes {
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let mut start = 0;
        self.ends.iter().map(move |&(key_end, value_end)| {
            let key = &self.bytes[start..key_end];
            start = value_end.unwrap_or(key_end);
            (key, value_end.map(|end| &self.bytes[key_end..end]))
        })
    }

    fn push(&mut self, value: Option<&[u8]>, put_key: impl FnOnce(&mut Vec<u8>)) {
        put_key(&mut self.bytes);
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(value.unwrap_or_default());
        self.ends.push((key_end, value.map(|_| self.bytes.len())));
    }
}

pub struct Rows {
    generation: i64,
    rollups: Vec<Rollup>,
    resolutions: Vec<Resolution>,
    /// By resolution and rollup.
    panes: Vec<Vec<BTreeMap<i64, Pane>>>,
    hasher: DefaultHashBuilder,
    sum: Vec<u8>,
}

/// Of a resolution, by rollup.
pub enum Kept {
    /// Panes that start after this one.
    After(Vec<i64>),
    OfAllTime(Vec<bool>),
}

impl Kept {
    pub fn holds(&self, rollup: usize, pane: i64) -> bool {
        match self {
            Kept::After(gone) => pane > gone[rollup],
            Kept::OfAllTime(has_rows) => has_rows[rollup],
        }
    }
}

/// The rows of a pane that has expired.
pub struct Expired {
    pub rollup: usize,
    pub pane: i64,
    rows: Vec<Row>,
}

impl Expired {
    /// Names and values, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.rows.iter().map(|row| parts(row))
    }
}

pub enum NotRestored {
    Malformed,
    OtherGeneration,
}

impl From<Malformed> for NotRestored {
    fn from(_: Malformed) -> Self {
        NotRestored::Malformed
    }
}

impl Rows {
    pub fn new(generation: i64, rollups: Vec<Rollup>, resolutions: Vec<Resolution>) -> Self {
        let of_resolution = || rollups.iter().map(|_| BTreeMap::new()).collect();
        let panes = resolutions.iter().map(|_| of_resolution()).collect();
        Rows { generation, rollups, resolutions, panes, hasher: DefaultHashBuilder::default(), sum: Vec::new() }
    }

    pub fn rollups(&self) -> &[Rollup] {
        &self.rollups
    }

    pub fn resolutions(&self) -> &[Resolution] {
        &self.resolutions
    }

    pub fn name<'a>(&self, rollup: usize, dimensions: impl Iterator<Item = &'a [u8]>) -> Name {
        let mut bytes = vec![rollup as u8];
        for dimension in dimensions {
            put_text(&mut bytes, dimension);
        }
        self.named(&bytes)
    }

    /// Of the bytes of a name.
    pub fn named(&self, bytes: &[u8]) -> Name {
        Name { bytes: bytes.into(), hash: self.hasher.hash_one(bytes) }
    }

    pub fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), NotRestored> {
        let mut from = Reader::new(key);
        let size = from.array()?;
        if from.integer()? != self.generation {
            return Err(NotRestored::OtherGeneration);
        }
        let id = from.integer()?;
        let rollup = self.rollups.iter().position(|rollup| rollup.id == id).ok_or(Malformed)?;
        let id = from.integer()?;
        let resolution = self.resolutions.iter().position(|resolution| resolution.id == id).ok_or(Malformed)?;
        let pane = from.integer()?;
        let count = self.rollups[rollup].dimensions.len();
        if size != 4 + count {
            return Err(NotRestored::Malformed);
        }
        let dimensions: Vec<&str> = (0..count).map(|_| from.text()).collect::<Result<_, _>>()?;
        from.end()?;
        check_value(value)?;
        let name = self.name(rollup, dimensions.iter().map(|dimension| dimension.as_bytes()));
        let row = row_of(&name.bytes, value);
        match find(self.panes[resolution][rollup].entry(pane).or_default(), &name, &self.hasher) {
            Entry::Occupied(mut held) => *held.get_mut() = row,
            Entry::Vacant(place) => _ = place.insert(row),
        }
        Ok(())
    }

    pub fn count(&self) -> usize {
        self.panes.iter().flatten().flat_map(BTreeMap::values).map(HashTable::len).sum()
    }

    pub fn all(&self) -> impl Iterator<Item = (Vec<u8>, &[u8])> {
        self.panes.iter().enumerate().flat_map(move |(resolution, panes)| {
            panes.iter().flatten().flat_map(move |(&pane, rows)| {
                rows.iter().map(move |row| {
                    let (name, value) = parts(row);
                    let mut key = Vec::with_capacity(16 + name.len());
                    self.put_key(&mut key, resolution, pane, name);
                    (key, value)
                })
            })
        })
    }

    /// Adds a batch's changes of one row.
    pub fn add(
        &mut self,
        resolution: usize,
        pane: i64,
        name: &Name,
        cell: &Cell,
        columns: &Columns,
        changes: &mut Changes,
    ) -> Result<(), Malformed> {
        if cell.changes().next().is_none() {
            return Ok(());
        }
        let (sum, rollup) = (&mut self.sum, usize::from(name.bytes[0]));
        match find(self.panes[resolution][rollup].entry(pane).or_default(), name, &self.hasher) {
            Entry::Occupied(mut held) => {
                add_to_value(parts(held.get()).1, cell, columns, sum)?;
                if sum.is_empty() {
                    held.remove();
                } else {
                    *held.get_mut() = row_of(&name.bytes, sum);
                }
            }
            Entry::Vacant(place) => {
                add_to_value(NO_COLUMNS, cell, columns, sum)?;
                place.insert(row_of(&name.bytes, sum));
            }
        }
        let value = Some(&self.sum[..]).filter(|sum| !sum.is_empty());
        changes.push(value, |to| self.put_key(to, resolution, pane, &name.bytes));
        Ok(())
    }

    /// By resolution, which panes are kept.
    pub fn kept(&self, watermark_ms: i64) -> Vec<Kept> {
        let kept = |resolution: &Resolution| match resolution.length {
            Length::AllTime => Kept::OfAllTime(self.rollups.iter().map(|rollup| rollup.of_all_time).collect()),
            _ => Kept::After(self.rollups.iter().map(|rollup| resolution.gone(rollup, watermark_ms)).collect()),
        };
        self.resolutions.iter().map(kept).collect()
    }

    /// Deletes the rows of panes that have expired; those of minutes, whose sums go on.
    pub fn expire(&mut self, watermark_ms: i64, changes: &mut Changes) -> Vec<Expired> {
        let mut minutes = Vec::new();
        for resolution in 0..self.resolutions.len() {
            for rollup in 0..self.rollups.len() {
                let gone = self.resolutions[resolution].gone(&self.rollups[rollup], watermark_ms);
                let is_gone = |first: &OccupiedEntry<'_, _, _>| *first.key() <= gone;
                while let Some(first) = self.panes[resolution][rollup].first_entry().filter(is_gone) {
                    let (pane, rows) = first.remove_entry();
                    let mut rows: Vec<Row> = rows.into_iter().collect();
                    rows.sort_unstable_by(|one, other| parts(one).0.cmp(parts(other).0));
                    for row in &rows {
                        changes.push(None, |to| self.put_key(to, resolution, pane, parts(row).0));
                    }
                    if resolution == MINUTES {
                        minutes.push(Expired { rollup, pane, rows });
                    }
                }
            }
        }
        minutes
    }

    fn put_key(&self, to: &mut Vec<u8>, resolution: usize, pane: i64, name: &[u8]) {
        let (place, dimensions) = name.split_first().expect("a name begins with its rollup");
        let rollup = &self.rollups[usize::from(*place)];
        put_array(to, 4 + rollup.dimensions.len());
        for n in [self.generation, rollup.id, self.resolutions[resolution].id, pane] {
            put_integer(to, n);
        }
        to.extend_from_slice(dimensions);
    }
}

fn find<'a>(pane: &'a mut Pane, name: &Name, hasher: &DefaultHashBuilder) -> Entry<'a, Row> {
    pane.entry(name.hash, |row| parts(row).0 == &name.bytes[..], |row| hasher.hash_one(parts(row).0))
}

fn row_of(name: &[u8], value: &[u8]) -> Row {
    let mut row = Vec::with_capacity(4 + name.len() + value.len());
    row.extend_from_slice(&(name.len() as u32).to_le_bytes());
    row.extend_from_slice(name);
    row.extend_from_slice(value);
    row.into()
}

fn parts(row: &[u8]) -> (&[u8], &[u8]) {
    let (size, rest) = row.split_first_chunk().expect("`row_of` made it");
    rest.split_at(u32::from_le_bytes(*size) as usize)
}

const NO_COLUMNS: &[u8] = &[0x80];

impl Cell {
    /// Adds the columns of a row.
    pub fn add_value(&mut self, value: &[u8], columns: &Columns) -> Result<(), Malformed> {
        let mut from = Reader::new(value);
        for _ in 0..from.map()? {
            let (id, n) = (from.integer()?, from.integer()?);
            self.add(columns.place(id).ok_or(Malformed)?, n);
        }
        from.end()
    }
}

/// Columns in ascending order, none of them 0, at least one.
fn check_value(value: &[u8]) -> Result<(), Malformed> {
    let mut from = Reader::new(value);
    let mut last = -1;
    let size = from.map()?;
    for _ in 0..size {
        let id = from.integer()?;
        if id <= last || from.integer()? == 0 {
            return Err(Malformed);
        }
        last = id;
    }
    if size == 0 { Err(Malformed) } else { from.end() }
}

/// The value of a row after a batch; empty where no column is left.
fn add_to_value(value: &[u8], cell: &Cell, columns: &Columns, sum: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut from = Reader::new(value);
    let mut left = from.map()?;
    let mut changes = cell.changes().map(|(column, n)| (columns.id(column), n)).peekable();
    let mut held = None;
    let mut count = 0;
    sum.clear();
    sum.push(0); // the head of a small map, which most are
    loop {
        if held.is_none() && left > 0 {
            held = Some((from.integer()?, from.integer()?));
            left -= 1;
        }
        let (id, n) = match (held, changes.peek().copied()) {
            (None, None) => break,
            (Some(pair), None) => {
                held = None;
                pair
            }
            (Some(pair), Some((changed, _))) if pair.0 < changed => {
                held = None;
                pair
            }
            (Some((id, n)), Some((changed, more))) if id == changed => {
                held = None;
                changes.next();
                (id, n.wrapping_add(more))
            }
            (_, Some(change)) => {
                changes.next();
                change
            }
        };
        if n != 0 {
            put_integer(sum, id);
            put_integer(sum, n);
            count += 1;
        }
    }
    if count == 0 {
        sum.clear();
    } else {
        put_map_head(sum, count);
    }
    Ok(())
}
