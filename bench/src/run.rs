//! The rounds: every tool of a row in turn, again and again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::{process, user};

use crate::bed::{self, Bed, Surroundings, Task};
use crate::data::{Data, SEGMENT, Size};
use crate::drive::{self, WorkKind as Load};
use crate::keeping::{self, finding::BoundFinding};
use crate::long_archive::{self, LongCluster};
use crate::measured::Measured;
use crate::place::{StoreKind, Stores, bytes_below};
use crate::reference::{InMemory, Reference};
use crate::rows::{BenchRow, RowKind};
use crate::template;
use crate::tools::Tool;
use crate::work::WorkDirectory;

/// What to run.
#[derive(Debug, Clone)]
pub struct RunPlan {
    /// The rows, in order.
    pub rows: Vec<BenchRow>,
    /// The rows of the second table, in order.
    pub keeping: Vec<keeping::KeepingRow>,
    /// Who takes part.
    pub tools: Vec<Tool>,
    /// Counted rounds of each row.
    pub rounds: u32,
    /// How large the data set is.
    pub size: Size,
}

/// What came out of a run.
#[derive(Debug, Clone, Default)]
pub struct RunOutcome {
    /// All measurements.
    pub measured: Vec<Measured>,
    /// Who was left out of what, and why.
    pub left_out: Vec<String>,
    /// The reference in memory, measured in the rounds of archiving.
    pub references: Vec<Reference>,
    /// What each tool says of its version.
    pub versions: BTreeMap<String, String>,
    /// The second table.
    pub findings: Vec<BoundFinding>,
}

/// Milliseconds between two looks at the memory: often while warming up, so that short lives are seen.
const LOOK_WARMING_UP_MS: u64 = 1;
/// Seldom while it counts.
const LOOK_MS: u64 = 20;

/// What PostgreSQL's archiver has not archived after this long is left to the next command.
const ARCHIVER_LIMIT: Duration = Duration::from_secs(60);

/// Whether beds can be used again: what was archived or backed up, by tool and store.
type Kept = BTreeMap<(String, StoreKind, bool), Bed>;

/// Runs it all.
pub fn run(plan: &RunPlan, work: &WorkDirectory, data: &Data) -> RunOutcome {
    let mut outcome = RunOutcome::default();
    let mut runner =
        Runner { plan, work, data, stores: Stores::new(work), cluster: None, kept: Kept::new(), long: None };
    let mut tools = Vec::new();
    for tool in &plan.tools {
        match runner.look_at(tool) {
            Ok(version) => {
                outcome.versions.insert(tool.name.clone(), version);
                tools.push(tool.clone());
            }
            Err(problem) => outcome.left_out.push(format!("{}: {problem}", tool.name)),
        }
    }
    data.warm();
    for (n, row) in plan.rows.iter().enumerate() {
        let taking_part: Vec<Tool> = tools.iter().filter(|c| row.admits(c)).cloned().collect();
        runner.row(*row, taking_part, &mut outcome);
        runner.clear_kept(&plan.rows[n + 1..]);
    }
    if let Some(mut cluster) = runner.cluster.take() {
        cluster.stop(Shutdown::Fast);
    }
    if let Some(ours) = tools.iter().find(|c| c.is_ours()) {
        let stores = &mut runner.stores;
        outcome.findings = keeping::run(plan, work, data, stores, ours, &mut outcome.left_out);
    }
    outcome
}

struct Runner<'a> {
    plan: &'a RunPlan,
    work: &'a WorkDirectory,
    data: &'a Data,
    stores: Stores,
    cluster: Option<Cluster>,
    kept: Kept,
    long: Option<LongCluster>,
}

