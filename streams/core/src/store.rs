//! The newest values of a changelog, by their keys: the records of leads by their ids, and rows until a fold takes
//! them over.

use std::hash::BuildHasher;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};
use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::records::Records;

/// The size of the key, the key, the value: one piece of memory for each, because there are millions of them.
type Held = Box<[u8]>;

#[pyclass(module = "callfunnel.streams._core")]
#[derive(Default)]
pub struct Store {
    held: HashTable<Held>,
    hasher: DefaultHashBuilder,
}

impl Store {
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Where a key is, until keys come or go.
    #[inline]
    pub fn place_of(&self, key: &[u8]) -> Option<usize> {
        self.held.find_bucket_index(self.hasher.hash_one(key), |held| parts(held).0 == key)
    }

    /// The key at a place has another value from now on.
    pub fn replace(&mut self, place: usize, key: &[u8], value: &[u8]) {
        let held = self.held.get_bucket_mut(place).expect("`place_of` gave the place");
        debug_assert_eq!(parts(held).0, key);
        *held = joined(key, value).expect("it is held");
    }

    /// False where the key is longer than any.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> bool {
        let Some(one) = joined(key, value) else { return false };
        let hasher = &self.hasher;
        let is_it = |held: &Held| parts(held).0 == key;
        match self.held.entry(hasher.hash_one(key), is_it, |held| hasher.hash_one(parts(held).0)) {
            Entry::Occupied(mut held) => *held.get_mut() = one,
            Entry::Vacant(place) => _ = place.insert(one),
        }
        true
    }

    /// Keys are at places below this one.
    pub fn places(&self) -> usize {
        self.held.num_buckets()
    }

    /// Key and value at a place, where there are any. Places change when keys come.
    pub fn at(&self, place: usize) -> Option<(&[u8], &[u8])> {
        self.held.get_bucket(place).map(|held| parts(held))
    }

    pub fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.held.find(self.hasher.hash_one(key), |held| parts(held).0 == key).map(|held| parts(held).1)
    }

    pub fn remove(&mut self, key: &[u8]) {
        if let Ok(held) = self.held.find_entry(self.hasher.hash_one(key), |held| parts(held).0 == key) {
            held.remove();
        }
    }

    /// Takes up to so many out, each as `parts` reads it.
    pub fn drain(&mut self, most: usize) -> impl Iterator<Item = Box<[u8]>> {
        self.held.extract_if(|_| true).take(most)
    }

    pub fn all(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.held.iter().map(|held| parts(held))
    }
}

/// What Python asks of a dict, as far as it is asked here.
#[pymethods]
impl Store {
    #[new]
    fn new() -> Self {
        Store::default()
    }

    /// Takes the newest value of each key; None deletes it. Records without a key are passed over.
    fn put(&mut self, records: &Records) -> PyResult<()> {
        for (key, value) in records.iter() {
            let Some(key) = key else { continue };
            match value {
                Some(value) if !self.set(key, value) => return Err(PyValueError::new_err("a key is too long")),
                Some(_) => {}
                None => self.remove(key),
            }
        }
        Ok(())
    }

    fn __len__(&self) -> usize {
        self.len()
    }

    fn __contains__(&self, key: &[u8]) -> bool {
        self.place_of(key).is_some()
    }

    fn __iter__(held: Bound<'_, Self>) -> Keys {
        Keys { held: held.unbind(), place: 0 }
    }

    fn get<'py>(&self, py: Python<'py>, key: &[u8]) -> Option<Bound<'py, PyBytes>> {
        self.value(key).map(|value| PyBytes::new(py, value))
    }

    fn pop<'py>(&mut self, py: Python<'py>, key: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let value = self.get(py, key).ok_or_else(|| PyKeyError::new_err("nothing is held of it"))?;
        self.remove(key);
        Ok(value)
    }
}

#[pyclass(module = "callfunnel.streams._core")]
struct Keys {
    held: Py<Store>,
    place: usize,
}

#[pymethods]
impl Keys {
    fn __iter__(keys: PyRef<'_, Self>) -> PyRef<'_, Self> {
        keys
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        let held = self.held.borrow(py);
        let (place, (key, _)) = (self.place..held.places()).find_map(|place| Some((place, held.at(place)?)))?;
        self.place = place + 1;
        Some(PyBytes::new(py, key))
    }
}

fn joined(key: &[u8], value: &[u8]) -> Option<Held> {
    let size = u16::try_from(key.len()).ok()?;
    Some([&size.to_le_bytes(), key, value].concat().into())
}

/// Key and value.
#[inline]
pub fn parts(held: &[u8]) -> (&[u8], &[u8]) {
    let (size, rest) = held.split_first_chunk().expect("`joined` made it");
    rest.split_at(u16::from_le_bytes(*size).into())
}
