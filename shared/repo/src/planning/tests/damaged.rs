//! Plans beside facts of lineages that are damaged, and across WAL that was found damaged.

use std::io::Write;
use std::sync::Arc;

use jiff::Timestamp;
use walpoint_base::{Lsn, RecoveryTarget, SegmentNo, TimelineId};
use walpoint_plan::restore::unreachable::Why;
use walpoint_plan::restore::{DamageNote, Hint, Note, RestoreRequest, SegmentDecoder, Unusable, Verdict};
use walpoint_plan::retention::Policy;
use walpoint_storage::error::RepoError;
use walpoint_storage::layout::ClusterPaths;

use super::decoder::Decoder;
use crate::backup::{BackupStage, Backups};
use crate::catalog::Catalog;
use crate::expire::tests::cluster;
use crate::expire::{ExpireOptions, expire, outlook};
use crate::index::tests::{Bed, like};
use crate::lineage::{LineageFork, ParentLineage};
use crate::planning::{plan, prove_from};
use crate::verify::tests::{BrokenRecords, flip, path, readable_world, replace, run, run_with, segment_key};
use crate::verify::{Depth, FindingKind};
use crate::{Lineage, Repository};

/// Registers a copy of the bed's server, and damages its facts.
async fn damaged_copy(bed: &Bed) -> Lineage {
    let own = bed.archive.lineage();
    let fork = LineageFork { timeline: TimelineId::FIRST, lsn: SegmentNo(20).start(own.segment_size) };
    let parent = ParentLineage { lineage: own.id, fork: Some(fork), began: None, life: None };
    let copy = bed.archive.repository().split_lineage(&cluster(), like(own), Some(parent), 0).await.unwrap();
    flip(&path(bed, copy.key().as_str()));
    copy
}

async fn planned(repository: &Repository, request: &RestoreRequest) -> Result<Verdict, RepoError> {
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(Decoder);
    plan(repository, &cluster(), request, &decoder, Timestamp::now()).await
}

/// K3: of a lineage whose facts are damaged nothing is known, and every other one is read, planned and verified as before. Nothing is
/// deleted meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_facts_of_one_lineage_stop_no_other() {
    let (bed, _) = readable_world().await;
    let (repository, own) = (bed.archive.repository(), bed.archive.lineage());
    let copy = damaged_copy(&bed).await;
    let is_damage = |error: &RepoError| matches!(error, RepoError::Corrupt { key, .. } if *key == copy.key());

    let lineages = repository.lineages(&cluster()).await.unwrap();
    assert_eq!(lineages.read, std::slice::from_ref(own));
    assert_eq!(lineages.damaged.iter().map(|damaged| damaged.id).collect::<Vec<_>>(), [copy.id]);
    assert!(is_damage(&lineages.whole().unwrap_err()));
    assert_eq!(repository.lineage_for(&cluster(), own.system_id()).await.unwrap().as_ref(), Some(own));
    assert_eq!(repository.last_lineage(&cluster(), own.system_id()).await.unwrap(), copy.id.n);

    // Which of the two is meant only a person knows.
    let refused = planned(repository, &RestoreRequest::default()).await.unwrap().unwrap_err();
    let Why::DamagedLineage { lineage, instead, .. } = &refused.why else { panic!("{refused:?}") };
    assert_eq!((*lineage, *instead), (copy.id, own.id));
    assert!(
        refused.hints.contains(&Hint::BesideDamaged { lineage: own.id, damaged: copy.id }),
        "{refused:?}"
    );
    let named = |id| RestoreRequest { lineage: Some(id), ..RestoreRequest::default() };
    let plan = planned(repository, &named(own.id)).await.unwrap().unwrap();
    assert_eq!(plan.until, SegmentNo(30).start(own.segment_size));
    assert!(is_damage(&planned(repository, &named(copy.id)).await.unwrap_err()));
    // A moment that it has is recovered, with a word about the other one.
    let moment = RecoveryTarget::Lsn(Lsn(SegmentNo(25).start(own.segment_size).0 + 64));
    let answer =
        planned(repository, &RestoreRequest { target: moment, ..RestoreRequest::default() }).await.unwrap();
    let told = match &answer {
        Ok(plan) => plan
            .notes
            .iter()
            .any(|note| matches!(note, Note::DamagedLineage { lineage, .. } if *lineage == copy.id)),
        Err(refused) => refused
            .hints
            .iter()
            .any(|hint| matches!(hint, Hint::DamagedLineage { lineage, .. } if *lineage == copy.id)),
    };
    assert!(told, "{answer:?}");

    let report = run(&bed, Depth::Light).await;
    let [finding] = &report.findings[..] else { panic!("{report:#?}") };
    assert_eq!((finding.kind, finding.object.as_str()), (FindingKind::Damaged, copy.key().as_str()));
    let status = Catalog::load(repository, &cluster()).await.unwrap().status().await.unwrap();
    assert_eq!((status.lineages.len(), &status.damaged_lineages[0].lineage), (1, &copy.id));
    let told = outlook(repository, &cluster(), &Policy::default(), Timestamp::now()).await.unwrap();
    assert!(told.notes.iter().any(|note| note.contains(&copy.id.to_string())), "{told:#?}");
    let options = ExpireOptions {
        policy: Policy::default(),
        grace: jiff::SignedDuration::ZERO,
        named: None,
        dry_run: false,
        host: String::new(),
        agent: String::new(),
    };
    assert!(is_damage(&expire(repository, &cluster(), &options).await.unwrap_err()));

    // Its number is not taken by another one.
    let third = repository.create_lineage(&cluster(), like(own)).await.unwrap();
    assert_eq!(third.id.n, copy.id.n + 1);
}

