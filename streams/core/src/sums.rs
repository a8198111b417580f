//! The rows of all partitions as a view holds them, and what they add up to over spans of panes.
//!
//! A span is kept as rows come: it costs the rows that change, and where it moves, those of the panes that it
//! leaves and enters.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::hint::black_box;
use std::ops::Range;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PySet, PyString, PyTuple};

use crate::msgpack::{Malformed, Reader};

/// Of base rows: no change of the fold makes them anew.
const BASE: i64 = -1;

/// The most dimensions that a rollup may have.
const MOST: usize = 3;

/// So many changes of columns are pending at most.
const AT_ONCE: usize = 8_192;

/// So many rows are looked up before the first of them is changed.
const LOOKED_UP: usize = 16;

/// The ids of a rollup and of a resolution; base rows have a resolution of their own.
type Table = (i64, i64);
type Columns = Vec<(i64, i64)>;

/// A row's key, taken apart.
struct Key<'a> {
    generation: i64,
    table: Table,
    pane: i64,
    /// The values of its dimensions in msgpack.
    dimensions: &'a [u8],
    /// Of base rows, the fold in msgpack.
    fold: &'a [u8],
}

/// Partition, generation, the number of the dimension values, the size of the fold; the fold; the columns. One
/// piece of memory for each row.
type Row = Box<[u8]>;
const HEAD: usize = 4 + 8 + 4 + 2;

/// All of a row but the columns.
fn put_identity(to: &mut Vec<u8>, partition: i32, generation: i64, place: u32, fold: &[u8]) -> Result<(), Malformed> {
    to.clear();
    to.extend_from_slice(&partition.to_le_bytes());
    to.extend_from_slice(&generation.to_le_bytes());
    to.extend_from_slice(&place.to_le_bytes());
    to.extend_from_slice(&u16::try_from(fold.len()).map_err(|_| Malformed)?.to_le_bytes());
    to.extend_from_slice(fold);
    Ok(())
}

fn identity_size(row: &[u8]) -> usize {
    HEAD + usize::from(u16::from_le_bytes([row[HEAD - 2], row[HEAD - 1]]))
}

fn identity(row: &[u8]) -> &[u8] {
    &row[..identity_size(row)]
}

fn columns(row: &[u8]) -> &[u8] {
    &row[identity_size(row)..]
}

fn partition(row: &[u8]) -> i32 {
    i32::from_le_bytes(row[..4].try_into().expect("four bytes"))
}

fn generation(row: &[u8]) -> i64 {
    i64::from_le_bytes(row[4..12].try_into().expect("eight bytes"))
}

fn place(row: &[u8]) -> u32 {
    u32::from_le_bytes(row[12..16].try_into().expect("four bytes"))
}

/// By depth, the numbers of the first so many dimension values of a row.
type Path = [u32; MOST + 1];

/// The dimension values of a rollup's rows, numbered by depth: the first 0, 1, … of them, and all. They are kept
/// when their last row goes; there are hardly more than the days have that are kept.
struct Rollup {
    levels: Vec<Level>,
    paths: Vec<Path>,
}

#[derive(Default)]
struct Level {
    index: HashTable<u32>,
    places: Vec<Place>,
}

struct Place {
    dimensions: Box<[u8]>,
    values: Py<PyTuple>,
}

impl Rollup {
    fn depth(&self) -> usize {
        self.levels.len() - 1
    }

    fn find(&self, dimensions: &[u8], hash: u64) -> Option<u32> {
        let level = &self.levels[self.depth()];
        level.index.find(hash, |&number| *level.places[number as usize].dimensions == *dimensions).copied()
    }

    fn path(&self, place: u32) -> &Path {
        &self.paths[place as usize]
    }

    fn number(&mut self, py: Python<'_>, dimensions: &[u8], hasher: &DefaultHashBuilder) -> Result<u32, Malformed> {
        if let Some(known) = self.find(dimensions, hasher.hash_one(dimensions)) {
            return Ok(known);
        }
        let (mut path, mut from) = (Path::default(), Reader::new(dimensions));
        let whole = self.depth();
        for (depth, (level, number)) in self.levels.iter_mut().zip(&mut path).enumerate() {
            if depth > 0 {
                from.text()?;
            }
            if depth == whole {
                from.end()?;
            }
            let prefix = &dimensions[..dimensions.len() - from.rest().len()];
            *number = level.number(py, prefix, hasher)?;
        }
        self.paths.push(path);
        Ok(path[self.depth()])
    }
}

