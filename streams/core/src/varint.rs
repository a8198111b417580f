//! Bytes of a lead's record, read strictly.

/// Bytes that are not a lead's record.
#[derive(Debug, PartialEq)]
pub struct Corrupt;

pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[inline]
    pub fn byte(&mut self) -> Result<u8, Corrupt> {
        let (&byte, rest) = self.0.split_first().ok_or(Corrupt)?;
        self.0 = rest;
        Ok(byte)
    }

    #[inline]
    pub fn u64(&mut self) -> Result<u64, Corrupt> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Corrupt)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*bytes))
    }

    #[inline]
    pub fn take(&mut self, size: usize) -> Result<&'a [u8], Corrupt> {
        let (taken, rest) = self.0.split_at_checked(size).ok_or(Corrupt)?;
        self.0 = rest;
        Ok(taken)
    }

    #[inline]
    pub fn uvarint(&mut self) -> Result<u64, Corrupt> {
        match *self.0 {
            [byte @ ..0x80, ref rest @ ..] => {
                self.0 = rest;
                Ok(byte.into())
            }
            [low, high @ ..0x80, ref rest @ ..] => {
                self.0 = rest;
                Ok(u64::from(low & 0x7f) | u64::from(high) << 7)
            }
            _ => self.long_uvarint(),
        }
    }

    fn long_uvarint(&mut self) -> Result<u64, Corrupt> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                break;
            }
            n |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(n);
            }
        }
        Err(Corrupt)
    }

    #[inline]
    pub fn zigzag(&mut self) -> Result<i64, Corrupt> {
        let n = self.uvarint()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    /// A number up to `most`.
    #[inline]
    pub fn index(&mut self, most: usize) -> Result<usize, Corrupt> {
        usize::try_from(self.uvarint()?).ok().filter(|&index| index <= most).ok_or(Corrupt)
    }
}

#[inline]
pub fn put_uvarint(to: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        to.push(n as u8 | 0x80);
        n >>= 7;
    }
    to.push(n as u8);
}

#[inline]
pub fn put_zigzag(to: &mut Vec<u8>, n: i64) {
    put_uvarint(to, (n << 1 ^ n >> 63) as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for n in [0, 1, 127, 128, 1 << 32, u64::MAX] {
            let mut bytes = Vec::new();
            put_uvarint(&mut bytes, n);
            assert_eq!(Bytes(&bytes).uvarint(), Ok(n));
        }
        for n in [0, -1, 1, i64::MAX, i64::MIN] {
            let mut bytes = Vec::new();
            put_zigzag(&mut bytes, n);
            assert_eq!(Bytes(&bytes).zigzag(), Ok(n));
        }
    }

    #[test]
    fn beyond_64_bits_or_the_end_is_corrupt() {
        assert_eq!(Bytes(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02").uvarint(), Err(Corrupt));
        assert_eq!(Bytes(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x81\x00").uvarint(), Err(Corrupt));
        assert_eq!(Bytes(b"\x80").uvarint(), Err(Corrupt));
        assert_eq!(Bytes(b"\x02").index(1), Err(Corrupt));
        assert_eq!(Bytes(b"1234567").u64(), Err(Corrupt));
    }
}
