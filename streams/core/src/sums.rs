//! The rows of all partitions as a view holds them, and what they add up to over spans of panes.
//!
//! A span is kept as rows come: it costs the rows that change, and where it moves, those of the panes that it
//! leaves and enters.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PySet, PyString, PyTuple};

use crate::msgpack::{Malformed, Reader};

/// Of base rows: no change of the fold makes them anew.
const BASE: i64 = -1;

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

/// Partition, generation, the size of the dimensions and of the name; the name, which is dimensions and fold;
/// the columns. One piece of memory for each row.
type Row = Box<[u8]>;
const HEAD: usize = 4 + 8 + 2 + 2;

fn row_of(partition: i32, key: &Key, columns: &[u8]) -> Option<Row> {
    let (dimensions, name) = (key.dimensions.len(), key.dimensions.len() + key.fold.len());
    let mut row = Vec::with_capacity(HEAD + name + columns.len());
    row.extend_from_slice(&partition.to_le_bytes());
    row.extend_from_slice(&key.generation.to_le_bytes());
    row.extend_from_slice(&u16::try_from(dimensions).ok()?.to_le_bytes());
    row.extend_from_slice(&u16::try_from(name).ok()?.to_le_bytes());
    row.extend_from_slice(key.dimensions);
    row.extend_from_slice(key.fold);
    row.extend_from_slice(columns);
    Some(row.into())
}

fn size_at(row: &[u8], at: usize) -> usize {
    u16::from_le_bytes([row[at], row[at + 1]]).into()
}

/// All but the columns.
fn identity(row: &[u8]) -> &[u8] {
    &row[..HEAD + size_at(row, HEAD - 2)]
}

fn columns(row: &[u8]) -> &[u8] {
    &row[HEAD + size_at(row, HEAD - 2)..]
}

fn dimensions(row: &[u8]) -> &[u8] {
    &row[HEAD..HEAD + size_at(row, HEAD - 4)]
}

fn partition(row: &[u8]) -> i32 {
    i32::from_le_bytes([row[0], row[1], row[2], row[3]])
}

fn generation(row: &[u8]) -> i64 {
    i64::from_le_bytes(row[4..12].try_into().expect("eight bytes"))
}

/// The panes whose starts are in a range, and what their rows add up to.
struct Span {
    table: Table,
    start: i64,
    end: i64,
    totals: HashTable<Total>,
    /// As Python was given them the last time.
    given: Py<PyDict>,
}

struct Total {
    dimensions: Box<[u8]>,
    values: Py<PyTuple>,
    columns: Columns,
    has_changed: bool,
}

impl Span {
    fn holds(&self, table: Table, pane: i64) -> bool {
        self.table == table && (self.start..self.end).contains(&pane)
    }
}

#[pyclass(module = "callfunnel.streams._core")]
pub struct Sums {
    /// By the id of a rollup, how many dimensions it has.
    rollups: HashMap<i64, usize>,
    /// By the id of a column.
    names: HashMap<i64, Py<PyString>>,
    tables: HashMap<Table, BTreeMap<i64, HashTable<Row>>>,
    /// By partition, the generation of the rows that are summed.
    shown: HashMap<i32, i64>,
    spans: HashMap<String, Span>,
    hasher: DefaultHashBuilder,
    count: usize,
}

#[pymethods]
impl Sums {
    #[new]
    fn new(rollups: HashMap<i64, usize>, names: HashMap<i64, Py<PyString>>) -> Self {
        Sums {
            rollups,
            names,
            tables: HashMap::new(),
            shown: HashMap::new(),
            spans: HashMap::new(),
            hasher: DefaultHashBuilder::default(),
            count: 0,
        }
    }

    fn __len__(&self) -> usize {
        self.count
    }

