//! Two archives with keys of their own or without, sound and damaged.

use std::os::unix::fs::FileExt;

use bytes::Bytes;
use walpoint_base::{SegmentName, SegmentSize, TimelineHistory, TimelineId, WalFileName};
use walpoint_storage::layout::Key;
use walpoint_storage::object::MasterKey;

use super::segments::contradicting;
use super::*;
use crate::wal::tests::{Bed, bed, facts_of_size, segment};
use crate::wal::{WalArchive, WalFlags};

fn size() -> SegmentSize {
    SegmentSize::new(2 << 20).unwrap()
}

fn name(n: u64) -> SegmentName {
    walpoint_base::SegmentNo(n).name(TimelineId::FIRST, size())
}

async fn pairs() -> Vec<[Bed; 2]> {
    let keys = [[None, None], [None, Some(5)], [Some(5), Some(6)]];
    let mut pairs = Vec::new();
    for [one, other] in keys.map(|pair| pair.map(|key| key.map(|key| MasterKey::new([key; 32])))) {
        pairs.push([bed(size(), one).await, bed(size(), other).await]);
    }
    pairs
}

async fn store(archive: &WalArchive, n: u64, seed: u8) {
    let facts = facts_of_size(&name(n).to_string(), true, size());
    archive.put_segment(&facts, segment(size(), seed), WalFlags::default()).await.unwrap();
}

/// Stores a copy whose records end there.
async fn end(archive: &WalArchive, n: u64, length: u64, seed: u8) -> Key {
    let before = archive.ended(name(n)).await.unwrap();
    let mut facts = facts_of_size(&name(n).to_string(), false, size());
    facts.end = name(n).number(size()).unwrap().start(size()) + length;
    archive.put_segment(&facts, segment(size(), seed), WalFlags::default()).await.unwrap();
    let after = archive.ended(name(n)).await.unwrap();
    let (lsn, hash) = after.into_iter().find(|copy| !before.contains(copy)).unwrap();
    archive.paths().ended(name(n), lsn, hash)
}

