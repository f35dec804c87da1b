//! What this process, and `pg_wal`, remember of a segment that is stored: that it is this server's, so that the next ones may follow it.

use std::io;
use std::path::Path;

use walpoint_base::{SegmentName, WalFileName};
use walpoint_repo::wal::WalArchive;

use super::admission::CandidateRepository;
use super::{UploadError, UploadSource};
use crate::wal::claim::{self, SegmentClaim};
use crate::wal::disk;
use crate::wal::target::WalTarget;

/// Remembers a segment that is stored as this server's. `anew`: it was not there before.
pub(super) async fn remember(
    file: &UploadSource,
    target: &WalTarget,
    archive: &WalArchive,
    claim: SegmentClaim,
    anew: bool,
) {
    target.known(archive.lineage().id, |known| {
        if target.presence.is(archive.repository().id()) {
            known.add(claim.segment, anew, file.incarnation);
        }
    });
    note(file, target, archive, claim).await;
}

/// Remembers in `pg_wal` that a segment is stored as this server's, if the server answers for the file.
async fn note(file: &UploadSource, target: &WalTarget, archive: &WalArchive, claim: SegmentClaim) {
    if !file.answers {
        return;
    }
    let (wal, noting) = (file.path.parent().unwrap_or(&file.path).to_owned(), archive.clone());
    let directory = wal.clone();
    match disk::run(&directory, move || claim::note(&wal, &noting, claim)).await {
        Ok(Ok(())) => target.set_unnoted(None),
        Ok(Err(error)) => {
            tracing::debug!(file = %claim.segment, "archive-push has to remember it in pg_wal: {error}");
            target.remember_later(claim.segment, claim::line(archive, claim));
            if claim::is_full(&error) {
                target.set_unnoted(Some(unnoted(&directory, &error)));
            }
        }
        // A directory that hangs is reported by what waits for it.
        Err(_) => {}
    }
}

/// Why it is not on record whose WAL was stored. It is stored all the same: only archiving makes room.
fn unnoted(wal: &Path, error: &io::Error) -> String {
    format!(
        "which WAL this server archived cannot be recorded in {}: {error}\nDETAIL: Archiving continues. When the daemon is \
         restarted before it could be recorded, it may take the stored WAL for another server's.\nHINT: Free space there.",
        wal.join(claim::FILE).display()
    )
}

/// Remembers a segment that is damaged here and sound in these repositories.
pub(super) async fn remember_sound<'a>(
    file: &UploadSource,
    candidates: impl Iterator<Item = &'a CandidateRepository<'a>>,
) -> Result<(), UploadError> {
    let WalFileName::Segment(segment) = file.name else { return Ok(()) };
    for one in candidates {
        if let Some(archive) = one.archive() {
            note_sound(file, one.target, archive, segment).await?;
        }
    }
    Ok(())
}

/// It is not known to the process: two servers may have parted in what is damaged, so the next segment is compared with the edge of what
/// is stored before it follows.
async fn note_sound(
    file: &UploadSource,
    target: &WalTarget,
    archive: &WalArchive,
    segment: SegmentName,
) -> Result<(), UploadError> {
    if let Some(header) = archive.header(segment).await?.filter(|header| !header.damaged) {
        note(file, target, archive, SegmentClaim { segment, hash: header.hash }).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::wal::fixtures::two;
    use crate::wal::known::Incarnation;
    use crate::wal::prepare::Rules;

    /// Promise 12: a copy that parted from production in what is damaged has remembered production's segment, and the next one has to
    /// continue that all the same.
    #[tokio::test]
    async fn what_is_sound_elsewhere_only_does_not_vouch_for_what_follows() {
        let (main, _far, uploader, cluster) = two().await;
        let (target, archive) = (&uploader.targets()[0], &main.archive);
        let segment: SegmentName = "000000010000000000000005".parse().unwrap();
        main.put(&segment.to_string(), 1).await;
        let wal = main.pgdata().join("pg_wal");
        let file = UploadSource {
            name: WalFileName::Segment(segment),
            path: wal.join(segment.to_string()),
            rules: Rules { accept_damaged: false, whole_only: true },
            cluster,
            incarnation: Incarnation::of(&main.pgdata()),
            in_wal: true,
            answers: true,
            writes: true,
            later: None,
            by_hand: false,
            expected: None,
        };
        target.presence.opened(archive.repository(), Instant::now());
        let lineage = archive.lineage().id;
        target.known(lineage, |known| known.since(file.incarnation));
        note_sound(&file, target, archive, segment).await.unwrap();
        let hash = archive.header(segment).await.unwrap().unwrap().hash;
        let noted = claim::read(&wal, archive, segment.timeline);
        assert_eq!(noted, Some(SegmentClaim { segment, hash }));
        assert!(!target.known(lineage, |known| known.vouches_for(segment)));

        remember(&file, target, archive, SegmentClaim { segment, hash }, false).await;
        assert!(target.known(lineage, |known| known.vouches_for(segment)), "what was read here does");
    }
}
