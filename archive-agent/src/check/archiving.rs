//! Archiving: that PostgreSQL is set up for it, that its last attempt succeeded, and that what it archives arrives.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use walpoint_base::{Diagnostic, SegmentName, SegmentNo, WalFileName};
use walpoint_pg::server::{ArchiveSettings, ArchiverStats, Server, ServerIdentity};
use walpoint_runtime::human;

use super::report::CheckReport;
use super::repository::Destination;
use crate::wal::comparison;

/// PostgreSQL tries a failed file again at least this often.
const ARCHIVER_PAUSE: Duration = Duration::from_secs(65);

/// What turns archiving on, also in a restored copy, where "on" in postgresql.conf would change nothing.
const ARCHIVE: &str = "Run \"alter system set archive_mode = on\", which also overrides the off that a \
    restore writes to postgresql.auto.conf, and restart PostgreSQL. A restore without --resume-archiving also switches subscriptions \
    off: if they are to run here, run \"alter system reset max_logical_replication_workers\" before the restart.";

/// A segment that arrives sooner is not worth a word.
const QUIET: Duration = Duration::from_secs(3);

/// The settings of archiving; whether they make PostgreSQL archive.
pub(crate) async fn settings(
    report: &mut CheckReport,
    server: &mut Server,
    identity: &ServerIdentity,
) -> bool {
    let what = "archive settings";
    let Some(settings) = report.take(what, server.archive_settings().await.map_err(Into::into)) else {
        return false;
    };
    if settings.wal_level == "minimal" {
        report.failed(what, "wal_level is minimal", "Set wal_level = replica and restart PostgreSQL.");
        return false;
    }
    if identity.in_recovery && settings.archive_mode != "always" {
        let found = format!(
            "archive_mode = {}: on a standby the WAL comes from the primary alone",
            settings.archive_mode
        );
        report.ok(what, found);
        return false;
    }
    if settings.archive_mode == "off" {
        report.failed(what, "archive_mode is off", ARCHIVE);
        return false;
    }
    if settings.archive_command.is_empty() && settings.archive_library.is_empty() {
        let advice = "Set archive_command as \"archive-agent init\" prints it, and reload PostgreSQL.";
        report.failed(what, "archive_command is empty", advice);
        return false;
    }
    let found = format!("archive_mode = {}, {}", settings.archive_mode, means(&settings));
    if !means(&settings).contains("archive-push") && !means(&settings).contains("archive-agent") {
        report.warning(
            what,
            found,
            "This does not call archive-push: check whether it archives somewhere else.",
        );
    } else {
        report.ok(what, found);
    }
    true
}

/// Whether PostgreSQL archives what little is written within some time.
pub(crate) async fn timeout(report: &mut CheckReport, server: &mut Server) {
    let what = "archive_timeout";
    let settings = server.archive_settings().await.map_err(Into::into);
    let Some(settings) = report.take(what, settings) else { return };
    match settings.archive_timeout {
        0 => report.warning(
            what,
            "archive_timeout is 0: on a quiet server, committed transactions are not archived until their \
             segment is full",
            "Set archive_timeout = 60 and reload PostgreSQL.",
        ),
        seconds => {
            let span = human::span(Duration::from_secs(seconds.into()));
            report.ok(what, format!("a segment is archived at the latest {span} after its first record"));
        }
    }
}

fn means(settings: &ArchiveSettings) -> String {
    match settings.archive_library.as_str() {
        "" => format!("archive_command = '{}'", settings.archive_command),
        library => format!("archive_library = '{library}'"),
    }
}

