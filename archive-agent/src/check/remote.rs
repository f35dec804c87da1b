//! A cluster that is seen through its server alone: what a backup sent by the server needs, and when that is the way.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use walpoint_pg::server::{Server, ServerError, ServerIdentity, Walsender};
use walpoint_runtime::args::Selection;
use walpoint_runtime::config::ClusterSettings;
use walpoint_runtime::human;
use walpoint_storage::store::StoreSettings;

use super::report::CheckReport;
use super::repository::{self, Destination};
use super::{archiving, places, source, whose_files};

/// SQLSTATE of a server that has no connection left.
const TOO_MANY_CONNECTIONS: &str = "53300";
/// SQLSTATE of a connection that pg_hba.conf does not let in, among other reasons.
const INVALID_AUTHORIZATION: &str = "28000";

/// A server and the repositories of its cluster, after a look at each.
#[derive(Debug)]
pub(crate) struct RemoteSource {
    /// A session on the server.
    pub(crate) server: Server,
    /// What the server says about itself.
    pub(crate) identity: ServerIdentity,
    /// The repositories that are fine.
    pub(crate) destinations: Vec<Destination>,
    /// The data directory, if it is visible all the same: for better explanations only.
    pub(crate) pgdata: Option<PathBuf>,
    /// Whether PostgreSQL is set up to archive, and its last attempt did not fail.
    pub(crate) archives: bool,
}

/// Why the server has to send the cluster; `None` if its data directory can be read.
pub(crate) fn why_remote(asked: bool, selection: &Selection<StoreSettings>) -> Option<String> {
    if asked {
        return Some("as --remote asks".to_owned());
    }
    match &selection.settings.pgdata {
        None => Some(format!("because [cluster.{}] has no pgdata", selection.cluster)),
        Some(pgdata) if !pgdata.exists() => {
            Some(format!("because there is no {} here (pgdata)", pgdata.display()))
        }
        Some(_) => None,
    }
}

/// Looks at everything that a backup sent by the server needs. `None` if something is so wrong that the rest cannot be
/// looked at; what is wrong is in the report either way.
pub(crate) async fn examine_remote(
    report: &mut CheckReport,
    selection: &Selection<StoreSettings>,
    time_limit: Duration,
    full: bool,
) -> Option<RemoteSource> {
    let settings = &selection.settings;
    let (mut server, identity) = source::answers(report, settings).await?;
    replication(report, &mut server, &identity, settings).await;
    let destinations = repository::destinations(report, selection, (&identity).into()).await;
    let pgdata = own_directory(&mut server, settings).await;
    if let Some(pgdata) = &pgdata {
        places(report, &destinations, pgdata);
    }
    let bytes = size(&mut server).await.unwrap_or(0);
    report.ok("size", format!("about {}", human::size(bytes)));
    for destination in &destinations {
        repository::space(report, destination, bytes, full).await;
    }
    outside(report, &mut server, &identity, settings).await;
    source::page_checksums(report, &identity);
    let archives = archiving::settings(report, &mut server, &identity).await
        && archiving::archiver(report, &mut server, time_limit).await;
    Some(RemoteSource { server, identity, destinations, pgdata, archives })
}

/// The data directory, if it is visible here and that of the server.
pub(crate) async fn own_directory(server: &mut Server, settings: &ClusterSettings) -> Option<PathBuf> {
    let pgdata = settings.pgdata.clone().filter(|pgdata| pgdata.exists())?;
    match whose_files::examine(server, &pgdata).await {
        Ok(Some(_)) => Some(pgdata),
        Ok(None) => {
            tracing::info!("{} is not the data directory of the server, and is left alone", pgdata.display());
            None
        }
        Err(error) => {
            tracing::debug!("{} is left alone: {}", pgdata.display(), walpoint_words::format_chain(&error));
            None
        }
    }
}

