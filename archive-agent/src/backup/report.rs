//! What is reported of a finished backup.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use walpoint_repo::backup::{Method, PageFault, PageFinding, WalStored};
use walpoint_runtime::human;

use super::publish::PublishedReplica;
use super::replica::{Replica, Replicas};
use super::source::CopyCounts;

/// Bad pages named in the text; the manifest and `--json` name more.
const NAMED: usize = 10;

/// A finished backup. Its JSON is stable.
#[derive(Debug, Serialize)]
pub(crate) struct BackupReport {
    /// Its id.
    pub(crate) backup: String,
    /// A person's label.
    pub(crate) label: String,
    /// The cluster's name.
    pub(crate) cluster: String,
    /// PostgreSQL's major version.
    pub(crate) postgresql: u8,
    /// How the cluster was read: `local` or `remote`.
    pub(crate) method: Method,
    /// Whether it was read from a standby.
    pub(crate) from_standby: bool,
    /// When it began, RFC 3339.
    pub(crate) started: String,
    /// When it stopped, RFC 3339.
    pub(crate) ended: String,
    /// Where recovery from it begins.
    pub(crate) start_lsn: String,
    pub(crate) start_timeline: u32,
    /// Where it is consistent.
    pub(crate) stop_lsn: String,
    pub(crate) stop_timeline: u32,
    /// The first segment that it needs.
    pub(crate) first_wal: String,
    pub(crate) last_wal: String,
    /// Regular files.
    pub(crate) files: u64,
    /// Bytes of all files, holes included.
    pub(crate) bytes: u64,
    /// Bytes that were read.
    pub(crate) read_bytes: u64,
    /// Files that vanished while the backup ran.
    pub(crate) vanished: u64,
    /// Files that were cut while they were read.
    pub(crate) shrunk: u64,
    /// Whether page checksums were verified.
    pub(crate) checksums_verified: bool,
    /// Pages that are damaged.
    pub(crate) bad_pages: u64,
    /// The first of them.
    pub(crate) findings: Vec<DamagedPage>,
    /// The copies.
    pub(crate) repositories: Vec<BackupCopy>,
    /// Repositories that should have a copy and have none, with the reason.
    pub(crate) failed: Vec<String>,
    /// How long it took, with waiting for WAL, in seconds.
    pub(crate) seconds: f64,
    /// How long the waiting for WAL took, in seconds.
    pub(crate) wal_seconds: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct DamagedPage {
    /// The file, relative to the data directory.
    pub(crate) file: String,
    /// Which block of the file, counted from 0.
    pub(crate) block: u64,
    /// What is wrong with it.
    pub(crate) fault: String,
}

/// The backup in one repository.
#[derive(Debug, Serialize)]
pub(crate) struct BackupCopy {
    /// The repository's name.
    pub(crate) repository: String,
    /// The finished backup that it was compared with; `null` if there was none, or with `--full`.
    pub(crate) parent: Option<String>,
    /// Bytes of blocks that were stored, before compression.
    pub(crate) new_bytes: u64,
    /// Bytes of blocks that earlier backups had stored.
    pub(crate) reused_bytes: u64,
    /// Bytes of packs that were stored.
    pub(crate) stored_bytes: u64,
}

impl From<&PageFinding> for DamagedPage {
    fn from(finding: &PageFinding) -> Self {
        let fault = match finding.fault {
            PageFault::Checksum { stored, computed } => {
                format!("checksum {stored:04X} in the page, {computed:04X} of its content")
            }
            PageFault::Unreadable => "the operating system cannot read it, zeros were stored".to_owned(),
            PageFault::Reported => "the server reported it".to_owned(),
        };
        Self { file: finding.path.to_string(), block: finding.block, fault }
    }
}

impl BackupReport {
    /// For a person.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "backup {} of cluster {} (PostgreSQL {}{}{})\n",
            self.backup,
            self.cluster,
            self.postgresql,
            if self.method == Method::Remote { ", sent by the server" } else { "" },
            if self.from_standby { ", from a standby" } else { "" }
        );
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            writeln!(text, "  {name:<9} {value}").ok();
        };
        line("start", format!("{} on timeline {} at {}", self.start_lsn, self.start_timeline, self.started));
        line("stop", format!("{} on timeline {} at {}", self.stop_lsn, self.stop_timeline, self.ended));
        line("WAL", format!("{} to {}, stored", self.first_wal, self.last_wal));
        line("read", format!("{}, {}", human::count(self.files, "file"), human::size(self.bytes)));
        for copy in &self.repositories {
            let BackupCopy { repository, stored_bytes, new_bytes, reused_bytes, .. } = copy;
            let stored = human::size(*stored_bytes);
            line(
                "stored",
                format!("{stored} in repository {repository}, for {} of blocks", human::size(*new_bytes)),
            );
            if *reused_bytes > 0 {
                let parent = copy.parent.as_deref().unwrap_or("an unfinished one");
                let reused = human::size(*reused_bytes);
                line("reused", format!("{reused} of blocks that backups up to {parent} have there"));
            }
        }
        for failed in &self.failed {
            line("FAILED", failed.clone());
        }
        if self.vanished + self.shrunk > 0 {
            line(
                "meanwhile",
                format!(
                    "{} files vanished and {} became shorter; replay takes care of that",
                    self.vanished, self.shrunk
                ),
            );
        }
        match (self.checksums_verified, self.bad_pages) {
            (true, 0) => line("pages", "all checksums are right".to_owned()),
            (false, 0) => {
                line("pages", "not verified: the cluster has no checksums, or not all the time".to_owned())
            }
            (_, bad) => line("pages", format!("{bad} DAMAGED, recorded in the backup:")),
        }
        for page in self.findings.iter().take(NAMED) {
            line("", format!("{} block {}: {}", page.file, page.block, page.fault));
        }
        if self.findings.len() > NAMED {
            line("", "and more: see --json".to_owned());
        }
        let (all, wal) = (Duration::from_secs_f64(self.seconds), Duration::from_secs_f64(self.wal_seconds));
        line("took", format!("{}, {} of it waiting for WAL", human::span(all), human::span(wal)));
        text
    }

    /// What the manifests of all copies say; they differ only in what each stored.
    pub(crate) fn of(
        cluster: &str,
        replicas: &Replicas<PublishedReplica>,
        wal: WalStored,
    ) -> anyhow::Result<Self> {
        let PublishedReplica { summary, findings, .. } =
            replicas.stages().next().context("no copy of the backup was finished")?;
        let facts = &summary.facts;
        let copy = |replica: &Replica<PublishedReplica>| {
            replica.stage().map(|copy| BackupCopy {
                repository: replica.destination.name().to_owned(),
                parent: copy.parent.map(|parent| parent.to_string()),
                new_bytes: copy.summary.totals.new_bytes,
                reused_bytes: copy.summary.totals.reused_bytes,
                stored_bytes: copy.summary.totals.stored,
            })
        };
        if summary.totals.bad_pages > 0 {
            tracing::warn!(
                "{} damaged pages are in the backup as they are in the cluster; restore their tables from an older backup, \
                 or rebuild what can be rebuilt (REINDEX)",
                summary.totals.bad_pages
            );
        }
        Ok(Self {
            backup: summary.id.to_string(),
            label: facts.label.clone(),
            cluster: cluster.to_owned(),
            postgresql: facts.major.get(),
            method: facts.method,
            from_standby: facts.from_standby,
            started: facts.started.to_string(),
            ended: facts.ended.to_string(),
            start_lsn: facts.start_lsn.to_string(),
            start_timeline: facts.start_timeline.get(),
            stop_lsn: facts.stop_lsn.to_string(),
            stop_timeline: facts.stop_timeline.get(),
            first_wal: wal.first.to_string(),
            last_wal: wal.last.to_string(),
            files: summary.totals.files,
            bytes: summary.totals.bytes,
            read_bytes: 0,
            vanished: 0,
            shrunk: 0,
            checksums_verified: facts.data_checksums,
            bad_pages: summary.totals.bad_pages,
            findings: findings.iter().map(DamagedPage::from).collect(),
            repositories: replicas.iter().filter_map(copy).collect(),
            failed: replicas.failures(),
            seconds: 0.0,
            wal_seconds: 0.0,
        })
    }

    /// Adds what the readers counted.
    pub(crate) fn count(&mut self, counts: &CopyCounts) {
        self.read_bytes = counts.read.load(Ordering::Relaxed);
        self.vanished = counts.vanished.load(Ordering::Relaxed);
        self.shrunk = counts.shrunk.load(Ordering::Relaxed);
    }
}
