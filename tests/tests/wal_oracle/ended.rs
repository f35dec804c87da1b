//! Incomplete content under a full name.

use std::fs;

use walpoint_base::{SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId};
use walpoint_pg::wal::inspect;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::wait;

/// A standby that archives everything hands over the last segment of the old timeline under its full name: it ends at
/// the switch point, and what the recycled file held before follows.
#[test]
fn a_segment_that_ends_early_is_told_from_a_damaged_one() {
    let mut recycled = false;
    for major in [13, 15, 18, 19] {
        let primary = Cluster::builder()
            .major(major)
            .segment_size_mb(1)
            .conf("min_wal_size", "16MB")
            .conf("max_wal_size", "16MB")
            .conf("wal_keep_size", "200MB")
            .start();
        let first = primary.streaming_standby();
        let mut second = first.standby();
        let archive = primary.dir().mkdir("archive");
        // So that it recycles segments, and the last one holds what another held before.
        second.set("wal_keep_size", "0");
        second.set("archive_mode", "always");
        second.set("archive_command", format!("cp %p {0}/.%f && mv {0}/.%f {0}/%f", archive.display()));
        second.start();
        second.wait_for("select count(*) from pg_stat_wal_receiver where status = 'streaming'", "1");
        primary.fill_wal_mb(30);
        for server in [&primary, &first] {
            server.psql("checkpoint");
        }
        second.wait_replayed(&primary);
        second.psql("checkpoint");
        primary.fill_wal_mb(5);
        primary.psql("create table t as select generate_series(1, 1000) as n");
        first.wait_replayed(&primary);
        second.wait_replayed(&primary);
        let mut primary = primary;
        primary.stop(Shutdown::Immediate);
        first.promote();
        first.psql("select pg_switch_wal()");
        first.psql("create table u (n int); select pg_switch_wal()");
        second.wait_for("select count(*) from pg_class where relname = 'u'", "1");
        let history = archive.join("00000002.history");
        wait::until_true(wait::SOON, "the history is archived", || history.exists());
        let history = fs::read(history).unwrap();
        let history = TimelineHistory::parse(TimelineId::new(2).unwrap(), &history).unwrap();
        let switch = history.entries()[0].switch;
        let size = SegmentSize::new(1 << 20).unwrap();
        let last = archive.join(SegmentNo::before(switch, size).name(TimelineId::FIRST, size).to_string());
        wait::until_true(wait::SOON, "the last segment of timeline 1 is archived", || last.exists());
        let mut ended = 0;
        for entry in fs::read_dir(&archive).unwrap().flatten() {
            let Ok(name) = entry.file_name().to_str().unwrap().parse::<SegmentName>() else { continue };
            let facts = inspect(name, &fs::read(entry.path()).unwrap()).unwrap();
            let (from, to) =
                facts.name.number(facts.size).map(|n| (n.start(facts.size), n.end(facts.size))).unwrap();
            if name.timeline == TimelineId::FIRST && from < switch && switch < to {
                assert!(!facts.whole, "{major}: {facts:?}");
                assert_eq!(facts.end.align(), switch, "{major}: {facts:?}");
                recycled |= facts.content_len > facts.end.align().since(from);
                ended += 1;
            } else {
                assert!(facts.whole, "{major}: {facts:?}");
            }
        }
        assert_eq!(ended, 1, "{major}: the last segment of timeline 1 was archived under its full name");
    }
    assert!(recycled, "none of the files held anything behind its end");
}

/// The same on a quiet cluster: segments are switched after a few records, so a file that is used again holds zeros from its first
/// page on, and what is left over behind the end of the last segment ends in that page.
#[test]
fn leftovers_that_end_in_the_page_of_the_end_are_no_damage() {
    let size = SegmentSize::new(1 << 20).unwrap();
    let mut in_one_page = 0;
    for major in [13, 16, 18, 19] {
        let mut primary = Cluster::builder()
            .major(major)
            .segment_size_mb(1)
            .conf("min_wal_size", "16MB")
            .conf("max_wal_size", "16MB")
            .conf("wal_keep_size", "200MB")
            .start();
        let first = primary.streaming_standby();
        let mut second = first.standby();
        let archive = primary.dir().mkdir("archive");
        second.set("wal_keep_size", "0");
        second.set("archive_mode", "always");
        second.set("archive_command", format!("cp %p {0}/.%f && mv {0}/.%f {0}/%f", archive.display()));
        second.start();
        second.wait_for("select count(*) from pg_stat_wal_receiver where status = 'streaming'", "1");
        let message = |bytes: u32| format!("select pg_logical_emit_message(true, '', repeat('x', {bytes}))");
        let quiet = |segments: u32| {
            for _ in 0..segments {
                primary.psql(&format!("{}; select pg_switch_wal()", message(6000)));
            }
        };
        quiet(24);
        primary.psql("checkpoint");
        quiet(1);
        second.wait_replayed(&primary);
        second.psql("checkpoint");
        // Into files that the standby uses again.
        quiet(4);
        primary.psql(&message(100));
        first.wait_replayed(&primary);
        second.wait_replayed(&primary);
        primary.stop(Shutdown::Immediate);
        first.promote();
        first.psql("select pg_switch_wal()");
        first.psql("create table u (n int); select pg_switch_wal()");
        second.wait_for("select count(*) from pg_class where relname = 'u'", "1");
        let history = archive.join("00000002.history");
        wait::until_true(wait::SOON, "the history is archived", || history.exists());
        let history = fs::read(history).unwrap();
        let history = TimelineHistory::parse(TimelineId::new(2).unwrap(), &history).unwrap();
        let switch = history.entries()[0].switch;
        let last = SegmentNo::before(switch, size).name(TimelineId::FIRST, size);
        let path = archive.join(last.to_string());
        wait::until_true(wait::SOON, "the last segment of timeline 1 is archived", || path.exists());
        let facts = inspect(last, &fs::read(path).unwrap()).unwrap();
        assert!(!facts.whole, "{major}: {facts:?}");
        assert_eq!(facts.end.align(), switch, "{major}: {facts:?}");
        let end = facts.end.since(SegmentNo::before(switch, size).start(size));
        in_one_page += u32::from(end < facts.content_len && facts.content_len <= end.next_multiple_of(8192));
    }
    assert!(in_one_page > 0, "nothing was left over in the page in which the last segment ends");
}
