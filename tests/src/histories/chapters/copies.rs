//! Servers with the same data beside the primary, or instead of it.

use rand::Rng;

use crate::histories::server::Server;
use crate::histories::world::{LIMIT, Outcome, World};
use crate::process;

use super::Follow;

impl World {
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
    pub(super) fn copy_beside(&mut self) -> Outcome<()> {
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
                    crate::histories::world::difference(&expected, &state)
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

    pub(super) fn snapshot_same_configuration(&mut self, promoted: bool) -> Outcome<()> {
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
        // Rows of the copy must not turn up as the primary's.
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

    pub(super) fn twins(&mut self) -> Outcome<()> {
        self.drain()?;
        let old = self.primary;
        let parent = self.servers[old].branch;
        let count = self.branches[parent].events.len();
        self.servers[old].disconnect();
        let mut twins = Vec::new();
        for stem in ["twin-a", "twin-b"] {
            let mut twin = self.snapshot(old, stem);
            twin.archive_here();
            if stem == "twin-b" {
                // It sees no history of the other one's, so both take the same number, however slow one is.
                twin.cluster.set_last("restore_command", "");
            }
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
        let other = self.left(&mut b, parent, count, false)?;
        if other.timeline != branch.timeline {
            // The second one saw the first one's history in time, so each has a timeline of its own: the newer one goes on.
            let (mut older, newer, its) =
                if other.timeline > branch.timeline { (a, b, other) } else { (b, a, branch) };
            older.stop();
            self.enthrone(newer, its);
            self.load(4);
            return self.drain();
        }
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
        let check = b.agent.run(&["check", "--timeout", "3s"]);
        if check.success() {
            return Err(format!(
                "check finds no fault with a server whose timeline is another's: {check:#?}"
            ));
        }
        b.stop();
        self.settle_refused(first)
    }

    /// What a person does who threw the second server of a timeline away: where both left their parent at one position, one history
    /// is both's, and there is nothing to settle.
    fn settle_refused(&self, owner: usize) -> Outcome<()> {
        let (agent, branch) = (&self.servers[owner].agent, self.servers[owner].branch);
        let status = agent.run(&["--json", "status"]);
        if !status.stdout.contains("two servers claim it") {
            return Ok(());
        }
        let timeline = self.branches[branch].timeline.to_string();
        let settled = agent.run(&["lineage", "settle", "--timeline", &timeline, "--reason", "thrown away"]);
        match settled.success() {
            true => Ok(()),
            false => Err(format!("a refused history cannot be settled: {settled:#?}")),
        }
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

    pub(super) fn silent_copy(&mut self) -> Outcome<()> {
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

    pub(super) fn late_archiver(&mut self) -> Outcome<()> {
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
}
