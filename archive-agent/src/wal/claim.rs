//! What a data directory remembers of its archives ([`archived`]), and what shows with it that stored WAL is this directory's
//! ([`neighbors`](super::neighbors)).

use std::io;
use std::path::Path;

use walpoint_base::{SegmentName, TimelineId, archived};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::object::ContentHash;

pub(crate) use archived::FILE;
pub(super) use archived::is_full;

use super::disk;

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
    let (segment, hash) = archived::read(wal, &archive.place(), timeline)?;
    Some(SegmentClaim { segment, hash: hash.parse().ok()? })
}

/// Remembers durably that a segment was stored, if it is the newest one of its timeline. Blocks.
pub(super) fn note(wal: &Path, archive: &WalArchive, claim: SegmentClaim) -> io::Result<()> {
    archived::note(wal, &[line(archive, claim)])
}

/// Makes room in a directory for what it is to remember, while there is some. What cannot be written is found by the first note.
pub(crate) async fn prepare(wal: &Path) {
    let directory = wal.to_owned();
    match disk::run(wal, move || archived::prepare(&directory)).await {
        Ok(Ok(())) => {}
        failed => tracing::debug!("{}: {failed:?}", wal.join(FILE).display()),
    }
}

/// What is remembered of a segment.
pub(super) fn line(archive: &WalArchive, claim: SegmentClaim) -> String {
    archived::line(&archive.place(), claim.segment, &claim.hash.to_string())
}

#[cfg(test)]
mod tests {
    use walpoint_repo::Lineage;
    use walpoint_repo::lineage::LineageUid;

    use super::super::fixtures::Bed;
    use super::*;

    #[tokio::test]
    async fn a_lineage_of_the_same_number_has_no_claims_of_the_one_before() {
        let bed = Bed::new().await;
        let wal = bed.pgdata().join("pg_wal");
        let segment: SegmentName = "000000010000000000000005".parse().unwrap();
        let claim = SegmentClaim { segment, hash: ContentHash([7; 32]) };
        note(&wal, &bed.archive, claim).unwrap();
        assert_eq!(read(&wal, &bed.archive, segment.timeline), Some(claim));

        let again = Lineage { uid: LineageUid::random(), ..bed.archive.lineage().clone() };
        let again = bed.archive.repository().wal(&again);
        assert_eq!(read(&wal, &again, segment.timeline), None);
        let claim = SegmentClaim { segment, hash: ContentHash([8; 32]) };
        note(&wal, &again, claim).unwrap();
        assert_eq!(read(&wal, &again, segment.timeline), Some(claim));
    }
}
