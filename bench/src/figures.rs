//! The targets, and whether they are met. A target counts only for what was measured.

use std::collections::BTreeMap;

use crate::measured::{Measured, MeasuredSummary};
use crate::reference::Reference;
use crate::run::RunOutcome;
use crate::stats::median;
use crate::tools::OURS;

/// The family that the targets compare with.
pub const PEER: &str = "pgbackrest";

/// Others took at most this share of the machine, or the row is marked.
pub const QUIET: f64 = 0.1;

const MIB: f64 = (1u64 << 20) as f64;

/// One target.
#[derive(Debug, Clone)]
pub struct Figure {
    /// What is measured.
    pub work: String,
    /// The row that it comes from.
    pub row: String,
    /// Ours, with its unit.
    pub ours: String,
    /// The peer's, if one is compared with.
    pub peer: String,
    /// The quotient that counts, if it is one.
    pub ratio: Option<f64>,
    /// What it should be.
    pub target: String,
    /// By how much it is missed, as a share of the target; not positive when met.
    pub missed_by: f64,
    /// Others used the machine meanwhile: their share of it.
    pub foreign: f64,
}

/// Which side of the target is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoodSide {
    /// Values that are not lower.
    AtLeast,
    /// Values that are not higher.
    AtMost,
}

impl GoodSide {
    /// By how much a value misses it, as a share of the target; not positive when met.
    pub fn missed_by(self, value: f64, target: f64) -> f64 {
        match self {
            GoodSide::AtLeast => 1.0 - value / target,
            GoodSide::AtMost => value / target - 1.0,
        }
    }

    /// As it is written before the target.
    pub fn sign(self) -> &'static str {
        match self {
            GoodSide::AtLeast => "≥",
            GoodSide::AtMost => "≤",
        }
    }
}

/// All measurements, by row and tool.
pub struct Table<'a> {
    rows: BTreeMap<&'a str, BTreeMap<&'a str, Vec<&'a Measured>>>,
}

impl<'a> Table<'a> {
    /// Of all measurements.
    pub fn of(measured: &'a [Measured]) -> Table<'a> {
        let mut rows: BTreeMap<&str, BTreeMap<&str, Vec<&Measured>>> = BTreeMap::new();
        for m in measured {
            rows.entry(&m.row).or_default().entry(&m.tool).or_default().push(m);
        }
        Table { rows }
    }

    /// The tools of a row.
    pub fn tools(&self, row: &str) -> Vec<(&'a str, MeasuredSummary<'_>)> {
        let found = self.rows.get(row).into_iter().flatten();
        found.map(|(name, rounds)| (*name, MeasuredSummary::of(rounds))).collect()
    }

    /// The fastest of a family.
    pub fn best(&self, row: &str, family: &str) -> Option<(&'a str, MeasuredSummary<'_>)> {
        let rows = self.rows.get(row)?.iter().filter(|(_, rounds)| rounds[0].family == family);
        let summaries = rows.map(|(name, rounds)| (*name, MeasuredSummary::of(rounds)));
        summaries.max_by(|a, b| a.1.median(Measured::rate).total_cmp(&b.1.median(Measured::rate)))
    }

    /// The share of the machine that others took while a row was measured: the median.
    pub fn foreign(&self, row: &str) -> f64 {
        let all = self.rows.get(row).into_iter().flatten().flat_map(|(_, rounds)| rounds.iter());
        median(&all.filter(|m| m.round > 0).map(|m| m.foreign).collect::<Vec<f64>>())
    }
}

/// Every target for which there is a measurement.
pub fn figures(outcome: &RunOutcome) -> Vec<Figure> {
    let table = Table::of(&outcome.measured);
    let mut all = Vec::new();
    let compare = |all: &mut Vec<Figure>, row: &str, what: Compared| {
        all.extend(compared(&table, row, what));
    };
    let rate = |work, target| Compared {
        work,
        target,
        side: GoodSide::AtLeast,
        value: Measured::rate,
        unit: "MB/s",
        of: "× MB/s",
    };
    compare(&mut all, "archive-local", rate("archive, local filesystem", 1.2));
    all.extend(command(&table, "archive-local", "archive, local filesystem: one command, p50", 0.5, 2.5));
    compare(&mut all, "archive-s3", rate("archive, S3 on SeaweedFS", 2.0));
    compare(
        &mut all,
        "archive-s3",
        Compared {
            work: "archive, S3: CPU seconds per GB",
            target: 0.7,
            side: GoodSide::AtMost,
            value: Measured::cpu_per_gb,
            unit: "s/GB",
            of: "× CPU",
        },
    );
    all.extend(against_memory(&table, &outcome.references));
    compare(&mut all, "fetch-s3", rate("fetch from S3, unpaced", 5.0));
    all.extend(command(&table, "fetch-paced-s3", "fetch paced at 30 ms: p50", 0.5, 2.5));
    all.extend(command(&table, "fetch-paced-s3", "fetch paced at 30 ms: p99", 0.99, 10.0));
    let time = |work, target| Compared {
        work,
        target,
        side: GoodSide::AtMost,
        value: |m| m.seconds,
        unit: "s",
        of: "× the time",
    };
    compare(&mut all, "backup-local", time("full backup, local filesystem", 0.6));
    compare(&mut all, "restore-local", time("restore, local filesystem", 0.5));
    compare(&mut all, "restore-s3", time("restore, S3", 0.5));
    all.extend(memory(&table));
    all.extend(requests(&table));
    all.extend(plan(&table));
    all
}

struct Compared {
    work: &'static str,
    target: f64,
    side: GoodSide,
    value: fn(&Measured) -> f64,
    unit: &'static str,
    of: &'static str,
}

/// Ours against the fastest peer.
fn compared(table: &Table<'_>, row: &str, what: Compared) -> Option<Figure> {
    let ((_, ours), (peer, theirs)) = (table.best(row, OURS)?, table.best(row, PEER)?);
    let ratio = ours.ratio(&theirs, what.value);
    Some(Figure {
        work: what.work.to_owned(),
        row: row.to_owned(),
        ours: format!("{} {}", number(ours.median(what.value)), what.unit),
        peer: format!("{} {} ({peer})", number(theirs.median(what.value)), what.unit),
        ratio: Some(ratio),
        target: format!("{} {}{}", what.side.sign(), what.target, what.of),
        missed_by: what.side.missed_by(ratio, what.target),
        foreign: table.foreign(row),
    })
}

/// How long one command of ours takes.
fn command(table: &Table<'_>, row: &str, work: &str, share: f64, most_ms: f64) -> Option<Figure> {
    let at = |summary: &MeasuredSummary<'_>| {
        let (p50, p99, _) = summary.commands();
        if share < 0.9 { p50 } else { p99 }
    };
    let ours = at(&table.best(row, OURS)?.1);
    let peer = table.best(row, PEER).map(|(name, theirs)| format!("{:.2} ms ({name})", at(&theirs)));
    Some(Figure {
        work: work.to_owned(),
        row: row.to_owned(),
        ours: format!("{ours:.2} ms"),
        peer: peer.unwrap_or_default(),
        ratio: None,
        target: format!("≤ {most_ms} ms"),
        missed_by: GoodSide::AtMost.missed_by(ours, most_ms),
        foreign: table.foreign(row),
    })
}

