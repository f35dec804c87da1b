//! What goes into a backup comes out of it, whatever it is.

use proptest::prelude::*;

use super::*;

#[test]
fn odd_names_links_empty_and_sparse_files_come_back() {
    let names: [&[u8]; 9] = [
        b"PG_VERSION",
        b"base/1/1259",
        b"base/1/1259_fsm",
        b"base/1-2/x",
        b"base/\xFF\xFE\x01",
        b"base/new\nline",
        b"base/...",
        b"-rf",
        b" ",
    ];
    let mut pieces = [
        vec![],
        vec![Piece::Same(7, 3)],
        vec![Piece::Hole(1)],
        vec![Piece::Hole(40 << 20), Piece::Noise(1, 5), Piece::Hole(3 << 20)],
        vec![Piece::Noise(2, 3 << 20)],
        vec![Piece::Same(0, 9 << 20), Piece::Same(1, 1 << 20)],
        vec![Piece::Same(b'x', 100_000)],
        vec![Piece::Hole(2048 * 1024)],
        vec![Piece::Noise(3, 1)],
    ]
    .into_iter();
    let mut tree = Tree::new(names.map(|name| (name.to_vec(), pieces.next().unwrap())));
    tree.links.push((b"base/link".to_vec(), b"/anywhere/../\xFF".to_vec()));
    for sealer in sealers() {
        let limits = WindowLimits { blocks: 700, entries: 3 };
        runtime().block_on(round_trip(&sealer, &tree, 1024, 100_000, limits));
        runtime().block_on(round_trip(&sealer, &tree, 8192, 1 << 17, WindowLimits::default()));
    }
}

#[test]
fn lengths_around_every_boundary_come_back() {
    let block = 1024usize;
    let around = [0, 1, 16, 63, 64, 65, 127, 128, 129, 255, 2047, 2048, 2049, 4096];
    let lengths = around.into_iter().flat_map(|blocks: usize| {
        [(blocks * block).checked_sub(1), Some(blocks * block), Some(blocks * block + 1)]
    });
    let files = lengths
        .flatten()
        .zip(0u32..)
        .map(|(len, seed)| (format!("base/{len}-{seed}").into_bytes(), vec![Piece::Noise(seed, len)]));
    let tree = Tree::new(files);
    runtime().block_on(round_trip(
        &sealers()[0],
        &tree,
        1024,
        8192,
        WindowLimits { blocks: 3000, entries: 100 },
    ));
}

#[test]
fn a_file_of_a_terabyte_that_is_nearly_all_holes_costs_nearly_nothing() {
    let scene = scene(&sealers()[0]);
    let size = BlockSize::new(8192).unwrap();
    runtime().block_on(async {
        let writer = scene.backups.begin(intent(id(1)), size, &WriteOptions::default()).await.unwrap();
        let mut stream = writer.stream();
        stream.directory(TablePath::data("").unwrap(), attributes(b"")).unwrap();
        let summary = tokio::task::spawn_blocking(move || {
            let mut file = stream.file(TablePath::data("sparse").unwrap());
            // More runs of leaves than fit one node.
            for n in 0..600u32 {
                file.zeros(1750 << 20).unwrap();
                file.write(&Piece::Noise(n, 10_000).bytes()).unwrap();
            }
            let summary = file.finish(attributes(b"")).unwrap();
            stream.finish().unwrap();
            summary
        });
        let length = summary.await.unwrap().length;
        assert_eq!(length, 600 * ((1750 << 20) + 10_000));
        let draft = writer.finish(facts(8192)).await.unwrap();
        let wal = wal(&draft);
        let totals = draft.publish(wal).await.unwrap().totals;
        assert!(totals.stored < 8 << 20, "{totals:?}");
        assert_eq!(totals.bytes, length);

        let reader = scene.backups.open(id(1)).await.unwrap();
        let entry = reader.find(&TablePath::data("sparse").unwrap()).await.unwrap().unwrap();
        let EntryContent::File(file) = &entry.content else { panic!("{entry:?}") };
        assert!(matches!(&file.blocks, Blocks::Nodes(nodes) if nodes.len() > 1));
        let mut hasher = reader.content_hasher();
        for n in 0..600u32 {
            hasher.zeros(1750 << 20);
            hasher.update(&Piece::Noise(n, 10_000).bytes());
        }
        assert_eq!(hasher.finish(), (file.length, file.hash));
        let mut windows = reader.windows(WindowLimits { blocks: 10_000, entries: 10 });
        let (mut begins, mut ends, mut delivered) = (0, 0, 0u64);
        while let Some(window) = windows.next().await.unwrap() {
            begins += window.parts().iter().filter(|part| part.begins).count();
            ends += window.parts().iter().filter(|part| part.ends).count();
            for unit in window.units() {
                let fetched = reader.fetch(&unit).await.unwrap();
                let add = |piece: FilePiece<'_>| {
                    delivered += u64::try_from(piece.bytes.len()).unwrap();
                    Ok::<_, RepoError>(())
                };
                reader.scatter(&unit, &fetched, add).unwrap();
            }
        }
        assert_eq!((begins, ends), (2, 2), "the directory and the file");
        assert!(delivered >= 6_000_000, "{delivered}");
    });
}