impl Level {
    fn number(&mut self, py: Python<'_>, dimensions: &[u8], hasher: &DefaultHashBuilder) -> Result<u32, Malformed> {
        let places = &mut self.places;
        let is_it = |&number: &u32| *places[number as usize].dimensions == *dimensions;
        let hash_of = |&number: &u32| hasher.hash_one(&*places[number as usize].dimensions);
        match self.index.entry(hasher.hash_one(dimensions), is_it, hash_of) {
            Entry::Occupied(known) => Ok(*known.get()),
            Entry::Vacant(free) => {
                let number = u32::try_from(places.len()).map_err(|_| Malformed)?;
                let values = values(py, dimensions).map_err(|_| Malformed)?;
                free.insert(number);
                places.push(Place { dimensions: dimensions.into(), values });
                Ok(number)
            }
        }
    }
}

/// The rows of a rollup and a resolution, and what is kept of them.
#[derive(Default)]
struct Held {
    panes: BTreeMap<i64, HashTable<Row>>,
    spans: Vec<Span>,
    firsts: Vec<First>,
    /// Of rows that changed, what the spans do not hold yet.
    pending: Vec<Pending>,
}

struct Pending {
    pane: i64,
    place: u32,
    /// In `Scratch::differences`.
    range: Range<usize>,
}

/// By the number of the dimension values, in which panes how many rows have something in a column.
struct First {
    column: i64,
    panes: HashMap<u32, BTreeMap<i64, usize>>,
}

/// The panes whose starts are in a range, and what their rows add up to.
struct Span {
    name: String,
    start: i64,
    end: i64,
    /// Columns and the figures that they are parts of; none where all columns are kept as they are.
    parts: Option<Vec<(i64, i64)>>,
    /// By depth.
    levels: Vec<Totals>,
    /// The dimension values that have rows, unless they have changed since they were asked for.
    seen: Option<Py<PySet>>,
}

/// By the number of dimension values, a sum for each column or figure: in one piece of memory, because a row that
/// changes is added to many of them, and each is somewhere else.
struct Totals {
    width: usize,
    sums: Vec<i64>,
    /// How many of its sums are not 0.
    filled: Vec<u16>,
    /// A bit for each column that has changed since Python was given it; the last one is for those beyond it, too.
    has_changed: Vec<u64>,
    /// Those of which something has changed.
    changed: Vec<u32>,
    given: Py<PyDict>,
}

impl Span {
    fn add(&mut self, path: &Path, difference: &[(i64, i64)]) {
        let figures: Columns;
        let difference = match &self.parts {
            None => difference,
            Some(parts) => {
                let mut sums = Columns::new();
                for (column, n) in difference {
                    if let Some(&(_, figure)) = parts.iter().find(|(part, _)| part == column) {
                        add(&mut sums, &[(figure, *n)]);
                    }
                }
                figures = sums;
                &figures[..]
            }
        };
        if difference.is_empty() {
            return;
        }
        for (totals, &number) in self.levels.iter_mut().zip(path) {
            let was_filled = totals.is_filled(number);
            totals.add(number, difference);
            if totals.is_filled(number) != was_filled {
                self.seen = None;
            }
        }
    }
}

