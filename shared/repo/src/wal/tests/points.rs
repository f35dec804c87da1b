//! Restore points beside the segments that they are in.

use futures_util::TryStreamExt;
use walpoint_base::facts::RestorePoint;
use walpoint_base::{Lsn, PgTimestamp, SegmentFacts};
use walpoint_storage::error::RepoError;
use walpoint_storage::layout::{ClusterObject, ClusterPaths, Key};

use super::{Bed, NAME, beds, facts_of_size, segment};
use crate::wal::*;

#[tokio::test]
async fn restore_points_are_found_by_name() {
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let facts = facts_of_size(NAME, true, size);
        archive.put_segment(&facts, segment(size, 1), WalFlags::default()).await.unwrap();
        let points = archive.points_named("before upgrade").await.unwrap().points;
        assert_eq!(points, archive.points().await.unwrap().points);
        assert_eq!((points.len(), points[0].timeline), (1, facts.name.timeline));
        assert_eq!(archive.point(&points[0]).await.unwrap().as_ref(), Some(&facts.restore_points[0]));
        assert_eq!(archive.points_named("before").await.unwrap().points, []);
    }
}

/// Promise 3: valid WAL is not refused for what only helps to find a name.
#[tokio::test]
async fn a_damaged_restore_point_keeps_no_segment_from_being_stored() {
    for Bed { archive, dir, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let one = facts_of_size(NAME, true, size);
        let first = one.restore_points[0].clone();
        let point = |n: u64| RestorePoint { lsn: Lsn(first.lsn.0 + 8 * n), ..first.clone() };
        let many = SegmentFacts { restore_points: (0..9).map(point).collect(), ..one.clone() };
        for facts in [one, many] {
            let put = async || archive.put_segment(&facts, segment(size, 1), WalFlags::default()).await;
            assert_eq!(put().await.unwrap(), Stored::New);
            let listed = archive.store().list(&archive.paths().points(), None).map_ok(|entry| entry.key);
            let keys: Vec<Key> = listed.try_collect().await.unwrap();
            assert_eq!(keys.len(), 1, "{keys:?}");
            let (object, whole) = (dir.path().join(keys[0].as_str()), archive.paths().segment(facts.name));
            let whole = dir.path().join(whole.as_str());
            let mut damaged = std::fs::read(&object).unwrap();
            *damaged.last_mut().unwrap() ^= 1;
            walpoint_base::durable::replace(&object, &damaged, 0o600).unwrap();
            std::fs::remove_file(&whole).unwrap();
            assert_eq!(put().await.unwrap(), Stored::New);
            assert_eq!(std::fs::read(&object).unwrap(), damaged, "it is left to a person");

            // The way out.
            std::fs::remove_file(&object).unwrap();
            assert_eq!(put().await.unwrap(), Stored::Same);
            let found = archive.points_named(&first.name).await.unwrap();
            assert_eq!((found.points.len(), found.damaged.len()), (facts.restore_points.len(), 0));
            std::fs::remove_file(&object).unwrap();
            std::fs::remove_file(&whole).unwrap();
        }
    }
}

/// However many a segment holds, they are a few objects, which are listed, found by name, deleted and known as damaged.
#[tokio::test]
async fn many_restore_points_are_a_few_objects() {
    for Bed { archive, dir, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let mut facts = facts_of_size(NAME, true, size);
        let first = facts.restore_points[0].clone();
        facts.restore_points = (0..10_000_u64)
            .map(|n| RestorePoint {
                name: format!("point {}", n % 5000),
                lsn: Lsn(first.lsn.0 + n * 8),
                end: Lsn(first.lsn.0 + n * 8 + 8),
                time: PgTimestamp(i64::try_from(n).unwrap()),
            })
            .collect();
        // What no target can ask for.
        facts.restore_points[17].name = "x".repeat(64);
        archive.put_segment(&facts, segment(size, 1), WalFlags::default()).await.unwrap();
        archive.put_segment(&facts, segment(size, 1), WalFlags::default()).await.unwrap();
        let keys: Vec<Key> = archive
            .store()
            .list(&archive.paths().points(), None)
            .map_ok(|e| e.key)
            .try_collect()
            .await
            .unwrap();
        assert_eq!(keys.len(), 2, "{keys:?}");
        let cluster = ClusterPaths::new(&"main".parse().unwrap());
        for key in &keys {
            let object = cluster.parse(key).unwrap();
            assert!(
                matches!(object, ClusterObject::Point(_, timeline, _) if timeline == facts.name.timeline),
                "{object:?}"
            );
        }
        let all = archive.points().await.unwrap();
        assert_eq!((all.points.len(), all.damaged.len()), (9_999, 0));
        for n in [0, 17, 4999] {
            let found = archive.points_named(&format!("point {n}")).await.unwrap().points;
            let places = [n, n + 5000]
                .map(|n| (Lsn(first.lsn.0 + n * 8), Some(PgTimestamp(i64::try_from(n).unwrap()))));
            let places = if n == 17 { places[1..].to_vec() } else { places.to_vec() };
            assert_eq!(found.iter().map(|p| (p.lsn, p.time)).collect::<Vec<_>>(), places);
        }
        assert_eq!(archive.points_named("point").await.unwrap().points, []);
        let path = dir.path().join(keys[0].as_str());
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        walpoint_base::durable::replace(&path, &bytes, 0o600).unwrap();
        let all = archive.points().await.unwrap();
        assert!(all.points.len() < 9_999);
        assert!(matches!(&all.damaged[..], [RepoError::Corrupt { key, .. }] if *key == keys[0]), "{all:?}");
        // What is damaged keeps nothing from being found elsewhere, and says where the rest lies.
        let named = archive.points_named("point 4000").await.unwrap();
        assert_eq!((named.points.len(), named.damaged.len(), named.unread.len()), (1, 1, 1), "{named:?}");
        assert_eq!(named.unread[0].0, facts.name.timeline);
    }
}

