//! What `events --json` prints: one document, written while the WAL is read, so that memory does not grow with its length.

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{BackupId, Diagnostic, LineageId, Lsn, PgTimestamp, TimelineId};
use walpoint_pg::wal::events::{FileRemoval, ObjectChange, RelationFile, RowCounts, WalEvent};
use walpoint_repo::scan::{ScanGap, ScanRange};
use walpoint_runtime::exit::Failure;

use super::listing::Shown;
use super::shown::{self, ShownTransaction};
use super::source::Source;
use super::text;

/// What `restore-agent events --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct EventsDocument {
    #[serde(flatten)]
    head: Head,
    /// What happened, in LSN order. With `--largest`: gaps, then the transactions that changed the most rows, the largest first.
    events: Vec<EventDocument>,
    #[serde(flatten)]
    summary: Summary,
}

walpoint_runtime::document!(EventsDocument, "restore-agent events");

/// What is read.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct Head {
    /// The lineage whose WAL is read.
    pub(super) lineage: LineageId,
    /// The timeline whose path is followed.
    pub(super) timeline: TimelineId,
    /// The repositories that are read.
    pub(super) repositories: Vec<String>,
    /// The backup at whose start it begins. Absent if `--from` is given, or if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) backup: Option<BackupId>,
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct Summary {
    /// Segments that lie between the two moments and are there.
    pub(super) segment_count: u64,
    /// Segments that were read to their end, an incomplete last one included.
    pub(super) read_segment_count: u64,
    /// Gaps: WAL that could not be read.
    pub(super) gap_count: u64,
    /// Transactions that were committed.
    pub(super) committed_count: u64,
    /// Transactions that were rolled back. A rollback to a savepoint counts as one.
    pub(super) aborted_count: u64,
    /// Transactions of both kinds that changed something: those that are listed.
    pub(super) changing_count: u64,
    /// Transactions that changed something and of whose end nothing was read: a crash rolled them back, or they were still open.
    pub(super) unended_transaction_count: u64,
    /// Files of relations that were created and of which no record says by which transaction.
    pub(super) unattributed_file_count: u64,
    /// The end of the last record that was read. Absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) until_lsn: Option<Lsn>,
}

/// The kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum EventKind {
    /// A transaction was committed.
    Commit,
    /// A transaction was rolled back, or a part of one to a savepoint.
    Abort,
    /// A transaction was prepared.
    Prepare,
    /// A restore point was created.
    RestorePoint,
    /// Something happened to a database or a tablespace, and no transaction did it.
    Object,
    /// A segment was ended early.
    SegmentSwitch,
    /// The server was shut down, or recovered from a crash.
    Shutdown,
    /// A recovery ended, and a timeline began.
    Promotion,
    /// WAL that could not be read.
    Gap,
}

/// Something that happened. Which members there are depends on its kind.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Event")]
struct EventDocument {
    /// Its kind.
    kind: EventKind,
    /// When, as the server's clock said.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<PgTimestamp>,
    /// Where its record starts; of a gap, where it begins.
    lsn: Lsn,
    /// Of a gap: where it ends. Absent if nothing after it was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    until_lsn: Option<Lsn>,
    /// The timeline in the name of the segment; of a promotion, the one that began.
    timeline: TimelineId,
    /// Of a promotion: the timeline that was left.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_timeline: Option<TimelineId>,
    /// The transaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    xid: Option<u32>,
    /// What COMMIT PREPARED calls a transaction that is prepared.
    #[serde(skip_serializing_if = "Option::is_none")]
    gid: Option<String>,
    /// The name of a restore point.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// What happened to a database or a tablespace without a transaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<ObjectDocument>,
    /// Why a gap could not be read.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Option<Diagnostic>")]
    reason: Option<String>,
    /// What a transaction did. Absent of other events.
    #[serde(flatten)]
    transaction: Option<TransactionDocument>,
}

