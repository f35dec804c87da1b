//! `pg_waldump` as the oracle: its lines, and the comparison with what we read.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use walpoint_base::chain::{ChainEnd, Link};
use walpoint_base::crossing::Crossing;
use walpoint_base::facts::SegmentMarks;
use walpoint_base::{Lsn, PgTimestamp, SegmentFacts, SegmentNo, TimelineId};
use walpoint_pg::wal::{PageHeader, RecordKind, RelationLock, Rmgr, WalRecord, inspect};
use walpoint_tests::waldata::WalData;

use crate::{name_of, read};

const PAGE: u64 = 8192;

/// One line of `pg_waldump`.
#[derive(Debug)]
struct Line {
    lsn: Lsn,
    previous: Lsn,
    xid: u32,
    rmgr: String,
    what: String,
}

fn lines(text: &str) -> Vec<Line> {
    let records = text.lines().filter(|line| line.starts_with("rmgr: "));
    let parse = |line: &str| {
        let (rmgr, rest) = line["rmgr: ".len()..].split_once(" len (rec/tot):")?;
        let (_, rest) = rest.split_once(", tx:")?;
        let (xid, rest) = rest.split_once(", lsn: ")?;
        let (lsn, rest) = rest.split_once(", prev ")?;
        let (previous, what) = rest.split_once(", desc: ")?;
        Some(Line {
            lsn: lsn.parse().ok()?,
            previous: previous.parse().ok()?,
            xid: xid.trim().parse().ok()?,
            rmgr: rmgr.trim().to_owned(),
            what: what.trim_end().to_owned(),
        })
    };
    records.map(|line| parse(line).unwrap_or_else(|| panic!("a line of pg_waldump: {line}"))).collect()
}

fn dump(wal: &WalData, segments: &[PathBuf]) -> Vec<Line> {
    let (first, last) = (name_of(&segments[0]).to_string(), name_of(segments.last().unwrap()).to_string());
    let output = wal.waldump(&["-p", wal.archive.to_str().unwrap(), &first, &last]);
    lines(&output.stdout)
}

/// What `pg_waldump` must say of a record that we decode; the beginning of its description.
fn description(kind: &RecordKind) -> Option<String> {
    let tli = |timeline: Option<TimelineId>| timeline.map_or(0, TimelineId::get);
    let utc = |time: &PgTimestamp| time.to_string().replace("+00", " UTC");
    Some(match kind {
        RecordKind::Commit(end) if end.prepared => format!("COMMIT_PREPARED {}: {}", end.xid, utc(&end.time)),
        RecordKind::Abort(end) if end.prepared => format!("ABORT_PREPARED {}: {}", end.xid, utc(&end.time)),
        RecordKind::Commit(end) => format!("COMMIT {}", utc(&end.time)),
        RecordKind::Abort(end) => format!("ABORT {}", utc(&end.time)),
        RecordKind::Prepare { gid, .. } => format!("PREPARE gid {gid}: "),
        RecordKind::RestorePoint { name, .. } => format!("RESTORE_POINT {name}"),
        RecordKind::Switch => "SWITCH".to_owned(),
        RecordKind::CheckpointShutdown(c) | RecordKind::CheckpointOnline(c) => {
            let online = matches!(kind, RecordKind::CheckpointOnline(_));
            let name = if online { "ONLINE" } else { "SHUTDOWN" };
            format!(
                "CHECKPOINT_{name} redo {}; tli {}; prev tli {};",
                long(c.redo),
                tli(c.timeline),
                tli(c.previous_timeline)
            )
        }
        RecordKind::CheckpointRedo => "CHECKPOINT_REDO".to_owned(),
        RecordKind::EndOfRecovery { timeline, previous, time } => {
            let (timeline, previous) = (tli(*timeline), tli(*previous));
            format!("END_OF_RECOVERY tli {timeline}; prev tli {previous}; time {}", utc(time))
        }
        RecordKind::BackupEnd { start } => format!("BACKUP_END {}", long(*start)),
        RecordKind::OverwriteContrecord { overwritten, time } => {
            format!("OVERWRITE_CONTRECORD lsn {}; time {}", long(*overwritten), utc(time))
        }
        RecordKind::ParameterChange(p) => format!(
            "PARAMETER_CHANGE max_connections={} max_worker_processes={} max_wal_senders={} max_prepared_xacts={} \
             max_locks_per_xact={}",
            p.max_connections,
            p.max_worker_processes,
            p.max_wal_senders,
            p.max_prepared_transactions,
            p.max_locks_per_transaction
        ),
        RecordKind::TablespaceCreate { oid, location } => {
            format!("CREATE {oid} \"{}\"", String::from_utf8_lossy(location))
        }
        // `CREATE copy dir`, `CREATE_FILE_COPY copy dir`.
        RecordKind::DatabaseCopy(_) => "CREATE".to_owned(),
        RecordKind::DatabaseDrop { .. } => "DROP dir".to_owned(),
        RecordKind::Locks(locks) => {
            let lock =
                |lock: &RelationLock| format!("xid {} db {} rel {}", lock.xid, lock.database, lock.relation);
            format!("LOCK {}", locks.iter().map(lock).collect::<Vec<_>>().join(" "))
        }
        RecordKind::SharedTuple(..) | RecordKind::Other => return None,
    })
}

