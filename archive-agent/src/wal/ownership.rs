//! Whose the segment is that an archive has under a name: this server's, or that of another one with the same names.

use std::path::Path;

use walpoint_base::SegmentName;
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::{WalArchive, WalHeader};

use super::comparison::{self, Comparison};
use super::target::WalTarget;
use super::{claim, damaged_copy, disk};

/// Whose the segment is that an archive has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    This,
    Other,
    /// This server's if the damaged file of its name in the directory has the same records, which takes reading it.
    Content,
}

/// Whether an archive has this server's segment of a name. It may be damaged.
pub(super) async fn has_own(
    target: &WalTarget,
    archive: &WalArchive,
    (cluster, wal): (&WalIdentity, &Path),
    name: SegmentName,
) -> bool {
    let Ok(Some(header)) = archive.header(name).await else { return false };
    match owner(target, archive, (cluster, wal), &header).await {
        Owner::This => true,
        Owner::Other => false,
        Owner::Content => damaged_copy::is_damaged_copy(archive, cluster, wal, name).await,
    }
}

/// Whose the segment is that an archive has: this server's as this process knows, as the directory remembers, or as the file in
/// it shows, damaged or not. Where nothing shows that the timeline is this server's, a damaged one shows nothing.
async fn owner(
    target: &WalTarget,
    archive: &WalArchive,
    (cluster, wal): (&WalIdentity, &Path),
    header: &WalHeader,
) -> Owner {
    let (name, lineage) = (header.name(), archive.lineage().id);
    if target.known(lineage, |known| known.has_stored(name)) {
        return Owner::This;
    }
    let (directory, of) = (wal.to_owned(), archive.clone());
    let read = disk::run(wal, move || claim::read(&directory, &of, name.timeline)).await;
    let claim = read.unwrap_or_default();
    match claim {
        Some(claim) if claim.segment == name && claim.hash == header.hash => Owner::This,
        Some(claim) if claim.segment == name => Owner::Other,
        // What it stored behind this one continues what is stored.
        Some(claim) if claim.segment > name => Owner::This,
        _ => match comparison::content(archive, cluster, wal, name, header.hash).await {
            Comparison::Same => Owner::This,
            Comparison::Unknown if target.known(lineage, |known| known.has_claimed(name.timeline)) => {
                Owner::Content
            }
            Comparison::Other(_) | Comparison::Unknown => Owner::Other,
        },
    }
}
