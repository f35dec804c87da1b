//! Backups of whose timeline nothing is left but they.

use walpoint_base::{PgMajor, SystemId};

use super::*;
use crate::repository::NewLineage;

/// Every object and directory of the lineage's WAL, histories and index.
fn lose_wal(bed: &Bed) {
    let lineage = path(bed, &format!("clusters/main/{}", bed.archive.lineage().id));
    std::fs::remove_dir_all(lineage).unwrap();
}

/// The cluster under another system identifier, with a backup that ended so many hours ago.
async fn another_lineage(bed: Bed, hours: i64) -> (Bed, BackupId) {
    let new = NewLineage {
        system_id: SystemId(7400000000000000002),
        major: PgMajor::new(17).unwrap(),
        segment_size: size(),
        wal_block_size: 8192,
        block_size: 8192,
        relation_segment_blocks: 131_072,
        ack: vec![],
    };
    let lineage = bed.archive.repository().create_lineage(&cluster(), new).await.unwrap();
    let bed = Bed { archive: bed.archive.repository().wal(&lineage), dir: bed.dir };
    for number in 0..20 {
        bed.store_header(header(lineage.id, FIRST, number)).await;
    }
    let id = backup(&bed, 7, hours).await;
    (bed, id)
}

/// K1, promise 11: a backup all of whose WAL is gone, with everything else of its timeline, pushes none out.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_timeline_is_gone_pushes_no_sound_one_out() {
    let (bed, ids) = world().await;
    let (bed, other) = another_lineage(bed, 2).await;
    lose_wal(&bed);
    for _ in 0..2 {
        let report = run(&bed, &at_once(1)).await;
        let told = report.backups.iter().find(|told| told.id == other).unwrap();
        assert_eq!(told.damage.as_deref(), Some("2 damaged or missing WAL segments"));
        assert_eq!(finished(&bed).await, [ids[4], other]);
    }
    let mut catalog = Catalog::load(bed.archive.repository(), &cluster()).await.unwrap();
    let status = catalog.status().await.unwrap();
    let damage = |id: BackupId| {
        let backup = status.backups.iter().find(|backup| backup.id == id).unwrap();
        backup.details.as_ref().unwrap().damage.clone()
    };
    assert_eq!(damage(other).as_deref(), Some("2 damaged or missing WAL segments"));
    assert_eq!(damage(ids[4]), None);
}
