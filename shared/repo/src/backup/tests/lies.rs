//! Damage and lies: whatever the objects say, a reader finds out or reads what was written.

use super::*;

/// Every object of a backup with one byte changed, or cut: opening or restoring says so.
#[test]
fn damage_anywhere_is_found() {
    let tree = Tree::new([
        (b"a".to_vec(), vec![Piece::Noise(1, 200_000)]),
        (b"b/c".to_vec(), vec![Piece::Same(5, 70_000)]),
        (b"b/d".to_vec(), vec![Piece::Noise(3, 100)]),
    ]);
    runtime().block_on(async {
        for sealer in sealers() {
            let scene = scene(&sealer);
            let draft = write(&scene, id(1), &tree, 1024, 5000).await;
            let stored = wal(&draft);
            draft.publish(stored).await.unwrap();
            let all: walpoint_base::ClusterName = "main".parse().unwrap();
            let prefix: walpoint_storage::layout::Prefix = format!("clusters/{all}").parse().unwrap();
            for entry in scene.store.list_all(&prefix).await.unwrap() {
                if entry.key.file_name() == "intent" {
                    continue;
                }
                let bytes = scene.store.get(&entry.key).await.unwrap();
                let step = (bytes.len() / 60).max(1);
                for at in (0..bytes.len()).step_by(step) {
                    let mut changed = bytes.to_vec();
                    changed[at] ^= 1 << (at % 8);
                    replace(&scene, &entry.key, &changed).await;
                    let result = match scene.backups.open(id(1)).await {
                        Ok(reader) => restore(&reader, WindowLimits::default()).await.map(drop),
                        Err(error) => Err(error),
                    };
                    // A pack's empty last frame holds nothing that a restore reads.
                    let closing = entry.key.file_name().ends_with(".pack") && at + 48 >= bytes.len();
                    let Err(error) = result else {
                        assert!(closing, "byte {at} of {} of {}", bytes.len(), entry.key);
                        continue;
                    };
                    assert!(
                        matches!(error, RepoError::Corrupt { .. }),
                        "byte {at} of {}: {error}",
                        entry.key
                    );
                }
                replace(&scene, &entry.key, &bytes[..bytes.len() / 2]).await;
                let result = match scene.backups.open(id(1)).await {
                    Ok(reader) => restore(&reader, WindowLimits::default()).await.map(drop),
                    Err(error) => Err(error),
                };
                assert!(matches!(result, Err(RepoError::Corrupt { .. })), "{} was cut", entry.key);
                replace(&scene, &entry.key, &bytes).await;
            }
        }
    });
}

