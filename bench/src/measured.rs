//! What one measurement gave.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stats::{max, median, percentile};

/// One tool in one round of one row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// The row.
    pub row: String,
    /// The tool.
    pub tool: String,
    /// Its family.
    pub family: String,
    /// The round; 0 warms up.
    pub round: u32,
    /// How long the work took.
    pub seconds: f64,
    /// Plain bytes of WAL or cluster.
    pub bytes: u64,
    /// Segments, or 0.
    pub segments: u64,
    /// How long each command took, in milliseconds.
    pub commands_ms: Vec<f64>,
    /// CPU seconds of all its processes.
    pub cpu: f64,
    /// Peak resident memory by kind of process.
    pub memory: BTreeMap<String, u64>,
    /// Resident memory of the idle daemon before and after.
    pub idle: Option<(u64, u64)>,
    /// Bytes in the store afterwards.
    pub stored: u64,
    /// Requests to the store, by kind.
    pub requests: BTreeMap<String, u64>,
    /// MB/s of each phase of the data set.
    pub phases: Vec<(String, f64)>,
    /// CPU time that others took meanwhile, as a share of the machine.
    pub foreign: f64,
}

impl Measured {
    /// Million plain bytes a second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.seconds
    }

    /// CPU seconds for a thousand million plain bytes.
    pub fn cpu_per_gb(&self) -> f64 {
        self.cpu / (self.bytes as f64 / 1e9)
    }
}

/// All counted rounds of one tool in one row.
#[derive(Debug, Clone, Copy)]
pub struct MeasuredSummary<'a> {
    rounds: &'a [&'a Measured],
}

impl<'a> MeasuredSummary<'a> {
    /// Of these rounds; the warm-up, round 0, counts for memory only.
    pub fn of(rounds: &'a [&'a Measured]) -> MeasuredSummary<'a> {
        MeasuredSummary { rounds }
    }

    fn counted(&self) -> impl Iterator<Item = &'a Measured> + use<'a> {
        let only = self.rounds.len() == 1;
        self.rounds.iter().copied().filter(move |m| only || m.round > 0)
    }

    /// The median of something.
    pub fn median(&self, value: impl Fn(&Measured) -> f64) -> f64 {
        median(&self.counted().map(value).collect::<Vec<f64>>())
    }

    /// p50, p99 and maximum of all commands, in milliseconds.
    pub fn commands(&self) -> (f64, f64, f64) {
        let all: Vec<f64> = self.counted().flat_map(|m| m.commands_ms.iter().copied()).collect();
        (percentile(&all, 0.5), percentile(&all, 0.99), max(&all))
    }

    /// The highest resident memory of each kind of process over all rounds.
    pub fn memory(&self) -> BTreeMap<String, u64> {
        let mut peaks = BTreeMap::new();
        for (name, &bytes) in self.rounds.iter().flat_map(|m| &m.memory) {
            let peak: &mut u64 = peaks.entry(name.clone()).or_default();
            *peak = (*peak).max(bytes);
        }
        peaks
    }

    /// The highest resident memory of the idle daemon, before and after the work.
    pub fn idle(&self) -> Option<(u64, u64)> {
        let idle = self.rounds.iter().filter_map(|m| m.idle);
        idle.reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)))
    }

    /// The medians of the requests, by kind.
    pub fn requests(&self) -> BTreeMap<String, f64> {
        let kinds = self.counted().flat_map(|m| m.requests.keys().cloned());
        let kinds: std::collections::BTreeSet<String> = kinds.collect();
        let count = |kind: &str| self.median(|m| m.requests.get(kind).copied().unwrap_or(0) as f64);
        kinds.into_iter().map(|kind| (kind.clone(), count(&kind))).collect()
    }

    /// The medians of the phases' rates.
    pub fn phases(&self) -> Vec<(String, f64)> {
        let Some(first) = self.counted().next() else { return Vec::new() };
        let rate = |n: usize| self.median(|m| m.phases.get(n).map_or(f64::NAN, |phase| phase.1));
        first.phases.iter().enumerate().map(|(n, (name, _))| (name.clone(), rate(n))).collect()
    }

    /// The rounds that count.
    pub fn count(&self) -> usize {
        self.counted().count()
    }

    /// The median over the rounds of the quotient of something here and in the same round there. What disturbs the
    /// machine for a while disturbs both.
    pub fn ratio(&self, other: &MeasuredSummary<'_>, value: impl Fn(&Measured) -> f64) -> f64 {
        let quotient = |m: &Measured| {
            let same = other.counted().find(|o| o.round == m.round)?;
            Some(value(m) / value(same))
        };
        median(&self.counted().filter_map(quotient).collect::<Vec<f64>>())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A round that took so long.
    pub(crate) fn measured(row: &str, tool: &str, round: u32, seconds: f64) -> Measured {
        Measured {
            row: row.to_owned(),
            tool: tool.to_owned(),
            family: tool.split(' ').next().unwrap_or_default().to_owned(),
            round,
            seconds,
            bytes: 1_000_000_000,
            segments: 60,
            commands_ms: vec![1.0, 2.0],
            cpu: seconds * 2.0,
            memory: BTreeMap::from([("agent".to_owned(), u64::from(round) + 1)]),
            idle: None,
            stored: 1,
            requests: BTreeMap::from([("PUT".to_owned(), 60)]),
            phases: vec![("all".to_owned(), 1000.0 / seconds)],
            foreign: 0.0,
        }
    }

    #[test]
    fn the_warm_up_counts_for_memory_only() {
        let rounds: Vec<Measured> = [9.0, 2.0, 1.0, 3.0]
            .iter()
            .enumerate()
            .map(|(n, &seconds)| measured("r", "a", u32::try_from(n).unwrap(), seconds))
            .collect();
        let rounds: Vec<&Measured> = rounds.iter().collect();
        let summary = MeasuredSummary::of(&rounds);
        assert_eq!((summary.median(|m| m.seconds), summary.count()), (2.0, 3));
        assert_eq!(summary.memory()["agent"], 4);
        assert_eq!(summary.requests()["PUT"], 60.0);
        assert_eq!(summary.median(Measured::rate), 500.0);
    }

    #[test]
    fn a_ratio_is_that_of_the_same_round() {
        let make = |name: &str, seconds: [f64; 4]| -> Vec<Measured> {
            let numbered = (0..).zip(seconds);
            numbered.map(|(n, seconds)| measured("r", name, n, seconds)).collect()
        };
        let (a, b) = (make("a", [1.0, 1.0, 10.0, 1.0]), make("b", [1.0, 2.0, 20.0, 2.0]));
        let (a, b): (Vec<&Measured>, Vec<&Measured>) = (a.iter().collect(), b.iter().collect());
        assert_eq!(MeasuredSummary::of(&a).ratio(&MeasuredSummary::of(&b), Measured::rate), 2.0);
    }
}
