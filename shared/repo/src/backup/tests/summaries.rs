//! Ten thousand backups are looked at in tens of requests.

use jiff::{SignedDuration, Timestamp};
use walpoint_base::{BackupId, SegmentNo, SegmentSize, TimelineId};
use walpoint_plan::retention::{Policy, Rule};

use crate::backup::{Backups, ManifestState, fixtures};
use crate::catalog::Catalog;
use crate::expire::{ExpireOptions, expire, outlook};
use crate::index::tests::{Bed, bed};

const BACKUPS: u64 = 10_000;

fn id(n: u64) -> BackupId {
    let start = SegmentNo(n + 3).start(SegmentSize::new(1 << 20).unwrap()) + 40;
    let started = ago(BACKUPS - n);
    BackupId::new(started, TimelineId::FIRST, start, u32::try_from(n).unwrap())
}

fn ago(hours: u64) -> Timestamp {
    "2026-11-21T10:00:00Z".parse::<Timestamp>().unwrap()
        - SignedDuration::from_hours(i64::try_from(hours).unwrap())
}

/// Backups that differ in nothing but their names and times: intents and manifests, and the packs of the first one.
async fn many(bed: &Bed, count: u64) -> Backups {
    let cluster = bed.archive.lineage().cluster.clone();
    let backups = Backups::of(bed.archive.repository(), &cluster);
    fixtures::smallest(&bed.archive, id(0), id(0).start() + 400, ago(BACKUPS)).await.unwrap();
    let first = backups.open(id(0)).await.unwrap().manifest().clone();
    let intent = backups.intent(id(0)).await.unwrap().unwrap();
    let root = bed.dir.path();
    for n in 1..count {
        let id = id(n);
        let mut manifest = first.clone();
        manifest.summary.id = id;
        (manifest.summary.facts.started, manifest.summary.facts.ended) = (ago(BACKUPS - n), ago(BACKUPS - n));
        (manifest.summary.facts.start_lsn, manifest.summary.facts.stop_lsn) = (id.start(), id.start() + 400);
        manifest.backups[0] = id;
        let mut intent = intent.clone();
        intent.id = id;
        let sealer = backups.sealer();
        let keys = (backups.paths().intent(id), backups.paths().manifest(id));
        let intent = intent.seal(sealer, &keys.0).unwrap();
        let manifest = manifest.seal(sealer, &keys.1).unwrap();
        // Behind the store's back: twenty thousand files need not be durable.
        for (key, object) in [(keys.0, intent), (keys.1, manifest)] {
            let path = root.join(key.as_str());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut file = std::fs::File::create_new(path).unwrap();
            std::io::Write::write_all(&mut file, &object.to_bytes()).unwrap();
        }
    }
    backups
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_backups_take_tens_of_requests() {
    let bed = bed().await;
    let backups = many(&bed, BACKUPS).await;
    let (repository, cluster) = (bed.archive.repository(), bed.archive.lineage().cluster.clone());
    let policy = Policy { rule: Rule { count: Some(3), ..Rule::default() }, ..Policy::default() };
    let look = async || {
        let before = repository.store().requests().total();
        let outlook = outlook(repository, &cluster, &policy, ago(0)).await.unwrap();
        let decided = repository.store().requests().total() - before;
        let status = Catalog::load(repository, &cluster).await.unwrap().status().await.unwrap();
        let listed = repository.store().requests().total() - before - decided;
        assert_eq!(outlook.decisions.iter().filter(|decision| decision.stays()).count(), 3);
        assert_eq!(status.backups.len() as u64, BACKUPS);
        let known = status.backups.iter().filter(|backup| backup.details.is_some()).count();
        (decided, listed, known)
    };
    let (decided, listed, known) = look().await;
    println!("without summaries: {decided} requests to decide, {listed} for a status of {known}");
    assert!(decided >= BACKUPS && known == 20);

    assert!(backups.summarize().await.unwrap());
    assert!(!backups.summarize().await.unwrap(), "there is nothing new");
    let (decided, listed, known) = look().await;
    println!("with summaries: {decided} requests to decide, {listed} for a status of {known}");
    assert!(decided < 60 && listed < 60, "{decided} and {listed} requests");
    assert_eq!(known as u64, BACKUPS);
}

#[tokio::test(flavor = "multi_thread")]
async fn summaries_are_only_copies() {
    let bed = bed().await;
    let backups = many(&bed, 80).await;
    assert!(backups.summarize().await.unwrap());
    let ids: Vec<BackupId> = (0..80).map(id).collect();
    let sound = async || {
        let all = backups.standings(&ids, usize::MAX).await.unwrap();
        all.into_iter().filter(|(_, standing)| matches!(standing, Ok(ManifestState::Finished(_)))).count()
    };
    assert_eq!(sound().await, 80);
    // A damaged one is not believed, and replaced when there is something to write.
    let object = bed.dir.path().join(backups.paths().summaries(0).as_str());
    let mut bytes = std::fs::read(&object).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&object).unwrap();
    std::io::Write::write_all(&mut std::fs::File::create_new(&object).unwrap(), &bytes).unwrap();
    assert_eq!(sound().await, 80);
    assert!(backups.summarize().await.unwrap());
    assert!(!object.exists() && bed.dir.path().join(backups.paths().summaries(1).as_str()).exists());
    // What is gone is gone, whatever a copy says.
    backups.store().delete(&backups.paths().manifest(id(7))).await.unwrap();
    let listed = backups.list().await.unwrap();
    assert!(listed.iter().all(|one| one.id != id(7) || one.state == crate::backup::ListedState::Unfinished));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_is_decided_by_manifests() {
    let bed = bed().await;
    let backups = many(&bed, 40).await;
    assert!(backups.summarize().await.unwrap());
    let (root, repository) = (bed.dir.path(), bed.archive.repository());
    for n in [38, 39] {
        let path = root.join(backups.paths().manifest(id(n)).as_str());
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        walpoint_base::durable::replace(&path, &bytes, 0o600).unwrap();
    }
    let options = ExpireOptions {
        policy: Policy { rule: Rule { count: Some(2), ..Rule::default() }, ..Policy::default() },
        grace: SignedDuration::ZERO,
        named: None,
        dry_run: false,
        host: String::new(),
        agent: String::new(),
    };
    let cluster = bed.archive.lineage().cluster.clone();
    for _ in 0..2 {
        expire(repository, &cluster, &options).await.unwrap();
    }
    for n in 36..38 {
        backups.open(id(n)).await.unwrap();
    }
}
