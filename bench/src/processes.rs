//! All processes below this one: their CPU time and their peak memory.
//!
//! This process is made the reaper of whatever its descendants leave behind, so a program that detaches itself stays below
//! it, and its CPU time is counted when it is reaped: that of a process holds the time of all children it waited for.
//! Peak memory (`VmHWM`) is read while processes live; what lives for less than the interval may be missed once, and is
//! seen in some of a thousand runs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions};

/// `/proc` counts time in hundredths of a second on every architecture that PostgreSQL's packages exist for (USER_HZ).
pub const TICKS_PER_SECOND: f64 = 100.0;

/// Makes this process the reaper of everything below it.
pub fn adopt_orphans() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("become a subreaper");
}

/// CPU seconds, user and system, of all children that were reaped so far.
pub fn reaped_cpu() -> f64 {
    times("self").map_or(0.0, |times| times[2] + times[3])
}

/// CPU seconds of a living process and of the children that it has waited for.
pub fn cpu_of(pid: u32) -> f64 {
    times(&pid.to_string()).map_or(0.0, |times| times.iter().sum())
}

/// CPU seconds of this process without its children.
pub fn own_cpu() -> f64 {
    times("self").map_or(0.0, |times| times[0] + times[1])
}

/// User and system time of a process, and of the children it has waited for, in seconds.
fn times(pid: &str) -> Option<[f64; 4]> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything; after it the fields are numbered from 3.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let seconds = |n: usize| fields.get(n - 3)?.parse::<f64>().ok().map(|value| value / TICKS_PER_SECOND);
    Some([seconds(14)?, seconds(15)?, seconds(16)?, seconds(17)?])
}

/// Resident memory of a process now, in bytes.
pub fn resident(pid: u32) -> u64 {
    status_field(pid, "VmRSS:").unwrap_or(0)
}

fn status_field(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn name(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned())
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Ends everything below this process: politely, then not; and reaps it.
pub fn end_all(time_limit: Duration) {
    let begun = Instant::now();
    let mut asked = HashSet::new();
    loop {
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        let alive = walpoint_tests::process::descendants(std::process::id());
        if alive.is_empty() {
            return;
        }
        let signal = if begun.elapsed() > time_limit { Signal::KILL } else { Signal::TERM };
        for pid in alive {
            if asked.insert((pid, signal.as_raw()))
                && let Some(pid) = Pid::from_raw(pid.cast_signed())
            {
                // One that has just ended is what we want.
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Watches the memory of everything below this process until it is stopped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    peaks: Arc<Mutex<BTreeMap<String, u64>>>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Begins to watch, so often.
    pub fn start(interval: Duration) -> Watch {
        let (stop, peaks) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (stopped, found) = (Arc::clone(&stop), Arc::clone(&peaks));
        let thread = std::thread::spawn(move || {
            let mut tree = Tree::new();
            while !stopped.load(Ordering::Relaxed) {
                tree.look(&found);
                std::thread::sleep(interval);
            }
        });
        Watch { stop, peaks, thread }
    }

    /// The highest resident memory of each kind of process, by name, in bytes.
    pub fn stop(self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watching thread");
        let peaks = self.peaks.lock().expect("lock");
        peaks.clone()
    }
}

/// Who belongs to us is found out once for each process, so a look costs little.
struct Tree {
    root: u32,
    own_name: String,
    ours: HashMap<u32, bool>,
}

impl Tree {
    fn new() -> Tree {
        let root = std::process::id();
        Tree { root, own_name: name(root).unwrap_or_default(), ours: HashMap::new() }
    }

    fn look(&mut self, peaks: &Mutex<BTreeMap<String, u64>>) {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        for &pid in &pids {
            if !self.is_ours(pid) {
                continue;
            }
            let (Some(name), Some(peak)) = (name(pid), status_field(pid, "VmHWM:")) else { continue };
            // Between fork and exec it is still a copy of this process; shells are the same for all.
            if name == self.own_name || name == "sh" {
                continue;
            }
            let mut peaks = peaks.lock().expect("lock");
            let highest = peaks.entry(name).or_default();
            *highest = (*highest).max(peak);
        }
        let there: HashSet<u32> = pids.into_iter().collect();
        self.ours.retain(|pid, _| there.contains(pid));
    }

    fn is_ours(&mut self, pid: u32) -> bool {
        if pid == self.root {
            return false;
        }
        if let Some(&known) = self.ours.get(&pid) {
            return known;
        }
        // Gone already: it is not remembered, the number may come back.
        let Some(parent) = parent(pid) else { return false };
        let ours = parent == self.root || (parent != 0 && self.is_ours(parent));
        self.ours.insert(pid, ours);
        ours
    }
}
