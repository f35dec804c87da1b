//! Sessions on the server that a cluster's configuration names.

use anyhow::{Context, bail};
use walpoint_pg::connect::ConnInfo;
use walpoint_pg::server::{Server, SessionName, Walsender};
use walpoint_runtime::config::ClusterSettings;

/// How the server is reached.
pub(crate) fn conninfo(settings: &ClusterSettings) -> anyhow::Result<ConnInfo> {
    let text = settings.conninfo.as_deref().unwrap_or_default();
    ConnInfo::parse(text).context("the connection string (conninfo) cannot be used")
}

/// A session on the server.
pub(crate) async fn connect(settings: &ClusterSettings) -> anyhow::Result<Server> {
    let info = conninfo(settings)?;
    Ok(Server::connect(&info).await?)
}

/// A session for replication commands, on the server of another session.
pub(crate) async fn walsender(settings: &ClusterSettings, beside: &mut Server) -> anyhow::Result<Walsender> {
    let info = conninfo(settings)?;
    let name = SessionName::new(&info, rand::random());
    let walsender = Walsender::connect(&name.of(&info)).await?;
    if !beside.confirms(&name).await? {
        bail!(
            "conninfo leads to one server for queries ({}) and to another for replication\nHINT: Name one host in conninfo, \
             and no load balancer.",
            beside.connection().host()
        );
    }
    Ok(walsender)
}
