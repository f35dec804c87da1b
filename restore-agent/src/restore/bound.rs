//! The lineage that the data directory is bound to which a restore repairs or replaces: the server's own. Another server of its family may
//! have the target, too, with the same content, and what is restored would archive into that one's lineage.
//!
//! The binding counts that lies in the data directory that is there, or in the one that an interrupted run moved aside. An interrupted repair
//! may have removed it, and its marker says which lineage it had chosen. A new directory has none, nor has one in whose place another was
//! since: what an earlier restore moved aside says nothing of that.
//!
//! Where it is not known whether another one was ([`Doubt`]), the other lineages of the cluster decide ([`lineages`]): if one of them may be
//! that one's, a person has to choose.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use walpoint_base::{ClusterName, LineageId, SystemId};
use walpoint_plan::restore::{Hint, RestoreRequest};
use walpoint_repo::lineage::{BINDING, bound_elsewhere, bound_lineages};
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_storage::object::RepositoryId;

use super::decided::Decided;
use super::directory::Contents;
use super::existing::Existing;
use super::lineages::{self, OtherLineage};
use super::previous::{Record, Succession};
use crate::plan::{self, NoPlan, Planned};

/// The lineage of a data directory, and the file that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BoundLineage {
    pub(super) lineage: LineageId,
    /// `None` if it is the choice of an interrupted repair.
    by: Option<PathBuf>,
    /// The one that the command line names.
    named: Option<LineageId>,
    doubt: Option<Doubt>,
}

/// Why another data directory may have been in the place of the one that an earlier restore moved aside.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Doubt {
    /// An older program moved it, and did not note what came.
    Unknown,
    /// The restore was interrupted. Whatever else was put there since, a restore knows nothing of it.
    Since(Box<Record>),
}

/// Plans in the lineage that the data directory is bound to, if it is to one and no other one is named, or says why not.
pub(super) async fn plan(
    common: &CommonArgs,
    request: &mut RestoreRequest,
    bound: Option<&BoundLineage>,
) -> Result<Planned, Failure> {
    plan_in(common, request, bound).await.map_err(|no_plan| plan::refused(common, no_plan))
}

async fn plan_in(
    common: &CommonArgs,
    request: &mut RestoreRequest,
    bound: Option<&BoundLineage>,
) -> Result<Planned, NoPlan> {
    let Some(bound) = bound else { return plan::make(common, request).await };
    bound.ask(request);
    let planned = plan::make(common, request).await.map_err(|no_plan| bound.explain(no_plan))?;
    if let (Some(doubt), None) = (&bound.doubt, bound.named) {
        bound.settle(doubt, lineages::others(common, &planned).await?)?;
    }
    Ok(planned)
}

impl BoundLineage {
    /// That of the directory that a restore has found, if it is bound to one. `named`: the lineage that the command line names.
    pub(super) fn of(
        decided: &Decided,
        cluster: &ClusterName,
        pgdata: &Path,
        named: Option<LineageId>,
    ) -> anyhow::Result<Option<Self>> {
        let (path, existing, doubt) = match (&decided.contents, &decided.previous) {
            (Contents::Unfinished(marker) | Contents::Finished(marker), _) if marker.delta => {
                let chosen = marker.lineage.split(' ').next().and_then(|lineage| lineage.parse().ok());
                let chosen = chosen.filter(|_| marker.cluster == cluster.as_str());
                return Ok(chosen.map(|lineage| Self { lineage, by: None, named, doubt: None }));
            }
            (Contents::Occupied(_), _) => (pgdata.join(BINDING), decided.existing.as_ref(), None),
            (contents, Some(previous)) => {
                let doubt = match (previous.succession(contents), contents) {
                    (Succession::Completed, _) => return Ok(None),
                    (Succession::Unknown, _) => Some(Doubt::Unknown),
                    (Succession::Interrupted, Contents::Empty) => {
                        Some(Doubt::Since(Box::new(previous.record.clone())))
                    }
                    (Succession::Interrupted, _) => None,
                };
                let existing = previous.existing.as_ref().ok().and_then(Option::as_ref);
                (previous.record.aside.join(BINDING), existing, doubt)
            }
            (_, None) => return Ok(None),
        };
        let found = usable(read(&path, cluster, existing), named)?;
        Ok(found.map(|lineage| Self { lineage, by: Some(path), named, doubt }))
    }

    /// Refuses to choose where the directory with the binding may not be the predecessor, because another one was there since that may have
    /// archived into one of the other lineages of the cluster.
    fn settle(&self, doubt: &Doubt, others: Vec<OtherLineage>) -> Result<(), NoPlan> {
        let may_be_its = |other: &OtherLineage| match doubt {
            Doubt::Unknown => true,
            Doubt::Since(record) => !record.was_moved_after(other.created),
        };
        let newest = others.into_iter().filter(may_be_its).max_by_key(|other| other.created);
        newest.map_or(Ok(()), |other| Err(self.undecided(doubt, &other)))
    }

