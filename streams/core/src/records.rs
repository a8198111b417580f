//! Records of a changelog as Python has them.

use std::ops::Range;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyList};

use crate::batch::{Held, Record};

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
            let (mut held, mut scratch) = (Held::default(), Vec::new());
            let is_read = |&(start, end): &(usize, usize)| {
                let is_full = held.records.len() >= most_records || held.bytes.len() >= most_bytes;
                !is_full && data.get(start..end).is_some_and(|batch| held.read(batch, position, &mut scratch).is_ok())
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
