//! Times of RFC 3339, as much as ordinary records have of them.

/// Unix milliseconds, rounded down, of a time like 2025-03-01T09:30:00.123456+01:00; None where it is another.
pub fn milliseconds_of(time: &[u8]) -> Option<i64> {
    let mut rest = Digits(time);
    let year = rest.number(4, 1970..=2100)?;
    rest.mark(b'-')?;
    let month = rest.number(2, 1..=12)?;
    rest.mark(b'-')?;
    let leap = i64::from(year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
    let days_of = [31, 28 + leap, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month = month as usize - 1;
    let day = rest.number(2, 1..=days_of[month])?;
    rest.mark(b'T')?;
    let hour = rest.number(2, 0..=23)?;
    rest.mark(b':')?;
    let minute = rest.number(2, 0..=59)?;
    rest.mark(b':')?;
    let second = rest.number(2, 0..=59)?;
    let ms = rest.fraction()?;
    let ahead = rest.minutes_ahead()?;
    if !rest.0.is_empty() {
        return None;
    }
    let leap_days = (year - 1969) / 4 - (year - 1901) / 100 + (year - 1601) / 400;
    let days = 365 * (year - 1970) + leap_days + days_of[..month].iter().sum::<i64>() + day - 1;
    let at_ms = (((days * 24 + hour) * 60 + minute - ahead) * 60 + second) * 1000 + ms;
    (at_ms >= 0).then_some(at_ms)
}

struct Digits<'a>(&'a [u8]);

impl Digits<'_> {
    #[inline]
    fn number(&mut self, digits: usize, within: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let (number, rest) = self.0.split_at_checked(digits)?;
        self.0 = rest;
        let mut n = 0;
        for &digit in number {
            if !digit.is_ascii_digit() {
                return None;
            }
            n = n * 10 + i64::from(digit - b'0');
        }
        within.contains(&n).then_some(n)
    }

    #[inline]
    fn mark(&mut self, mark: u8) -> Option<()> {
        self.0 = self.0.strip_prefix(&[mark])?;
        Some(())
    }

    /// Of a second, in milliseconds.
    fn fraction(&mut self) -> Option<i64> {
        let Some(rest) = self.0.strip_prefix(b".") else { return Some(0) };
        let size = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(1..=6).contains(&size) {
            return None;
        }
        let (digits, rest) = rest.split_at(size);
        self.0 = rest;
        Some((0..3).fold(0, |ms, i| ms * 10 + digits.get(i).map_or(0, |digit| i64::from(digit - b'0'))))
    }

    /// How far the time is ahead of UTC.
    fn minutes_ahead(&mut self) -> Option<i64> {
        let sign = match *self.0.first()? {
            b'+' => 1,
            b'-' => -1,
            _ => return self.mark(b'Z').map(|()| 0),
        };
        self.0 = &self.0[1..];
        let hours = self.number(2, 0..=23)?;
        self.mark(b':')?;
        Some(sign * (hours * 60 + self.number(2, 0..=59)?))
    }
}

#[cfg(test)]
mod tests {
    use super::milliseconds_of;

    #[test]
    fn times() {
        assert_eq!(milliseconds_of(b"1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(milliseconds_of(b"2025-03-01T09:30:00.123456+01:00"), Some(1_740_817_800_123));
        assert_eq!(milliseconds_of(b"2024-02-29T23:59:59.9-00:30"), Some(1_709_252_999_900));
        assert_eq!(milliseconds_of(b"2025-02-29T00:00:00Z"), None);
        assert_eq!(milliseconds_of(b"1970-01-01T00:00:00+00:01"), None);
        assert_eq!(milliseconds_of(b"2025-03-01T09:30:00"), None);
        assert_eq!(milliseconds_of(b"2025-03-01T09:30:00.1234567Z"), None);
        assert_eq!(milliseconds_of(b"2025-03-01T09:30:00Zz"), None);
    }
}
