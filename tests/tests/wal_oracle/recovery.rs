//! Real recoveries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use walpoint_base::{Lsn, PgTimestamp, RecoveryTarget, SegmentName};
use walpoint_pg::label::BackupLabel;
use walpoint_pg::wal::find::{TargetRule, TargetStop, find};
use walpoint_pg::wal::{RecordKind, WalRecord};
use walpoint_tests::cluster::Cluster;
use walpoint_tests::dir::TestDir;
use walpoint_tests::user;

use crate::waldump::normal;
use crate::{name_of, read};

/// Real recovery to a target, and what the server logs about where it stopped (R1): `find` must stop at the same record.
#[test]
fn recovery_stops_where_find_says() {
    for major in [13, 15, 18, 19] {
        let dir = Arc::new(TestDir::new());
        let archive = dir.mkdir("archive");
        let source = Cluster::builder()
            .major(major)
            .segment_size_mb(1)
            .in_dir(&dir)
            .archive_command(&format!("cp %p {}/%f", archive.display()))
            .start();
        source.psql("create table t (n int)");
        let copy = source.base_backup(&["-X", "none"]);
        let label = BackupLabel::parse(&fs::read(copy.join("backup_label")).unwrap()).unwrap();
        let mut commits = Vec::new();
        for n in 0..6 {
            let end = if n % 3 == 2 { "rollback" } else { "commit" };
            let sql = format!("begin; insert into t values ({n}); select txid_current(); {end};");
            commits.push(source.psql(&sql).parse::<u32>().unwrap());
        }
        source.psql("begin; insert into t values (7); prepare transaction 'p'");
        let prepared: u32 = source.psql("select transaction from pg_prepared_xacts").parse().unwrap();
        source.psql("select pg_create_restore_point('here')");
        source.psql("insert into t values (8); commit prepared 'p'; insert into t values (9)");
        let last = source.switch_wal();
        source.wait_archived(&last);

        let mut paths: Vec<PathBuf> =
            fs::read_dir(&archive).unwrap().flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.parse::<SegmentName>().is_ok_and(|name| name >= label.start_segment)
        });
        paths.sort();
        let segments: Vec<_> = paths.iter().map(|path| (name_of(path), fs::read(path).unwrap())).collect();
        let records = read(&paths);
        let end_of = |xid: u32| {
            let ends = |record: &&WalRecord| record.kind.transaction_end().is_some_and(|end| end.xid == xid);
            records.iter().find(ends).expect("its end")
        };
        let time = end_of(commits[3]).kind.transaction_end().unwrap().time;
        let between = PgTimestamp(time.0 + 1);
        for (target, inclusive) in [
            (RecoveryTarget::Time(time), true),
            (RecoveryTarget::Time(time), false),
            (RecoveryTarget::Time(between), true),
            (RecoveryTarget::Lsn(end_of(commits[1]).start), true),
            (RecoveryTarget::Lsn(end_of(commits[1]).start), false),
            (RecoveryTarget::Lsn(end_of(commits[4]).start + 1), true),
            (RecoveryTarget::Xid(commits[2]), true),
            (RecoveryTarget::Xid(commits[2]), false),
            (RecoveryTarget::Xid(prepared), true),
            (RecoveryTarget::Name("here".to_owned()), true),
        ] {
            let rule = TargetRule { target: target.clone(), inclusive, consistent: Lsn::INVALID };
            let stop =
                find(rule, label.start, segments.iter().map(|(name, content)| (*name, content))).unwrap();
            let stop = stop.unwrap_or_else(|| panic!("{major}: no stop for {target}"));
            let logged = recovered(&source, &copy, &archive, &target, inclusive);
            let expected = as_logged(&stop, &target, major);
            // The time is printed with as many digits as it needs.
            let expected = expected.trim_end_matches(" UTC").trim_end_matches('0');
            assert!(
                normal(&logged).contains(expected),
                "{major}, {target}, {inclusive}: {expected} and {logged}"
            );
        }
    }
}

/// What a server of that version logs about the end of a recovery there.
fn as_logged(stop: &TargetStop, target: &RecoveryTarget, major: u32) -> String {
    let verb = if stop.replayed { "after" } else { "before" };
    let utc = |time: PgTimestamp| time.to_string().replace("+00", " UTC").replace(".000000", "");
    match (target, &stop.record.kind) {
        (RecoveryTarget::Lsn(_), _) => {
            let start = stop.record.start;
            // From version 19 on its lower half has leading zeros.
            let shown = match major {
                ..19 => start.to_string(),
                _ => format!("{:X}/{:08X}", start.0 >> 32, start.0 & 0xFFFF_FFFF),
            };
            format!("{verb} WAL location (LSN) \"{shown}\"")
        }
        (RecoveryTarget::Name(name), _) => format!("at restore point \"{name}\""),
        (_, RecordKind::Commit(end)) => {
            format!("{verb} commit of transaction {}, time ", end.xid) + &utc(end.time)
        }
        (_, RecordKind::Abort(end)) => {
            format!("{verb} abort of transaction {}, time ", end.xid) + &utc(end.time)
        }
        (_, other) => panic!("stops at {other:?}"),
    }
}

/// Recovers a copy of `backup` to the target; the line of the log that says where it stopped.
fn recovered(
    source: &Cluster,
    backup: &Path,
    archive: &Path,
    target: &RecoveryTarget,
    inclusive: bool,
) -> String {
    let pgdata = source.dir().join("recovered");
    let copied = Command::new("cp").arg("-a").arg(backup).arg(&pgdata).status().unwrap();
    assert!(copied.success());
    fs::write(pgdata.join("recovery.signal"), "").unwrap();
    user::give_tree(&pgdata);
    let mut cluster = Cluster::adopt(Arc::clone(source.dir()), source.major(), pgdata.clone(), None);
    let (name, value) = match target {
        RecoveryTarget::Time(time) => ("recovery_target_time", time.to_string()),
        RecoveryTarget::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
        RecoveryTarget::Xid(xid) => ("recovery_target_xid", xid.to_string()),
        RecoveryTarget::Name(name) => ("recovery_target_name", name.clone()),
        other => panic!("no setting for {other}"),
    };
    cluster.set(name, value);
    cluster.set("recovery_target_inclusive", if inclusive { "on" } else { "off" });
    cluster.set("recovery_target_action", "shutdown");
    cluster.set("restore_command", format!("cp {}/%f %p", archive.display()));
    cluster.set("archive_mode", "off");
    cluster.launch();
    cluster.wait_for_end(Duration::from_secs(60));
    fs::remove_dir_all(&pgdata).unwrap();
    let log = cluster.log();
    let line = log.lines().find(|line| line.contains("recovery stopping"));
    line.unwrap_or_else(|| panic!("{target} was not reached:\n{log}")).to_owned()
}
