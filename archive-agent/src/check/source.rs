//! The cluster itself: its data directory, its `pg_control`, and whether the server that answers is that of this directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::{SignedDuration, Timestamp};
use walpoint_base::TimelineId;
use walpoint_pg::checksum::Checksums;
use walpoint_pg::control::{CONTROL_FILE, ControlFile};
use walpoint_pg::server::{Right, Server, ServerIdentity};
use walpoint_runtime::config::ClusterSettings;
use walpoint_runtime::human;
use walpoint_runtime::owner;

use super::report::CheckReport;
use super::whose_files;

pub(crate) use crate::session::{connect, walsender};

/// How often `pg_control` is read until its CRC is right: PostgreSQL writes it while it runs.
const CONTROL_TRIES: u32 = 50;

/// A server whose clock differs by more from this machine's is worth a warning.
const CLOCK_WARNING: SignedDuration = SignedDuration::from_secs(5);

/// Reads `pg_control` as a state that PostgreSQL wrote as a whole. Blocks.
pub(crate) fn read_control(pgdata: &Path) -> anyhow::Result<(Vec<u8>, ControlFile)> {
    let path = pgdata.join(CONTROL_FILE);
    let mut tries = 1;
    loop {
        let bytes = std::fs::read(&path).with_context(|| {
            format!(
                "could not read {}\nHINT: Check that this is the data directory of a cluster.",
                path.display()
            )
        })?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            Err(error) if tries == CONTROL_TRIES => {
                return Err(error).with_context(|| format!("{} cannot be used", path.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
        tries += 1;
    }
}

/// The data directory: there, ours, and with a sound `pg_control`.
pub(crate) fn data_directory(report: &mut CheckReport, pgdata: &Path) -> Option<ControlFile> {
    let what = "data directory";
    report.take(what, owner::require(pgdata))?;
    let (_, control) = report.take(what, read_control(pgdata))?;
    report.ok(
        what,
        format!(
            "{}: PostgreSQL {}, system identifier {}, timeline {}",
            pgdata.display(),
            control.major,
            control.system_id,
            control.checkpoint.timeline.map_or(0, TimelineId::get)
        ),
    );
    if let Some(note) = control.version_note() {
        let advice = "Check that this version of Walpoint is the newest one that knows this PostgreSQL.";
        report.warning("PostgreSQL's version", note, advice);
    }
    Some(control)
}

/// Warns where a backup cannot detect damaged pages.
pub(crate) fn page_checksums(report: &mut CheckReport, identity: &ServerIdentity) {
    let what = "page checksums";
    match identity.checksums {
        Checksums::On => {}
        Checksums::Off => {
            let advice = "If you can, enable them with pg_checksums while the server is down.";
            report.warning(what, "the cluster has none: a backup cannot detect damaged pages", advice);
        }
        Checksums::Changing => {
            let found =
                "they are being switched on or off: until that is done a backup cannot detect damaged pages";
            report.warning(what, found, "Check with SHOW data_checksums when that is done.");
        }
    }
}

/// The server: that it answers, and that it is the one of this data directory.
pub(crate) async fn server(
    report: &mut CheckReport,
    settings: &ClusterSettings,
    pgdata: &Path,
    control: &ControlFile,
) -> Option<(Server, ServerIdentity)> {
    let (mut server, identity) = answers(report, settings).await?;
    let what = "server and data directory";
    report.take(what, same_cluster(&mut server, &identity, pgdata, control).await)?;
    report.ok(what, format!("the server that answers is that of {}", pgdata.display()));
    Some((server, identity))
}

/// The server: that it answers, and what it says about itself.
pub(crate) async fn answers(
    report: &mut CheckReport,
    settings: &ClusterSettings,
) -> Option<(Server, ServerIdentity)> {
    let what = "connection";
    let mut server = report.take(what, connect(settings).await)?;
    let identity = report.take(what, server.identity().await.map_err(Into::into))?;
    let role = server.connection().user().to_owned();
    let kind = if identity.in_recovery { "standby" } else { "primary" };
    report.ok(what, format!("PostgreSQL {}, {kind}, as role \"{role}\"", identity.version));
    clock(report, &mut server).await;
    Some((server, identity))
}

/// How far the server's clock is from this machine's, beyond what asking took. A backup's times are the server's.
async fn clock(report: &mut CheckReport, server: &mut Server) {
    let what = "clock";
    let before = Timestamp::now();
    let Some(theirs) = report.take(what, server.clock().await.map_err(Into::into)) else { return };
    let (theirs, after) = (theirs.to_time(), Timestamp::now());
    let ahead = if theirs < before {
        theirs.duration_since(before)
    } else {
        theirs.duration_since(after).max(SignedDuration::ZERO)
    };
    if ahead.abs() > CLOCK_WARNING {
        let direction = if ahead.is_positive() { "ahead of" } else { "behind" };
        let off = human::span(ahead.unsigned_abs());
        report.warning(
            what,
            format!("the server's clock is {off} {direction} this machine's"),
            "Set both clocks (NTP): times of backups and of transactions are the server's, and a target time is compared with \
             them.",
        );
    }
}

/// Proves that the server runs on this data directory, not on another or a copy.
pub(crate) async fn same_cluster(
    server: &mut Server,
    identity: &ServerIdentity,
    pgdata: &Path,
    control: &ControlFile,
) -> anyhow::Result<()> {
    if identity.system_id != control.system_id {
        bail!(
            "the server that answers has the system identifier {}, but {} is of {}\nDETAIL: conninfo or pgdata leads to \
             another cluster.",
            identity.system_id,
            pgdata.display(),
            control.system_id
        );
    }
    whose_files::prove(server, pgdata).await.map(drop)
}

/// Files of the server's configuration that neither the data directory nor `extra_paths` holds.
pub(crate) async fn configuration_outside(
    server: &mut Server,
    identity: &ServerIdentity,
    pgdata: &Path,
    extra_paths: &[PathBuf],
) -> anyhow::Result<Vec<PathBuf>> {
    let files = server.config_files().await?;
    let all =
        [files.config_file, files.hba_file, files.ident_file].into_iter().flatten().chain(files.sources);
    let data = [identity.data_directory.as_path(), pgdata];
    let held: Vec<&Path> = data.into_iter().chain(extra_paths.iter().map(PathBuf::as_path)).collect();
    let mut outside: Vec<PathBuf> = all.filter_map(|file| not_held(file, &held)).collect();
    outside.sort();
    outside.dedup();
    Ok(outside)
}

/// A file that no backup of these directories holds, under the name that `extra_paths` would have to have. Of a link that leads out of them
/// a backup holds nothing but the link.
fn not_held(file: PathBuf, directories: &[&Path]) -> Option<PathBuf> {
    let is_named_there = directories.iter().any(|directory| file.starts_with(directory));
    match file.canonicalize() {
        Ok(real) => {
            let holds = |directory: &&Path| {
                real.starts_with(directory.canonicalize().as_deref().unwrap_or(directory))
            };
            let is_held = directories.iter().any(holds);
            (!is_held).then_some(if is_named_there { real } else { file })
        }
        // It is not to be seen from here.
        Err(_) => (!is_named_there).then_some(file),
    }
}

/// Configuration outside the data directory: a backup that should bring it back has to be told.
pub(crate) async fn configuration(
    report: &mut CheckReport,
    server: &mut Server,
    identity: &ServerIdentity,
    pgdata: &Path,
    settings: &ClusterSettings,
) {
    let what = "configuration files";
    let found = configuration_outside(server, identity, pgdata, &settings.extra_paths).await;
    match report.take(what, found) {
        None => {}
        Some(outside) if outside.is_empty() => {
            report.ok(what, "all are in the data directory or in extra_paths");
        }
        Some(outside) => {
            let names: Vec<String> = outside.iter().map(|path| path.display().to_string()).collect();
            let found = format!("a backup does not hold {}", names.join(", "));
            let mut places: Vec<String> =
                outside.iter().filter_map(|path| Some(format!("{:?}", path.parent()?))).collect();
            places.dedup();
            let advice = format!("To back it up too, set extra_paths = [{}].", places.join(", "));
            report.warning(what, found, &advice);
        }
    }
}

/// The rights of the role: what a backup calls, and what `restore-point` does.
pub(crate) async fn rights(report: &mut CheckReport, server: &mut Server, in_recovery: bool) {
    let what = "rights";
    let major = server.major();
    let (start, stop) = match major.get() {
        ..15 => ("pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"),
        _ => ("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"),
    };
    let mut wanted = vec![(start, Right::StartBackup(major)), (stop, Right::StopBackup(major))];
    if !in_recovery {
        wanted.push(("pg_switch_wal()", Right::SwitchWal));
    }
    let role = server.connection().user().to_owned();
    let mut missing = Vec::new();
    for (function, right) in wanted {
        match may_call(server, function).await {
            Ok(true) => {}
            Ok(false) => missing.push(right.grant(&role)),
            Err(error) => return report.error(what, &error),
        }
    }
    let database = server.connection().database().to_owned();
    let run = |grants: String| format!("As a superuser in database \"{database}\", run: {grants}");
    if !missing.is_empty() {
        let found = format!("role \"{role}\" may not start and stop backups");
        return report.failed(what, found, &run(missing.join(" ")));
    }
    // Backups do without it.
    match in_recovery || may_call(server, "pg_create_restore_point(text)").await.unwrap_or(true) {
        true => report.ok(what, format!("role \"{role}\" may start and stop backups")),
        false => report.warning(
            what,
            format!(
                "role \"{role}\" may not create restore points, which \"archive-agent restore-point\" does"
            ),
            &run(Right::CreateRestorePoint.grant(&role)),
        ),
    }
}

/// Whether the role may call this function, `name(types)`.
async fn may_call(server: &mut Server, function: &str) -> anyhow::Result<bool> {
    let sql =
        format!("SELECT pg_catalog.has_function_privilege('pg_catalog.{function}', 'EXECUTE') AS granted");
    granted(server, &sql).await
}

async fn granted(server: &mut Server, sql: &str) -> anyhow::Result<bool> {
    Ok(server.connection().query(sql).await?.one()?.get("granted")?)
}