/// Whether the server lets this role in for replication: tried, since role, `pg_hba.conf` and free places decide together.
async fn replication(
    report: &mut CheckReport,
    server: &mut Server,
    identity: &ServerIdentity,
    settings: &ClusterSettings,
) {
    let what = "replication";
    let tried = identify(server, identity, settings).await;
    let error = match tried {
        Ok(role) => {
            return report
                .ok(what, format!("role \"{role}\" can connect, and the server is the same cluster"));
        }
        Err(error) => error,
    };
    let sqlstate = error.downcast_ref::<ServerError>().and_then(ServerError::sqlstate).map(str::to_owned);
    let role = server.connection().user().to_owned();
    let advice = match sqlstate.as_deref() {
        Some(TOO_MANY_CONNECTIONS) => {
            let senders = server.setting("max_wal_senders").await.ok().flatten().unwrap_or_default();
            format!(
                "A backup sent by the server takes one of max_wal_senders (now {senders}): raise it and restart PostgreSQL, \
                 or end what uses them (pg_stat_replication)."
            )
        }
        Some(INVALID_AUTHORIZATION) => format!(
            "Add to pg_hba.conf, for the address this connection comes from, a line such as \"host replication {role} ADDRESS \
             scram-sha-256\" (\"local replication {role} peer\" for a socket), and reload PostgreSQL."
        ),
        _ => String::new(),
    };
    report.failed(what, walpoint_words::format_chain(&error), &advice);
}

/// Connects for replication; the role.
async fn identify(
    server: &mut Server,
    identity: &ServerIdentity,
    settings: &ClusterSettings,
) -> anyhow::Result<String> {
    let mut walsender = source::walsender(settings, server).await?;
    is_the_server(&mut walsender, identity).await?;
    let role = walsender.connection().user().to_owned();
    walsender.close().await;
    Ok(role)
}

/// Proves that a session for replication is on the cluster and the timeline that were looked at.
pub(crate) async fn is_the_server(
    walsender: &mut Walsender,
    identity: &ServerIdentity,
) -> anyhow::Result<()> {
    let found = walsender.identify_system().await?;
    if found.system_id != identity.system_id {
        bail!(
            "conninfo leads to the system identifier {} for queries and to {} for replication\nHINT: Name one host in \
             conninfo.",
            identity.system_id,
            found.system_id
        );
    }
    // What a standby says of its timeline may lag behind.
    if !identity.in_recovery && found.timeline != identity.timeline {
        bail!(
            "the server is on timeline {} and was on {} a moment ago\nHINT: Run the command again.",
            found.timeline,
            identity.timeline
        );
    }
    Ok(())
}

/// Bytes of all databases that the role may look at.
async fn size(server: &mut Server) -> Option<u64> {
    let sql = "SELECT pg_catalog.sum(pg_catalog.pg_database_size(oid))::pg_catalog.int8 AS size FROM pg_catalog.pg_database \
        WHERE pg_catalog.has_database_privilege(oid, 'CONNECT')";
    let size: Option<i64> = server.connection().query(sql).await.ok()?.one().ok()?.nullable("size").ok()?;
    size.and_then(|size| u64::try_from(size).ok())
}

/// What lies outside the data directory, the server does not send.
async fn outside(
    report: &mut CheckReport,
    server: &mut Server,
    identity: &ServerIdentity,
    settings: &ClusterSettings,
) {
    let what = "configuration files";
    let found = source::configuration_outside(server, identity, &identity.data_directory, &[]).await;
    let advice = "The server sends its data directory and tablespaces only: keep these elsewhere, or back up on the server's \
                  machine without --remote.";
    match report.take(what, found) {
        Some(outside) if outside.is_empty() => report.ok(what, "all are in the data directory"),
        Some(outside) => {
            let names: Vec<String> = outside.iter().map(|path| path.display().to_string()).collect();
            report.warning(what, format!("a backup does not hold {}", names.join(", ")), advice);
        }
        None => {}
    }
    if !settings.extra_paths.is_empty() {
        report.warning("extra_paths", "a backup sent by the server does not hold them", advice);
    }
}
