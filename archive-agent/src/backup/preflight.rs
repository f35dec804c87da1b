//! Proving, before PostgreSQL is asked for anything, that a backup can succeed: everything that `check` looks at, and that
//! archiving works. Whatever is wrong is told at once, not after hours of copying.

use std::path::Path;
use std::time::Duration;

use walpoint_base::{SegmentName, WalFileName};
use walpoint_pg::server::{Server, ServerIdentity};
use walpoint_repo::Repository;
use walpoint_runtime::args::Selection;
use walpoint_runtime::config::duration;
use walpoint_runtime::exit::Failure;
use walpoint_storage::store::StoreSettings;

use crate::check::remote::{RemoteSource, examine_remote};
use crate::check::report::{CheckReport, Grade};
use crate::check::repository::Destination;
use crate::check::{Examined, LocalSource, archiving, examine};

/// How long a segment may take to arrive that is switched because nothing shows that archiving works.
const ARRIVAL: Duration = Duration::from_secs(60);

/// The repositories that a backup is for.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// Those that get a copy.
    pub(crate) names: Vec<String>,
    /// Whether a person named them.
    named: bool,
    /// Those that should get one and cannot be used, with the reason.
    pub(crate) left_out: Vec<(String, String)>,
    /// Those that were opened, once it is known that a backup can be made.
    pub(crate) opened: Vec<Repository>,
}

impl Chosen {
    /// Leaves out the repositories that fail, but for those without which there is no backup: those named by a person, and
    /// those without which no WAL is archived. What fails in the others is no longer in the report.
    fn leave_out(&mut self, report: &mut CheckReport, acknowledging: &[String]) {
        if self.named {
            return;
        }
        let left_out = &mut self.left_out;
        self.names.retain(|name| {
            let failures = if acknowledging.contains(name) { None } else { report.take_failures_of(name) };
            left_out.extend(failures.iter().map(|why| (name.clone(), why.clone())));
            failures.is_none()
        });
    }
}

/// The repositories that get a copy: the selection keeps these, and those that have to acknowledge WAL. `named`: a person named them.
pub(crate) fn choose(selection: &mut Selection<StoreSettings>, names: Vec<String>, named: bool) -> Chosen {
    let ack = selection.settings.ack_set().to_vec();
    selection.repositories.retain(|(name, _)| names.contains(name) || ack.contains(name));
    Chosen { names, named, left_out: Vec::new(), opened: Vec::new() }
}

/// Looks at everything; an error names all that stands in the way. `full`: the backup stores everything.
pub(crate) async fn prove(
    selection: &Selection<StoreSettings>,
    chosen: &mut Chosen,
    full: bool,
) -> Result<Examined, Failure> {
    let mut report = CheckReport::default();
    let limit = duration(selection.settings.backup_wal_timeout);
    let examined = examine(&mut report, selection, limit, full).await?;
    let mut examined = usable(&mut report, selection, chosen, examined)?;
    let Examined { server, source: LocalSource { identity, destinations, pgdata, .. } } = &mut examined;
    drop_left_out(destinations, chosen);
    let works = archiving_works(server, identity, destinations, Some(pgdata), limit.min(ARRIVAL)).await;
    works.map_err(|error| error.context("no backup was started"))?;
    Ok(examined)
}

/// The same for a backup that is read with `BASE_BACKUP`.
pub(crate) async fn prove_remote(
    selection: &Selection<StoreSettings>,
    chosen: &mut Chosen,
    full: bool,
) -> Result<RemoteSource, Failure> {
    let mut report = CheckReport::default();
    let limit = duration(selection.settings.backup_wal_timeout);
    let examined = examine_remote(&mut report, selection, limit, full).await;
    let mut examined = usable(&mut report, selection, chosen, examined)?;
    let RemoteSource { server, identity, destinations, pgdata, .. } = &mut examined;
    drop_left_out(destinations, chosen);
    let works = archiving_works(server, identity, destinations, pgdata.as_deref(), limit.min(ARRIVAL)).await;
    works.map_err(|error| error.context("no backup was started"))?;
    Ok(examined)
}

/// What was examined, if a backup can be made of it, be it without some of the repositories.
fn usable<T>(
    report: &mut CheckReport,
    selection: &Selection<StoreSettings>,
    chosen: &mut Chosen,
    examined: Option<T>,
) -> anyhow::Result<T> {
    tell(report);
    let failure = report.failure("no backup was started");
    chosen.leave_out(report, selection.settings.ack_set());
    match examined {
        Some(examined) if report.count(Grade::Failed) == 0 && !chosen.names.is_empty() => {
            for (repository, why) in &chosen.left_out {
                tracing::error!(repository, "it cannot be used, so this backup is not stored there: {why}");
            }
            Ok(examined)
        }
        _ => Err(failure.into()),
    }
}

/// Keeps only the repositories that were not left out.
fn drop_left_out(destinations: &mut Vec<Destination>, chosen: &mut Chosen) {
    destinations.retain(|found| chosen.left_out.iter().all(|(name, _)| name != found.name()));
    chosen.opened = destinations.iter().map(|found| found.repository.clone()).collect();
    debug_assert!(chosen.names.iter().all(|name| destinations.iter().any(|found| found.name() == name)));
}

/// Logs what was found.
fn tell(report: &CheckReport) {
    for line in report.lines() {
        tracing::debug!(check = line.what, result = ?line.grade, "{}", line.found);
    }
    report.diagnostics(Grade::Warning).iter().for_each(|warning| tracing::warn!("{warning}"));
}

/// What PostgreSQL archived last is in the repositories; if not, a segment is switched and has to arrive.
async fn archiving_works(
    server: &mut Server,
    identity: &ServerIdentity,
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
        Err(error) => Err(error.context("archiving does not work, so no backup could ever be restored")),
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