/// What a transaction did.
#[derive(Debug, Serialize, JsonSchema)]
struct TransactionDocument {
    /// Whether it had been prepared.
    prepared: bool,
    /// Whether it may have changed more than is counted, because a part of it lies before what was read or in a gap.
    at_least: bool,
    /// Transactions within it that were committed with it.
    subtransaction_count: u64,
    /// Rows that it changed, of all relations.
    rows: RowsDocument,
    /// The relations whose rows it changed, those with the most rows first, 64 at most.
    relations: Vec<RelationDocument>,
    /// Relations that are not listed.
    other_relation_count: usize,
    /// Files of relations that it created, 64 at most.
    created_files: Vec<FileDocument>,
    /// How many it created.
    created_file_count: usize,
    /// Files of relations that it removed, 64 at most.
    removed_files: Vec<FileDocument>,
    /// How many it removed.
    removed_file_count: usize,
    /// What it means that it removed files. Absent if it removed none.
    #[serde(skip_serializing_if = "Option::is_none")]
    removal: Option<RemovalKind>,
    /// Databases and tablespaces that it created or removed. Absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    objects: Vec<ObjectDocument>,
    /// The options of `restore-agent plan` that stop right before it takes effect. Absent if it was rolled back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop_before_options: Vec<String>,
}

/// How many rows were changed.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Rows")]
struct RowsDocument {
    /// Rows that were inserted.
    inserted_count: u64,
    /// Rows that were updated.
    updated_count: u64,
    /// Rows that were deleted.
    deleted_count: u64,
}

/// A relation whose rows were changed.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "EventRelation")]
struct RelationDocument {
    #[serde(flatten)]
    file: FileDocument,
    #[serde(flatten)]
    rows: RowsDocument,
    /// Whether it surely is a system catalog.
    catalog: bool,
}

/// A file of a relation.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "EventFile")]
struct FileDocument {
    /// The OID of the tablespace.
    tablespace_oid: u32,
    /// The OID of the database; 0 of what all share.
    database_oid: u32,
    /// The number of the file: `relfilenode`.
    file_number: u32,
}

/// What it means that files were removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum RemovalKind {
    /// The relations were dropped: rows of `pg_class` were deleted.
    Dropped,
    /// The relations have other files now, as after TRUNCATE, VACUUM FULL or a rewrite.
    Replaced,
    /// Some of both, or not known.
    Unclear,
}

/// A database or a tablespace that was created or removed.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "EventObject")]
struct ObjectDocument {
    /// What happened.
    change: ObjectChangeKind,
    /// Its OID.
    oid: u32,
}

/// What happened to a database or a tablespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum ObjectChangeKind {
    /// A database was created.
    DatabaseCreated,
    /// The files of a database were copied to another tablespace.
    DatabaseCopied,
    /// A database was dropped.
    DatabaseDropped,
    /// Files of a database were removed, without its row of `pg_database`.
    DatabaseFilesRemoved,
    /// A tablespace was created.
    TablespaceCreated,
    /// A tablespace was dropped.
    TablespaceDropped,
}

impl Head {
    pub(super) fn new(source: &Source, range: &ScanRange) -> Self {
        Self {
            lineage: source.id(),
            timeline: range.timeline,
            repositories: source.repositories.clone(),
            backup: range.backup,
        }
    }
}

impl EventsDocument {
    /// The document without its events, which come between the two parts.
    pub(super) fn around_events(head: &Head, summary: &Summary) -> Result<(String, String), Failure> {
        /// In a text that another party chose the quotes would be escaped.
        const EVENTS: &str = "\"events\":[]";
        let document = Self { head: head.clone(), events: Vec::new(), summary: summary.clone() };
        let json = serde_json::to_string(&document)?;
        let (before, behind) = json.split_once(EVENTS).unwrap_or((&json, ""));
        Ok((format!("{before}\"events\":[\n"), format!("\n]{behind}\n")))
    }
}

/// An event; `follows`: whether one was printed before.
pub(super) fn line(shown: &Shown, follows: bool) -> Result<String, Failure> {
    let json = serde_json::to_string(&EventDocument::of(shown))?;
    Ok(if follows { format!(",\n{json}") } else { json })
}

impl EventDocument {
    fn of(shown: &Shown) -> Self {
        match shown {
            Shown::Transaction(shown) => Self::transaction(shown),
            Shown::Other(event, timeline) => Self::other(event, *timeline),
            Shown::Gap(gap) => Self::gap(gap),
        }
    }

    fn at(kind: EventKind, lsn: Lsn, timeline: TimelineId) -> Self {
        Self {
            kind,
            time: None,
            lsn,
            until_lsn: None,
            timeline,
            previous_timeline: None,
            xid: None,
            gid: None,
            name: None,
            object: None,
            reason: None,
            transaction: None,
        }
    }

