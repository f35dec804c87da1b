//! Backups that build on others: what is stored, what is shared, and that each restores by itself.

use proptest::prelude::*;

use super::*;

/// Blocks of the clusters here.
const BLOCK: u32 = 1024;

fn building_on(id: BackupId, parents: &[BackupId], resumed: &[BackupId]) -> Intent {
    Intent { parents: parents.to_vec(), resumed: resumed.to_vec(), ..intent(id) }
}

async fn begin(scene: &Scene, intent: Intent) -> BackupWriter {
    let size = BlockSize::new(BLOCK).unwrap();
    scene.backups.begin(intent, size, &small_packs()).await.unwrap()
}

/// A whole backup on top of others.
async fn backup(scene: &Scene, intent: Intent, tree: &Tree) -> BackupSummary {
    let writer = begin(scene, intent).await;
    fill(&writer, tree, 10_000).await;
    let draft = writer.finish(facts(BLOCK)).await.unwrap();
    let wal = wal(&draft);
    draft.publish(wal).await.unwrap()
}

/// What a backup stored, in packs.
fn stored(summary: &BackupSummary) -> u64 {
    summary.totals.stored
}

async fn check(scene: &Scene, id: BackupId, tree: &Tree) {
    let reader = scene.backups.open(id).await.unwrap();
    equals(&reader, tree, WindowLimits::default()).await;
    check_live_counts(&reader).await;
    let Manifest { backups, packs, summary, .. } = reader.manifest();
    assert_eq!(backups[1..], summary.parents[..]);
    for (n, id) in backups.iter().enumerate().skip(1) {
        assert!(packs.packs().iter().any(|pack| usize::from(pack.backup.0) == n), "{id} is not used");
    }
}

fn large() -> Tree {
    Tree::new([
        (b"base/1".to_vec(), vec![Piece::Noise(1, 5_000_000)]),
        (b"base/2".to_vec(), vec![Piece::Noise(2, 3_000_000), Piece::Hole(9_000_000), Piece::Noise(3, 777)]),
        (b"base/3".to_vec(), vec![Piece::Noise(4, 10_000)]),
        (b"empty".to_vec(), vec![]),
    ])
}

#[test]
fn nothing_that_did_not_change_is_stored_again() {
    runtime().block_on(async {
        for sealer in sealers() {
            let scene = scene(&sealer);
            let mut tree = large();
            let full = backup(&scene, intent(id(1)), &tree).await;
            // The blocks at the edges of the hole hold zeros, too.
            let all = full.totals.new_bytes;
            assert!(full.totals.reused_bytes == 0 && (8_010_777..8_010_777 + 2048).contains(&all));
            let idle = backup(&scene, building_on(id(2), &[id(1)], &[]), &tree).await;
            assert_eq!((stored(&idle), idle.totals.new_bytes), (0, 0), "{idle:?}");
            assert_eq!(idle.totals.reused_bytes, all);
            assert_eq!(idle.parents, [id(1)]);
            assert_eq!(idle.totals.blocks, full.totals.blocks);
            let reader = scene.backups.open(id(2)).await.unwrap();
            assert_eq!(reader.manifest().packs.packs().len(), full_packs(&scene, id(1)).await);

            // One block in the middle of a file of several leaves, and the index block.
            tree.files.insert(b"base/1".to_vec(), vec![Piece::Noise(1, 3_000_000)]);
            let cut = backup(&scene, building_on(id(3), &[id(2)], &[]), &tree).await;
            assert_eq!(cut.totals.new_bytes, 3_000_000 % 1024, "the last block became shorter");
            let mut pieces = tree.files[&b"base/1"[..]].clone();
            pieces.push(Piece::Same(7, 5000));
            tree.files.insert(b"base/1".to_vec(), pieces);
            let grown = backup(&scene, building_on(id(4), &[id(3)], &[]), &tree).await;
            assert_eq!(grown.totals.new_bytes, (3_000_000 % 1024) + 5000);
            assert!(stored(&grown) < 30_000, "{grown:?}");
            check(&scene, id(4), &tree).await;
            check(&scene, id(2), &large()).await;
        }
    });
}

