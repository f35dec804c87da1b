//! Every kind of record, in segments of every size, on every version that has a `pg_waldump`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use walpoint_base::{Lsn, SegmentName, TimelineHistory, TimelineId};
use walpoint_pg::wal::{RecordKind, WalError, WalIdentity, inspect, inspect_on_path};
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process;
use walpoint_tests::waldata::{self, Lost, WalData};

use crate::waldump::compare;
use crate::{name_of, on_timeline};

/// Segments of each kind of WAL.
const SEGMENTS: u64 = 8;

fn kinds_agree(major: u32, of_each: u64) {
    let wal = waldata::kinds(major, of_each);
    let segments = wal.segments();
    let least = usize::try_from(of_each).unwrap();
    assert!(segments.len() >= least * waldata::KINDS.len(), "{} segments", segments.len());
    let records = compare(&wal, &segments);
    let count = |is: &dyn Fn(&RecordKind) -> bool| records.iter().filter(|record| is(&record.kind)).count();
    assert!(count(&|kind| matches!(kind, RecordKind::Commit(end) if end.prepared)) >= least);
    assert!(count(&|kind| matches!(kind, RecordKind::Abort(end) if end.prepared)) >= least);
    assert!(count(&|kind| *kind == RecordKind::Switch) >= least);
    let crossing =
        records.iter().filter(|r| r.start.0 / wal.segment_size != (r.end.0 - 1) / wal.segment_size).count();
    assert!(crossing >= least, "{crossing} records cross segments");
    let empty = segments.iter().filter(|path| {
        let facts = inspect(name_of(path), &fs::read(path).unwrap()).unwrap();
        facts.first_record.is_none()
    });
    assert!(empty.count() >= least.div_ceil(8), "segments in which no record starts");
    mutations_are_noticed(&segments);
}

/// Real segments with a changed byte: never a panic, never an undamaged answer of another shape.
fn mutations_are_noticed(segments: &[PathBuf]) {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let (mut refused, mut total) = (0, 0);
    for path in segments.iter().step_by(7) {
        let mut content = fs::read(path).unwrap();
        let name = name_of(path);
        let good = inspect(name, &content).unwrap();
        let used = usize::try_from(good.end.0 % (1 << 20)).unwrap();
        if used < 1000 {
            continue;
        }
        for _ in 0..200 {
            let (at, bit) = (random(used), 1 << random(8));
            content[at] ^= bit;
            total += 1;
            match inspect(name, &content) {
                Err(_) => refused += 1,
                // A wrong length may point beyond the segment: only the next one can tell.
                Ok(facts) if facts.whole && at >= content.len() - 8192 => {}
                Ok(facts) => {
                    assert_eq!((facts.whole, facts.end), (good.whole, good.end), "byte {at} of {name}")
                }
            }
            content[at] ^= bit;
        }
        content[random(used)..].fill(0);
        if let Ok(facts) = inspect(name, &content) {
            assert!(!facts.whole && facts.end <= good.end);
        }
    }
    // Not noticed: rests of records from other segments, padding, header fields without a meaning.
    assert!(refused * 10 > total * 6, "only {refused} of {total} were noticed");
}

#[test]
fn version_14_agrees_with_its_waldump() {
    kinds_agree(14, SEGMENTS);
}

#[test]
fn version_15_agrees_with_its_waldump() {
    kinds_agree(15, SEGMENTS);
}

#[test]
fn version_16_agrees_with_its_waldump() {
    kinds_agree(16, SEGMENTS);
}

#[test]
fn version_17_agrees_with_its_waldump() {
    kinds_agree(17, SEGMENTS);
}

#[test]
fn version_18_agrees_with_its_waldump() {
    kinds_agree(18, SEGMENTS);
}

#[test]
fn version_19_agrees_with_its_waldump() {
    kinds_agree(19, SEGMENTS);
}

#[test]
#[ignore = "over a thousand segments: make soak"]
fn every_version_agrees_over_more_wal() {
    for major in 14..=19 {
        kinds_agree(major, 20);
    }
}

#[test]
fn segments_of_every_size_agree() {
    for (major, mb) in [(14, 4), (15, 16), (17, 64), (18, 1), (19, 4)] {
        let wal = waldata::mixed(major, mb);
        compare(&wal, &wal.segments());
    }
}

