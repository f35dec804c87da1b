//! Comparisons of two repositories. No file can be stored here, because there is no `pg_control`: what is tried shows by that.

use walpoint_storage::layout::AbandonedUntil;

use super::super::super::fixtures::{Bed, switch_in, uploader};
use super::*;
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

    async fn compare(&self) -> (String, bool) {
        let (target, mut copied) = (self.target(), 0);
        let (from, to) = (&self.from.archive, &self.to.archive);
        let copy = Copy { uploader: &self.uploader, target, source: "from", from, to };
        let passed = copy.missing(&Ranges::Missed(self.missed.clone()), &mut copied).await.unwrap();
        assert_eq!(copied, 0);
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
