//! Whether what the repositories have of a cluster is of the data directory that this machine has for it.
//!
//! The configuration names both, and a copied one, or a mistyped `--cluster`, names another cluster's backups. Commands that delete, or
//! change what others do with backups, refuse that. A data directory that cannot be read here refuses nothing: a machine that only
//! looks after repositories has none.

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

/// The repository has the cluster, and it is another one than the data directory's.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Foreign(String);

/// The system identifier of the cluster's data directory. `None` of one that is missing, does not answer or cannot be read.
pub(crate) async fn local_system_id(selection: &Selection<StoreSettings>) -> Option<SystemId> {
    let pgdata = selection.settings.pgdata.clone()?;
    let directory = pgdata.clone();
    let control = disk::look(&pgdata, move || read_control(&directory)).await.ok()?.ok()?;
    Some(control.system_id)
}

/// An error if the repository has lineages of the cluster, and none of `own`.
pub(crate) async fn refuse(
    repository: &Repository,
    cluster: &ClusterName,
    own: Option<SystemId>,
) -> anyhow::Result<()> {
    let Some(own) = own else { return Ok(()) };
    match another(cluster, &repository.lineages(cluster).await?, own) {
        None => Ok(()),
        Some(found) => Err(anyhow!(Foreign(format!("{found}\nHINT: {ADVICE}")))),
    }
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
        let refused = refuse(repository, cluster, Some(other)).await.unwrap_err();
        assert!(refused.downcast_ref::<Foreign>().is_some());
        let text = refused.to_string();
        assert!(
            text.contains(&format!("{}, but this one has the system identifier {other}", lineage.id)),
            "{text}"
        );
        assert!(text.contains("init --new-lineage"), "{text}");
        assert!(refuse(repository, cluster, Some(own)).await.is_ok());
        assert!(refuse(repository, cluster, None).await.is_ok(), "a machine without the data directory");
        let unknown = "unknown".parse().unwrap();
        assert!(refuse(repository, &unknown, Some(other)).await.is_ok(), "nothing is there of it");
    }
}
