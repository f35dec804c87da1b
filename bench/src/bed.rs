//! A tool set up on a store: its files, its directories, its repository; and how it is measured there.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use walpoint_tests::cluster::Cluster;
use walpoint_tests::dir::TestDir;
use walpoint_tests::{process, testbed, user};

use crate::data;
use crate::drive::{self, DriveOrder, DriveReport};
use crate::machine;
use crate::place::{StoreKind, StorePlace, Stores};
use crate::processes;
use crate::template::{self, Values};
use crate::tools::Tool;
use crate::work::WorkDirectory;

/// No command of setting up takes longer.
const SETUP_LIMIT: Duration = Duration::from_secs(120);

/// What a measurement took place in.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// The working directory.
    pub work: &'a WorkDirectory,
    /// The stores.
    pub stores: &'a mut Stores,
    /// The running cluster, if there is one.
    pub cluster: Option<&'a Cluster>,
}

/// A tool on a store.
#[derive(Debug)]
pub struct Bed {
    tool: Tool,
    place: StorePlace,
    values: Values,
    /// Sockets, configuration, logs: in memory, with a short path.
    dir: TestDir,
    /// On the disk, for spools.
    scratch: PathBuf,
}

/// What a driver shall do.
#[derive(Debug)]
pub struct Task<'a> {
    /// The work.
    pub load: drive::WorkKind,
    /// The tool's command for it, with placeholders.
    pub command: &'a str,
    /// Whether its daemon runs beside it.
    pub daemon: bool,
    /// Where it is done.
    pub at: &'a Path,
    /// Milliseconds between two looks at the memory.
    pub look_ms: u64,
}

/// What a driver reported, and what was seen around it.
#[derive(Debug)]
pub struct Seen {
    /// The driver's report.
    pub report: DriveReport,
    /// Requests to the store meanwhile.
    pub requests: BTreeMap<String, u64>,
    /// CPU time that others took meanwhile, as a share of the machine.
    pub foreign: f64,
}

impl Seen {
    /// The peak resident memory of a process. A bound is not met because nothing was seen.
    pub fn peak(&self, process: &str) -> Result<u64, String> {
        let peak = self.report.memory.get(process).copied().filter(|peak| *peak > 0);
        peak.ok_or_else(|| format!("the memory of {process} was not seen: {:?}", self.report.memory))
    }
}

impl Bed {
    /// Sets a tool up on an empty store, for a data directory.
    pub fn make(
        tool: &Tool,
        kind: StoreKind,
        pgdata: &Path,
        around: &mut Surroundings<'_>,
    ) -> Result<Bed, String> {
        let place = StorePlace::make(kind, around.stores);
        let dir = TestDir::new();
        let scratch = around.work.dir("run").join(format!("scratch{:08x}", rand::random::<u32>()));
        let mut values = common_values(around.work);
        let mut set =
            |name: &str, value: &Path| drop(values.insert(name.to_owned(), value.display().to_string()));
        set("work", dir.path());
        set("scratch", &scratch);
        set("pgdata", pgdata);
        set("target", &target(around.work));
        if let Some(cluster) = around.cluster {
            set("socket", cluster.socket_dir());
            values.insert("port".to_owned(), cluster.port().to_string());
            values.insert("conninfo".to_owned(), cluster.conninfo());
        } else {
            // Of a server that does not run and is not asked.
            set("socket", dir.path());
            values.insert("port".to_owned(), "5432".to_owned());
            values.insert("conninfo".to_owned(), format!("host={} user=postgres", dir.path().display()));
        }
        values.extend(place.values().clone());
        values.extend(tool.values.clone());
        values.extend(tool.store.get(kind.name()).cloned().unwrap_or_default());
        let bed = Bed { tool: tool.clone(), place, values, dir, scratch };
        match bed.set_up() {
            Ok(()) => Ok(bed),
            Err(problem) => {
                bed.remove(around.stores);
                Err(problem)
            }
        }
    }

    fn set_up(&self) -> Result<(), String> {
        self.clear_scratch();
        for (name, text) in &self.tool.files {
            self.dir.write(name, template::fill(text, &self.values)?);
        }
        for command in &self.tool.setup {
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(self.fill(command)?).current_dir(self.dir.path());
            self.environment(&mut shell)?;
            let output = process::run(&mut shell, SETUP_LIMIT);
            if !output.success() {
                return Err(format!("{command}: exit {}\n{}{}", output.status, output.stdout, output.stderr));
            }
        }
        Ok(())
    }

    /// Empties the directory for spools.
    pub fn clear_scratch(&self) {
        if self.scratch.exists() {
            fs::remove_dir_all(&self.scratch).expect("empty the scratch directory");
        }
        fs::create_dir_all(&self.scratch).expect("a scratch directory");
        user::give(&self.scratch);
    }

    /// Fills in the placeholders of a command.
    pub fn fill(&self, command: &str) -> Result<String, String> {
        template::fill(command, &self.values)
    }