impl Totals {
    fn new(py: Python<'_>) -> Self {
        let (sums, filled, has_changed, changed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Totals { width: 0, sums, filled, has_changed, changed, given: PyDict::new(py).unbind() }
    }

    /// Makes room for a column: rows of few columns are not to take the memory of all.
    fn widen(&mut self, width: usize) {
        let mut sums = vec![0; self.filled.len() * width];
        if self.width > 0 {
            for (wide, narrow) in sums.chunks_exact_mut(width).zip(self.sums.chunks_exact(self.width)) {
                wide[..self.width].copy_from_slice(narrow);
            }
        }
        (self.sums, self.width) = (sums, width);
    }

    fn is_filled(&self, number: u32) -> bool {
        self.filled.get(number as usize).is_some_and(|&count| count > 0)
    }

    fn add(&mut self, number: u32, difference: &[(i64, i64)]) {
        let (place, last) = (number as usize, difference[difference.len() - 1].0 as usize);
        if last >= self.width {
            self.widen(last + 1);
        }
        if self.filled.len() <= place {
            self.sums.resize((place + 1) * self.width, 0);
            self.filled.resize(place + 1, 0);
            self.has_changed.resize(place + 1, 0);
        }
        let sums = &mut self.sums[place * self.width..][..self.width];
        for &(column, n) in difference {
            let sum = &mut sums[column as usize];
            let was_filled = *sum != 0;
            *sum = sum.wrapping_add(n);
            self.filled[place] = self.filled[place] + u16::from(*sum != 0) - u16::from(was_filled);
            if self.has_changed[place] == 0 {
                self.changed.push(number);
            }
            self.has_changed[place] |= bit(column as usize);
        }
    }

    /// What Python gets: what it was given before where nothing has changed, else a new dict.
    fn give<'py>(
        &mut self,
        py: Python<'py>,
        places: &[Place],
        value_of: impl Fn(&[i64], u64, Option<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyDict>> {
        if !self.changed.is_empty() {
            let given = self.given.bind(py).copy()?;
            for &number in &self.changed {
                let values = &places[number as usize].values;
                if self.is_filled(number) {
                    let sums = &self.sums[number as usize * self.width..][..self.width];
                    let value = value_of(sums, self.has_changed[number as usize], given.get_item(values)?)?;
                    given.set_item(values, value)?;
                } else if given.contains(values)? {
                    given.del_item(values)?;
                }
            }
            for number in self.changed.drain(..) {
                self.has_changed[number as usize] = 0;
            }
            self.given = given.unbind();
        }
        Ok(self.given.clone_ref(py))
    }
}

#[pyclass(module = "callfunnel.streams._core")]
pub struct Sums {
    /// By their ids.
    rollups: HashMap<i64, Rollup>,
    /// By the id of a column.
    names: Vec<Option<Py<PyString>>>,
    tables: HashMap<Table, Held>,
    /// By partition, the generation of the rows that are summed.
    shown: HashMap<i32, i64>,
    hasher: DefaultHashBuilder,
    count: usize,
    scratch: Scratch,
}

/// Memory that is used again and again.
#[derive(Default)]
struct Scratch {
    identity: Vec<u8>,
    columns: Columns,
    difference: Columns,
    /// Of all rows that are pending.
    differences: Columns,
}

#[pymethods]
impl Sums {
    #[new]
    fn new(rollups: BTreeMap<i64, usize>, names: BTreeMap<i64, Py<PyString>>) -> PyResult<Self> {
        if rollups.values().any(|&dimensions| dimensions > MOST) {
            return Err(PyValueError::new_err("a rollup has too many dimensions"));
        }
        let levels = |dimensions| (0..=dimensions).map(|_| Level::default()).collect();
        let mut by_id = Vec::new();
        for (id, name) in names {
            let id = usize::try_from(id)?;
            by_id.resize_with(id, || None);
            by_id.push(Some(name));
        }
        Ok(Sums {
            rollups: rollups
                .into_iter()
                .map(|(id, dimensions)| (id, Rollup { levels: levels(dimensions), paths: Vec::new() }))
                .collect(),
            names: by_id,
            tables: HashMap::new(),
            shown: HashMap::new(),
            hasher: DefaultHashBuilder::default(),
            count: 0,
            scratch: Scratch::default(),
        })
    }

    fn __len__(&self) -> usize {
        self.count
    }

    /// Takes the newest value of each row; None deletes it.
    fn apply(&mut self, py: Python<'_>, partition: i32, changes: &Bound<'_, PyDict>) -> PyResult<()> {
        let mut applied = Ok(());
        let changes: Vec<_> = changes.iter().collect();
        'all: for some in changes.chunks(LOOKED_UP) {
            for (key, _) in some {
                self.look_up(partition, key.extract().unwrap_or_default());
            }
            for (key, value) in some {
                applied = self.apply_given(py, partition, key, value);
                if applied.is_err() {
                    break 'all;
                }
            }
            if self.scratch.differences.len() > AT_ONCE {
                self.sum_up();
            }
        }
        self.sum_up();
        applied
    }

    /// From here on, the rows of this generation are those of the partition that are summed.
    fn show(&mut self, number: i32, shown: i64) {
        let before = self.shown.insert(number, shown).unwrap_or(0);
        if before == shown {
            return;
        }
        let mut columns_of_row = Columns::new();
        for (table, held) in &mut self.tables {
            let rollup = &self.rollups[&table.0];
            let Held { panes, spans, firsts, .. } = held;
            for (&pane, rows) in panes {
                rows.retain(|row| {
                    if partition(row) != number || generation(row) == BASE {
                        return true;
                    }
                    let n = i64::from(generation(row) == shown) - i64::from(generation(row) == before);
                    if n != 0 {
                        read_held(row, &mut columns_of_row);
                        for first in firsts.iter_mut() {
                            first.count(place(row), pane, &columns_of_row, n > 0);
                        }
                        columns_of_row.iter_mut().for_each(|(_, sum)| *sum = sum.wrapping_mul(n));
                        for span in spans.iter_mut().filter(|span| (span.start..span.end).contains(&pane)) {
                            span.add(rollup.path(place(row)), &columns_of_row);
                        }
                    }
                    self.count -= usize::from(generation(row) == before);
                    generation(row) != before
                });
            }
        }
    }

    /// The sums of the rows whose panes begin in the range, by the first so many values of their dimensions.
    ///
    /// A span is known by its name, and its range may move.
    fn total(
        &mut self,
        py: Python<'_>,
        name: &str,
        table: Table,
        start: i64,
        end: i64,
        depth: usize,
    ) -> PyResult<Py<PyDict>> {
        let names = &self.names;
        let span = span(&mut self.tables, &self.rollups, &self.shown, py, name, table, start..end, None)?;
        let (totals, places) = at_depth(span, &self.rollups, table, depth)?;
        totals.give(py, places, |sums, changed, before| Ok(named(py, sums, names, changed, before)?.into_any()))
    }

    /// As `total`, but of each row figures, each the sum of a few columns. A row whose figures are all 0 is left out.
    #[expect(clippy::too_many_arguments, reason = "one call for each span")]
    fn figures(
        &mut self,
        py: Python<'_>,
        name: &str,
        table: Table,
        start: i64,
        end: i64,
        figures: Vec<Vec<i64>>,
        depth: usize,
    ) -> PyResult<Py<PyDict>> {
        let (count, parts) = (figures.len(), Some(&figures[..]));
        let span = span(&mut self.tables, &self.rollups, &self.shown, py, name, table, start..end, parts)?;
        let (totals, places) = at_depth(span, &self.rollups, table, depth)?;
        totals.give(py, places, |sums, _, _| {
            let mut figures = vec![0; count];
            figures[..sums.len()].copy_from_slice(sums);
            Ok(PyTuple::new(py, figures)?.into_any())
        })
    }

    /// The values of the dimensions of the rows whose panes begin in the range.
    fn seen(&mut self, py: Python<'_>, name: &str, table: Table, start: i64, end: i64) -> PyResult<Py<PySet>> {
        let span = span(&mut self.tables, &self.rollups, &self.shown, py, name, table, start..end, None)?;
        let places = places(&self.rollups, table)?;
        if let Some(seen) = &span.seen {
            return Ok(seen.clone_ref(py));
        }
        let seen = PySet::empty(py)?;
        let filled = &span.levels[span.levels.len() - 1].filled;
        for (_, place) in filled.iter().zip(places).filter(|&(&count, _)| count > 0) {
            seen.add(&place.values)?;
        }
        Ok(span.seen.insert(seen.unbind()).clone_ref(py))
    }

    /// By the values of the dimensions, the first pane with something in the column; of those that are wanted.
    fn first(&mut self, py: Python<'_>, table: Table, column: i64, wanted: &Bound<'_, PySet>) -> PyResult<Py<PyDict>> {
        let found = PyDict::new(py);
        let (Some(held), Some(rollup)) = (self.tables.get_mut(&table), self.rollups.get(&table.0)) else {
            return Ok(found.unbind());
        };
        let first = held.first(column, &self.shown);
        let mut dimensions = Vec::new();
        for values in wanted {
            dimensions.clear();
            for value in values.cast::<PyTuple>()? {
                crate::msgpack::put_text(&mut dimensions, value.cast::<PyString>()?.to_str()?.as_bytes());
            }
            let place = rollup.find(&dimensions, self.hasher.hash_one(&dimensions[..]));
            if let Some((pane, _)) = place.and_then(|place| first.panes.get(&place)?.first_key_value()) {
                found.set_item(values, pane)?;
            }
        }
        Ok(found.unbind())
    }
}

impl Sums {
    fn apply_given(
        &mut self,
        py: Python<'_>,
        partition: i32,
        key: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let value: Option<&[u8]> = value.extract()?;
        let applied = self.apply_one(py, partition, key.extract()?, value);
        applied.map_err(|Malformed| PyValueError::new_err(("not a row of the tables", key.clone().unbind())))
    }

