//! What a run finds is announced for the commands that follow, until it is whole again.

use std::sync::Arc;

use jiff::Timestamp;
use walpoint_base::{SegmentNo, TimelineId};
use walpoint_plan::retention::Policy;
use walpoint_storage::layout::ClusterPaths;
use walpoint_storage::store::crashing::CrashingStore;

use super::{BrokenRecords, flip, flip_block, path, readable_world, replace, run, run_with, segment_key};
use crate::backup::{AnnouncedPacks, AnnouncedWal, Announcement};
use crate::expire::outlook;
use crate::expire::tests::{cluster, keys, world};
use crate::index::tests::Bed;
use crate::verify::*;

/// That a pack is to be deleted may be taken back; that it is damaged stays known.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_deleted_is_announced_for_its_damage_too() {
    let (bed, ids) = world().await;
    let backups = Backups::of(bed.archive.repository(), &cluster());
    let packs = vec![AnnouncedPacks::all_of(ids[1])];
    let expired = Announcement {
        written: Timestamp::now(),
        host: String::new(),
        agent: String::new(),
        reason: AnnouncementReason::Expired,
        backups: Vec::new(),
        packs,
        wal: Vec::new(),
        requests: Vec::new(),
    };
    backups.announce(&expired).await.unwrap();
    let file = path(&bed, ClusterPaths::new(&cluster()).pack(ids[1], 0).as_str());
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.pop();
    replace(&file, &bytes);
    for _ in 0..2 {
        run(&bed, Depth::Light).await;
        let announced = backups.announcements().await.unwrap();
        let damaged =
            announced.read.iter().filter(|one| one.announcement.reason == AnnouncementReason::Damaged);
        let named: Vec<&AnnouncedPacks> = damaged.flat_map(|one| &one.announcement.packs).collect();
        assert_eq!(named, [&AnnouncedPacks { backup: ids[1], first: 0, count: 1 }]);
    }
}

async fn announced(bed: &Bed) -> usize {
    Backups::of(bed.archive.repository(), &cluster()).announcements().await.unwrap().read.len()
}

/// What is known of each backup without reading what it uses.
async fn soundness(bed: &Bed) -> Vec<bool> {
    let now = Timestamp::now();
    let outlook = outlook(bed.archive.repository(), &cluster(), &Policy::default(), now).await.unwrap();
    outlook.decisions.iter().map(|decision| decision.backup.is_sound()).collect()
}

/// K4: a damaged segment in which a backup begins is told of that backup, which is not named as the first that is whole again.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_costs_the_backup_that_begins_in_it() {
    let (bed, ids) = readable_world().await;
    assert_eq!(run(&bed, Depth::Full).await.finding_count, 0);
    let segment = path(&bed, &segment_key(&bed, 15));
    let whole = std::fs::read(&segment).unwrap();
    flip(&segment);
    let report = run(&bed, Depth::Full).await;
    let [finding] = &report.findings[..] else { panic!("{report:#?}") };
    assert_eq!((finding.kind, &finding.backups), (FindingKind::Damaged, &vec![ids[1].to_string()]));
    let moments = finding.moments.as_ref().unwrap();
    assert!(
        moments.contains("the end of the archive") && moments.contains("do not become consistent"),
        "{finding:#?}"
    );
    assert_eq!(soundness(&bed).await, [true, false]);
    // One between two backups costs the moments behind it.
    flip(&path(&bed, &segment_key(&bed, 10)));
    let report = run(&bed, Depth::Full).await;
    let finding = report.findings.iter().find(|finding| finding.object == segment_key(&bed, 10)).unwrap();
    assert_eq!(finding.backups, [ids[0].to_string()]);
    assert!(finding.moments.as_ref().unwrap().contains(&format!("up to backup {}", ids[1])), "{finding:#?}");
    assert_eq!(soundness(&bed).await, [true, false]);
    // Put back, and read again.
    replace(&segment, &whole);
    assert_eq!(soundness(&bed).await, [true, false]);
    run(&bed, Depth::Full).await;
    assert_eq!(soundness(&bed).await, [true, true]);
}

