//! Repositories from which everything was taken that would show what is missing.

use super::*;

const DEPTHS: [Depth; 3] = [Depth::Light, Depth::Sample(1.0), Depth::Full];

fn missing(report: &Verified) -> Vec<&str> {
    report
        .findings
        .iter()
        .filter(|found| found.kind == FindingKind::Missing)
        .map(|f| f.object.as_str())
        .collect()
}

/// K4: after init, and before the first backup, nothing is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_repository_without_backups_is_sound() {
    let bed = crate::index::tests::bed().await;
    for depth in DEPTHS {
        assert_eq!(run(&bed, depth).await.findings, []);
    }
    for number in 0..10 {
        bed.store_whole(number).await;
    }
    for depth in DEPTHS {
        assert_eq!(run(&bed, depth).await.findings, []);
    }
}

/// K4: a cluster of which nothing is there, not even what `init` stores.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_which_nothing_is_left_is_a_finding() {
    let (bed, _) = readable_world().await;
    std::fs::remove_dir_all(path(&bed, "clusters/main")).unwrap();
    for depth in DEPTHS {
        let report = run(&bed, depth).await;
        assert_eq!(missing(&report), ["clusters/main/lineages/"], "{report:#?}");
        assert_eq!(report.finding_count, 1);
    }
}

/// K4: the lists of all backups are gone, and their packs are there.
#[tokio::test(flavor = "multi_thread")]
async fn packs_without_any_backup_are_a_finding() {
    let (bed, ids) = readable_world().await;
    std::fs::remove_dir_all(path(&bed, "clusters/main/backups")).unwrap();
    let paths = ClusterPaths::new(&cluster());
    let mut lost = ids.iter().map(|id| paths.manifest(*id).to_string()).collect::<Vec<_>>();
    lost.sort();
    for depth in DEPTHS {
        let report = run(&bed, depth).await;
        assert_eq!(missing(&report), lost, "{report:#?}");
    }
}
