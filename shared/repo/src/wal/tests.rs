//! The archive of a lineage on the local store, plain and encrypted.

mod again;
mod points;
mod timelines;

use bytes::Bytes;
use futures_util::TryStreamExt;
use walpoint_base::chain::{ChainBegin, ChainEnd, ChainFacts, Cut, Due};
use walpoint_base::crossing::{CrossingFacts, RecordPiece};
use walpoint_base::facts::{RestorePoint, SegmentMarks, TransactionRange};
use walpoint_base::{
    LineageId, Lsn, PgMajor, PgTimestamp, SegmentFacts, SegmentSize, SystemId, TimelineId, WalFileName,
};
use walpoint_storage::error::{Remedy, RepoError};
use walpoint_storage::object::MasterKey;
use walpoint_storage::store::StoreSettings;

use super::*;
use crate::lineage::Lineages;
use crate::repository::NewLineage;

const SYSTEM: SystemId = SystemId(7400000000000000001);

/// Facts as the WAL reader would give them for a segment of that name.
pub(crate) fn facts(name: &str, whole: bool) -> SegmentFacts {
    facts_of_size(name, whole, SegmentSize::DEFAULT)
}

pub(crate) fn facts_of_size(name: &str, whole: bool, size: SegmentSize) -> SegmentFacts {
    let name: SegmentName = name.parse().unwrap();
    let start = name.number(size).unwrap().start(size);
    let end = if whole { start + size.bytes() } else { start + 4096 };
    SegmentFacts {
        name,
        system_id: SYSTEM,
        major: PgMajor::new(17).unwrap(),
        size,
        block_size: 8192,
        first_page_timeline: name.timeline,
        content_len: end.since(start),
        first_record: Some(start + 40),
        last_record: Some(end - 80),
        end,
        whole,
        switched: false,
        records: 12,
        transactions: Some(TransactionRange::add(None, PgTimestamp(8_000_000), 731)),
        crossing: CrossingFacts { open: Some(RecordPiece::of(b"beginning")), rest: RecordPiece::of(b"end") },
        chain: ChainFacts {
            begin: ChainBegin {
                previous: Some(start - 48),
                carried: 0,
                overwritten: false,
                rest: Some([1, 2, 3]),
            },
            end: ChainEnd {
                last: Some(end - 80),
                complete: Some(end - 160),
                carried: Some(40),
                due: Some(Due { cut: Cut::At16, sum: 9 }),
            },
        },
        marks: SegmentMarks { tablespace: true, parameters: true, minimal: false, database_copy: true },
        restore_points: vec![RestorePoint {
            name: "before upgrade".to_owned(),
            time: PgTimestamp(7_999_999),
            lsn: start + 120,
            end: Lsn(start.0 + 200),
        }],
        further_points: 0,
    }
}

pub(crate) struct Bed {
    pub(crate) archive: WalArchive,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) async fn bed(size: SegmentSize, master: Option<MasterKey>) -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings::at(dir.path().to_str().unwrap());
    let made = Repository::init("main", &settings, master.clone()).await.unwrap();
    assert!(!made.existed && made.probe.findings().iter().all(|(_, f)| f.is_good()), "{:?}", made.probe);
    let cluster = "main".parse().unwrap();
    let new = NewLineage {
        system_id: SYSTEM,
        major: PgMajor::new(17).unwrap(),
        segment_size: size,
        wal_block_size: 8192,
        block_size: 8192,
        relation_segment_blocks: 131_072,
        ack: vec![],
    };
    let lineage = made.repository.create_lineage(&cluster, new).await.unwrap();
    // As another program would open it.
    let repository = Repository::open_with_key("main", &settings, master).await.unwrap();
    assert_eq!(repository.lineages(&cluster).await.unwrap().read, std::slice::from_ref(&lineage));
    assert_eq!(repository.lineage_for(&cluster, SYSTEM).await.unwrap().as_ref(), Some(&lineage));
    Bed { archive: repository.wal(&lineage), dir }
}

