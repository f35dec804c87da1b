//! What the server and its data directory say about archiving: who it is, what was archived last, what waits.

use std::time::Duration;

use anyhow::{Context, bail};
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::diagnostic::shown;
use walpoint_base::{Diagnostic, Lsn, PgTimestamp, SegmentName, SystemId, TimelineId};
use walpoint_pg::server::{ArchiveSettings, ArchiverStats, Server, ServerIdentity};
use walpoint_runtime::args::Selection;
use walpoint_runtime::config::ClusterSettings;
use walpoint_runtime::human;
use walpoint_storage::store::StoreSettings;

use super::stream::StreamState;
use crate::check::{source, whose_files};
use crate::wal::bypass::Watch;
use crate::wal::dropped::{self, Gap};
use crate::wal::target::TargetError;
use crate::wal::upload::Uploader;
use crate::wal::{ready, split_brain};

/// Somebody waits for an answer: a server that does not give one within this time counts as unreachable.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// A server and its archiver.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct ServerState {
    /// `server_version`.
    server_version: String,
    /// Its system identifier.
    system_identifier: SystemId,
    /// Whether it is in recovery, as a standby is.
    in_recovery: bool,
    /// Its timeline.
    timeline: TimelineId,
    /// The end of WAL: written on a primary, replayed on a standby.
    #[serde(skip_serializing_if = "Option::is_none")]
    lsn: Option<Lsn>,
    /// The setting `archive_mode`.
    archive_mode: String,
    /// The setting `archive_command`.
    archive_command: String,
    /// The setting `archive_library`; empty before PostgreSQL 15.
    archive_library: String,
    /// `pg_stat_archiver.archived_count`.
    archived_count: u64,
    /// `pg_stat_archiver.last_archived_wal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_archived_wal: Option<String>,
    /// `pg_stat_archiver.last_archived_time`.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_archived_time: Option<PgTimestamp>,
    /// `pg_stat_archiver.failed_count`.
    failed_count: u64,
    /// `pg_stat_archiver.last_failed_wal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failed_wal: Option<String>,
    /// `pg_stat_archiver.last_failed_time`.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failed_time: Option<PgTimestamp>,
    /// Whether the latest attempt to archive failed.
    failing: bool,
    /// The number of files that wait to be archived (`.ready`). Absent if the data directory cannot be read here.
    #[serde(skip_serializing_if = "Option::is_none")]
    ready_count: Option<usize>,
    /// Why `ready_count` is absent.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Option<Diagnostic>")]
    ready_error: Option<String>,
    /// The size of the WAL written since the end of the last archived segment: what a loss of the server would cost now.
    #[serde(skip_serializing_if = "Option::is_none")]
    unarchived_bytes: Option<u64>,
    /// The WAL stream, if the configuration switches it on.
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<StreamState>,
    /// Why finished WAL does not reach the archive, which PostgreSQL may not report as a failure. Absent if it does.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Option<Diagnostic>")]
    archive_error: Option<String>,
    /// WAL that was dropped, or archived although damaged, and after which no backup begins. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<Gap>,
    /// Repositories in which another server's WAL is stored under this server's names, one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    split_brains: Vec<String>,
    /// What cannot be determined about dropped WAL and other servers: the repositories do not answer.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    undetermined: Vec<String>,
}

impl ServerState {
    /// Asks the server of a cluster.
    pub(super) async fn of(selection: &Selection<StoreSettings>) -> anyhow::Result<Self> {
        let asked = tokio::time::timeout(TIME_LIMIT, ask(selection)).await;
        let mut state = asked
            .with_context(|| format!("the server did not answer within {}", human::span(TIME_LIMIT)))??;
        if let Some(pgdata) = selection.settings.pgdata.as_deref().filter(|_| state.ready_count.is_some()) {
            state.compare(&Uploader::new(selection, pgdata), selection.chosen).await;
        }
        Ok(state)
    }

