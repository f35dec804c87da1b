//! An event as far as it is shown: lists are cut, so that one that is kept takes a bounded amount of memory, and the output of one
//! transaction stays readable.

use std::cmp::Reverse;

use walpoint_base::TimelineId;
use walpoint_pg::wal::events::{RelationFile, RowCounts, TransactionEvent};

/// Relations and files of a transaction that are listed.
pub(super) const LISTED: usize = 64;

/// Files of relations that are numbered lower belong to system catalogs: `FirstNormalObjectId`.
const FIRST_NORMAL: u32 = 16384;

/// The options of `plan` that lead to the WAL that was read, without a target.
#[derive(Debug, Clone, Default)]
pub(super) struct StopOptions(pub(super) Vec<String>);

impl StopOptions {
    /// What stops right before a transaction takes effect; nothing if it never did.
    pub(super) fn before(&self, event: &TransactionEvent) -> Vec<String> {
        let target = match event.irrevocable {
            Some(lsn) => ["--target-lsn".to_owned(), lsn.to_string()],
            None if event.committed => ["--target-xid".to_owned(), event.xid.to_string()],
            None => return Vec::new(),
        };
        self.0.iter().cloned().chain(target).chain(["--target-exclusive".to_owned()]).collect()
    }
}

/// A transaction.
#[derive(Debug, Clone)]
pub(super) struct ShownTransaction {
    /// With at most [`LISTED`] relations and files of each kind. The relations with the most rows come first.
    pub(super) event: TransactionEvent,
    /// The timeline in the name of the segment in which its end was read.
    pub(super) timeline: TimelineId,
    /// Rows of all relations.
    pub(super) total: RowCounts,
    /// What it is sorted by: rows that are no system catalog's.
    pub(super) size: u64,
    /// Relations that are not listed.
    pub(super) other_relations: usize,
    /// Files that were created, all of them.
    pub(super) created: usize,
    /// Files that were removed, all of them.
    pub(super) removed: usize,
    /// What it means that they were.
    pub(super) removal: Option<walpoint_pg::wal::events::FileRemoval>,
    /// The options of `plan` that stop before it.
    pub(super) stop_before: Vec<String>,
}

impl ShownTransaction {
    pub(super) fn of(mut event: TransactionEvent, timeline: TimelineId, options: &StopOptions) -> Self {
        let (total, removal) = (event.total(), event.removal());
        let own = event.rows.iter().filter(|(file, _)| !is_catalog(*file));
        let size = own.map(|(_, rows)| rows.total()).fold(0, u64::saturating_add);
        let stop_before = options.before(&event);
        event.rows.sort_by_key(|(file, rows)| (Reverse(rows.total()), *file));
        let other_relations = event.rows.len().saturating_sub(LISTED);
        let (created, removed) = (event.created.len(), event.removed.len());
        event.rows.truncate(LISTED);
        event.created.truncate(LISTED);
        event.removed.truncate(LISTED);
        event.rows.shrink_to_fit();
        event.created.shrink_to_fit();
        event.removed.shrink_to_fit();
        Self { event, timeline, total, size, other_relations, created, removed, removal, stop_before }
    }
}

/// Whether a file surely belongs to a system catalog. One that was rewritten has another number.
pub(super) fn is_catalog(file: RelationFile) -> bool {
    file.number < FIRST_NORMAL
}

/// Where a file lies below the data directory, as `pg_relation_filepath` begins.
pub(super) fn path(file: RelationFile) -> String {
    /// `GLOBALTABLESPACE_OID`.
    const GLOBAL: u32 = 1664;
    /// `DEFAULTTABLESPACE_OID`.
    const DEFAULT: u32 = 1663;
    let RelationFile { tablespace, database, number } = file;
    match tablespace {
        GLOBAL => format!("global/{number}"),
        DEFAULT => format!("base/{database}/{number}"),
        _ => format!("pg_tblspc/{tablespace}/*/{database}/{number}"),
    }
}
