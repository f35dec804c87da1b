//! The chain on stores in memory and in directories: writers at once and writers that die, and whatever can be done to records later.

use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use object_store::memory::InMemory;
use walpoint_base::ClusterName;
use walpoint_storage::layout::ClusterPaths;
use walpoint_storage::object::testing::sealers;
use walpoint_storage::object::{ObjectKind, ObjectWriter, SealedObject, Sealer};
use walpoint_storage::store::crashing::CrashingStore;
use walpoint_storage::store::{Store, StoreSettings};

use super::record::{FORMAT, Stored};
use super::*;

fn over(store: Store, sealer: &Sealer) -> Evidence {
    let cluster: ClusterName = "main".parse().unwrap();
    let paths = ClusterPaths::new(&cluster);
    Evidence { repository: sealer.repository(), cluster, store, sealer: sealer.clone(), paths }
}

fn in_memory(sealer: &Sealer) -> Evidence {
    over(Store::over("memory", Arc::new(InMemory::new())), sealer)
}

async fn in_directory(path: &Path) -> Evidence {
    over(Store::open(&StoreSettings::at(path.to_str().unwrap())).await.unwrap(), &sealers()[1])
}

fn draft(note: &str) -> Draft {
    let mut draft = Draft::new(Kind::Backup, Outcome::Success, "dba@host".to_owned(), "test 1".to_owned());
    draft.note = Some(note.to_owned());
    draft
}

async fn with_records(evidence: Evidence, count: u64) -> Evidence {
    for n in 1..=count {
        assert_eq!(evidence.append(&draft(&format!("note {n}"))).await.unwrap().head.number, n);
    }
    evidence
}

/// What is wrong, briefly.
async fn faults(evidence: &Evidence, heads: &[Head]) -> Vec<(FaultKind, u64, u64)> {
    let report = evidence.verify(heads).await.unwrap();
    report.faults.iter().map(|fault| (fault.kind, fault.first, fault.last)).collect()
}

fn sealed(evidence: &Evidence, number: u64, content: &[u8]) -> SealedObject {
    let key = evidence.paths.evidence(number);
    let mut writer = ObjectWriter::new(&evidence.sealer, ObjectKind::Evidence, &key).unwrap();
    writer.frame(content).unwrap();
    writer.finish().unwrap()
}

/// What a person with the key puts in the place of a record: an object that is sound in itself.
async fn forge(evidence: &Evidence, number: u64, content: &[u8]) {
    evidence.store.replace_copy(&sealed(evidence, number, content)).await.unwrap();
}

async fn remove(evidence: &Evidence, number: u64) {
    evidence.store.delete(&evidence.paths.evidence(number)).await.unwrap();
}

#[tokio::test]
async fn records_come_back_as_they_were_written_and_each_names_the_one_before() {
    for sealer in sealers() {
        let evidence = with_records(in_memory(&sealer), 0).await;
        assert_eq!(evidence.head().await.unwrap(), None);
        assert_eq!(evidence.verify(&[]).await.unwrap(), ChainReport::default());
        let (one, two) = (draft("one"), draft("größer \u{1}\n<b>"));
        let first = evidence.append(&one).await.unwrap();
        let second = evidence.append(&two).await.unwrap();
        let read = [evidence.read_record(1).await.unwrap(), evidence.read_record(2).await.unwrap()];
        assert_eq!((&read[0].record.said, &read[1].record.said), (&one, &two));
        assert_eq!((read[0].hash, read[1].hash), (first.head.hash, second.head.hash));
        assert_eq!((read[0].record.previous_hash, read[1].record.previous_hash), (None, Some(read[0].hash)));
        assert_eq!(RecordHash::of(&read[1].content), read[1].hash);
        assert!(!read[1].content.contains(&b'\n'), "a record is one line");
        let report = evidence.verify(&[first.head, second.head]).await.unwrap();
        assert_eq!(report, ChainReport { records: 2, head: Some(second.head), faults: vec![] });
        assert_eq!(evidence.head().await.unwrap(), Some(second.head));
    }
}

