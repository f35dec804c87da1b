//! The lineage that a data directory is bound to, in a file of its own there ([`BINDING`]). Most have none.
//!
//! It is replaced as a whole, so a crash leaves the old one or the new one.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;

use walpoint_base::{ClusterName, LineageId, durable};
use walpoint_repo::lineage::{BINDING, bound_lineages, rebound};
use walpoint_storage::object::RepositoryId;

use crate::wal::disk;

/// The lineage of a cluster in a repository that a data directory is bound to, if it is.
pub(crate) async fn read(
    pgdata: &Path,
    cluster: &ClusterName,
    repository: RepositoryId,
) -> io::Result<Option<LineageId>> {
    Ok(read_all(pgdata, cluster).await?.get(&repository).copied())
}

/// The lineages of a cluster that a data directory is bound to, by repository.
pub(crate) async fn read_all(
    pgdata: &Path,
    cluster: &ClusterName,
) -> io::Result<BTreeMap<RepositoryId, LineageId>> {
    let path = pgdata.join(BINDING);
    let read = disk::look(pgdata, move || std::fs::read_to_string(path)).await;
    let text = match read.map_err(io::Error::other).and_then(|text| text) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(BTreeMap::new());
        }
        Err(error) => return Err(error),
    };
    bound_lineages(&text, cluster).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// Binds a data directory to a lineage of one repository; what it is bound to elsewhere stays. Blocks.
pub(crate) fn add(
    pgdata: &Path,
    cluster: &ClusterName,
    repository: RepositoryId,
    lineage: LineageId,
) -> io::Result<()> {
    replace(pgdata, cluster, &[(repository, lineage)], false)
}

/// Binds a data directory to these lineages of a cluster, and to no other of it. Blocks.
pub(crate) fn write(
    pgdata: &Path,
    cluster: &ClusterName,
    lineages: &[(RepositoryId, LineageId)],
) -> io::Result<()> {
    replace(pgdata, cluster, lineages, true)
}

fn replace(
    pgdata: &Path,
    cluster: &ClusterName,
    lineages: &[(RepositoryId, LineageId)],
    all: bool,
) -> io::Result<()> {
    let path = pgdata.join(BINDING);
    let before = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    let text = rebound(&before, cluster, lineages, all);
    let text = text.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    durable::replace(&path, text.as_bytes(), 0o644)
}
