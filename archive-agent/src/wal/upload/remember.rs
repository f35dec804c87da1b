//! What this process, and `pg_wal`, remember of a segment that is stored: that it is this server's, so that the next ones may follow it.

use std::io;
use std::path::Path;

use walpoint_base::{SegmentName, WalFileName};
use walpoint_repo::wal::WalArchive;

use super::admission::CandidateRepository;
use super::{UploadError, UploadSource, upload_error};
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

/// Remembers in `pg_wal` that a segment is stored as this server's, if the server answers for the file; where that cannot be written, as long
/// as the process lasts.
async fn note(file: &UploadSource, target: &WalTarget, archive: &WalArchive, claim: SegmentClaim) {
    if !file.answers {
        return;
    }
    let (wal, noting) = (file.path.parent().unwrap_or(&file.path).to_owned(), archive.clone());
    let directory = wal.clone();
    match disk::run(&directory, move || claim::note(&wal, &noting, claim)).await {
        Ok(Ok(())) => {
            target.set_unnoted(None);
            return;
        }
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
    target.known(archive.lineage().id, |known| {
        if target.presence.is(archive.repository().id()) {
            known.add_unnoted(claim, file.incarnation);
        }
    });
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

/// It is noted and not counted as stored by this process: two servers may have parted in what is damaged, so the next segment is compared
/// with the edge of what is stored before it follows.
async fn note_sound(
    file: &UploadSource,
    target: &WalTarget,
    archive: &WalArchive,
    segment: SegmentName,
) -> Result<(), UploadError> {
    let header = archive.header(segment).await.map_err(|error| upload_error(target, &error.into()))?;
    if let Some(header) = header.filter(|header| !header.damaged) {
        note(file, target, archive, SegmentClaim { segment, hash: header.hash }).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use walpoint_pg::wal::WalIdentity;

    use super::*;
    use crate::wal::fixtures::{Bed, chain, two};
    use crate::wal::known::Incarnation;
    use crate::wal::neighbors::Newcomer;
    use crate::wal::prepare::Rules;

    /// A segment that the server of a bed offers.
    fn offered(bed: &Bed, segment: SegmentName, cluster: WalIdentity) -> UploadSource {
        UploadSource {
            name: WalFileName::Segment(segment),
            path: bed.pgdata().join("pg_wal").join(segment.to_string()),
            rules: Rules { accept_damaged: false, whole_only: true },
            cluster,
            incarnation: Incarnation::of(&bed.pgdata()),
            in_wal: true,
            answers: true,
            writes: true,
            later: None,
            by_hand: false,
            expected: None,
        }
    }

    /// Promises 1 and 12: where a note cannot be written, the process has it, so that the next segment follows, and has to continue the
    /// stored one all the same.
    #[tokio::test]
    async fn what_could_not_be_noted_of_a_damaged_segment_is_known_to_the_process() {
        let (main, _far, uploader, cluster) = two().await;
        let (target, archive) = (&uploader.targets()[0], &main.archive);
        let [segment, next]: [SegmentName; 2] =
            ["000000010000000000000005", "000000010000000000000006"].map(|name| name.parse().unwrap());
        main.put(&segment.to_string(), 1).await;
        // Nothing shows that it is the stored one.
        main.write(&segment.to_string(), 2);
        let wal = main.pgdata().join("pg_wal");
        // Neither is there a file to write to, nor can what is in its place be put aside.
        std::fs::create_dir(wal.join(claim::FILE)).unwrap();
        std::fs::create_dir_all(wal.join(format!("{}.damaged/taken", claim::FILE))).unwrap();
        let file = offered(&main, segment, cluster);
        target.presence.opened(archive.repository(), Instant::now());
        let lineage = archive.lineage().id;
        target.known(lineage, |known| known.since(file.incarnation));
        let follows = async |seed| {
            let newcomer = Newcomer {
                target,
                archive,
                cluster: &cluster,
                file: WalFileName::Segment(next),
                name: next,
                chain: Some(chain(next, seed)),
                history: None,
                wal: &wal,
                answers: true,
                writes: false,
                witness: false,
                around: &[],
            };
            newcomer.look_back().await
        };
        let unread = follows(1).await.unwrap_err().to_string();
        assert!(unread.contains(claim::FILE) && !unread.contains("split brain"), "{unread}");
        note_sound(&file, target, archive, segment).await.unwrap();
        follows(1).await.unwrap();
        let parted = follows(2).await.unwrap_err().to_string();
        assert!(parted.contains("does not continue"), "{parted}");
        assert!(!target.known(lineage, |known| known.vouches_for(segment)));
    }

    /// Promise 12: a copy that parted from production in what is damaged has remembered production's segment, and the next one has to
    /// continue that all the same.
    #[tokio::test]
    async fn what_is_sound_elsewhere_only_does_not_vouch_for_what_follows() {
        let (main, _far, uploader, cluster) = two().await;
        let (target, archive) = (&uploader.targets()[0], &main.archive);
        let segment: SegmentName = "000000010000000000000005".parse().unwrap();
        main.put(&segment.to_string(), 1).await;
        let wal = main.pgdata().join("pg_wal");
        let file = offered(&main, segment, cluster);
        target.presence.opened(archive.repository(), Instant::now());
        let lineage = archive.lineage().id;
        target.known(lineage, |known| known.since(file.incarnation));
        note_sound(&file, target, archive, segment).await.unwrap();
        let hash = archive.header(segment).await.unwrap().unwrap().hash;
        let noted = claim::read(&wal, archive, segment.timeline).unwrap();
        assert_eq!(noted, Some(SegmentClaim { segment, hash }));
        assert!(!target.known(lineage, |known| known.vouches_for(segment)));

        remember(&file, target, archive, SegmentClaim { segment, hash }, false).await;
        assert!(target.known(lineage, |known| known.vouches_for(segment)), "what was read here does");
    }
}
