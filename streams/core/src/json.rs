//! Reads JSON, as much as an ordinary record has of it: no escapes, no exponents, nothing negative, nothing nested.

/// A value that is not nested; null is none.
#[derive(Clone, Copy, Default)]
pub enum Value<'a> {
    #[default]
    None,
    Text {
        text: &'a [u8],
        characters: usize,
    },
    /// A number without its point.
    Number {
        unscaled: i64,
        decimals: u8,
    },
    Boolean(bool),
}

impl<'a> Value<'a> {
    /// Empty where it is none.
    pub fn text(&self) -> &'a [u8] {
        match self {
            Value::Text { text, .. } => text,
            _ => b"",
        }
    }

    /// What may be a dimension or the identity of a lead or a call.
    pub fn label(&self) -> Option<&'a [u8]> {
        self.text_of_up_to(64)
    }

    /// What may be the identity of an event.
    pub fn event_id(&self) -> Option<&'a [u8]> {
        self.text_of_up_to(128)
    }

    #[inline]
    fn text_of_up_to(&self, most: usize) -> Option<&'a [u8]> {
        match self {
            Value::None => Some(b""),
            Value::Text { text, characters } if *characters <= most => Some(text),
            _ => None,
        }
    }
}

/// What is not an ordinary record's is None.
pub struct Scanner<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    pub fn new(json: &'a [u8]) -> Self {
        Scanner { json, at: 0 }
    }

    #[inline]
    pub fn token(&mut self, token: u8) -> Option<()> {
        self.skip_space();
        self.take(token)
    }

    #[inline]
    pub fn end(&mut self) -> Option<()> {
        self.skip_space();
        (self.at == self.json.len()).then_some(())
    }

    #[inline]
    pub fn text(&mut self) -> Option<Value<'a>> {
        self.token(b'"')?;
        let start = self.at;
        let mut bytes_beyond = 0; // of characters that have more than one
        loop {
            self.skip_plain();
            match *self.json.get(self.at)? {
                b'"' => break,
                _ => {
                    let size = size_beyond_ascii(&self.json[self.at..])?;
                    self.at += size;
                    bytes_beyond += size - 1;
                }
            }
        }
        let text = &self.json[start..self.at];
        self.at += 1;
        Some(Value::Text { text, characters: text.len() - bytes_beyond })
    }

    #[inline]
    pub fn value(&mut self) -> Option<Value<'a>> {
        self.skip_space();
        match self.json.get(self.at)? {
            b'"' => self.text(),
            b'n' => self.word(b"null", Value::None),
            b't' => self.word(b"true", Value::Boolean(true)),
            b'f' => self.word(b"false", Value::Boolean(false)),
            _ => self.number(),
        }
    }

    #[inline]
    fn take(&mut self, byte: u8) -> Option<()> {
        (self.json.get(self.at) == Some(&byte)).then(|| self.at += 1)
    }

    #[inline]
    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.json.get(self.at) {
            self.at += 1;
        }
    }

    /// Skips printable ASCII but the quote and the backslash, eight bytes at a time.
    #[inline]
    fn skip_plain(&mut self) {
        while let Some(chunk) = self.json[self.at..].first_chunk() {
            let special = first_special(u64::from_le_bytes(*chunk));
            self.at += special;
            if special < 8 {
                return;
            }
        }
        while let Some(b' '..=b'!' | b'#'..=b'[' | b']'..=b'~') = self.json.get(self.at) {
            self.at += 1;
        }
    }

    fn word(&mut self, word: &[u8], value: Value<'a>) -> Option<Value<'a>> {
        self.json[self.at..].starts_with(word).then(|| {
            self.at += word.len();
            value
        })
    }

    /// Up to 15 digits: so many a double holds, and so is their quotient by a power of ten as near as can be.
    fn number(&mut self) -> Option<Value<'a>> {
        let start = self.at;
        let (mut unscaled, mut digits) = (0, 0);
        self.digits(&mut unscaled, &mut digits);
        if digits == 0 || (digits > 1 && self.json[start] == b'0') {
            return None;
        }
        let mut decimals = 0;
        if self.take(b'.').is_some() {
            let whole = digits;
            self.digits(&mut unscaled, &mut digits);
            decimals = digits - whole;
            if decimals == 0 {
                return None;
            }
        }
        // What follows, an exponent say, is for the caller, who wants a comma.
        (digits <= 15).then_some(Value::Number { unscaled, decimals })
    }

    fn digits(&mut self, unscaled: &mut i64, digits: &mut u8) {
        while let Some(digit @ b'0'..=b'9') = self.json.get(self.at)
            && *digits <= 15
        {
            *unscaled = *unscaled * 10 + i64::from(digit - b'0');
            *digits += 1;
            self.at += 1;
        }
    }
}

/// The place of the first byte that is not plain text, 8 if there is none.
#[inline]
fn first_special(bytes: u64) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    // Carries go to later bytes only, so the first byte that is marked is marked rightly.
    let below = |bytes: u64, limit: u64| bytes.wrapping_sub(ONES * limit) & !bytes;
    let is = |byte: u8| below(bytes ^ (ONES * u64::from(byte)), 1);
    let special = (below(bytes, 0x20) | is(b'"') | is(b'\\') | is(0x7f) | bytes) & HIGH;
    special.trailing_zeros() as usize / 8
}

/// How many bytes the character has; None where it is not UTF-8, or may not be in a text.
fn size_beyond_ascii(bytes: &[u8]) -> Option<usize> {
    let first = *bytes.first()?;
    let (size, least) = match first {
        0xc2..=0xdf => (2, 0xa0),
        0xe0..=0xef => (3, 0x800),
        0xf0..=0xf4 => (4, 0x10000),
        _ => return None,
    };
    let mut code = u32::from(first) & (0xff >> (size + 1));
    for &byte in bytes.get(1..size)? {
        if byte & 0xc0 != 0x80 {
            return None;
        }
        code = code << 6 | u32::from(byte & 0x3f);
    }
    // Marks that turn the direction of text, and separators of lines.
    let is_mark = matches!(code, 0x61c | 0x200e | 0x200f | 0x2028..=0x202e | 0x2066..=0x2069);
    (code >= least && char::from_u32(code).is_some() && !is_mark).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specials_are_found_where_they_are() {
        for special in (0..0x20).chain([b'"', b'\\', 0x7f, 0x80, 0xff]) {
            for place in 0..8 {
                let mut bytes = *b" ~!#[]az";
                bytes[place] = special;
                assert_eq!(first_special(u64::from_le_bytes(bytes)), place);
            }
        }
        assert_eq!(first_special(u64::from_le_bytes(*b" ~!#[]az")), 8);
    }

    #[test]
    fn texts_are_utf8_without_controls() {
        let read = |json: &[u8]| Scanner::new(json).text().map(|value| value.label().is_some());
        assert_eq!(read("\"Z\u{fc}rich \u{1f600}\"".as_bytes()), Some(true));
        assert_eq!(read("\"\u{85}\"".as_bytes()), None);
        assert_eq!(read("\"\u{202e}\"".as_bytes()), None);
        assert_eq!(read(b"\"\xed\xa0\x80\""), None);
        assert_eq!(read(b"\"\xc3"), None);
        assert_eq!(read(b"\""), None);
        assert_eq!(read(format!("\"{}\"", "\u{e4}".repeat(65)).as_bytes()), Some(false));
    }
}