/// An archive of each sort: plain, and encrypted.
async fn beds(mib: u64) -> Vec<Bed> {
    let size = SegmentSize::new(mib << 20).unwrap();
    vec![bed(size, None).await, bed(size, Some(MasterKey::new([5; 32]))).await]
}

/// A segment's bytes: something that compresses like WAL, then zeros.
pub(crate) fn segment(size: SegmentSize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; size.as_usize()];
    let content = bytes.len() * 3 / 4;
    for (n, page) in bytes[..content].chunks_mut(512).enumerate() {
        page[..8].copy_from_slice(&(n as u64 * 31 + u64::from(seed)).to_le_bytes());
        page[100..400].fill(seed);
    }
    bytes
}

const NAME: &str = "000000010000000000000003";

#[tokio::test]
async fn a_segment_comes_back_with_its_facts() {
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let (facts, content) = (facts_of_size(NAME, true, size), segment(size, 1));
        let name = WalFileName::Segment(facts.name);
        assert_eq!(archive.get(name).await.unwrap(), None);
        assert_eq!(archive.header(facts.name).await.unwrap(), None);

        let put = async |content: &[u8]| {
            archive.put_segment(&facts, Bytes::copy_from_slice(content), WalFlags::default()).await
        };
        assert_eq!(put(&content).await.unwrap(), Stored::New);
        assert_eq!(put(&content).await.unwrap(), Stored::Same);
        let file = archive.get(name).await.unwrap().unwrap();
        assert!(file.content == content);
        let header = file.header.unwrap();
        assert_eq!(archive.header(facts.name).await.unwrap().as_ref(), Some(&header));
        assert_eq!((header.name(), header.end, header.whole), (facts.name, facts.end, true));
        assert_eq!((header.transactions, header.records), (facts.transactions, 12));
        let hash = archive.repository().sealer().content_hash(&content);
        assert_eq!(header.hash, hash);

        match put(&segment(size, 2)).await {
            Err(RepoError::Conflict { key, ours, theirs }) => {
                assert_eq!(key, archive.paths().segment(facts.name));
                assert_eq!(theirs, hash);
                assert_ne!(ours, hash);
            }
            done => panic!("{done:?}"),
        }
        assert!(archive.get(name).await.unwrap().unwrap().content == content, "unchanged");
    }
}

#[tokio::test]
async fn an_incomplete_segment_never_stands_in_for_the_whole_one() {
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let (short, whole) = (facts_of_size(NAME, false, size), facts_of_size(NAME, true, size));
        let content = segment(size, 1);
        let stored = archive.put_segment(&short, content.clone(), WalFlags::default()).await.unwrap();
        assert_eq!(stored, Stored::Ended(short.end));
        let name = WalFileName::Segment(short.name);
        assert_eq!(archive.get(name).await.unwrap(), None);
        let ended = archive.ended(short.name).await.unwrap();
        let [(end, hash)] = ended[..] else { panic!("{ended:?}") };
        assert_eq!(end, short.end);
        let header = archive.ended_header(short.name, end, hash).await.unwrap().unwrap();
        assert!(!header.whole && header.end == short.end);
        let valid = usize::try_from(short.end.since(short.name.number(size).unwrap().start(size))).unwrap();
        let zeroed = [&content[..valid], &vec![0; content.len() - valid]].concat();
        let mut reader = archive.read_ended(short.name, end, hash).await.unwrap().unwrap();
        let mut read = Vec::new();
        while !reader.is_done() {
            read.extend(reader.next_part(Vec::new()).await.unwrap());
        }
        assert!(read == zeroed, "what a recycled file held before is not kept");

        // Another copy of the file, which held something else before; and another content that ends there.
        let mut copy = content.clone();
        copy[valid + 8..].fill(77);
        let again = archive.put_segment(&short, copy, WalFlags::default()).await.unwrap();
        assert_eq!(again, Stored::Ended(short.end));
        assert_eq!(archive.ended(short.name).await.unwrap().len(), 1);
        let mut other = content.clone();
        other[valid - 8] ^= 1;
        archive.put_segment(&short, other, WalFlags::default()).await.unwrap();
        assert_eq!(archive.ended(short.name).await.unwrap().len(), 2);

        let longer = segment(size, 9);
        assert_eq!(
            archive.put_segment(&whole, longer.clone(), WalFlags::default()).await.unwrap(),
            Stored::New
        );
        assert!(archive.get(name).await.unwrap().unwrap().content == longer);
        let again = archive.put_segment(&short, content, WalFlags::default()).await.unwrap();
        assert_eq!(again, Stored::Ended(short.end));
    }
}

