//! 13, which has no `pg_waldump` here.

use std::fs;
use std::path::PathBuf;

use walpoint_base::Lsn;
use walpoint_pg::wal::{RecordKind, WalRecord, inspect};
use walpoint_tests::cluster::Cluster;
use walpoint_tests::waldata::{self, Lost};

use crate::waldump::consistent;
use crate::{name_of, on_timeline, read};

/// 13: the server's own functions say where records end, and when transactions were committed.
#[test]
fn version_13_agrees_with_its_server() {
    let cluster = Cluster::builder()
        .major(13)
        .segment_size_mb(1)
        .conf("wal_keep_size", "1GB")
        .conf("track_commit_timestamp", "on")
        .start();
    let first = cluster.switch_wal();
    waldata::workload(&cluster);
    cluster.psql("create table t (n int, filler text)");
    let mut commits = Vec::new();
    for n in 0..200 {
        let row = cluster.psql(&format!(
            "begin; insert into t values ({n}, repeat('x', 3000)); select txid_current(); commit;"
        ));
        commits.push(row.parse::<u32>().unwrap());
    }
    for n in 0..20 {
        let sql =
            format!("begin; select txid_current(); insert into t values ({n}); prepare transaction 'p';");
        commits.push(cluster.psql(&sql).parse().unwrap());
        cluster.psql("commit prepared 'p'");
    }
    let times = commits.iter().map(|xid| {
        let time = format!("pg_xact_commit_timestamp('{xid}'::xid) at time zone 'UTC'");
        (*xid, cluster.psql(&format!("select to_char({time}, 'YYYY-MM-DD HH24:MI:SS.US')")) + "+00")
    });
    let times: Vec<(u32, String)> = times.collect();
    waldata::workload_large(&cluster, 1);
    let point: Lsn = cluster.psql("select pg_create_restore_point('the point')").parse().unwrap();
    let switch: Lsn = cluster.psql("select pg_switch_wal()").parse().unwrap();
    let end: Lsn = cluster.psql("select pg_current_wal_lsn()").parse().unwrap();

    let names: Vec<String> = cluster.segments().into_iter().filter(|name| *name > first).collect();
    let paths: Vec<PathBuf> = names.iter().map(|name| cluster.wal_dir().join(name)).collect();
    let complete = paths.iter().filter(|path| {
        let facts = inspect(name_of(path), &fs::read(path).unwrap());
        facts.is_ok_and(|facts| facts.name.number(facts.size).unwrap().end(facts.size) <= end)
    });
    let complete: Vec<PathBuf> = complete.cloned().collect();
    assert!(complete.len() >= 8, "{} segments", complete.len());
    let records = read(&complete);
    for (xid, time) in times {
        let found = records.iter().find_map(|r| r.kind.transaction_end().filter(|end| end.xid == xid));
        assert_eq!(found.map(|end| end.time.to_string()), Some(time), "transaction {xid}");
    }
    let named = |record: &&WalRecord| matches!(&record.kind, RecordKind::RestorePoint { name, .. } if name == "the point");
    assert_eq!(records.iter().find(named).map(|record| record.next), Some(point));
    let last = records.last().unwrap();
    assert_eq!(last.kind, RecordKind::Switch);
    assert_eq!((last.end.align(), last.next), (switch, end), "a switch ends at the next segment");
}

#[test]
fn version_13_writes_records_that_follow_each_other() {
    for wal in
        [waldata::kinds(13, 20), waldata::mixed(13, 16), waldata::overwritten_contrecord(13, Lost::InACrash)]
    {
        let segments = wal.segments();
        let records = read(&segments);
        consistent(&wal, &segments, &records);
        let commits = records.iter().filter(|record| record.kind.transaction_end().is_some());
        assert!(commits.count() > 20);
    }
    let wal = waldata::promotion(13);
    for timeline in [1, 2] {
        let segments = on_timeline(&wal, timeline);
        consistent(&wal, &segments, &read(&segments));
    }
}