    /// Adds what the repositories show. One that does not answer hides that, and nothing of what the server says.
    async fn compare(&mut self, uploader: &Uploader, chosen: bool) {
        let limit = |what: &str| {
            format!(
                "{what}: the repositories did not answer every request within {}",
                human::span(TIME_LIMIT)
            )
        };
        let watch = Watch::once();
        let (dropped, splits, bypass, unregistered) = tokio::join!(
            tokio::time::timeout(TIME_LIMIT, dropped::look(uploader)),
            tokio::time::timeout(TIME_LIMIT, split_brain::split_brains(uploader)),
            tokio::time::timeout(TIME_LIMIT, watch.look(uploader)),
            tokio::time::timeout(TIME_LIMIT, unregistered(uploader)),
        );
        let what = "cannot determine whether the repositories have what PostgreSQL archived last";
        match bypass {
            // What the repository has is another cluster's then.
            _ if matches!(unregistered, Ok(Some(_))) => self.archive_error = unregistered.ok().flatten(),
            // A repository that does not have to acknowledge may not have it yet.
            Ok(Ok(bypass)) => {
                self.archive_error = bypass.filter(|_| !chosen).map(|bypass| bypass.to_string())
            }
            Ok(Err(problem)) => {
                self.undetermined.push(format!("{what}: {}", walpoint_words::format_chain(&problem)))
            }
            Err(_) => self.undetermined.push(limit(what)),
        }
        let what = "cannot determine whether WAL was dropped since the last backup";
        match dropped {
            Ok(Ok(gap)) => self.dropped = gap,
            Ok(Err(problem)) => {
                self.undetermined.push(format!("{what}: {}", walpoint_words::format_chain(&problem)))
            }
            Err(_) => self.undetermined.push(limit(what)),
        }
        let what = "cannot determine whether another server's WAL is stored under this one's names";
        match splits {
            Ok(Ok(found)) => self.split_brains = found.iter().map(ToString::to_string).collect(),
            Ok(Err(problem)) => {
                self.undetermined.push(format!("{what}: {}", walpoint_words::format_chain(&problem)))
            }
            Err(_) => self.undetermined.push(limit(what)),
        }
    }

    /// Whose WAL it writes.
    pub(super) fn system_identifier(&self) -> SystemId {
        self.system_identifier
    }

    /// The timeline that it writes; `None` of a standby.
    pub(super) fn writes(&self) -> Option<TimelineId> {
        Some(self.timeline).filter(|_| !self.in_recovery)
    }

    /// For a person, one line each.
    pub(super) fn lines(&self, now: jiff::Timestamp) -> Vec<(&'static str, String)> {
        let kind = if self.in_recovery { "standby" } else { "primary" };
        let at = self.lsn.map(|lsn| format!(", at {lsn}")).unwrap_or_default();
        let server = format!("PostgreSQL {}, {kind}, timeline {}{at}", self.server_version, self.timeline);
        let dropped = self.dropped.as_ref().map(|gap| ("DROPPED", gap.to_string()));
        let split = self.split_brains.iter().map(|split| ("IDENTITY", split.clone()));
        let archiver = ("archiver", self.archiver(now));
        let bypass = self.archive_error.as_ref().map(|bypass| ("ARCHIVING", bypass.clone()));
        let unknown = self.undetermined.iter().map(|unknown| ("UNKNOWN", unknown.clone()));
        let stream = self.stream.as_ref().map(|stream| ("stream", stream.text()));
        [("server", server), archiver]
            .into_iter()
            .chain(stream)
            .chain(bypass)
            .chain(dropped)
            .chain(split)
            .chain(unknown)
            .collect()
    }

