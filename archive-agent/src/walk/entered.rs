//! What a walk met of what every cluster, every tablespace and every database has. What it did not meet and the server has is
//! a mount or a link that leads nowhere here, and no backup is made without it.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::bail;
use walpoint_pg::files;
use walpoint_pg::label::TablespaceMap;
use walpoint_pg::server::{DEFAULT_TABLESPACE, TablespaceDirectory};

use super::directory::OpenDirectory;

/// What a walk met of what every cluster, every tablespace and every database has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entered {
    /// Directories of databases in which there is anything, by the OIDs of tablespace and database.
    databases: BTreeSet<(u32, u32)>,
    /// Tablespaces in which there is the directory of this version.
    tablespaces: BTreeSet<u32>,
    /// Tablespaces that were reached through their link.
    links: BTreeSet<u32>,
    /// Directories of [`NEEDED`] in which there is anything.
    needed: BTreeSet<&'static str>,
}

/// What no cluster is without, never empty.
const NEEDED: [&str; 4] = ["base", "global", "pg_multixact", "pg_xact"];

impl Entered {
    /// Whether the walk met it.
    pub(crate) fn has(&self, place: &TablespaceDirectory) -> bool {
        match place.database {
            None => self.tablespaces.contains(&place.tablespace),
            Some(database) => self.databases.contains(&(place.tablespace, database)),
        }
    }

    /// What a server does not run without and the walk did not meet.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match NEEDED.iter().find(|name| !self.needed.contains(*name)) {
            Some(name) => bail!(
                "{name} is missing or empty here, and no server runs without it\nHINT: It may be a link or a mount that leads \
                 nowhere here: make it visible, or let the server send the cluster (backup --remote)."
            ),
            None => Ok(()),
        }
    }

    /// Refuses a tablespace that the walk met and that is not in the backup's map: replay creates it, and cannot where it is filled
    /// already.
    pub(crate) fn require_mapped(&self, map: &TablespaceMap) -> anyhow::Result<()> {
        let is_mapped = |oid: &u32| map.tablespaces.iter().any(|mapped| mapped.oid == *oid);
        match self.links.iter().find(|oid| !is_mapped(oid)) {
            Some(oid) => bail!(
                "no backup was taken: tablespace {oid} was created just when the backup began\nHINT: Run \
                 the backup again."
            ),
            None => Ok(()),
        }
    }

    /// Notes the link to a tablespace that was followed.
    pub(super) fn note_link(&mut self, path: &Path) {
        let oid: Option<u32> = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        self.links.extend(oid);
    }

    /// Notes a directory that was opened.
    pub(super) fn note(&mut self, path: &Path, directory: &OpenDirectory) {
        let anything = directory.names().next().is_some();
        if let Some((space, database)) = files::database_directory(path) {
            if anything {
                self.databases.insert((space.unwrap_or(DEFAULT_TABLESPACE), database));
            }
        } else if let Some(space) = space_of_version_directory(path) {
            self.tablespaces.insert(space);
        } else if let Some(name) = NEEDED.iter().find(|name| anything && path == Path::new(name)) {
            self.needed.insert(name);
        }
    }
}

/// The OID in `pg_tblspc/<oid>/PG_<version>`. The walk enters that of its own version only.
fn space_of_version_directory(path: &Path) -> Option<u32> {
    let rest = path.strip_prefix("pg_tblspc").ok()?;
    let (space, version) = (rest.parent()?, rest.file_name()?);
    version.as_bytes().starts_with(b"PG_").then(|| space.to_str()?.parse().ok()).flatten()
}