    /// Takes the newest value of each row; None deletes it.
    fn apply(&mut self, py: Python<'_>, partition: i32, changes: &Bound<'_, PyDict>) -> PyResult<()> {
        for (key, value) in changes {
            let key_bytes: &[u8] = key.extract()?;
            let value: Option<&[u8]> = value.extract()?;
            let applied = self.apply_one(py, partition, key_bytes, value);
            applied.map_err(|Malformed| PyValueError::new_err(("not a row of the tables", key.clone().unbind())))?;
        }
        Ok(())
    }

    /// From here on, the rows of this generation are those of the partition that are summed.
    fn show(&mut self, py: Python<'_>, number: i32, shown: i64) -> PyResult<()> {
        let before = self.shown.insert(number, shown).unwrap_or(0);
        if before == shown {
            return Ok(());
        }
        for (table, panes) in &mut self.tables {
            for (pane, rows) in panes {
                let mut of_spans: Vec<&mut Span> =
                    self.spans.values_mut().filter(|span| span.holds(*table, *pane)).collect();
                let hasher = &self.hasher;
                let mut failed = None;
                rows.retain(|row| {
                    if partition(row) != number || generation(row) == BASE {
                        return true;
                    }
                    let n = i64::from(generation(row) == shown) - i64::from(generation(row) == before);
                    for span in &mut of_spans {
                        if n != 0 && failed.is_none() {
                            failed = span.add(py, hasher, dimensions(row), &changed(row, n)).err();
                        }
                    }
                    self.count -= usize::from(generation(row) == before);
                    generation(row) != before
                });
                if let Some(failed) = failed {
                    return Err(failed);
                }
            }
        }
        Ok(())
    }

    /// The sums of the rows whose panes begin in the range, by the values of their dimensions.
    ///
    /// A span is known by its name, and its range may move.
    fn total(&mut self, py: Python<'_>, name: &str, table: Table, start: i64, end: i64) -> PyResult<Py<PyDict>> {
        let names = &self.names;
        let hasher = self.hasher.clone();
        let span = span(&mut self.spans, &self.tables, &self.shown, &hasher, py, name, table, start, end)?;
        let given = span.given.bind(py).copy()?;
        let mut failed = Ok(());
        span.totals.retain(|total| {
            if !total.has_changed || failed.is_err() {
                return true;
            }
            total.has_changed = false;
            failed = if total.columns.is_empty() {
                if given.contains(&total.values).unwrap_or(false) { given.del_item(&total.values) } else { Ok(()) }
            } else {
                named(py, &total.columns, names).and_then(|columns| given.set_item(&total.values, columns))
            };
            !total.columns.is_empty()
        });
        failed?;
        span.given = given.clone().unbind();
        Ok(given.unbind())
    }

    /// The values of the dimensions of the rows whose panes begin in the range.
    fn seen(&mut self, py: Python<'_>, name: &str, table: Table, start: i64, end: i64) -> PyResult<Py<PySet>> {
        let hasher = self.hasher.clone();
        let span = span(&mut self.spans, &self.tables, &self.shown, &hasher, py, name, table, start, end)?;
        span.totals.retain(|total| !total.columns.is_empty());
        let seen = PySet::empty(py)?;
        for total in &span.totals {
            seen.add(&total.values)?;
        }
        Ok(seen.unbind())
    }

    /// By the values of the dimensions, the first pane with something in the column; of those that are wanted.
    fn first(&self, py: Python<'_>, table: Table, column: i64, wanted: &Bound<'_, PySet>) -> PyResult<Py<PyDict>> {
        let found = PyDict::new(py);
        let wanted: Vec<Bound<'_, PyAny>> = wanted.try_iter()?.collect::<PyResult<_>>()?;
        let mut missing = HashMap::new();
        for values in wanted {
            let mut bytes = Vec::new();
            for value in values.cast::<PyTuple>()? {
                crate::msgpack::put_text(&mut bytes, value.cast::<PyString>()?.to_str()?.as_bytes());
            }
            missing.insert(bytes, values);
        }
        for (pane, rows) in self.tables.get(&table).into_iter().flatten() {
            if missing.is_empty() {
                break;
            }
            for row in rows.iter().filter(|row| self.is_shown(row)) {
                let has_it = missing.contains_key(dimensions(row))
                    && changed(row, 1).iter().any(|&(id, n)| id == column && n != 0);
                if let Some(values) = has_it.then(|| missing.remove(dimensions(row))).flatten() {
                    found.set_item(values, pane)?;
                }
            }
        }
        Ok(found.unbind())
    }
}

