//! Contents are read: packs, blocks and pages, each once.

use walpoint_base::Lsn;
use walpoint_storage::layout::ClusterPaths;

use super::{Anything, found_now, of_noise, of_packs, path, replace, run, run_with};
use crate::backup::{Attributes, BlockSize, Intent, PageFault, WriteOptions};
use crate::expire::tests::{ago, cluster, id, intent, keys, publish, world};
use crate::index::tests::Bed;
use crate::verify::*;

/// A page check that finds the second block of every file wrong.
struct SecondBlock;

impl ContentCheck for SecondBlock {
    fn pages(
        &self,
        _: &BackupDescription,
        _: &TablePath,
        offset: u64,
        bytes: &[u8],
        bad: &mut dyn FnMut(u64, u16, u16),
    ) {
        let blocks = u64::try_from(bytes.len().div_ceil(8192)).unwrap();
        (offset / 8192..offset / 8192 + blocks)
            .filter(|block| *block == 1)
            .for_each(|block| bad(block, 1, 2));
    }

    fn wal(&self) -> Box<dyn WalCheck> {
        Box::new(Anything)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bit_is_read() {
    let (bed, ids) = world().await;
    let clean = run(&bed, Depth::Full).await;
    assert_eq!(of_packs(&clean), []);
    assert_eq!(clean.verified_bytes, 5 * 32_000);
    assert_eq!(clean.finding_count, 95, "segments without the content that their headers describe");
    assert!(
        clean
            .findings
            .iter()
            .all(|finding| finding.kind == FindingKind::Damaged && finding.object.contains("/wal/"))
    );

    let pages = run_with(&bed, Depth::Full, Some(ids[0]), Arc::new(SecondBlock)).await;
    let wrong: Vec<&VerifyFinding> =
        pages.findings.iter().filter(|finding| finding.kind == FindingKind::Page).collect();
    assert_eq!(wrong.len(), 1);
    assert!(
        wrong[0].object.starts_with("file block 1") || wrong[0].object.contains("block 1 in"),
        "{wrong:?}"
    );

    for key in keys(&bed).await.into_iter().filter(|key| key.ends_with(".pack")) {
        let file = path(&bed, &key);
        let whole = std::fs::read(&file).unwrap();
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        replace(&file, &bytes);
        assert_eq!(found_now(&run(&bed, Depth::Light).await).count(), 0, "{key}");
        let report = run(&bed, Depth::Full).await;
        assert_eq!(of_packs(&report), [(FindingKind::Damaged, key.clone())]);
        replace(&file, &whole);
    }
    let announced =
        bed.archive.repository().store().list_all(&ClusterPaths::new(&cluster()).all()).await.unwrap();
    assert!(announced.iter().any(|entry| entry.key.as_str().contains("/announcements/")));
}

/// Where a backup's tables are damaged, what others share with it is read with them.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_tables_hide_no_damaged_block() {
    let (bed, _) = world().await;
    let first = of_noise(&bed, 60, 3, &[]).await;
    let second = of_noise(&bed, 70, 2, &[first]).await;
    let backups = Backups::of(bed.archive.repository(), &cluster());
    assert_eq!(backups.open(second).await.unwrap().manifest().backups, [second, first]);
    let packs: Vec<String> = keys(&bed)
        .await
        .into_iter()
        .filter(|key| key.contains(&format!("{first}/")) && key.ends_with(".pack"))
        .collect();
    let flip = |key: &str| {
        let file = path(&bed, key);
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        replace(&file, &bytes);
    };
    let mut tables = Vec::new();
    for pack in &packs {
        flip(pack);
        let report = run(&bed, Depth::Full).await;
        assert_eq!(of_packs(&report), [(FindingKind::Damaged, pack.clone())]);
        if report.notes.iter().any(|note| note.contains(&format!("the rest of backup {first}"))) {
            tables.push(pack.clone());
        }
        flip(pack);
    }
    assert!(tables.len() == 1 && packs.len() > 2, "{tables:?} of {packs:?}");
    flip(&tables[0]);
    for pack in packs.iter().filter(|pack| !tables.contains(pack)) {
        flip(pack);
        let mut found = of_packs(&run(&bed, Depth::Full).await);
        found.sort();
        let mut both = [(FindingKind::Damaged, pack.clone()), (FindingKind::Damaged, tables[0].clone())];
        both.sort();
        assert_eq!(found, both);
        flip(pack);
    }
}

/// What many backups share is read once, though the backup that wrote it has expired and none of them uses all of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_shared_is_read_once() {
    let (bed, _) = world().await;
    let first = of_noise(&bed, 60, 20, &[]).await;
    let mut last = first;
    for n in 0..8 {
        last = of_noise(&bed, 61 + n, 19 - i64::try_from(n).unwrap(), &[last]).await;
    }
    let paths = ClusterPaths::new(&cluster());
    let store = bed.archive.repository().store();
    let mut stored = 0;
    for entry in store.list_all(&paths.all_data()).await.unwrap() {
        stored += entry.size;
    }
    // The writer goes, and with it the only one that uses all of its packs.
    store.delete(&paths.manifest(first)).await.unwrap();
    store.delete(&paths.intent(first)).await.unwrap();
    let before = store.requests().bytes_in;
    let report = run(&bed, Depth::Full).await;
    assert_eq!(of_packs(&report), []);
    let read = store.requests().bytes_in - before;
    println!("{stored} bytes are stored in packs, {read} were read");
    assert!(read < stored * 3 / 2, "{read} of {stored}");
    // And what is damaged in it is found all the same.
    let pack = paths.pack(first, 1);
    let file = path(&bed, pack.as_str());
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    replace(&file, &bytes);
    assert_eq!(of_packs(&run(&bed, Depth::Full).await), [(FindingKind::Damaged, pack.to_string())]);
}