#[tokio::test]
async fn what_was_accepted_though_damaged_says_so() {
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let facts = facts_of_size(NAME, false, size);
        let stored = archive
            .put_segment(&facts, segment(size, 1), WalFlags { damaged: true, ..WalFlags::default() })
            .await
            .unwrap();
        assert_eq!(stored, Stored::New);
        assert!(archive.header(facts.name).await.unwrap().unwrap().damaged);
    }
}

#[tokio::test]
async fn wal_of_another_cluster_is_refused() {
    let Bed { archive, dir } = bed(SegmentSize::DEFAULT, None).await;
    let size = SegmentSize::DEFAULT;
    let good = facts(NAME, true);
    for (bad, content, word) in [
        (SegmentFacts { system_id: SystemId(1), ..good.clone() }, segment(size, 1), "system identifier 1"),
        (
            SegmentFacts { major: PgMajor::new(16).unwrap(), ..good.clone() },
            segment(size, 1),
            "PostgreSQL 16",
        ),
        (good.clone(), vec![0; 1 << 20], "1048576 bytes"),
        (facts_of_size(NAME, true, SegmentSize::new(1 << 20).unwrap()), vec![0; 1 << 20], "1048576"),
    ] {
        let error = archive.put_segment(&bad, content, WalFlags::default()).await.unwrap_err();
        assert!(matches!(&error, RepoError::Refused { what, .. } if what.contains(word)), "{error}");
    }
    let error = archive.put_file(WalFileName::Segment(good.name), vec![1]).await.unwrap_err();
    assert!(matches!(error, RepoError::Refused { .. }));
    assert!(!dir.path().join("clusters/main/7400000000000000001-1").exists(), "nothing was stored");
}

#[tokio::test]
async fn a_large_segment_is_kept_in_parts() {
    for Bed { archive, dir } in beds(64).await {
        let size = archive.lineage().segment_size;
        let facts = facts_of_size(NAME, true, size);
        let mut content = segment(size, 1);
        // From a file, as the daemon has it.
        let path = dir.path().join("wal file");
        walpoint_base::durable::replace(&path, &content, 0o600).unwrap();
        let put = async || {
            let file = WalContent::file(std::fs::File::open(&path).unwrap()).unwrap();
            archive.put_segment(&facts, file, WalFlags::default()).await
        };
        assert_eq!(put().await.unwrap(), Stored::New);
        assert_eq!(put().await.unwrap(), Stored::Same);
        let name = WalFileName::Segment(facts.name);
        let file = archive.get(name).await.unwrap().unwrap();
        assert!(file.content == content);
        let hash = archive.repository().sealer().content_hash(&content);
        assert_eq!(file.header.as_ref().unwrap().hash, hash);
        assert_eq!(archive.header(facts.name).await.unwrap(), file.header);
        let entries: Vec<_> = archive.list(TimelineId::FIRST, None).try_collect().await.unwrap();
        assert_eq!(entries.len(), 5, "{entries:?}");
        assert!(entries.iter().all(|(_, e)| e.size < (32 << 20)));

        let mut reader = archive.read(name).await.unwrap().unwrap();
        let (mut buffer, mut got, mut parts) = (Vec::new(), Vec::new(), 0);
        while !reader.is_done() {
            buffer = reader.next_part(buffer).await.unwrap();
            got.extend_from_slice(&buffer);
            parts += 1;
        }
        assert!(got == content && parts == 4 && reader.length() == size.bytes());

        content[40 << 20] ^= 1;
        walpoint_base::durable::replace(&path, &content, 0o600).unwrap();
        match put().await {
            Err(RepoError::Conflict { ours, theirs, .. }) => {
                assert_eq!((ours, theirs), (archive.repository().sealer().content_hash(&content), hash));
            }
            done => panic!("{done:?}"),
        }
        // A part that is gone is damage, never absence.
        let part = entries.iter().find(|(e, _)| matches!(e, WalEntry::Part(_))).unwrap();
        archive.store().delete(&part.1.key).await.unwrap();
        let error = archive.get(name).await.unwrap_err();
        assert!(matches!(&error, RepoError::Corrupt { what, .. } if what.contains("missing")), "{error}");
    }
}