/// A segment with more of them than its facts hold is stored only after all of them.
#[tokio::test]
async fn masses_of_restore_points_are_stored_before_their_segment() {
    const ALL: u64 = 20_000;
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let one = facts_of_size(NAME, true, size);
        let start = one.restore_points[0].lsn;
        let point = move |n: u64| RestorePoint {
            name: format!("point {n}"),
            lsn: start + n * 8,
            end: start + n * 8 + 8,
            time: PgTimestamp(i64::try_from(n).unwrap()),
        };
        let points = move |count| (0..count).map(point).map(Ok);
        let held = SegmentFacts::POINTS as u64;
        let facts = Arc::new(SegmentFacts {
            restore_points: (0..held).map(point).collect(),
            further_points: u32::try_from(ALL - held).unwrap(),
            ..one
        });
        let bytes = segment(size, 1);
        let sealed = || {
            let archive = std::slice::from_ref(&archive);
            let mut sealer = SegmentSealer::new(archive, facts.name, facts.size, SealedName::Whole).unwrap();
            bytes.chunks(SegmentSealer::PIECE).for_each(|piece| sealer.add(piece).unwrap());
            sealer.finish(&facts, WalFlags::default()).unwrap().remove(0)
        };
        let content = WalContent::from(bytes.clone());
        let early = archive.put_sealed(sealed(), &content).await.unwrap_err().to_string();
        assert!(early.contains("not stored before it"), "{early}");
        let fewer = archive.put_points(sealed(), points(2 * held)).await.unwrap_err().to_string();
        assert!(fewer.contains("it had 20000 restore points, and 16384"), "{fewer}");
        let broken = points(held).chain([Err(std::io::Error::other("no disk"))]);
        let broken = archive.put_points(sealed(), broken).await.unwrap_err();
        assert!(broken.to_string().contains("cannot be read"), "{broken}");
        let ready = archive.put_points(sealed(), points(ALL)).await.unwrap();
        assert_eq!(archive.put_sealed(ready, &content).await.unwrap(), Stored::New);
        assert_eq!(archive.header(facts.name).await.unwrap().unwrap().restore_points, 20_000);
        let all = archive.points().await.unwrap();
        assert_eq!((all.points.len(), all.damaged.len()), (20_000, 0));
        for n in [0, held, ALL - 1] {
            let found = archive.points_named(&format!("point {n}")).await.unwrap().points;
            assert_eq!(found.iter().map(|p| p.lsn).collect::<Vec<_>>(), [point(n).lsn]);
        }
        // Another server's are not stored.
        let mut other = bytes.clone();
        other[100] ^= 1;
        let mut sealer =
            SegmentSealer::new(std::slice::from_ref(&archive), facts.name, facts.size, SealedName::Whole)
                .unwrap();
        other.chunks(SegmentSealer::PIECE).for_each(|piece| sealer.add(piece).unwrap());
        let sealed = sealer.finish(&facts, WalFlags::default()).unwrap().remove(0);
        let sealed = archive.put_points(sealed, points(ALL)).await.unwrap();
        let refused = archive.put_sealed(sealed, &WalContent::from(other)).await.unwrap_err();
        assert!(matches!(refused, RepoError::Conflict { .. }), "{refused}");
        assert_eq!(archive.points().await.unwrap().points.len(), 20_000);
    }
}
