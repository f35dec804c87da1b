//! What is stored already and offered once more.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use walpoint_base::facts::RestorePoint;
use walpoint_base::{Lsn, SegmentFacts, TimelineId, WalFileName};
use walpoint_storage::error::{Remedy, RepoError, Result};
use walpoint_storage::layout::Key;

use super::{Bed, NAME, beds, facts_of_size, segment};
use crate::wal::*;

/// All files below a directory.
fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { BTreeSet::from([path]) }).collect()
}

/// Stores something twice: with each of its objects damaged in between, where it is as sound as before, and then undamaged.
async fn is_read_again(bed: &Bed, what: &str, put: impl AsyncFn() -> Result<()>) {
    let before = files(bed.dir.path());
    put().await.unwrap();
    let made: Vec<PathBuf> = files(bed.dir.path()).difference(&before).cloned().collect();
    assert!(!made.is_empty(), "{what}");
    for path in made {
        let sound = std::fs::read(&path).unwrap();
        let mut damaged = sound.clone();
        *damaged.last_mut().unwrap() ^= 1;
        walpoint_base::durable::replace(&path, &damaged, 0o600).unwrap();
        let key: Key = path.strip_prefix(bed.dir.path()).unwrap().to_str().unwrap().parse().unwrap();
        let says = |error: RepoError| {
            let says = matches!(&error, RepoError::Corrupt { remedy: Some(Remedy::MoveAway), .. });
            assert!(says, "{what}, {key}: {error}");
        };
        match put().await {
            // It only helps to find a name.
            Ok(()) => assert!(key.as_str().contains("/points/"), "{what}, {key}"),
            Err(error) => says(error),
        }
        says(bed.archive.can_be_read(&key).await.unwrap_err());
        walpoint_base::durable::replace(&path, &sound, 0o600).unwrap();
        put().await.unwrap();
        assert!(bed.archive.can_be_read(&key).await.unwrap(), "{what}, {key}");
    }
}

/// Promise 1: the header of a damaged object says what it should hold. It does not count as stored for that, whatever it is of.
#[tokio::test]
async fn what_is_there_damaged_does_not_count_as_stored() {
    for bed in beds(1).await {
        let archive = &bed.archive;
        let size = archive.lineage().segment_size;
        let ended = facts_of_size(NAME, false, size);
        let put_ended = async |facts: &SegmentFacts, seed| {
            archive.put_segment(facts, segment(size, seed), WalFlags::default()).await.map(drop)
        };
        is_read_again(&bed, "ended, with a restore point", async || put_ended(&ended, 1).await).await;

        let first = ended.restore_points[0].clone();
        let point = |n: u64| RestorePoint { lsn: Lsn(first.lsn.0 + 8 * n), ..first.clone() };
        let many = SegmentFacts { restore_points: (1..9).map(point).collect(), ..ended.clone() };
        is_read_again(&bed, "ended, with many", async || put_ended(&many, 2).await).await;

        let partial = WalFileName::Partial(ended.name);
        let put_partial = async || archive.put_file(partial, segment(size, 3)).await.map(drop);
        // Copies that contradict each other prevent nothing.
        archive.put_file(partial, segment(size, 4)).await.unwrap();
        is_read_again(&bed, "partial", put_partial).await;

        let history = b"1\t0/4000000\tno recovery target specified\n".to_vec();
        let two = TimelineId::new(2).unwrap();
        let refuse = async || archive.put_refused_history(two, history.clone()).await.map(drop);
        is_read_again(&bed, "a refused history", refuse).await;
    }
}

#[tokio::test]
async fn an_object_of_no_known_kind_counts_as_damaged_as_long_as_it_is_there() {
    for bed in beds(1).await {
        let key = bed.archive.paths().gap(facts_of_size(NAME, true, bed.archive.lineage().segment_size).name);
        assert!(!bed.archive.can_be_read(&key).await.unwrap());
        let path = bed.dir.path().join(key.as_str());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        walpoint_base::durable::replace(&path, b"of a later version", 0o600).unwrap();
        assert!(matches!(bed.archive.can_be_read(&key).await, Err(RepoError::Corrupt { .. })));
    }
}
