//! A backup from its intent to its manifest or tombstone, and what happens when something is missing.

use super::*;

#[test]
fn a_backup_exists_only_when_everything_it_needs_does() {
    let tree = Tree::new([(b"x".to_vec(), vec![Piece::Noise(1, 900_000)])]);
    runtime().block_on(async {
        let scene = scene(&sealers()[1]);
        let draft = write(&scene, id(1), &tree, 1024, 5000).await;
        let listed = scene.backups.list().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].state, ListedState::Unfinished);
        assert!(listed[0].begun.is_some());
        assert_eq!(scene.backups.standing(id(1)).await.unwrap(), ManifestState::Unfinished);
        assert_eq!(scene.backups.intent(id(1)).await.unwrap(), Some(intent(id(1))));
        assert!(scene.backups.open(id(1)).await.unwrap_err().is_not_found());

        let stored = wal(&draft);
        let less = WalStored { last: stored.first, ..stored };
        assert!(draft.publish(less).await.is_err(), "WAL is missing");

        let draft = write(&scene, id(2), &tree, 1024, 5000).await;
        let pack = scene.backups.pack_key(id(2), PackNo(1));
        let bytes = scene.store.get(&pack).await.unwrap();
        scene.store.delete(&pack).await.unwrap();
        let error = draft.publish(stored).await.unwrap_err();
        assert!(matches!(&error, RepoError::NotFound { key, .. } if *key == pack), "{error}");

        let draft = write(&scene, id(3), &tree, 1024, 5000).await;
        let pack = scene.backups.pack_key(id(3), PackNo(1));
        replace(&scene, &pack, &bytes[..bytes.len() - 1]).await;
        let error = draft.publish(stored).await.unwrap_err();
        assert!(matches!(&error, RepoError::Corrupt { key, .. } if *key == pack), "{error}");

        for n in 1..=3 {
            assert_eq!(scene.backups.standing(id(n)).await.unwrap(), ManifestState::Unfinished);
        }
    });
}

#[test]
fn finishing_and_ending_exclude_each_other() {
    let tree = Tree::new([(b"x".to_vec(), vec![Piece::Same(1, 10)])]);
    runtime().block_on(async {
        for sealer in sealers() {
            let scene = scene(&sealer);
            let draft = write(&scene, id(1), &tree, 8192, 5000).await;
            scene.backups.abort(id(1), "its process died \u{1}\"").await.unwrap();
            scene.backups.abort(id(1), "said another process too").await.unwrap();
            let stored = wal(&draft);
            assert!(draft.aborted().await.to_string().contains("its process died"));
            let error = draft.publish(stored).await.unwrap_err();
            assert!(matches!(error, RepoError::Refused { .. }), "{error}");
            assert!(error.to_string().contains("its process died"), "{error}");
            assert!(matches!(scene.backups.standing(id(1)).await.unwrap(), ManifestState::Aborted(_)));
            let error = scene.backups.open(id(1)).await.unwrap_err();
            assert!(error.to_string().contains("its process died"), "{error}");

            let draft = write(&scene, id(2), &tree, 8192, 5000).await;
            let summary = draft.publish(stored).await.unwrap();
            let error = scene.backups.abort(id(2), &"long ".repeat(10_000)).await.unwrap_err();
            assert!(matches!(error, RepoError::Conflict { .. }), "{error}");
            assert_eq!(scene.backups.summary(id(2)).await.unwrap(), summary);

            let writer =
                scene.backups.begin(intent(id(3)), BlockSize::new(1024).unwrap(), &small_packs()).await;
            writer.unwrap().abandon(&"\"".repeat(10_000)).await.unwrap();
            let states: Vec<_> = scene.backups.list().await.unwrap().iter().map(|b| b.state).collect();
            assert!(matches!(
                states[..],
                [ListedState::Aborted(_), ListedState::Finished(_), ListedState::Aborted(_)]
            ));
            let again =
                scene.backups.begin(intent(id(3)), BlockSize::new(1024).unwrap(), &small_packs()).await;
            assert!(again.is_err(), "an id is used once");
        }
    });
}

