//! B1 and R1 over PostgreSQL 13 to 19, both kinds of store, and small, usual and large segments: a cluster is archived, backed
//! up while it works, loses data, and is brought back to the moment before.
//!
//! Eight cells hold every version, and every segment size on every store; `make soak` runs all thirty-six.

use std::sync::atomic::{AtomicBool, Ordering};

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::oracle::{self, Contents};
use walpoint_tests::store::Store;
use walpoint_tests::testbed;

/// Where the repository of a cell is.
#[derive(Clone, Copy, Debug)]
enum Place {
    Local,
    S3,
}

const SCHEMA: &str = "
    create table accounts (id int primary key, owner text not null, balance numeric not null);
    insert into accounts select i, md5(i::text), i % 997 from generate_series(1, 20000) i;
    create index on accounts (owner);
    create table history (id bigint generated always as identity primary key, account int, change numeric, note text);
    create sequence dropped;
    create unlogged table scratch (n int);";

/// What an unlogged table holds is gone after a recovery, by design.
fn contents(cluster: &Cluster) -> Contents {
    let mut contents = Contents::of(cluster);
    contents.tables.retain(|name, _| !name.ends_with(".scratch"));
    contents
}

/// What keeps a cluster busy: rows change, grow and go, relations come and go, statistics and maps are rewritten.
const WORK: &str = "
    insert into history (account, change, note)
        select (random() * 19999)::int + 1, i, repeat(md5(i::text), 20) from generate_series(1, 300) i;
    update accounts set balance = balance + 1 where id % 50 = (random() * 49)::int;
    delete from history where id % 7 = 0;
    create table passing as select * from accounts where id < 500;
    create index on passing (balance);
    drop table passing;
    truncate scratch; insert into scratch select generate_series(1, 100);
    begin; update accounts set balance = 0; rollback;
    vacuum history;";

/// Runs one cell. With segments of the usual size the moment is a restore point, else a time.
fn cell(major: u32, place: Place, segment_mb: u32) {
    let store = match place {
        Place::Local => Store::local(),
        Place::S3 => Store::s3(),
    };
    let builder =
        Cluster::builder().major(major).segment_size_mb(segment_mb).conf("autovacuum_naptime", "1s");
    let bed = Archived::start(builder, store);
    let primary = &bed.cluster;
    primary.psql(SCHEMA);

    let (stop, rounds) = (AtomicBool::new(false), std::sync::atomic::AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                primary.psql(WORK);
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        let backup = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bed.backup()));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = backup {
            std::panic::resume_unwind(panic);
        }
    });
    primary.psql(WORK);
    assert!(rounds.load(Ordering::Relaxed) > 0, "the cluster stood still while it was backed up");

    let before = contents(primary);
    let moment = primary.psql("select pg_sleep(0.02); select clock_timestamp(); select pg_sleep(0.02)");
    let moment = moment.lines().find(|line| !line.is_empty()).expect("a time").to_owned();
    primary.psql("select pg_create_restore_point('before the accident')");
    primary
        .psql("drop table accounts; update history set change = 0; create table mistake as select 1 as one");
    let after = contents(primary);
    bed.settle();

    // The moment before.
    let target =
        if segment_mb == 16 { ["--target-name", "before the accident"] } else { ["--target-time", &moment] };
    let mut restored =
        bed.restore_and_start("before", &[&target[..], &["--target-action", "promote"]].concat());
    restored.wait_promoted();
    contents(&restored).assert_equal(&before);
    oracle::amcheck(&restored);
    restored.psql(WORK);
    restored.stop(Shutdown::Fast);
    // Version 13's package has no pg_checksums.
    if major > 13 {
        oracle::checksums(major, restored.pgdata());
    }
    drop(restored);
    std::fs::remove_dir_all(bed.place("before")).unwrap();

    // Everything.
    let restored = bed.restore_and_start("latest", &[]);
    restored.wait_promoted();
    contents(&restored).assert_equal(&after);
}

macro_rules! cells {
    ($($name:ident: $major:literal, $place:ident, $segment_mb:literal;)*) => {$(
        /// B1, R1: one cell of the matrix.
        #[test]
        fn $name() {
            cell($major, Place::$place, $segment_mb);
        }
    )*};
}

cells! {
    postgresql_13_local_1mb: 13, Local, 1;
    postgresql_13_s3_16mb: 13, S3, 16;
    postgresql_14_s3_1mb: 14, S3, 1;
    postgresql_15_local_64mb: 15, Local, 64;
    postgresql_16_s3_64mb: 16, S3, 64;
    postgresql_17_local_16mb: 17, Local, 16;
    postgresql_18_local_1mb: 18, Local, 1;
    postgresql_18_s3_16mb: 18, S3, 16;
    postgresql_19_local_16mb: 19, Local, 16;
    postgresql_19_s3_1mb: 19, S3, 1;
}

/// B1, R1: all of them.
#[test]
#[ignore = "make soak: every version on every store with every segment size"]
fn the_whole_matrix() {
    for major in testbed::MAJORS {
        for place in [Place::Local, Place::S3] {
            for segment_mb in [1, 16, 64] {
                println!("PostgreSQL {major}, {place:?}, {segment_mb} MB");
                cell(major, place, segment_mb);
            }
        }
    }
}