    /// Has a row in the processor's cache before it is changed: it then waits for several at a time.
    fn look_up(&mut self, partition: i32, key: &[u8]) -> Option<()> {
        let key = self.taken_apart(key).ok()?;
        let name = &mut self.scratch.identity;
        let place = self.rollups.get(&key.table.0)?.find(key.dimensions, self.hasher.hash_one(key.dimensions))?;
        put_identity(name, partition, key.generation, place, key.fold).ok()?;
        let rows = self.tables.get(&key.table)?.panes.get(&key.pane)?;
        black_box(rows.find(self.hasher.hash_one(&name[..]), |held| identity(held) == &name[..]));
        Some(())
    }

    /// Adds what is pending, span by span: the processor then waits for many places in memory at a time.
    fn sum_up(&mut self) {
        for (table, held) in &mut self.tables {
            if held.pending.is_empty() {
                continue;
            }
            let rollup = &self.rollups[&table.0];
            for span in &mut held.spans {
                for Pending { pane, place, range } in &held.pending {
                    if (span.start..span.end).contains(pane) {
                        span.add(rollup.path(*place), &self.scratch.differences[range.clone()]);
                    }
                }
            }
            held.pending.clear();
        }
        self.scratch.differences.clear();
    }

    fn apply_one(&mut self, py: Python<'_>, partition: i32, key: &[u8], value: Option<&[u8]>) -> Result<(), Malformed> {
        let key = self.taken_apart(key)?;
        let Scratch { identity: name, columns: more, difference, differences } = &mut self.scratch;
        more.clear();
        if let Some(value) = value {
            read(value, more)?;
        }
        let known = 0..self.names.len() as i64;
        if more.first().is_some_and(|(id, _)| !known.contains(id))
            || more.last().is_some_and(|(id, _)| !known.contains(id))
        {
            return Err(Malformed);
        }
        let hasher = &self.hasher;
        let rollup = self.rollups.get_mut(&key.table.0).ok_or(Malformed)?;
        let place = rollup.number(py, key.dimensions, hasher)?;
        put_identity(name, partition, key.generation, place, key.fold)?;
        let Held { panes, firsts, pending, .. } = self.tables.entry(key.table).or_default();
        let rows = panes.entry(key.pane).or_default();
        let is_it = |held: &Row| identity(held) == &name[..];
        let hash_of = |row: &Row| hasher.hash_one(identity(row));
        difference.clear();
        match (rows.entry(hasher.hash_one(&name[..]), is_it, hash_of), value) {
            (Entry::Occupied(mut held), Some(value)) => {
                let row = held.get_mut();
                read_held(row, difference);
                if columns(row).len() == value.len() {
                    row[name.len()..].copy_from_slice(value);
                } else {
                    *row = [name, value].concat().into();
                }
            }
            (Entry::Occupied(held), None) => {
                self.count -= 1;
                read_held(&held.remove().0, difference);
            }
            (Entry::Vacant(free), Some(value)) => {
                self.count += 1;
                free.insert([name, value].concat().into());
            }
            (Entry::Vacant(_), None) => {}
        }
        if rows.is_empty() {
            panes.remove(&key.pane);
        }
        if key.generation == BASE || key.generation == self.shown.get(&partition).copied().unwrap_or(0) {
            for first in firsts {
                first.count(place, key.pane, difference, false);
                first.count(place, key.pane, more, true);
            }
            let start = differences.len();
            put_difference(differences, difference, more);
            if differences.len() > start {
                pending.push(Pending { pane: key.pane, place, range: start..differences.len() });
            }
        }
        Ok(())
    }

