//! Which segments are read, and which are reported.

use walpoint_plan::restore::testing::world::World;
use walpoint_plan::restore::{Answer, BackupFacts, BackupState, Question};

use super::*;
use crate::backup::{ListedBackup, ListedState};
use crate::index::IndexWriter;
use crate::index::tests::{bed, commit_time};

/// The parts of a range, for people.
fn shape(range: &ScanRange) -> Vec<String> {
    let shape = |part: &ScanPart| match part {
        ScanPart::Whole(files) => format!("{}-{}", files.first.0, files.last.0),
        ScanPart::Missing(files, why) => format!("{why:?} {}-{}", files.first.0, files.last.0),
        ScanPart::Incomplete(part) => format!("incomplete {}", part.number.0),
    };
    range.parts.iter().map(shape).collect()
}

async fn between(bed: &Bed, from: Option<u64>, to: Option<u64>) -> Vec<String> {
    let moments = Moments { from: from.map(commit_time), to: to.map(commit_time) };
    shape(&segments_between(&mut catalog(bed).await, FIRST, moments).await.unwrap())
}

#[tokio::test]
async fn a_moment_in_a_gap_does_not_hide_it() {
    let bed = bed().await;
    bed.store((3..=80).chain(151..=152)).await;
    assert_eq!(between(&bed, None, None).await, ["3-80", "Missing 81-150", "151-152", "incomplete 153"]);
    assert_eq!(
        between(&bed, Some(100), None).await,
        ["80-80", "Missing 81-150", "151-152", "incomplete 153"]
    );
    assert_eq!(between(&bed, None, Some(100)).await, ["3-80", "Missing 81-150", "151-151"]);
    assert_eq!(between(&bed, Some(100), Some(101)).await, ["80-80", "Missing 81-150", "151-151"]);
    // What is read ahead is 64 segments.
    let behind = ["Missing 89-150", "151-152", "incomplete 153"];
    assert_eq!(between(&bed, Some(500), None).await, behind, "later than all");
    assert_eq!(between(&bed, None, Some(1)).await, ["3-3"], "earlier than all");
}

#[tokio::test]
async fn what_was_lost_at_the_end_is_part_of_the_range() {
    let streamed = bed().await;
    streamed.store(3..=5).await;
    stream(&streamed, 7, (0, 100), true).await;
    assert_eq!(between(&streamed, None, None).await, ["3-5", "Missing 6-6", "incomplete 7"]);

    let indexed = bed().await;
    indexed.store(3..=34).await;
    let mut writer = IndexWriter::new(indexed.archive.clone());
    for number in 3..=34 {
        writer.note(name(number), None);
    }
    writer.write_due().await.unwrap();
    delete(&indexed, 34);
    assert_eq!(between(&indexed, None, None).await, ["3-33", "Lost 34-34", "incomplete 35"]);
    assert_eq!(between(&indexed, None, Some(40)).await, ["3-33", "Lost 34-34", "incomplete 35"]);
}

#[tokio::test]
async fn the_first_segment_of_the_backup_is_missing() {
    let (bed, mut world) = (bed().await, World::default());
    bed.store(5..=6).await;
    let id = world.backup(1, 3 * SIZE + 64, 5 * SIZE + 64, 2, 3);
    let state = ListedState::Finished(jiff::Timestamp::UNIX_EPOCH);
    let listed = [ListedBackup { id, begun: None, progress: 0, published: false, state }];
    let backups = Backups::of(bed.archive.repository(), &bed.archive.lineage().cluster);
    let mut catalog = LineageCatalog::load(bed.archive.clone(), &backups, &listed).await.unwrap();
    let facts = BackupFacts { lineage: catalog.id(), ..world.backups[0].clone() };
    catalog.presume(Question::Backup(id), Answer::Backup(BackupState::Complete(Box::new(facts))));
    let range = segments_between(&mut catalog, FIRST, Moments::default()).await.unwrap();
    assert_eq!(range.backup, Some(id));
    assert_eq!(shape(&range), ["Missing 3-4", "5-6", "incomplete 7"]);
}

/// The index has times of transactions alone, and not of those whose record crosses into the next segment.
#[tokio::test]
async fn the_range_extends_to_the_next_transactions() {
    let bed = bed().await;
    let id = bed.archive.lineage().id;
    for number in 3..=100 {
        let transactions = header(id, FIRST, number).transactions.filter(|_| matches!(number, 3 | 100));
        bed.store_header(WalHeader { transactions, ..header(id, FIRST, number) }).await;
    }
    assert_eq!(between(&bed, Some(100), None).await, ["3-100", "incomplete 101"]);
    assert_eq!(between(&bed, None, Some(3)).await, ["3-100"]);
    assert_eq!(between(&bed, None, Some(100)).await, ["3-100", "incomplete 101"], "the tail may have more");
}