/// What is changed, and how.
type Lie<T> = (&'static str, fn(&mut T));

/// A manifest for `tree`, changed by `lie` and stored as if it were true.
async fn lying(tree: &Tree, lie: impl Fn(&mut Manifest)) -> Scene {
    let scene = scene(&sealers()[1]);
    let draft = write(&scene, id(1), tree, 1024, 5000).await;
    let mut manifest = draft.manifest().clone();
    lie(&mut manifest);
    let key = walpoint_storage::layout::ClusterPaths::new(&"main".parse().unwrap()).manifest(id(1));
    let object = manifest.seal(&sealers()[1], &key).unwrap();
    scene.store.create_once(&object).await.unwrap();
    scene
}

async fn read(scene: &Scene) -> walpoint_storage::Result<()> {
    let reader = scene.backups.open(id(1)).await?;
    restore(&reader, WindowLimits::default()).await.map(drop)
}

fn tree() -> Tree {
    Tree::new([
        (b"aa".to_vec(), vec![Piece::Noise(1, 700_000)]),
        (b"ab/c".to_vec(), vec![Piece::Same(5, 7000)]),
        (b"ab/d".to_vec(), vec![Piece::Noise(3, 100)]),
    ])
}

#[test]
fn a_manifest_that_lies_about_packs_and_pages_is_found_out() {
    let lies: [Lie<Manifest>; 7] = [
        ("nothing", |_| {}),
        ("a pack's size", |m| m.packs = edited(m, |packs| packs[0].size += 1)),
        ("a pack is not listed", |m| m.packs = edited(m, |packs| packs.truncate(packs.len() - 1))),
        ("an index block is another frame", |m| m.index_blocks[0].at.frame += 1),
        ("the directory is an index block", |m| m.index_blocks[0].at.frame = 0),
        ("an index block has more entries", |m| m.index_blocks[0].entries += 1),
        ("an index block begins elsewhere", |m| m.index_blocks[0].first = TablePath::data("a").unwrap()),
    ];
    runtime().block_on(async {
        for (what, lie) in lies {
            let result = read(&lying(&tree(), lie).await).await;
            let found = matches!(result, Err(RepoError::Corrupt { .. }));
            assert_eq!(found, what != "nothing", "{what}: {result:?}");
        }
    });
}

fn edited(manifest: &Manifest, edit: impl Fn(&mut Vec<PackUse>)) -> PackTable {
    let mut packs = manifest.packs.packs().to_vec();
    edit(&mut packs);
    PackTable::new(packs)
}

/// The backup of [`tree`] with another file table: its entries changed by `edit`, the bytes of its index block by `bytes`.
async fn with_table(edit: impl Fn(&mut Vec<FileEntry>), bytes: impl Fn(Vec<u8>) -> Vec<u8>) -> Scene {
    let scene = scene(&sealers()[1]);
    let draft = write(&scene, id(1), &tree(), 1024, 5000).await;
    fixtures::publish(&scene.backups, &draft, edit, bytes).await.unwrap();
    scene
}

fn file(entry: &mut FileEntry) -> &mut FileContent {
    match &mut entry.content {
        EntryContent::File(file) => file,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_table_that_lies_about_content_is_found_out() {
    // 0: the root, 1: aa (one leaf), 2: ab, 3: ab/c (7,000 bytes inline), 4: ab/d (100 bytes inline)
    let lies: [Lie<Vec<FileEntry>>; 10] = [
        ("nothing", |_| {}),
        ("a longer file", |all| file(&mut all[4]).length += 1),
        ("a shorter file", |all| file(&mut all[3]).length -= 1),
        ("another file's blocks", |all| {
            let blocks = file(&mut all[4]).blocks.clone();
            file(&mut all[3]).length = 100;
            file(&mut all[3]).blocks = blocks;
        }),
        ("another hash of a file", |all| file(&mut all[1]).hash.0[0] ^= 1),
        ("a leaf that is an index block", |all| {
            let Blocks::Leaves(runs) = &mut file(&mut all[1]).blocks else { panic!() };
            let LeafRun::Stored { at, .. } = &mut runs[0] else { panic!() };
            *at = FrameRef { backup: BackupRef::OWN, pack: PackNo(99), frame: 1 };
        }),
        ("a leaf in a pack that is not listed", |all| {
            let Blocks::Leaves(runs) = &mut file(&mut all[1]).blocks else { panic!() };
            let LeafRun::Stored { at, .. } = &mut runs[0] else { panic!() };
            at.pack = PackNo(77);
        }),
        ("a block beyond its frame", |all| {
            let mut list = BlockList::default();
            let frame = FrameRef { backup: BackupRef::OWN, pack: PackNo(0), frame: 1 };
            list.push(BlockLocation::At(BlockRef { frame, index: 254 }), 1);
            file(&mut all[4]).blocks = Blocks::Inline(list);
        }),
        ("a block with another hash", |all| {
            let Blocks::Inline(list) = &file(&mut all[4]).blocks else { panic!() };
            let place = list.runs().next().unwrap().0.place;
            let mut list = BlockList::default();
            list.push(place, 1);
            file(&mut all[4]).blocks = Blocks::Inline(list);
        }),
        ("zeros instead of content", |all| {
            let mut list = BlockList::default();
            list.push(BlockLocation::Zero, 0);
            file(&mut all[4]).blocks = Blocks::Inline(list);
        }),
    ];
    runtime().block_on(async {
        for (what, lie) in lies {
            let result = read(&with_table(lie, |bytes| bytes).await).await;
            assert_eq!(result.is_err(), what != "nothing", "{what}: {result:?}");
        }
    });
}

#[test]
fn a_file_table_that_leads_outside_is_refused_before_anything_is_handed_out() {
    let swap = |from: &'static [u8], to: &'static [u8]| {
        move |mut bytes: Vec<u8>| {
            let at = bytes.windows(from.len()).rposition(|window| window == from).unwrap();
            bytes[at..at + from.len()].copy_from_slice(to);
            bytes
        }
    };
    runtime().block_on(async {
        for (from, to) in [
            (b"ab/d", b"../d"),
            (b"ab/d", b"/b/d"),
            (b"ab/d", b"ab//"),
            (b"ab/d", b"ab/."),
            (b"ab/d", b"ab\0d"),
            (b"ab/d", b"ab/c"),
            (b"ab/d", b"ab/b"),
            (b"ab/d", b"aa/d"),
            (b"ab/d", b"ac/d"),
        ] {
            let result = read(&with_table(|_| {}, swap(from, to)).await).await;
            let text = String::from_utf8_lossy(to);
            assert!(matches!(result, Err(RepoError::Corrupt { .. })), "{text}: {result:?}");
        }

        let same = |bytes| bytes;
        let link =
            |all: &mut Vec<FileEntry>| all[2].content = EntryContent::Link { target: b"/etc".to_vec() };
        assert!(read(&with_table(link, same).await).await.is_err(), "a file below a link");
        let linked = |all: &mut Vec<FileEntry>| {
            all[2].content = EntryContent::LinkedDirectory { target: b"/etc".to_vec() }
        };
        assert!(read(&with_table(linked, same).await).await.is_ok(), "a file in a tablespace");
        let stranger = |all: &mut Vec<FileEntry>| {
            all[4].path = TablePath { root: Root::Extra(5), path: RelativePath::default() }
        };
        assert!(read(&with_table(stranger, same).await).await.is_err(), "an extra path that is not listed");
    });
}