    fn taken_apart<'a>(&self, key: &'a [u8]) -> Result<Key<'a>, Malformed> {
        let mut from = Reader::new(key);
        let size = from.array()?;
        let generation = from.integer()?;
        let rollup = from.integer()?;
        let count = self.rollups.get(&rollup).ok_or(Malformed)?.depth();
        let (mut resolution, mut pane, mut fold) = (BASE, 0, &[][..]);
        if generation == BASE {
            let rest = from.rest();
            from.text()?;
            fold = &rest[..rest.len() - from.rest().len()];
        } else {
            (resolution, pane) = (from.integer()?, from.integer()?);
        }
        let is_whole = size == count + if generation == BASE { 3 } else { 4 };
        if is_whole {
            Ok(Key { generation, table: (rollup, resolution), pane, dimensions: from.rest(), fold })
        } else {
            Err(Malformed)
        }
    }
}

impl Held {
    /// What is kept of a column from now on.
    fn first(&mut self, column: i64, shown: &HashMap<i32, i64>) -> &First {
        let known = self.firsts.iter().position(|first| first.column == column);
        let number = known.unwrap_or_else(|| {
            let (mut first, mut columns) = (First { column, panes: HashMap::new() }, Columns::new());
            for (&pane, rows) in &self.panes {
                for row in rows.iter().filter(|row| is_shown(shown, row)) {
                    read_held(row, &mut columns);
                    first.count(place(row), pane, &columns, true);
                }
            }
            self.firsts.push(first);
            self.firsts.len() - 1
        });
        &self.firsts[number]
    }
}

