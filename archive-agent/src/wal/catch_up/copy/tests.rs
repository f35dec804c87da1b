//! Comparisons of two repositories. No file can be stored here, because there is no `pg_control`: what is tried shows by that.

use walpoint_storage::layout::AbandonedUntil;

use super::super::super::fixtures::{Bed, switch_in, uploader};
use super::super::ranges::{Kept, Unknown};
use super::*;
use crate::wal::complete;
use crate::wal::target::Missed;

/// Compares `from` with `to`, which has missed everything from these segments on, over and over with one target.
struct Two {
    from: Bed,
    to: Bed,
    uploader: Uploader,
    missed: Missed,
}

impl Two {
    async fn new(missed: &[&str]) -> Self {
        let (from, to) = (Bed::named("from").await, Bed::named("to").await);
        let uploader = uploader(&[&to, &from], &["from"]);
        let names = missed.iter().map(|name| name.parse::<SegmentName>().unwrap());
        Self { from, to, uploader, missed: names.map(|name| (name.timeline, name)).collect() }
    }

    fn target(&self) -> &WalTarget {
        &self.uploader.targets()[0]
    }

    async fn try_to_compare(&self) -> anyhow::Result<Passed> {
        let (target, mut copied) = (self.target(), 0);
        let (from, to) = (&self.from.archive, &self.to.archive);
        let copy = Copy { uploader: &self.uploader, target, source: "from", from, to };
        let passed = copy.missing(&Ranges { missed: self.missed.clone(), unknown: None }, &mut copied).await;
        assert_eq!(copied, 0);
        passed
    }

    async fn compare(&self) -> (String, bool) {
        let passed = self.try_to_compare().await.unwrap();
        (passed.left.map_or_else(String::new, |left| format_chain(&left)), passed.ended_early)
    }

    /// Both have the segments before, and another server's second segment; the first repository has more of each timeline.
    async fn with_another_server() -> Self {
        let two =
            Self::new(&["000000010000000000000003", "000000020000000000000003", "000000030000000000000002"])
                .await;
        for bed in [&two.from, &two.to] {
            bed.put_history(2, switch_in("000000010000000000000003", 0x800)).await;
            bed.put_history(3, switch_in("000000010000000000000002", 0x800)).await;
            bed.put("000000010000000000000001", 1).await;
        }
        two.to.put("000000010000000000000002", 2).await;
        for name in [
            "000000010000000000000002",
            "000000010000000000000003",
            "000000030000000000000002",
            "000000030000000000000003",
        ] {
            two.from.put(name, 1).await;
        }
        two
    }

    fn refused(&self) -> Vec<u32> {
        self.target().split_brains().iter().map(|split| split.timeline().get()).collect()
    }
}

#[tokio::test]
async fn files_that_cannot_be_copied_hide_none_behind_them() {
    let two = Two::new(&["000000010000000000000001"]).await;
    for n in 1..=FAILURES + 4 {
        two.from.put(&format!("0000000100000000000000{n:02X}"), 1).await;
    }
    let (left, ended_early) = two.compare().await;
    assert!(ended_early && left.starts_with("16 files cannot be copied: 000000010000000000000001"), "{left}");
    let (left, ended_early) = two.compare().await;
    assert!(
        !ended_early && left.starts_with("20 files cannot be copied: 000000010000000000000001"),
        "{left}"
    );
    // And all over again.
    let (left, ended_early) = two.compare().await;
    assert!(ended_early && left.starts_with("16 files cannot be copied"), "{left}");
}

#[tokio::test]
async fn an_old_timeline_of_another_server_keeps_no_later_one_back() {
    let two = Two::with_another_server().await;
    let (left, ended_early) = two.compare().await;
    assert!(left.contains("2 files cannot be copied: 000000030000000000000002"), "{left}");
    assert!(left.contains("split brain") && !ended_early, "{left}");
    assert_eq!(two.refused(), [1]);

    // But one that began behind the difference.
    two.from.put("000000020000000000000003", 1).await;
    let (left, _) = two.compare().await;
    assert!(left.contains("2 files cannot be copied"), "{left}");
    assert_eq!(two.refused(), [1, 2]);
}

#[tokio::test]
async fn a_comparison_that_goes_on_knows_of_another_server_before_that() {
    let mut two = Two::with_another_server().await;
    for n in 4..=FAILURES + 2 {
        two.from.put(&format!("0000000300000000000000{n:02X}"), 1).await;
    }
    let begins = [
        ("000000040000000000000003", "000000010000000000000003"),
        ("000000050000000000000002", "000000010000000000000002"),
    ];
    for (name, begin) in begins {
        let segment: SegmentName = name.parse().unwrap();
        for bed in [&two.from, &two.to] {
            bed.put_history(segment.timeline.get(), switch_in(begin, 0x800)).await;
        }
        two.from.put(name, 1).await;
        two.missed.insert(segment.timeline, segment);
    }
    assert!(two.compare().await.1, "of timeline 3");
    let (left, ended_early) = two.compare().await;
    assert!(left.contains("18 files cannot be copied") && !ended_early, "{left}");
    assert_eq!(two.refused(), [1, 4], "4 began behind the difference");
}

#[tokio::test]
async fn a_scratch_directory_that_cannot_be_written_to_leaves_no_file() {
    let two = Two::new(&["000000010000000000000001"]).await;
    two.from.put("000000010000000000000001", 1).await;
    let (from, to) = (&two.from.archive, &two.to.archive);
    let copy = Copy { uploader: &two.uploader, target: two.target(), source: "from", from, to };
    let name = Handed::of("000000010000000000000001".parse().unwrap());
    // Every write to that is answered as on a full filesystem.
    for scratch in ["/dev/full", "/nowhere/copy"] {
        let error = copy.fetch(name, Path::new(scratch)).await.unwrap_err();
        assert!(!error.permanent && error.text.starts_with(scratch), "{error}");
    }
    let error = copy.store(name, Path::new("/nowhere/copy"), false).await.unwrap_err();
    assert!(!error.permanent && error.text.starts_with("/nowhere/copy"), "{error}");
}

