//! Proving, before PostgreSQL is asked for anything, that a backup can succeed: everything that `check` looks at, and that
//! archiving works. Whatever is wrong is told at once, not after hours of copying.

use std::path::Path;
use std::time::Duration;

use anyhow::{anyhow, bail};
use walpoint_base::{SegmentName, WalFileName};
use walpoint_pg::server::{Identity, Server};
use walpoint_repo::store::StoreSettings;
use walpoint_runtime::args::Selection;
use walpoint_runtime::config::duration;
use walpoint_runtime::exit::Failure;

use crate::check::remote::{RemoteSource, examine_remote};
use crate::check::report::{Grade, Report};
use crate::check::repository::Destination;
use crate::check::{Examined, archiving, examine};

/// How long a segment may take to arrive that is switched because nothing shows that archiving works.
const ARRIVAL: Duration = Duration::from_secs(60);

/// The repositories that get a copy: those asked for, or all of the cluster's. The selection keeps these, and those that
/// have to acknowledge WAL.
pub(crate) fn choose(
    selection: &mut Selection<StoreSettings>,
    wanted: &[String],
) -> Result<Vec<String>, Failure> {
    let known: Vec<String> = selection.repositories.iter().map(|(name, _)| name.clone()).collect();
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(name)) {
        let (cluster, known) = (&selection.cluster, known.join(", "));
        return Err(Failure::usage(anyhow!(
            "--repository {unknown}: cluster {cluster} has no such repository (it has: {known})"
        )));
    }
    let chosen: Vec<String> =
        known.into_iter().filter(|name| wanted.is_empty() || wanted.contains(name)).collect();
    let ack = selection.settings.ack_set().to_vec();
    selection.repositories.retain(|(name, _)| chosen.contains(name) || ack.contains(name));
    Ok(chosen)
}

/// Looks at everything; an error names all that stands in the way.
pub(crate) async fn prove(
    selection: &Selection<StoreSettings>,
    chosen: &[String],
) -> Result<Examined, Failure> {
    let mut report = Report::default();
    let limit = duration(selection.settings.backup_wal_timeout);
    let examined = examine(&mut report, selection, limit).await?;
    tell(&report);
    let mut examined = match examined {
        Some(examined) if report.count(Grade::Failed) == 0 => examined,
        _ => return Err(refused(&report.told(Grade::Failed)).into()),
    };
    debug_assert!(chosen.iter().all(|name| examined.destinations.iter().any(|found| found.name() == name)));
    let Examined { server, identity, destinations, pgdata, .. } = &mut examined;
    let works = archiving_works(server, identity, destinations, Some(pgdata), limit.min(ARRIVAL)).await;
    works.map_err(|e| refused(&format!("{e:#}")))?;
    Ok(examined)
}

/// The same for a backup that is read with `BASE_BACKUP`.
pub(crate) async fn prove_remote(
    selection: &Selection<StoreSettings>,
    chosen: &[String],
) -> Result<RemoteSource, Failure> {
    let mut report = Report::default();
    let limit = duration(selection.settings.backup_wal_timeout);
    let examined = examine_remote(&mut report, selection, limit).await;
    tell(&report);
    let mut examined = match examined {
        Some(examined) if report.count(Grade::Failed) == 0 => examined,
        _ => return Err(refused(&report.told(Grade::Failed)).into()),
    };
    debug_assert!(chosen.iter().all(|name| examined.destinations.iter().any(|found| found.name() == name)));
    let RemoteSource { server, identity, destinations, pgdata, .. } = &mut examined;
    let works = archiving_works(server, identity, destinations, pgdata.as_deref(), limit.min(ARRIVAL)).await;
    works.map_err(|e| refused(&format!("{e:#}")))?;
    Ok(examined)
}

/// Logs what was found.
fn tell(report: &Report) {
    for line in report.lines() {
        tracing::debug!(what = line.what, grade = ?line.grade, "{}", line.found);
    }
    if report.count(Grade::Warning) > 0 {
        report.told(Grade::Warning).lines().for_each(|line| tracing::warn!("{line}"));
    }
}

fn refused(what: &str) -> anyhow::Error {
    anyhow!("no backup was begun:\n{what}")
}

/// What PostgreSQL archived last is in the repositories; if not, a segment is switched and has to arrive.
async fn archiving_works(
    server: &mut Server,
    identity: &Identity,
    destinations: &[Destination],
    pgdata: Option<&Path>,
    limit: Duration,
) -> anyhow::Result<()> {
    let stats = server.archiver_stats().await?;
    if identity.in_recovery {
        // WAL comes from the primary; waiting at the end shows whether it does.
        return Ok(());
    }
    let last = stats.last_archived_wal.as_deref().and_then(|name| name.parse().ok());
    if let Some(WalFileName::Segment(last)) = last
        && is_everywhere(destinations, last).await?
    {
        return Ok(());
    }
    match archiving::arrival(server, identity, destinations, pgdata, limit).await {
        Ok(_) => Ok(()),
        Err(error) => bail!("archiving does not work, so no backup could ever be restored: {error:#}"),
    }
}

async fn is_everywhere(destinations: &[Destination], segment: SegmentName) -> anyhow::Result<bool> {
    for destination in destinations.iter().filter(|destination| destination.acknowledges) {
        if destination.archive().header(segment).await?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}
