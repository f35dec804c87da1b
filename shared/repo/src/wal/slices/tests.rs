//! Slices in a store, plain and encrypted.

use walpoint_base::facts::HistoryHash;
use walpoint_base::{SegmentSize, WalFileName};
use walpoint_storage::object::{ContentHash, MasterKey};
use walpoint_storage::store::crashing::CrashingStore;

use super::super::WalCopies;
use super::super::prefix::PrefixComparison;
use super::super::tests::{Bed, bed, segment};
use super::*;
use crate::repository::Repository;

const NAME: &str = "000000010000000000000003";
const START: Lsn = Lsn(0x30_0000);

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

async fn beds() -> Vec<Bed> {
    vec![bed(size(), None).await, bed(size(), Some(MasterKey::new([5; 32]))).await]
}

fn hash(archive: &WalArchive, bytes: &[u8]) -> ContentHash {
    ContentHash(*archive.content_hasher().update(bytes).finalize().as_bytes())
}

async fn put(archive: &WalArchive, of: &[u8], (from, to): (usize, usize), session: u32) -> Result<Creation> {
    let facts = SliceFacts {
        segment: NAME.parse().unwrap(),
        start: START + from as u64,
        before: hash(archive, &of[..from]),
        history: HistoryHash([3; 16]),
        received: "2026-11-21T10:00:00Z".parse().unwrap(),
    };
    archive.put_slice(&facts, session, Bytes::copy_from_slice(&of[from..to])).await
}

fn path(bed: &Bed, archive: &WalArchive, name: SliceName) -> std::path::PathBuf {
    bed.dir.path().join(archive.slice_key(NAME.parse().unwrap(), name).as_str())
}

/// Damages a slice.
fn damage(bed: &Bed, name: SliceName) {
    let file = path(bed, &bed.archive, name);
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 20;
    bytes[last] ^= 1;
    walpoint_base::durable::replace(&file, &bytes, 0o600).unwrap();
}

/// Up to where the slices go, the hash of that, and what is wrong with them.
async fn beginning(archive: &WalArchive) -> (Lsn, ContentHash, String) {
    let read = archive.sliced_beginning(NAME.parse().unwrap(), Lsn(u64::MAX)).await.unwrap();
    let (beginning, hash) = read.unwrap();
    (beginning.end, hash, beginning.fault.map(|fault| fault.to_string()).unwrap_or_default())
}

#[tokio::test]
async fn a_segments_beginning_comes_back_from_its_slices() {
    for bed in beds().await {
        let (archive, content, name) = (&bed.archive, segment(size(), 1), NAME.parse().unwrap());
        assert!(archive.assemble(name).await.unwrap().is_none());
        assert_eq!(put(archive, &content, (0, 5000), 1).await.unwrap(), Creation::New);
        assert_eq!(put(archive, &content, (0, 5000), 1).await.unwrap(), Creation::Same);
        put(archive, &content, (5000, 70_000), 1).await.unwrap();
        // Another run of the stream begins where the first one was proven to be, and a slice of it is missing.
        put(archive, &content, (5000, 90_000), 2).await.unwrap();
        put(archive, &content, (100_000, 120_000), 2).await.unwrap();
        assert_eq!(
            beginning(archive).await,
            (START + 90_000, hash(archive, &content[..90_000]), String::new())
        );
        let (before, of) = archive.sliced_beginning(name, START + 60_000).await.unwrap().unwrap();
        assert_eq!((before.end, of), (START + 60_000, hash(archive, &content[..60_000])));
        let (header, _) = archive.slice(name, archive.slices(name).await.unwrap()[0]).await.unwrap().unwrap();
        assert_eq!(header.facts.history, HistoryHash([3; 16]));

        // A copy of the segment like a `.partial` file: of its length, with zeros behind its end.
        assert_eq!(archive.streamed_until(name).await.unwrap(), Some(START + 90_000));
        let copy = archive.get_incomplete(name).await.unwrap().unwrap();
        assert!(copy.header.is_none() && copy.content.len() == content.len());
        assert!(
            copy.content[..90_000] == content[..90_000] && copy.content[90_000..].iter().all(|b| *b == 0)
        );
        assert!(
            archive.is_streamed(name).await.unwrap()
                && archive.get(WalFileName::Segment(name)).await.unwrap().is_none()
        );

        let slices = archive.slices(name).await.unwrap();
        assert_eq!(slices.len(), 4);
        archive.delete_slices(name, &slices).await.unwrap();
        assert!(
            archive.slices(name).await.unwrap().is_empty() && archive.assemble(name).await.unwrap().is_none()
        );
    }
}

