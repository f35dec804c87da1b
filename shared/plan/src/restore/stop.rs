//! Where recovery stops: PostgreSQL's rule as data, and the decoding that finds the place.
//!
//! Source: `recoveryStopsBefore` and `recoveryStopsAfter` in `src/backend/access/transam/xlogrecovery.c` of PostgreSQL.
//! The rule is applied to every record from the redo position on, in LSN order; the index only says which segments need
//! not be decoded.

use walpoint_base::target::FullXid;
use walpoint_base::{Lsn, PgTimestamp, RecoveryTarget, SegmentName, TimelineId};

use super::created::TablespaceSearch;
use super::removal::{Removal, RemovalSearch, UnlockedPosition};
use super::required::RequiredSearch;

/// What makes recovery stop.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum StopRule {
    /// Before the first commit or abort (of prepared transactions too) later than `at`, or not earlier if exclusive.
    Time {
        /// The target.
        at: PgTimestamp,
        /// Whether commits exactly at the target are replayed.
        inclusive: bool,
    },
    /// At the first record that starts at or after `at`: after it, or before it if exclusive.
    Lsn {
        /// The target.
        at: Lsn,
        /// Whether that record is replayed.
        inclusive: bool,
    },
    /// At the commit or abort of this transaction (of a prepared one too): after it, or before it if exclusive.
    Xid {
        /// The target.
        xid: u32,
        /// Whether its end is replayed.
        inclusive: bool,
    },
    /// After the first restore point of this name.
    Name(String),
    /// Before the first record that sets `wal_level = minimal`. No target: recovery cannot pass it.
    Minimal,
    /// After the record that ends at this position, or behind it: the last one that a backup needs.
    Consistent(Lsn),
}

impl StopRule {
    /// The rule for a target; `None` for those that are not found by a record's content.
    pub fn of(target: &RecoveryTarget, inclusive: bool) -> Option<Self> {
        match target {
            RecoveryTarget::Latest | RecoveryTarget::Immediate => None,
            RecoveryTarget::Time(at) => Some(Self::Time { at: *at, inclusive }),
            RecoveryTarget::Lsn(at) => Some(Self::Lsn { at: *at, inclusive }),
            RecoveryTarget::Xid(xid) => Some(Self::Xid { xid: *xid, inclusive }),
            // WAL records carry the lower half only, and PostgreSQL compares no more.
            RecoveryTarget::FullXid(full) => Some(Self::Xid { xid: FullXid(*full).xid(), inclusive }),
            RecoveryTarget::Name(name) => Some(Self::Name(name.clone())),
        }
    }

    /// Whether a transaction's end at a time stops recovery.
    pub fn stops_at(&self, time: PgTimestamp) -> bool {
        match self {
            Self::Time { at, inclusive: true } => time > *at,
            Self::Time { at, inclusive: false } => time >= *at,
            _ => false,
        }
    }

    /// Whether the record that decides is itself replayed.
    pub fn applies_the_record(&self) -> bool {
        match self {
            Self::Time { .. } | Self::Minimal => false,
            Self::Lsn { inclusive, .. } | Self::Xid { inclusive, .. } => *inclusive,
            Self::Name(_) | Self::Consistent(_) => true,
        }
    }
}

/// The record at which recovery stops.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stop {
    /// The timeline that the record belongs to.
    pub timeline: TimelineId,
    /// Where it starts.
    pub record: Lsn,
    /// Where it ends: all WAL before this is needed, even if the record is not replayed.
    pub end: Lsn,
    /// The time in it, if it has one.
    pub time: Option<PgTimestamp>,
    /// The transaction that it ends, if it does.
    pub xid: Option<u32>,
    /// The same with its epoch, where a transaction was looked for and its epoch can be known.
    pub full_xid: Option<FullXid>,
    /// Relations that nobody can read while recovery is paused there: transactions that have not ended hold them, as DROP and
    /// TRUNCATE do. In the order in which they were locked, those first of which that is not known; only those that the search
    /// came by.
    pub locks: Vec<HeldLock>,
    /// The last position before it at which nothing was locked, if something is, and that is known; prepared transactions aside.
    pub unlocked: Option<UnlockedPosition>,
    /// Prepared transactions that are open there, by xid; only those that the search came by.
    pub prepared: Vec<PreparedTransaction>,
    /// Databases whose removal has begun and not ended there; only those that the search came by.
    pub drops: Vec<DatabaseDrop>,
    /// The last transaction before it that removed a database or relations, as DROP and TRUNCATE do; only if the search came by one.
    pub removal: Option<Removal>,
}

/// A database whose removal has begun: `DROP DATABASE` marks it as invalid and removes its files before its transaction ends, and
/// rolling that back undoes neither.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DatabaseDrop {
    /// The transaction.
    pub xid: u32,
    /// The OID of the database, once its files are removed.
    pub database: Option<u32>,
    /// The last position at which it was whole.
    pub before: UnlockedPosition,
}

/// A transaction that was prepared and has not ended: it outlives recovery, with its locks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PreparedTransaction {
    /// The transaction.
    pub xid: u32,
    /// What `COMMIT PREPARED` calls it.
    pub gid: String,
    /// The transactions within it.
    pub subtransactions: Vec<u32>,
}

impl PreparedTransaction {
    /// Whether a transaction is this one or one within it.
    pub fn holds(&self, xid: u32) -> bool {
        self.xid == xid || self.subtransactions.contains(&xid)
    }
}

/// A relation that a transaction holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldLock {
    /// Where the record starts that locked it; `None` if that lies before what the search read.
    pub since: Option<Lsn>,
    /// The transaction, or one within it.
    pub xid: u32,
    /// The OID of the relation's database; 0 of one that all share.
    pub database: u32,
    /// The OID of the relation.
    pub relation: u32,
}

/// Finds the record that decides. Implemented by whoever can decode WAL; the repository cannot.
pub trait SegmentDecoder: Send + Sync {
    /// A search for the first record that starts at or after `from`, ends at or before `until`, and decides by `rule`.
    /// A commit record is attributed to the timeline of the page it starts on.
    fn search(&self, rule: &StopRule, from: Lsn, until: Lsn) -> Box<dyn StopSearch>;

    /// A search for the tablespaces that replay creates.
    fn tablespaces(&self) -> Box<dyn TablespaceSearch>;

    /// A search for the settings that replay needs.
    fn required(&self) -> Box<dyn RequiredSearch>;

    /// A search for the last transaction that removed relations, among records that start before a position; `None` if that cannot
    /// be told.
    fn removals(&self, before: Lsn) -> Option<Box<dyn RemovalSearch>>;
}

/// One search, fed with consecutive segments in LSN order, beginning anywhere.
pub trait StopSearch: Send {
    /// Takes the next whole segment. The error says what is wrong with its content.
    fn feed(&mut self, name: SegmentName, content: &[u8]) -> Result<SearchState, String>;

    /// The next transaction's id by the last checkpoint in what was fed so far, if one was.
    fn next_xid(&self) -> Option<FullXid>;
}

/// What a search knows after a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SearchState {
    /// This record decides.
    Stop(Stop),
    /// No record that starts in the segments fed so far decides.
    Nothing,
    /// A record that starts in the segments fed so far ends in the next one and may decide.
    More,
}
