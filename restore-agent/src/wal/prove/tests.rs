//! What shows that there is more, in a repository in a directory.

use bytes::Bytes;
use walpoint_base::facts::HistoryHash;
use walpoint_base::{PgMajor, SegmentNo, SystemId};
use walpoint_pg::wal::magic_of_major;
use walpoint_repo::Repository;
use walpoint_repo::repository::NewLineage;
use walpoint_repo::wal::slices::SliceFacts;
use walpoint_runtime::args::Selection;
use walpoint_runtime::config::ClusterSettings;
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
        let repository = Repository::init("main", &settings, None).await.unwrap().repository;
        let new = NewLineage {
            system_id: SystemId(7),
            major: PgMajor::new(17).unwrap(),
            segment_size: size(),
            wal_block_size: 8192,
            block_size: 8192,
            relation_segment_blocks: 131_072,
            ack: vec![],
        };
        let lineage = repository.create_lineage(&"main".parse().unwrap(), new).await.unwrap();
        Self { dir, settings, wal: repository.wal(&lineage) }
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

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn segment(timeline: u32, number: u64) -> SegmentName {
    SegmentNo(number).name(TimelineId::new(timeline).unwrap(), size())
}

/// Bytes of a record.
const RECORD: usize = 48;

/// The beginning of a segment with so many records, which begin behind the header of its first page.
fn records(of: SegmentName, count: usize) -> Vec<u8> {
    let start = of.number(size()).unwrap().start(size());
    let mut bytes = magic_of_major(PgMajor::new(17).unwrap()).to_le_bytes().to_vec();
    // It is the long header of a segment's first page.
    bytes.extend(2_u16.to_le_bytes());
    bytes.extend(of.timeline.get().to_le_bytes());
    bytes.extend(start.0.to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(7_u64.to_le_bytes());
    bytes.extend((1_u32 << 20).to_le_bytes());
    bytes.extend(8192_u32.to_le_bytes());
    let mut previous = start - 64;
    for _ in 0..count {
        let position = start + bytes.len() as u64;
        let body = [vec![255, 22], vec![5; 22]].concat();
        let mut header = u32::try_from(RECORD).unwrap().to_le_bytes().to_vec();
        header.extend(9_u32.to_le_bytes());
        header.extend(previous.0.to_le_bytes());
        header.extend([0, 10, 0, 0]);
        let crc = crc32c(&[&body[..], &header[..]].concat());
        header.extend(crc.to_le_bytes());
        bytes.extend(header);
        bytes.extend(body);
        previous = position;
    }
    bytes
}

/// The check over records, Castagnoli's polynomial.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
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