/// A page of block 1 that is newer than the backups that started before this.
struct NewerThan(Lsn);

impl ContentCheck for NewerThan {
    fn pages(
        &self,
        facts: &BackupDescription,
        path: &TablePath,
        offset: u64,
        bytes: &[u8],
        bad: &mut dyn FnMut(u64, u16, u16),
    ) {
        if facts.start_lsn > self.0 && path.to_string() == "file" {
            SecondBlock.pages(facts, path, offset, bytes, bad);
        }
    }

    fn wal(&self) -> Box<dyn WalCheck> {
        Box::new(Anything)
    }
}

/// A backup of one file of four equal blocks, one of which it records as damaged.
async fn four_blocks(bed: &Bed, intent: Intent, hours: i64, recorded: Option<u64>) -> BackupId {
    let backups = Backups::of(bed.archive.repository(), &cluster());
    let options = WriteOptions::default();
    let writer = backups.begin(intent, BlockSize::new(8192).unwrap(), &options).await.unwrap();
    let mut stream = writer.stream();
    tokio::task::spawn_blocking(move || {
        let attributes = Attributes { mode: 0o700, uid: 26, gid: 26, mtime: hours };
        stream.directory(TablePath::data("").unwrap(), attributes).unwrap();
        let mut file = stream.file(TablePath::data("file").unwrap());
        file.write(&[7; 4 * 8192]).unwrap();
        let fault = PageFault::Checksum { stored: 1, computed: 2 };
        recorded.into_iter().for_each(|block| file.bad_page(block, fault));
        file.finish(attributes).unwrap();
        stream.finish().unwrap();
    })
    .await
    .unwrap();
    publish(bed, writer, hours).await
}

/// A shared block is nothing wrong in the backup that it is newer than, and damage in one that began later.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_left_to_replay_by_one_backup_is_judged_again_with_the_next() {
    let (bed, _) = world().await;
    let mut made = Vec::new();
    for (segment, hours) in [(60, 3), (70, 2)] {
        let intent = Intent { parents: made.clone(), ..intent(&bed, id(segment, hours), ago(hours)) };
        made.push(four_blocks(&bed, intent, hours, None).await);
    }
    let newer = Arc::new(NewerThan(made[0].start()));
    let report = run_with(&bed, Depth::Full, None, newer).await;
    let pages: Vec<_> = report.findings.iter().filter(|finding| finding.kind == FindingKind::Page).collect();
    assert_eq!(pages.len(), 1, "{report:#?}");
    assert_eq!(pages[0].backups, [made[1].to_string()]);
}

/// A page that its backup records as damaged counts as that, also where its LSN makes it look newer than the backup.
#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_page_counts_whatever_its_lsn_is() {
    let (bed, _) = world().await;
    let (first, second) = (intent(&bed, id(60, 3), ago(3)), intent(&bed, id(70, 2), ago(2)));
    let recorded = four_blocks(&bed, first, 3, Some(1)).await;
    let second = Intent { parents: vec![recorded], ..second };
    let later = four_blocks(&bed, second, 2, None).await;
    let newer_than_both = Arc::new(NewerThan(later.start() + 1));
    let report = run_with(&bed, Depth::Full, None, newer_than_both).await;
    assert_eq!(report.known_damaged_page_count, 1, "{report:#?}");
    assert!(report.findings.iter().all(|finding| finding.kind != FindingKind::Page), "{report:#?}");
}

/// K4: the end of a pack is read like the rest of it, and costs no backup its place.
#[tokio::test(flavor = "multi_thread")]
async fn damage_that_no_backup_needs_is_found_and_bars_none() {
    let (bed, ids) = world().await;
    let key = ClusterPaths::new(&cluster()).pack(ids[1], 0);
    let file = path(&bed, key.as_str());
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    replace(&file, &bytes);
    for depth in [Depth::Full, Depth::Sample(1.0)] {
        let report = run(&bed, depth).await;
        assert_eq!(of_packs(&report), [(FindingKind::Damaged, key.to_string())]);
        let finding = report.findings.iter().find(|finding| finding.object == key.as_str()).unwrap();
        assert!(finding.backups.is_empty(), "{finding:#?}");
    }
    let backups = Backups::of(bed.archive.repository(), &cluster());
    let announced = backups.announcements().await.unwrap().read;
    assert!(announced.iter().all(|one| one.announcement.packs.is_empty()), "{announced:?}");
}