/// A listing that began before one slice was put in the place of others, and ended after these were deleted, shows neither.
#[tokio::test]
async fn slices_that_a_listing_lacks_are_found() {
    for bed in beds().await {
        let (archive, name): (_, SegmentName) = (&bed.archive, NAME.parse().unwrap());
        let content = segment(size(), 1);
        let read = async |reader: AssembledSegment| {
            let (hasher, read) = reader.write_until(Lsn(u64::MAX), archive.content_hasher()).await.unwrap();
            assert!(read.fault.is_none() && read.taken.is_sorted());
            (read.end, ContentHash(*hasher.finalize().as_bytes()))
        };
        put(archive, &content, (0, 1000), 1).await.unwrap();
        put(archive, &content, (1000, 2000), 1).await.unwrap();
        // It follows them, begins within the last one, and takes the place of all.
        for (from, to) in [(2000, 3000), (2500, 4000), (0, 6000)] {
            let listed = archive.slices(name).await.unwrap();
            let reader = AssembledSegment::new(archive, name, START, listed);
            put(archive, &content, (from, to), 2).await.unwrap();
            assert_eq!(read(reader).await, (START + to as u64, hash(archive, &content[..to])));
        }
        put(archive, &content, (8000, 9000), 1).await.unwrap();
        let listed = archive.slices(name).await.unwrap();
        let reader = AssembledSegment::new(archive, name, START, listed);
        put(archive, &content, (5000, 8000), 2).await.unwrap();
        assert_eq!(read(reader).await.0, START + 9000, "nor is that the end");
    }
}

/// The writer puts one slice in the place of many while another process reads them.
#[tokio::test]
async fn slices_that_are_replaced_while_they_are_read_are_read_once() {
    for bed in beds().await {
        let (archive, name): (_, SegmentName) = (&bed.archive, NAME.parse().unwrap());
        let (ours, theirs) = (segment(size(), 1), segment(size(), 2));
        let store = async |of: &[u8], session| {
            for n in 0..40 {
                put(archive, of, (n * 20_000, (n + 1) * 20_000), session).await.unwrap();
            }
        };
        let replace = async |of: &[u8], session| {
            archive.delete_slices(name, &archive.slices(name).await.unwrap()).await.unwrap();
            for range in [(0, 400_000), (400_000, 820_000)] {
                put(archive, of, range, session).await.unwrap();
            }
        };
        for pieces in [0, 1, 9, 30] {
            store(&ours, 1).await;
            let mut reader = archive.assemble(name).await.unwrap().unwrap();
            let mut read = Vec::new();
            for _ in 0..pieces {
                read.extend_from_slice(&reader.next_piece().await.unwrap().unwrap());
            }
            replace(&ours, 1).await;
            while let Some(piece) = reader.next_piece().await.unwrap() {
                read.extend_from_slice(&piece);
            }
            assert!(read == ours && reader.is_done(), "{pieces}");

            // Another server's slices do not continue what was read, and none are no end.
            archive.delete_slices(name, &archive.slices(name).await.unwrap()).await.unwrap();
            store(&ours, 1).await;
            let mut reader = archive.assemble(name).await.unwrap().unwrap();
            for _ in 0..pieces {
                reader.next_piece().await.unwrap().unwrap();
            }
            if pieces > 0 {
                replace(&theirs, 1).await;
            } else {
                archive.delete_slices(name, &archive.slices(name).await.unwrap()).await.unwrap();
            }
            let ended = async {
                while reader.next_piece().await?.is_some() {}
                Ok::<(), RepoError>(())
            };
            let ended = ended.await;
            assert!(matches!(ended, Err(RepoError::Unavailable { .. })), "{pieces}: {ended:?}");
            archive.delete_slices(name, &archive.slices(name).await.unwrap()).await.unwrap();
        }
    }
}

