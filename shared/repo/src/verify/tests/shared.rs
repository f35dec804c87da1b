//! Blocks that several files of a backup share, as after CREATE DATABASE by file copy.

use super::{Anything, of_packs, path, replace, run, run_with};
use crate::backup::{Attributes, BlockSize, Intent, WriteOptions};
use crate::expire::tests::{ago, cluster, id, intent, publish, world};
use crate::index::tests::Bed;
use crate::verify::*;

/// 20 blocks that no compression shortens, other ones for each name's first letter.
fn content(name: &str) -> Vec<u8> {
    let mut noise = vec![0; 20 * 8192];
    blake3::Hasher::new().update(&name.as_bytes()[..1]).finalize_xof().fill(&mut noise);
    noise
}

/// A backup of these files. Those with the content of a file of the parent point to its blocks.
async fn of_files(
    bed: &Bed,
    segment: u64,
    hours: i64,
    parents: &[BackupId],
    files: &'static [&'static str],
) -> BackupId {
    let intent = Intent { parents: parents.to_vec(), ..intent(bed, id(segment, hours), ago(hours)) };
    let backups = Backups::of(bed.archive.repository(), &cluster());
    let writer =
        backups.begin(intent, BlockSize::new(8192).unwrap(), &WriteOptions::default()).await.unwrap();
    let mut stream = writer.stream();
    tokio::task::spawn_blocking(move || {
        let attributes = Attributes { mode: 0o700, uid: 26, gid: 26, mtime: hours };
        stream.directory(TablePath::data("").unwrap(), attributes).unwrap();
        for name in files {
            let (path, content) = (TablePath::data(*name).unwrap(), content(name));
            let mut hasher = stream.hasher();
            hasher.update(&content);
            if stream.same_file(&path, hasher.finish(), attributes).unwrap() {
                continue;
            }
            let mut file = stream.file(path);
            file.write(&content).unwrap();
            file.finish(attributes).unwrap();
        }
        stream.finish().unwrap();
    })
    .await
    .unwrap();
    publish(bed, writer, hours).await
}

/// K4: a backup that counts as many blocks of a pack as there are, because its files share them, does not use all of the pack.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_backup_uses_several_times_hides_nothing_that_only_another_one_uses() {
    let (bed, _) = world().await;
    let writer = of_files(&bed, 60, 3, &[], &["a", "b"]).await;
    let copies = of_files(&bed, 70, 2, &[writer], &["a", "a1", "a2"]).await;
    let both = of_files(&bed, 80, 1, &[writer], &["a", "b"]).await;
    let (paths, store) = (ClusterPaths::new(&cluster()), bed.archive.repository().store());
    store.delete(&paths.manifest(writer)).await.unwrap();
    store.delete(&paths.intent(writer)).await.unwrap();
    let backups = Backups::of(bed.archive.repository(), &cluster());
    let reader = backups.open(copies).await.unwrap();
    let counted: Vec<(u32, u32)> =
        reader.manifest().packs.packs().iter().map(|pack| (pack.live, pack.units)).collect();
    assert!(counted.contains(&(40, 40)), "20 blocks, three times: {counted:?}");
    assert_eq!(of_packs(&run(&bed, Depth::Full).await), []);

    // In the last blocks of b.
    let pack = paths.pack(writer, 0);
    let file = path(&bed, pack.as_str());
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() * 9 / 10;
    bytes[at] ^= 1;
    replace(&file, &bytes);
    let damaged = [(FindingKind::Damaged, pack.to_string())];
    assert_eq!(of_packs(&run_with(&bed, Depth::Full, Some(copies), Arc::new(Anything)).await), []);
    assert_eq!(of_packs(&run_with(&bed, Depth::Full, Some(both), Arc::new(Anything)).await), damaged);
    // What was recorded is not taken back either.
    assert_eq!(of_packs(&run(&bed, Depth::Full).await), damaged);
    let announced = backups.announcements().await.unwrap().read;
    assert!(announced.iter().any(|one| one.announcement.packs.iter().any(|packs| packs.backup == writer)));
}
