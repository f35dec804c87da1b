//! A history in progress: its servers on one archive, their branches, and the steps so far.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use walpoint_base::Lsn;

use crate::dir::TestDir;
use crate::process::{self, Output};
use crate::store::Store;
use crate::user;

use super::load;
use super::oracle::{Branch, Effect};
use super::server::Server;
use super::template;

/// The size of a segment: the smallest, so that short histories have many.
pub const SEGMENT: u64 = 1 << 20;

/// How long a server may take to archive what waits, or to recover.
pub const LIMIT: Duration = Duration::from_secs(30);

/// What the histories find.
pub type Outcome<T> = Result<T, String>;

/// A history in progress. The planner's tests have a world of records under the same name: no history uses that.
#[derive(Debug)]
pub struct World {
    /// All servers that ever were.
    pub servers: Vec<Server>,
    /// Random numbers, all of them from the seed.
    pub rng: StdRng,
    /// The server that clients use.
    pub primary: usize,
    /// Everything that was written.
    pub branches: Vec<Branch>,
    /// Whose timelines are whose: the branch that the archive holds under a number.
    pub owners: BTreeMap<u32, usize>,
    /// The major version of all servers.
    pub major: u32,
    /// The repository.
    pub store: Store,
    /// Everything lies in here.
    pub dir: Arc<TestDir>,
    /// Tablespaces outside the data directories: where they were created.
    pub spaces: Vec<PathBuf>,
    /// Whether there are tablespaces inside the data directories.
    pub in_place: bool,
    /// Whether a second server archived, or tried to, what was not its own.
    pub contested: bool,
    /// Whether WAL before a server's first archived segment is missing on purpose.
    pub gap: bool,
    steps: Vec<String>,
    next: i64,
    begun: Instant,
}

impl World {
    /// A server that archives, with a first backup behind it.
    pub fn begin(major: u32, rng: StdRng) -> Outcome<World> {
        let dir = Arc::new(TestDir::new());
        let store = Store::local();
        let server = Server::of(template::cluster(&dir, major), &store);
        let mut world = World {
            servers: vec![server],
            rng,
            primary: 0,
            branches: vec![Branch::first()],
            owners: BTreeMap::from([(1, 0)]),
            major,
            store,
            dir,
            spaces: Vec::new(),
            in_place: false,
            contested: false,
            gap: false,
            steps: Vec::new(),
            next: 0,
            begun: Instant::now(),
        };
        world.note(format!("PostgreSQL {major}: data starts and archives"));
        let server = &mut world.servers[0];
        server.archive_here();
        server.agent.init(&[]).expect_success();
        server.start_daemon();
        server.cluster.start();
        server.sql(load::SCHEMA);
        world.load(3);
        world.backup()?;
        Ok(world)
    }

    /// Adds a step to what a person would have to do.
    pub fn note(&mut self, step: impl Into<String>) {
        self.steps.push(format!("{:6.1} s  {}", self.begun.elapsed().as_secs_f64(), step.into()));
    }

    /// The steps so far.
    pub fn steps(&self) -> String {
        self.steps.join("\n")
    }

    /// Takes a number that no transaction has.
    pub fn number(&mut self) -> i64 {
        self.next += 1;
        self.next
    }

    /// Load on the primary.
    pub fn load(&mut self, steps: u32) {
        self.load_on(self.primary, steps);
    }

