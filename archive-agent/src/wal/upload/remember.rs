//! What this process, and `pg_wal`, remember of a segment that is stored: that it is this server's, so that the next ones may follow it.

use std::io;
use std::path::Path;

use walpoint_base::WalFileName;
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
        let Some(archive) = one.archive() else { continue };
        if let Some(header) = archive.header(segment).await?.filter(|header| !header.damaged) {
            remember(file, one.target, archive, SegmentClaim { segment, hash: header.hash }, false).await;
        }
    }
    Ok(())
}