#[tokio::test]
async fn a_record_takes_three_requests_and_no_listing() {
    let evidence = with_records(in_memory(&sealers()[0]), 30).await;
    let before = evidence.store.requests();
    evidence.append(&draft("x")).await.unwrap();
    let after = evidence.store.requests();
    assert_eq!((after.total() - before.total(), after.list - before.list), (3, 0));
}

/// The numbers of the newest records, as they are read, and whether there are older ones.
async fn newest(evidence: &Evidence, most: u64) -> (Vec<u64>, bool) {
    let (records, has_older) = evidence.newest(most).await.unwrap();
    (records.map(|(number, read)| read.map(|_| number).unwrap()).collect().await, has_older)
}

#[tokio::test]
async fn the_newest_records_are_read_backward_and_older_ones_are_not_asked_for() {
    let evidence = with_records(in_memory(&sealers()[0]), 30).await;
    let back = |from: u64, to: u64| (to..=from).rev().collect::<Vec<u64>>();
    let before = evidence.store.requests();
    assert_eq!(newest(&evidence, 10).await, (back(30, 21), true));
    let after = evidence.store.requests();
    // The copy of the end, the names behind number 20, and the records.
    assert_eq!((after.total() - before.total(), after.list - before.list), (12, 1));
    assert_eq!(newest(&evidence, 29).await, (back(30, 2), true));
    assert_eq!(newest(&evidence, 30).await, (back(30, 1), false));
    assert_eq!(newest(&evidence, 100).await, (back(30, 1), false));
    // A copy that is old, none, and one of a chain that was cut.
    let head = evidence.head().await.unwrap().unwrap();
    evidence.copy_head(Head { number: 5, ..head }).await;
    assert_eq!(newest(&evidence, 10).await, (back(30, 21), true));
    evidence.store.delete(&evidence.paths.evidence_head()).await.unwrap();
    assert_eq!(newest(&evidence, 10).await, (back(30, 21), true));
    evidence.copy_head(head).await;
    for number in 25..=30 {
        remove(&evidence, number).await;
    }
    assert_eq!(newest(&evidence, 10).await, (back(24, 15), true));
    assert_eq!(newest(&evidence, 24).await, (back(24, 1), false));
    assert_eq!(newest(&in_memory(&sealers()[0]), 10).await, (Vec::new(), false));
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_at_once_make_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    for evidence in [in_directory(dir.path()).await, in_memory(&sealers()[0])] {
        let writers = (0..4).map(|writer| {
            let evidence = evidence.clone();
            tokio::spawn(async move {
                let mut numbers = Vec::new();
                for n in 0..8 {
                    let appended = evidence.append(&draft(&format!("{writer}-{n}"))).await.unwrap();
                    numbers.push(appended.head.number);
                }
                numbers
            })
        });
        let mut numbers: Vec<u64> =
            futures_util::future::join_all(writers).await.into_iter().flat_map(Result::unwrap).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=32).collect::<Vec<u64>>(), "each has a number of its own");
        let report = evidence.verify(&[]).await.unwrap();
        assert_eq!((report.records, report.faults), (32, vec![]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_dies_leaves_a_chain_that_the_next_one_continues() {
    let dir = tempfile::tempdir().unwrap();
    let evidence = in_directory(dir.path()).await;
    let mut written = 0;
    // The first one lists, the others find the copy: it dies before each of its requests, and behind the last one.
    for life in [0, 1, 2, 3, 4, 0, 1, 2, 3] {
        let crashing = CrashingStore::new(dir.path(), life);
        let dying = over(crashing.store(), &evidence.sealer);
        let appended = dying.append(&draft("dying")).await;
        crashing.has_crashed().await;
        let there = evidence.numbers(0).await.unwrap().len() as u64;
        assert!(there == written || there == written + 1);
        assert!(appended.is_err() || there == written + 1, "what was written is there");
        assert_eq!(evidence.append(&draft("next")).await.unwrap().head.number, there + 1);
        written = there + 1;
        assert_eq!(faults(&evidence, &[]).await, [], "after {life} requests");
    }
}

#[tokio::test]
async fn the_copy_of_the_end_is_only_a_help() {
    let evidence = with_records(in_memory(&sealers()[1]), 3).await;
    let key = evidence.paths.evidence_head();
    let old = evidence.head().await.unwrap().unwrap();
    // Without it, with noise in its place, with another key's, and out of date.
    evidence.store.delete(&key).await.unwrap();
    assert_eq!(evidence.append(&draft("4")).await.unwrap().head.number, 4);
    evidence.store.delete(&key).await.unwrap();
    assert!(evidence.store.create_blindly(&key, bytes::Bytes::from_static(b"noise")).await.unwrap());
    assert_eq!(evidence.head().await.unwrap().unwrap().number, 4);
    assert_eq!(evidence.append(&draft("5")).await.unwrap().head.number, 5);
    over(evidence.store.clone(), &sealers()[0]).copy_head(old).await;
    assert_eq!(evidence.append(&draft("6")).await.unwrap().head.number, 6);
    evidence.copy_head(old).await;
    assert_eq!(evidence.head().await.unwrap().unwrap().number, 6);
    assert_eq!(evidence.append(&draft("7")).await.unwrap().head.number, 7);
    assert_eq!(faults(&evidence, &[old]).await, []);
}

#[tokio::test]
async fn what_was_removed_is_named() {
    let evidence = with_records(in_memory(&sealers()[0]), 9).await;
    let head = evidence.head().await.unwrap().unwrap();
    let fifth = Head { hash: evidence.read_record(5).await.unwrap().hash, number: 5 };
    remove(&evidence, 3).await;
    remove(&evidence, 4).await;
    assert_eq!(faults(&evidence, &[head]).await, [(FaultKind::Missing, 3, 4)]);
    remove(&evidence, 1).await;
    assert_eq!(faults(&evidence, &[]).await, [(FaultKind::Missing, 1, 1), (FaultKind::Missing, 3, 4)]);
    // The tail: the copy of the end shows it, and a head that was noted does when the copy is gone too.
    remove(&evidence, 9).await;
    remove(&evidence, 8).await;
    let cut = (FaultKind::Cut, 8, 9);
    assert_eq!(faults(&evidence, &[fifth]).await.last(), Some(&cut));
    evidence.store.delete(&evidence.paths.evidence_head()).await.unwrap();
    assert_eq!(faults(&evidence, &[fifth]).await.len(), 2);
    assert_eq!(faults(&evidence, &[fifth, head]).await.last(), Some(&cut));
    // A record that is written after that hides nothing.
    evidence.append(&draft("later")).await.unwrap();
    assert!(faults(&evidence, &[head]).await.contains(&(FaultKind::Cut, 9, 9)));
}

#[tokio::test]
async fn a_record_that_is_written_behind_a_cut_shows_the_gap() {
    let evidence = with_records(in_memory(&sealers()[1]), 5).await;
    remove(&evidence, 5).await;
    assert_eq!(evidence.append(&draft("6")).await.unwrap().head.number, 6);
    assert_eq!(faults(&evidence, &[]).await, [(FaultKind::Missing, 5, 5)]);
}

#[tokio::test]
async fn what_was_edited_or_exchanged_is_named() {
    for sealer in sealers() {
        let evidence = with_records(in_memory(&sealer), 6).await;
        let originals: Vec<ReadRecord> =
            futures_util::future::join_all((1..=6).map(|n| evidence.read_record(n)))
                .await
                .into_iter()
                .map(Result::unwrap)
                .collect();
        let edited = |n: usize| {
            let text = String::from_utf8(originals[n - 1].content.to_vec()).unwrap();
            text.replace("note", "lied").into_bytes()
        };
        forge(&evidence, 3, &edited(3)).await;
        assert_eq!(faults(&evidence, &[]).await, [(FaultKind::Broken, 3, 4)]);
        forge(&evidence, 3, &originals[2].content).await;
        assert_eq!(faults(&evidence, &[]).await, []);
        // The last one has no next one that names it.
        forge(&evidence, 6, &edited(6)).await;
        assert_eq!(faults(&evidence, &[]).await, [(FaultKind::Changed, 6, 6)]);
        forge(&evidence, 6, &originals[5].content).await;
        // Two that changed places.
        forge(&evidence, 2, &originals[3].content).await;
        forge(&evidence, 4, &originals[1].content).await;
        let found = faults(&evidence, &[]).await;
        for expected in
            [(FaultKind::Misplaced, 2, 2), (FaultKind::Misplaced, 4, 4), (FaultKind::Broken, 1, 2)]
        {
            assert!(found.contains(&expected), "{found:?}");
        }
    }
}

#[tokio::test]
async fn records_of_another_cluster_are_out_of_place() {
    let evidence = with_records(in_memory(&sealers()[0]), 1).await;
    let mut record = evidence.read_record(1).await.unwrap().record;
    record.cluster = "other".parse().unwrap();
    forge(&evidence, 1, &serde_json::to_vec(&Stored { format: FORMAT, record }).unwrap()).await;
    assert!(faults(&evidence, &[]).await.contains(&(FaultKind::Misplaced, 1, 1)));
}

#[tokio::test]
async fn damage_is_named_and_the_chain_continues_behind_it() {
    for sealer in sealers() {
        let evidence = with_records(in_memory(&sealer), 3).await;
        let key = evidence.paths.evidence(2);
        let mut bytes = evidence.store.get(&key).await.unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        evidence.store.delete(&key).await.unwrap();
        assert!(evidence.store.create_blindly(&key, bytes.into()).await.unwrap());
        assert_eq!(faults(&evidence, &[]).await, [(FaultKind::Damaged, 2, 2)]);
        // Content that is no record, in an object that is sound.
        for content in [&b"{}"[..], b"", b"[1]", b"\xff", b"{\"format\":2}"] {
            forge(&evidence, 2, content).await;
            assert_eq!(faults(&evidence, &[]).await, [(FaultKind::Damaged, 2, 2)]);
        }
        // Noise under the next number, and nothing that says where the end is.
        assert!(
            evidence
                .store
                .create_blindly(&evidence.paths.evidence(4), bytes::Bytes::from_static(b"noise"))
                .await
                .unwrap()
        );
        let appended = evidence.append(&draft("5")).await.unwrap();
        assert_eq!((appended.head.number, appended.unreadable), (5, Some(4)));
        let found = faults(&evidence, &[]).await;
        assert!(found.contains(&(FaultKind::Damaged, 4, 4)) && found.contains(&(FaultKind::Broken, 5, 5)));
    }
}

#[tokio::test]
async fn a_record_that_is_too_long_is_refused_and_leaves_nothing() {
    let evidence = in_memory(&sealers()[0]);
    let refused = evidence.append(&draft(&"x".repeat(70_000))).await.unwrap_err().to_string();
    assert!(refused.contains("65536 is the most"), "{refused}");
    assert!(evidence.numbers(0).await.unwrap().is_empty());
}

/// 100,000 records in a directory: how long a verification takes. Run by hand, in a release build: `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_a_verification_of_100_000_records() {
    let dir = tempfile::tempdir().unwrap();
    let evidence = in_directory(dir.path()).await;
    let (mut previous_hash, count) = (None, 100_000);
    for number in 1..=count {
        let said = draft("a nightly backup of the usual kind, and nothing else to say");
        let (cluster, repository_id) = (evidence.cluster.clone(), evidence.repository.to_string());
        let record = Record { number, previous_hash, cluster, repository_id, said };
        let json = serde_json::to_vec(&Stored { format: FORMAT, record }).unwrap();
        previous_hash = Some(RecordHash::of(&json));
        // Without syncing each: only the reading is measured.
        let object = sealed(&evidence, number, &json);
        let path = dir.path().join(object.key.as_str());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = std::fs::File::create_new(&path).unwrap();
        std::io::Write::write_all(&mut file, &object.to_bytes()).unwrap();
    }
    let began = std::time::Instant::now();
    let report = evidence.verify(&[]).await.unwrap();
    println!("verified {} records in {:?}", report.records, began.elapsed());
    assert_eq!((report.records, report.faults), (count, vec![]));
}