    /// Load on a server.
    pub fn load_on(&mut self, server: usize, steps: u32) {
        let server = &mut self.servers[server];
        let branch = &mut self.branches[server.branch];
        let from = branch.events.len();
        load::run(&mut self.rng, server, branch, &mut self.next, steps);
        load::flush(server, branch);
        let (name, timeline) = (server.name(), branch.timeline);
        let what = branch.events[from..].iter().map(|event| match &event.effect {
            Effect::Commit { added, removed } if removed.is_empty() => format!("commit {}", added.0),
            Effect::Commit { added, removed } => format!("commit {} (removes {removed:?})", added.0),
            Effect::Prepare(name) => format!("prepare {name}"),
            Effect::CommitPrepared(name, _) => format!("commit prepared {name}"),
            Effect::RollbackPrepared(name) => format!("rollback prepared {name}"),
            Effect::Point(name) => format!("restore point \"{name}\""),
            Effect::Backup(_) | Effect::Nothing if event.xid.is_some() => "rollback".to_owned(),
            Effect::Backup(_) | Effect::Ended | Effect::Nothing => "filler".to_owned(),
        });
        let what: Vec<String> = what.collect();
        let end = branch.events.last().map_or(Lsn(0), |event| event.after);
        self.note(format!("{name} (timeline {timeline}): {}; WAL ends at {end}", what.join(", ")));
    }

    /// One statement on the primary.
    pub fn happen(&mut self, sql: &str, effect: Effect) {
        let server = &mut self.servers[self.primary];
        load::happen(server, &mut self.branches[server.branch], sql, effect);
        let name = server.name();
        self.note(format!("{name}: {sql}"));
    }

    /// A base backup of the primary, which has to succeed.
    pub fn backup(&mut self) -> Outcome<()> {
        let server = &mut self.servers[self.primary];
        let before = server.sql("select pg_current_wal_insert_lsn()").parse::<Lsn>().expect("a position");
        let output = server.agent.run(&["--json", "backup"]);
        let name = server.name();
        if !output.success() {
            return Err(format!("a backup of the server that archives failed: {output:#?}"));
        }
        let json: serde_json::Value = serde_json::from_str(&output.stdout).expect("JSON");
        let id = json["backup"].as_str().expect("an id").to_owned();
        let branch = &mut self.branches[server.branch];
        load::happen(server, branch, "select 1", Effect::Backup(id.clone()));
        branch.events.last_mut().expect("just added").before = before;
        self.note(format!("{name}: backup {id}"));
        Ok(())
    }

    /// Finishes the primary's segment and waits until nothing waits for the archive any more.
    pub fn drain(&mut self) -> Outcome<()> {
        self.drain_server(self.primary, LIMIT)
    }

