//! Timelines: their ids, the `.history` files that say where they come from, and the way back to the first one.

mod history;
mod scan;

use std::fmt;
use std::str::FromStr;

pub use history::{HistoryEntry, HistoryError, TimelineHistory};

use crate::ParseError;

/// The id of a timeline; never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(pub(crate) u32);

impl TimelineId {
    /// The timeline that every cluster starts on.
    pub const FIRST: TimelineId = TimelineId(1);

    /// `None` for 0, which PostgreSQL never uses.
    pub fn new(id: u32) -> Option<Self> {
        (id != 0).then_some(Self(id))
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The id that a promotion tries next; `None` at the end of the range.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }

    /// The eight hexadecimal digits used in file names.
    pub fn hex(self) -> String {
        format!("{:08X}", self.0)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TimelineId({})", self.0)
    }
}

impl FromStr for TimelineId {
    type Err = ParseError;

    /// Decimal, or hexadecimal after `0x`, as PostgreSQL takes `recovery_target_timeline`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        let id = number.ok().filter(|_| !text.contains('+')).and_then(Self::new);
        id.ok_or_else(|| ParseError::new("a timeline id (a number from 1)", text))
    }
}
