//! The lineage that a cluster is registered with in a repository, and whether that is this cluster still.

use std::path::Path;

use anyhow::bail;
use walpoint_base::{ClusterName, PgMajor, SegmentSize, SystemId};
use walpoint_pg::control::{CONTROL_FILE, ControlFile};
use walpoint_pg::server::ServerIdentity;
use walpoint_repo::{Lineage, Repository};

use crate::foreign;
use crate::wal::lineage;

/// What never changes in a cluster's life, as `pg_control` says it or the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nature {
    system_id: SystemId,
    major: PgMajor,
    wal_segment_size: SegmentSize,
    wal_block_size: u32,
    block_size: u32,
    relation_segment_blocks: u32,
}

impl From<&ControlFile> for Nature {
    fn from(control: &ControlFile) -> Self {
        Self {
            system_id: control.system_id,
            major: control.major,
            wal_segment_size: control.wal_segment_size,
            wal_block_size: control.wal_block_size,
            block_size: control.block_size,
            relation_segment_blocks: control.relation_segment_blocks,
        }
    }
}

impl From<&ServerIdentity> for Nature {
    fn from(identity: &ServerIdentity) -> Self {
        Self {
            system_id: identity.system_id,
            major: identity.major,
            wal_segment_size: identity.segment_size,
            wal_block_size: identity.wal_block_size,
            block_size: identity.block_size,
            relation_segment_blocks: identity.relation_segment_blocks,
        }
    }
}

/// The lineage that this cluster archives to.
pub(super) async fn registered(
    repository: &Repository,
    cluster: &ClusterName,
    nature: Nature,
    pgdata: Option<&Path>,
) -> anyhow::Result<Lineage> {
    let lineage = match pgdata.filter(|pgdata| pgdata.join(CONTROL_FILE).exists()) {
        Some(pgdata) => lineage::of_directory(repository, cluster, pgdata).await?,
        None => repository.lineage_for(cluster, nature.system_id).await?,
    };
    if let Some(lineage) = lineage.filter(|lineage| lineage.system_id() == nature.system_id) {
        same_facts(&lineage, nature)?;
        return Ok(lineage);
    }
    let others = repository.lineages(cluster).await?;
    match foreign::another(cluster, &others, nature.system_id) {
        Some(found) => bail!(
            "{found}\nHINT: If it replaces the registered cluster, run \"archive-agent init --new-lineage\"."
        ),
        None => {
            bail!("cluster {cluster} is not registered in this repository\nHINT: Run \"archive-agent init\".")
        }
    }
}

/// What never changes in a cluster's life has to be as it was registered.
pub(crate) fn same_facts(lineage: &Lineage, nature: Nature) -> anyhow::Result<()> {
    let same = lineage.major == nature.major
        && lineage.segment_size == nature.wal_segment_size
        && lineage.wal_block_size == nature.wal_block_size
        && lineage.block_size == nature.block_size
        && lineage.relation_segment_blocks == nature.relation_segment_blocks;
    if !same {
        bail!(
            "lineage {} was registered as PostgreSQL {} with segments of {:?} and blocks of {} bytes, and the cluster says \
             PostgreSQL {}, {:?}, {} bytes\nHINT: If this is the same cluster, run \"archive-agent init --new-lineage\".",
            lineage.id,
            lineage.major,
            lineage.segment_size,
            lineage.block_size,
            nature.major,
            nature.wal_segment_size,
            nature.block_size
        );
    }
    Ok(())
}