/// K4: damage that is over is taken back by who has read that it is, and not by who only looked.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_whole_again_is_damaged_no_more() {
    let (bed, ids) = readable_world().await;
    let packs = [0, 1].map(|n| path(&bed, ClusterPaths::new(&cluster()).pack(ids[1], n).as_str()));
    let whole = std::fs::read(&packs[0]).unwrap();
    packs.iter().for_each(flip_block);
    assert_eq!(run(&bed, Depth::Full).await.finding_count, 2);
    assert_eq!((soundness(&bed).await, announced(&bed).await), (vec![true, false], 1));
    replace(&packs[0], &whole);
    run(&bed, Depth::Full).await;
    let left = Backups::of(bed.archive.repository(), &cluster()).announcements().await.unwrap().read;
    let named: Vec<u32> =
        left.iter().flat_map(|one| &one.announcement.packs).map(|packs| packs.first).collect();
    assert_eq!(named, [1], "the other one is still damaged");
    flip_block(&packs[1]);
    assert_eq!(
        (run(&bed, Depth::Light).await.finding_count, announced(&bed).await),
        (1, 1),
        "told until it was read"
    );
    assert_eq!((run(&bed, Depth::Full).await.finding_count, announced(&bed).await), (0, 0));
    assert_eq!(soundness(&bed).await, [true, true]);
}

/// K4: a damaged announcement is a finding, and a run that reads everything says again what it said of damage.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_announcement_is_replaced_by_what_is_found() {
    let (bed, ids) = readable_world().await;
    flip_block(&path(&bed, ClusterPaths::new(&cluster()).pack(ids[1], 0).as_str()));
    run(&bed, Depth::Full).await;
    let key = ClusterPaths::new(&cluster()).announcement(0);
    flip(&path(&bed, key.as_str()));
    for depth in [Depth::Light, Depth::Sample(1.0)] {
        let report = run(&bed, depth).await;
        assert!(report.findings.iter().any(|finding| finding.object == key.as_str()), "{report:#?}");
        assert!(keys(&bed).await.contains(key.as_str()), "not all was read");
    }
    let report = run(&bed, Depth::Full).await;
    assert!(report.findings.iter().any(|finding| finding.object == key.as_str()), "{report:#?}");
    assert!(!keys(&bed).await.contains(key.as_str()));
    assert_eq!(soundness(&bed).await, [true, false]);
    assert!(!run(&bed, Depth::Full).await.findings.iter().any(|finding| finding.object == key.as_str()));
}

/// K4: everything that reads a lineage meets a damaged announcement, and it is one finding all the same, with the way out.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_announcement_is_one_finding_whatever_is_read() {
    let (bed, ids) = readable_world().await;
    flip_block(&path(&bed, ClusterPaths::new(&cluster()).pack(ids[1], 0).as_str()));
    run(&bed, Depth::Full).await;
    let key = ClusterPaths::new(&cluster()).announcement(0);
    flip(&path(&bed, key.as_str()));
    for depth in [Depth::Light, Depth::Sample(1.0), Depth::Full] {
        let report = run(&bed, depth).await;
        let of_it = |one: &&VerifyFinding| one.object == key.as_str() || one.what.contains(key.as_str());
        let found: Vec<_> = report.findings.iter().filter(of_it).collect();
        let [finding] = found[..] else { panic!("{depth:?} {found:#?}") };
        assert!(matches!(finding.remedy, Cure::Announcement(_)), "{depth:?} {finding:#?}");
    }
}

