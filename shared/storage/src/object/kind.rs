//! What an object is. The kind goes into its keys, so no object can stand in for one of another kind.

/// The kinds of objects, with their numbers in format version 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u16)]
pub enum ObjectKind {
    /// A whole segment of WAL.
    Segment = 1,
    /// A part of a large file.
    Part = 2,
    /// A segment's complete name with content that ends early.
    Ended = 3,
    /// A timeline's history file.
    History = 4,
    /// A backup history file of PostgreSQL's.
    BackupHistory = 5,
    /// A `.partial` segment.
    Partial = 6,
    /// A range of the open segment.
    Slice = 7,
    /// A named restore point.
    RestorePoint = 8,
    /// Many restore points of one segment.
    RestorePoints = 10,
    /// An index of consecutive segments.
    Index = 9,
    /// The beginning of a base backup.
    Intent = 16,
    /// What an unfinished base backup has stored.
    Progress = 17,
    /// A finished base backup.
    Manifest = 18,
    /// The end of a base backup that never finished; stands where its manifest would.
    Tombstone = 19,
    /// Pages of base backups.
    Pack = 20,
    /// Tables of a base backup that do not fit into its manifest.
    Table = 21,
    /// Says that a base backup was finished: what is left when its manifest is lost.
    Published = 22,
    /// What must not be built on any more: `expire` is about to delete it, or it is damaged.
    Announcement = 32,
    /// A hold.
    Hold = 33,
    /// A record of the evidence chain.
    Evidence = 34,
    /// An advisory lease.
    Lease = 35,
    /// Summaries of finished base backups.
    Summaries = 36,
    /// Written and deleted by `init` and `check` to find out what a store can do.
    Probe = 64,
}

impl ObjectKind {
    /// Every kind.
    pub const ALL: [ObjectKind; 23] = [
        Self::Segment,
        Self::Part,
        Self::Ended,
        Self::History,
        Self::BackupHistory,
        Self::Partial,
        Self::Slice,
        Self::RestorePoint,
        Self::RestorePoints,
        Self::Index,
        Self::Intent,
        Self::Progress,
        Self::Manifest,
        Self::Tombstone,
        Self::Pack,
        Self::Table,
        Self::Published,
        Self::Announcement,
        Self::Hold,
        Self::Evidence,
        Self::Lease,
        Self::Summaries,
        Self::Probe,
    ];

    /// Its number.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// `None` for a number that version 1 does not know.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.number() == number)
    }
}
