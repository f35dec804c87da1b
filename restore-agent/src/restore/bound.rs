//! The lineage that the data directory is bound to which a restore repairs or replaces: the server's own. Another server of its family may
//! have the target, too, with the same content, and what is restored would archive into that one's lineage.
//!
//! The binding counts that lies in the data directory that is there, or in the one that an earlier run moved aside. An interrupted repair may
//! have removed it, and its marker says which lineage it had chosen. A new directory has none.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use walpoint_base::{ClusterName, LineageId, SystemId};
use walpoint_plan::restore::{Hint, RestoreRequest};
use walpoint_repo::lineage::{BINDING, bound_elsewhere, bound_lineages};
use walpoint_storage::object::RepositoryId;

use super::decided::Decided;
use super::directory::Contents;
use super::existing::Existing;
use crate::plan::NoPlan;

/// The lineage of a data directory, and the file that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BoundLineage {
    pub(super) lineage: LineageId,
    /// `None` if it is the choice of an interrupted repair.
    by: Option<PathBuf>,
    /// The one that the command line names.
    named: Option<LineageId>,
}

impl BoundLineage {
    /// That of the directory that a restore has found, if it is bound to one. `named`: the lineage that the command line names.
    pub(super) fn of(
        decided: &Decided,
        cluster: &ClusterName,
        pgdata: &Path,
        named: Option<LineageId>,
    ) -> anyhow::Result<Option<Self>> {
        let (path, existing) = match (&decided.contents, &decided.previous) {
            (Contents::Unfinished(marker) | Contents::Finished(marker), _) if marker.delta => {
                let chosen = marker.lineage.split(' ').next().and_then(|lineage| lineage.parse().ok());
                let chosen = chosen.filter(|_| marker.cluster == cluster.as_str());
                return Ok(chosen.map(|lineage| Self { lineage, by: None, named }));
            }
            (Contents::Occupied(_), _) => (pgdata.join(BINDING), decided.existing.as_ref()),
            (_, Some(previous)) => {
                let existing = previous.existing.as_ref().ok().and_then(Option::as_ref);
                (previous.record.aside.join(BINDING), existing)
            }
            (_, None) => return Ok(None),
        };
        let found = usable(read(&path, cluster, existing), named)?;
        Ok(found.map(|lineage| Self { lineage, by: Some(path), named }))
    }

    /// Plans in it, unless another one is named.
    pub(super) fn ask(&self, request: &mut RestoreRequest) {
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
    pub(super) fn explain(&self, mut no_plan: NoPlan) -> NoPlan {
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
            let bound = BoundLineage { lineage: two, by: Some(PathBuf::from("/d/walpoint.lineage")), named };
            let mut request = RestoreRequest { lineage: named, ..RestoreRequest::default() };
            bound.ask(&mut request);
            assert_eq!(request.lineage, Some(planned));
            let note = bound.note();
            assert_eq!(note.is_some(), said.is_some());
            assert!(said.is_none_or(|said| note.unwrap().contains(said)));
        }
    }
}