fn against_memory(table: &Table<'_>, references: &[Reference]) -> Option<Figure> {
    let row = "archive-sink";
    let (_, ours) = table.best(row, OURS)?;
    let memory = median(&references.iter().map(|r| r.rate).collect::<Vec<f64>>());
    let rate = ours.median(Measured::rate);
    let ratio = rate / memory;
    (!references.is_empty()).then(|| Figure {
        work: "archive, sink server, against the in-memory rate".to_owned(),
        row: row.to_owned(),
        ours: format!("{} MB/s", number(rate)),
        peer: format!("{} MB/s (in memory)", number(memory)),
        ratio: Some(ratio),
        target: "≥ 0.85×".to_owned(),
        missed_by: GoodSide::AtLeast.missed_by(ratio, 0.85),
        foreign: table.foreign(row),
    })
}

/// Rows in which processes of a kind do the work that a limit is about.
const ARCHIVING: [&str; 3] = ["archive-local", "archive-s3", "archive-sink"];
const FETCHING: [&str; 3] = ["fetch-local", "fetch-s3", "fetch-paced-s3"];
const BACKUPS: [&str; 2] = ["backup-local", "backup-s3"];
const RESTORES: [&str; 2] = ["restore-local", "restore-s3"];

fn memory(table: &Table<'_>) -> Vec<Figure> {
    let mut all = Vec::new();
    let mut limit =
        |work: &str, rows: &[&str], most: f64, peak: &dyn Fn(&MeasuredSummary<'_>) -> Option<u64>| {
            let found = rows.iter().filter_map(|&row| Some((row, peak(&table.best(row, OURS)?.1)?)));
            if let Some((row, bytes)) = found.max_by_key(|found| found.1) {
                let mib = bytes as f64 / MIB;
                all.push(Figure {
                    work: format!("resident memory: {work}"),
                    row: row.to_owned(),
                    ours: format!("{mib:.1} MiB"),
                    peer: String::new(),
                    ratio: None,
                    target: format!("≤ {most} MB"),
                    // Other load does not change it.
                    foreign: 0.0,
                    missed_by: GoodSide::AtMost.missed_by(bytes as f64 / 1e6, most),
                });
            }
        };
    let process = |name: &'static str| move |s: &MeasuredSummary<'_>| s.memory().get(name).copied();
    limit("daemon, idle", &ARCHIVING, 20.0, &|s| s.idle().map(|(before, _)| before));
    limit("daemon, idle after work", &ARCHIVING, 20.0, &|s| s.idle().map(|(_, after)| after));
    limit("daemon, busy", &ARCHIVING, 64.0, &process("archive-agent"));
    limit("prefetcher, busy", &FETCHING, 64.0, &process("restore-agent"));
    limit("backup", &BACKUPS, 128.0, &process("archive-agent"));
    limit("restore", &RESTORES, 128.0, &process("restore-agent"));
    limit("archive-push", &ARCHIVING, 2.0, &process("archive-push"));
    limit("restore-fetch", &FETCHING, 2.0, &process("restore-fetch"));
    all
}