impl Runner<'_> {
    /// Whether a tool can take part; its version.
    fn look_at(&self, tool: &Tool) -> Result<String, String> {
        let mut values = bed::common_values(self.work);
        values.extend(tool.values.clone());
        for file in &tool.needs {
            let file = template::fill(file, &values)?;
            if !Path::new(&file).exists() {
                return Err(format!("{file} is not installed"));
            }
        }
        let Some(version) = &tool.version else { return Ok(String::new()) };
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(template::fill(version, &values)?);
        let output = process::run(user::become_user(&mut shell), Duration::from_secs(30));
        Ok(output.stdout.lines().next().unwrap_or_default().trim().to_owned())
    }

    fn row(&mut self, row: BenchRow, mut tools: Vec<Tool>, outcome: &mut RunOutcome) {
        if tools.is_empty() {
            return;
        }
        if row.needs_cluster() && self.cluster.is_none() {
            let mut cluster = self.data.cluster();
            cluster.start();
            self.cluster = Some(cluster);
        }
        // Beside archiving to the sink the processor is asked what it could do.
        let memory = (row.kind == RowKind::Archive && row.store == StoreKind::Sink)
            .then(|| InMemory::read(&self.data.wal.join("pg_wal"), &self.data.segments()));
        for round in 0..=self.plan.rounds {
            if let Some(memory) = &memory {
                let reference = memory.measure();
                eprintln!("{}: round {round}: in memory: {:.0} MB/s", row.name, reference.rate);
                if round > 0 {
                    outcome.references.push(reference);
                }
            }
            // Nobody is always the first.
            let turn = round as usize % tools.len();
            let order: Vec<Tool> = tools.iter().cycle().skip(turn).take(tools.len()).cloned().collect();
            for tool in order {
                match self.measure(row, &tool, round) {
                    Ok(measured) => {
                        eprintln!(
                            "{}: round {round}: {}: {:.2} s, {:.0} MB/s, {:.2} CPU s/GB, others {:.0} %",
                            row.name,
                            tool.name,
                            measured.seconds,
                            measured.rate(),
                            measured.cpu_per_gb(),
                            measured.foreign * 100.0
                        );
                        outcome.measured.push(measured);
                    }
                    Err(problem) => {
                        eprintln!("{}: {}: {problem}", row.name, tool.name);
                        outcome.left_out.push(format!("{} in {}: {problem}", tool.name, row.name));
                        tools.retain(|other| other.name != tool.name);
                    }
                }
            }
            if tools.is_empty() {
                return;
            }
        }
    }

    /// Removes what no later row uses.
    fn clear_kept(&mut self, later: &[BenchRow]) {
        let uses = |key: &(String, StoreKind, bool)| {
            let reads = |row: &&BenchRow| matches!(row.kind, RowKind::Fetch { .. } | RowKind::Restore);
            later.iter().filter(reads).any(|row| row.store == key.1 && row.is_about_wal() == key.2)
        };
        let gone: Vec<_> = self.kept.keys().filter(|key| !uses(key)).cloned().collect();
        for key in gone {
            if let Some(bed) = self.kept.remove(&key) {
                bed.remove(&mut self.stores);
            }
        }
    }

    fn measure(&mut self, row: BenchRow, tool: &Tool, round: u32) -> Result<Measured, String> {
        match row.kind {
            RowKind::Plan => self.plan(row, tool, round),
            RowKind::Archive | RowKind::Backup => {
                let (bed, measured) = self.write(row, tool, round)?;
                let key = (tool.name.clone(), row.store, row.is_about_wal());
                if let Some(old) = self.kept.insert(key, bed) {
                    old.remove(&mut self.stores);
                }
                Ok(measured)
            }
            RowKind::Fetch { .. } | RowKind::Restore => {
                let key = (tool.name.clone(), row.store, row.is_about_wal());
                let bed = match self.kept.remove(&key) {
                    Some(bed) => bed,
                    None => {
                        let kind = if row.is_about_wal() { RowKind::Archive } else { RowKind::Backup };
                        self.write(BenchRow { kind, ..row }, tool, 0)?.0
                    }
                };
                let measured = self.read(row, &bed, round);
                self.kept.insert(key, bed);
                measured
            }
        }
    }

    /// Archives, or takes a backup, into an empty repository.
    fn write(&mut self, row: BenchRow, tool: &Tool, round: u32) -> Result<(Bed, Measured), String> {
        let pgdata = if row.is_about_wal() { &self.data.wal } else { &self.data.cluster };
        let mut around =
            Surroundings { work: self.work, stores: &mut self.stores, cluster: self.cluster.as_ref() };
        let bed = Bed::make(tool, row.store, pgdata, &mut around)?;
        let result = if row.is_about_wal() {
            drive::clear_archive_status(pgdata);
            let segments = segments(self.data, tool);
            let command = tool.archive.as_deref().expect("admitted");
            let load = Load::Archive { segments };
            let task = Task { load, command, daemon: true, at: pgdata, look_ms: look(round) };
            bed.measure(task, &mut around, || Ok(()))
        } else {
            let cluster = around.cluster.expect("a running cluster");
            let archive = tool.archive.as_deref().unwrap_or("/bin/true");
            let archive = bed.with_environment(archive);
            let command = tool.backup.as_deref().expect("admitted");
            let ready = || {
                archive_by(cluster, &archive?);
                cluster.psql("checkpoint");
                Ok(())
            };
            let task = Task { load: Load::Once, command, daemon: true, at: pgdata, look_ms: look(round) };
            let seen = bed.measure(task, &mut around, ready);
            wait_for_archiver(cluster);
            archive_by(cluster, "/bin/true");
            seen
        };
        let measured = result.map(|seen| self.measured(row, &bed, round, seen));
        match measured {
            Ok(measured) => Ok((bed, measured)),
            Err(problem) => {
                bed.remove(&mut self.stores);
                Err(problem)
            }
        }
    }

    /// Fetches what was archived, or restores what was backed up.
    fn read(&mut self, row: BenchRow, bed: &Bed, round: u32) -> Result<Measured, String> {
        let target = bed::target(self.work);
        self.work.dir("run");
        self.work.remove("run/target");
        bed.clear_scratch();
        let tool = bed.tool().clone();
        let mut around =
            Surroundings { work: self.work, stores: &mut self.stores, cluster: self.cluster.as_ref() };
        let seen = match row.kind {
            RowKind::Fetch { pace_ms } => {
                recovering(&self.data.wal, &target);
                let segments = segments(self.data, &tool);
                let load = Load::Fetch { segments: segments.clone(), pace_ms };
                let command = tool.fetch.as_deref().expect("admitted");
                let task = Task { load, command, daemon: false, at: &target, look_ms: look(round) };
                let seen = bed.measure(task, &mut around, || Ok(()))?;
                same_segments(&self.data.wal, &target, &segments)?;
                seen
            }
            _ => {
                let command = tool.restore.as_deref().expect("admitted");
                let at = target.parent().expect("a directory");
                let task = Task { load: Load::Once, command, daemon: false, at, look_ms: look(round) };
                let seen = bed.measure(task, &mut around, || Ok(()))?;
                let restored = bytes_below(&target) - bytes_below(&target.join("pg_wal"));
                if restored < self.data.cluster_bytes / 20 * 19 {
                    return Err(format!("{restored} bytes were restored of {}", self.data.cluster_bytes));
                }
                seen
            }
        };
        let measured = self.measured(row, bed, round, seen);
        self.work.remove("run/target");
        Ok(measured)
    }

    /// Plans a restore; the archive is made in the first round.
    fn plan(&mut self, row: BenchRow, tool: &Tool, round: u32) -> Result<Measured, String> {
        let long = self.long.get_or_insert_with(LongCluster::make);
        let mut around = Surroundings { work: self.work, stores: &mut self.stores, cluster: None };
        let key = (tool.name.clone(), row.store, row.is_about_wal());
        let bed = match self.kept.remove(&key) {
            Some(bed) if round > 0 => bed,
            _ => {
                let mut bed = Bed::make(tool, row.store, long.pgdata(), &mut around)?;
                let moment = long.fill(&bed.fill("{repository}")?)?;
                bed.set("moment", moment);
                bed
            }
        };
        let command = tool.plan.as_deref().expect("admitted");
        let task = Task { load: Load::Once, command, daemon: false, at: long.pgdata(), look_ms: look(round) };
        let seen = bed.measure(task, &mut around, || Ok(()));
        let measured = seen.map(|seen| self.measured(row, &bed, round, seen));
        self.kept.insert(key, bed);
        measured
    }

    fn measured(&mut self, row: BenchRow, bed: &Bed, round: u32, seen: bed::Seen) -> Measured {
        let tool = bed.tool();
        let report = seen.report;
        let segments = if row.is_about_wal() { report.commands_ms.len() as u64 } else { 0 };
        Measured {
            row: row.name.to_owned(),
            tool: tool.name.clone(),
            family: tool.family.clone(),
            round,
            seconds: report.seconds,
            bytes: match row.kind {
                RowKind::Archive | RowKind::Fetch { .. } => segments * SEGMENT,
                RowKind::Backup | RowKind::Restore => self.data.cluster_bytes,
                RowKind::Plan => long_archive::SEGMENTS * SEGMENT,
            },
            segments,
            phases: if segments == 0 { Vec::new() } else { phases(self.data, &report.ended) },
            commands_ms: report.commands_ms,
            cpu: report.cpu,
            memory: report.memory,
            idle: report.idle,
            stored: bed.place().stored(&mut self.stores),
            requests: seen.requests,
            foreign: seen.foreign,
        }
    }
}