async fn full_packs(scene: &Scene, id: BackupId) -> usize {
    scene.backups.open(id).await.unwrap().manifest().packs.packs().len()
}

#[test]
fn an_unfinished_backup_is_gone_on_with() {
    runtime().block_on(async {
        for sealer in sealers() {
            let scene = scene(&sealer);
            let tree = large();
            // Dies in the middle of the longest file, and once more.
            for n in 1..=2u32 {
                let resumed: Vec<BackupId> = (1..n).map(id).collect();
                let writer = begin(&scene, building_on(id(n), &[], &resumed)).await;
                let mut stream = writer.stream();
                let stream = tokio::task::spawn_blocking(move || {
                    write_file(&mut stream, b"base/3", &[Piece::Noise(4, 10_000)], 5000);
                    let mut file = stream.file(TablePath::data("base/1").unwrap());
                    let noise = Piece::Noise(1, 5_000_000).bytes();
                    let most = if n == 1 { 2_500_000 } else { 4_500_000 };
                    file.write(&noise[..most]).unwrap();
                    drop(file);
                    stream.finish().unwrap();
                });
                stream.await.unwrap();
                writer.progress().await.unwrap();
            }
            let whole = backup(&scene, building_on(id(3), &[], &[id(1), id(2)]), &tree).await;
            // Two leaves of 2 MiB and the small file are there.
            assert_eq!(whole.totals.reused_bytes, (4 << 20) + 10_000, "{whole:?}");
            let new = 8_010_777 - whole.totals.reused_bytes;
            assert!((new..new + 2048).contains(&whole.totals.new_bytes), "{whole:?}");
            assert_eq!(whole.parents, [id(2), id(1)]);
            check(&scene, id(3), &tree).await;

            // One of its packs is gone: it is noticed before it is believed, and stored again.
            let pack = scene.backups.pack_key(id(1), PackNo(1));
            scene.store.delete(&pack).await.unwrap();
            let again = begin(&scene, building_on(id(4), &[], &[id(1), id(2)])).await;
            let notes = again.take_notes();
            assert!(notes[0].what.contains("stored again"), "{notes:?}");
            fill(&again, &tree, 10_000).await;
            let draft = again.finish(facts(BLOCK)).await.unwrap();
            let wal = wal(&draft);
            let again = draft.publish(wal).await.unwrap();
            assert!(again.totals.reused_bytes < whole.totals.reused_bytes);
            assert!(again.totals.reused_bytes > 0);
            check(&scene, id(4), &tree).await;
        }
    });
}

#[test]
fn what_an_unfinished_backup_stored_is_read_before_it_is_used() {
    runtime().block_on(async {
        for sealer in sealers() {
            let scene = scene(&sealer);
            let tree = large();
            let writer = begin(&scene, intent(id(1))).await;
            let mut stream = writer.stream();
            let stream = tokio::task::spawn_blocking(move || {
                write_file(&mut stream, b"base/1", &[Piece::Noise(1, 5_000_000)], 5000);
                stream.finish().unwrap();
            });
            stream.await.unwrap();
            writer.progress().await.unwrap();
            drop(writer);
            let pack = scene.backups.pack_key(id(1), PackNo(1));
            let mut bytes = scene.store.get(&pack).await.unwrap().to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            replace(&scene, &pack, &bytes).await;
            let again = begin(&scene, building_on(id(2), &[], &[id(1)])).await;
            let notes = again.take_notes();
            assert!(
                notes[0].what.starts_with("1 packs of earlier backups are missing, damaged"),
                "{notes:?}"
            );
            fill(&again, &tree, 10_000).await;
            let draft = again.finish(facts(BLOCK)).await.unwrap();
            let wal = wal(&draft);
            assert!(draft.publish(wal).await.unwrap().totals.reused_bytes > 0);
            check(&scene, id(2), &tree).await;
        }
    });
}