/// Slices are deleted only when the one that takes their place is there, with all their bytes.
#[tokio::test]
async fn slices_stay_until_the_one_in_their_place_is_read_back() {
    for bed in beds().await {
        let (archive, name): (_, SegmentName) = (&bed.archive, NAME.parse().unwrap());
        let (ours, theirs) = (segment(size(), 1), segment(size(), 2));
        for range in [(0, 1000), (1000, 2000), (2000, 3000)] {
            put(archive, &ours, range, 1).await.unwrap();
        }
        let listed = archive.slices(name).await.unwrap();
        let merged = SliceName { start: START + 1000, end: START + 3000, session: 1 };
        let sent = (hash(archive, &ours[..1000]), Bytes::copy_from_slice(&ours[1000..3000]));
        let replace = async || archive.replace_slices(name, merged, (&sent.0, &sent.1), &listed[1..]).await;
        assert!(!replace().await.unwrap(), "it is not there");
        put(archive, &theirs, (1000, 3000), 1).await.unwrap();
        assert!(!replace().await.unwrap(), "another daemon took that name for other bytes");
        archive.delete_slices(name, &[merged]).await.unwrap();
        put(archive, &ours, (1000, 3000), 1).await.unwrap();
        let file = path(&bed, archive, merged);
        let sound = std::fs::read(&file).unwrap();
        damage(&bed, merged);
        assert!(matches!(replace().await, Err(RepoError::Corrupt { .. })));
        assert!(listed.iter().all(|slice| path(&bed, archive, *slice).exists()), "nothing was deleted");

        walpoint_base::durable::replace(&file, &sound, 0o600).unwrap();
        assert!(replace().await.unwrap() && replace().await.unwrap(), "once more after a crash in between");
        assert_eq!(archive.slices(name).await.unwrap(), [listed[0], merged]);
        assert_eq!(beginning(archive).await, (START + 3000, hash(archive, &ours[..3000]), String::new()));
    }
}

/// Two repositories were not cut alike: in one of them the slices were put together, in the other one they were not, or not yet.
#[tokio::test]
async fn a_damaged_slice_hides_nothing_that_another_repository_has_in_other_slices() {
    let (one, other) = (bed(size(), None).await, bed(size(), Some(MasterKey::new([5; 32]))).await);
    let (content, name) = (segment(size(), 1), NAME.parse().unwrap());
    let slice = |from, to| SliceName { start: START + from, end: START + to, session: 1 };
    let small = [(0, 2000), (2000, 5000), (5000, 6000)];
    for range in small {
        put(&one.archive, &content, range, 1).await.unwrap();
    }
    put(&other.archive, &content, (0, 6000), 1).await.unwrap();
    for bed in [&one, &other] {
        put(&bed.archive, &content, (6000, 7000), 1).await.unwrap();
    }
    for (bed, damaged) in [(&one, slice(2000, 5000)), (&other, slice(0, 6000))] {
        let file = path(bed, &bed.archive, damaged);
        let sound = std::fs::read(&file).unwrap();
        damage(bed, damaged);
        for (first, second) in [(&one, &other), (&other, &one)] {
            let joined = first.archive.joined(vec![second.archive.clone()]);
            assert!(joined.get_incomplete(name).await.unwrap().unwrap().content[..7000] == content[..7000]);
            assert_eq!(joined.damaged_copy_beyond(name, Some(START + 6900)).await.unwrap(), None);
        }
        walpoint_base::durable::replace(&file, &sound, 0o600).unwrap();
    }

    // Another session's slices are no proof: they may be another server's.
    damage(&one, slice(2000, 5000));
    other.archive.delete_slices(name, &[slice(0, 6000)]).await.unwrap();
    put(&other.archive, &content, (0, 6000), 2).await.unwrap();
    let joined = one.archive.joined(vec![other.archive.clone()]);
    assert!(joined.damaged_copy_beyond(name, Some(START + 5900)).await.unwrap().is_some());

    // A slice that was put in the place of a damaged one hides nothing, and the other way round.
    put(&one.archive, &content, (0, 6000), 1).await.unwrap();
    assert_eq!(
        beginning(&one.archive).await,
        (START + 7000, hash(&one.archive, &content[..7000]), String::new())
    );
    for range in small {
        put(&other.archive, &content, range, 2).await.unwrap();
    }
    damage(&other, SliceName { session: 2, ..slice(0, 6000) });
    assert_eq!(
        beginning(&other.archive).await,
        (START + 7000, hash(&other.archive, &content[..7000]), String::new())
    );
}