#[tokio::test]
async fn the_next_daemon_begins_where_files_were_left() {
    let two = Two::new(&["000000010000000000000002"]).await;
    for name in ["000000010000000000000002", "000000010000000000000003"] {
        two.from.put(name, 1).await;
    }
    let passed = two.try_to_compare().await.unwrap();
    assert!(passed.left.is_some());
    let target = two.target();
    let (to, wal) = (&two.to.archive, two.uploader.wal_directory());
    target.beside.is_left_from(passed.begin.unwrap());
    let place = complete::place(to.repository().id(), to.lineage());
    complete::note(&wal, &place, target.beside.complete().unwrap()).unwrap();

    // The repository's first file is a younger one, and the next process knows the note only.
    two.to.put("000000010000000000000004", 1).await;
    let next = uploader(&[&two.to, &two.from], &["from"]);
    let kept = Kept::SinceFirst(to.timelines().await.unwrap());
    let unknown = Unknown::of(&next, (&next.targets()[0], to), kept).await.unwrap();
    let ranges = Ranges { missed: Missed::new(), unknown: Some(unknown) };
    let first = ranges.first(to, TimelineId::FIRST).await.unwrap();
    assert_eq!(first.map(|first| first.to_string()).as_deref(), Some("000000010000000000000002"));
}

#[tokio::test]
async fn a_file_that_cannot_be_read_for_long_is_left_like_a_damaged_one() {
    let two = Two::new(&["000000010000000000000001"]).await;
    for n in 1..=3 {
        two.from.put(&format!("00000001000000000000000{n}"), 1).await;
    }
    two.from.make_unreadable("000000010000000000000001");
    for _ in 0..3 {
        let problem = two.try_to_compare().await.unwrap_err().to_string();
        assert!(problem.starts_with("000000010000000000000001: "), "{problem}");
    }
    unreadable::age(&two.from.archive);
    let (left, ended_early) = two.compare().await;
    assert!(
        left.starts_with("3 files cannot be copied: 000000010000000000000001: ") && !ended_early,
        "{left}"
    );
    assert!(left.contains("though the repository answers"), "{left}");
}

#[tokio::test]
async fn the_newest_segment_of_a_repository_keeps_nothing_away_if_it_cannot_be_read_for_long() {
    let two = Two::new(&["000000010000000000000003"]).await;
    for bed in [&two.from, &two.to] {
        bed.put("000000010000000000000001", 1).await;
        bed.put("000000010000000000000002", 1).await;
    }
    two.from.put("000000010000000000000003", 1).await;
    two.to.make_unreadable("000000010000000000000002");
    for _ in 0..3 {
        assert!(two.try_to_compare().await.is_err());
    }
    unreadable::age(&two.to.archive);
    let (left, _) = two.compare().await;
    assert!(left.starts_with("1 files cannot be copied: 000000010000000000000003"), "{left}");
}

#[tokio::test]
async fn of_an_abandoned_timeline_nothing_is_said() {
    let two = Two::with_another_server().await;
    let until = "000000010000000000000003".parse().unwrap();
    two.from.archive.abandon_timeline(AbandonedUntil { until, fork: None }, "old", "dba").await.unwrap();
    let (left, _) = two.compare().await;
    assert!(left.starts_with("2 files cannot be copied") && !left.contains("split brain"), "{left}");
    assert!(two.refused().is_empty());
}

#[tokio::test]
async fn nothing_is_stored_directly_behind_another_servers_wal() {
    let two = Two::with_another_server().await;
    let target = two.target();
    let (from, to) = (&two.from.archive, &two.to.archive);
    let copy = Copy { uploader: &two.uploader, target, source: "from", from, to };
    let split = SplitBrain::new(to, TimelineId::FIRST, "it differs".to_owned());
    let newest = Some(TimelineId::FIRST);
    assert!(copy.left_to_others(vec![split.clone()], newest).await.is_err());
    let later = TimelineId::new(2);
    assert_eq!(copy.left_to_others(vec![split.clone()], later).await.unwrap(), Some(split));
}

/// Two sites: each promoted a standby to timeline 2, and one of them went on to timeline 3.
#[tokio::test]
async fn a_history_that_descends_from_another_servers_timeline_is_refused_and_not_copied() {
    let two =
        Two::new(&["000000020000000000000003", "000000030000000000000006", "000000040000000000000002"]).await;
    let theirs = switch_in("000000010000000000000004", 0x800);
    two.to.put_history(2, switch_in("000000010000000000000003", 0x800)).await;
    two.from.put_history(2, theirs.clone()).await;
    two.from.put_history(3, [theirs, switch_in("000000020000000000000006", 0x800)].concat()).await;
    two.from.put("000000020000000000000005", 1).await;
    two.from.put("000000030000000000000006", 1).await;
    // Production's own next one is tried.
    two.from.put_history(4, switch_in("000000010000000000000002", 0x800)).await;
    two.from.put("000000040000000000000002", 1).await;
    let (left, ended_early) = two.compare().await;
    assert!(left.contains("2 files cannot be copied: 00000004.history") && !ended_early, "{left}");
    assert_eq!(two.refused(), [2, 3]);
    let listed = two.to.archive.all_histories().await.unwrap();
    let refused: Vec<u32> = listed.refused.iter().map(|(timeline, _)| timeline.get()).collect();
    assert_eq!((listed.stored.len(), refused), (1, vec![2, 3]));
}