#[test]
fn what_is_announced_or_missing_is_stored_again() {
    runtime().block_on(async {
        let scene = scene(&sealers()[1]);
        let tree = large();
        let full = backup(&scene, intent(id(1)), &tree).await;
        let announce = |backups: Vec<BackupId>, packs: Vec<AnnouncedPacks>| Announcement {
            written: facts(BLOCK).ended,
            host: "db1".to_owned(),
            agent: "0.1.0".to_owned(),
            reason: AnnouncementReason::Damaged,
            backups,
            packs,
            wal: Vec::new(),
            requests: Vec::new(),
        };
        let some = AnnouncedPacks { backup: id(1), first: 2, count: 3 };
        let n = scene.backups.announce(&announce(vec![], vec![some])).await.unwrap();
        let healed = backup(&scene, building_on(id(2), &[id(1)], &[]), &tree).await;
        assert!(healed.totals.new_bytes > 600_000 && healed.totals.reused_bytes > 5_000_000, "{healed:?}");
        let reader = scene.backups.open(id(2)).await.unwrap();
        let used = reader.manifest().packs.packs().iter().filter(|p| p.backup != BackupRef::OWN);
        assert!(used.clone().count() > 10 && !used.clone().any(|p| (2..5).contains(&p.pack.0)));
        check(&scene, id(2), &tree).await;

        // Announcement while it is being written.
        let writer = begin(&scene, building_on(id(3), &[id(2)], &[])).await;
        fill(&writer, &tree, 10_000).await;
        let draft = writer.finish(facts(BLOCK)).await.unwrap();
        let late = AnnouncedPacks { backup: id(1), first: 9, count: 1 };
        let later = scene.backups.announce(&announce(vec![], vec![late])).await.unwrap();
        let stored = wal(&draft);
        let error = draft.publish(stored).await.unwrap_err();
        assert!(error.to_string().contains("marked as expired or damaged while the backup ran"), "{error}");

        // The parent itself is announced: the next one counts. Of its packs none is, or it could be one with tables, which
        // no backup reads from an announced pack.
        scene.backups.absolve(n).await.unwrap();
        scene.backups.absolve(later).await.unwrap();
        scene.backups.announce(&announce(vec![id(2)], vec![])).await.unwrap();
        let next = backup(&scene, building_on(id(4), &[id(2), id(1)], &[]), &tree).await;
        assert_eq!(next.parents, [id(1)]);
        assert!(next.totals.new_bytes < 400_000, "{next:?}");
        // Another block size: nothing builds on it.
        let size = BlockSize::new(2048).unwrap();
        let other =
            scene.backups.begin(building_on(id(5), &[id(1)], &[]), size, &small_packs()).await.unwrap();
        assert_eq!(other.parent(), None);
        let notes = other.take_notes();
        assert!(notes[0].what.contains("another size"), "{notes:?}");
        // A damaged file table: the parent before it counts.
        let reader = scene.backups.open(id(1)).await.unwrap();
        let block = reader.manifest().index_blocks[0].at;
        let key = scene.backups.pack_key(id(1), block.pack);
        let mut bytes = scene.store.get(&key).await.unwrap().to_vec();
        let size = bytes.len();
        bytes[size / 2..].fill(0);
        replace(&scene, &key, &bytes).await;
        let last = begin(&scene, building_on(id(6), &[id(1)], &[])).await;
        assert_eq!(last.parent(), None);
        assert!(full.totals.stored > 0);
    });
}

