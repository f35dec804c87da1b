//! What is reported of a finished backup.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{BackupId, ClusterName, Diagnostic, Lsn, PgMajor, SegmentName, TimelineId};
use walpoint_repo::backup::{Method, PageFault, PageFinding, WalStored};
use walpoint_runtime::human;

use super::publish::PublishedReplica;
use super::replica::{Replica, Replicas};
use super::source::CopyCounts;

/// Damaged pages named in the text; the manifest and `--json` name more.
const NAMED: usize = 10;

/// What `archive-agent backup --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct BackupReport {
    /// The backup.
    pub(crate) backup: BackupId,
    /// Its label; empty if it has none.
    pub(crate) label: String,
    /// The cluster.
    pub(crate) cluster: ClusterName,
    /// PostgreSQL's major version.
    pub(crate) postgresql_major: PgMajor,
    /// How the cluster was read.
    pub(crate) method: Method,
    /// Whether it was taken from a standby.
    pub(crate) from_standby: bool,
    /// When it started.
    pub(crate) start_time: Timestamp,
    /// When it stopped.
    pub(crate) stop_time: Timestamp,
    /// The position from which recovery replays WAL.
    pub(crate) start_lsn: Lsn,
    /// The timeline on which it started.
    pub(crate) start_timeline: TimelineId,
    /// The position at which recovery becomes consistent.
    pub(crate) stop_lsn: Lsn,
    /// The timeline on which it stopped.
    pub(crate) stop_timeline: TimelineId,
    /// The first segment that it needs.
    pub(crate) first_segment: SegmentName,
    /// The last segment that it needs to become consistent.
    pub(crate) last_segment: SegmentName,
    /// The number of regular files.
    pub(crate) file_count: u64,
    /// The size of the cluster's files.
    pub(crate) file_bytes: u64,
    /// The size of what was read.
    pub(crate) read_bytes: u64,
    /// The number of files that were removed meanwhile.
    pub(crate) vanished_count: u64,
    /// The number of files that were truncated meanwhile.
    pub(crate) truncated_count: u64,
    /// Whether page checksums were verified: the cluster had checksums from beginning to end.
    pub(crate) checksums_verified: bool,
    /// The number of damaged pages.
    pub(crate) damaged_page_count: u64,
    /// The first of them.
    pub(crate) damaged_pages: Vec<DamagedPage>,
    /// The repositories that have a copy.
    pub(crate) repositories: Vec<BackupCopy>,
    /// Repositories that should have a copy and have none, with the reason.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    pub(crate) failed: Vec<String>,
    /// How long it took.
    pub(crate) seconds: f64,
    /// How much of that it waited for WAL.
    pub(crate) wal_wait_seconds: f64,
}

walpoint_runtime::document!(BackupReport, "archive-agent backup");

/// A damaged page.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct DamagedPage {
    /// The file, relative to the data directory.
    pub(crate) file: String,
    /// The number of the block in the file, from 0.
    pub(crate) block: u64,
    /// What is wrong with it.
    pub(crate) reason: String,
}

/// The backup in one repository.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct BackupCopy {
    /// The repository's name in the configuration.
    pub(crate) repository: String,
    /// The finished backup with which it was compared. Absent if there was none, or with `--full`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<BackupId>,
    /// The size of the blocks that were stored, before compression.
    pub(crate) new_bytes: u64,
    /// The size of the blocks that earlier backups had stored.
    pub(crate) reused_bytes: u64,
    /// The size of the packs that were stored.
    pub(crate) stored_bytes: u64,
}

impl From<&PageFinding> for DamagedPage {
    fn from(finding: &PageFinding) -> Self {
        let reason = match finding.fault {
            PageFault::Checksum { stored, computed } => {
                format!("checksum {stored:04X} in the page, {computed:04X} of its content")
            }
            PageFault::Reported => "the server reported it".to_owned(),
        };
        Self { file: finding.path.to_string(), block: finding.block, reason }
    }
}