impl Sums {
    fn is_shown(&self, row: &[u8]) -> bool {
        is_shown(&self.shown, row)
    }

    fn apply_one(&mut self, py: Python<'_>, partition: i32, key: &[u8], value: Option<&[u8]>) -> Result<(), Malformed> {
        let key = self.taken_apart(key)?;
        let more = match value {
            Some(value) => read(value)?,
            None => Columns::new(),
        };
        let row = row_of(partition, &key, value.unwrap_or_default()).ok_or(Malformed)?;
        let is_it = |held: &Row| identity(held) == identity(&row);
        let hasher = &self.hasher;
        let rows = self.tables.entry(key.table).or_default().entry(key.pane).or_default();
        let hash_of = |row: &Row| hasher.hash_one(identity(row));
        let less = match (rows.entry(hash_of(&row), is_it, hash_of), value) {
            (Entry::Occupied(mut held), Some(_)) => {
                let less = changed(held.get(), -1);
                *held.get_mut() = row;
                less
            }
            (Entry::Occupied(held), None) => {
                self.count -= 1;
                changed(&held.remove().0, -1)
            }
            (Entry::Vacant(place), Some(_)) => {
                self.count += 1;
                place.insert(row);
                Columns::new()
            }
            (Entry::Vacant(_), None) => Columns::new(),
        };
        let is_empty = rows.is_empty();
        if key.generation == BASE || key.generation == self.shown.get(&partition).copied().unwrap_or(0) {
            let difference = added(less, more);
            for span in self.spans.values_mut().filter(|span| span.holds(key.table, key.pane)) {
                span.add(py, hasher, key.dimensions, &difference).map_err(|_| Malformed)?;
            }
        }
        if is_empty && let Some(panes) = self.tables.get_mut(&key.table) {
            panes.remove(&key.pane);
        }
        Ok(())
    }

    fn taken_apart<'a>(&self, key: &'a [u8]) -> Result<Key<'a>, Malformed> {
        let mut from = Reader::new(key);
        let size = from.array()?;
        let generation = from.integer()?;
        let rollup = from.integer()?;
        let count = *self.rollups.get(&rollup).ok_or(Malformed)?;
        let (mut resolution, mut pane, mut fold) = (BASE, 0, &[][..]);
        if generation == BASE {
            let rest = from.rest();
            from.text()?;
            fold = &rest[..rest.len() - from.rest().len()];
        } else {
            (resolution, pane) = (from.integer()?, from.integer()?);
        }
        let dimensions = from.rest();
        for _ in 0..count {
            from.text()?;
        }
        from.end()?;
        let is_whole = size == count + if generation == BASE { 3 } else { 4 };
        if is_whole {
            Ok(Key { generation, table: (rollup, resolution), pane, dimensions, fold })
        } else {
            Err(Malformed)
        }
    }
}

fn is_shown(shown: &HashMap<i32, i64>, row: &[u8]) -> bool {
    generation(row) == BASE || generation(row) == shown.get(&partition(row)).copied().unwrap_or(0)
}