#[tokio::test]
async fn another_servers_and_damaged_slices_end_what_is_believed() {
    for bed in beds().await {
        let (archive, name) = (&bed.archive, NAME.parse().unwrap());
        let (ours, theirs) = (segment(size(), 1), segment(size(), 2));
        let fault = async || {
            let (end, _, fault) = beginning(archive).await;
            (end, fault)
        };
        put(archive, &ours, (0, 5000), 1).await.unwrap();
        put(archive, &ours, (5000, 6000), 1).await.unwrap();
        put(archive, &theirs, (6000, 7000), 2).await.unwrap();
        let (end, what) = fault().await;
        assert!(end == START + 6000 && what.contains("-00000002") && what.contains("two servers"), "{what}");
        let beyond = async |until: u64| archive.damaged_copy_beyond(name, Some(START + until)).await.unwrap();
        assert!(beyond(6000).await.is_some(), "there may be more");
        let copy = archive.get_incomplete(name).await.unwrap().unwrap().content;
        assert!(copy[..6000] == ours[..6000] && copy[6000..].iter().all(|byte| *byte == 0));
        archive.delete_slices(name, &archive.slices(name).await.unwrap()[2..]).await.unwrap();
        assert_eq!((fault().await, beyond(6000).await), ((START + 6000, String::new()), None));

        let damaged = SliceName { start: START + 5000, end: START + 6000, session: 1 };
        damage(&bed, damaged);
        assert!(matches!(archive.slice(name, damaged).await, Err(RepoError::Corrupt { .. })));
        let (end, what) = fault().await;
        assert!(end == START + 5000 && what.contains("-00000001"), "{what}");
        // What comes before it is sound.
        let copy = archive.get_incomplete(name).await.unwrap().unwrap().content;
        assert!(copy[..5000] == ours[..5000] && copy[5000..].iter().all(|byte| *byte == 0));
        assert!(beyond(5900).await.is_some());
        assert_eq!(beyond(6000).await, None, "the damaged one ends there");
        assert_eq!(archive.streamed_until(name).await.unwrap(), Some(START + 5000));
        // Another run of the stream holds the same.
        put(archive, &ours, (5000, 7000), 3).await.unwrap();
        assert_eq!(fault().await, (START + 7000, String::new()));
    }
}

fn sound_beginning(content: &[u8]) -> ContentHash {
    ContentHash(*blake3::hash(content).as_bytes())
}

/// Promise 10: one of two repositories has a damaged slice, and the other one all of them.
#[tokio::test]
async fn a_damaged_slice_hides_nothing_that_another_repository_has() {
    let master = Some(MasterKey::new([5; 32]));
    let (one, other) = (bed(size(), None).await, bed(size(), master).await);
    let (content, name) = (segment(size(), 1), NAME.parse().unwrap());
    for bed in [&one, &other] {
        for range in [(0, 5000), (5000, 6000), (6000, 7000)] {
            put(&bed.archive, &content, range, 1).await.unwrap();
        }
    }
    // The last record ends before the last slice does.
    let until = Some(START + 6900);
    for start in [0, 5000, 6000] {
        let range = SliceName {
            start: START + start,
            end: START + if start == 0 { 5000 } else { start + 1000 },
            session: 1,
        };
        let file = path(&one, &one.archive, range);
        let sound = std::fs::read(&file).unwrap();
        damage(&one, range);
        for (first, second) in [(&one.archive, &other.archive), (&other.archive, &one.archive)] {
            let joined = first.joined(vec![second.clone()]);
            let copy = joined.get_incomplete(name).await.unwrap().unwrap().content;
            assert!(copy[..7000] == content[..7000]);
            assert_eq!(joined.damaged_copy_beyond(name, until).await.unwrap(), None, "{start}");
            let copies = WalCopies::new(first.clone(), [second.clone()]);
            assert!(copies.get_incomplete(name).await.unwrap().unwrap().content[..7000] == content[..7000]);
            let whole = sound_beginning(&content[..7000]);
            assert_eq!(copies.beginning(WalFileName::Partial(name), 7000).await.unwrap(), Some(whole));
            let named = copies.damaged();
            assert!(matches!(&named[..], [one] if one.contains("-00000001")), "{named:?}");
        }
        let look = async |bed: &Bed| bed.archive.look_into(name, SegmentCopy::Sliced).await.unwrap().unwrap();
        let compared = look(&other).await.compare(&look(&one).await, u64::MAX).await.unwrap();
        assert_eq!(compared, PrefixComparison::Same);
        walpoint_base::durable::replace(&file, &sound, 0o600).unwrap();
    }

    damage(&one, SliceName { start: START + 5000, end: START + 6000, session: 1 });
    let last = SliceName { start: START + 6000, end: START + 7000, session: 1 };
    other.archive.delete_slices(name, &[last]).await.unwrap();
    let joined = one.archive.joined(vec![other.archive.clone()]);
    let beyond = joined.damaged_copy_beyond(name, Some(START + 5900)).await.unwrap();
    assert!(beyond.is_some_and(|what| what.contains("-00000001")), "only the damaged one has more");
}