fn look(round: u32) -> u64 {
    if round == 0 { LOOK_WARMING_UP_MS } else { LOOK_MS }
}

/// The segments that a tool archives.
fn segments(data: &Data, tool: &Tool) -> Vec<String> {
    let mut segments = data.segments();
    segments.truncate(tool.segments.unwrap_or(usize::MAX));
    segments
}

/// MB/s of each phase that was done wholly, from when its last segment and that before its first were done.
fn phases(data: &Data, ended: &[f64]) -> Vec<(String, f64)> {
    let (mut rates, mut first) = (Vec::new(), 0);
    for phase in &data.phases {
        let next = first + phase.segments.len();
        if let Some(end) = next.checked_sub(1).and_then(|last| ended.get(last)) {
            let begun = first.checked_sub(1).map_or(0.0, |before| ended[before]);
            let bytes = phase.segments.len() as f64 * SEGMENT as f64;
            rates.push((phase.name.clone(), bytes / 1e6 / (end - begun)));
        }
        first = next;
    }
    rates
}

/// Has PostgreSQL's archiver use a command from now on.
pub(crate) fn archive_by(cluster: &Cluster, command: &str) {
    let quoted = command.replace('\'', "''");
    cluster.psql(&format!("alter system set archive_command = '{quoted}'; select pg_reload_conf()"));
}