fn requests(table: &Table<'_>) -> Vec<Figure> {
    let row = "archive-s3";
    let Some((_, ours)) = table.best(row, OURS) else { return Vec::new() };
    let requests = ours.requests();
    let all: f64 = requests.values().sum();
    let each = all / ours.median(|m| m.segments as f64);
    let listed = requests.get("LIST").copied().unwrap_or(0.0);
    let peer = table.best(row, PEER).map(|(name, theirs)| {
        let each = theirs.requests().values().sum::<f64>() / theirs.median(|m| m.segments as f64);
        format!("{each:.2} ({name})")
    });
    let figure = |work: &str, ours: String, peer: String, target: &str, missed_by: f64| Figure {
        work: work.to_owned(),
        row: row.to_owned(),
        ours,
        peer,
        ratio: None,
        target: target.to_owned(),
        missed_by,
        foreign: 0.0,
    };
    vec![
        figure(
            "requests for each archived segment",
            format!("{each:.3}"),
            peer.unwrap_or_default(),
            "≤ 1.05",
            GoodSide::AtMost.missed_by(each, 1.05),
        ),
        figure("listings while archiving", format!("{listed:.0}"), String::new(), "0", listed),
    ]
}

fn plan(table: &Table<'_>) -> Vec<Figure> {
    let row = "plan-s3";
    let Some((_, ours)) = table.best(row, OURS) else { return Vec::new() };
    let requests: f64 = ours.requests().values().sum();
    let seconds = ours.median(|m| m.seconds);
    let figure = |work: &str, ours: String, target: &str, missed_by: f64, foreign: f64| Figure {
        work: format!("plan over 100,000 segments on S3: {work}"),
        row: row.to_owned(),
        ours,
        peer: String::new(),
        ratio: None,
        target: target.to_owned(),
        missed_by,
        foreign,
    };
    let (of_requests, of_time) =
        (GoodSide::AtMost.missed_by(requests, 40.0), GoodSide::AtMost.missed_by(seconds, 1.0));
    vec![
        figure("requests", format!("{requests:.0}"), "≤ 40", of_requests, 0.0),
        figure("time", format!("{seconds:.2} s"), "≤ 1 s", of_time, table.foreign(row)),
    ]
}

/// Three significant digits.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measured::tests::measured;

    fn outcome(ours: f64, theirs: f64) -> RunOutcome {
        let mut all = Vec::new();
        for round in 0..3 {
            all.push(measured("archive-local", "walpoint", round, ours));
            all.push(measured("archive-local", "pgbackrest a", round, theirs));
            all.push(measured("archive-local", "pgbackrest b", round, theirs * 2.0));
        }
        RunOutcome { measured: all, ..RunOutcome::default() }
    }

    #[test]
    fn ours_is_compared_with_the_best_peer() {
        let figures = figures(&outcome(1.0, 1.5));
        let figure = &figures[0];
        assert_eq!((figure.ratio, figure.target.as_str()), (Some(1.5), "≥ 1.2× MB/s"));
        assert!(figure.peer.contains("pgbackrest a") && figure.missed_by < 0.0, "{figure:?}");
    }

    #[test]
    fn a_miss_is_told_as_a_share_of_the_target() {
        let figures = figures(&outcome(1.0, 0.9));
        assert!((figures[0].missed_by - 0.25).abs() < 1e-9, "{:?}", figures[0]);
    }

    #[test]
    fn what_was_not_measured_has_no_figure() {
        let figures = figures(&outcome(1.0, 1.0));
        assert!(figures.iter().all(|figure| figure.row == "archive-local"), "{figures:?}");
    }
}
