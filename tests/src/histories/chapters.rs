//! What can happen to servers that share an archive. A history is a random sequence of these chapters; each leaves a
//! primary that archives and takes clients.

use rand::Rng;

use crate::process;

use super::load;
use super::oracle::Effect;
use super::server::Server;
use super::world::{LIMIT, Outcome, World};

/// A standby's way to its WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// From the primary, and from the archive.
    Stream,
    /// Only from the archive: a crash of the primary loses what it had not archived.
    Archive,
}

/// A chapter of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chapter {
    /// Clients work.
    Load,
    /// A base backup.
    Backup,
    /// The server dies and starts again.
    CrashRestart,
    /// A second daemon for the same data directory.
    TwoDaemons,
    /// A tablespace: outside the data directory, or inside where a standby may have to replay it.
    Tablespace,
    /// The primary dies, a standby takes over.
    Failover(Follow, Prepared),
    /// The primary crashes and starts again with a transaction prepared; in the same segment the standby takes over.
    FailoverAfterCrash,
    /// The same twice: the second standby followed the first.
    Cascade(Prepared),
    /// The primary dies, its place takes what is restored to an earlier moment.
    Pitr,
    /// The same, to a moment before the newest fork, on the path that recovery follows by default.
    PitrBeforeFork,
    /// A copy is restored beside the primary, promoted, and thrown away.
    CopyBeside,
    /// The same, to the latest moment, after a tablespace was created that the backup does not have.
    CopyBesideTablespace,
    /// A snapshot of the storage starts with the primary's own configuration: on the same timeline, or promoted.
    SnapshotSameConfiguration {
        /// Whether it is promoted.
        promoted: bool,
    },
    /// The primary dies; two snapshots of its storage are promoted and both archive.
    TwinsPromoted,
    /// A copy with the primary's settings but no `archive_command` is promoted beside it; then the primary fails over.
    SilentCopy,
    /// A copy is promoted without archiving and works; then it takes the primary's place and archives.
    LateArchiver,
    /// After a failover the old primary is rewound and follows; then the new one dies.
    Rewind,
}

/// Whether a prepared transaction is open when a chapter's crash comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// One is.
    Open,
    /// As the load left it.
    AsItComes,
}

impl Chapter {
    /// A random one.
    pub fn random(rng: &mut impl Rng) -> Chapter {
        let follow = if rng.random_bool(0.5) { Follow::Stream } else { Follow::Archive };
        let prepared = if rng.random_bool(0.5) { Prepared::Open } else { Prepared::AsItComes };
        match rng.random_range(0..100) {
            0..6 => Chapter::Load,
            6..14 => Chapter::Backup,
            14..18 => Chapter::CrashRestart,
            18..22 => Chapter::TwoDaemons,
            22..28 => Chapter::Tablespace,
            28..37 => Chapter::Failover(follow, prepared),
            37..40 => Chapter::FailoverAfterCrash,
            40..46 => Chapter::Cascade(prepared),
            46..58 => Chapter::Pitr,
            58..68 => Chapter::PitrBeforeFork,
            68..74 => Chapter::CopyBeside,
            74..80 => Chapter::CopyBesideTablespace,
            80..85 => Chapter::SnapshotSameConfiguration { promoted: rng.random_bool(0.5) },
            85..91 => Chapter::TwinsPromoted,
            91..94 => Chapter::SilentCopy,
            94..97 => Chapter::LateArchiver,
            _ => Chapter::Rewind,
        }
    }

    /// Lets it happen.
    pub fn play(self, world: &mut World) -> Outcome<()> {
        world.note(format!("-- {self:?}"));
        let steps = world.rng.random_range(2..7);
        world.load(steps);
        match self {
            Chapter::Load => Ok(()),
            Chapter::Backup => world.backup(),
            Chapter::CrashRestart => world.crash_restart(),
            Chapter::TwoDaemons => world.two_daemons(),
            Chapter::Tablespace => world.tablespace(true),
            Chapter::Failover(follow, prepared) => {
                world.open_prepared(prepared);
                world.failover(follow)
            }
            Chapter::FailoverAfterCrash => {
                world.drain()?;
                world.open_prepared(Prepared::Open);
                world.crash_restart()?;
                world.failover(Follow::Stream)
            }
            Chapter::Cascade(prepared) => {
                world.open_prepared(prepared);
                world.cascade()
            }
            Chapter::Pitr => world.pitr(false),
            Chapter::PitrBeforeFork => world.pitr(true),
            Chapter::CopyBeside => world.copy_beside(),
            Chapter::CopyBesideTablespace => {
                world.tablespace(false)?;
                world.copy_beside()
            }
            Chapter::SnapshotSameConfiguration { promoted } => world.snapshot_same_configuration(promoted),
            Chapter::TwinsPromoted => world.twins(),
            Chapter::SilentCopy => world.silent_copy(),
            Chapter::LateArchiver => world.late_archiver(),
            Chapter::Rewind => world.rewind(),
        }?;
        let steps = world.rng.random_range(1..5);
        world.load(steps);
        world.drain()
    }
}

