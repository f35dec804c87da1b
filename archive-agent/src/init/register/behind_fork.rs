//! What was acknowledged between the fork of a new lineage and the moment at which the data directory was bound to it: it went into the
//! lineage before, and PostgreSQL does not hand it over again. It is archived once more, so that the new lineage continues its parent
//! without a gap. A crash leaves a part of it, and a gap until the next backup.

use std::time::Duration;

use walpoint_base::WalFileName;
use walpoint_pg::control::ControlFile;
use walpoint_runtime::args::Selection;
use walpoint_runtime::backoff::Backoff;

use super::Joined;
use crate::check::report::CheckReport;
use crate::init::config::ConfigurationPlan;
use crate::wal::identity;
use crate::wal::upload::{UploadError, Uploader};

/// How long one segment is tried.
const LIMIT: Duration = Duration::from_secs(60);

/// Archives what PostgreSQL marked as archived behind the fork into the lineage that was begun. What cannot be stored is reported.
pub(super) async fn archive(
    report: &mut CheckReport,
    plan: &ConfigurationPlan,
    control: &ControlFile,
    joined: &[Joined<'_>],
) -> anyhow::Result<()> {
    let forks = joined.iter().filter(|joined| joined.created);
    let fork = forks.filter_map(|joined| joined.lineage.parent?.fork).min_by_key(|fork| fork.lsn);
    // Without one it has nothing in common with its parent, and begins with its first backup.
    let (Some(fork), Some(timeline)) = (fork, control.newest_timeline()) else { return Ok(()) };
    let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
    let wal = pgdata.join("pg_wal");
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
    for segment in identity::done_behind(&wal, timeline, fork, control.wal_segment_size).await? {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), LIMIT);
        loop {
            match uploader.upload(WalFileName::Segment(segment)).await {
                Ok(_) => break,
                Err(UploadError { permanent: false, .. }) if backoff.wait().await => {}
                Err(UploadError { text, .. }) => {
                    report.warning(
                        "lineage",
                        format!(
                            "segment {segment}, which was archived before, is not stored in the new lineage: {text}"
                        ),
                        "TAKE A BACKUP NOW (archive-agent backup): recovery from an earlier one cannot pass this segment.",
                    );
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}