/// Whether the archiver's last attempt succeeded. One that failed gets as long as PostgreSQL needs to try again, at most
/// `time_limit`.
pub(crate) async fn archiver(report: &mut CheckReport, server: &mut Server, time_limit: Duration) -> bool {
    let what = "archiver";
    let time_limit = time_limit.min(ARCHIVER_PAUSE);
    let (deadline, mut told) = (Instant::now() + time_limit, false);
    loop {
        let Some(stats) = report.take(what, server.archiver_stats().await.map_err(Into::into)) else {
            return false;
        };
        if !stats.is_failing() {
            let last = stats.last_archived_wal.as_deref();
            report.ok(
                what,
                last.map_or("nothing archived so far".to_owned(), |last| format!("archived {last}")),
            );
            return true;
        }
        if Instant::now() >= deadline {
            let advice = "Read in the server's log what archive_command printed, and fix that first: \
                otherwise pg_wal fills the disk.";
            report.failed(what, describe(&stats), advice);
            return false;
        }
        if !std::mem::replace(&mut told, true) {
            let (found, limit) = (describe(&stats), human::span(time_limit));
            tracing::info!("waiting up to {limit} for PostgreSQL to try again: {found}");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What `pg_stat_archiver` says, in words.
pub(crate) fn describe(stats: &ArchiverStats) -> String {
    let archived = match (&stats.last_archived_wal, stats.last_archived_time) {
        (Some(wal), Some(time)) => format!("the last file it archived is {wal} at {time}"),
        _ => "it has archived nothing yet".to_owned(),
    };
    match (&stats.last_failed_wal, stats.last_failed_time) {
        (Some(wal), Some(time)) if stats.is_failing() => {
            format!(
                "the archiver fails: the last attempt, {wal} at {time}, was failure {}; {archived}",
                stats.failed_count
            )
        }
        _ => format!("the archiver reports no failure; {archived}"),
    }
}

/// Switches to a new segment and waits until the old one is in every repository that acknowledges.
pub(crate) async fn arrival(
    server: &mut Server,
    server_identity: &ServerIdentity,
    destinations: &[Destination],
    pgdata: Option<&Path>,
    limit: Duration,
) -> anyhow::Result<(SegmentName, Duration)> {
    let began = Instant::now();
    // Something to archive: an empty segment is not switched.
    let sql = "SELECT pg_catalog.pg_logical_emit_message(false, 'walpoint', 'check')";
    server.connection().query(sql).await.context("could not write a message to WAL")?;
    let end = server.switch_wal().await?;
    let segment = SegmentNo::before(end, server_identity.segment_size)
        .name(server_identity.timeline, server_identity.segment_size);
    arrived(server, destinations, pgdata, segment, limit.saturating_sub(began.elapsed())).await?;
    Ok((segment, began.elapsed()))
}

/// Waits until a complete segment is in every repository that acknowledges, and PostgreSQL has archived it: then it has archived all
/// before it, too.
pub(crate) async fn acknowledged(
    server: &mut Server,
    destinations: &[Destination],
    pgdata: Option<&Path>,
    segment: SegmentName,
    limit: Duration,
) -> anyhow::Result<()> {
    let began = Instant::now();
    arrived(server, destinations, pgdata, segment, limit).await?;
    loop {
        // The archiver takes one segment after the other. The name of another kind of file says nothing of that.
        let archived = server.archiver_stats().await?.last_archived_wal.and_then(|name| name.parse().ok());
        let is_later = matches!(archived, Some(WalFileName::Segment(last)) if last >= segment);
        if is_later || pgdata.is_some_and(|pgdata| is_done(pgdata, segment)) {
            return Ok(());
        }
        if began.elapsed() >= limit {
            bail!(
                "PostgreSQL did not archive segment {segment} within {}: {}",
                human::span(limit),
                why_not_archived(server, pgdata, segment).await
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until a segment is in every repository that acknowledges.
async fn arrived(
    server: &mut Server,
    destinations: &[Destination],
    pgdata: Option<&Path>,
    segment: SegmentName,
    limit: Duration,
) -> anyhow::Result<()> {
    let (began, mut told) = (Instant::now(), false);
    for destination in destinations.iter().filter(|destination| destination.acknowledges) {
        let archive = destination.archive();
        while archive.header(segment).await?.is_none() {
            if began.elapsed() >= limit {
                bail!(
                    "segment {segment} did not arrive in repository {} within {}: {}",
                    destination.name(),
                    human::span(limit),
                    why_not_archived(server, pgdata, segment).await
                );
            }
            if began.elapsed() >= QUIET && !std::mem::replace(&mut told, true) {
                let (repository, limit) = (destination.name(), human::span(limit));
                tracing::info!(
                    repository,
                    "waiting for PostgreSQL to archive segment {segment}, for at most {limit}"
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // Another server's may have that name.
        if let Some(pgdata) = pgdata
            && let Some(what) = comparison::another(&archive, &pgdata.join("pg_wal"), segment).await?
        {
            bail!(
                "this server completed segment {segment}, but the one in repository {} is another server's: {what}",
                destination.name()
            );
        }
    }
    Ok(())
}

/// Why a segment is not in the repository, as far as PostgreSQL tells, and its `archive_status` where that is visible.
pub(crate) async fn why_not_archived(
    server: &mut Server,
    pgdata: Option<&Path>,
    segment: SegmentName,
) -> String {
    let mut reasons: Vec<String> =
        pgdata.map(|pgdata| state_in_pg_wal(pgdata, segment)).into_iter().collect();
    match server.archiver_stats().await {
        Ok(stats) => reasons.push(describe(&stats)),
        Err(error) => reasons.push(error.to_string()),
    }
    match server.archive_settings().await {
        Ok(settings) => {
            reasons.push(format!("archive_mode = {}, {}", settings.archive_mode, means(&settings)))
        }
        Err(error) => reasons.push(error.to_string()),
    }
    Diagnostic::gather("", reasons).to_string()
}

/// Whether PostgreSQL marked a segment as archived.
fn is_done(pgdata: &Path, segment: SegmentName) -> bool {
    pgdata.join(format!("pg_wal/archive_status/{segment}.done")).exists()
}

/// What `pg_wal` tells of a segment.
fn state_in_pg_wal(pgdata: &Path, segment: SegmentName) -> String {
    let status = pgdata.join("pg_wal/archive_status");
    let state = if is_done(pgdata, segment) {
        "PostgreSQL counts it as archived, so archive_command stores it somewhere else, or the daemon does not know this \
         repository yet\nHINT: If you added the repository to the configuration, reload the daemon (systemctl reload \
         archive-agent, or SIGHUP)."
    } else if status.join(format!("{segment}.ready")).exists() {
        "it waits in pg_wal to be archived"
    } else if pgdata.join("pg_wal").join(segment.to_string()).exists() {
        "PostgreSQL has not finished writing it, or does not archive it on this server"
    } else {
        "it is not in pg_wal"
    };
    state.to_owned()
}
