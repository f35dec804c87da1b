//! `archive-agent status`: what is archived, what waits, what can be recovered. Reads only.
//!
//! | module | owns |
//! |---|---|
//! | [`server`] | the archiver of the running server |
//! | [`stream`] | the WAL stream of that server |
//! | [`repository`] | one repository: all it says, or why it says nothing |
//! | [`draw`] | a repository's timelines, windows, gaps and backups for a terminal |
//! | [`retention`] | holds, what expire drops next, what is too old |
//! | [`listing`] | what an encrypted repository shows without its key |
//!
//! What always holds: whatever cannot be read is told with its reason and keeps nobody from the rest.

mod draw;
mod listing;
mod repository;
mod retention;
mod server;
mod stream;

use std::fmt::Write;

use anyhow::anyhow;
use futures_util::future::join_all;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{ClusterName, Diagnostic};
use walpoint_repo::lineage::BINDING;
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{human, output};
use walpoint_storage::store::StoreSettings;
use walpoint_words::format_chain;

use self::repository::RepositoryState;
use self::server::ServerState;
use crate::expire;
use crate::selection::selections;

/// What `archive-agent status --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct StatusDocument<'a> {
    /// When the status was taken.
    time: Timestamp,
    /// The clusters of the configuration, or the one that was selected.
    clusters: &'a [ClusterState],
}

walpoint_runtime::document!(StatusDocument<'_>, "archive-agent status");

/// A cluster.
#[derive(Debug, Serialize, JsonSchema)]
struct ClusterState {
    /// The cluster.
    cluster: ClusterName,
    /// The server, if the configuration says how to connect to it and it answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<ServerState>,
    /// Why the server could not be queried. Absent if it could.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Option<Diagnostic>")]
    server_error: Option<String>,
    /// The cluster's repositories, in the order of the configuration.
    repositories: Vec<RepositoryState>,
}

/// Prints the state of the clusters that the options name. Fails if there is one of which no repository could be read.
pub(crate) async fn run(common: &CommonArgs) -> Result<(), Failure> {
    let selections = selections(common)?;
    let clusters = join_all(selections.iter().map(ClusterState::of)).await;
    let time = Timestamp::now();
    if common.json {
        output::json(&StatusDocument { time, clusters: &clusters })?;
    } else {
        let texts: Vec<String> = clusters.iter().map(|cluster| cluster.text(time)).collect();
        output::text(&texts.join("\n"))?;
    }
    let dark: Vec<&ClusterState> = clusters.iter().filter(|cluster| !cluster.is_known()).collect();
    if dark.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = dark.iter().map(|cluster| cluster.cluster.as_str()).collect();
    let error = anyhow!("no repository of cluster {} could be read", names.join(", "));
    let mut repositories = dark.iter().flat_map(|cluster| &cluster.repositories);
    match repositories.all(RepositoryState::has_wrong_settings) {
        true => Err(Failure::usage(error)),
        false => Err(error.into()),
    }
}

impl ClusterState {
    async fn of(selection: &Selection<StoreSettings>) -> Self {
        let named = selection.repositories.iter();
        let policy = expire::policy(selection.settings.retention.as_ref());
        let repositories =
            named.map(|(name, store)| RepositoryState::of(name, store, &selection.cluster, &policy));
        let (server, mut repositories) = tokio::join!(ask(selection), join_all(repositories));
        let (server, server_error) = match server {
            Ok(server) => (server, None),
            Err(error) => (None, Some(format_chain(&error))),
        };
        if let Some(server) = &server {
            let pgdata = selection.settings.pgdata.as_ref();
            let binding = pgdata.and_then(|pgdata| std::fs::read_to_string(pgdata.join(BINDING)).ok());
            let binding = binding.unwrap_or_default();
            repositories
                .iter_mut()
                .for_each(|repository| repository.compare(server, &selection.cluster, &binding));
        }
        Self { cluster: selection.cluster.clone(), server, server_error, repositories }
    }

    fn is_known(&self) -> bool {
        self.repositories.iter().any(RepositoryState::is_known)
    }

    fn text(&self, now: Timestamp) -> String {
        let mut text = format!("Server of cluster {}\n", self.cluster);
        let mut line = |what: &str, said: &str| {
            // Writing to a String cannot fail.
            writeln!(text, "{}", human::hanging(&format!("  {what:<9} "), said)).ok();
        };
        match (&self.server, &self.server_error) {
            (Some(server), _) => server.lines(now).iter().for_each(|(what, said)| line(what, said)),
            (None, Some(error)) => line("server", &format!("cannot be asked: {error}")),
            (None, None) => line("server", "was not queried: no configuration describes how to connect"),
        }
        for repository in &self.repositories {
            text.push('\n');
            text.push_str(&repository.text(self.cluster.as_str()));
        }
        text
    }
}

/// The server's state; nothing if no configuration says where it is.
async fn ask(selection: &Selection<StoreSettings>) -> anyhow::Result<Option<ServerState>> {
    match selection.config {
        Some(_) => ServerState::of(selection).await.map(Some),
        None => Ok(None),
    }
}