impl First {
    /// A row comes or goes.
    fn count(&mut self, place: u32, pane: i64, columns: &[(i64, i64)], comes: bool) {
        if !columns.iter().any(|&(id, n)| id == self.column && n != 0) {
            return;
        }
        if comes {
            *self.panes.entry(place).or_default().entry(pane).or_default() += 1;
        } else if let Some(panes) = self.panes.get_mut(&place) {
            let rows = panes.entry(pane).or_default();
            *rows = rows.saturating_sub(1);
            if *rows == 0 {
                panes.remove(&pane);
            }
            if panes.is_empty() {
                self.panes.remove(&place);
            }
        }
    }
}

fn is_shown(shown: &HashMap<i32, i64>, row: &[u8]) -> bool {
    generation(row) == BASE || generation(row) == shown.get(&partition(row)).copied().unwrap_or(0)
}

/// The span of this name, where it is by now.
#[expect(clippy::too_many_arguments, reason = "parts of `Sums` that are borrowed apart")]
fn span<'a>(
    tables: &'a mut HashMap<Table, Held>,
    rollups: &HashMap<i64, Rollup>,
    shown: &HashMap<i32, i64>,
    py: Python<'_>,
    name: &str,
    table: Table,
    range: Range<i64>,
    figures: Option<&[Vec<i64>]>,
) -> PyResult<&'a mut Span> {
    let rollup = rollups.get(&table.0).ok_or_else(|| PyValueError::new_err("no such rollup"))?;
    let Held { panes, spans, .. } = tables.entry(table).or_default();
    let known = spans.iter().position(|span| span.name == name);
    let number = known.unwrap_or_else(|| {
        let parts = figures.map(|figures| {
            (0..).zip(figures).flat_map(|(figure, columns)| columns.iter().map(move |&id| (id, figure))).collect()
        });
        let levels = rollup.levels.iter().map(|_| Totals::new(py));
        let (start, end) = (range.start, range.start);
        spans.push(Span { name: name.into(), start, end, parts, levels: levels.collect(), seen: None });
        spans.len() - 1
    });
    let span = &mut spans[number];
    if span.parts.is_some() != figures.is_some() {
        return Err(PyValueError::new_err("a span goes on to be asked for the same"));
    }
    let (was, is) = (span.start..span.end, range.start..range.end.max(range.start));
    let moves = [
        (was.start..was.end.min(is.start), -1),
        (was.start.max(is.end)..was.end, -1),
        (is.start..is.end.min(was.start), 1),
        (is.start.max(was.end)..is.end, 1),
    ];
    let mut columns = Columns::new();
    for (range, n) in moves.into_iter().filter(|(range, _)| !range.is_empty()) {
        for row in panes.range(range).flat_map(|(_, rows)| rows).filter(|row| is_shown(shown, row)) {
            read_held(row, &mut columns);
            columns.iter_mut().for_each(|(_, sum)| *sum = sum.wrapping_mul(n));
            span.add(rollup.path(place(row)), &columns);
        }
    }
    (span.start, span.end) = (is.start, is.end);
    Ok(span)
}