/// Of a file that is as long as one of the parent, and another one, no more than a leaf has to be read to see that; of a short
/// one no more than a block.
#[test]
fn another_file_of_a_known_length_is_known_by_its_beginning() {
    runtime().block_on(async {
        let scene = scene(&sealers()[1]);
        let tree = large();
        backup(&scene, intent(id(1)), &tree).await;
        let writer = begin(&scene, building_on(id(2), &[id(1)], &[])).await;
        let stream = writer.stream();
        let work = tokio::task::spawn_blocking(move || {
            let told = |pieces: &[Piece]| {
                let bytes: Vec<u8> = pieces.iter().flat_map(Piece::bytes).collect();
                let length = u64::try_from(bytes.len()).unwrap();
                let mut hasher = stream.hasher();
                for (n, block) in (1u32..).zip(bytes.chunks(BLOCK as usize)) {
                    hasher.update(block);
                    if let Some(may_be) = stream.may_still_be_elsewhere(length, &hasher).unwrap() {
                        return (n, may_be);
                    }
                }
                panic!("nothing is known of its beginning");
            };
            assert_eq!(told(&[Piece::Noise(1, 5_000_000)]), (2048, true));
            assert_eq!(told(&[Piece::Noise(7, 5_000_000)]), (2048, false));
            assert_eq!(told(&[Piece::Noise(4, 10_000)]), (1, true));
            assert_eq!(told(&[Piece::Noise(8, 10_000)]), (1, false));
            stream.finish().unwrap();
        });
        work.await.unwrap();
    });
}

#[test]
fn a_file_new_at_its_path_is_found_by_its_content() {
    runtime().block_on(async {
        let scene = scene(&sealers()[1]);
        let mut tree = large();
        backup(&scene, intent(id(1)), &tree).await;
        tree = Tree::new(tree.files);
        for name in ["1", "2", "3"] {
            let pieces = tree.files[format!("base/{name}").as_bytes()].clone();
            tree.files.insert(format!("copied/{name}").into_bytes(), pieces);
        }
        tree.files.insert(b"copied/4".to_vec(), vec![Piece::Noise(99, 10_000)]);
        tree = Tree::new(tree.files);
        let writer = begin(&scene, building_on(id(2), &[id(1)], &[])).await;
        let (mut stream, all) = (writer.stream(), tree.clone());
        let found = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for (path, pieces) in &all.files {
                let table_path = TablePath::data(path.clone()).unwrap();
                let bytes: Vec<u8> = pieces.iter().flat_map(Piece::bytes).collect();
                let length = u64::try_from(bytes.len()).unwrap();
                if stream.may_be_elsewhere(&table_path, length).unwrap() {
                    let mut hasher = stream.hasher();
                    hasher.update(&bytes);
                    if stream.same_file(&table_path, hasher.finish(), attributes(path)).unwrap() {
                        found.push(String::from_utf8(path.clone()).unwrap());
                        continue;
                    }
                }
                write_file(&mut stream, path, pieces, 10_000);
            }
            for path in &all.directories {
                stream.directory(TablePath::data(path.clone()).unwrap(), attributes(path)).unwrap();
            }
            stream.finish().unwrap();
            found
        });
        assert_eq!(found.await.unwrap(), ["copied/1", "copied/2", "copied/3"]);
        let draft = writer.finish(facts(BLOCK)).await.unwrap();
        let stored = wal(&draft);
        let summary = draft.publish(stored).await.unwrap();
        assert_eq!(summary.totals.new_bytes, 10_000);
        // Blocks that two files share are counted for both, but a pack is never more than fully used.
        let reader = scene.backups.open(id(2)).await.unwrap();
        equals(&reader, &tree, WindowLimits::default()).await;
    });
}

/// A backup that began after so many segments of WAL.
fn at_segment(n: u32, segment: u64) -> (BackupId, BackupDescription) {
    let start = Lsn((segment << 24) + 40);
    let facts = BackupDescription { start_lsn: start, stop_lsn: Lsn((segment + 1) << 24), ..facts(BLOCK) };
    (BackupId::new(facts.started, facts.start_timeline, start, n), facts)
}