    /// That a person has to choose.
    fn undecided(&self, doubt: &Doubt, OtherLineage { id, created }: &OtherLineage) -> NoPlan {
        let (lineage, by) = (self.lineage, self.by.as_deref().unwrap_or(Path::new(BINDING)).display());
        let renamed = match doubt {
            Doubt::Unknown => "An older version renamed the data directory at this path",
            Doubt::Since(_) => "An interrupted restore renamed the data directory at this path",
        };
        let error = anyhow!(
            "could not determine which lineage to recover in: nothing was changed\nDETAIL: {renamed}, and {by} binds it to lineage \
             {lineage}. Lineage {id}, created {created:.0}, may be of another cluster that has been at this path since.\nHINT: If no \
             other cluster has been there since, add --lineage {lineage}. Otherwise add --lineage {id}, or another one that \
             \"archive-agent status\" shows."
        );
        NoPlan::from(error)
    }

    /// Plans in it, unless another one is named.
    fn ask(&self, request: &mut RestoreRequest) {
        request.lineage.get_or_insert(self.lineage);
    }

    /// What a person should know of the plan.
    pub(super) fn note(&self) -> Option<String> {
        let (by, lineage) = (self.by.as_ref()?.display(), self.lineage);
        match self.named {
            None => Some(format!(
                "{by} binds the data directory to lineage {lineage}, and this plan recovers in it\nHINT: To recover in another one, \
                 name it with --lineage."
            )),
            Some(named) if named != lineage => Some(format!(
                "{by} binds the data directory to lineage {lineage}, and --lineage names another one: what is restored belongs to \
                 {named}"
            )),
            Some(_) => None,
        }
    }

    /// A refusal, with a hint where the command line does not name the lineage.
    fn explain(&self, mut no_plan: NoPlan) -> NoPlan {
        if let (NoPlan::Unreachable(refusal), Some(by), None) = (&mut no_plan, &self.by, self.named) {
            let by = by.display().to_string();
            refusal.hints.push(Hint::BoundLineage { by, lineage: self.lineage });
        }
        no_plan
    }
}

/// The lineage that a file binds a data directory to.
fn read(
    path: &Path,
    cluster: &ClusterName,
    existing: Option<&Existing>,
) -> anyhow::Result<Option<LineageId>> {
    let bound = match std::fs::read_to_string(path) {
        Ok(text) => bound_lineages(&text, cluster).map_err(anyhow::Error::from),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => Err(error.into()),
    };
    let bound = bound.with_context(|| {
        format!(
            "{} cannot be read, so the lineage of this data directory is unknown: nothing was changed\nHINT: Name the lineage \
             with --lineage; \"archive-agent status\" shows those of the cluster.",
            path.display()
        )
    })?;
    Ok(of_server(&bound, existing.and_then(|existing| existing.system_id)))
}

/// The lineage of the server that a directory is, by its `pg_control` if that can be read.
fn of_server(bound: &BTreeMap<RepositoryId, LineageId>, control: Option<SystemId>) -> Option<LineageId> {
    let mut all = bound.values().map(|lineage| lineage.system_id);
    let only = all.next().filter(|first| all.all(|other| other == *first));
    bound_elsewhere(bound, control.or(only)?).map(|(_, lineage)| lineage)
}

