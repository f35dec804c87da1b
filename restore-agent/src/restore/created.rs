//! Tablespaces that replay creates: what lies at their locations on this machine.
//!
//! Replay of `CREATE TABLESPACE` removes what this version of PostgreSQL has at the location in the record, and writes
//! there, wherever the restore puts the tablespaces that the backup has. On the machine of the original that is the
//! original's directory. It is refused, unless the link of the data directory that is repaired or replaced leads there: then
//! it is moved aside. Nothing is changed here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use walpoint_base::{CreatedTablespace, Lsn, PgMajor, tablespace};
use walpoint_plan::restore::SegmentDecoder;
use walpoint_repo::planning::created_tablespaces;
use walpoint_runtime::args::CommonArgs;

use super::decided::Decided;
use super::layout::Layout;
use super::{directory, identity};
use super::{elsewhere, existing};
use crate::decoder::WalDecoder;
use crate::plan::{Planned, TablespaceDocument};

/// Where replay will create tablespaces.
#[derive(Debug)]
pub(super) struct Created {
    /// The records, by location.
    locations: BTreeMap<PathBuf, (Lsn, u32)>,
    /// The version that will run.
    major: u8,
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
    pub(super) async fn read(common: &CommonArgs, planned: &Planned, major: PgMajor) -> anyhow::Result<Self> {
        let decoder: Arc<dyn SegmentDecoder> = Arc::new(WalDecoder);
        let (plan, from) = (&planned.plan, planned.plan.backup.id.start());
        let creating = planned.creating.as_deref();
        let records = elsewhere::ask_copies(common, planned, async |copies: &_| {
            created_tablespaces(copies, plan, creating, from, &decoder).await
        })
        .await?;
        Ok(Self { locations: BTreeMap::new(), major: major.get() }.with(&records))
    }

    /// The same with more records.
    pub(super) fn with(&self, records: &[CreatedTablespace]) -> Self {
        let mut locations = self.locations.clone();
        // One in place has no location of its own.
        for (record, location) in records.iter().filter_map(|record| Some((record, record.path()?))) {
            locations.entry(location.to_owned()).or_insert((record.record, record.oid));
        }
        Self { locations, major: self.major }
    }

    /// Whether replay creates none that has a location.
    pub(super) fn is_empty(&self) -> bool {
        self.locations.is_empty()
    }

    /// Looks at the locations; refuses what is another cluster's.
    pub(super) fn look(&self, layout: &Layout, decided: &Decided) -> anyhow::Result<Found> {
        let mut found = Found::default();
        for (location, record) in &self.locations {
            match self.lies_there(location, layout, decided)? {
                There::Free => {}
                There::Missing => found.missing.push(missing(location, *record)),
                There::Ours(versions) => found.ours.extend(versions),
                There::Foreign { versions, server } => {
                    bail!(overwrites(location, *record, &versions, server))
                }
            }
        }
        Ok(found)
    }

    /// What `restore --dry-run` says about the locations, and why the restore would refuse, if it would.
    pub(super) fn describe(
        &self,
        layout: &Layout,
        decided: &Decided,
    ) -> anyhow::Result<(Vec<TablespaceDocument>, Option<String>)> {
        let (mut tablespaces, mut refusal) = (Vec::new(), None);
        for (location, record) in &self.locations {
            let (state, note) = match self.lies_there(location, layout, decided)? {
                There::Free => ("free", None),
                There::Missing => ("missing", Some(missing(location, *record))),
                There::Ours(_) => ("own", None),
                There::Foreign { versions, server } => {
                    let text = overwrites(location, *record, &versions, server);
                    refusal.get_or_insert_with(|| text.clone());
                    ("foreign", Some(text))
                }
            };
            let (lsn, oid) = record;
            tablespaces.push(TablespaceDocument {
                lsn: lsn.to_string(),
                oid: *oid,
                location: location.display().to_string(),
                state,
                note,
            });
        }
        tablespaces.sort_by_key(|one| one.lsn.parse::<Lsn>().unwrap_or_default());
        Ok((tablespaces, refusal))
    }

    fn lies_there(&self, location: &Path, layout: &Layout, decided: &Decided) -> anyhow::Result<There> {
        let pgdata = layout.pgdata();
        // What the restore itself makes, repairs or moves is taken care of.
        let restored = layout.others().iter().any(|other| identity::same(other, location));
        let versions = tablespace::version_directories(location, self.major)
            .with_context(|| location.display().to_string())?;
        let Some(versions) = versions else {
            return Ok(if restored { There::Free } else { There::Missing });
        };
        if versions.is_empty() || directory::belongs_to(location, pgdata, decided.user) {
            return Ok(There::Free);
        }
        let link = decided.link_to(location);
        let used = existing::used_by_another_server(pgdata, &[location.to_owned()]);
        if link.is_none_or(|link| link == Path::new("pg_wal")) || used.is_some() {
            return Ok(There::Foreign { versions, server: used.map(|(_, server)| server) });
        }
        decided.require_visible(location)?;
        Ok(if restored { There::Free } else { There::Ours(versions) })
    }
}

/// What lies at one location.
enum There {
    /// Nothing of this version, or what the restore takes care of.
    Free,
    /// There is no such directory.
    Missing,
    /// These directories of the data directory that is repaired or replaced.
    Ours(Vec<PathBuf>),
    /// Directories of another one, and the data directory of the server that uses them, if it was found.
    Foreign { versions: Vec<PathBuf>, server: Option<PathBuf> },
}

fn missing(location: &Path, (lsn, oid): (Lsn, u32)) -> String {
    format!(
        "at {lsn} replay creates tablespace {oid} in {}, which does not exist: it would stop there; create the directory, empty, \
         for PostgreSQL's user",
        location.display()
    )
}

fn overwrites(
    location: &Path,
    (lsn, oid): (Lsn, u32),
    versions: &[PathBuf],
    server: Option<PathBuf>,
) -> String {
    let names: Vec<_> = versions.iter().filter_map(|v| Some(v.file_name()?.to_string_lossy())).collect();
    let user = server.map(|server| format!(", used by the server that runs on {}", server.display()));
    format!(
        "at {lsn} replay creates tablespace {oid} in {} and would overwrite what lies there ({}{}): nothing was changed; \
         recover to a moment before it (--target-lsn {lsn} --target-exclusive), or restore on a machine or in a container where that \
         directory is another one",
        location.display(),
        names.join(", "),
        user.unwrap_or_default()
    )
}
