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

    /// Where a lead is, until leads come or go.
    #[inline]
    pub fn place_of(&self, id: &[u8]) -> Option<usize> {
        self.leads.find_bucket_index(self.hasher.hash_one(id), |lead| parts(lead).0 == id)
    }

    /// The lead at a place has another record from now on.
    pub fn replace(&mut self, place: usize, id: &[u8], record: &[u8]) {
        let held = self.leads.get_bucket_mut(place).expect("`place_of` gave the place");
        debug_assert_eq!(parts(held).0, id);
        *held = lead(id, record).expect("it is held");
    }

    /// False where the id is longer than any lead's.
    pub fn set(&mut self, id: &[u8], record: &[u8]) -> bool {
        let Some(lead) = lead(id, record) else { return false };
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

fn lead(id: &[u8], record: &[u8]) -> Option<Lead> {
    let size = u16::try_from(id.len()).ok()?;
    Some([&size.to_le_bytes(), id, record].concat().into())
}

#[inline]
fn parts(lead: &[u8]) -> (&[u8], &[u8]) {
    let (size, rest) = lead.split_first_chunk().expect("`set` made it");
    rest.split_at(u16::from_le_bytes(*size).into())
}
