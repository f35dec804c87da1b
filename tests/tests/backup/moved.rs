//! B2: databases that are moved or copied file by file while a backup reads them. Replay copies the source as the backup has it.

use std::path::PathBuf;
use std::time::Duration;

use walpoint_tests::cluster::Cluster;
use walpoint_tests::needs_root;
use walpoint_tests::oracle::Contents;
use walpoint_tests::process::Background;

use crate::bed::Bed;
use crate::changing::held;

const LIMIT: Duration = Duration::from_secs(60);

/// A cluster with a database `d` that a backup reads with one thread, and the file of one of its tables.
fn bed(major: u32) -> (Bed, PathBuf) {
    let bed = Bed::new(
        Cluster::builder().major(major).conf("autovacuum", "off"),
        walpoint_tests::store::Store::local(),
        |agent| agent.cluster_line("workers = 1"),
    );
    bed.cluster.psql("create database d");
    for table in ["t", "u"] {
        let sql =
            format!("create table {table} as select i, repeat('x', 500) s from generate_series(1, 3000) i");
        bed.cluster.psql_in("d", &sql);
    }
    bed.cluster.psql("checkpoint");
    let path = bed.cluster.psql_in("d", "select pg_relation_filepath('t')");
    let path = bed.cluster.pgdata().join(path);
    (bed, path)
}

#[track_caller]
fn refused(bed: &Bed, mut backup: Background) {
    bed.cluster.switch_wal();
    assert_eq!(backup.wait(LIMIT), 1, "{}", backup.log());
    let log = backup.log();
    assert!(log.contains("was copied to database") && log.contains("Run the backup again"), "{log}");
    assert!(bed.repository().finished().is_empty(), "there is no backup that lacks it");
}

/// B2: `ALTER DATABASE … SET TABLESPACE` copies and drops what is being read: no backup, and the next one is whole.
#[test]
fn a_database_that_is_moved_while_it_is_read_is_in_no_backup_incomplete() {
    needs_root!();
    for major in [13, 17] {
        let (bed, file) = bed(major);
        bed.cluster.create_tablespace("ts");
        let (backup, _) = held(&bed, &[file]);
        bed.cluster.psql("alter database d set tablespace ts");
        refused(&bed, backup);
        let next = bed.backup(&[]);
        bed.cluster.psql_in("d", "insert into t values (-1, 'after')");
        bed.cluster.wait_archived(&bed.cluster.switch_wal());
        let contents = Contents::of_database(&bed.cluster, "d");
        let restored = bed.restore(next["backup"].as_str().unwrap());
        contents.assert_equal(&Contents::of_database(&restored, "d"));
    }
}

/// B2: a source that changes behind its copy would give the copy rows that it never had; one that stays as it was keeps no
/// backup away.
#[test]
fn a_database_copied_file_by_file_is_in_a_backup_as_it_was_copied_or_there_is_none() {
    needs_root!();
    for (major, strategy) in [(14, ""), (17, "strategy file_copy")] {
        let (bed, file) = bed(major);
        let (backup, _) = held(&bed, std::slice::from_ref(&file));
        bed.cluster.psql(&format!("create database e template d {strategy}"));
        bed.cluster.psql_in("d", "update u set s = 'CHANGED' where i < 100; checkpoint");
        refused(&bed, backup);

        let (mut backup, _) = held(&bed, std::slice::from_ref(&file));
        for name in ["f", "g"] {
            bed.cluster.psql(&format!("create database {name} template e {strategy}"));
        }
        bed.cluster.psql_in("f", "create table v as select 1 i");
        bed.cluster.psql_in("d", "drop table u; insert into t values (-1, 'after')");
        assert_eq!(backup.wait(LIMIT), 0, "{}", backup.log());
        bed.cluster.wait_archived(&bed.cluster.switch_wal());
        let id = bed.repository().finished()[0].to_string();
        let restored = bed.restore(&id);
        for name in ["d", "e", "f", "g"] {
            let contents = Contents::of_database(&bed.cluster, name);
            contents.assert_equal(&Contents::of_database(&restored, name));
        }
    }
}