    /// The same of any server.
    pub fn drain_server(&mut self, server: usize, limit: Duration) -> Outcome<()> {
        let server = &mut self.servers[server];
        let sql = "select pg_logical_emit_message(false, 'walpoint', 'end'); select pg_walfile_name(pg_switch_wal())";
        let segment = server.sql(sql).lines().last().unwrap_or_default().to_owned();
        let name = server.name();
        let start = Instant::now();
        let mut poked = Instant::now();
        loop {
            let waiting = server.waiting();
            if waiting.is_empty() && server.acknowledged().contains(&segment) {
                break;
            }
            if start.elapsed() > limit {
                let why: Vec<String> =
                    server.daemon_log().lines().rev().take(12).map(str::to_owned).collect();
                return Err(format!(
                    "{name} does not archive any more: waiting {waiting:?}, wanted {segment}\n\
                     --- its daemon (newest line first):\n{}\n--- the server:\n{}",
                    why.join("\n"),
                    server.log_tail()
                ));
            }
            // After three failures in a row PostgreSQL waits a minute, unless a new segment wakes its archiver.
            if poked.elapsed() > Duration::from_secs(5) {
                server.sql(sql);
                poked = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.note(format!("{name}: everything up to {segment} is archived"));
        Ok(())
    }

    /// Runs `restore` into a new directory; the server is not started.
    pub fn restore(&mut self, stem: &str, arguments: &[String]) -> (Server, Output) {
        let server = Server::at(&self.dir, self.major, &self.store, stem);
        let pgdata = server.cluster.pgdata().display().to_string();
        let spaces = self.dir.mkdir(format!("spaces-{}", server.name())).display().to_string();
        let mut all = vec!["restore", "--pgdata", &pgdata, "--tablespace-dir", &spaces];
        all.extend(arguments.iter().map(String::as_str));
        let output = server.agent.restore(&all);
        let name = server.name();
        let result = if output.success() { "" } else { " (refused)" };
        self.note(format!("restore to {name}: {}{result}", arguments.join(" ")));
        (server, output)
    }

    /// Moves the tablespaces of servers that are gone away: whoever comes next is on a machine of its own.
    pub fn clear_spaces(&mut self) {
        for space in &self.spaces {
            let gone = crate::builder::free_name(&self.dir, "gone-space");
            std::fs::rename(space, gone).expect("move a tablespace away");
            self.dir.mkdir(space.strip_prefix(self.dir.path()).expect("inside"));
        }
    }

    /// What a promoted server is: its timeline, and where it left which one.
    pub fn fork_of(&mut self, server: &mut Server) -> Outcome<(u32, u32, Lsn)> {
        let name = server.sql("select pg_walfile_name(pg_current_wal_insert_lsn())");
        let timeline = u32::from_str_radix(name.get(..8).unwrap_or_default(), 16).expect("a segment's name");
        let history = server.history(timeline);
        let (parent, fork) = history.last().ok_or_else(|| format!("no history of {timeline}"))?;
        Ok((timeline, *parent, *fork))
    }

    /// Compares a server that recovered along `parent` with the oracle: it has to have exactly what had ended where it
    /// left, which lies at `at_least` or later. Gives the new branch.
    pub fn left(
        &mut self,
        server: &mut Server,
        parent: usize,
        at_least: usize,
        exactly: bool,
    ) -> Outcome<Branch> {
        let (timeline, from, fork) = self.fork_of(server)?;
        let branch = self.branches[parent].clone();
        let kept = branch.ended_by(fork);
        let state = server.state()?;
        let name = server.name();
        self.note(format!("{name} took timeline {timeline}, which leaves {from} at {fork}"));
        let expected = branch.state(kept);
        if state != expected {
            return Err(format!(
                "{name}: rows are not those that timeline {from} had at {fork}: {}",
                difference(&expected, &state)
            ) + "\n--- its log:\n"
                + &server.log_tail());
        }
        let wanted = branch.state(at_least);
        if exactly && state != wanted {
            return Err(format!("{name}: rows are not those of the target: {}", difference(&wanted, &state)));
        }
        if !exactly && kept < at_least && state != wanted {
            return Err(format!("{name}: recovery ended early: {}", difference(&wanted, &state)));
        }
        Ok(branch.fork(kept, timeline, fork))
    }

    /// Makes a promoted server the primary, on its new branch.
    pub fn enthrone(&mut self, mut server: Server, branch: Branch) -> usize {
        server.branch = self.branches.len();
        self.owners.insert(branch.timeline, server.branch);
        self.branches.push(branch);
        self.servers.push(server);
        self.primary = self.servers.len() - 1;
        self.primary
    }

    /// Segments that servers were told are archived. One in which a server's path leaves its timeline says nothing: what
    /// that server has of it ends at the fork.
    pub fn acknowledged(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for server in &self.servers {
            let path = &self.branches[server.branch].path;
            let forks = path.windows(2).map(|two| segment_name(two[0].0, two[1].1.0 / SEGMENT));
            let forks: Vec<String> = forks.collect();
            names.extend(server.acknowledged().into_iter().filter(|name| !forks.contains(name)));
        }
        names
    }

    /// Is all WAL of a branch's path between two positions acknowledged?
    pub fn is_archived(&self, acknowledged: &BTreeSet<String>, branch: &Branch, from: Lsn, to: Lsn) -> bool {
        (from.0 / SEGMENT..=(to.0 - 1) / SEGMENT).all(|segment| {
            let timeline = branch.timeline_of_segment(segment, SEGMENT);
            acknowledged.contains(&segment_name(timeline, segment))
        })
    }

    /// The newest backup before event `at` of a branch from which everything up to its end is archived.
    pub fn base(&self, acknowledged: &BTreeSet<String>, branch: &Branch, at: usize) -> Option<usize> {
        let end = branch.events[at].after;
        (0..at).rev().find(|index| {
            let event = &branch.events[*index];
            matches!(event.effect, Effect::Backup(_))
                && self.is_archived(acknowledged, branch, event.before, end)
        })
    }

    /// Event numbers of a branch whose ends can be recovered to, whatever else happens.
    pub fn reachable(&self, branch: &Branch) -> Vec<usize> {
        let acknowledged = self.acknowledged();
        (0..branch.events.len()).filter(|at| self.base(&acknowledged, branch, *at).is_some()).collect()
    }

    /// A copy of a directory as a snapshot of its storage would be: the server stands still meanwhile.
    pub fn snapshot(&mut self, of: usize, stem: &str) -> Server {
        let server = &mut self.servers[of];
        let postmaster = server.cluster.pid().expect("a running server");
        let mut all = process::descendants(postmaster);
        all.push(postmaster);
        all.iter().for_each(|pid| process::kill_pid(*pid, rustix::process::Signal::STOP));
        let source = server.cluster.pgdata().to_owned();
        let mut copy = Server::at(&self.dir, self.major, &self.store, stem);
        let mut cp = std::process::Command::new("cp");
        cp.arg("-a").arg(&source).arg(copy.cluster.pgdata());
        process::run(user::become_user(&mut cp), LIMIT).expect_success();
        // A machine of its own has the tablespaces' directories of its own.
        for link in std::fs::read_dir(copy.cluster.pgdata().join("pg_tblspc")).expect("pg_tblspc").flatten() {
            let Ok(place) = std::fs::read_link(link.path()) else { continue };
            let own = crate::builder::free_name(&self.dir, "copied-space");
            let mut cp = std::process::Command::new("cp");
            process::run(user::become_user(cp.arg("-a").arg(&place).arg(&own)), LIMIT).expect_success();
            std::fs::remove_file(link.path()).expect("remove a link");
            std::os::unix::fs::symlink(&own, link.path()).expect("make a link");
        }
        all.iter().for_each(|pid| process::kill_pid(*pid, rustix::process::Signal::CONT));
        drop(std::fs::remove_file(copy.cluster.pgdata().join("postmaster.pid")));
        // Where the original was recovered to is none of the copy's business.
        let auto = copy.cluster.pgdata().join("postgresql.auto.conf");
        let text = std::fs::read_to_string(&auto).expect("postgresql.auto.conf");
        let kept = text.lines().filter(|line| !line.starts_with("recovery_target"));
        let kept = kept.fold(String::new(), |text, line| text + line + "\n");
        self.dir.write(auto.strip_prefix(self.dir.path()).expect("inside"), kept);
        copy.branch = server.branch;
        let (name, copied) = (server.name(), copy.name());
        self.note(format!("{copied} is a snapshot of {name}'s storage"));
        copy
    }
}

fn segment_name(timeline: u32, segment: u64) -> String {
    let per_log = (1 << 32) / SEGMENT;
    format!("{timeline:08X}{:08X}{:08X}", segment / per_log, segment % per_log)
}

/// What one state lacks and what it has too much.
pub fn difference(expected: &super::oracle::State, found: &super::oracle::State) -> String {
    let lost: Vec<_> =
        expected.rows.iter().filter(|(key, rows)| found.rows.get(key) != Some(*rows)).collect();
    let extra: Vec<_> =
        found.rows.iter().filter(|(key, rows)| expected.rows.get(key) != Some(*rows)).collect();
    let (prepared, open) = (&expected.prepared, &found.prepared);
    format!(
        "transactions (number, rows) that should be there: {lost:?}; that should not: {extra:?}; \
         prepared: expected {prepared:?}, found {open:?}"
    )
}