    fn gap(gap: &ScanGap) -> Self {
        let reason = Some(text::reason(&gap.why));
        Self { until_lsn: gap.until, reason, ..Self::at(EventKind::Gap, gap.from, gap.timeline) }
    }

    fn other(event: &WalEvent, on: TimelineId) -> Self {
        match event {
            WalEvent::Transaction(event) => Self {
                time: Some(event.time),
                xid: Some(event.xid),
                ..Self::at(if event.committed { EventKind::Commit } else { EventKind::Abort }, event.lsn, on)
            },
            WalEvent::Prepared { xid, gid, time, lsn } => Self {
                time: Some(*time),
                xid: Some(*xid),
                gid: Some(gid.clone()),
                ..Self::at(EventKind::Prepare, *lsn, on)
            },
            WalEvent::RestorePoint { name, time, lsn } => Self {
                time: Some(*time),
                name: Some(name.clone()),
                ..Self::at(EventKind::RestorePoint, *lsn, on)
            },
            WalEvent::Object { lsn, change } => {
                Self { object: Some((*change).into()), ..Self::at(EventKind::Object, *lsn, on) }
            }
            WalEvent::Switch { lsn } => Self::at(EventKind::SegmentSwitch, *lsn, on),
            WalEvent::Shutdown { lsn } => Self::at(EventKind::Shutdown, *lsn, on),
            WalEvent::Promotion { lsn, time, timeline, previous } => Self {
                time: *time,
                previous_timeline: Some(*previous),
                ..Self::at(EventKind::Promotion, *lsn, *timeline)
            },
        }
    }

    fn transaction(shown: &ShownTransaction) -> Self {
        let event = &shown.event;
        let files = |files: &[RelationFile]| files.iter().copied().map(FileDocument::from).collect();
        let relation = |(file, rows): &(RelationFile, RowCounts)| RelationDocument {
            file: (*file).into(),
            rows: (*rows).into(),
            catalog: shown::is_catalog(*file),
        };
        let kind = if event.committed { EventKind::Commit } else { EventKind::Abort };
        Self {
            time: Some(event.time),
            xid: Some(event.xid),
            transaction: Some(TransactionDocument {
                prepared: event.prepared,
                at_least: event.at_least,
                subtransaction_count: event.subtransactions,
                rows: shown.total.into(),
                relations: event.rows.iter().map(relation).collect(),
                other_relation_count: shown.other_relations,
                created_files: files(&event.created),
                created_file_count: shown.created,
                removed_files: files(&event.removed),
                removed_file_count: shown.removed,
                removal: shown.removal.map(RemovalKind::from),
                objects: event.objects.iter().copied().map(ObjectDocument::from).collect(),
                stop_before_options: shown.stop_before.clone(),
            }),
            ..Self::at(kind, event.lsn, shown.timeline)
        }
    }
}

impl From<RowCounts> for RowsDocument {
    fn from(RowCounts { inserted, updated, deleted }: RowCounts) -> Self {
        Self { inserted_count: inserted, updated_count: updated, deleted_count: deleted }
    }
}

impl From<RelationFile> for FileDocument {
    fn from(RelationFile { tablespace, database, number }: RelationFile) -> Self {
        Self { tablespace_oid: tablespace, database_oid: database, file_number: number }
    }
}

impl From<FileRemoval> for RemovalKind {
    fn from(removal: FileRemoval) -> Self {
        match removal {
            FileRemoval::Dropped => Self::Dropped,
            FileRemoval::Replaced => Self::Replaced,
            FileRemoval::Unclear => Self::Unclear,
        }
    }
}

impl From<ObjectChange> for ObjectDocument {
    fn from(object: ObjectChange) -> Self {
        use ObjectChangeKind as Kind;
        let (change, oid) = match object {
            ObjectChange::DatabaseCreated(oid) => (Kind::DatabaseCreated, oid),
            ObjectChange::DatabaseCopied(oid) => (Kind::DatabaseCopied, oid),
            ObjectChange::DatabaseDropped(oid) => (Kind::DatabaseDropped, oid),
            ObjectChange::DatabaseFilesRemoved(oid) => (Kind::DatabaseFilesRemoved, oid),
            ObjectChange::TablespaceCreated(oid) => (Kind::TablespaceCreated, oid),
            ObjectChange::TablespaceDropped(oid) => (Kind::TablespaceDropped, oid),
        };
        Self { change, oid }
    }
}
