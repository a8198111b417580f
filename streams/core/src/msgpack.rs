//! As much of msgpack as rows have of it. Integers are written in their smallest form, as every encoder does.

/// Bytes that are not what they should be.
#[derive(Debug, PartialEq)]
pub struct Malformed;

pub fn put_integer(to: &mut Vec<u8>, n: i64) {
    match n {
        0..=0x7f => to.push(n as u8),
        -0x20..0 => to.push(n as u8),
        0x80..=0xff => to.extend_from_slice(&[0xcc, n as u8]),
        0x100..=0xffff => put_sized(to, 0xcd, &(n as u16).to_be_bytes()),
        0x1_0000..=0xffff_ffff => put_sized(to, 0xce, &(n as u32).to_be_bytes()),
        0x1_0000_0000.. => put_sized(to, 0xcf, &n.to_be_bytes()),
        -0x80..-0x20 => to.extend_from_slice(&[0xd0, n as u8]),
        -0x8000..-0x80 => put_sized(to, 0xd1, &(n as i16).to_be_bytes()),
        -0x8000_0000..-0x8000 => put_sized(to, 0xd2, &(n as i32).to_be_bytes()),
        _ => put_sized(to, 0xd3, &n.to_be_bytes()),
    }
}

pub fn put_text(to: &mut Vec<u8>, text: &[u8]) {
    match text.len() {
        n @ 0..32 => to.push(0xa0 | n as u8),
        n @ 32..0x100 => to.extend_from_slice(&[0xd9, n as u8]),
        n @ 0x100..0x1_0000 => put_sized(to, 0xda, &(n as u16).to_be_bytes()),
        n => put_sized(to, 0xdb, &(n as u32).to_be_bytes()),
    }
    to.extend_from_slice(text);
}

/// The head of an array of up to 15.
pub fn put_array(to: &mut Vec<u8>, size: usize) {
    debug_assert!(size < 16);
    to.push(0x90 | size as u8);
}

/// Over the first byte, where room was left for it before the size was known.
pub fn put_map_head(to: &mut Vec<u8>, size: usize) {
    if size < 16 {
        to[0] = 0x80 | size as u8;
    } else {
        to[0] = 0xde;
        to.splice(1..1, (size as u16).to_be_bytes());
    }
}

fn put_sized(to: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    to.push(tag);
    to.extend_from_slice(bytes);
}

pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader(bytes)
    }

    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }

    #[inline]
    pub fn integer(&mut self) -> Result<i64, Malformed> {
        let tag = self.byte()?;
        Ok(match tag {
            0..=0x7f => tag.into(),
            0xe0..=0xff => (tag as i8).into(),
            0xcc => self.byte()?.into(),
            0xcd => u16::from_be_bytes(self.array_of()?).into(),
            0xce => u32::from_be_bytes(self.array_of()?).into(),
            0xcf => u64::from_be_bytes(self.array_of()?).try_into().map_err(|_| Malformed)?,
            0xd0 => (self.byte()? as i8).into(),
            0xd1 => i16::from_be_bytes(self.array_of()?).into(),
            0xd2 => i32::from_be_bytes(self.array_of()?).into(),
            0xd3 => i64::from_be_bytes(self.array_of()?),
            _ => return Err(Malformed),
        })
    }

    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        let size = match self.byte()? {
            tag @ 0xa0..=0xbf => (tag & 0x1f).into(),
            0xd9 => self.byte()?.into(),
            0xda => u16::from_be_bytes(self.array_of()?).into(),
            0xdb => u32::from_be_bytes(self.array_of()?) as usize,
            _ => return Err(Malformed),
        };
        let (text, rest) = self.0.split_at_checked(size).ok_or(Malformed)?;
        self.0 = rest;
        str::from_utf8(text).map_err(|_| Malformed)
    }

    pub fn array(&mut self) -> Result<usize, Malformed> {
        match self.byte()? {
            tag @ 0x90..=0x9f => Ok((tag & 0x0f).into()),
            _ => Err(Malformed),
        }
    }

    #[inline]
    pub fn map(&mut self) -> Result<usize, Malformed> {
        match self.byte()? {
            tag @ 0x80..=0x8f => Ok((tag & 0x0f).into()),
            0xde => Ok(u16::from_be_bytes(self.array_of()?).into()),
            _ => Err(Malformed),
        }
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, Malformed> {
        let (&byte, rest) = self.0.split_first().ok_or(Malformed)?;
        self.0 = rest;
        Ok(byte)
    }

    #[inline]
    fn array_of<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_take_their_smallest_form_and_come_back() {
        for (n, size) in [
            (0, 1),
            (127, 1),
            (128, 2),
            (255, 2),
            (256, 3),
            (65_535, 3),
            (65_536, 5),
            (u32::MAX.into(), 5),
            (1 << 32, 9),
            (i64::MAX, 9),
            (-1, 1),
            (-32, 1),
            (-33, 2),
            (-128, 2),
            (-129, 3),
            (-32_768, 3),
            (-32_769, 5),
            (i32::MIN.into(), 5),
            (i64::from(i32::MIN) - 1, 9),
            (i64::MIN, 9),
        ] {
            let mut bytes = Vec::new();
            put_integer(&mut bytes, n);
            assert_eq!(bytes.len(), size, "{n}");
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.integer(), Ok(n));
            assert_eq!(reader.end(), Ok(()));
        }
    }

    #[test]
    fn bytes_that_end_too_early_are_malformed() {
        assert_eq!(Reader::new(b"").integer(), Err(Malformed));
        assert_eq!(Reader::new(b"\xcd\x01").integer(), Err(Malformed));
        assert_eq!(Reader::new(b"\xa5abc").text(), Err(Malformed));
        assert_eq!(Reader::new(b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff").integer(), Err(Malformed));
    }
}
