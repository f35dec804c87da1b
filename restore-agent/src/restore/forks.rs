//! What recovery reads at a fork behind the archive's back: the parent's segment, put into the new `pg_wal`.
//!
//! The segment in which a timeline begins holds the parent's bytes up to the switch point, and recovery takes it under the
//! child's name. But a transaction that is prepared in it, and still open at a shutdown checkpoint or at the end of recovery
//! before the switch point, is read again from `pg_wal`, under the name of the timeline that is being replayed
//! (`XlogReadTwoPhaseData`). `restore_command` is not asked, and without the file recovery ends with "has already been
//! removed". So it is there, with what belongs to the parent and zeros behind it, and marked as archived: nobody archives
//! it, and a checkpoint removes it.
//!
//! Written before `pg_control`; the same restore writes it again.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use walpoint_base::{Lsn, SegmentName, SegmentNo, WalFileName, durable};
use walpoint_plan::restore::RestorePlan;
use walpoint_repo::wal::WalArchive;
use walpoint_runtime::args::CommonArgs;
use walpoint_storage::RepoError;

use super::elsewhere;
use super::owners::{self, Owner};
use crate::plan::Planned;

/// A parent's segment that has to be there, and the one that has its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fork {
    parent: SegmentName,
    source: SegmentName,
    switch: Lsn,
}

/// Writes the parents' segments of all forks that recovery passes, into that `pg_wal`.
pub(crate) async fn write(
    common: &CommonArgs,
    planned: &Planned,
    wal: &Path,
    owner: Option<Owner>,
) -> anyhow::Result<()> {
    let archive = planned.repository.wal_to_read(&planned.lineage).await?;
    for fork in forks(&archive, &planned.plan) {
        match write_one(&archive, fork, wal, owner).await {
            Ok(true) => {}
            Ok(false) => write_from_elsewhere(common, planned, fork, wal, owner).await?,
            Err(error) if is_damage(&error) => {
                tracing::warn!("repository \"{}\": {error}", planned.repository.name());
                write_from_elsewhere(common, planned, fork, wal, owner).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The same for a fork of which the plan's repository has a damaged segment or none. Where none is sound, recovery says so at the
/// place where it matters.
async fn write_from_elsewhere(
    common: &CommonArgs,
    planned: &Planned,
    fork: Fork,
    wal: &Path,
    owner: Option<Owner>,
) -> anyhow::Result<()> {
    let copies = elsewhere::copies(common, planned).await?;
    for archive in copies.archives().iter().skip(1) {
        let name = archive.repository().name();
        match write_one(archive, fork, wal, owner).await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) if error.downcast_ref::<RepoError>().is_some() => {
                tracing::warn!("repository \"{name}\": {error}");
            }
            Err(error) => return Err(error),
        }
    }
    tracing::warn!("no repository has \"{}\" undamaged: recovery stops there", fork.source);
    Ok(durable::remove(&wal.join(fork.parent.to_string()))?)
}

fn is_damage(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(RepoError::Corrupt { .. }))
}

/// Writes it from one repository, if that has its source.
async fn write_one(
    archive: &WalArchive,
    fork: Fork,
    wal: &Path,
    owner: Option<Owner>,
) -> anyhow::Result<bool> {
    let size = archive.lineage().segment_size.bytes();
    let path = wal.join(fork.parent.to_string());
    let context = || format!("{} cannot be written", path.display());
    durable::remove(&path).with_context(context)?;
    let Some(mut reader) = archive.read(WalFileName::Segment(fork.source)).await? else { return Ok(false) };
    let options = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let mut file = options.with_context(context)?;
    let mut left = fork.switch.0 % size;
    let mut buffer = Vec::new();
    while left > 0 && !reader.is_done() {
        buffer = reader.next_part(buffer).await?;
        let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.write_all(buffer.get(..part).unwrap_or_default()).with_context(context)?;
        left -= u64::try_from(part).unwrap_or(left);
    }
    file.set_len(size).and_then(|()| file.sync_all()).with_context(context)?;
    let status = wal.join("archive_status");
    owners::create_directories(&status, owner).with_context(context)?;
    let done = status.join(format!("{}.done", fork.parent));
    durable::replace(&done, b"", 0o600).with_context(context)?;
    durable::sync_directory(wal).with_context(context)?;
    if let Some(owner) = owner {
        owner.give(&path).and_then(|()| owner.give(&done)).with_context(context)?;
    }
    Ok(true)
}

/// The forks inside segments that recovery reads under another name than the parent's.
fn forks(archive: &WalArchive, plan: &RestorePlan) -> Vec<Fork> {
    let size = archive.lineage().segment_size;
    let mut found = Vec::new();
    for (step, switch) in plan.path.iter().filter_map(|step| Some((step, step.end?))) {
        let number = SegmentNo::of(switch, size);
        let inside = switch > number.start(size);
        let read = plan.wal.iter().find(|range| range.first <= number && number <= range.last);
        let Some(read) = read.filter(|read| inside && read.timeline != step.timeline) else { continue };
        found.push(Fork {
            parent: number.name(step.timeline, size),
            source: number.name(read.timeline, size),
            switch,
        });
    }
    found
}
