//! The lineage that a data directory is bound to, in a file of its own there ([`BINDING`]). Most have none.
//!
//! It is replaced as a whole, so a crash leaves the old one or the new one.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;

use walpoint_base::{LineageId, durable};
use walpoint_repo::lineage::{BINDING, binding, bound_lineages};
use walpoint_storage::object::RepositoryId;

use crate::wal::disk;

/// The lineage of a repository that a data directory is bound to, if it is.
pub(crate) async fn read(pgdata: &Path, repository: RepositoryId) -> io::Result<Option<LineageId>> {
    Ok(read_all(pgdata).await?.get(&repository).copied())
}

/// The lineages that a data directory is bound to, by repository.
pub(crate) async fn read_all(pgdata: &Path) -> io::Result<BTreeMap<RepositoryId, LineageId>> {
    let path = pgdata.join(BINDING);
    let read = disk::look(pgdata, move || std::fs::read_to_string(path)).await;
    let text = match read.map_err(io::Error::other).and_then(|text| text) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(BTreeMap::new());
        }
        Err(error) => return Err(error),
    };
    bound_lineages(&text).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// Binds a data directory to a lineage of one repository; what it is bound to elsewhere stays. Blocks.
pub(crate) fn add(pgdata: &Path, repository: RepositoryId, lineage: LineageId) -> io::Result<()> {
    let path = pgdata.join(BINDING);
    let mut text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text += &binding([(repository, lineage)]);
    durable::replace(&path, text.as_bytes(), 0o644)
}

/// Binds a data directory to these lineages, and to no other.
pub(crate) fn write(
    pgdata: &Path,
    lineages: impl IntoIterator<Item = (RepositoryId, LineageId)>,
) -> io::Result<()> {
    durable::replace(&pgdata.join(BINDING), binding(lineages).as_bytes(), 0o644)
}