    fn archiver(&self, now: jiff::Timestamp) -> String {
        if self.archive_mode == "off" {
            return "archive_mode is off: nothing is archived".to_owned();
        }
        if self.in_recovery && self.archive_mode != "always" {
            return "a standby archives nothing until it is promoted".to_owned();
        }
        let mut parts = Vec::new();
        if self.failing {
            let since =
                self.last_failed_time.map(|t| format!(", {}", ago(t.to_time(), now))).unwrap_or_default();
            let wal = shown(self.last_failed_wal.as_deref().unwrap_or("a file"));
            parts.push(format!(
                "FAILING: {wal} was refused{since} (failure {})\nHINT: The server's log has the reason.",
                self.failed_count
            ));
        }
        parts.push(match (&self.last_archived_wal, self.last_archived_time) {
            (Some(wal), Some(time)) => format!("{} was archived {}", shown(wal), ago(time.to_time(), now)),
            _ => "nothing was archived so far".to_owned(),
        });
        parts.extend(self.unarchived_bytes.map(|bytes| format!("{} of WAL since", human::size(bytes))));
        parts.push(match self.ready_count {
            None => {
                let why = self.ready_error.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
                format!("cannot determine from here how many files are waiting{why}")
            }
            Some(0) => "no file waits".to_owned(),
            Some(1) => "1 file waits".to_owned(),
            Some(n) => format!("{n} files wait"),
        });
        Diagnostic::gather("", parts).to_string()
    }

    fn new(
        identity: &ServerIdentity,
        settings: ArchiveSettings,
        stats: ArchiverStats,
        position: Option<Lsn>,
        ready_count: Option<usize>,
    ) -> Self {
        Self {
            server_version: identity.version.clone(),
            system_identifier: identity.system_id,
            in_recovery: identity.in_recovery,
            timeline: identity.timeline,
            lsn: position,
            archive_mode: settings.archive_mode,
            archive_command: settings.archive_command,
            archive_library: settings.archive_library,
            failing: stats.is_failing(),
            ready_count,
            ready_error: None,
            stream: None,
            archive_error: None,
            dropped: None,
            split_brains: Vec::new(),
            undetermined: Vec::new(),
            unarchived_bytes: unarchived(identity, &stats, position),
            archived_count: stats.archived_count,
            last_archived_wal: stats.last_archived_wal,
            last_archived_time: stats.last_archived_time,
            failed_count: stats.failed_count,
            last_failed_wal: stats.last_failed_wal,
            last_failed_time: stats.last_failed_time,
        }
    }
}

async fn ask(selection: &Selection<StoreSettings>) -> anyhow::Result<ServerState> {
    let mut server = source::connect(&selection.settings).await?;
    let pgdata = selection.settings.pgdata.as_deref();
    if let Some(pgdata) = pgdata.filter(|pgdata| pgdata.exists()) {
        // Where the directory may not be read, nothing of it is shown either.
        let own = whose_files::examine(&mut server, pgdata).await;
        if let Ok(None) = own {
            bail!(
                "conninfo leads to another server than that of {}\nHINT: \"archive-agent check\" shows more.",
                pgdata.display()
            );
        }
    }
    let state = look(&mut server, &selection.settings).await;
    server.close().await;
    state
}