    /// A command for somebody who does not have the tool's environment: PostgreSQL's archiver.
    pub fn with_environment(&self, command: &str) -> Result<String, String> {
        let env = self.env()?;
        let settings: String = env.iter().map(|(name, value)| format!("{name}='{value}' ")).collect();
        Ok(settings + &self.fill(command)?)
    }

    /// Says what a placeholder stands for from now on.
    pub fn set(&mut self, name: &str, value: String) {
        self.values.insert(name.to_owned(), value);
    }

    /// The tool.
    pub fn tool(&self) -> &Tool {
        &self.tool
    }

    /// Its repository.
    pub fn place(&self) -> &StorePlace {
        &self.place
    }

    /// Removes repository and directories.
    pub fn remove(self, stores: &mut Stores) {
        self.place.remove(stores);
        drop(fs::remove_dir_all(&self.scratch));
    }

    fn env(&self) -> Result<BTreeMap<String, String>, String> {
        let filled = |(name, text): (&String, &String)| Ok((name.clone(), self.fill(text)?));
        self.tool.env.iter().map(filled).collect()
    }

    /// As the servers' user, with nothing in the environment that could be a setting of somebody else.
    fn environment(&self, command: &mut Command) -> Result<(), String> {
        command.env_clear();
        for name in ["PATH", "LANG"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("HOME", self.dir.path()).env("TZ", "UTC");
        user::become_user(command);
        command.env("HOME", self.dir.path()).envs(self.env()?);
        Ok(())
    }

    /// Has a driver do the work. `before` is called when the daemon is ready.
    pub fn measure(
        &self,
        task: Task<'_>,
        around: &mut Surroundings<'_>,
        before: impl FnOnce() -> Result<(), String>,
    ) -> Result<Seen, String> {
        let daemon = self.tool.daemon.as_deref().filter(|_| task.daemon);
        let order = DriveOrder {
            work: task.load,
            command: self.fill(task.command)?,
            daemon: daemon.map(|command| self.fill(command)).transpose()?,
            ready: self.tool.ready.as_deref().map(|command| self.fill(command)).transpose()?,
            env: self.env()?,
            pgdata: task.at.to_owned(),
            log: self.dir.join("commands.log"),
            look_ms: task.look_ms,
        };
        let mut driver = Command::new(around.work.program());
        driver.arg("drive").current_dir(self.dir.path());
        self.environment(&mut driver)?;
        driver.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut driver = driver.spawn().map_err(|e| format!("start the driver: {e}"))?;
        let mut input = driver.stdin.take().expect("piped");
        let mut output = BufReader::new(driver.stdout.take().expect("piped"));
        let mut say = |text: &str| writeln!(input, "{text}").map_err(|e| format!("the driver: {e}"));
        let mut hear = || -> Result<String, String> {
            let mut line = String::new();
            match output.read_line(&mut line) {
                Ok(n) if n > 0 => Ok(line),
                other => Err(format!("the driver ended: {other:?}")),
            }
        };
        say(&serde_json::to_string(&order).expect("an order"))?;
        let ready = hear()?;
        assert_eq!(ready.trim(), drive::READY);
        before()?;
        // What others have written is not flushed at the expense of this one.
        rustix::fs::sync();
        let requests = self.place.requests(around.stores);
        let (begun, busy, beside) = (Instant::now(), machine::busy(), self.cpu_beside(around));
        say("GO")?;
        let report: DriveReport =
            serde_json::from_str(&hear()?).map_err(|e| format!("the driver's report: {e}"))?;
        let elapsed = begun.elapsed().as_secs_f64();
        let known = report.cpu + report.driver_cpu + self.cpu_beside(around) - beside;
        let foreign = (machine::busy() - busy - known) / (elapsed * machine::cores() as f64);
        drop(driver.wait());
        if let Some(problem) = &report.failure {
            return Err(problem.clone());
        }
        let mut counted = self.place.requests(around.stores);
        for (kind, count) in &mut counted {
            *count -= requests.get(kind).copied().unwrap_or(0);
        }
        counted.retain(|_, count| *count > 0);
        Ok(Seen { report, requests: counted, foreign: foreign.max(0.0) })
    }

    /// CPU seconds of stores, server and this program so far.
    fn cpu_beside(&self, around: &Surroundings<'_>) -> f64 {
        let mut pids = around.stores.pids();
        pids.extend(self.place.pids());
        pids.extend(around.cluster.and_then(Cluster::pid));
        let mut cpu = processes::own_cpu();
        for pid in pids {
            cpu += processes::cpu_of(pid);
            cpu += process::descendants(pid).into_iter().map(processes::cpu_of).sum::<f64>();
        }
        cpu
    }
}

/// Where backups are restored and segments fetched to.
pub fn target(work: &WorkDirectory) -> PathBuf {
    work.root().join("run/target")
}

/// Placeholders that do not depend on store or tool.
pub fn common_values(work: &WorkDirectory) -> Values {
    let values =
        [("bin", work.root().join("bin")), ("pg", data::programs()), ("testbed", testbed::root().to_owned())];
    values.into_iter().map(|(name, path)| (name.to_owned(), path.display().to_string())).collect()
}