/// K4: what was found damaged is a finding of every later run, whatever that reads, until it is found whole again.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_damaged_is_told_by_every_run() {
    let (bed, ids) = readable_world().await;
    let damaged = [
        path(&bed, ClusterPaths::new(&cluster()).pack(ids[1], 0).as_str()),
        path(&bed, &segment_key(&bed, 16)),
    ];
    let whole = damaged.each_ref().map(|file| std::fs::read(file).unwrap());
    flip_block(&damaged[0]);
    flip(&damaged[1]);
    assert!(run(&bed, Depth::Full).await.finding_count >= 2);
    for depth in [Depth::Light, Depth::Light, Depth::Sample(0.01), Depth::Sample(0.01)] {
        let report = run(&bed, depth).await;
        for file in &damaged {
            let told = |object: &str| file.ends_with(object);
            assert!(report.findings.iter().any(|finding| told(&finding.object)), "{depth:?} {report:#?}");
        }
    }
    damaged.iter().zip(&whole).for_each(|(file, bytes)| replace(file, bytes));
    assert_eq!(run(&bed, Depth::Full).await.finding_count, 0);
    assert_eq!(run(&bed, Depth::Light).await.finding_count, 0);
}

/// K4: damaged WAL that no backup here needs is announced as well, until it is sound again: a window of another repository's backup may
/// lead through it.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_wal_that_no_backup_here_needs_is_announced_too() {
    let (bed, _) = readable_world().await;
    let segment = path(&bed, &segment_key(&bed, 2));
    let whole = std::fs::read(&segment).unwrap();
    flip(&segment);
    assert_eq!(run(&bed, Depth::Full).await.finding_count, 1);
    let backups = Backups::of(bed.archive.repository(), &cluster());
    let named = async || {
        let read = backups.announcements().await.unwrap().read;
        read.iter().flat_map(|one| &one.announcement.wal).map(|wal| (wal.first, wal.last)).collect::<Vec<_>>()
    };
    assert_eq!(named().await, [(2, 2)]);
    // It can be read again, and its records are wrong.
    replace(&segment, &whole);
    let check =
        || Arc::new(BrokenRecords(SegmentNo(2).name(TimelineId::FIRST, bed.archive.lineage().segment_size)));
    assert_eq!(run_with(&bed, Depth::Full, None, check()).await.finding_count, 1);
    assert_eq!(run_with(&bed, Depth::Full, None, check()).await.finding_count, 1);
    assert!(named().await.contains(&(2, 2)));
    flip(&segment);
    assert_eq!(run(&bed, Depth::Light).await.finding_count, 0, "nothing that is kept here needs it");
    replace(&segment, &whole);
    assert_eq!(run(&bed, Depth::Full).await.finding_count, 0);
    assert_eq!(named().await, []);
}

/// K4: what was found is told where it cannot be announced, because the store is full.
#[tokio::test(flavor = "multi_thread")]
async fn findings_are_told_where_nothing_can_be_written() {
    let (bed, _) = readable_world().await;
    flip(&path(&bed, &segment_key(&bed, 20)));
    let store = CrashingStore::new(bed.dir.path(), u32::MAX);
    store.fill(1000);
    let repository = Repository::over("main", store.store(), None).await.unwrap();
    let outlook = outlook(&repository, &cluster(), &Policy::default(), Timestamp::now()).await.unwrap();
    for depth in [Depth::Full, Depth::Sample(1.0)] {
        let options = VerifyOptions { depth, ..VerifyOptions::default() };
        let check = Arc::new(super::Anything);
        let report = verify(&repository, &cluster(), &outlook, check, &options).await.unwrap();
        assert_eq!(report.findings[0].object, segment_key(&bed, 20), "{report:#?}");
        assert!(
            report.notes.iter().any(|note| note.contains("could not record the damaged objects")),
            "{report:#?}"
        );
    }
    assert_eq!(announced(&bed).await, 0);
}

