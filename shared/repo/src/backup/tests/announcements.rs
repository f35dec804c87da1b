//! What is announced is found by everybody, under numbers of its own.

use super::*;

fn announcement(
    reason: AnnouncementReason,
    backups: Vec<BackupId>,
    packs: Vec<AnnouncedPacks>,
) -> Announcement {
    let written = "2026-11-22T10:15:00Z".parse().unwrap();
    Announcement {
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
        assert_eq!(backups.announcements().await.unwrap(), Announcements::default());
        let packs = vec![AnnouncedPacks { backup: id(1), first: 3, count: 2 }, AnnouncedPacks::all_of(id(2))];
        let first = announcement(AnnouncementReason::Expired, vec![id(1)], packs);
        let second = announcement(AnnouncementReason::Damaged, vec![], vec![]);
        assert_eq!(backups.announce(&first).await.unwrap(), 0);
        assert_eq!(backups.announce(&second).await.unwrap(), 1);
        let both = backups.announcements().await.unwrap().read;
        let numbers: Vec<_> = both.iter().map(|one| (one.n, one.announcement.reason)).collect();
        assert_eq!(numbers, [(0, AnnouncementReason::Expired), (1, AnnouncementReason::Damaged)]);
        assert_eq!(both[0].announcement, first);

        let set = AnnouncedSet::new(both.iter().map(|one| &one.announcement));
        assert!(set.has_backup(id(1)) && !set.has_backup(id(2)));
        let named: Vec<u32> = (0..10).filter(|n| set.has_pack(id(1), PackNo(*n))).collect();
        assert_eq!(named, [3, 4]);
        assert!(set.has_pack(id(2), PackNo(0)) && set.has_pack(id(2), PackNo(u32::MAX - 1)));
        assert!(!set.has_pack(id(3), PackNo(0)));

        backups.absolve(0).await.unwrap();
        backups.absolve(0).await.unwrap();
        assert_eq!(backups.announce(&second).await.unwrap(), 2, "after the highest there is");
        assert_eq!(backups.announcements().await.unwrap().read.len(), 2);
    }
}

/// B4: where an announcement cannot be read, everything counts as announced, and the next one gets a number of its own.
#[tokio::test]
async fn what_cannot_be_read_may_name_anything() {
    let Scene { backups, memory, .. } = scene(&sealers()[0]);
    let announced = announcement(AnnouncementReason::Expired, vec![id(1)], vec![]);
    backups.announce(&announced).await.unwrap();
    let path = object_store::path::Path::from("clusters/main/announcements/000000000000");
    object_store::ObjectStoreExt::put(&*memory, &path, "something else".into()).await.unwrap();
    assert_eq!(backups.announce(&announced).await.unwrap(), 1);
    let all = backups.announcements().await.unwrap();
    assert_eq!((all.read.len(), all.damaged.len(), all.damaged[0].n), (1, 1, 0));
    assert_eq!(all.damaged[0].error().remedy(), Some(&Remedy::VerifyAll), "{:?}", all.damaged);
    let set = AnnouncedSet::of(&all);
    assert!(set.has_backup(id(7)) && set.has_pack(id(7), PackNo(0)));
    assert!(!AnnouncedSet::new(all.read.iter().map(|one| &one.announcement)).has_backup(id(7)));
}