impl World {
    fn open_prepared(&mut self, prepared: Prepared) {
        if prepared == Prepared::Open {
            let number = self.number();
            let server = &mut self.servers[self.primary];
            load::prepare(server, &mut self.branches[server.branch], number);
            self.note(format!("p{number} stays prepared"));
        }
    }

    fn crash_restart(&mut self) -> Outcome<()> {
        let with_daemon = self.rng.random_bool(0.5);
        let server = &mut self.servers[self.primary];
        if with_daemon {
            server.crash()
        } else {
            server.crash_server()
        }
        server.start_daemon();
        server.cluster.start();
        let branch = &self.branches[server.branch];
        let expected = branch.state(branch.events.len());
        let state = server.state()?;
        assert_eq!(state, expected, "PostgreSQL or the oracle lost rows in a crash");
        let name = server.name();
        self.note(format!("{name} crashed (its daemon too: {with_daemon}) and starts again"));
        Ok(())
    }

    fn two_daemons(&mut self) -> Outcome<()> {
        let other = crate::agent::Agent::with(&self.servers[self.primary].cluster, &self.store);
        let daemon = other.daemon();
        self.note("a second daemon looks after the same data directory");
        self.load(6);
        self.drain()?;
        if self.rng.random_bool(0.5) {
            let server = &mut self.servers[self.primary];
            server.kill_daemon();
            self.note("the first daemon is killed");
            self.load(3);
            self.servers[self.primary].start_daemon();
        }
        daemon.kill();
        Ok(())
    }

    /// Creates a tablespace and a table in it.
    fn tablespace(&mut self, maybe_inside: bool) -> Outcome<()> {
        let number = self.number();
        let inside = maybe_inside && self.rng.random_bool(0.5);
        let location = if inside {
            String::new()
        } else {
            let place = self.dir.mkdir(format!("space-{number}"));
            self.spaces.push(place.clone());
            place.display().to_string()
        };
        let prefix = if inside { "set allow_in_place_tablespaces = on; " } else { "" };
        self.happen(&format!("{prefix}create tablespace s{number} location '{location}'"), Effect::Ended);
        let sql = format!(
            "begin; create table t{number} () inherits (ledger) tablespace s{number}; \
             create index on t{number} (number) tablespace s{number}; \
             insert into t{number} (number, pad) select {number}, 'in s{number}' from generate_series(1, 50); commit"
        );
        self.happen(&sql, Effect::Commit { added: (number, 50), removed: Vec::new() });
        Ok(())
    }

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
    fn ready_for_standbys(&mut self) -> Outcome<()> {
        if self.spaces.is_empty() { Ok(()) } else { self.backup() }
    }

