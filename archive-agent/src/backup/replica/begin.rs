//! The beginning of the replicas: an intent in each repository says what the backup builds on there, before that is read.

use anyhow::Context;
use walpoint_repo::backup::{BackupWriter, BlockSize, Intent, ReusableBackups};

use super::outcome::{Outcomes, ReplicaOutcome};
use super::{Replica, Replicas};
use crate::backup::begun::Begun;
use crate::backup::memory::MemoryBudget;
use crate::backup::preflight::Chosen;
use crate::backup::request::{AGENT, BackupRequest, host};
use crate::check::repository::Destination;

impl Replicas<BackupWriter> {
    /// Begins one in each of `copies`. `stolen`: beside another backup that may still be running.
    pub(crate) async fn begin(
        request: &BackupRequest<'_>,
        begun: &Begun,
        copies: &[Destination],
        chosen: &Chosen,
        stolen: bool,
    ) -> anyhow::Result<Self> {
        let options = MemoryBudget::of(request.settings(), copies.len()).options();
        let block_size = BlockSize::new(begun.block_size).context("no cluster has such blocks")?;
        let mut all = Vec::new();
        for destination in copies {
            let intent = intent(request, begun, destination, stolen).await?;
            let resumed = intent.resumed.clone();
            let backups = destination.backups().at_rate(request.rate.as_ref());
            let writer = backups.begin(intent, block_size, &options).await?;
            log_reused(destination.name(), &writer, request.full);
            let outcome = ReplicaOutcome::open(destination.name());
            all.push(Replica { destination: destination.clone(), resumed, outcome, stage: Some(writer) });
        }
        let left_out = chosen.left_out.iter().map(|(name, why)| ReplicaOutcome::left_out(name, why));
        let outcomes = Outcomes::new(all.iter().map(|replica| replica.outcome.clone()).chain(left_out));
        Ok(Self { all, outcomes })
    }
}

/// What the backup announces in a repository: also what of that repository it builds on.
async fn intent(
    request: &BackupRequest<'_>,
    begun: &Begun,
    destination: &Destination,
    stolen: bool,
) -> anyhow::Result<Intent> {
    let ReusableBackups { parents, mut resumed } = match request.full {
        true => ReusableBackups::default(),
        false => ReusableBackups::choose(&destination.backups().list().await?),
    };
    if stolen {
        // One of them may still be running: it is neither resumed nor ended.
        resumed.clear();
    }
    let Begun { id, started, .. } = *begun;
    let lineage = destination.lineage.id;
    let (host, agent, label) = (host(), AGENT.to_owned(), request.label.clone());
    Ok(Intent { id, lineage, started, host, agent, label, parents, resumed })
}

fn log_reused(repository: &str, writer: &BackupWriter, full: bool) {
    let notes = writer.take_notes();
    notes.iter().map(walpoint_words::remark).for_each(|note| tracing::warn!(repository, "{note}"));
    match writer.parent() {
        Some(parent) => tracing::info!(repository, "comparing with backup {parent}"),
        None if full => tracing::info!(repository, "storing everything, as --full asks"),
        None => tracing::info!(repository, "storing everything: there is no backup to compare with"),
    }
}