/// What the first repository has of the open segment is read, though another one fails: only whether that has more is not known.
#[tokio::test]
async fn a_repository_that_fails_hides_nothing_that_the_first_one_has() {
    let (one, other) = (bed(size(), None).await, bed(size(), None).await);
    let (content, name) = (segment(size(), 1), NAME.parse().unwrap());
    put(&one.archive, &content, (0, 5000), 1).await.unwrap();
    let crashing = CrashingStore::new(other.dir.path(), u32::MAX);
    let far = Repository::over("far", crashing.store(), None).await.unwrap().wal(other.archive.lineage());
    let joined = one.archive.joined(vec![far.clone()]);
    let until = Some(START + 5000);
    assert_eq!(joined.damaged_copy_beyond(name, until).await.unwrap(), None);

    assert!(!crashing.has_crashed().await);
    let copy = joined.get_incomplete(name).await.unwrap().unwrap().content;
    assert!(copy[..5000] == content[..5000]);
    assert!(joined.is_streamed(name).await.unwrap() && !joined.has_other_than_slices(name).await.unwrap());
    assert_eq!(joined.streamed_until(name).await.unwrap(), until);
    assert!(joined.contradicting_copies(name).await.unwrap().is_empty());
    let beyond = joined.damaged_copy_beyond(name, until).await.unwrap();
    assert!(beyond.is_some_and(|why| why.contains("\"far\" may have more")));
    let copies = WalCopies::new(one.archive.clone(), [far.clone()]);
    assert!(copies.get_incomplete(name).await.unwrap().unwrap().content == copy);
    let beginning = copies.beginning(WalFileName::Partial(name), 5000).await.unwrap();
    assert_eq!((beginning, copies.damaged()), (Some(sound_beginning(&content[..5000])), Vec::new()));

    let failed = far.joined(vec![one.archive.clone()]).get_incomplete(name).await;
    assert!(matches!(&failed, Err(error) if !matches!(error, RepoError::Corrupt { .. })), "{failed:?}");
}

#[tokio::test]
async fn beside_other_copies_the_one_that_holds_most_is_read() {
    for bed in beds().await {
        let (archive, name) = (&bed.archive, NAME.parse().unwrap());
        let content = segment(size(), 1);
        let mut partial = content[..9000].to_vec();
        partial.resize(content.len(), 0);
        archive.put_file(WalFileName::Partial(name), partial).await.unwrap();
        put(archive, &content, (0, 5000), 1).await.unwrap();
        let filled = async || {
            let copy = archive.get_incomplete(name).await.unwrap().unwrap();
            copy.content.iter().rposition(|byte| *byte != 0).unwrap_or_default() / 1000
        };
        assert_eq!(filled().await, 8);
        assert!(archive.is_streamed(name).await.unwrap(), "a longer copy continues it");
        put(archive, &content, (5000, 20_500), 1).await.unwrap();
        assert_eq!(filled().await, 20);
        assert!(archive.is_streamed(name).await.unwrap());
        put(archive, &segment(size(), 2), (0, 30_000), 0).await.unwrap();
        assert!(matches!(archive.get_incomplete(name).await, Err(RepoError::Corrupt { .. })), "two servers");
    }
}

#[tokio::test]
async fn what_is_no_part_of_its_segment_is_refused() {
    let Bed { archive, .. } = bed(size(), None).await;
    let content = segment(size(), 1);
    assert!(matches!(put(&archive, &content, (7, 7), 1).await, Err(RepoError::Refused { .. })), "nothing");
    let facts = SliceFacts {
        segment: NAME.parse().unwrap(),
        start: START + (1 << 20) - 10,
        before: hash(&archive, &[]),
        history: HistoryHash::NONE,
        received: jiff::Timestamp::UNIX_EPOCH,
    };
    let refused = archive.put_slice(&facts, 1, Bytes::from_static(b"eleven byte")).await;
    assert!(matches!(refused, Err(RepoError::Refused { .. })), "beyond its end: {refused:?}");
}
