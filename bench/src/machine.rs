//! What the measurements run on, and who else uses it.

use std::fs;

use crate::processes;

/// Processors that may be used.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The load average of the last minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
}

/// CPU seconds that the whole machine has worked since it started, time stolen by others included.
pub fn busy() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<f64> = text
        .lines()
        .next()
        .into_iter()
        .flat_map(|line| line.split_ascii_whitespace().skip(1).filter_map(|value| value.parse().ok()))
        .collect();
    // user nice system idle iowait irq softirq steal; guests are part of user.
    let worked: f64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|&n: &usize| fields.get(n)).sum();
    worked / processes::TICKS_PER_SECOND
}

/// A line for people.
pub fn describe() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse().ok());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{} cores of {model}, {} GiB of memory, Linux {}",
        cores(),
        kib.unwrap_or(0u64).div_ceil(1 << 20),
        kernel.trim()
    )
}

/// How the machine was prepared for measuring, if whoever did so (`bench/steady.sh`) tells.
pub fn prepared() -> Option<String> {
    std::env::var("WALPOINT_BENCH_PREPARED").ok().filter(|text| !text.is_empty())
}
