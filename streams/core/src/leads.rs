//! The records of the leads, by their ids.

use std::hash::BuildHasher;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

/// The size of the id, the id, the record: one piece of memory for each lead, because there are millions of them.
type Lead = Box<[u8]>;

#[derive(Default)]
pub struct Leads {
    leads: HashTable<Lead>,
    hasher: DefaultHashBuilder,
}

impl Leads {
    pub fn len(&self) -> usize {
        self.leads.len()
    }

    #[inline]
    pub fn get(&self, id: &[u8]) -> Option<&[u8]> {
        self.leads.find(self.hasher.hash_one(id), |lead| parts(lead).0 == id).map(|lead| parts(lead).1)
    }

    /// False where the id is longer than any lead's.
    pub fn set(&mut self, id: &[u8], record: &[u8]) -> bool {
        let Ok(size) = u16::try_from(id.len()) else { return false };
        let lead: Lead = [&size.to_le_bytes(), id, record].concat().into();
        let hasher = &self.hasher;
        let is_it = |lead: &Lead| parts(lead).0 == id;
        match self.leads.entry(hasher.hash_one(id), is_it, |lead| hasher.hash_one(parts(lead).0)) {
            Entry::Occupied(mut held) => *held.get_mut() = lead,
            Entry::Vacant(place) => _ = place.insert(lead),
        }
        true
    }

    /// Leads are at places below this one.
    pub fn places(&self) -> usize {
        self.leads.num_buckets()
    }

    /// The lead at a place, where there is one. Places change when leads come.
    pub fn at(&self, place: usize) -> Option<(&[u8], &[u8])> {
        self.leads.get_bucket(place).map(|lead| parts(lead))
    }

    pub fn remove(&mut self, id: &[u8]) {
        if let Ok(held) = self.leads.find_entry(self.hasher.hash_one(id), |lead| parts(lead).0 == id) {
            held.remove();
        }
    }

    pub fn all(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.leads.iter().map(|lead| parts(lead))
    }
}

#[inline]
fn parts(lead: &[u8]) -> (&[u8], &[u8]) {
    let (size, rest) = lead.split_first_chunk().expect("`set` made it");
    rest.split_at(u16::from_le_bytes(*size).into())
}
