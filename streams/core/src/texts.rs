//! The texts of a batch, each held once. Equal texts have equal numbers, so they are compared and hashed as numbers.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

/// The number of a text.
pub type Text = u32;

pub const MISSING: Text = 0;
/// What a dimension is called that an event does not carry.
pub const NONE: Text = 1;

#[derive(Default)]
pub struct Texts {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    index: HashTable<(u64, Text)>,
    hasher: DefaultHashBuilder,
}

impl Texts {
    /// The default has not even the two that have a meaning.
    pub fn new() -> Self {
        let mut texts = Texts::default();
        texts.append(b""); // MISSING; not in the index, where an empty text would be found
        texts.number_of(b"none");
        texts
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    #[inline]
    pub fn get(&self, text: Text) -> &[u8] {
        let text = text as usize;
        let start = if text == 0 { 0 } else { self.ends[text - 1] };
        &self.bytes[start..self.ends[text]]
    }

    /// MISSING where it is empty.
    #[inline]
    pub fn optional(&mut self, text: &[u8]) -> Text {
        if text.is_empty() { MISSING } else { self.number_of(text) }
    }

    #[inline]
    pub fn number_of(&mut self, text: &[u8]) -> Text {
        let hash = self.hasher.hash_one(text);
        let known = |&(other, number): &(u64, Text)| other == hash && self.get(number) == text;
        if let Some(&(_, number)) = self.index.find(hash, known) {
            return number;
        }
        let number = self.append(text);
        self.index.insert_unique(hash, (hash, number), |&(hash, _)| hash);
        number
    }

    pub fn find(&self, text: &[u8]) -> Option<Text> {
        let hash = self.hasher.hash_one(text);
        self.index.find(hash, |&(other, number)| other == hash && self.get(number) == text).map(|&(_, number)| number)
    }

    fn append(&mut self, text: &[u8]) -> Text {
        self.bytes.extend_from_slice(text);
        let number = self.ends.len() as Text;
        self.ends.push(self.bytes.len());
        number
    }
}
