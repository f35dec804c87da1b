//! A running cluster that a row may change: a copy of the data set's, or one that the row made.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::dir::TestDir;
use walpoint_tests::process;

use super::scene::KeepingBed;
use crate::data::MAJOR;
use crate::run::wait_for_archiver;

/// Copying a cluster takes no longer.
const COPY_LIMIT: Duration = Duration::from_secs(300);

/// A server that ends with this value; its directory stays.
#[derive(Debug)]
pub struct EndedServer {
    cluster: Cluster,
}

impl EndedServer {
    /// Starts the server of a data directory.
    pub fn start(pgdata: PathBuf) -> EndedServer {
        let mut cluster = Cluster::adopt(Arc::new(TestDir::new()), MAJOR, pgdata, None);
        cluster.start();
        EndedServer { cluster }
    }

    /// Copies the data set's cluster and starts it.
    pub fn of_data_set(scene: &KeepingBed<'_>) -> EndedServer {
        let place = scene.place_for("cluster");
        copy(&scene.data.cluster, &place);
        EndedServer::start(place)
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Its data directory.
    pub fn pgdata(&self) -> &Path {
        self.cluster.pgdata()
    }

    /// Ends what is under way, so that what follows reads quiet files and archives next to no WAL: that of the load before
    /// it was given to the archiver that keeps nothing.
    pub fn settle(&self) {
        self.cluster.psql("checkpoint");
        self.cluster.switch_wal();
        wait_for_archiver(&self.cluster);
    }

    /// Looks at the data directory while no server runs.
    pub fn offline<T>(&mut self, look: impl FnOnce(&Path) -> T) -> T {
        self.cluster.stop(Shutdown::Fast);
        let seen = look(self.cluster.pgdata());
        self.cluster.start();
        seen
    }
}

/// Copies a data directory that no server runs on.
pub fn copy(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    process::run(command.arg("-a").arg(from).arg(to), COPY_LIMIT).expect_success();
}
