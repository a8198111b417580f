//! What a batch adds, by minute; the sums of longer panes are made of it at the end.

use hashbrown::HashMap;

use crate::catalogue::{Column, MOST_ROLLUPS, Rollup};
use crate::facts::Origin;
use crate::log::Dimensions;
use crate::texts::{MISSING, NONE, Text};

/// The values of a rollup's dimensions; of one with one dimension, the second is MISSING.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group {
    pub rollup: u32,
    pub values: [Text; 2],
}

/// The cells of one moment and its dimensions: one in each rollup.
pub struct Place {
    cells: [u32; MOST_ROLLUPS],
    size: usize,
}

#[derive(Default)]
pub struct Counts {
    /// The dimensions of each rollup.
    rollups: Vec<Vec<usize>>,
    segment: usize,
    pub groups: Vec<Group>,
    group_index: HashMap<Group, u32>,
    /// Their starts, in Unix seconds.
    pub minutes: Vec<i64>,
    minute_index: HashMap<i64, u32>,
    last_minute: u32,
    pub cells: Cells,
}

impl Counts {
    /// None where nothing takes what is of the campaign and the source alone.
    pub fn new(rollups: &[Rollup]) -> Option<Self> {
        Some(Counts {
            rollups: rollups.iter().map(|rollup| rollup.dimensions.clone()).collect(),
            segment: rollups.iter().position(|rollup| rollup.dimensions == [0, 1])?,
            ..Counts::default()
        })
    }

    pub fn clear(&mut self) {
        self.groups.clear();
        self.group_index.clear();
        self.minutes.clear();
        self.minute_index.clear();
        self.cells.clear();
    }

    #[inline]
    pub fn place(&mut self, at_ms: i64, dimensions: &Dimensions) -> Place {
        let minute = self.minute(at_ms);
        let mut place = Place { cells: [0; MOST_ROLLUPS], size: self.rollups.len() };
        for rollup in 0..self.rollups.len() {
            place.cells[rollup] = self.cell(rollup, dimensions, minute);
        }
        place
    }

    /// What was counted in all, in the rollups that have rows of all time: their places, dimensions and columns.
    pub fn of_all_time(&self, rollups: &[Rollup]) -> impl Iterator<Item = (&Group, Cell)> {
        let mut totals: Vec<Cell> = self.groups.iter().map(|_| Cell::default()).collect();
        for (group, _, cell) in self.cells.iter() {
            for (column, n) in cell.changes() {
                totals[group as usize].add(column, n);
            }
        }
        let is_wanted = |group: &Group| rollups[group.rollup as usize].of_all_time;
        self.groups.iter().zip(totals).filter(move |(group, _)| is_wanted(group))
    }

    /// Of a lead, by its campaign and source alone.
    pub fn segment_place(&mut self, at_ms: i64, [campaign, source, location]: &Origin) -> Place {
        let minute = self.minute(at_ms);
        let dimensions = [*campaign, *source, *location, MISSING, MISSING];
        let mut place = Place { cells: [0; MOST_ROLLUPS], size: 1 };
        place.cells[0] = self.cell(self.segment, &dimensions, minute);
        place
    }

    #[inline]
    pub fn add(&mut self, place: &Place, column: Column, n: i64) {
        for &cell in &place.cells[..place.size] {
            self.cells.cells[cell as usize].add(column, n);
        }
    }

    #[inline]
    fn cell(&mut self, rollup: usize, dimensions: &Dimensions, minute: u32) -> u32 {
        let value = |dimension: usize| match dimensions[dimension] {
            MISSING => NONE,
            value => value,
        };
        let values = match self.rollups[rollup][..] {
            [one] => [value(one), MISSING],
            [one, other] => [value(one), value(other)],
            _ => unreachable!("`catalogue::rollups` refuses it"),
        };
        let group = Group { rollup: rollup as u32, values };
        let group = *self.group_index.entry(group).or_insert_with(|| {
            self.groups.push(group);
            self.groups.len() as u32 - 1
        });
        self.cells.at(group, minute)
    }

    #[inline]
    fn minute(&mut self, at_ms: i64) -> u32 {
        let start = at_ms.div_euclid(60_000) * 60;
        if self.minutes.get(self.last_minute as usize) != Some(&start) {
            self.last_minute = *self.minute_index.entry(start).or_insert_with(|| {
                self.minutes.push(start);
                self.minutes.len() as u32 - 1
            });
        }
        self.last_minute
    }
}

/// Cells by group and time: a minute where they are counted, a pane where they are summed up.
#[derive(Default)]
pub struct Cells {
    index: HashMap<u64, u32>,
    keys: Vec<u64>,
    /// Those beyond the keys are of former batches: their memory is used again.
    cells: Vec<Cell>,
}

/// The changes of a few columns, in their order.
#[derive(Default)]
pub struct Cell {
    sums: Vec<(Column, i64)>,
}

impl Cells {
    pub fn clear(&mut self) {
        self.index.clear();
        self.keys.clear();
    }

    /// Group, time and cell, in the order of their first change.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, &Cell)> {
        self.keys.iter().zip(&self.cells).map(|(key, cell)| ((key >> 32) as u32, *key as u32, cell))
    }

    pub fn add(&mut self, group: u32, time: u32, other: &Cell) {
        let place = self.at(group, time);
        let cell = &mut self.cells[place as usize];
        for (column, n) in other.changes() {
            cell.add(column, n);
        }
    }

    #[inline]
    fn at(&mut self, group: u32, time: u32) -> u32 {
        let key = u64::from(group) << 32 | u64::from(time);
        *self.index.entry(key).or_insert_with(|| {
            let place = self.keys.len();
            self.keys.push(key);
            match self.cells.get_mut(place) {
                Some(cell) => cell.clear(),
                None => self.cells.push(Cell::default()),
            }
            place as u32
        })
    }
}

impl Cell {
    fn clear(&mut self) {
        self.sums.clear();
    }

    #[inline]
    pub fn add(&mut self, column: Column, n: i64) {
        let place = self.sums.partition_point(|(known, _)| *known < column);
        match self.sums.get_mut(place) {
            Some((known, sum)) if *known == column => *sum = sum.wrapping_add(n),
            _ => self.sums.insert(place, (column, n)),
        }
    }

    /// In the order of the columns, those that changed.
    #[inline]
    pub fn changes(&self) -> impl Iterator<Item = (Column, i64)> {
        self.sums.iter().copied().filter(|(_, n)| *n != 0)
    }
}
