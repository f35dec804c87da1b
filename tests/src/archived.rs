//! A cluster that archives through a daemon into a repository and is backed up there, and what is restored from it.

use std::path::PathBuf;

use crate::agent::{Agent, Daemon};
use crate::builder::ClusterBuilder;
use crate::cluster::Cluster;
use crate::process::Output;
use crate::store::{BackDoor, Store};

/// A running server, its daemon, and the repository that both of them know.
#[derive(Debug)]
pub struct Archived {
    // Declared in the order in which they end.
    daemon: Option<Daemon>,
    /// The server.
    pub cluster: Cluster,
    /// The programs' configuration.
    pub agent: Agent,
    /// Where the repository is.
    pub store: Store,
}

impl Archived {
    /// Makes a cluster and a repository for it, and starts daemon and server.
    #[track_caller]
    pub fn start(builder: ClusterBuilder, store: Store) -> Archived {
        Archived::start_with(builder, store, |agent| agent)
    }

    /// The same, with more in the programs' configuration.
    #[track_caller]
    pub fn start_with(
        builder: ClusterBuilder,
        store: Store,
        configure: impl FnOnce(Agent) -> Agent,
    ) -> Archived {
        Archived::start_as(builder, store, configure, &[])
    }

    /// The same in an encrypted repository; `configure` says what opens it.
    #[track_caller]
    pub fn start_encrypted(
        builder: ClusterBuilder,
        store: Store,
        configure: impl FnOnce(Agent) -> Agent,
    ) -> Archived {
        Archived::start_as(builder, store, configure, &["--encrypt"])
    }

    #[track_caller]
    fn start_as(
        builder: ClusterBuilder,
        store: Store,
        configure: impl FnOnce(Agent) -> Agent,
        init: &[&str],
    ) -> Archived {
        let mut cluster = builder.init();
        let agent = configure(Agent::with(&cluster, &store));
        agent.archive_from(&cluster);
        agent.init(init).expect_success();
        let daemon = agent.daemon();
        cluster.start();
        Archived::of(daemon, cluster, agent, store)
    }

    /// Of parts that a test put together by itself.
    pub fn of(daemon: Daemon, cluster: Cluster, agent: Agent, store: Store) -> Archived {
        Archived { daemon: Some(daemon), cluster, agent, store }
    }

    /// Takes a base backup; its id.
    #[track_caller]
    pub fn backup(&self) -> String {
        self.backup_with(&[])
    }

    /// Takes a base backup with more arguments; its id.
    #[track_caller]
    pub fn backup_with(&self, arguments: &[&str]) -> String {
        let before = self.backups();
        self.agent.run(&[&["backup"], arguments].concat()).expect_success();
        let mut after = self.backups();
        after.retain(|id| !before.contains(id));
        let [id] = &after[..] else { panic!("new backups: {after:?}") };
        id.clone()
    }

    /// The ids of the backups in the repository, oldest first.
    pub fn backups(&self) -> Vec<String> {
        let keys = self.back_door().list("clusters/main/backups");
        let ids = keys.iter().filter_map(|key| key.strip_suffix("/manifest")?.rsplit('/').next());
        ids.map(str::to_owned).collect()
    }

    /// Finishes the segment that is being written and waits until everything so far is in the repository.
    #[track_caller]
    pub fn settle(&self) {
        let segment = self.cluster.switch_wal();
        self.cluster.wait_archived(&segment);
    }

    /// The objects, behind the programs' backs.
    pub fn back_door(&self) -> BackDoor {
        self.store.back_door()
    }

    /// The daemon.
    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("a running daemon")
    }

    /// Stops the daemon, for good.
    #[track_caller]
    pub fn stop_daemon(&mut self) {
        assert_eq!(self.daemon.take().expect("a running daemon").stop(), 0);
    }

    /// Kills the daemon.
    #[track_caller]
    pub fn kill_daemon(&mut self) {
        self.daemon.take().expect("a running daemon").kill();
    }

    /// Starts the daemon that was stopped or killed.
    #[track_caller]
    pub fn start_daemon(&mut self) {
        self.daemon = Some(self.agent.daemon());
    }

    /// Runs `restore-agent restore` into a directory of that name beside the cluster, whatever comes of it.
    #[track_caller]
    pub fn try_restore(&self, name: &str, arguments: &[&str]) -> Output {
        let pgdata = self.place(name);
        let pgdata = pgdata.to_str().expect("a path in UTF-8");
        self.agent.restore(&[&["restore", "--pgdata", pgdata], arguments].concat())
    }

    /// Runs `restore-agent restore` into a directory of that name beside the cluster; the directory.
    #[track_caller]
    pub fn restore(&self, name: &str, arguments: &[&str]) -> PathBuf {
        self.try_restore(name, arguments).expect_success();
        self.place(name)
    }

    /// Restores and starts the server.
    #[track_caller]
    pub fn restore_and_start(&self, name: &str, arguments: &[&str]) -> Cluster {
        let pgdata = self.restore(name, arguments);
        Cluster::start_restored(self.cluster.dir(), self.cluster.major(), pgdata)
    }

    /// A path beside the cluster.
    pub fn place(&self, name: &str) -> PathBuf {
        self.cluster.dir().join(name)
    }
}

impl Cluster {
    /// Waits until recovery has reached its target and pauses there.
    #[track_caller]
    pub fn wait_paused(&self) {
        self.wait_for("select pg_is_in_recovery() and pg_is_wal_replay_paused()", "t");
    }

    /// Waits until recovery is over and the server takes writes.
    #[track_caller]
    pub fn wait_promoted(&self) {
        self.wait_for("select pg_is_in_recovery()", "f");
    }
}
