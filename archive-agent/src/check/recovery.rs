//! Recovery settings that outlived a restore.
//!
//! The server that was restored ignores them once recovery has ended. A standby that is made from it, by pg_basebackup for one,
//! has them too, follows them, and gets nowhere: it stops at a position that it has passed, or stays on a timeline that was left.

use walpoint_pg::server::Server;

use super::report::CheckReport;

/// The settings that a standby would follow, unless they were reset and wait for a restart.
const SETTINGS: &str = "SELECT \
    coalesce(string_agg(name || ' = ''' || setting || '''', ', ' ORDER BY name), '') AS found, \
    coalesce(string_agg('-c \"alter system reset ' || name || '\"', ' ' ORDER BY name), '') AS remedy \
    FROM pg_catalog.pg_settings \
    WHERE name IN ('recovery_target', 'recovery_target_lsn', 'recovery_target_name', 'recovery_target_time', \
    'recovery_target_timeline', 'recovery_target_xid') \
    AND setting IS DISTINCT FROM boot_val AND setting <> '' AND NOT pending_restart \
    AND NOT pg_catalog.pg_is_in_recovery()";

/// Warns about the settings of a recovery that has ended.
pub(super) async fn settings(report: &mut CheckReport, server: &mut Server) {
    let what = "recovery settings";
    let Some((found, remedy)) = report.take(what, ask(server).await) else { return };
    if found.is_empty() {
        return;
    }
    let found = format!(
        "recovery has ended, but {found} would keep a standby made from this server from following it"
    );
    let advice = format!(
        "As a superuser, run: psql {remedy} -c \"select pg_reload_conf()\"\nHINT: The server itself needs no restart, though \
         its log says so. On standbys that already exist, remove these lines from their postgresql.auto.conf."
    );
    report.warning(what, found, &advice);
}

async fn ask(server: &mut Server) -> anyhow::Result<(String, String)> {
    let row = server.connection().query(SETTINGS).await?.one()?;
    Ok((row.get("found")?, row.get("remedy")?))
}