fn at_depth<'a>(
    span: &'a mut Span,
    rollups: &'a HashMap<i64, Rollup>,
    table: Table,
    depth: usize,
) -> PyResult<(&'a mut Totals, &'a [Place])> {
    let level = rollups.get(&table.0).and_then(|rollup| rollup.levels.get(depth));
    match (span.levels.get_mut(depth), level) {
        (Some(totals), Some(level)) => Ok((totals, &level.places)),
        _ => Err(PyValueError::new_err("the rollup has fewer dimensions")),
    }
}

fn places(rollups: &HashMap<i64, Rollup>, table: Table) -> PyResult<&[Place]> {
    let rollup = rollups.get(&table.0).ok_or_else(|| PyValueError::new_err("no such rollup"))?;
    Ok(&rollup.levels[rollup.depth()].places)
}

/// The columns of a value, in ascending order.
fn read(value: &[u8], columns: &mut Columns) -> Result<(), Malformed> {
    let mut from = Reader::new(value);
    let size = from.map()?;
    columns.clear();
    for _ in 0..size {
        columns.push((from.integer()?, from.integer()?));
    }
    from.end()?;
    if columns.is_sorted_by(|(one, _), (other, _)| one < other) { Ok(()) } else { Err(Malformed) }
}

fn read_held(row: &[u8], into: &mut Columns) {
    read(columns(row), into).expect("it was read before it was held");
}

/// What a row adds more than before, where that is not 0.
fn put_difference(to: &mut Columns, before: &[(i64, i64)], after: &[(i64, i64)]) {
    let mut before = before.iter().copied().peekable();
    for &(id, n) in after {
        while let Some((gone, n)) = before.next_if(|&(known, _)| known < id) {
            to.push((gone, n.wrapping_neg()));
        }
        let was = before.next_if(|&(known, _)| known == id).map_or(0, |(_, n)| n);
        if n != was {
            to.push((id, n.wrapping_sub(was)));
        }
    }
    to.extend(before.map(|(id, n)| (id, n.wrapping_neg())));
}

/// Columns that become 0 are left out.
fn add(sums: &mut Columns, more: &[(i64, i64)]) {
    let mut has_zero = false;
    for &(id, n) in more {
        let place = sums.partition_point(|&(known, _)| known < id);
        match sums.get_mut(place) {
            Some((known, sum)) if *known == id => {
                *sum = sum.wrapping_add(n);
                has_zero |= *sum == 0;
            }
            _ if n != 0 => sums.insert(place, (id, n)),
            _ => {}
        }
    }
    if has_zero {
        sums.retain(|&(_, n)| n != 0);
    }
}

fn values(py: Python<'_>, dimensions: &[u8]) -> PyResult<Py<PyTuple>> {
    let mut from = Reader::new(dimensions);
    let mut values = Vec::new();
    while from.end().is_err() {
        values.push(from.text()?);
    }
    Ok(PyTuple::new(py, values)?.unbind())
}

/// Sums by the names of their columns: those of before, with what has changed.
fn named<'py>(
    py: Python<'py>,
    sums: &[i64],
    names: &[Option<Py<PyString>>],
    changed: u64,
    before: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let was_given = before.is_some();
    let (dict, changed) = match before {
        Some(before) => (before.cast::<PyDict>()?.copy()?, changed),
        None => (PyDict::new(py), u64::MAX),
    };
    for (column, (name, &n)) in names.iter().zip(sums).enumerate() {
        if changed & bit(column) == 0 {
            continue;
        }
        if n != 0 {
            dict.set_item(name.as_ref().ok_or(Malformed)?, n)?;
        } else if let Some(name) = name.as_ref().filter(|_| was_given)
            && dict.contains(name)?
        {
            dict.del_item(name)?;
        }
    }
    Ok(dict)
}

/// The bit of a column in `Totals::has_changed`.
fn bit(column: usize) -> u64 {
    1 << column.min(63)
}
