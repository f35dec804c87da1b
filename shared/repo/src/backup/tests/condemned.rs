//! What is condemned is found by everybody, under numbers of its own.

use super::*;

fn condemned(reason: CondemnedReason, backups: Vec<BackupId>, packs: Vec<CondemnedPacks>) -> Condemned {
    let written = "2026-11-22T10:15:00Z".parse().unwrap();
    Condemned {
        written,
        host: "db1".to_owned(),
        agent: "0.1.0".to_owned(),
        reason,
        backups,
        packs,
        wal: vec![],
        requests: Vec::new(),
    }
}

#[tokio::test]
async fn announcements_are_numbered_and_taken_back() {
    for sealer in sealers() {
        let Scene { backups, .. } = scene(&sealer);
        assert_eq!(backups.condemned().await.unwrap(), Announcements::default());
        let packs = vec![CondemnedPacks { backup: id(1), first: 3, count: 2 }, CondemnedPacks::all_of(id(2))];
        let first = condemned(CondemnedReason::Expired, vec![id(1)], packs);
        let second = condemned(CondemnedReason::Damaged, vec![], vec![]);
        assert_eq!(backups.condemn(&first).await.unwrap(), 0);
        assert_eq!(backups.condemn(&second).await.unwrap(), 1);
        let both = backups.condemned().await.unwrap().read;
        let numbers: Vec<_> = both.iter().map(|one| (one.n, one.condemned.reason)).collect();
        assert_eq!(numbers, [(0, CondemnedReason::Expired), (1, CondemnedReason::Damaged)]);
        assert_eq!(both[0].condemned, first);

        let set = CondemnedSet::new(both.iter().map(|one| &one.condemned));
        assert!(set.has_backup(id(1)) && !set.has_backup(id(2)));
        let named: Vec<u32> = (0..10).filter(|n| set.has_pack(id(1), PackNo(*n))).collect();
        assert_eq!(named, [3, 4]);
        assert!(set.has_pack(id(2), PackNo(0)) && set.has_pack(id(2), PackNo(u32::MAX - 1)));
        assert!(!set.has_pack(id(3), PackNo(0)));

        backups.absolve(0).await.unwrap();
        backups.absolve(0).await.unwrap();
        assert_eq!(backups.condemn(&second).await.unwrap(), 2, "after the highest there is");
        assert_eq!(backups.condemned().await.unwrap().read.len(), 2);
    }
}

/// B4: where an announcement cannot be read, everything counts as condemned, and the next one gets a number of its own.
#[tokio::test]
async fn what_cannot_be_read_may_name_anything() {
    let Scene { backups, memory, .. } = scene(&sealers()[0]);
    let announced = condemned(CondemnedReason::Expired, vec![id(1)], vec![]);
    backups.condemn(&announced).await.unwrap();
    let path = object_store::path::Path::from("clusters/main/condemned/000000000000");
    object_store::ObjectStoreExt::put(&*memory, &path, "something else".into()).await.unwrap();
    assert_eq!(backups.condemn(&announced).await.unwrap(), 1);
    let all = backups.condemned().await.unwrap();
    assert_eq!((all.read.len(), all.damaged.len(), all.damaged[0].n), (1, 1, 0));
    assert_eq!(all.damaged[0].error().remedy(), Some(&Remedy::VerifyAll), "{:?}", all.damaged);
    let set = CondemnedSet::of(&all);
    assert!(set.has_backup(id(7)) && set.has_pack(id(7), PackNo(0)));
    assert!(!CondemnedSet::new(all.read.iter().map(|one| &one.condemned)).has_backup(id(7)));
}