/// Promise 1: what an interrupted upload left is read before it counts as a part of a segment.
#[tokio::test]
async fn parts_of_an_earlier_attempt_are_read() {
    for Bed { archive, dir } in beds(64).await {
        let size = archive.lineage().segment_size;
        let (facts, content) = (facts_of_size(NAME, true, size), WalContent::from(segment(size, 1)));
        let put = async || archive.put_segment(&facts, content.clone(), WalFlags::default()).await;
        assert_eq!(put().await.unwrap(), Stored::New);
        // The object that names the parts is stored last.
        archive.store().delete(&archive.paths().segment(facts.name)).await.unwrap();
        let entries: Vec<_> = archive.list(TimelineId::FIRST, None).try_collect().await.unwrap();
        let (_, part) = entries.iter().find(|(e, _)| matches!(e, WalEntry::Part(_))).unwrap();
        let path = dir.path().join(part.key.to_string());
        let sound = std::fs::read(&path).unwrap();
        let mut damaged = sound.clone();
        damaged[sound.len() / 2] ^= 1;
        walpoint_base::durable::replace(&path, &damaged, 0o600).unwrap();
        let error = put().await.unwrap_err();
        let named = matches!(&error, RepoError::Corrupt { key, remedy: Some(Remedy::MoveAway), .. } if *key == part.key);
        assert!(named, "{error}");
        walpoint_base::durable::replace(&path, &sound, 0o600).unwrap();
        assert_eq!(put().await.unwrap(), Stored::New);
    }
}

