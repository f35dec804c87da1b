//! What shows that there is more, in a repository in a directory.

use bytes::Bytes;
use walpoint_base::facts::HistoryHash;
use walpoint_base::{PgMajor, SegmentNo, SystemId};
use walpoint_repo::Repository;
use walpoint_repo::repository::NewLineage;
use walpoint_repo::wal::slices::SliceFacts;
use walpoint_storage::object::ContentHash;
use walpoint_storage::store::StoreSettings;

use super::*;

#[test]
fn what_repo_leaves_out_is_named_there_before_it_is_lost() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
    let lost = "Only if far, old is lost for good";
    let why = not_enough(&names(&["far", "old"]), &names(&["far", "third"]), &[], true);
    assert!(why.starts_with("none of the repositories that --repo names has it, but far, old must"), "{why}");
    let hint = "\nHINT: Add \"--repo far\" to restore_command, or remove --repo there. Only if far, old";
    assert!(why.contains(hint), "{why}");
    let why = not_enough(&names(&["far", "old"]), &[], &[], true);
    assert!(why.contains(&format!("\nHINT: {lost}")) && !why.contains("--repo"), "{why}");
    assert!(!not_enough(&names(&["a repository"]), &[], &[], false).contains("HINT"));
}

/// A stream begins with the first segment of a timeline, whose beginning is the parent's.
#[tokio::test]
async fn what_was_streamed_of_a_timeline_up_to_where_it_begins_is_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings::at(dir.path().to_str().unwrap());
    let repository = Repository::init("main", &settings, None).await.unwrap().repository;
    let size = SegmentSize::new(1 << 20).unwrap();
    let new = NewLineage {
        system_id: SystemId(7),
        major: PgMajor::new(17).unwrap(),
        segment_size: size,
        wal_block_size: 8192,
        block_size: 8192,
        relation_segment_blocks: 131_072,
        ack: vec![],
    };
    let lineage = repository.create_lineage(&"main".parse().unwrap(), new).await.unwrap();
    let (wal, timeline) = (repository.wal(&lineage), TimelineId::new(2).unwrap());
    let name = |number: u64| SegmentNo(number).name(timeline, size);
    let stream = async |segment: SegmentName| {
        let facts = SliceFacts {
            segment,
            start: segment.number(size).unwrap().start(size),
            before: ContentHash(*wal.content_hasher().finalize().as_bytes()),
            history: HistoryHash::NONE,
            received: jiff::Timestamp::UNIX_EPOCH,
        };
        wal.put_slice(&facts, 1, Bytes::from(vec![0; 4096])).await.unwrap();
    };
    let fork = SegmentNo(5).start(size) + 4096;
    assert!(!has_wal_behind(&wal, name(5), fork).await.unwrap());
    stream(name(5)).await;
    assert!(!has_wal_behind(&wal, name(5), fork).await.unwrap(), "no record of its own is there");
    stream(name(6)).await;
    assert!(has_wal_behind(&wal, name(5), fork).await.unwrap(), "segment 5 was finished before");
}