#[test]
fn many_small_files_share_frames_and_are_read_with_few_requests() {
    let files = (0..20_000u32).map(|n| {
        (format!("base/{}/{n}", n % 7).into_bytes(), vec![Piece::Same(u8::try_from(n % 251).unwrap(), 30)])
    });
    let tree = Tree::new(files);
    let scene = scene(&sealers()[0]);
    runtime().block_on(async {
        let draft = write(&scene, id(1), &tree, 8192, 1 << 17).await;
        let wal = wal(&draft);
        draft.publish(wal).await.unwrap();
        let reader = scene.backups.open(id(1)).await.unwrap();
        let before = scene.store.requests();
        let restored = restore(&reader, WindowLimits::default()).await.unwrap();
        let after = scene.store.requests();
        assert_eq!(restored.len(), 20_000);
        assert!(after.get - before.get < 60, "{} requests", after.get - before.get);
        let packs = reader.manifest().packs.packs();
        assert!(packs.len() < 20, "{} packs", packs.len());
    });
}

#[test]
fn what_vanishes_while_it_is_read_leaves_nothing() {
    let scene = scene(&sealers()[0]);
    runtime().block_on(async {
        let size = BlockSize::new(1024).unwrap();
        let writer = scene.backups.begin(intent(id(1)), size, &small_packs()).await.unwrap();
        let mut stream = writer.stream();
        let stream = tokio::task::spawn_blocking(move || {
            stream.directory(TablePath::data("").unwrap(), attributes(b"")).unwrap();
            write_file(&mut stream, b"a", &[Piece::Noise(1, 700)], 100);
            let mut gone = stream.file(TablePath::data("gone").unwrap());
            gone.write(&Piece::Noise(2, 70_000).bytes()).unwrap();
            drop(gone);
            write_file(&mut stream, b"b", &[Piece::Noise(3, 1700)], 100);
            let mut bad = stream.file(TablePath::data("bad").unwrap());
            bad.write(&[5; 2048]).unwrap();
            bad.bad_page(1, PageFault::Checksum { stored: 4, computed: 5 });
            bad.finish(attributes(b"bad")).unwrap();
            stream.finish()
        });
        stream.await.unwrap().unwrap();
        let draft = writer.finish(facts(1024)).await.unwrap();
        assert_eq!(draft.manifest().summary.totals.bad_pages, 1);
        assert_eq!(draft.manifest().findings[0].path, TablePath::data("bad").unwrap());
        let wal = wal(&draft);
        draft.publish(wal).await.unwrap();
        let reader = scene.backups.open(id(1)).await.unwrap();
        assert_eq!(reader.find(&TablePath::data("gone").unwrap()).await.unwrap(), None);
        let restored = restore(&reader, WindowLimits::default()).await.unwrap();
        assert_eq!(restored[&b"a"[..]], Piece::Noise(1, 700).bytes());
        assert_eq!(restored[&b"b"[..]], Piece::Noise(3, 1700).bytes());
        let dead: u32 = reader.manifest().packs.packs().iter().map(|pack| pack.units - pack.live).sum();
        assert_eq!(dead, 68, "the whole blocks of the file that vanished");
    });
}