/// K4: what could not be read with a backup that was deleted meanwhile is read with the others that share it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_deleted_backup_shared_is_read_with_the_others() {
    let bed = crate::index::tests::bed().await;
    for number in 0..30 {
        bed.store_whole(number).await;
    }
    let old = super::of_noise(&bed, 5, 20, &[]).await;
    let new = super::of_noise(&bed, 15, 10, &[old]).await;
    let (repository, cluster) = (bed.archive.repository(), cluster());
    let outlook = outlook(repository, &cluster, &Policy::default(), Timestamp::now()).await.unwrap();
    let options = VerifyOptions::default();
    let mut run = Run::new(repository, &cluster, &outlook, Arc::new(super::Anything), &options);
    run.light(&outlook).await.unwrap();
    let paths = ClusterPaths::new(&cluster);
    let shared: Vec<u32> = run.packs.keys().filter(|(owner, _)| *owner == old).map(|(_, n)| *n).collect();
    assert!(shared.len() > 2, "{shared:?}");
    let mut covered = Default::default();
    let backups = Backups::of(repository, &cluster);
    let [first, second] = [backups.open(old).await.unwrap(), backups.open(new).await.unwrap()];
    std::fs::remove_file(path(&bed, paths.manifest(old).as_str())).unwrap();
    let gone = path(&bed, paths.pack(old, shared[0]).as_str());
    let whole = std::fs::read(&gone).unwrap();
    std::fs::remove_file(&gone).unwrap();
    run.backup(old, &first, &mut covered).await.unwrap();
    assert!(run.gone.contains(&old));
    std::io::Write::write_all(&mut std::fs::File::create_new(&gone).unwrap(), &whole).unwrap();
    for n in &shared {
        flip_block(&path(&bed, paths.pack(old, *n).as_str()));
    }
    run.backup(new, &second, &mut covered).await.unwrap();
    let damaged: Vec<u32> = run.damaged.iter().map(|(_, n)| *n).collect();
    // The last one holds tables alone, which were read before.
    assert_eq!(damaged, shared[..shared.len() - 1]);
}

/// K4: a manifest of which only the beginning can be read is announced: status and plans read no more of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_is_announced() {
    let (bed, ids) = readable_world().await;
    flip(&path(&bed, ClusterPaths::new(&cluster()).manifest(ids[1]).as_str()));
    assert!(run(&bed, Depth::Light).await.finding_count > 0);
    let read = Backups::of(bed.archive.repository(), &cluster()).announcements().await.unwrap().read;
    let named: Vec<_> = read.iter().flat_map(|one| one.announcement.backups.clone()).collect();
    assert_eq!(named, [ids[1]]);
    assert_eq!(soundness(&bed).await, [true, false]);
}

/// K4: WAL that an expiry deletes while a run looks is no gap: it was announced before.
#[tokio::test(flavor = "multi_thread")]
async fn wal_that_was_announced_for_deletion_is_no_gap() {
    let (bed, _) = readable_world().await;
    let (repository, cluster) = (bed.archive.repository(), cluster());
    let wal = |first, last| AnnouncedWal {
        lineage: bed.archive.lineage().id,
        timeline: TimelineId::FIRST,
        first,
        last,
    };
    let announcement = |wal| Announcement {
        written: Timestamp::now(),
        host: String::new(),
        agent: String::new(),
        reason: AnnouncementReason::Expired,
        backups: Vec::new(),
        packs: Vec::new(),
        wal: vec![wal],
        requests: Vec::new(),
    };
    let gaps = |report: &Verified| report.findings.iter().filter(|one| one.kind == FindingKind::Gap).count();
    for n in 10..=12 {
        std::fs::remove_file(path(&bed, &segment_key(&bed, n))).unwrap();
    }
    assert_eq!(gaps(&run(&bed, Depth::Light).await), 1);
    let backups = Backups::of(repository, &cluster);
    backups.announce(&announcement(wal(9, 11))).await.unwrap();
    assert_eq!(gaps(&run(&bed, Depth::Light).await), 1, "one of them was not");
    backups.announce(&announcement(wal(12, 12))).await.unwrap();
    assert_eq!(gaps(&run(&bed, Depth::Light).await), 0);
}