#[test]
fn a_segment_of_1_gib_agrees() {
    let cluster = Cluster::builder().major(17).segment_size_mb(1024).conf("wal_init_zero", "off").start();
    waldata::workload(&cluster);
    let name = cluster.switch_wal();
    let path = cluster.wal_dir().join(&name);
    let mut waldump = cluster.tool("pg_waldump");
    let output = process::run(waldump.arg("--quiet").arg(&path), Duration::from_secs(60));
    assert!(output.success(), "{output:?}");
    let output = process::run(cluster.tool("pg_waldump").arg("--stats").arg(&path), Duration::from_secs(60));
    let total = output.stdout.lines().find(|line| line.starts_with("Total")).expect("a total");
    let facts = inspect(name.parse().unwrap(), &fs::read(&path).unwrap()).unwrap();
    assert!(facts.whole && facts.switched && facts.size.bytes() == 1 << 30);
    assert_eq!(total.split_whitespace().nth(1), Some(facts.records.to_string().as_str()));
}

#[test]
fn a_promotion_agrees_with_waldump_and_with_its_history() {
    for major in 14..=19 {
        let wal = waldata::promotion(major);
        for timeline in [1, 2] {
            compare(&wal, &on_timeline(&wal, timeline));
        }
        let file = fs::read(wal.archive.join("00000002.history")).unwrap();
        let history = TimelineHistory::parse(TimelineId::new(2).unwrap(), &file).unwrap();
        let switch = history.entries()[0].switch;
        let child = on_timeline(&wal, 2);
        let first = fs::read(&child[0]).unwrap();
        let facts = inspect_on_path(name_of(&child[0]), &first, &history).unwrap();
        assert_eq!(facts.first_page_timeline.get(), 1, "{major}: it begins with the parent's pages");
        assert!(facts.first_record.unwrap() < switch && switch < facts.end);
        // Under the parent's name it is another timeline's file.
        let renamed = SegmentName { timeline: TimelineId::FIRST, ..name_of(&child[0]) };
        assert!(matches!(inspect(renamed, &first), Err(WalError::WrongTimeline { found: 2, .. })), "{major}");
        for path in &child[1..] {
            inspect_on_path(name_of(path), &fs::read(path).unwrap(), &history).unwrap();
        }
    }
}

#[test]
fn an_overwritten_contrecord_agrees_with_waldump() {
    for major in 14..=19 {
        let wal = waldata::overwritten_contrecord(major, Lost::InACrash);
        let records = compare(&wal, &wal.segments());
        let overwrites = records.iter().filter_map(|record| match record.kind {
            RecordKind::OverwriteContrecord { overwritten, .. } => Some(overwritten),
            _ => None,
        });
        let overwrites: Vec<Lsn> = overwrites.collect();
        assert_eq!(overwrites.len(), 1, "{major}");
        assert!(records.iter().all(|record| record.start != overwrites[0]), "{major}: it never was a record");
    }
}

#[test]
fn a_broken_record_at_a_promotion_agrees_with_waldump() {
    for major in [14, 19] {
        let wal = waldata::overwritten_contrecord(major, Lost::InAPromotion);
        let child = on_timeline(&wal, 2);
        compare(&wal, &child);
        let file = fs::read(wal.archive.join("00000002.history")).unwrap();
        let history = TimelineHistory::parse(TimelineId::new(2).unwrap(), &file).unwrap();
        for path in child {
            inspect_on_path(name_of(&path), &fs::read(&path).unwrap(), &history).unwrap();
        }
    }
}

/// Minor releases of 17 and 18, and 19, name the page of the visibility map in the records that change it.
#[test]
fn heap_records_that_name_the_visibility_map_agree() {
    for major in [17, 18, 19] {
        let wal = waldata::visibility(major);
        let segments = wal.segments();
        compare(&wal, &segments);
        let dumps = segments.iter().map(|segment| wal.waldump_file(segment).stdout).collect::<String>();
        let naming = |line: &&str| line.starts_with("rmgr: Heap ") && line.contains("fork vm");
        let named = dumps.lines().filter(naming).count();
        println!("{major}: {named} records of Heap name the visibility map");
        assert!(named >= 20, "{major}: {named}");
    }
}

#[test]
fn another_clusters_wal_is_refused() {
    let (ours, theirs) = (waldata::mixed(17, 1), waldata::mixed(17, 1));
    let facts = |wal: &WalData| {
        let path = &wal.segments()[0];
        inspect(name_of(path), &fs::read(path).unwrap()).unwrap()
    };
    let (ours, theirs) = (facts(&ours), facts(&theirs));
    let identity = WalIdentity { system_id: ours.system_id, major: ours.major, segment_size: ours.size };
    assert_eq!(identity.check(&ours), Ok(()));
    let refused = identity.check(&theirs).unwrap_err();
    assert!(refused.to_string().contains(&theirs.system_id.to_string()), "{refused}");
}
