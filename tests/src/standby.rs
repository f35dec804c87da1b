//! Standbys, base backups by PostgreSQL's own tool, promotion, tablespaces.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::builder::free_name;
use crate::cluster::Cluster;
use crate::process;
use crate::user;
use crate::wait::SOON;

impl Cluster {
    /// Makes a standby of this server with `pg_basebackup`, in the same temporary directory; not started.
    #[track_caller]
    pub fn standby(&self) -> Cluster {
        let pgdata = self.base_backup(&["-X", "stream"]);
        let standby = Cluster::adopt(Arc::clone(self.dir()), self.major(), pgdata, None);
        standby.follow(self);
        standby
    }

    /// Makes this stopped cluster a standby of `primary` at its next start. (`pg_basebackup -R` of a newer version
    /// writes connection options that an older server refuses.)
    pub fn follow(&self, primary: &Cluster) {
        self.set("primary_conninfo", primary.conninfo());
        let signal = self.pgdata().join("standby.signal");
        std::fs::write(&signal, "").expect("write standby.signal");
        user::give(&signal);
    }

    /// Makes a standby, starts it and waits until it streams.
    #[track_caller]
    pub fn streaming_standby(&self) -> Cluster {
        let mut standby = self.standby();
        standby.start();
        standby.wait_for("select count(*) from pg_stat_wal_receiver where status = 'streaming'", "1");
        standby
    }

    /// A plain copy by `pg_basebackup` with more arguments; where it is. The oracle for our own backups.
    #[track_caller]
    pub fn base_backup(&self, arguments: &[&str]) -> PathBuf {
        let target = free_name(self.dir(), "copy");
        let mut command = self.tool("pg_basebackup");
        command.arg("-D").arg(&target).args(["-c", "fast", "--no-sync"]).args(arguments);
        // Its newer versions refuse a tablespace without a mapping when source and copy share a machine.
        for (oid, place) in self.tablespaces() {
            let new = free_name(self.dir(), &format!("ts{oid}"));
            command.arg(format!("--tablespace-mapping={}={}", place.display(), new.display()));
        }
        process::run(&mut command, Duration::from_secs(300)).expect_success();
        target
    }

    /// Waits until this standby replayed what `primary` has written so far.
    #[track_caller]
    pub fn wait_replayed(&self, primary: &Cluster) {
        let lsn = primary.psql("select pg_current_wal_lsn()");
        self.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{lsn}'"), "t");
    }

    /// Promotes and waits until the server takes writes.
    #[track_caller]
    pub fn promote(&self) {
        assert_eq!(
            self.psql(&format!("select pg_promote(true, {})", SOON.as_secs() * 2)),
            "t",
            "{}",
            self.log()
        );
        self.wait_for("select pg_is_in_recovery()", "f");
    }

    /// Makes a tablespace in a directory of its own; where it is.
    #[track_caller]
    pub fn create_tablespace(&self, name: &str) -> PathBuf {
        let place = self.dir().mkdir(format!("space-{name}"));
        self.psql(&format!("create tablespace {name} location '{}'", place.display()));
        place
    }

    /// Oid and place of each tablespace outside the data directory.
    pub fn tablespaces(&self) -> Vec<(u32, PathBuf)> {
        let rows = self.psql(
            "select oid, pg_tablespace_location(oid) from pg_tablespace where pg_tablespace_location(oid) like '/%'",
        );
        let row = |line: &str| {
            let (oid, place) = line.split_once('|').expect("two columns");
            (oid.parse().expect("an oid"), Path::new(place).to_owned())
        };
        rows.lines().map(row).collect()
    }
}
