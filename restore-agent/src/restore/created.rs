//! Tablespaces that replay creates: what lies at their locations on this machine.
//!
//! Replay of `CREATE TABLESPACE` removes what this version of PostgreSQL has at the location in the record, and writes
//! there, wherever the restore puts the tablespaces that the backup has. On the machine of the original that is the
//! original's directory. It is refused, unless the link of the data directory that is repaired or replaced leads there: then
//! it is moved aside. Nothing is changed here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;
use walpoint_base::diagnostic::shown;
use walpoint_base::{CreatedTablespace, Lsn, PgMajor};
use walpoint_plan::restore::SegmentDecoder;
use walpoint_repo::planning::created_tablespaces;
use walpoint_runtime::args::CommonArgs;

use super::decided::Decided;
use super::elsewhere;
use super::layout::Layout;
use super::outside::{self, LocationStep};
use super::outside_state::{LocationState, VersionDirectory};
use super::refusal::OutsideRefusal;
use crate::decoder::WalDecoder;
use crate::plan::{LocationContents, Planned, TablespaceDocument};

/// Where replay will create tablespaces.
#[derive(Debug)]
pub(super) struct Created {
    /// The records, by location.
    locations: BTreeMap<PathBuf, (Lsn, u32)>,
    /// The version that will run.
    major: u8,
}

/// What was found at these locations.
#[derive(Debug, Default)]
pub(super) struct LocationStates(BTreeMap<PathBuf, LocationState>);

/// What is to be done at these locations.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FoundLocations {
    /// Directories of this version that belong to the data directory: they have to go aside.
    pub(super) ours: Vec<VersionDirectory>,
    /// Locations that do not exist, for a person.
    pub(super) missing: Vec<String>,
}

/// A location with what is done there.
struct DecidedLocation<'a> {
    location: &'a Path,
    record: (Lsn, u32),
    step: LocationStep<'a>,
}

impl FoundLocations {
    /// The directories that have to go aside.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.ours.iter().map(|version| version.path.clone()).collect()
    }

    /// Whether nothing else lies there than at another look.
    pub(super) fn is_as(&self, earlier: &Self) -> bool {
        (self.paths(), &self.missing) == (earlier.paths(), &earlier.missing)
    }
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

    /// One of the locations, and the record that creates a tablespace there.
    pub(super) fn first(&self) -> Option<(&Path, Lsn)> {
        self.locations.iter().map(|(location, (lsn, _))| (location.as_path(), *lsn)).next()
    }

    /// Looks at the locations that are not known yet.
    pub(super) fn probe(
        &self,
        mut known: LocationStates,
        layout: &Layout,
        decided: &Decided,
    ) -> LocationStates {
        for location in self.locations.keys() {
            let probe = || LocationState::probe(location, self.major, layout, decided);
            known.0.entry(location.clone()).or_insert_with(probe);
        }
        known
    }

    /// What is done at each location that was looked at, by what was found there.
    fn decide<'a>(
        &'a self,
        states: &'a LocationStates,
    ) -> impl Iterator<Item = Result<DecidedLocation<'a>, OutsideRefusal>> {
        self.locations.iter().filter_map(|(location, record)| {
            let step = outside::location(location, states.0.get(location)?);
            Some(step.map(|step| DecidedLocation { location, record: *record, step }))
        })
    }

    /// Why these tablespaces may not be created, if they may not, for a restore that does without the WAL that creates them.
    pub(super) fn obstacle(&self, states: &LocationStates) -> Option<String> {
        self.decide(states).find_map(|decided| match decided {
            Err(refusal) => Some(refusal.reason()),
            Ok(DecidedLocation { location, record, step: LocationStep::Refuse { versions, other } }) => {
                Some(would_overwrite(location, record, versions, other))
            }
            Ok(_) => None,
        })
    }

    /// Decides by what was found at the locations; refuses what is another cluster's.
    pub(super) fn found(&self, states: &LocationStates) -> anyhow::Result<FoundLocations> {
        let mut found = FoundLocations::default();
        for decided in self.decide(states) {
            let DecidedLocation { location, record, step } = decided.map_err(OutsideRefusal::explain)?;
            match step {
                LocationStep::Nothing => {}
                LocationStep::WarnOfMissing => found.missing.push(missing(location, record)),
                LocationStep::PutAway(versions) => found.ours.extend_from_slice(versions),
                LocationStep::Refuse { versions, other } => {
                    bail!(overwrites(location, record, versions, other))
                }
            }
        }
        Ok(found)
    }

    /// What `restore --dry-run` says about the locations, and why the restore would refuse, if it would.
    pub(super) fn describe(
        &self,
        states: &LocationStates,
    ) -> anyhow::Result<(Vec<TablespaceDocument>, Option<String>)> {
        let (mut tablespaces, mut refusal) = (Vec::new(), None);
        for decided in self.decide(states) {
            let DecidedLocation { location, record, step } = decided.map_err(OutsideRefusal::explain)?;
            let (state, note) = match step {
                LocationStep::Nothing => (LocationContents::Free, None),
                LocationStep::WarnOfMissing => (LocationContents::Missing, Some(missing(location, record))),
                LocationStep::PutAway(_) => (LocationContents::Replaced, None),
                LocationStep::Refuse { versions, other } => {
                    let text = overwrites(location, record, versions, other);
                    refusal.get_or_insert_with(|| text.clone());
                    (LocationContents::Occupied, Some(text))
                }
            };
            let (lsn, oid) = record;
            tablespaces.push(TablespaceDocument {
                lsn,
                oid,
                location: location.display().to_string(),
                state,
                note,
            });
        }
        tablespaces.sort_by_key(|one| one.lsn);
        Ok((tablespaces, refusal))
    }
}

