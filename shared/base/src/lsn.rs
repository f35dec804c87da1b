//! Positions in the write-ahead log.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use crate::ParseError;

/// A byte position in the WAL of a timeline, printed and read in PostgreSQL's notation, `16/B374D848`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// PostgreSQL's `InvalidXLogRecPtr`; no record is ever there.
    pub const INVALID: Lsn = Lsn(0);

    /// Whether this is a position at all.
    pub fn is_valid(self) -> bool {
        self != Self::INVALID
    }

    /// The next multiple of 8 at or after this position: where a record may start.
    pub fn align(self) -> Lsn {
        Lsn(self.0.saturating_add(7) & !7)
    }

    /// Bytes from `earlier` to this position, 0 if that lies after it.
    pub fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lsn({self})")
    }
}

impl FromStr for Lsn {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new("an LSN such as 16/B374D848", text);
        let (high, low) = text.trim().split_once('/').ok_or_else(error)?;
        let half = |digits: &str| {
            let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten().ok_or_else(error)
        };
        Ok(Lsn(half(high)? << 32 | half(low)?))
    }
}

impl Add<u64> for Lsn {
    type Output = Lsn;

    /// Saturates: no position lies after the last one.
    fn add(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }
}

impl Sub<u64> for Lsn {
    type Output = Lsn;

    /// Saturates at [`Lsn::INVALID`].
    fn sub(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_sub(bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_postgresql_prints() {
        assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_B374_D848)));
        assert_eq!(Lsn(0x1_0000_0028).to_string(), "1/28");
        for bad in ["", "/", "1/", "/1", "1/123456789", "g/0", "1/+1", "-1/0", "1/2/3"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?} must not be an LSN");
        }
    }

    proptest! {
        #[test]
        fn prints_what_it_reads(value: u64) {
            prop_assert_eq!(Lsn(value).to_string().parse(), Ok(Lsn(value)));
        }
    }
}
