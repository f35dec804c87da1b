//! What shows that there is more, in a repository in a directory.

use bytes::Bytes;
use walpoint_base::SegmentNo;
use walpoint_base::facts::HistoryHash;
use walpoint_repo::wal::slices::SliceFacts;
use walpoint_runtime::args::Selection;
use walpoint_runtime::config::ClusterSettings;
use walpoint_storage::object::ContentHash;
use walpoint_storage::store::StoreSettings;

use super::*;
use crate::wal::testing::{RECORD, archive, records, segment, size};

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

/// A repository with a cluster, in a directory.
struct Bed {
    dir: tempfile::TempDir,
    settings: StoreSettings,
    wal: WalArchive,
}

impl Bed {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = StoreSettings::at(dir.path().to_str().unwrap());
        let wal = archive(&settings).await;
        Self { dir, settings, wal }
    }

    /// Stores the only slice of a segment.
    async fn stream(&self, segment: SegmentName, content: &[u8]) {
        self.wal.delete_slices(segment, &self.wal.slices(segment).await.unwrap()).await.unwrap();
        let facts = SliceFacts {
            segment,
            start: segment.number(size()).unwrap().start(size()),
            before: ContentHash(*self.wal.content_hasher().finalize().as_bytes()),
            history: HistoryHash::NONE,
            received: jiff::Timestamp::UNIX_EPOCH,
        };
        self.wal.put_slice(&facts, 1, Bytes::copy_from_slice(content)).await.unwrap();
    }

    /// Damages the first object that is listed of a segment.
    async fn damage(&self, segment: SegmentName) {
        let (_, object) = self.wal.list(segment.timeline, Some(segment)).try_next().await.unwrap().unwrap();
        let path = self.dir.path().join(object.key.as_str());
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 20;
        bytes[last] ^= 1;
        walpoint_base::durable::replace(&path, &bytes, 0o600).unwrap();
    }

    fn missing(&self) -> Missing<'_> {
        Missing { name: "main", wal: self.wal.clone() }
    }
}

/// A stream begins with the first segment of a timeline, whose beginning is the parent's.
#[tokio::test]
async fn what_was_streamed_of_a_timeline_up_to_where_it_begins_is_nothing_of_it() {
    let bed = Bed::new().await;
    let (name, fork) = (segment(2, 5), SegmentNo(5).start(size()) + 40 + RECORD as u64);
    let (shown, missing) = (async || wal_behind(&bed.wal, name, fork).await.unwrap(), bed.missing());
    let beyond = async || is_copied_beyond(&[&missing], name, fork).await;
    assert_eq!(shown().await, WalBehind::None);

    bed.stream(name, &records(name, 1)).await;
    assert_eq!(shown().await, WalBehind::Slices);
    assert!(!beyond().await.unwrap(), "no record of its own is there");
    bed.damage(name).await;
    assert!(!beyond().await.unwrap(), "the damaged slice ends where the parent's bytes end");

    bed.stream(name, &records(name, 2)).await;
    assert!(beyond().await.unwrap(), "a record of its own is there");
    bed.damage(name).await;
    assert!(beyond().await.is_err(), "the damaged slice may hold one");

    bed.stream(segment(2, 6), &[0; 4096]).await;
    assert_eq!(shown().await, WalBehind::Some, "segment 5 was finished before");
}

/// As a plan reads it: one repository's damage is no reason where another one has the same, sound.
#[tokio::test]
async fn a_damaged_slice_is_no_doubt_where_another_repository_has_it_sound() {
    let (one, other) = (Bed::new().await, Bed::new().await);
    let (name, fork) = (segment(2, 5), SegmentNo(5).start(size()) + 40 + RECORD as u64);
    for bed in [&one, &other] {
        bed.stream(name, &records(name, 2)).await;
    }
    one.damage(name).await;
    let (damaged, sound) = (one.missing(), other.missing());
    assert!(is_copied_beyond(&[&damaged], name, fork).await.is_err());
    for proven in [[&damaged, &sound], [&sound, &damaged]] {
        assert!(is_copied_beyond(&proven, name, fork).await.unwrap());
        assert!(!is_copied_beyond(&proven, name, fork + RECORD as u64).await.unwrap());
    }
}

/// After a failover the promoted server has what counts of the old timeline's last segment: what is left of that may be damaged.
#[tokio::test]
async fn a_damaged_copy_of_what_a_younger_timeline_has_whole_is_no_doubt() {
    let bed = Bed::new().await;
    let (name, heir) = (segment(1, 5), segment(2, 5));
    let mut content = records(name, 1);
    content.resize(size().as_usize(), 0);
    bed.wal.put_file(WalFileName::Partial(name), content).await.unwrap();
    bed.damage(name).await;
    let (cluster, repositories) = ("main".parse().unwrap(), vec![("main".to_owned(), bed.settings.clone())]);
    let settings = ClusterSettings::with_repositories(vec!["main".to_owned()]);
    let selection = Selection { cluster, settings, repositories, chosen: false, config: None };
    let archive = ClusterArchive::new(selection, None);
    let judged = async || {
        let (opened, failures) = archive.open_all().await;
        absence(&archive, WalFileName::Segment(name), &opened, failures).await
    };
    assert!(matches!(judged().await, FetchResult::Uncertain(_)), "it may hold more");

    let fork = SegmentNo(5).start(size()) + 40 + RECORD as u64;
    let history = format!("1\t{fork}\tno recovery target specified\n").into_bytes();
    bed.wal.put_file(WalFileName::History(heir.timeline), history).await.unwrap();
    assert!(matches!(judged().await, FetchResult::Uncertain(_)), "the younger timeline has nothing of it");
    // That it is there is all that is looked at.
    let path = bed.dir.path().join(bed.wal.paths().segment(heir).as_str());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    walpoint_base::durable::replace(&path, b"whole", 0o600).unwrap();
    let absent = judged().await;
    assert!(matches!(absent, FetchResult::Absent(_)), "{absent:?}");

    // Of what was streamed its server may have written more.
    bed.stream(name, &records(name, 2)).await;
    assert!(matches!(judged().await, FetchResult::Uncertain(_)));
}