    fn failover(&mut self, follow: Follow) -> Outcome<()> {
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

    fn cascade(&mut self) -> Outcome<()> {
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

    /// A moment and how to ask for it: arguments, branch, and how many events it has.
    pub fn moment(&mut self, branch: usize, at: usize) -> (Vec<String>, usize) {
        let events = &self.branches[branch].events;
        let event = &events[at];
        // A time stops recovery at the next end of a transaction; what lies between is replayed.
        let later = events[at + 1..].iter().position(|event| event.ends_transaction());
        let mut kinds = vec![(vec!["--target-lsn".to_owned(), event.after.to_string()], at + 1)];
        if let Some(xid) = event.xid {
            kinds.push((vec!["--target-xid".to_owned(), xid.to_string()], at + 1));
            kinds.push((vec!["--target-xid".to_owned(), xid.to_string(), "--exclusive".to_owned()], at));
        }
        if let Effect::Point(name) = &event.effect {
            kinds.push((vec!["--target-name".to_owned(), name.clone()], at + 1));
        }
        if let Some(between) = later {
            let target = vec!["--target-time".to_owned(), event.time_after.clone()];
            kinds.push((target, at + 1 + between));
        }
        kinds.swap_remove(self.rng.random_range(0..kinds.len()))
    }

    /// A random moment of a branch that can be recovered to, before event `below`.
    pub fn random_moment(&mut self, branch: usize, below: usize) -> Option<(Vec<String>, usize)> {
        let mut reachable = self.reachable(&self.branches[branch]);
        let events = &self.branches[branch].events;
        let there = reachable.clone();
        // What ends recovery is the next record, and for a time the next end of a transaction.
        reachable.retain(|at| {
            let end = events[at + 1..].iter().position(|event| event.ends_transaction());
            *at + 1 < below
                && there.contains(&(at + 1))
                && end.is_some_and(|end| there.contains(&(at + 1 + end)))
        });
        if reachable.is_empty() {
            return None;
        }
        let at = reachable[self.rng.random_range(0..reachable.len())];
        Some(self.moment(branch, at))
    }

    fn pitr(&mut self, before_fork: bool) -> Outcome<()> {
        self.drain()?;
        let current = self.servers[self.primary].branch;
        let newest = *self.owners.values().last().expect("the first timeline's");
        let (branch, below) = if before_fork {
            (newest, self.branches[newest].inherited.max(2))
        } else {
            let owners: Vec<usize> = self.owners.values().copied().collect();
            let branch = owners[self.rng.random_range(0..owners.len())];
            (branch, self.branches[branch].events.len())
        };
        let Some((mut target, count)) = self.random_moment(branch, below) else {
            self.note("no such moment");
            return Ok(());
        };
        if branch != newest || self.rng.random_bool(0.3) {
            target.extend(["--target-timeline".to_owned(), self.branches[branch].timeline.to_string()]);
        }
        let old = self.primary;
        self.servers[old].crash();
        let name = self.servers[old].name();
        self.note(format!("{name} (branch {current}) dies"));
        self.clear_spaces();
        target.extend(["--target-action", "promote", "--resume-archiving"].map(str::to_owned));
        let (mut server, output) = self.restore("data", &target);
        if !output.success() {
            return Err(format!("a moment that is in the archive is refused: {target:?}: {output:#?}"));
        }
        server.archive_here();
        server.start_daemon();
        server.cluster.launch();
        server.wait_promoted(LIMIT)?;
        let branch = self.left(&mut server, branch, count, true)?;
        self.enthrone(server, branch);
        Ok(())
    }

    /// All files in tablespaces, and what is in them: a server that rests after a checkpoint changes none.
    fn fingerprint(&self) -> Vec<String> {
        if self.spaces.is_empty() {
            return Vec::new();
        }
        let mut find = std::process::Command::new("find");
        find.args(&self.spaces).args(["-type", "f", "-exec", "sha256sum", "{}", "+"]);
        let found = process::run(&mut find, LIMIT).stdout;
        found.lines().map(str::to_owned).collect()
    }

    /// A copy of the latest moment or of an earlier one, while the primary runs.
    fn copy_beside(&mut self) -> Outcome<()> {
        self.servers[self.primary].sql("checkpoint");
        self.drain()?;
        let current = self.servers[self.primary].branch;
        let all = self.branches[current].events.len();
        let latest = self.rng.random_bool(0.5) || !self.spaces.is_empty();
        let moment = if latest { None } else { self.random_moment(current, all) };
        let exactly = moment.is_some();
        let (mut target, count) = moment.unwrap_or((Vec::new(), all));
        target.extend(["--target-action", "promote"].map(str::to_owned));
        let before = self.fingerprint();
        let (mut copy, output) = self.restore("copy", &target);
        if output.success() {
            copy.cluster.launch();
            let promoted = copy.wait_promoted(LIMIT);
            let left = promoted.and_then(|()| self.left(&mut copy, current, count, exactly));
            if left.is_ok() {
                // What the copy does with its own tables stays its own.
                copy.sql(
                    "insert into ledger (number, pad) select -4000000, 'copy' from generate_series(1, 100)",
                );
                let tables = copy
                    .sql("select inhrelid::regclass from pg_inherits where inhparent = 'ledger'::regclass");
                for table in tables.lines() {
                    copy.sql(&format!("insert into {table} (number, pad) values (-4000001, 'copy')"));
                }
                copy.sql("checkpoint");
            }
            let after = self.fingerprint();
            let changed: Vec<&String> = before.iter().filter(|file| !after.contains(file)).collect();
            if !changed.is_empty() {
                return Err(format!(
                    "a copy beside the primary wrote into the primary's tablespace: {changed:?}"
                ));
            }
            left?;
            self.servers[self.primary].disconnect();
            let (branch, primary) = (self.branches[current].clone(), &mut self.servers[self.primary]);
            let state = primary.state()?;
            let expected = branch.state(branch.events.len());
            if state != expected {
                return Err(format!(
                    "a copy changed the primary: {}",
                    super::world::difference(&expected, &state)
                ));
            }
            if !copy.acknowledged().is_empty() {
                return Err("a copy archived although it was not told to".to_owned());
            }
            copy.stop();
            self.note("the copy is thrown away");
            return Ok(());
        }
        // Its WAL creates a tablespace where the primary has its own: no copy of it can be made on this machine.
        let told = output.stderr.contains("tablespace");
        if self.spaces.is_empty() || !told {
            return Err(format!("a copy of a moment that is in the archive is refused: {output:#?}"));
        }
        Ok(())
    }

    fn snapshot_same_configuration(&mut self, promoted: bool) -> Outcome<()> {
        self.drain()?;
        let mut copy = self.snapshot(self.primary, "snapshot");
        let branch = copy.branch;
        if promoted {
            self.dir.write(
                copy.cluster.pgdata().strip_prefix(self.dir.path()).expect("inside").join("standby.signal"),
                "",
            );
        }
        copy.cluster.start();
        self.contested = true;
        if promoted {
            copy.cluster.psql("select pg_promote(true, 60)");
        }
        // The copy writes what nobody may take for the primary's.
        copy.sql("insert into ledger (number, pad) select -1000000, repeat('copy', 50) from generate_series(1, 3000)");
        copy.sql("select pg_switch_wal()");
        copy.sql("insert into ledger (number, pad) select -1000001, repeat('copy', 50) from generate_series(1, 3000)");
        copy.sql("select pg_switch_wal()");
        self.note(
            "the snapshot runs with the primary's configuration and writes (numbers -1000000, -1000001)",
        );
        self.load(5);
        let drained = self.drain();
        // The copy asks again for what the primary now has under the same names.
        copy.sql("select pg_switch_wal()");
        std::thread::sleep(std::time::Duration::from_millis(2500));
        self.compare_acknowledged(&copy, branch)?;
        copy.stop();
        drained
    }

    /// Nothing may be acknowledged to a copy but what the branch's own server has byte for byte.
    fn compare_acknowledged(&self, copy: &Server, branch: usize) -> Outcome<()> {
        let own: Vec<&Server> = self.servers.iter().filter(|server| server.branch == branch).collect();
        for name in copy.acknowledged() {
            if name.len() != 24 && !name.ends_with(".history") {
                continue;
            }
            let theirs = std::fs::read(copy.ledger().join(&name)).unwrap_or_default();
            let same = |server: &&Server| {
                std::fs::read(server.ledger().join(&name)).is_ok_and(|ours| ours == theirs)
            };
            if !own.iter().any(same) {
                return Err(format!(
                    "{}'s {name} was acknowledged, although {} is another server's archive",
                    copy.name(),
                    self.store.url()
                ));
            }
        }
        Ok(())
    }

    fn twins(&mut self) -> Outcome<()> {
        self.drain()?;
        let old = self.primary;
        let parent = self.servers[old].branch;
        let count = self.branches[parent].events.len();
        self.servers[old].disconnect();
        let mut twins = Vec::new();
        for stem in ["twin-a", "twin-b"] {
            let mut twin = self.snapshot(old, stem);
            twin.archive_here();
            let signal = twin.cluster.pgdata().join("standby.signal");
            self.dir.write(signal.strip_prefix(self.dir.path()).expect("inside"), "");
            twin.start_daemon();
            twins.push(twin);
        }
        self.servers[old].crash();
        self.note("the primary dies, both twins are promoted");
        for twin in &mut twins {
            twin.cluster.start();
        }
        for twin in &mut twins {
            twin.cluster.psql("select pg_promote(false)");
        }
        for twin in &mut twins {
            twin.wait_promoted(LIMIT)?;
        }
        self.contested = true;
        let mut b = twins.pop().expect("two");
        let mut a = twins.pop().expect("two");
        let branch = self.left(&mut a, parent, count, false)?;
        self.left(&mut b, parent, count, false)?;
        let taken = self.owners.get(&branch.timeline).copied();
        if taken.is_some() {
            // Both took a number that the archive has for another: neither may archive, and the history ends here.
            self.note("their timeline's number is taken");
        }
        // The first to archive owns the timeline. Both write the same amount, so only content tells them apart.
        let first = self.enthrone(a, branch);
        self.load(4);
        self.drain()?;
        let filler = |twin: &mut Server, number: i64| {
            twin.sql(&format!(
                "insert into ledger (number, pad) select {number}, repeat('twin', 40) from generate_series(1, 4000); \
                 select pg_switch_wal()"
            ));
        };
        for round in 0..3 {
            filler(&mut b, -2_000_000 - round);
        }
        self.note("the other twin writes (numbers -2000000 …)");
        // It gets the time to archive, ahead of PostgreSQL's questions too.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        self.load(4);
        let drained = self.drain_server(first, LIMIT);
        self.no_second_owner(&b, first)?;
        drained?;
        let check = b.agent.run(&["check", "--timeout", "3"]);
        if check.success() {
            return Err(format!(
                "check finds no fault with a server whose timeline is another's: {check:#?}"
            ));
        }
        b.stop();
        Ok(())
    }

    /// Nothing of a timeline may be acknowledged to a second server of it.
    fn no_second_owner(&self, second: &Server, owner: usize) -> Outcome<()> {
        let owner = &self.servers[owner];
        let timeline = self.branches[owner.branch].timeline;
        let prefix = format!("{timeline:08X}");
        let both = second.acknowledged();
        let mine: Vec<&String> = both
            .iter()
            .filter(|name| name.starts_with(&prefix) && name.len() == 24)
            .filter(|name| {
                std::fs::read(second.ledger().join(name)).ok()
                    != std::fs::read(owner.ledger().join(name)).ok()
            })
            .collect();
        if mine.is_empty() {
            return Ok(());
        }
        Err(format!(
            "two servers' WAL is acknowledged under timeline {timeline}: {}'s {mine:?} beside {}'s {:?}",
            second.name(),
            owner.name(),
            owner.acknowledged().iter().filter(|name| name.starts_with(&prefix)).collect::<Vec<_>>()
        ))
    }

    fn silent_copy(&mut self) -> Outcome<()> {
        self.ready_for_standbys()?;
        self.drain()?;
        let mut copy = self.snapshot(self.primary, "silent");
        copy.archive_here();
        copy.cluster.set("archive_command", "");
        let signal = copy.cluster.pgdata().join("standby.signal");
        self.dir.write(signal.strip_prefix(self.dir.path()).expect("inside"), "");
        copy.start_daemon();
        copy.cluster.start();
        copy.cluster.psql("select pg_promote(true, 60)");
        copy.sql("insert into ledger (number, pad) select -3000000, repeat('copy', 50) from generate_series(1, 9000)");
        copy.sql("select pg_switch_wal()");
        self.note("a snapshot without archive_command, but with a daemon, is promoted and writes");
        std::thread::sleep(std::time::Duration::from_millis(1000));
        self.failover(Follow::Stream)?;
        self.load(3);
        let drained = self.drain();
        copy.stop();
        drained
    }

    fn late_archiver(&mut self) -> Outcome<()> {
        self.drain()?;
        let old = self.primary;
        let parent = self.servers[old].branch;
        let count = self.branches[parent].events.len();
        self.servers[old].crash();
        self.note("the primary dies");
        self.clear_spaces();
        let (mut copy, output) = self.restore("late", &["--target-action".into(), "promote".into()]);
        if !output.success() {
            return Err(format!("the latest moment is refused: {output:#?}"));
        }
        copy.cluster.launch();
        copy.wait_promoted(LIMIT)?;
        let branch = self.left(&mut copy, parent, count, false)?;
        self.enthrone(copy, branch);
        self.load(5);
        let server = &mut self.servers[self.primary];
        server.stop();
        server.archive_here();
        server.cluster.set_last("archive_mode", "on");
        server.start_daemon();
        server.cluster.start();
        self.gap = true;
        self.note("it archived nothing so far; now it does");
        self.load(2);
        self.backup()
    }

    fn rewind(&mut self) -> Outcome<()> {
        let old = self.primary;
        if self.major < 14 || !self.spaces.is_empty() {
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
        // A prefetcher that still ends leaves a socket in the source's pg_wal, which pg_rewind cannot copy.
        let spool = self.servers[new].cluster.wal_dir().join("walpoint-spool");
        crate::wait::until_true(LIMIT, "the promoted server's prefetcher ends", || !spool.exists());
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
