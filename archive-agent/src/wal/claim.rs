//! What a data directory remembers of its archives ([`archived`]), and what shows with it that stored WAL is this directory's
//! ([`neighbors`](super::neighbors)).

use std::io;
use std::path::Path;

use walpoint_base::{SegmentName, TimelineId, archived};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::object::ContentHash;

pub(crate) use archived::FILE;

/// A segment that was stored from this directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentClaim {
    /// Which one.
    pub(crate) segment: SegmentName,
    /// Of its content, as that repository has it.
    pub(crate) hash: ContentHash,
}

/// The newest segment of a timeline that was stored in an archive from this directory, if it is known. Blocks.
pub(crate) fn read(wal: &Path, archive: &WalArchive, timeline: TimelineId) -> Option<SegmentClaim> {
    let (segment, hash) = archived::read(wal, &place(archive), timeline)?;
    Some(SegmentClaim { segment, hash: hash.parse().ok()? })
}

/// Remembers durably that a segment was stored, if it is the newest one of its timeline. Blocks.
pub(super) fn note(wal: &Path, archive: &WalArchive, claim: SegmentClaim) -> io::Result<()> {
    archived::note(wal, &[line(archive, claim)])
}

/// What is remembered of a segment.
pub(super) fn line(archive: &WalArchive, claim: SegmentClaim) -> String {
    archived::line(&place(archive), claim.segment, &claim.hash.to_string())
}

fn place(archive: &WalArchive) -> String {
    format!("{} {}", archive.repository().id(), archive.lineage().id)
}
