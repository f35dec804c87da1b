//! Random histories of several servers on one archive, compared with a row oracle of their own, and a few whose chapters
//! are given: where committed rows were once lost.

use walpoint_tests::histories::chapters::{Chapter, Follow, Prepared};
use walpoint_tests::histories::{run_case, run_chapters, run_chapters_with_damage};

macro_rules! cases {
    ($($name:ident: $case:literal;)*) => {$(
        /// R2, F7: two random histories.
        #[test]
        fn $name() {
            run_case($case, 2);
        }
    )*};
}

cases! {
    random_0: 0;
    random_1: 1;
    random_2: 2;
    random_3: 3;
    random_4: 4;
    random_5: 5;
    random_6: 6;
    random_7: 7;
    random_8: 8;
    random_9: 9;
}

macro_rules! long_cases {
    ($($name:ident: $case:literal;)*) => {$(
        /// R2, F7: a quarter of five hundred random histories.
        #[test]
        #[ignore = "make soak: 125 random histories"]
        fn $name() {
            run_case($case, 125);
        }
    )*};
}

long_cases! {
    many_random_0: 0;
    many_random_1: 1;
    many_random_2: 2;
    many_random_3: 3;
}

/// R2: from 16 on, PostgreSQL asks for its own new history at the end of such a promotion.
#[test]
fn a_promotion_with_an_open_prepared_transaction() {
    for seed in [1, 2] {
        run_chapters(seed, 19, &[Chapter::Failover(Follow::Stream, Prepared::Open)]);
    }
}

/// R1: such a transaction is read again from the parent's segment, which only pg_wal can give.
#[test]
fn a_transaction_prepared_before_a_crash_and_a_fork_in_one_segment() {
    for major in [14, 18, 19] {
        run_chapters(3, major, &[Chapter::FailoverAfterCrash]);
    }
}

/// R2: the moment lies before an earlier fork, on the path that leads to the newest timeline.
#[test]
fn a_fork_before_a_fork() {
    run_chapters(2, 16, &[Chapter::Pitr, Chapter::PitrBeforeFork]);
}

/// F7: a snapshot of the storage archives nothing under the primary's name.
#[test]
fn a_snapshot_with_the_primarys_configuration() {
    for promoted in [false, true] {
        run_chapters(5, 19, &[Chapter::SnapshotSameConfiguration { promoted }]);
    }
}

/// A13, R2: a failover of a failover.
#[test]
fn a_cascade() {
    run_chapters(10, 16, &[Chapter::Cascade(Prepared::AsItComes)]);
}

/// B7: what a copy did before it archived is in its own backup, and nowhere else.
#[test]
fn a_copy_that_archives_late() {
    run_chapters(12, 19, &[Chapter::LateArchiver]);
}

/// A2: two servers of one timeline, promoted at the same position, write equal histories and different WAL.
#[test]
fn twins_are_not_mixed() {
    run_chapters(4, 14, &[Chapter::TwinsPromoted]);
}

/// R6: replay creates a tablespace at the place in the record, which is the primary's.
#[test]
fn a_copy_beside_the_primary_leaves_its_tablespaces_alone() {
    run_chapters(8, 16, &[Chapter::CopyBesideTablespace]);
}

/// F7: a copy that asks for nothing archives nothing, so the primary's own failover can.
#[test]
fn a_silent_copy_archives_nothing() {
    run_chapters(9, 14, &[Chapter::SilentCopy]);
}

/// R2, R3: a history that cannot be read, and one that is gone, are no reason to recover along an older timeline.
#[test]
fn a_damaged_history_is_no_way_around() {
    for seed in [1, 2, 3, 4] {
        run_chapters_with_damage(seed, 16, &[Chapter::Failover(Follow::Stream, Prepared::AsItComes)]);
    }
}
