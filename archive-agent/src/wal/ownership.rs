//! Whose the segment is that an archive has under a name: this server's, or that of another one with the same names.

use std::path::Path;

use walpoint_base::SegmentName;
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::{WalArchive, WalHeader};
use walpoint_storage::RepoError;

use super::comparison::{self, Comparison};
use super::target::WalTarget;
use super::{claim, damaged_copy};

/// Whose the segment is that an archive has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    This,
    Other,
    /// This server's if the damaged file of its name in the directory has the same records, which takes reading it.
    Content,
}

/// Whether an archive has this server's segment of a name. It may be damaged. An error if what decides cannot be read.
pub(super) async fn has_own(
    target: &WalTarget,
    archive: &WalArchive,
    (cluster, wal): (&WalIdentity, &Path),
    name: SegmentName,
) -> Result<bool, RepoError> {
    let Some(header) = archive.header(name).await? else { return Ok(false) };
    match owner(target, archive, (cluster, wal), &header).await? {
        Owner::This => Ok(true),
        Owner::Other => Ok(false),
        Owner::Content => damaged_copy::is_damaged_copy(archive, cluster, wal, name).await,
    }
}

/// Whose the segment is that an archive has: this server's as this process knows, as the directory remembers, or as the file in
/// it shows, damaged or not. Where nothing shows that the timeline is this server's, a damaged one shows nothing. An error if what may show
/// it cannot be read.
async fn owner(
    target: &WalTarget,
    archive: &WalArchive,
    (cluster, wal): (&WalIdentity, &Path),
    header: &WalHeader,
) -> Result<Owner, RepoError> {
    let (name, lineage) = (header.name(), archive.lineage().id);
    if target.known(lineage, |known| known.has_stored(name)) {
        return Ok(Owner::This);
    }
    match claim::newest((target, archive), wal, name.timeline).await {
        Ok(Some(claim)) if claim.segment == name && claim.hash == header.hash => Ok(Owner::This),
        Ok(Some(claim)) if claim.segment == name => Ok(Owner::Other),
        // What it stored behind this one continues what is stored.
        Ok(Some(claim)) if claim.segment > name => Ok(Owner::This),
        claim => match comparison::content(archive, cluster, wal, name, header.hash).await? {
            Comparison::Same => Ok(Owner::This),
            Comparison::Other(_) => Ok(Owner::Other),
            Comparison::Unknown if target.known(lineage, |known| known.has_claimed(name.timeline)) => {
                Ok(Owner::Content)
            }
            // What could not be read may have shown it.
            Comparison::Unknown => claim.map(|_| Owner::Other),
        },
    }
}