#[test]
fn packs_that_are_mostly_dead_are_emptied() {
    runtime().block_on(async {
        let scene = scene(&sealers()[1]);
        let blocks = 4000;
        // Blocks of all files change at random: every pack stays in use a little for long.
        let mut seeds: Vec<u32> = (0..blocks).collect();
        let tree = |seeds: &[u32]| {
            Tree::new((0..40usize).map(|n| {
                let pieces = seeds[n * 100..(n + 1) * 100].iter().map(|seed| Piece::Noise(*seed, 1024));
                (format!("base/{n:02}").into_bytes(), pieces.collect())
            }))
        };
        let (mut random, mut parent, mut again) = (1u32, Vec::new(), 0);
        for n in 0..24u32 {
            // Every other time nothing changes.
            let changed = if n > 0 && n.is_multiple_of(2) { 400 } else { 0 };
            for _ in 0..changed {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let block = usize::try_from(random >> 8).unwrap() % seeds.len();
                seeds[block] = random | 1 << 31;
            }
            // The parent's segment and the next one were ended early; what is between is WAL of changes.
            let segment = if changed > 0 { 2 } else { 1 } + u64::from(n) * 3;
            let (id, facts) = at_segment(n, segment);
            let writer = begin(&scene, building_on(id, &parent, &[])).await;
            let tree = tree(&seeds);
            fill(&writer, &tree, 10_000).await;
            let draft = writer.finish(facts).await.unwrap();
            let wal = wal(&draft);
            let summary = draft.publish(wal).await.unwrap();
            parent = vec![id];
            check(&scene, id, &tree).await;

            let reader = scene.backups.open(id).await.unwrap();
            let packs = reader.manifest().packs.packs();
            let held: u64 = packs.iter().map(|pack| u64::from(pack.size)).sum();
            let new_blocks = summary.totals.new_bytes / 1024;
            match n {
                0 => assert_eq!(new_blocks, u64::from(blocks)),
                _ if changed == 0 => assert_eq!(summary.totals.stored, 0, "{n}: nothing changed"),
                _ => again += new_blocks - new_blocks.min(400),
            }
            assert!(held < 4_096_000 * 3 / 2, "{n}: {held} bytes are held");
        }
        assert!(again > 400 && again < 2 * 11 * 400, "{again} blocks were stored again");
    });
}