fn missing(location: &Path, (lsn, oid): (Lsn, u32)) -> String {
    format!(
        "at {lsn} replay creates tablespace {oid} in {}, which does not exist: it would stop there\nHINT: Create the \
         directory, empty, for PostgreSQL's user.",
        shown(&location.to_string_lossy())
    )
}

fn overwrites(
    location: &Path,
    record: (Lsn, u32),
    versions: &[VersionDirectory],
    other: Option<&Path>,
) -> String {
    let lsn = record.0;
    format!(
        "{}: nothing was changed\nHINT: Recover to a moment before it (--target-lsn {lsn} --target-exclusive), or restore on a \
         machine or in a container where that directory is another one.",
        would_overwrite(location, record, versions, other)
    )
}

fn would_overwrite(
    location: &Path,
    (lsn, oid): (Lsn, u32),
    versions: &[VersionDirectory],
    other: Option<&Path>,
) -> String {
    let names: Vec<_> = versions.iter().filter_map(|v| Some(v.path.file_name()?.to_string_lossy())).collect();
    let user = other.map(|other| format!(", used by the cluster in {}", other.display()));
    format!(
        "at {lsn} replay creates tablespace {oid} in {} and would overwrite what lies there ({}{})",
        shown(&location.to_string_lossy()),
        names.join(", "),
        user.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::super::outside_state::{Lies, OwnLink};
    use super::super::running::{Hiding, Reason};
    use super::*;

    #[test]
    fn a_restore_that_does_without_says_only_why() {
        let location = PathBuf::from("/fast");
        let created =
            Created { locations: BTreeMap::from([(location.clone(), (Lsn(0x28), 16400))]), major: 17 };
        let versions = |link| {
            let path = location.join("PG_17_1");
            Ok(Lies::Versions {
                versions: vec![VersionDirectory { path, in_use: None, immovable: None }],
                link,
                other: None,
            })
        };
        let link = |hidden| Some(OwnLink { link: "pg_tblspc/16400".into(), hidden });
        let server = "a PostgreSQL server may be using /fast: this container (PID namespace) does not show the processes of others";
        for (lies, expected) in [
            (Err("Permission denied".to_owned()), Some("/fast: Permission denied")),
            (versions(link(Err("no /proc".to_owned()))), Some("/fast: no /proc")),
            (versions(link(Ok(Some(Reason::Hidden(Hiding::Namespace))))), Some(server)),
            (
                versions(None),
                Some(
                    "at 0/28 replay creates tablespace 16400 in /fast and would overwrite what lies there (PG_17_1)",
                ),
            ),
            (versions(link(Ok(None))), None),
            (Ok(Lies::Free), None),
        ] {
            let state = LocationState { restored: false, lies };
            let states = LocationStates(BTreeMap::from([(location.clone(), state)]));
            assert_eq!(created.obstacle(&states).as_deref(), expected, "{states:?}");
            assert_eq!(created.found(&states).is_err(), expected.is_some(), "{states:?}");
        }
    }
}
