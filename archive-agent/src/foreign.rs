//! Whether what the repositories have of a cluster is of the data directory that this machine has for it.
//!
//! The configuration names both, and a copied one, or a mistyped `--cluster`, names another cluster's backups. Commands that delete, or
//! change what others do with backups, refuse that. A data directory that is not here, or that this user cannot read, refuses nothing:
//! a machine that only looks after repositories has none. One that is here and does not say whose it is, as a restore that did not
//! finish leaves it, proves nothing: it is refused, too, except to protect backups.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use walpoint_base::{ClusterName, SystemId};
use walpoint_repo::Repository;
use walpoint_repo::lineage::Lineages;
use walpoint_runtime::args::Selection;
use walpoint_storage::store::StoreSettings;

use crate::wal::control::read_control;
use crate::wal::disk;

/// What to do where a command refuses another cluster's backups.
const ADVICE: &str = "This configuration describes another cluster than the one in pgdata. Name the right one (--cluster, or \
    pgdata in the configuration). If the cluster in pgdata replaces the registered one, run \"archive-agent init --new-lineage\".";

/// What to do where it is not known whose a data directory is.
const FINISH: &str = "If a restore into it did not finish, finish it, or empty the directory. On a machine that only looks after the \
    repositories, remove pgdata from the configuration.";

/// The repository has the cluster, and it is another one than the data directory's, or may be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Foreign(String);

/// The cluster in the data directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum LocalCluster {
    /// It has that system identifier.
    Known(SystemId),
    /// There are files in this directory, and none that says of which cluster.
    Unknown(PathBuf),
    /// The directory is missing, is empty, does not answer, or is not this user's to read.
    Absent,
}

impl LocalCluster {
    /// That of the configured data directory.
    pub(crate) async fn of(selection: &Selection<StoreSettings>) -> Self {
        let Some(pgdata) = selection.settings.pgdata.clone() else { return Self::Absent };
        let directory = pgdata.clone();
        disk::look(&pgdata, move || Self::at(directory)).await.unwrap_or(Self::Absent)
    }

    /// That of a directory. Blocks.
    fn at(directory: PathBuf) -> Self {
        match read_control(&directory) {
            Ok(control) => Self::Known(control.system_id),
            Err(_) if is_unclear(&directory) => Self::Unknown(directory),
            Err(_) => Self::Absent,
        }
    }

    /// For what protects backups: only a cluster that is known to be another one refuses that.
    pub(crate) fn if_known(self) -> Self {
        if let Self::Unknown(_) = self { Self::Absent } else { self }
    }
}

/// Whether a directory has files, and its `pg_control` is missing or damaged. Blocks.
fn is_unclear(directory: &Path) -> bool {
    let control = std::fs::File::open(directory.join("global/pg_control"));
    control.err().is_none_or(|error| error.kind() == io::ErrorKind::NotFound)
        && std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

/// An error if the repository has lineages of the cluster, and none is known to be of the one in the data directory that is here.
pub(crate) async fn refuse(
    repository: &Repository,
    cluster: &ClusterName,
    local: &LocalCluster,
) -> anyhow::Result<()> {
    let found = match local {
        LocalCluster::Absent => None,
        LocalCluster::Known(own) => another(cluster, &repository.lineages(cluster).await?, *own)
            .map(|found| format!("{found}\nHINT: {ADVICE}")),
        LocalCluster::Unknown(directory) => {
            let is_here = repository.lineages(cluster).await?.ids().next().is_some();
            is_here.then(|| unknown(cluster, directory))
        }
    };
    found.map_or(Ok(()), |found| Err(anyhow!(Foreign(found))))
}

fn unknown(cluster: &ClusterName, directory: &Path) -> String {
    format!(
        "cannot determine whether the backups of cluster {cluster} are those of the data directory {}\nDETAIL: It has no \
         global/pg_control that can be read, so its system identifier is unknown.\nHINT: {FINISH}",
        directory.display()
    )
}

/// Says that lineages are another cluster's than `own`; `None` if one is of it, or there are none.
pub(crate) fn another(cluster: &ClusterName, lineages: &Lineages, own: SystemId) -> Option<String> {
    let ids: Vec<String> = lineages.ids().map(|id| id.to_string()).collect();
    if ids.is_empty() || lineages.ids().any(|id| id.system_id == own) {
        return None;
    }
    Some(format!(
        "cluster {cluster} is registered with the lineages {}, but this one has the system identifier {own}\nDETAIL: It is \
         another cluster, or pg_upgrade or initdb created it since.",
        ids.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::fixtures::Bed;

    #[tokio::test]
    async fn another_clusters_lineages_are_refused_where_the_own_identifier_is_known() {
        let bed = Bed::new().await;
        let (repository, lineage) = (bed.archive.repository(), bed.archive.lineage());
        let (cluster, own) = (&lineage.cluster, lineage.system_id());
        let other = SystemId(own.0 + 1);
        let (other_here, own_here) = (LocalCluster::Known(other), LocalCluster::Known(own));
        let refused = refuse(repository, cluster, &other_here).await.unwrap_err();
        assert!(refused.downcast_ref::<Foreign>().is_some());
        let text = refused.to_string();
        assert!(
            text.contains(&format!("{}, but this one has the system identifier {other}", lineage.id)),
            "{text}"
        );
        assert!(text.contains("init --new-lineage"), "{text}");
        assert!(refuse(repository, cluster, &own_here).await.is_ok());
        let absent = LocalCluster::Absent;
        assert!(refuse(repository, cluster, &absent).await.is_ok(), "a machine without the data directory");
        let unknown = "unknown".parse().unwrap();
        assert!(refuse(repository, &unknown, &other_here).await.is_ok(), "nothing is there of it");
    }

    /// Promise 11: a directory that does not say whose it is, as an unfinished restore, proves nothing.
    #[tokio::test]
    async fn a_data_directory_that_does_not_say_whose_it_is_is_refused() {
        let bed = Bed::new().await;
        let (repository, cluster) = (bed.archive.repository(), &bed.archive.lineage().cluster);
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| LocalCluster::at(dir.path().join(name));
        assert_eq!(at("missing"), LocalCluster::Absent);
        std::fs::create_dir(dir.path().join("data")).unwrap();
        assert_eq!(at("data"), LocalCluster::Absent, "it is empty");
        std::fs::create_dir(dir.path().join("data/global")).unwrap();
        let unfinished = LocalCluster::Unknown(dir.path().join("data"));
        assert_eq!(at("data"), unfinished);
        let control = dir.path().join("data/global/pg_control");
        walpoint_base::durable::replace(&control, b"nonsense", 0o600).unwrap();
        assert_eq!(at("data"), unfinished, "it is damaged");

        let refused = refuse(repository, cluster, &unfinished).await.unwrap_err();
        assert!(refused.downcast_ref::<Foreign>().is_some());
        assert!(refused.to_string().contains("its system identifier is unknown"), "{refused}");
        assert!(refuse(repository, cluster, &unfinished.clone().if_known()).await.is_ok());
        let unknown = "unknown".parse().unwrap();
        assert!(refuse(repository, &unknown, &unfinished).await.is_ok(), "nothing is there of it");
    }
}