/// What happens to a tree between two backups.
#[derive(Clone, Debug)]
enum Change {
    Write(usize, u32, usize),
    Grow(usize, u32, usize),
    Cut(usize, usize),
    Punch(usize, usize),
    Drop(usize),
    Create(usize, u32, usize),
    Swap(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let (file, seed, place) = (0usize..12, 0u32..50, 0usize..2_500_000);
    prop_oneof![
        (file.clone(), seed.clone(), place.clone()).prop_map(|(f, s, p)| Change::Write(f, s, p)),
        (file.clone(), seed.clone(), 0usize..9000).prop_map(|(f, s, p)| Change::Grow(f, s, p)),
        (file.clone(), place.clone()).prop_map(|(f, p)| Change::Cut(f, p)),
        (file.clone(), place.clone()).prop_map(|(f, p)| Change::Punch(f, p)),
        file.clone().prop_map(Change::Drop),
        (file.clone(), seed, place).prop_map(|(f, s, p)| Change::Create(f, s, p)),
        (file.clone(), file).prop_map(|(a, b)| Change::Swap(a, b)),
    ]
}

/// Files as bytes: the model.
type Files = BTreeMap<Vec<u8>, Vec<u8>>;

fn apply(files: &mut Files, change: &Change) {
    let name = |n: usize| format!("base/{}/{n}", n % 3).into_bytes();
    let noise = |seed: u32, len: usize| Piece::Noise(seed, len).bytes();
    match *change {
        Change::Create(n, seed, len) => drop(files.insert(name(n), noise(seed, len))),
        Change::Drop(n) => drop(files.remove(&name(n))),
        Change::Swap(a, b) => {
            let (one, two) = (files.remove(&name(a)), files.remove(&name(b)));
            files.extend(one.map(|bytes| (name(b), bytes)));
            if a != b {
                files.extend(two.map(|bytes| (name(a), bytes)));
            }
        }
        Change::Write(n, seed, at) => {
            if let Some(bytes) = files.get_mut(&name(n)) {
                let end = bytes.len().min(at + 3000);
                let noise = noise(seed, 3000);
                let begin = at.min(end);
                bytes[begin..end].copy_from_slice(&noise[..end - begin]);
            }
        }
        Change::Grow(n, seed, len) => {
            if let Some(bytes) = files.get_mut(&name(n)) {
                bytes.extend(noise(seed, len));
            }
        }
        Change::Cut(n, len) => {
            if let Some(bytes) = files.get_mut(&name(n)) {
                bytes.truncate(len);
            }
        }
        Change::Punch(n, at) => {
            if let Some(bytes) = files.get_mut(&name(n)) {
                let end = bytes.len().min(at + 50_000);
                bytes[at.min(end)..end].fill(0);
            }
        }
    }
}

/// Writes the model by one stream; `most`: dies after that many files.
async fn write_model(writer: &BackupWriter, files: &Files, most: usize) {
    let (mut stream, files) = (writer.stream(), files.clone());
    let work = tokio::task::spawn_blocking(move || {
        for path in ["", "base", "base/0", "base/1", "base/2"] {
            stream.directory(TablePath::data(path).unwrap(), attributes(path.as_bytes())).unwrap();
        }
        for (path, bytes) in files.iter().take(most) {
            let table_path = TablePath::data(path.clone()).unwrap();
            let length = u64::try_from(bytes.len()).unwrap();
            if stream.may_be_elsewhere(&table_path, length).unwrap() {
                let mut hasher = stream.hasher();
                hasher.update(bytes);
                let may_be = stream.may_still_be_elsewhere(length, &hasher).unwrap();
                if stream.same_file(&table_path, hasher.finish(), attributes(path)).unwrap() {
                    assert_ne!(may_be, Some(false), "its beginning belied it");
                    continue;
                }
            }
            let mut file = stream.file(table_path);
            file.write(bytes).unwrap();
            file.finish(attributes(path)).unwrap();
        }
        stream.finish().unwrap();
    });
    work.await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Random histories: every backup, however deep, restores to what the cluster was, also after others died.
    #[test]
    fn every_backup_of_a_random_history_restores(
        steps in proptest::collection::vec((proptest::collection::vec(change(), 0..7), any::<bool>(), 0usize..12), 2..7),
        encrypted: bool,
    ) {
        runtime().block_on(async {
            let scene = scene(&sealers()[usize::from(encrypted)]);
            let mut files = Files::new();
            for n in 0..8 {
                apply(&mut files, &Change::Create(n, 100 + u32::try_from(n).unwrap(), n * n * 40_000));
            }
            let (mut made, mut dead): (Vec<(BackupId, Files)>, Vec<BackupId>) = Default::default();
            for (n, (changes, dies, most)) in (1u32..).zip(&steps) {
                changes.iter().for_each(|change| apply(&mut files, change));
                let parents: Vec<BackupId> = made.last().map(|(id, _)| *id).into_iter().collect();
                let writer = begin(&scene, building_on(id(n), &parents, &dead)).await;
                if *dies {
                    write_model(&writer, &files, *most).await;
                    writer.progress().await.unwrap();
                    dead.push(id(n));
                    continue;
                }
                write_model(&writer, &files, usize::MAX).await;
                assert_eq!(writer.take_notes(), []);
                let draft = writer.finish(facts(BLOCK)).await.unwrap();
                let stored = wal(&draft);
                draft.publish(stored).await.unwrap();
                made.push((id(n), files.clone()));
                dead.clear();
            }
            for (id, files) in &made {
                let reader = scene.backups.open(*id).await.unwrap();
                let restored = restore(&reader, WindowLimits { blocks: 700, entries: 5 }).await.unwrap();
                assert!(restored == *files, "{id} restores to something else");
                check_live_counts(&reader).await;
            }
        });
    }
}