#[tokio::test]
async fn one_reading_seals_for_several_archives() {
    for mib in [1, 64] {
        let beds = beds(mib).await;
        let archives: Vec<WalArchive> = beds.iter().map(|bed| bed.archive.clone()).collect();
        let size = archives[0].lineage().segment_size;
        let (facts, bytes) = (Arc::new(facts_of_size(NAME, true, size)), segment(size, 1));
        let sealer = |facts: &Arc<SegmentFacts>, place, bytes: &[u8]| {
            let mut sealer = SegmentSealer::new(&archives, facts.name, facts.size, place).unwrap();
            bytes.chunks(SegmentSealer::PIECE).try_for_each(|piece| sealer.add(piece))?;
            sealer.finish(facts, WalFlags::default())
        };
        let sealed = sealer(&facts, SealedName::Whole, &bytes).unwrap();
        let content = WalContent::from(bytes.clone());
        for (archive, sealed) in archives.iter().zip(sealed) {
            assert!(sealed.held() <= SegmentSealer::most_held(size) as u64);
            assert_eq!(archive.put_sealed(sealed.clone(), &content).await.unwrap(), Stored::New);
            let again = archive.put_sealed(sealed, &content).await.unwrap();
            assert_eq!(
                again,
                if mib == 1 { Stored::New } else { Stored::Same },
                "an object is known by its salt"
            );
            assert_eq!(
                archive.put_segment(&facts, content.clone(), WalFlags::default()).await.unwrap(),
                Stored::Same
            );
            let file = archive.get(WalFileName::Segment(facts.name)).await.unwrap().unwrap();
            assert!(file.content == bytes);
            assert_eq!(file.header.unwrap().hash, archive.sealer().content_hash(&bytes));
            assert_eq!(archive.points().await.unwrap().points.len(), 1);
        }
        // Another place than expected, and fewer bytes.
        let short = Arc::new(facts_of_size(NAME, false, size));
        assert!(matches!(sealer(&short, SealedName::Whole, &bytes), Err(RepoError::Refused { .. })));
        assert!(sealer(&facts, SealedName::Whole, &bytes[..bytes.len() - 1]).is_err());
        assert!(sealer(&short, SealedName::Ended(short.end), &bytes).is_ok());
        // What is read for the parts must be what was surveyed.
        if mib == 64 {
            let other = segment(size, 2);
            let sealed = sealer(&facts, SealedName::Whole, &other).unwrap().remove(0);
            let changed = archives[0].put_sealed(sealed, &content).await.unwrap_err();
            assert!(changed.to_string().contains("changed while it was read"), "{changed}");
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_found() {
    for Bed { archive, dir } in beds(1).await {
        let size = archive.lineage().segment_size;
        let facts = facts_of_size(NAME, true, size);
        archive.put_segment(&facts, segment(size, 1), WalFlags::default()).await.unwrap();
        let path = dir.path().join(archive.paths().segment(facts.name).as_str());
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(good.len() / 97) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            walpoint_base::durable::replace(&path, &bad, 0o600).unwrap();
            let error = archive.get(WalFileName::Segment(facts.name)).await.unwrap_err();
            assert!(matches!(error, RepoError::Corrupt { .. }), "byte {at}: {error}");
        }
        for cut in [0, 1, 127, 128, 300, good.len() - 1] {
            walpoint_base::durable::replace(&path, &good[..cut], 0o600).unwrap();
            assert!(matches!(
                archive.get(WalFileName::Segment(facts.name)).await.unwrap_err(),
                RepoError::Corrupt { .. }
            ));
            assert!(archive.header(facts.name).await.is_err());
        }
    }
}

#[tokio::test]
async fn a_repository_is_made_once_and_known_again() {
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings::at(dir.path().to_str().unwrap());
    let error = Repository::open("main", &settings).await.unwrap_err();
    let making = Some(Remedy::CreateRepository);
    assert!(matches!(&error, RepoError::NoRepository { remedy, .. } if *remedy == making), "{error}");
    let made = Repository::init("main", &settings, None).await.unwrap();
    let again = Repository::init("main", &settings, None).await.unwrap();
    assert!(!made.existed && again.existed && made.repository.id() == again.repository.id());
    let repository = again.repository;
    repository.read_descriptor_again().await.unwrap();

    let cluster = "main".parse().unwrap();
    let new = || NewLineage {
        system_id: SYSTEM,
        major: PgMajor::new(18).unwrap(),
        segment_size: SegmentSize::DEFAULT,
        wal_block_size: 8192,
        block_size: 8192,
        relation_segment_blocks: 131_072,
        ack: vec![crate::lineage::AckMember { name: "main".into(), repository: repository.id() }],
    };
    assert_eq!(repository.lineages(&cluster).await.unwrap(), Lineages::default());
    repository.create_lineage(&cluster, new()).await.unwrap();
    let second = repository.create_lineage(&cluster, new()).await.unwrap();
    assert_eq!(second.id, LineageId { system_id: SYSTEM, n: 2 });
    assert_eq!(repository.lineage_for(&cluster, SYSTEM).await.unwrap(), Some(second));
    assert_eq!(repository.lineages(&cluster).await.unwrap().read.len(), 2);
    assert_eq!(repository.lineage_for(&cluster, SystemId(5)).await.unwrap(), None);
    assert_eq!(repository.clusters().await.unwrap(), [cluster]);

    // Another repository in its place, and none.
    let descriptor = dir.path().join("walpoint.json");
    walpoint_base::durable::remove(&descriptor).unwrap();
    let error = repository.read_descriptor_again().await.unwrap_err();
    assert!(matches!(error, RepoError::Replaced { .. }), "{error}");
    std::fs::remove_dir_all(dir.path().join("clusters")).unwrap();
    Repository::init("other", &settings, None).await.unwrap();
    let error = repository.read_descriptor_again().await.unwrap_err();
    assert!(matches!(error, RepoError::Replaced { .. }), "{error}");
}
