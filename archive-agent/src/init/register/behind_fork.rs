//! What was acknowledged between the fork of a new lineage and the moment at which the data directory was bound to it: it went into the
//! lineage before, and PostgreSQL does not hand it over again. It is archived once more, so that the new lineage continues its parent
//! without a gap. A crash leaves a part of it, and a gap until the next backup.
//!
//! No segment is lost in between, because init binds first and lists afterward, and because every acknowledgement, from memory or
//! after an upload, has the binding read as its last step. PostgreSQL has one archiver: it asks for a segment when the one before it
//! is marked as archived. So of a segment behind the fork:
//!
//! | the binding was read | PostgreSQL's mark | the segment |
//! |---|---|---|
//! | after it was written | whenever | is in the new lineage, or is uploaded there before it is acknowledged |
//! | before | `.done` at the listing | is listed |
//! | before | renamed while it is listed | is listed: `.ready` is looked for first |
//! | before | `.done` after the listing, however late | is the one that the archiver was told last. It waits and is in the lineage before: listed |
//! | before | none, its file was removed | was marked before. That it is missing is reported |
//!
//! What waits and was stored in the lineage before ahead of PostgreSQL's questions is archived with it, which does no harm. Where
//! the server was promoted meanwhile, its timeline is read again after the binding.

use std::time::Duration;

use walpoint_base::{SegmentName, WalFileName};
use walpoint_pg::control::ControlFile;
use walpoint_repo::lineage::LineageFork;
use walpoint_runtime::args::Selection;
use walpoint_runtime::backoff::Backoff;

use super::Joined;
use crate::check::report::CheckReport;
use crate::init::config::ConfigurationPlan;
use crate::wal::identity::{self, BehindFork};
use crate::wal::upload::{UploadError, Uploader};

/// How long one segment is tried.
const LIMIT: Duration = Duration::from_secs(60);

/// Archives what PostgreSQL marked as archived behind the fork, or is about to, into the lineage that was begun. What cannot be stored
/// is reported.
pub(super) async fn archive(
    report: &mut CheckReport,
    plan: &ConfigurationPlan,
    control: &ControlFile,
    joined: &[Joined<'_>],
) -> anyhow::Result<()> {
    let forks = joined.iter().filter(|joined| joined.created);
    let fork = forks.filter_map(|joined| joined.lineage.parent?.fork).min_by_key(|fork| fork.lsn);
    // Without one it has nothing in common with its parent, and begins with its first backup.
    let Some(fork) = fork else { return Ok(()) };
    let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
    let there = |name: &String| joined.iter().any(|joined| joined.opened.repository.name() == name);
    let uploader = Uploader::new(
        &Selection {
            cluster: plan.cluster.clone(),
            settings: plan.settings.clone(),
            repositories: plan.repositories.iter().filter(|(name, _)| there(name)).cloned().collect(),
            chosen: false,
            config: None,
        },
        pgdata,
    );
    let BehindFork { handed_over, removed } = listed(plan, control, joined, (&uploader, fork)).await?;
    if let Some(removed) = removed
        && is_missing(joined, removed).await?
    {
        not_stored(report, removed, "it is no longer in pg_wal");
    }
    for segment in handed_over {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), LIMIT);
        loop {
            match uploader.upload(WalFileName::Segment(segment)).await {
                Ok(_) => break,
                Err(UploadError { permanent: false, .. }) if backoff.wait().await => {}
                Err(UploadError { text, .. }) => {
                    not_stored(report, segment, &text);
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// What lies behind the fork, by what the data directory and the lineages before show now.
async fn listed(
    plan: &ConfigurationPlan,
    control: &ControlFile,
    joined: &[Joined<'_>],
    (uploader, fork): (&Uploader, LineageFork),
) -> anyhow::Result<BehindFork> {
    let timeline = uploader.newest_timeline().await?.max(control.newest_timeline());
    let mut parents = Vec::new();
    for Joined { opened, lineage, .. } in joined.iter().filter(|joined| joined.created) {
        let Some(parent) = lineage.parent else { continue };
        if let Some(parent) = opened.repository.read_lineage(&plan.cluster, parent.lineage).await? {
            parents.push(opened.repository.wal(&parent));
        }
    }
    let (wal, size) = (uploader.wal_directory(), control.wal_segment_size);
    let timeline = timeline.unwrap_or(fork.timeline);
    Ok(identity::handed_over_behind(&parents, &wal, timeline, fork, size).await?)
}

/// Whether one of the new lineages does not have a segment.
async fn is_missing(joined: &[Joined<'_>], segment: SegmentName) -> anyhow::Result<bool> {
    for Joined { opened, lineage, .. } in joined.iter().filter(|joined| joined.created) {
        if opened.repository.wal(lineage).header(segment).await?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn not_stored(report: &mut CheckReport, segment: SegmentName, why: &str) {
    report.warning(
        "lineage",
        format!("segment {segment}, which was archived before, is not stored in the new lineage: {why}"),
        "TAKE A BACKUP NOW (archive-agent backup): recovery from an earlier one cannot pass this segment.",
    );
}