#[test]
fn progress_names_only_what_is_stored() {
    let scene = scene(&sealers()[1]);
    let size = BlockSize::new(1024).unwrap();
    runtime().block_on(async {
        let writer = Arc::new(scene.backups.begin(intent(id(1)), size, &small_packs()).await.unwrap());
        let mut stream = writer.stream();
        let (files, mut told) = (90u32, 0);
        let work = tokio::task::spawn_blocking(move || {
            for n in 0..files {
                let len = usize::try_from(n % 9 * 40_000 + 1).unwrap();
                write_file(&mut stream, format!("{n:03}").as_bytes(), &[Piece::Noise(n, len)], 10_000);
            }
            stream.finish().unwrap();
        });
        while !work.is_finished() {
            writer.progress().await.unwrap();
            told += 1;
        }
        work.await.unwrap();
        writer.progress().await.unwrap();
        writer.progress().await.unwrap();
        assert!(told > 1);

        let (mut packs, mut seen, mut n) = (Vec::new(), std::collections::BTreeSet::new(), 0);
        while let Some(progress) = scene.backups.progress(id(1), n, size).await.unwrap() {
            for pack in progress.packs.packs() {
                let meta = scene.store.head(&scene.backups.pack_key(id(1), pack.pack)).await.unwrap();
                assert_eq!(meta.map(|meta| meta.size), Some(u64::from(pack.size)));
                assert!(!packs.contains(&pack.pack));
                packs.push(pack.pack);
            }
            for range in progress.ranges {
                range.blocks.runs().for_each(|(run, _)| match run.place {
                    BlockLocation::At(at) => assert!(packs.contains(&at.frame.pack), "{range:?}"),
                    BlockLocation::Zero => {}
                });
                assert!(seen.insert((range.path, range.leaf)));
            }
            n += 1;
        }
        assert_eq!(seen.len(), 90, "each of these files is one range");
        assert_eq!(scene.backups.list().await.unwrap()[0].progress, n);
        assert_eq!(scene.backups.standing(id(1)).await.unwrap(), ManifestState::Unfinished);
    });
}

#[test]
fn rows_that_are_no_tree_are_no_backup() {
    let size = BlockSize::new(1024).unwrap();
    for (n, paths) in [&["", "a", "a"][..], &["", "a/b"], &["a"]].into_iter().enumerate() {
        let scene = scene(&sealers()[0]);
        runtime().block_on(async {
            let writer = scene.backups.begin(intent(id(1)), size, &small_packs()).await.unwrap();
            let mut stream = writer.stream();
            for path in paths {
                stream.directory(TablePath::data(*path).unwrap(), attributes(b"")).unwrap();
            }
            stream.finish().unwrap();
            assert!(writer.finish(facts(1024)).await.is_err(), "{n}");
        });
    }
}

#[test]
fn a_store_that_fails_ends_the_backup_and_blocks_nobody() {
    runtime().block_on(async {
        let scene = scene(&sealers()[0]);
        let size = BlockSize::new(8192).unwrap();
        let writer = scene.backups.begin(intent(id(1)), size, &small_packs()).await.unwrap();
        // Another pack of that name is there: the worst a store can answer to a create.
        let other =
            write(&scene, id(2), &Tree::new([(b"x".to_vec(), vec![Piece::Same(3, 9)])]), 8192, 9).await;
        drop(other);
        let bytes = scene.store.get(&scene.backups.pack_key(id(2), PackNo(0))).await.unwrap();
        replace(&scene, &scene.backups.pack_key(id(1), PackNo(0)), &bytes).await;
        let mut stream = writer.stream();
        let result = tokio::task::spawn_blocking(move || {
            let mut file = stream.file(TablePath::data("x").unwrap());
            (0..200).try_for_each(|n| file.write(&Piece::Noise(n, 100_000).bytes()))
        });
        result.await.unwrap().unwrap_err();
        assert!(writer.finish(facts(8192)).await.is_err());
    });
}