fn long(lsn: Lsn) -> String {
    lsn.to_string()
}

/// `0/01500028` and `0/1500028` are the same; which of them `pg_waldump` prints depends on its version.
pub(crate) fn normal(what: &str) -> String {
    let word = |word: &str| {
        let plain = word.trim_end_matches(';');
        plain.parse::<Lsn>().map_or_else(|_| word.to_owned(), |lsn| word.replace(plain, &lsn.to_string()))
    };
    what.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// Where a record may start at or after `lsn`: behind the page's header if it begins there.
fn behind_header(lsn: Lsn, size: u64) -> Lsn {
    match (lsn.0 % size, lsn.0 % PAGE) {
        (0, _) => lsn + 40,
        (_, 0) => lsn + 24,
        _ => lsn,
    }
}

/// Compares consecutive segments of one timeline; what was read.
pub(crate) fn compare(wal: &WalData, segments: &[PathBuf]) -> Vec<WalRecord> {
    let (theirs, ours) = (dump(wal, segments), read(segments));
    for (one, two) in ours.iter().zip(&theirs) {
        assert_eq!(
            (one.start, one.previous, one.xid),
            (two.lsn, two.previous, two.xid),
            "{one:?} and {two:?}"
        );
        let rmgr = match one.rmgr {
            Rmgr::XLOG => Some("XLOG"),
            Rmgr::XACT => Some("Transaction"),
            Rmgr::STANDBY => Some("Standby"),
            Rmgr::TBLSPC => Some("Tablespace"),
            _ => None,
        };
        match rmgr {
            Some(rmgr) => assert_eq!(rmgr, two.rmgr),
            None => assert!(two.rmgr != "XLOG" && two.rmgr != "Transaction", "{one:?} and {two:?}"),
        }
        let decoded = [
            "COMMIT",
            "ABORT",
            "PREPARE",
            "RESTORE_POINT",
            "SWITCH",
            "END_OF",
            "BACKUP_END",
            "PARAM",
            "OVERW",
            "CREATE ",
        ];
        match description(&one.kind) {
            Some(expected) => assert!(normal(&two.what).starts_with(&expected), "{one:?} and {two:?}"),
            None => assert!(
                rmgr.is_none() || !decoded.iter().any(|name| two.what.starts_with(name)),
                "{one:?} was not decoded: {two:?}"
            ),
        }
    }
    assert_eq!(ours.len(), theirs.len(), "{:?} and {:?}", ours.last(), theirs.last());
    consistent(wal, segments, &ours);
    ours
}

/// Each record follows the one before, and the facts of each segment are those of its records.
pub(crate) fn consistent(wal: &WalData, segments: &[PathBuf], records: &[WalRecord]) {
    for pair in records.windows(2) {
        assert!(pair[0].end <= pair[0].next && pair[0].next <= pair[1].start);
        let follows = behind_header(pair[0].next, wal.segment_size) == pair[1].start;
        let overwrote = matches!(pair[1].kind, RecordKind::OverwriteContrecord { .. });
        assert!(follows || overwrote, "{:?} does not follow {:?}", pair[1], pair[0]);
    }
    facts_agree(wal, segments, records);
}

/// What `inspect` says of each segment is what its records say.
fn facts_agree(wal: &WalData, segments: &[PathBuf], records: &[WalRecord]) {
    let starts: BTreeSet<Lsn> = records.iter().map(|record| record.start).collect();
    let contents: Vec<Vec<u8>> = segments.iter().map(|path| fs::read(path).unwrap()).collect();
    let mut end = ChainEnd::UNKNOWN;
    let mut open = None;
    for (index, (path, content)) in segments.iter().zip(&contents).enumerate() {
        let facts = inspect(name_of(path), content).unwrap();
        assert_eq!((u32::from(facts.major.get()), facts.system_id.0), (wal.major, wal.system_id));
        assert_eq!(facts.size.bytes(), wal.segment_size);
        assert!(facts.whole, "{facts:?}");
        let number = facts.name.number(facts.size).unwrap();
        let (from, to) = (number.start(facts.size), number.end(facts.size));
        let here: Vec<&WalRecord> = records.iter().filter(|r| from <= r.start && r.start < to).collect();
        let page = contents.get(index + 1).and_then(|next| PageHeader::parse(next));
        let abandoned = u32::from(page.is_some_and(|page| page.overwrites()));
        assert_eq!(facts.records, u32::try_from(here.len()).unwrap() + abandoned, "{facts:?}");
        assert_eq!(facts.first_record, here.first().map(|record| record.start));
        if abandoned == 0 {
            assert_eq!(facts.last_record, here.last().map(|record| record.start));
        }
        assert_eq!(
            facts.switched,
            records.iter().any(|r| from < r.end && r.end <= to && r.kind == RecordKind::Switch)
        );
        if !facts.switched
            && index + 1 < segments.len()
            && abandoned == 0
            && facts.end > from
            && facts.end < to
        {
            let next = behind_header(facts.end.align(), wal.segment_size);
            assert!(starts.contains(&next), "nothing starts at {next}: {facts:?}");
        }
        transactions_agree(&facts, &here, to);
        let before = std::mem::replace(&mut open, facts.crossing.open);
        if index > 0 {
            let crossing = Crossing::between(before.as_ref(), &facts.crossing, &facts.chain.begin);
            let record = records.iter().find(|r| r.start < from && from < r.end);
            crossing_agrees(&crossing, record, facts.chain.begin.overwritten);
        }
        // What initdb wrote points back to nothing.
        let expected = if first_of_all(&facts) { Link::Reset } else { Link::Continues };
        assert_eq!(end.link(&facts.chain), expected, "{facts:?} after {end:?}");
        end = end.after(&facts.chain);
        let is_first = index == 0 || facts.records == 0;
        if let (Some(first), false) = (here.first(), is_first && here.is_empty()) {
            assert_eq!(facts.chain.begin.previous, Some(first.previous), "{facts:?}");
        }
        marks_agree(&facts, &here);
    }
}

/// Whether nothing precedes a segment, because `initdb` wrote it.
fn first_of_all(facts: &SegmentFacts) -> bool {
    facts.name.number(facts.size) == Some(SegmentNo(1))
}

/// A record whose header is cut by the end of the segment counts in the next one.
fn marks_agree(facts: &SegmentFacts, here: &[&WalRecord]) {
    let tablespace = here.iter().any(|r| matches!(r.kind, RecordKind::TablespaceCreate { .. }));
    let parameters = here.iter().any(|r| matches!(r.kind, RecordKind::ParameterChange(_)));
    let minimal = here.iter().any(|r| matches!(r.kind, RecordKind::ParameterChange(p) if p.wal_level == 0));
    let database_copy = here.iter().any(|r| matches!(r.kind, RecordKind::DatabaseCopy(_)));
    assert_eq!(facts.marks, SegmentMarks { tablespace, parameters, minimal, database_copy }, "{facts:?}");
}

/// What two neighbors know of the record between them is what it is.
fn crossing_agrees(crossing: &Crossing, record: Option<&WalRecord>, abandoned: bool) {
    let kind = record.filter(|_| !abandoned).map(|record| &record.kind);
    match (crossing, kind) {
        (Crossing::End { time, xid }, Some(RecordKind::Commit(end) | RecordKind::Abort(end))) => {
            assert_eq!(*time, end.time, "{record:?}");
            assert!(xid.is_none_or(|xid| xid == end.xid), "{crossing:?} {record:?}");
        }
        (Crossing::Point(_), Some(RecordKind::RestorePoint { name, .. })) => {
            assert!(crossing.may_be_named(name), "{crossing:?} {record:?}");
        }
        (Crossing::Nothing, kind) => {
            let looked_for = kind.is_some_and(|kind| {
                kind.transaction_end().is_some() || matches!(kind, RecordKind::RestorePoint { .. })
            });
            assert!(!looked_for, "{record:?}");
        }
        other => panic!("{other:?} {record:?}"),
    }
}

fn transactions_agree(facts: &SegmentFacts, here: &[&WalRecord], to: Lsn) {
    let ends: Vec<_> =
        here.iter().filter(|r| r.end <= to).filter_map(|record| record.kind.transaction_end()).collect();
    let range = facts.transactions;
    assert_eq!(range.map_or(0, |range| range.count) as usize, ends.len(), "{facts:?}");
    assert_eq!(range.map(|range| range.earliest), ends.iter().map(|end| end.time).min());
    assert_eq!(range.map(|range| range.latest), ends.iter().map(|end| end.time).max());
    assert!(ends.iter().all(|end| range.is_some_and(|range| range.may_hold(end.xid))));
    let open = here.last().filter(|record| record.end > to);
    if open.is_some_and(|record| record.kind.transaction_end().is_some()) {
        assert!(facts.crossing.open.is_some());
    }
    let points: Vec<_> = here
        .iter()
        .filter(|record| record.end <= to)
        .filter_map(|record| match &record.kind {
            RecordKind::RestorePoint { name, .. } => Some((name.as_str(), record.start, record.next)),
            _ => None,
        })
        .collect();
    let found: Vec<_> =
        facts.restore_points.iter().map(|point| (point.name.as_str(), point.lsn, point.end)).collect();
    assert_eq!(found, points);
}
