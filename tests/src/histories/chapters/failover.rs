//! A standby takes over, also from a standby that took over, and from a server that was rewound.

use rand::Rng;

use crate::histories::load;
use crate::histories::server::Server;
use crate::histories::world::{LIMIT, Outcome, World};
use crate::process;

use super::Follow;

impl World {
    /// A standby of a server, running. The names say whom it follows.
    fn standby(&mut self, of: usize, follow: Follow) -> Outcome<Server> {
        let (mut standby, output) =
            self.restore("standby", &["--standby".into(), "--resume-archiving".into()]);
        if !output.success() {
            return Err(format!("a standby could not be restored: {output:#?}"));
        }
        if follow == Follow::Stream {
            let conninfo = self.servers[of].cluster.conninfo();
            standby.cluster.set("primary_conninfo", conninfo);
        }
        standby.archive_here();
        standby.start_daemon();
        let started = standby.cluster.try_start(LIMIT);
        started.map_err(|why| format!("a standby does not start: {why}\n{}", standby.log_tail()))?;
        let (name, source) = (standby.name(), self.servers[of].name());
        self.note(format!("{name} follows {source} ({follow:?})"));
        Ok(standby)
    }

    /// Waits until a standby has replayed what a server wrote.
    fn caught_up(&mut self, standby: &mut Server, of: usize) -> Outcome<()> {
        // Behind a switch only a page's header is new, which no standby replays.
        let source = &mut self.servers[of];
        load::flush(source, &mut self.branches[source.branch]);
        let lsn = source.sql("select pg_current_wal_insert_lsn()");
        let sql = format!("select pg_last_wal_replay_lsn() >= '{lsn}'");
        let begun = std::time::Instant::now();
        while standby.cluster.try_psql(&sql) != Ok("t".to_owned()) {
            if begun.elapsed() > LIMIT {
                return Err(format!("{} does not reach {lsn}\n{}", standby.name(), standby.log_tail()));
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Ok(())
    }

    /// A standby must not replay the creation of a tablespace at a place that its primary uses, so a backup comes after.
    pub(super) fn ready_for_standbys(&mut self) -> Outcome<()> {
        if self.spaces.is_empty() { Ok(()) } else { self.backup() }
    }

    pub(super) fn failover(&mut self, follow: Follow) -> Outcome<()> {
        self.ready_for_standbys()?;
        let old = self.primary;
        let mut standby = self.standby(old, follow)?;
        self.load(3);
        let archived = follow == Follow::Archive && self.rng.random_bool(0.5);
        if archived {
            self.drain()?;
            self.load(2);
        }
        if follow == Follow::Stream {
            self.caught_up(&mut standby, old)?;
        }
        self.take_over(old, standby, follow == Follow::Stream)
    }

    /// `old` dies, and a standby of it is promoted and becomes the primary.
    fn take_over(&mut self, old: usize, mut standby: Server, whole: bool) -> Outcome<()> {
        let parent = self.servers[old].branch;
        self.servers[old].crash();
        let name = self.servers[old].name();
        self.note(format!("{name} dies"));
        let branch = &self.branches[parent];
        let at_least = if whole {
            branch.events.len()
        } else {
            self.reachable(branch).last().map_or(0, |last| last + 1)
        };
        standby.disconnect();
        let late = self.rng.random_bool(0.5);
        if late {
            standby.kill_daemon();
        }
        standby.cluster.psql("select pg_promote(false)");
        let name = standby.name();
        self.note(format!("{name} is promoted{}", if late { "; its daemon starts afterwards" } else { "" }));
        standby.wait_promoted(LIMIT)?;
        standby.start_daemon();
        let branch = self.left(&mut standby, parent, at_least, false)?;
        self.enthrone(standby, branch);
        Ok(())
    }

    pub(super) fn cascade(&mut self) -> Outcome<()> {
        self.ready_for_standbys()?;
        let old = self.primary;
        let mut first = self.standby(old, Follow::Stream)?;
        self.caught_up(&mut first, old)?;
        // The second follows the first, through its promotion too.
        self.servers.push(first);
        let between = self.servers.len() - 1;
        let second = self.standby(between, Follow::Stream);
        let first = self.servers.remove(between);
        let mut second = second?;
        self.load(2);
        let mut first = first;
        self.caught_up(&mut first, old)?;
        self.take_over(old, first, true)?;
        let between = self.primary;
        self.load(3);
        if self.rng.random_bool(0.5) {
            self.drain()?;
        }
        self.caught_up(&mut second, between)?;
        self.take_over(between, second, true)
    }

    pub(super) fn rewind(&mut self) -> Outcome<()> {
        let old = self.primary;
        // pg_rewind takes a tablespace inside the data directory for a link on one side and a directory on the other.
        if self.major < 14 || !self.spaces.is_empty() || self.in_place {
            return self.failover(Follow::Stream);
        }
        self.failover(Follow::Archive)?;
        self.load(3);
        // PostgreSQL itself loses a transaction that was prepared before a rewind and stays open behind it: it takes the
        // state file that pg_rewind copied for restored, and forgets it.
        let server = &mut self.servers[self.primary];
        let branch = &mut self.branches[server.branch];
        while !branch.open().is_empty() {
            load::resolve(&mut self.rng, server, branch);
        }
        self.drain()?;
        // The old primary's unarchived end is what has to be rewound.
        let new = self.primary;
        self.servers[new].sql("checkpoint");
        // The old primary's prefetcher notices within a tenth of a second that its server is gone. Nothing else may write to the
        // directory until then.
        let lock = self.servers[old].cluster.wal_dir().join("walpoint-spool/lock");
        let is_locked = || std::fs::File::open(&lock).is_ok_and(|file| file.try_lock().is_err());
        crate::wait::until_true(LIMIT, "the old primary's prefetcher ends", || !is_locked());
        let mut command = self.servers[old].cluster.tool("pg_rewind");
        let (source, target) =
            (self.servers[new].cluster.conninfo(), self.servers[old].cluster.pgdata().to_owned());
        command.arg("--source-server").arg(source).arg("--target-pgdata").arg(&target);
        let conf = std::fs::read(target.join("postgresql.conf")).expect("postgresql.conf");
        process::run(&mut command, LIMIT).expect_success();
        self.note("the old primary is rewound to the new one");
        std::fs::write(target.join("postgresql.conf"), conf).expect("postgresql.conf");
        let cluster = crate::cluster::Cluster::adopt(
            std::sync::Arc::clone(&self.dir),
            self.major,
            target.clone(),
            None,
        );
        cluster.set("primary_conninfo", self.servers[new].cluster.conninfo());
        let mut back = Server::of(cluster, &self.store);
        back.archive_here();
        let restore = back.agent.restore_command();
        back.cluster.set("restore_command", restore);
        self.dir.write(target.strip_prefix(self.dir.path()).expect("inside").join("standby.signal"), "");
        back.start_daemon();
        let started = back.cluster.try_start(LIMIT);
        started.map_err(|why| format!("the rewound server does not start: {why}\n{}", back.log_tail()))?;
        self.load(2);
        self.caught_up(&mut back, new)?;
        self.take_over(new, back, true)
    }
}
