//! The other lineages of a plan's cluster, in every repository that can be read: those of other servers that archive under its name.

use jiff::Timestamp;
use walpoint_base::LineageId;
use walpoint_repo::lineage::Lineages;
use walpoint_repo::{Lineage, Repository};
use walpoint_runtime::args::CommonArgs;

use super::elsewhere;
use crate::plan::Planned;

/// A lineage that is not the plan's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OtherLineage {
    /// Its name, in one of the repositories.
    pub(super) id: LineageId,
    /// When it was created, or later.
    pub(super) created: Timestamp,
}

/// All of them, those whose facts are damaged included.
pub(super) async fn others(common: &CommonArgs, planned: &Planned) -> anyhow::Result<Vec<OtherLineage>> {
    let lineages = async |repository: Repository| repository.lineages(&planned.cluster).await;
    let mut all = vec![lineages(planned.repository.clone()).await?];
    all.extend(elsewhere::ask(common, planned, lineages).await?);
    Ok(all.into_iter().flat_map(|lineages| beside(&planned.lineage, lineages)).collect())
}

fn beside(own: &Lineage, all: Lineages) -> Vec<OtherLineage> {
    let Lineages { read, damaged } = all;
    let read = read.into_iter().filter(|other| !own.is_same_life(other));
    let read = read.map(|other| OtherLineage { id: other.id, created: other.created });
    // The plan's own is damaged in no repository but another one.
    let damaged = damaged.into_iter().filter(|other| other.id != own.id);
    let damaged = damaged.map(|other| OtherLineage { id: other.id, created: other.stored });
    read.chain(damaged).collect()
}
