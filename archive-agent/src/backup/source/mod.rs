//! Where the files of a backup come from: two ways to read a cluster, one result.
//!
//! | module | owns |
//! |---|---|
//! | [`local`] | the data directory: walked over, read in parallel, verified |
//! | [`remote`] | the server, which sends the cluster (`BASE_BACKUP`) |
//! | [`shared`] | what the threads of either have in common |
//! | [`pages`] | verifying page checksums while the pages pass |
//! | [`owners`] | whose files they are |
//! | [`facts`] | what the manifest will say |
//!
//! What always holds: a [`BackupSource`] begins the backup on its server, which ends it with the session: a crash, a lost connection
//! or an error before [`Started::copy`] returns leaves nothing there. What it returns was read to its end, and the server has
//! stopped the backup.

mod facts;
pub(crate) mod local;
mod owners;
mod pages;
pub(crate) mod remote;
mod shared;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use walpoint_base::TimelineHistory;
use walpoint_pg::control::ControlFile;
use walpoint_pg::server::Server;
use walpoint_repo::backup::{BackupDescription, BackupWriter};
use walpoint_runtime::config::ClusterSettings;

pub(crate) use self::shared::CopyCounts;
use self::shared::Shared;
use super::begun::Begun;
use super::needed_history::Histories;
use super::replica::Replicas;
use super::request::BackupRequest;
use crate::check::repository::Destination;

/// How often a session on the backup's server that has nothing to do is asked whether it still lives.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How often is looked whether so much was stored that it is worth a note, so that the next backup need not store it again
/// if this one dies.
const NOTE_PROGRESS: Duration = Duration::from_millis(100);
/// How long threads may take to notice that nothing they do counts any more. One that waits for a store ends when the
/// store's retries do.
const ENDING: Duration = Duration::from_secs(5);

/// A cluster that was examined, and that a backup can be made of.
pub(crate) trait BackupSource {
    /// The backup in progress.
    type Started: Started;

    /// The repositories of the cluster.
    fn destinations(&self) -> &[Destination];

    /// Begins a backup on the server that gets a replica in each of `copies`.
    async fn start(
        self,
        request: &BackupRequest<'_>,
        copies: &[Destination],
    ) -> anyhow::Result<Self::Started>;
}

/// A backup in progress on its server. Dropped, it ends there.
pub(crate) trait Started {
    /// How it began.
    fn begun(&self) -> &Begun;

    /// Copies everything into the replicas, then stops the backup. An error is not about one replica but about the server, its
    /// files or the last replica.
    async fn copy(
        self,
        request: &BackupRequest<'_>,
        replicas: &Replicas<BackupWriter>,
    ) -> anyhow::Result<Copied>;
}

/// A backup that was copied and stopped.
pub(crate) struct Copied {
    /// What its manifest will say.
    pub(crate) facts: BackupDescription,
    /// The history of the timeline on which it stopped.
    pub(crate) history: TimelineHistory,
    /// The `pg_control` that was copied.
    pub(crate) control: ControlFile,
    /// Its server.
    pub(crate) origin: BackupOrigin,
    /// What its threads shared: what was counted on the way.
    pub(crate) shared: Arc<Shared>,
}

/// A session on the backup's server that several tasks ask.
type SharedServer = Arc<Mutex<Server>>;

/// The server that a backup is of, the repositories of its cluster, and its data directory where that is visible.
#[derive(Debug)]
pub(crate) struct BackupOrigin {
    server: SharedServer,
    /// The repositories of the cluster.
    pub(crate) destinations: Vec<Destination>,
    pgdata: Option<PathBuf>,
}

impl BackupOrigin {
    fn new(server: Server, destinations: Vec<Destination>, pgdata: Option<PathBuf>) -> Self {
        Self { server: Arc::new(Mutex::new(server)), destinations, pgdata }
    }

    /// The data directory, where it is visible.
    pub(crate) fn pgdata(&self) -> Option<&Path> {
        self.pgdata.as_deref()
    }

    /// Where histories of timelines are looked for.
    pub(crate) fn histories<'a>(&'a self, settings: &'a ClusterSettings) -> Histories<'a> {
        Histories { pgdata: self.pgdata(), settings, server: &self.server }
    }
}