/// Writes other bytes into an object, so far before its end.
fn damage(bed: &Bed, key: &Key, before_end: Option<u64>) {
    let path = bed.dir.path().join(key.as_str());
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let at = before_end.map_or(0, |bytes| file.metadata().unwrap().len() - bytes);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[tokio::test]
async fn the_newest_segment_that_both_have_decides_and_older_ones_behind_damage() {
    for [one, other] in pairs().await {
        for n in 3..=5 {
            store(&one.archive, n, 1).await;
        }
        for n in 3..=4 {
            store(&other.archive, n, 1).await;
        }
        store(&other.archive, 5, 2).await;
        let newest = async |names: &[SegmentName]| newest(&one.archive, &other.archive, names).await.unwrap();
        let all = older(&one.archive, name(6));
        assert_eq!(all[..3], [name(6), name(5), name(4)]);
        assert!(
            matches!(newest(&all).await, Agreement::Different(what) if what.contains(&name(5).to_string()))
        );
        assert_eq!(newest(&all[2..]).await, Agreement::Same);
        let key = other.archive.paths().segment(name(5));
        damage(&other, &key, None);
        assert_eq!(newest(&all).await, Agreement::Same, "an older one shows it");
        assert!(matches!(newest(&[name(7)]).await, Agreement::Unknown(_)));
    }
}

#[tokio::test]
async fn copies_agree_as_far_as_both_go() {
    for [one, other] in pairs().await {
        let compare = async |n| incomplete(&one.archive, &other.archive, name(n), None).await.unwrap();
        let is_different = |found: &Agreement| matches!(found, Agreement::Different(_));
        assert_eq!(compare(3).await, Agreement::Same, "there is none");
        // An incomplete copy here, the whole segment there.
        end(&one.archive, 3, 9_000, 1).await;
        store(&other.archive, 3, 1).await;
        assert_eq!(compare(3).await, Agreement::Same);
        end(&one.archive, 4, 9_000, 1).await;
        store(&other.archive, 4, 2).await;
        assert!(is_different(&compare(4).await));
        // A damaged one is known by its name, where the other one holds more.
        let short = end(&one.archive, 5, 9_000, 1).await;
        end(&other.archive, 5, 20_000, 1).await;
        damage(&one, &short, Some(40));
        assert_eq!(compare(5).await, Agreement::Same);
        let short = end(&one.archive, 6, 9_000, 1).await;
        end(&other.archive, 6, 20_000, 2).await;
        damage(&one, &short, Some(40));
        assert!(is_different(&compare(6).await));
        // Else by what can be read of it.
        let long = end(&one.archive, 7, 1_500_000, 1).await;
        end(&other.archive, 7, 9_000, 1).await;
        damage(&one, &long, Some(40));
        assert_eq!(compare(7).await, Agreement::Same);
        let long = end(&one.archive, 8, 1_500_000, 1).await;
        end(&other.archive, 8, 9_000, 2).await;
        damage(&one, &long, Some(40));
        assert!(is_different(&compare(8).await));
    }
}

#[tokio::test]
async fn a_damaged_copy_that_is_another_servers_takes_its_neighbor_along() {
    for [one, _] in pairs().await {
        let short = end(&one.archive, 3, 9_000, 1).await;
        end(&one.archive, 3, 20_000, 2).await;
        assert_eq!(one.archive.contradicting_copies(name(3)).await.unwrap().len(), 2);
        damage(&one, &short, Some(40));
        assert_eq!(one.archive.contradicting_copies(name(3)).await.unwrap().len(), 2);
        assert!(one.archive.read_incomplete(name(3)).await.is_err());
        // Of one server the longer one holds what the damaged one held.
        let short = end(&one.archive, 4, 9_000, 1).await;
        end(&one.archive, 4, 20_000, 1).await;
        damage(&one, &short, Some(40));
        assert!(one.archive.read_incomplete(name(4)).await.unwrap().is_some());
    }
}

/// One repository has a copy of each of two servers, the other one lags behind and has only one of the two.
#[tokio::test]
async fn a_repository_without_one_of_two_contradicting_copies_does_not_decide() {
    for [one, other] in pairs().await {
        let compare = async || {
            let both = [(&one, &other), (&other, &one)].map(|(one, other)| (&one.archive, &other.archive));
            let mut found = Vec::new();
            for (one, other) in both {
                found.push(contradicting(one, other, name(3)).await.unwrap().len());
            }
            (found[0], found[1])
        };
        end(&one.archive, 3, 9_000, 2).await;
        end(&other.archive, 3, 20_000, 2).await;
        assert_eq!(compare().await, (0, 0));
        end(&one.archive, 3, 9_000, 1).await;
        assert_eq!(compare().await, (3, 3));
        store(&other.archive, 3, 2).await;
        assert_eq!(compare().await, (0, 0), "a whole segment decides");
    }
}

#[tokio::test]
async fn a_timeline_that_begins_elsewhere_differs() {
    let second = TimelineId::new(2).unwrap();
    let history = |at: &str| format!("1\t{at}\tno recovery target specified\n");
    for [one, other] in pairs().await {
        let compare = async || of_histories(&one.archive, &other.archive, second).await.unwrap();
        let put = async |bed: &Bed, at| {
            let content = Bytes::from(history(at));
            bed.archive.put_file(WalFileName::History(second), content).await.unwrap();
        };
        put(&one, "0/600000").await;
        assert!(matches!(compare().await, Agreement::Unknown(_)));
        put(&other, "0/600028").await;
        assert!(matches!(compare().await, Agreement::Different(what) if what.contains("0/600028")));
    }
    let known = begins_on(&TimelineHistory::parse(second, history("0/600000").as_bytes()).unwrap());
    assert_eq!(known.len(), 2);
    assert!(begins_on(&TimelineHistory::root(second)).is_empty(), "its history is lost");
}
