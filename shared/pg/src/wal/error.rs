//! Why WAL is refused, in words for PostgreSQL's log.

use walpoint_base::{Lsn, PgMajor, SegmentFacts, SegmentName, SegmentSize, SystemId};

/// Why a file is not a good segment under its name.
///
/// The text says what is wrong, with what, and what to do; [`WalError::is_damage`] tells the one case that reading again
/// may cure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// Not WAL at all.
    #[error(
        "{name} is not a WAL segment: {what}\nHINT: Check that archive_command passes %p and that the \
         file is in pg_wal."
    )]
    NotWal {
        /// The name it was given under.
        name: SegmentName,
        /// What its beginning looks like.
        what: String,
    },
    /// WAL, but of no version that is known.
    #[error(
        "WAL segment {name} was written by an unknown version of PostgreSQL (page magic {magic:#06X}); \
         Walpoint knows 13 to 19"
    )]
    UnknownVersion {
        /// The segment.
        name: SegmentName,
        /// What its first page starts with.
        magic: u16,
    },
    /// Cut short, or too long.
    #[error(
        "WAL segment {name} has {len} bytes instead of {expected}: it was cut short, is still being written, or does not come \
         from this cluster\nHINT: Look for a full disk or an interrupted copy."
    )]
    WrongLength {
        /// The segment.
        name: SegmentName,
        /// Bytes in the file.
        len: u64,
        /// Bytes of a segment of the cluster that wrote it.
        expected: u64,
    },
    /// Another segment's content.
    #[error(
        "the file {name} holds the WAL of another segment, from {found} on: it was renamed, or recycled and never \
         written\nHINT: Do not archive it under this name."
    )]
    OtherSegment {
        /// The name.
        name: SegmentName,
        /// The position of the file's first page.
        found: Lsn,
    },
    /// A page of a timeline that cannot be in this file.
    #[error(
        "WAL segment {name} has a page of timeline {found} at {page}, where timeline {expected} belongs: the file was renamed \
         or comes from another server\nHINT: Do not archive it under this name."
    )]
    WrongTimeline {
        /// The segment.
        name: SegmentName,
        /// The page.
        page: Lsn,
        /// The timeline it says.
        found: u32,
        /// The timeline, or the highest one, that could be there.
        expected: u32,
    },
    /// Another cluster's WAL.
    #[error(
        "WAL segment {name} is not from this cluster: its {what} is {theirs}, this cluster's is {ours}{cause}"
    )]
    Foreign {
        /// The segment.
        name: SegmentName,
        /// What differs.
        what: &'static str,
        /// What the segment says.
        theirs: String,
        /// What it should say.
        ours: String,
        /// What that usually means.
        cause: Differs,
    },
    /// Content that PostgreSQL cannot have written so.
    #[error(
        "WAL segment {name} is damaged at {at}: {what}\nHINT: If reading it again gives the same, look for failing storage \
         and take a new base backup."
    )]
    Damaged {
        /// The segment.
        name: SegmentName,
        /// The record or page that is wrong.
        at: Lsn,
        /// What is wrong with it.
        what: String,
    },
    /// Segments were read in the wrong order, or one is missing.
    #[error("WAL segment {name} does not follow the one read before it, which ends at {expected}")]
    NotConsecutive {
        /// The segment.
        name: SegmentName,
        /// Where the next segment should start.
        expected: Lsn,
    },
}

/// Why a segment is another cluster's than the one that is registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Differs {
    /// Two clusters archive to the same place, or this one was created anew.
    OtherCluster,
    /// The cluster was upgraded, and has to be registered with its new version.
    Upgraded,
    /// The size of its segments was changed, and it has to be registered again.
    SegmentSize,
}

impl std::fmt::Display for Differs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::OtherCluster => {
                "\nDETAIL: Two clusters archive to the same place, or this one was created again.\nHINT: \
                 Give it its own name."
            }
            Self::Upgraded => "\nHINT: After an upgrade, register the new version.",
            Self::SegmentSize => "\nDETAIL: pg_resetwal changed it.\nHINT: Register the cluster again.",
        })
    }
}

impl WalError {
    /// Whether the content itself is wrong, so that reading the file once more may help.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }
}

/// The cluster that a repository keeps WAL of, as far as a segment can tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalIdentity {
    /// The system identifier.
    pub system_id: SystemId,
    /// The major version.
    pub major: PgMajor,
    /// Bytes of a segment.
    pub segment_size: SegmentSize,
}

impl WalIdentity {
    /// Refuses another cluster's segment.
    pub fn check(&self, facts: &SegmentFacts) -> Result<(), WalError> {
        let foreign = |what, theirs: String, ours: String, cause| {
            Err(WalError::Foreign { name: facts.name, what, theirs, ours, cause })
        };
        if facts.system_id != self.system_id {
            let cause = Differs::OtherCluster;
            return foreign(
                "system identifier",
                facts.system_id.to_string(),
                self.system_id.to_string(),
                cause,
            );
        }
        if facts.major != self.major {
            let cause = Differs::Upgraded;
            return foreign("major version", facts.major.to_string(), self.major.to_string(), cause);
        }
        if facts.size != self.segment_size {
            let cause = Differs::SegmentSize;
            return foreign(
                "segment size",
                format!("{:?}", facts.size),
                format!("{:?}", self.segment_size),
                cause,
            );
        }
        Ok(())
    }
}
