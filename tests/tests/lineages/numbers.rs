//! Timeline numbers that a lineage does not have: PostgreSQL asks for the history of each number on its way to the timeline that it
//! recovers to, also of those beside its path.

use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::store::Store;

use super::archived;

/// A server in production on timeline 2, and where timeline 1 stood before its last row.
fn on_the_second_timeline() -> (Archived, String) {
    // What a copy and the archive have in common shows in its pg_wal.
    let builder = Cluster::builder().segment_size_mb(1).conf("wal_keep_size", "64MB");
    let mut bed = Archived::start(builder, Store::local());
    bed.cluster.psql("create table t (n int)");
    bed.backup();
    bed.cluster.psql("insert into t values (1)");
    let first = bed.cluster.psql("select pg_current_wal_insert_lsn()");
    bed.cluster.psql("insert into t values (2)");
    replace(&mut bed, "lost1", &[]);
    bed.cluster.psql("insert into t values (3)");
    bed.settle();
    assert_eq!(bed.cluster.timeline(), 2);
    (bed, first)
}

/// The server dies, and what is restored in its place archives.
fn replace(bed: &mut Archived, lost: &str, target: &[&str]) {
    bed.settle();
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_owned();
    std::fs::rename(&pgdata, bed.place(lost)).unwrap();
    bed.restore(pgdata.file_name().unwrap().to_str().unwrap(), &[target, &["--resume-archiving"]].concat());
    bed.cluster.start();
    bed.cluster.wait_promoted();
}

const ROWS: &str = "select string_agg(n::text, ' ' order by n) from t";

/// F1 and R2: a copy that was split off on timeline 3 has no timeline 2, which its parent took beside it. It is restored from its
/// parent's backup all the same, and followed by a standby.
#[test]
fn a_lineage_without_a_number_is_restored_from_its_parents_backup() {
    let (bed, first) = on_the_second_timeline();
    let target = ["--target-lsn", &first, "--target-timeline", "1", "--target-action", "promote"];
    let mut copy = bed.restore_and_start("copy", &target);
    copy.wait_promoted();
    assert_eq!((copy.timeline(), copy.psql(ROWS)), (3, "1".to_owned()));
    copy.stop(Shutdown::Fast);
    let agent = Agent::with(&copy, &bed.store);
    agent.archive_from(&copy);
    copy.set_last("archive_mode", "on");
    agent.init(&["--new-lineage"]).expect_success();
    let daemon = agent.daemon();
    copy.start();
    copy.psql("insert into t values (5)");
    archived(&copy, &copy.switch_wal());
    copy.stop(Shutdown::Fast);
    assert_eq!(daemon.stop(), 0);

    let lineage = format!("{}-2", bed.cluster.system_id());
    let restored = bed.restore_and_start("again", &["--lineage", &lineage]);
    restored.wait_promoted();
    assert_eq!(restored.psql(ROWS), "1 5");
    drop(restored);
    let told = bed.try_restore("standby", &["--lineage", &lineage, "--standby"]).expect_success().stdout;
    assert!(told.contains("recovery_target_timeline is 3"), "{told}");
    let standby = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), bed.place("standby"));
    standby.wait_for(ROWS, "1 5");
}

/// F1 and F3: what is damaged or lost beside the path ends no recovery; and the restore says so beforehand where it is the target's own.
#[test]
fn a_damaged_or_lost_history_beside_the_path_stops_no_recovery() {
    let (mut bed, first) = on_the_second_timeline();
    replace(
        &mut bed,
        "lost2",
        &["--target-lsn", &first, "--target-timeline", "1", "--target-action", "promote"],
    );
    bed.cluster.psql("insert into t values (4)");
    bed.settle();
    assert_eq!(bed.cluster.timeline(), 3);
    let history = |timeline: u32| {
        let keys = bed.back_door().list("clusters/main");
        keys.into_iter().find(|key| key.ends_with(&format!("{timeline:08X}.history"))).expect("a history")
    };
    let (second, third) = (history(2), history(3));
    let sound = bed.back_door().get(&second).unwrap();
    for what in ["damaged", "lost"] {
        match what {
            "damaged" => bed.back_door().flip_bit(&second, sound.len() - 3),
            _ => bed.back_door().delete(&second),
        }
        let restored = bed.restore_and_start(what, &[]);
        restored.wait_promoted();
        assert_eq!(restored.psql(ROWS), "1 4", "{what}");
        // Its next number is none that is in use.
        assert_eq!(restored.timeline(), 4, "{what}");
    }
    bed.back_door().put(&second, sound);
    bed.backup();
    let damaged = bed.back_door().get(&third).unwrap().len() - 3;
    bed.back_door().flip_bit(&third, damaged);
    // The backup is timeline 3's own, and its WAL is.
    for options in [&[][..], &["--target-timeline", "3"]] {
        let planned = bed.agent.restore(&[&["plan"], options].concat()).expect_success().stdout;
        assert!(planned.contains("The history of timeline 3 is damaged or lost"), "{planned}");
    }
    let restored = bed.restore_and_start("own", &[]);
    restored.wait_promoted();
    assert_eq!((restored.psql(ROWS), restored.timeline()), ("1 4".to_owned(), 4));
    let refused = bed.try_restore("standby", &["--standby"]).expect_status(1);
    assert!(format!("{}{}", refused.stdout, refused.stderr).contains("Omit --standby"), "{refused:#?}");
}

/// F3: a standby was restored before a history in the middle of its path was damaged. It follows, because a younger timeline's history has
/// the lines, and takes no number that is in use when it is promoted.
#[test]
fn a_standby_passes_a_history_that_was_damaged_since_it_was_restored() {
    let (mut bed, _) = on_the_second_timeline();
    replace(&mut bed, "lost2", &[]);
    bed.cluster.psql("insert into t values (4)");
    bed.settle();
    assert_eq!(bed.cluster.timeline(), 3);
    bed.try_restore("standby", &["--standby"]).expect_success();
    let keys = bed.back_door().list("clusters/main");
    let second = keys.iter().find(|key| key.ends_with("00000002.history")).expect("a history");
    let length = bed.back_door().get(second).unwrap().len();
    bed.back_door().flip_bit(second, length - 3);
    let standby = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), bed.place("standby"));
    standby.wait_for(ROWS, "1 2 3 4");
    standby.promote();
    // pg_control names the timeline of the last checkpoint.
    standby.psql("checkpoint");
    assert_eq!(standby.timeline(), 4);
}