/// Promise 11: the newest backup is damaged or lost. The end of the newest one is another moment then, and is not planned in its place;
/// where an older one serves, that is said. Its windows and its status do not count it as sound.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_backup_does_not_take_the_newest_ones_place_without_a_word() {
    let (bed, ids) = readable_world().await;
    let (repository, paths) = (bed.archive.repository(), ClusterPaths::new(&cluster()));
    let (older, newest) = (ids[ids.len() - 2], ids[ids.len() - 1]);
    Backups::of(repository, &cluster()).tidy(newest).await.unwrap();
    let manifest = path(&bed, paths.manifest(newest).as_str());
    let whole = std::fs::read(&manifest).unwrap();
    let end = RestoreRequest { target: RecoveryTarget::Immediate, ..RestoreRequest::default() };
    let backup = async |request: &RestoreRequest| {
        planned(repository, request).await.unwrap().map(|plan| plan.backup.id)
    };
    assert_eq!(backup(&end).await, Ok(newest));
    for (why, named) in [(Unusable::DamagedManifest, "damaged"), (Unusable::LostManifest, "lost")] {
        match why {
            Unusable::LostManifest => std::fs::remove_file(&manifest).unwrap(),
            // Its header; what it says itself cannot be read then.
            _ => replace(&manifest, &{
                let mut bytes = whole.clone();
                bytes[10] ^= 1;
                bytes
            }),
        }
        let refused = planned(repository, &end).await.unwrap().unwrap_err();
        assert_eq!(refused.why, Why::NewestUnreadable { backup: newest, why, older });
        assert!(refused.hints.contains(&Hint::NameBackup(older)), "{refused:?}");
        assert_eq!(backup(&RestoreRequest { backup: Some(older), ..end.clone() }).await, Ok(older));
        let plan = planned(repository, &RestoreRequest::default()).await.unwrap().unwrap();
        let told = Note::NewerDamaged { backup: newest, damage: DamageNote::Manifest };
        assert!(plan.backup.id == older && plan.notes.contains(&told), "{plan:?}");

        run(&bed, Depth::Full).await;
        let status = Catalog::load(repository, &cluster()).await.unwrap().status().await.unwrap();
        let shown = status.backups.iter().find(|backup| backup.id == newest).unwrap();
        assert!(shown.manifest_damage.as_ref().is_some_and(|why| why.contains(named)), "{shown:?}");
        assert_eq!(shown.state, BackupStage::Finished);
        let windows =
            status.lineages.iter().flat_map(|lineage| &lineage.timelines).flat_map(|one| &one.windows);
        assert_eq!(windows.map(|window| window.backup_count).max(), Some(ids.len() - 1), "{status:#?}");
        std::fs::remove_file(&manifest).ok();
        std::fs::File::create_new(&manifest).unwrap().write_all(&whole).unwrap();
    }
}

/// Promise 11: all is gone of the newest backup but its packs, and those say that there was one. What is whole or has begun is none such.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_lost_its_directory_is_known_by_its_packs() {
    let (bed, ids) = readable_world().await;
    let newest = ids[ids.len() - 1];
    let backups = Backups::of(bed.archive.repository(), &cluster());
    assert_eq!(backups.only_packs(|_| true).await.unwrap(), []);
    let directory = path(&bed, ClusterPaths::new(&cluster()).backup(newest).as_str());
    std::fs::remove_dir_all(directory).unwrap();
    assert_eq!(backups.only_packs(|_| true).await.unwrap(), [newest]);
    assert_eq!(backups.only_packs(|id| id != newest).await.unwrap(), []);
}

