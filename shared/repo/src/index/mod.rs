//! The WAL index: what the headers of a timeline's segments say, gathered so that a million segments are known after a
//! few requests.
//!
//! Level 1 is a [`Group`]: 1,024 consecutive segments, one [`SegmentEntry`] each. Level 2 is a [`Directory`]: 1,024
//! consecutive groups, one [`GroupSummary`] each. An object is never changed; a group or directory that is known better
//! gets a next generation, and the highest one counts. A group enters its directory when all of it has passed (it is
//! sealed); before that it gets a generation every [`STEP`] segments. So what no index object tells is never more than
//! the tail: the open group's last few segments.
//!
//! What always holds: a segment that an index object names was stored before that object was written, and `expire`
//! writes the generation without it before it deletes it. The other way round an index may lag: a segment that it
//! does not name may be there (late, or the writer died between the two), so absence is confirmed by a listing. All of it
//! can be rebuilt from the headers of the segments; a crash in the middle leaves generations that are merely older.
//!
//! | module | owns |
//! |---|---|
//! | [`entry`] | what is kept of a segment, and of a group |
//! | [`chain`] | where consecutive segments do not continue each other |
//! | [`page`] | the two kinds of objects as bytes |
//! | [`read`] | the newest generations of a timeline |
//! | [`gather`] | entries from listings and headers |
//! | [`mod@write`] | sealing, late arrivals, forgetting |

pub mod chain;
pub mod entry;
#[cfg(any(test, feature = "conformance"))]
pub mod fixtures;
pub mod gather;
pub mod page;
pub mod read;
#[cfg(test)]
pub(crate) mod tests;
pub mod write;

pub use chain::ChainWalk;
pub use entry::{GroupSummary, MarkCounts, SegmentEntry};
pub use page::{Directory, Group};
pub use read::TimelineIndex;
pub use write::IndexWriter;

use walpoint_base::SegmentNo;

/// Segments of a group, and groups of a directory.
pub const FANOUT: u64 = 1024;

/// The same, as a length in memory.
const PLACES: usize = 1024;

/// An open group gets a new generation for every so many new segments: at most this many headers have to be read one by
/// one.
pub const STEP: usize = 32;

/// A group is sealed with segments missing only when the timeline is this many segments further: uploads overtake each
/// other, and PostgreSQL hands over up to 64 files per scan.
pub const SLACK: u64 = 64;

/// The level of groups in the keys.
pub const GROUP_LEVEL: u8 = 1;

/// The level of directories in the keys.
pub const DIRECTORY_LEVEL: u8 = 2;

/// The group that a segment belongs to.
pub fn group_of(number: SegmentNo) -> u64 {
    number.0 / FANOUT
}

/// The first segment of a group.
pub fn first_of(group: u64) -> SegmentNo {
    SegmentNo(group.saturating_mul(FANOUT))
}

/// The last segment of a group.
pub fn last_of(group: u64) -> SegmentNo {
    SegmentNo(first_of(group).0.saturating_add(FANOUT - 1))
}
