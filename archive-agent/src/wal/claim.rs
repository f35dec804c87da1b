//! What a data directory remembers of its archives ([`archived`]), and what shows with it that stored WAL is this directory's
//! ([`neighbors`](super::neighbors)).
//!
//! Where a note could not be written, this process remembers it ([`Known`](super::known::Known)).

use std::io;
use std::path::Path;

use walpoint_base::{SegmentName, TimelineId, archived};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;
use walpoint_storage::object::ContentHash;

pub(crate) use archived::FILE;
pub(super) use archived::is_full;

use super::disk;
use super::neighbors::{StoredNeighbor, header};
use super::target::WalTarget;

/// A segment that was stored from this directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentClaim {
    /// Which one.
    pub(crate) segment: SegmentName,
    /// Of its content, as that repository has it.
    pub(crate) hash: ContentHash,
}

/// The newest segment of a timeline that was stored in an archive from this directory, as that remembers. An error if what it remembers
/// cannot be read. Blocks.
pub(crate) fn read(
    wal: &Path,
    archive: &WalArchive,
    timeline: TimelineId,
) -> io::Result<Option<SegmentClaim>> {
    let noted = archived::read(wal, &archive.place(), timeline)?;
    Ok(noted.and_then(|(segment, hash)| Some(SegmentClaim { segment, hash: hash.parse().ok()? })))
}

/// The same, where that may hang.
pub(super) async fn noted(
    wal: &Path,
    archive: &WalArchive,
    timeline: TimelineId,
) -> Result<Option<SegmentClaim>, RepoError> {
    let (directory, of) = (wal.to_owned(), archive.clone());
    let noted = disk::run(wal, move || read(&directory, &of, timeline)).await?;
    noted.map_err(|source| RepoError::Io {
        what: format!("{} cannot be read", wal.join(FILE).display()),
        source,
    })
}

/// [`noted`], or what this process remembers beyond that, because it could not be noted.
pub(super) async fn newest(
    (target, archive): (&WalTarget, &WalArchive),
    wal: &Path,
    timeline: TimelineId,
) -> Result<Option<SegmentClaim>, RepoError> {
    let unnoted = target.known(archive.lineage().id, |known| known.unnoted(timeline));
    match noted(wal, archive, timeline).await {
        Ok(noted) => Ok(noted.into_iter().chain(unnoted).max_by_key(|claim| claim.segment)),
        Err(unread) => unnoted.map(Some).ok_or(unread),
    }
}

/// The segment of a claim, unless the archive has other content of it.
pub(super) async fn unless_replaced(
    archive: &WalArchive,
    claim: SegmentClaim,
) -> Result<Option<SegmentName>, RepoError> {
    Ok(match header(archive, claim.segment).await? {
        StoredNeighbor::Sound(header) if header.hash != claim.hash => None,
        // It may have expired, and what is damaged proves nothing.
        _ => Some(claim.segment),
    })
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
        assert_eq!(read(&wal, &bed.archive, segment.timeline).unwrap(), Some(claim));

        let again = Lineage { uid: LineageUid::random(), ..bed.archive.lineage().clone() };
        let again = bed.archive.repository().wal(&again);
        assert_eq!(read(&wal, &again, segment.timeline).unwrap(), None);
        let claim = SegmentClaim { segment, hash: ContentHash([8; 32]) };
        note(&wal, &again, claim).unwrap();
        assert_eq!(read(&wal, &again, segment.timeline).unwrap(), Some(claim));
    }
}
