//! `expire` beside a run.

use walpoint_plan::retention::Rule;

use super::*;
use crate::expire::tests::at_once;
use crate::expire::{Outlook, expire};
use crate::verify::light::NeededWal;

/// K4: what `expire` deletes beside a run is no finding, and is not announced as damaged.
#[tokio::test(flavor = "multi_thread")]
async fn what_expires_beside_a_run_is_no_finding() {
    let (bed, ids) = readable_world().await;
    let (repository, cluster) = (bed.archive.repository(), cluster());
    let outlook = outlook(repository, &cluster, &Policy::default(), Timestamp::now()).await.unwrap();
    let options = VerifyOptions::default();
    let mut run = Run::new(repository, &cluster, &outlook, Arc::new(Anything), &options);
    let needed = run.light(&outlook).await.unwrap();
    // As expire does: announced, then the intent, the manifest, the packs, the WAL.
    let wal = crate::backup::AnnouncedWal {
        lineage: bed.archive.lineage().id,
        timeline: TimelineId::FIRST,
        first: 0,
        last: 14,
    };
    let announced = Announcement {
        written: Timestamp::now(),
        host: String::new(),
        agent: String::new(),
        reason: AnnouncementReason::Expired,
        backups: vec![ids[0]],
        packs: vec![AnnouncedPacks::all_of(ids[0])],
        wal: vec![wal],
        requests: Vec::new(),
    };
    Backups::of(repository, &cluster).announce(&announced).await.unwrap();
    let own =
        |key: &String| key.contains(&ids[0].to_string()) || (0..15).any(|n| *key == segment_key(&bed, n));
    for key in keys(&bed).await.iter().filter(|key| own(key)) {
        std::fs::remove_file(path(&bed, key)).unwrap();
    }
    run.blocks().await.unwrap();
    run.wal(&needed).await.unwrap();
    run.others(&needed).await.unwrap();
    assert_eq!(run.report.findings, []);
    assert!(run.damaged.is_empty() && run.damaged_wal.is_empty());
}

fn options(depth: Depth) -> VerifyOptions {
    VerifyOptions { depth, ..VerifyOptions::default() }
}

async fn outlook_with(bed: &Bed, rule: Rule) -> Outlook {
    let policy = Policy { rule, ..Policy::default() };
    outlook(bed.archive.repository(), &cluster(), &policy, Timestamp::now()).await.unwrap()
}

/// What reads segments, after what lists them.
const READING: [Depth; 2] = [Depth::Full, Depth::Budget(Duration::from_secs(600))];

async fn read_wal(run: &mut Run<'_>, needed: &[NeededWal]) {
    match run.options.depth {
        Depth::Full => run.wal(needed).await.unwrap(),
        _ => run.sample(needed).await.unwrap(),
    }
}

/// K4: the run that deletes takes the announcement back, so that nothing is announced of what was deleted when it is missed.
#[tokio::test(flavor = "multi_thread")]
async fn wal_that_expired_beside_a_run_is_no_finding_though_nothing_is_announced_any_more() {
    for depth in READING {
        // To be deleted when the run begins, or only decided so since.
        for count in [Some(1), None] {
            let (bed, _) = readable_world().await;
            let (repository, cluster) = (bed.archive.repository(), cluster());
            let outlook = outlook_with(&bed, Rule { count, ..Rule::default() }).await;
            let options = options(depth);
            let mut run = Run::new(repository, &cluster, &outlook, Arc::new(Anything), &options);
            let needed = run.light(&outlook).await.unwrap();
            expire(repository, &cluster, &at_once(1)).await.unwrap();
            let left = keys(&bed).await;
            assert!(!left.contains(&segment_key(&bed, 5)) && left.contains(&segment_key(&bed, 15)));
            assert!(!left.iter().any(|key| key.contains("/announcements/")), "{left:?}");
            read_wal(&mut run, &needed).await;
            assert_eq!(run.report.findings, [], "{depth:?}, {count:?}");
            assert!(run.damaged.is_empty() && run.damaged_wal.is_empty());
        }
    }
}

/// K4: what an accident takes beside a run is one, and nothing is recorded as damaged of what is not there.
#[tokio::test(flavor = "multi_thread")]
async fn wal_that_is_lost_beside_a_run_is_a_finding() {
    for depth in READING {
        let (bed, _) = readable_world().await;
        let (outlook, cluster) = (outlook_with(&bed, Rule::default()).await, cluster());
        let options = options(depth);
        let mut run = Run::new(bed.archive.repository(), &cluster, &outlook, Arc::new(Anything), &options);
        let needed = run.light(&outlook).await.unwrap();
        std::fs::remove_file(path(&bed, &segment_key(&bed, 20))).unwrap();
        read_wal(&mut run, &needed).await;
        let found: Vec<_> = run.report.findings.iter().map(|f| (f.kind, f.object.clone())).collect();
        assert_eq!(found, [(FindingKind::Missing, segment_key(&bed, 20))], "{depth:?}");
        assert!(run.damaged_wal.is_empty());
    }
}