/// The span of this name, where it is by now.
#[expect(clippy::too_many_arguments, reason = "parts of `Sums` that are borrowed apart")]
fn span<'a>(
    spans: &'a mut HashMap<String, Span>,
    tables: &HashMap<Table, BTreeMap<i64, HashTable<Row>>>,
    shown: &HashMap<i32, i64>,
    hasher: &DefaultHashBuilder,
    py: Python<'_>,
    name: &str,
    table: Table,
    start: i64,
    end: i64,
) -> PyResult<&'a mut Span> {
    if !spans.contains_key(name) {
        let given = PyDict::new(py).unbind();
        spans.insert(name.into(), Span { table, start, end: start, totals: HashTable::new(), given });
    }
    let span = spans.get_mut(name).expect("it was just made");
    if span.table != table {
        return Err(PyValueError::new_err("a span stays with its rollup and resolution"));
    }
    let (was, is) = (span.start..span.end, start..end.max(start));
    if let Some(panes) = tables.get(&table) {
        let moves = [
            (was.start..was.end.min(is.start), -1),
            (was.start.max(is.end)..was.end, -1),
            (is.start..is.end.min(was.start), 1),
            (is.start.max(was.end)..is.end, 1),
        ];
        for (range, n) in moves.into_iter().filter(|(range, _)| !range.is_empty()) {
            for row in panes.range(range).flat_map(|(_, rows)| rows).filter(|row| is_shown(shown, row)) {
                span.add(py, hasher, dimensions(row), &changed(row, n))?;
            }
        }
    }
    (span.start, span.end) = (is.start, is.end);
    Ok(span)
}

impl Span {
    fn add(
        &mut self,
        py: Python<'_>,
        hasher: &DefaultHashBuilder,
        dimensions: &[u8],
        difference: &[(i64, i64)],
    ) -> PyResult<()> {
        if difference.is_empty() {
            return Ok(());
        }
        let is_it = |total: &Total| &total.dimensions[..] == dimensions;
        let hash_of = |total: &Total| hasher.hash_one(&total.dimensions[..]);
        let total = match self.totals.entry(hasher.hash_one(dimensions), is_it, hash_of) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(place) => {
                let values = values(py, dimensions)?;
                let dimensions = dimensions.into();
                place.insert(Total { dimensions, values, columns: Columns::new(), has_changed: false }).into_mut()
            }
        };
        for &(id, n) in difference {
            let place = total.columns.partition_point(|&(known, _)| known < id);
            match total.columns.get_mut(place) {
                Some((known, sum)) if *known == id => *sum = sum.wrapping_add(n),
                _ => total.columns.insert(place, (id, n)),
            }
        }
        total.columns.retain(|&(_, n)| n != 0);
        total.has_changed = true;
        Ok(())
    }
}

/// The columns of a value, in ascending order.
fn read(value: &[u8]) -> Result<Columns, Malformed> {
    let mut from = Reader::new(value);
    let size = from.map()?;
    let mut columns = Columns::with_capacity(size);
    for _ in 0..size {
        columns.push((from.integer()?, from.integer()?));
    }
    from.end()?;
    if columns.is_sorted_by(|(one, _), (other, _)| one < other) { Ok(columns) } else { Err(Malformed) }
}

/// What a row that is held adds, so many times.
fn changed(row: &[u8], n: i64) -> Columns {
    let mut columns = read(columns(row)).expect("it was read before it was held");
    columns.iter_mut().for_each(|(_, sum)| *sum = sum.wrapping_mul(n));
    columns
}

fn added(one: Columns, other: Columns) -> Columns {
    let mut sums = one;
    for (id, n) in other {
        match sums.binary_search_by_key(&id, |&(known, _)| known) {
            Ok(place) => sums[place].1 = sums[place].1.wrapping_add(n),
            Err(place) => sums.insert(place, (id, n)),
        }
    }
    sums.retain(|&(_, n)| n != 0);
    sums
}

fn values(py: Python<'_>, dimensions: &[u8]) -> PyResult<Py<PyTuple>> {
    let mut from = Reader::new(dimensions);
    let mut values = Vec::new();
    while from.end().is_err() {
        values.push(from.text()?);
    }
    Ok(PyTuple::new(py, values)?.unbind())
}

fn named<'py>(
    py: Python<'py>,
    columns: &[(i64, i64)],
    names: &HashMap<i64, Py<PyString>>,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (id, n) in columns {
        dict.set_item(names.get(id).ok_or(Malformed)?, n)?;
    }
    Ok(dict)
}
