//! Tablespaces that replay creates: what lies at their locations on this machine.
//!
//! Replay of `CREATE TABLESPACE` removes what this version of PostgreSQL has at the location in the record, and writes
//! there, wherever the restore puts the tablespaces that the backup has. On the machine of the original that is the
//! original's directory. It is refused, unless the link of the data directory that is repaired or replaced leads there: then
//! it is moved aside. Nothing is changed here.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use walpoint_base::{Lsn, PgMajor};
use walpoint_repo::plan::{SegmentDecoder, created_tablespaces};

use super::existing::{self, Existing};
use super::layout::Layout;
use super::{directory, identity};
use crate::decoder::WalDecoder;
use crate::plan::Planned;

/// Where replay will create tablespaces.
#[derive(Debug, Default)]
pub(super) struct Created {
    /// The records, by location.
    locations: BTreeMap<PathBuf, (Lsn, u32)>,
    /// How the directories of this version begin.
    version: String,
}

/// What lies at these locations.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Directories of this version that belong to the data directory: they have to go aside.
    pub(super) ours: Vec<PathBuf>,
    /// Locations that do not exist, for a person.
    pub(super) missing: Vec<String>,
}

impl Created {
    /// Reads which tablespaces recovery under the plan creates.
    pub(super) async fn read(planned: &Planned, major: PgMajor) -> anyhow::Result<Self> {
        let archive = planned.repository.wal_to_read(&planned.lineage).await?;
        let decoder: Arc<dyn SegmentDecoder> = Arc::new(WalDecoder);
        let from = planned.plan.backup.id.start();
        let records = created_tablespaces(&archive, &planned.plan, from, &decoder).await?;
        let mut locations = BTreeMap::new();
        // One in place has no location of its own.
        for record in records.into_iter().filter(|record| !record.location.is_empty()) {
            let location = PathBuf::from(OsStr::from_bytes(&record.location));
            locations.entry(location).or_insert((record.record, record.oid));
        }
        Ok(Self { locations, version: format!("PG_{}_", major.get()) })
    }

    /// Looks at the locations; refuses what is another cluster's. `existing`: the data directory that is repaired or
    /// replaced.
    pub(super) fn look(&self, layout: &Layout, existing: Option<&Existing>) -> anyhow::Result<Found> {
        let pgdata = layout.pgdata();
        let mut found = Found::default();
        for (location, (lsn, oid)) in &self.locations {
            let shown = location.display();
            let versions = versions(location, &self.version).with_context(|| shown.to_string())?;
            let Some(versions) = versions else {
                if !layout.others().iter().any(|other| identity::same(other, location)) {
                    found.missing.push(format!(
                        "at {lsn} replay creates tablespace {oid} in {shown}, which does not exist: it would stop there; \
                         create the directory, empty, for PostgreSQL's user"
                    ));
                }
                continue;
            };
            if versions.is_empty() || directory::belongs_to(location, pgdata) {
                continue;
            }
            let link = existing.and_then(|existing| existing.link_to(location));
            let used = existing::used_by_another_server(pgdata, std::slice::from_ref(location));
            if link.is_none_or(|link| link == Path::new("pg_wal")) || used.is_some() {
                let user =
                    used.map(|(_, server)| format!(", used by the server that runs on {}", server.display()));
                bail!(
                    "at {lsn} replay creates tablespace {oid} in {shown} and would overwrite what lies there ({}{}): nothing was \
                     changed; recover to a moment before it (--target-lsn {lsn} --exclusive), or restore on a machine or in \
                     a container where that directory is another one",
                    versions
                        .iter()
                        .filter_map(|v| Some(v.file_name()?.to_string_lossy()))
                        .collect::<Vec<_>>()
                        .join(", "),
                    user.unwrap_or_default()
                );
            }
            // What the restore itself repairs or moves is taken care of.
            if !layout.others().iter().any(|other| identity::same(other, location)) {
                found.ours.extend(versions);
            }
        }
        Ok(found)
    }
}

/// The directories of one version of PostgreSQL in a tablespace; `None` if there is no such tablespace.
fn versions(location: &Path, version: &str) -> io::Result<Option<Vec<PathBuf>>> {
    let entries = match fs::read_dir(location) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let aside = name.to_string_lossy().contains(super::aside::SUFFIX);
        if name.as_bytes().starts_with(version.as_bytes()) && !aside {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use walpoint_base::durable;

    use super::*;

    #[test]
    fn only_directories_of_this_version_are_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["PG_16_202307071", "PG_17_202406281", "PG_17_202406281.walpoint-old-20260101T000000Z"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        durable::create(&dir.path().join("other"), b"").unwrap();
        let found = versions(dir.path(), "PG_17_").unwrap().unwrap();
        assert_eq!(found, [dir.path().join("PG_17_202406281")]);
        assert_eq!(versions(&dir.path().join("missing"), "PG_17_").unwrap(), None);
    }
}