async fn look(server: &mut Server, cluster: &ClusterSettings) -> anyhow::Result<ServerState> {
    let identity = server.identity().await?;
    let settings = server.archive_settings().await?;
    let stats = server.archiver_stats().await?;
    let position = server.position().await?;
    let stream = StreamState::of(server, cluster.stream.as_ref(), position).await?;
    let pgdata = cluster.pgdata.as_ref().unwrap_or(&identity.data_directory);
    let status = pgdata.join("pg_wal/archive_status");
    // On another machine, or as another user, the directory cannot be read: that is no failure of the server.
    let ready = tokio::task::spawn_blocking(move || ready::scan(&status, 0, None)).await?;
    let (ready_count, ready_error) = match ready {
        Ok(scan) => (Some(scan.count), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let state = ServerState::new(&identity, settings, stats, position, ready_count);
    Ok(ServerState { ready_error, stream, ..state })
}

/// Why a repository that answers takes no WAL of this server: it is registered as another cluster there, or not at all.
async fn unregistered(uploader: &Uploader) -> Option<String> {
    let cluster = uploader.identity().await.ok()?;
    for target in uploader.targets() {
        if let Err(error @ (TargetError::Unregistered { .. } | TargetError::Different { .. })) =
            target.archive(&cluster).await
        {
            return Some(error.to_string());
        }
    }
    None
}

/// Bytes of WAL after the last segment archived. The last file archived need not be a segment; then nobody knows.
fn unarchived(identity: &ServerIdentity, stats: &ArchiverStats, position: Option<Lsn>) -> Option<u64> {
    let last: SegmentName = stats.last_archived_wal.as_ref()?.parse().ok()?;
    let size = identity.segment_size;
    let end = last.number(size)?.end(size);
    position.filter(|_| last.timeline == identity.timeline).map(|position| position.0.saturating_sub(end.0))
}

/// How long ago a moment was, for a person.
fn ago(time: jiff::Timestamp, now: jiff::Timestamp) -> String {
    match Duration::try_from(now.duration_since(time)).unwrap_or_default().as_secs() {
        0 => "just now".to_owned(),
        seconds => format!("{} ago", human::span(Duration::from_secs(seconds))),
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::{PgMajor, SegmentSize, SystemId, TimelineId};
    use walpoint_pg::checksum::Checksums;

    use super::*;

    fn identity() -> ServerIdentity {
        ServerIdentity {
            version: "17.5".into(),
            major: PgMajor::new(17).unwrap(),
            system_id: SystemId(7),
            data_directory: "/data".into(),
            in_recovery: false,
            timeline: TimelineId::FIRST,
            segment_size: SegmentSize::DEFAULT,
            wal_block_size: 8192,
            block_size: 8192,
            relation_segment_blocks: 131_072,
            checksums: Checksums::On,
        }
    }

    fn settings(mode: &str) -> ArchiveSettings {
        ArchiveSettings {
            wal_level: "replica".into(),
            archive_mode: mode.into(),
            archive_command: "archive-push %p".into(),
            archive_library: String::new(),
            archive_timeout: 0,
            restore_command: String::new(),
        }
    }

    fn stats() -> ArchiverStats {
        let minute = |n: i64| Some(PgTimestamp(n * 60_000_000));
        ArchiverStats {
            archived_count: 3,
            last_archived_wal: Some("000000010000000000000004".into()),
            last_archived_time: minute(10),
            failed_count: 2,
            last_failed_wal: Some("000000010000000000000005".into()),
            last_failed_time: minute(12),
            stats_reset: None,
        }
    }

    fn text_of(state: &ServerState) -> String {
        let now = PgTimestamp(15 * 60_000_000).to_time();
        state.lines(now).into_iter().map(|(what, text)| format!("{what}: {text}\n")).collect()
    }

    #[test]
    fn a_failing_archiver_is_told_first() {
        let state = ServerState::new(&identity(), settings("on"), stats(), Some(Lsn(0x580_0000)), Some(2));
        let text = text_of(&state);
        assert!(text.contains("archiver: FAILING: 000000010000000000000005 was refused, 3m ago"), "{text}");
        assert!(
            text.contains("000000010000000000000004 was archived 5m ago; 8.0 MiB of WAL since"),
            "{text}"
        );
        assert!(
            text.contains("2 files wait") && text.contains("primary, timeline 1, at 0/5800000"),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let nothing = ArchiverStats { last_archived_wal: None, last_failed_time: None, ..stats() };
        let state = ServerState::new(&identity(), settings("on"), nothing, None, None);
        let text = text_of(&state);
        assert!(
            text.contains(
                "nothing was archived so far; cannot determine from here how many files are waiting"
            ),
            "{text}"
        );
        let other = ArchiverStats { last_archived_wal: Some("00000002.history".into()), ..stats() };
        assert_eq!(unarchived(&identity(), &other, Some(Lsn(5))), None);
    }

    #[test]
    fn who_archives_nothing_says_so() {
        let standby = ServerIdentity { in_recovery: true, ..identity() };
        let state = ServerState::new(&standby, settings("on"), stats(), None, Some(0));
        assert!(text_of(&state).contains("a standby archives nothing until it is promoted"));
        let off = ServerState::new(&identity(), settings("off"), stats(), None, Some(0));
        assert!(text_of(&off).contains("archive_mode is off"));
    }
}