/// A binding that cannot be read matters only where it decides.
fn usable(
    found: anyhow::Result<Option<LineageId>>,
    named: Option<LineageId>,
) -> anyhow::Result<Option<LineageId>> {
    match (found, named) {
        (Err(error), Some(_)) => {
            tracing::warn!("{}", walpoint_words::format_chain(&error));
            Ok(None)
        }
        (found, _) => found,
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::durable;

    use super::super::steps::RestoreMode;
    use super::*;

    #[test]
    fn the_binding_of_the_directorys_own_server_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (path, cluster) = (dir.path().join(BINDING), "main".parse().unwrap());
        let write = |text: &str| durable::replace(&path, text.as_bytes(), 0o600).unwrap();
        let lineage = |system_id, n| LineageId { system_id: SystemId(system_id), n };
        let of = |system_id| Existing { system_id, ..Existing::default() };
        let own = |system_id: Option<u64>| read(&path, &cluster, Some(&of(system_id.map(SystemId)))).unwrap();
        assert_eq!(own(Some(7)), None, "there is no file");
        let [near, far] = [1, 2].map(|n| RepositoryId([n; 16]));
        // The repository that was not there when the second lineage began has the number of the directory's original.
        write(&format!("{near} main 7-1\n{far} main 7-2\n{near} copy 7-9\n"));
        assert_eq!(own(Some(7)), Some(lineage(7, 2)));
        assert_eq!(own(None), Some(lineage(7, 2)), "pg_control cannot be read");
        assert_eq!(own(Some(8)), None, "another cluster's");
        write(&format!("{near} main 7-1\n{far} main 8-2\n"));
        assert_eq!((own(Some(8)), own(None)), (Some(lineage(8, 2)), None));
        write("what is this\n");
        let found = || read(&path, &cluster, None);
        let refused = usable(found(), None).unwrap_err().to_string();
        assert!(refused.contains("HINT: Name the lineage"), "{refused}");
        assert_eq!(usable(found(), Some(lineage(7, 1))).unwrap(), None);
    }

    #[test]
    fn a_bound_lineage_is_planned_in_unless_another_one_is_named() {
        let (two, one): (LineageId, LineageId) = ("7-2".parse().unwrap(), "7-1".parse().unwrap());
        for (named, planned, said) in [
            (None, two, Some("recovers in it")),
            (Some(one), one, Some("belongs to 7-1")),
            (Some(two), two, None),
        ] {
            let bound = BoundLineage {
                lineage: two,
                by: Some(PathBuf::from("/d/walpoint.lineage")),
                named,
                doubt: None,
            };
            let mut request = RestoreRequest { lineage: named, ..RestoreRequest::default() };
            bound.ask(&mut request);
            assert_eq!(request.lineage, Some(planned));
            let note = bound.note();
            assert_eq!(note.is_some(), said.is_some());
            assert!(said.is_none_or(|said| note.unwrap().contains(said)));
        }
    }

    #[test]
    fn what_was_moved_aside_binds_only_until_another_directory_came_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let pgdata = dir.path().canonicalize().unwrap().join("data");
        let aside = pgdata.with_file_name("data.walpoint-old-20260101T000000Z");
        std::fs::create_dir(&aside).unwrap();
        let bound = format!("{} main 7-2\n", RepositoryId([1; 16]));
        durable::create(&aside.join(BINDING), bound.as_bytes()).unwrap();
        let record = |succeeded: Option<bool>| {
            let json = serde_json::json!({
                "pgdata": pgdata, "aside": aside, "moves": [], "succeeded": succeeded
            });
            durable::replace(&aside.join("walpoint-aside.json"), json.to_string().as_bytes(), 0o600).unwrap();
        };
        let found = |mode| {
            let decided = Decided::look(&pgdata, mode, true).unwrap();
            BoundLineage::of(&decided, &"main".parse().unwrap(), &pgdata, None)
        };
        let modes = [
            RestoreMode::New,
            RestoreMode::Replace { discard_wal: false },
            RestoreMode::Delta { discard_wal: false, overwrite_other: false },
        ];
        for mode in modes {
            record(None);
            let unknown = found(mode).unwrap().unwrap();
            assert_eq!((unknown.lineage, unknown.doubt), ("7-2".parse().unwrap(), Some(Doubt::Unknown)));
            record(Some(false));
            let doubt = found(mode).unwrap().unwrap().doubt;
            assert!(matches!(doubt, Some(Doubt::Since(_))), "{doubt:?}");
            record(Some(true));
            assert_eq!(found(mode).unwrap(), None, "{mode:?}");
        }
        // Not even where it cannot be read.
        durable::replace(&aside.join(BINDING), b"what is this\n", 0o600).unwrap();
        assert_eq!(found(RestoreMode::New).unwrap(), None);
        record(Some(false));
        found(RestoreMode::New).unwrap_err();
    }

    #[test]
    fn a_person_chooses_where_another_directory_may_have_been_in_its_place() {
        let [own, other, newer]: [LineageId; 3] = ["7-2", "7-1", "8-1"].map(|id| id.parse().unwrap());
        let record = serde_json::json!({
            "pgdata": "/d/data", "aside": "/d/data.walpoint-old-20260101T000000Z", "moves": []
        });
        let since = Doubt::Since(Box::new(serde_json::from_value(record).unwrap()));
        let by = Some(PathBuf::from("/d/data.walpoint-old-20260101T000000Z/walpoint.lineage"));
        let bound = BoundLineage { lineage: own, by, named: None, doubt: None };
        let others = |all: &[(LineageId, &str)]| -> Vec<OtherLineage> {
            all.iter().map(|(id, at)| OtherLineage { id: *id, created: at.parse().unwrap() }).collect()
        };
        let (before, after) = ("2025-12-31T23:00:00Z", "2026-01-01T00:00:01Z");
        for (doubt, all, chosen_beside) in [
            (&Doubt::Unknown, others(&[]), None),
            (&Doubt::Unknown, others(&[(other, before)]), Some("--lineage 7-1")),
            (&since, others(&[]), None),
            (&since, others(&[(other, before)]), None),
            (&since, others(&[(newer, after)]), Some("--lineage 8-1")),
            (&since, others(&[(newer, after), (other, before)]), Some("--lineage 8-1")),
        ] {
            let what = format!("{doubt:?} {all:?}");
            let Err(no_plan) = bound.settle(doubt, all) else {
                assert_eq!(chosen_beside, None, "{what}");
                continue;
            };
            let NoPlan::Failed(failure) = no_plan else { panic!("{what}") };
            let text = format!("{:#}", failure.error);
            let expected = chosen_beside.unwrap_or_else(|| panic!("{what}: {text}"));
            assert!(text.contains("--lineage 7-2") && text.contains(expected), "{text}");
        }
    }
}