/// Waits until PostgreSQL's archiver has nothing to do: a command of one tool must not run into the next one's time,
/// nor outlive its own directories.
pub(crate) fn wait_for_archiver(cluster: &Cluster) {
    let status = cluster.wal_dir().join("archive_status");
    let is_ready = |entry: fs::DirEntry| entry.path().extension().is_some_and(|ending| ending == "ready");
    let begun = Instant::now();
    while fs::read_dir(&status).into_iter().flatten().flatten().any(is_ready)
        && begun.elapsed() < ARCHIVER_LIMIT
    {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An empty data directory that is being recovered.
fn recovering(wal: &Path, target: &Path) {
    fs::create_dir_all(target.join("global")).expect("the target");
    fs::create_dir_all(target.join("pg_wal")).expect("the target");
    for name in ["global/pg_control", "PG_VERSION"] {
        fs::copy(wal.join(name), target.join(name)).expect("copy");
    }
    fs::write(target.join("recovery.signal"), "").expect("recovery.signal");
    user::give_tree(target);
    fs::set_permissions(target, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
}

/// What was fetched must be what was archived: looked at in the first, the middle and the last segment.
fn same_segments(wal: &Path, target: &Path, segments: &[String]) -> Result<(), String> {
    for name in [segments.first(), segments.get(segments.len() / 2), segments.last()].into_iter().flatten() {
        let name = Path::new("pg_wal").join(name);
        let (ours, theirs) = (fs::read(wal.join(&name)), fs::read(target.join(&name)));
        if ours.map_err(|e| e.to_string())? != theirs.map_err(|e| e.to_string())? {
            return Err(format!("{} is not what was archived", name.display()));
        }
    }
    Ok(())
}
