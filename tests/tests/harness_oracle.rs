//! The harness itself: the oracles see a difference, and nothing where there is none.

use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::oracle::{self, Contents};
use walpoint_tests::rows::Ledger;
use walpoint_tests::waldata;

#[test]
fn equal_contents_are_equal_and_others_are_not() {
    let source = Cluster::builder().major(18).start();
    waldata::workload(&source);
    let mut copy = Cluster::start_restored(source.dir(), 18, source.base_backup(&["-X", "stream"]));
    let contents = Contents::of(&source);
    contents.assert_equal(&Contents::of(&copy));
    copy.psql("update wal_a set filler = 'x' where id = 1");
    assert_ne!(contents.tables, Contents::of(&copy).tables);
    oracle::amcheck(&copy);
    copy.stop(Shutdown::Fast);
    oracle::checksums(18, copy.pgdata());
}

#[test]
fn amcheck_runs_on_the_oldest() {
    let cluster = Cluster::builder().major(13).start();
    waldata::workload(&cluster);
    oracle::amcheck(&cluster);
}

#[test]
fn marks_are_in_order() {
    let cluster = Cluster::builder().start();
    let mut ledger = Ledger::create(&cluster, "ledger");
    let marks = ledger.append_many(&cluster, 3);
    assert!(
        marks.windows(2).all(|pair| pair[0].xid < pair[1].xid && pair[0].time_after < pair[1].time_before)
    );
    assert_eq!(ledger.highest(&cluster), 3);
}