/// The facts of all lineages are gone, and the rest is there: the cluster's name is not what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_its_lineages_is_not_unknown() {
    let (bed, _) = readable_world().await;
    let own = bed.archive.lineage();
    std::fs::remove_file(path(&bed, own.key().as_str())).unwrap();
    let refused = planned(bed.archive.repository(), &RestoreRequest::default()).await.unwrap().unwrap_err();
    assert_eq!(refused.why, Why::LostLineages { cluster: cluster().to_string(), stored: vec![own.id] });
    assert_eq!(refused.hints, [Hint::PutLineagesBack]);
}

/// What `verify` found damaged of the WAL behind a backup ends windows and plans until it was found sound, unless another repository
/// has it.
#[tokio::test(flavor = "multi_thread")]
async fn wal_that_was_found_damaged_ends_windows_and_plans() {
    let (bed, _) = readable_world().await;
    let (repository, size) = (bed.archive.repository(), bed.archive.lineage().segment_size);
    let (damaged, end) = (SegmentNo(22).start(size), SegmentNo(30).start(size));
    let segment = path(&bed, &segment_key(&bed, 22));
    let whole = std::fs::read(&segment).unwrap();
    let windows = async || {
        let mut catalog = Catalog::load(repository, &cluster()).await.unwrap();
        let parts = catalog.lineages_mut()[0].parts().await.unwrap();
        let gaps: Vec<SegmentNo> = parts[0].gaps.iter().map(|gap| gap.first).collect();
        (parts[0].windows.last().unwrap().until, gaps)
    };
    flip(&segment);
    assert_eq!(windows().await, (end, vec![]), "it was not read yet");
    assert_eq!(run(&bed, Depth::Full).await.finding_count, 1);
    assert_eq!(windows().await, (damaged, vec![SegmentNo(22)]));
    let refused = planned(repository, &RestoreRequest::default()).await.unwrap().unwrap_err();
    assert!(matches!(refused.why, Why::MissingWal { .. }), "{refused:?}");
    assert_eq!(refused.missing[0].first, SegmentNo(22));
    assert!(refused.hints.iter().any(|hint| matches!(hint, Hint::FoundDamaged(_))), "{refused:?}");

    // Another repository has it.
    let (other, _) = readable_world().await;
    let home = Catalog::load(repository, &cluster()).await.unwrap();
    let beside = Catalog::load(other.archive.repository(), &cluster()).await.unwrap();
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(Decoder);
    let mut joined = home.joined([&beside].into_iter());
    let plan = prove_from(&mut joined, &RestoreRequest::default(), &decoder, Timestamp::now()).await.unwrap();
    assert_eq!(plan.unwrap().until, end);

    // Put back as it was before, time and all: it was not read.
    let replaced = || replace(&segment, &whole);
    replaced();
    let before = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    std::fs::File::options().write(true).open(&segment).unwrap().set_modified(before).unwrap();
    assert_eq!(windows().await.0, damaged);
    assert_eq!(run(&bed, Depth::Light).await.finding_count, 1);
    // Stored anew since it was found damaged, damaged again: it is read, and does not count.
    flip(&segment);
    assert_eq!(windows().await.0, damaged);
    // Stored anew, and sound: it is there, with no verification, and for a light one, too.
    replaced();
    assert_eq!(windows().await, (end, vec![]));
    assert_eq!(planned(repository, &RestoreRequest::default()).await.unwrap().unwrap().until, end);
    assert_eq!(run(&bed, Depth::Light).await.finding_count, 0);
    // It can be read, and recovery cannot pass what it holds: the earlier announcement says nothing of that.
    let check = Arc::new(BrokenRecords(SegmentNo(22).name(TimelineId::FIRST, size)));
    assert_eq!(run_with(&bed, Depth::Full, None, check).await.finding_count, 1);
    assert_eq!(windows().await, (damaged, vec![SegmentNo(22)]));
    assert_eq!(run(&bed, Depth::Light).await.finding_count, 1);
    assert_eq!(run(&bed, Depth::Full).await.finding_count, 0);
    std::fs::File::options().write(true).open(&segment).unwrap().set_modified(before).unwrap();
    assert_eq!(windows().await, (end, vec![]), "a full verification has taken it back");
}