impl BackupReport {
    /// For a person.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "backup {} of cluster {} (PostgreSQL {}{}{})\n",
            self.backup,
            self.cluster,
            self.postgresql_major,
            if self.method == Method::Remote { ", sent by the server" } else { "" },
            if self.from_standby { ", from a standby" } else { "" }
        );
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            writeln!(text, "{}", human::hanging(&format!("  {name:<9} "), &value)).ok();
        };
        line(
            "start",
            format!("{} on timeline {} at {}", self.start_lsn, self.start_timeline, self.start_time),
        );
        line("stop", format!("{} on timeline {} at {}", self.stop_lsn, self.stop_timeline, self.stop_time));
        line("WAL", format!("{} to {}, stored", self.first_segment, self.last_segment));
        line("read", format!("{}, {}", human::count(self.file_count, "file"), human::size(self.file_bytes)));
        for copy in &self.repositories {
            let BackupCopy { repository, stored_bytes, new_bytes, reused_bytes, .. } = copy;
            let stored = human::size(*stored_bytes);
            line(
                "stored",
                format!("{stored} in repository {repository}, for {} of blocks", human::size(*new_bytes)),
            );
            if *reused_bytes > 0 {
                let parent = copy.parent.map_or_else(|| "an unfinished one".to_owned(), |id| id.to_string());
                let reused = human::size(*reused_bytes);
                line("reused", format!("{reused} of blocks that backups up to {parent} have there"));
            }
        }
        for failed in &self.failed {
            line("FAILED", failed.clone());
        }
        if self.vanished_count + self.truncated_count > 0 {
            line(
                "meanwhile",
                format!(
                    "{} files vanished and {} became shorter during the backup; replay corrects that",
                    self.vanished_count, self.truncated_count
                ),
            );
        }
        match (self.checksums_verified, self.damaged_page_count) {
            (true, 0) => line("pages", "all checksums are right".to_owned()),
            (false, 0) => {
                line("pages", "not verified: the cluster has no checksums, or not all the time".to_owned())
            }
            (_, bad) => line("pages", format!("{bad} DAMAGED, recorded in the backup:")),
        }
        for page in self.damaged_pages.iter().take(NAMED) {
            line("", format!("{} block {}: {}", page.file, page.block, page.reason));
        }
        if self.damaged_pages.len() > NAMED {
            line("", "and more: see --json".to_owned());
        }
        let (all, wal) =
            (Duration::from_secs_f64(self.seconds), Duration::from_secs_f64(self.wal_wait_seconds));
        line("took", format!("{}, {} of it waiting for WAL", human::span(all), human::span(wal)));
        text
    }

    /// What the manifests of all copies say; they differ only in what each stored.
    pub(crate) fn of(
        cluster: &ClusterName,
        replicas: &Replicas<PublishedReplica>,
        wal: WalStored,
    ) -> anyhow::Result<Self> {
        let PublishedReplica { summary, findings, .. } =
            replicas.stages().next().context("no copy of the backup was finished")?;
        let facts = &summary.facts;
        let copy = |replica: &Replica<PublishedReplica>| {
            replica.stage().map(|copy| BackupCopy {
                repository: replica.destination.name().to_owned(),
                parent: copy.parent,
                new_bytes: copy.summary.totals.new_bytes,
                reused_bytes: copy.summary.totals.reused_bytes,
                stored_bytes: copy.summary.totals.stored,
            })
        };
        if summary.totals.bad_pages > 0 {
            tracing::warn!(
                "{} damaged pages are in the backup as they are in the cluster\nHINT: Restore their tables from an older \
                 backup, or rebuild what can be rebuilt (REINDEX).",
                summary.totals.bad_pages
            );
        }
        Ok(Self {
            backup: summary.id,
            label: facts.label.clone(),
            cluster: cluster.clone(),
            postgresql_major: facts.major,
            method: facts.method,
            from_standby: facts.from_standby,
            start_time: facts.started,
            stop_time: facts.ended,
            start_lsn: facts.start_lsn,
            start_timeline: facts.start_timeline,
            stop_lsn: facts.stop_lsn,
            stop_timeline: facts.stop_timeline,
            first_segment: wal.first,
            last_segment: wal.last,
            file_count: summary.totals.files,
            file_bytes: summary.totals.bytes,
            read_bytes: 0,
            vanished_count: 0,
            truncated_count: 0,
            checksums_verified: facts.data_checksums,
            damaged_page_count: summary.totals.bad_pages,
            damaged_pages: findings.iter().map(DamagedPage::from).collect(),
            repositories: replicas.iter().filter_map(copy).collect(),
            failed: replicas.failures(),
            seconds: 0.0,
            wal_wait_seconds: 0.0,
        })
    }

    /// Adds what the readers counted.
    pub(crate) fn count(&mut self, counts: &CopyCounts) {
        self.read_bytes = counts.read.load(Ordering::Relaxed);
        self.vanished_count = counts.vanished.load(Ordering::Relaxed);
        self.truncated_count = counts.shrunk.load(Ordering::Relaxed);
    }
}