#[test]
fn only_wanted_blocks_are_read() {
    let tree = Tree::new([
        (b"a".to_vec(), vec![Piece::Noise(1, 300_000), Piece::Hole(5000), Piece::Noise(2, 3_000_000)]),
        (b"b".to_vec(), vec![Piece::Noise(3, 20_000)]),
    ]);
    let scene = scene(&sealers()[0]);
    runtime().block_on(async {
        let draft = write(&scene, id(1), &tree, 1024, 5000).await;
        let wal = wal(&draft);
        draft.publish(wal).await.unwrap();
        let reader = scene.backups.open(id(1)).await.unwrap();
        let window = reader.windows(WindowLimits::default()).next().await.unwrap().unwrap();
        let contents: Vec<Vec<u8>> = (window.parts().iter())
            .map(|part| tree.files.get(part.entry.path.path.as_bytes()))
            .map(|pieces| pieces.into_iter().flatten().flat_map(Piece::bytes).collect())
            .collect();
        let (mut asked, mut wanted, mut got) = (0, std::collections::BTreeSet::new(), Vec::new());
        let units = window.units_of(|part, block, hash| {
            asked += 1;
            let start = usize::try_from(block * 1024).unwrap();
            let end = (start + 1024).min(contents[part].len());
            assert_eq!(reader.hashing().block(&contents[part][start..end]), hash);
            let wants = block % 7 != 3 && block % 100 < 60;
            wants.then(|| wanted.insert((part, block)));
            wants
        });
        for unit in units {
            let fetched = reader.fetch(&unit).await.unwrap();
            let take = |piece: FilePiece<'_>| {
                let start = usize::try_from(piece.offset).unwrap();
                assert_eq!(piece.bytes, &contents[piece.part][start..start + piece.bytes.len()]);
                let blocks = u64::try_from(piece.bytes.len()).unwrap().div_ceil(1024);
                got.extend((0..blocks).map(|n| (piece.part, piece.offset / 1024 + n)));
                Ok::<_, RepoError>(())
            };
            reader.scatter(&unit, &fetched, take).unwrap();
        }
        got.sort_unstable();
        assert_eq!(got, wanted.into_iter().collect::<Vec<_>>());
        assert_eq!(asked, reader.manifest().summary.totals.blocks);
        let zeros: Vec<_> = window.zero_runs().collect();
        assert_eq!(
            zeros,
            [ZeroRun { part: 1, offset: 300_032, length: 4096 }],
            "the blocks of a that are all hole"
        );
    });
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        (any::<u32>(), 0usize..20_000).prop_map(|(seed, len)| Piece::Noise(seed, len)),
        (any::<u8>(), 0usize..300_000).prop_map(|(value, len)| Piece::Same(value, len)),
        (0u64..5_000_000).prop_map(Piece::Hole),
    ]
}

fn trees() -> impl Strategy<Value = Tree> {
    let name = proptest::collection::vec(any::<u8>(), 1..6);
    let file = (name, proptest::collection::vec(piece(), 0..4));
    proptest::collection::vec(file, 0..12).prop_map(|files| {
        let good = |path: &Vec<u8>| RelativePath::new(path.clone()).is_ok();
        let mut tree = Tree::new(files.into_iter().filter(|(path, _)| good(path)));
        let directories = tree.directories.clone();
        tree.files.retain(|path, _| !directories.contains(path));
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_tree_comes_back(tree in trees(), step in 1000usize..40_000, blocks in 1u32..5000, entries in 1usize..20) {
        let limits = WindowLimits { blocks, entries };
        runtime().block_on(round_trip(&sealers()[0], &tree, 1024, step, limits));
    }
}
