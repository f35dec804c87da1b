//! Damage, and verification: what is damaged is found, nothing else is, and the next backup does without it.

use crate::verify::FindingKind;
use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::FutureExt;
use jiff::Timestamp;
use rand::Rng;
use rand::seq::IteratorRandom;
use walpoint_base::{BackupId, SegmentNo, durable};
use walpoint_plan::retention::Policy;
use walpoint_storage::error::RepoError;
use walpoint_storage::layout::{ClusterObject, Key};

use super::world::{FIRST, Readable, World, segment_size};
use crate::backup::ManifestState;
use crate::expire::outlook;
use crate::expire::tests::cluster;
use crate::verify::tests::Anything;
use crate::verify::{Depth, VerifyOptions, verify};

impl World {
    /// Damages a pack or a manifest, or clears away what is left of a damaged one. Nothing in most lives.
    pub(super) async fn damage(&mut self) {
        if !self.suffers {
            return;
        }
        let broken = self.made.iter().find(|(_, made)| made.manifest != Readable::All).map(|(id, _)| *id);
        match (self.rng.random_range(0..7), broken) {
            (0, None) => self.damage_manifest().await,
            (0..3, Some(id)) => self.delete_by_hand(id),
            (6, _) => self.damage_segment(),
            _ => self.damage_pack(),
        }
    }

    fn damage_pack(&mut self) {
        let whole = self.packs().into_iter().filter(|pack| !self.damaged.contains(pack));
        let Some(pack) = whole.choose(&mut self.rng) else { return };
        let path = self.file_of(&self.paths.pack(pack.0, pack.1));
        let modified = path.metadata().unwrap().modified().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = self.rng.random_range(0..bytes.len());
        let what = match self.rng.random_range(0..4) {
            0 => {
                std::fs::remove_file(&path).unwrap();
                "deleted"
            }
            1 => {
                bytes.truncate(at);
                "cut"
            }
            _ => {
                bytes[at] ^= 1 << self.rng.random_range(0..8);
                "damaged"
            }
        };
        if path.exists() {
            durable::replace(&path, &bytes, 0o640).unwrap();
            std::fs::File::open(&path).unwrap().set_modified(modified).unwrap();
        }
        self.journal.note(format!("pack {pack:?} is {what} at {at}"));
        self.damaged.insert(pack);
        if what != "damaged" {
            self.announced.insert(pack);
        }
    }

    /// Damages the content of a segment, or takes it away.
    fn damage_segment(&mut self) {
        let whole = self.wal.iter().copied().filter(|n| !self.damaged_wal.contains(n));
        let Some(n) = whole.choose(&mut self.rng) else { return };
        let name = SegmentNo(n).name(FIRST, segment_size());
        let path = self.file_of(&self.bed.archive.paths().segment(name));
        if self.rng.random_bool(0.5) {
            std::fs::remove_file(&path).unwrap();
            self.wal.remove(&n);
            self.journal.note(format!("segment {n} is deleted"));
            return;
        }
        let modified = path.metadata().unwrap().modified().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        durable::replace(&path, &bytes, 0o640).unwrap();
        std::fs::File::open(&path).unwrap().set_modified(modified).unwrap();
        self.damaged_wal.insert(n);
        self.journal.note(format!("segment {n} is damaged"));
    }

    async fn damage_manifest(&mut self) {
        let Some(id) = self.made.keys().copied().choose(&mut self.rng) else { return };
        let path = self.file_of(&self.paths.manifest(id));
        let modified = path.metadata().unwrap().modified().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = self.rng.random_range(0..bytes.len());
        bytes[at] ^= 1 << self.rng.random_range(0..8);
        durable::replace(&path, &bytes, 0o640).unwrap();
        std::fs::File::open(&path).unwrap().set_modified(modified).unwrap();
        let backups = self.backups().await;
        let summary = match backups.standing(id).await {
            Ok(ManifestState::Finished(_)) => true,
            Ok(other) => panic!("the manifest of {id} reads as {other:?}"),
            Err(RepoError::Corrupt { .. }) => false,
            Err(error) => panic!("{error}"),
        };
        let state = match backups.open(id).await {
            _ if !summary => Readable::Nothing,
            Ok(_) => Readable::Needs,
            Err(RepoError::Corrupt { .. }) => Readable::Summary,
            Err(error) => panic!("{error}"),
        };
        self.made.get_mut(&id).unwrap().manifest = state;
        self.journal.note(format!("the manifest of {id} is damaged at {at}: readable is {state:?}"));
    }

    /// Somebody deletes by hand what is left of a backup.
    fn delete_by_hand(&mut self, id: BackupId) {
        std::fs::remove_dir_all(self.bed.dir.path().join(format!("clusters/main/backups/{id}"))).unwrap();
        self.made.remove(&id);
        self.journal.note(format!("{id} is deleted by hand"));
    }

    /// Verifies, and compares with what restores find.
    pub(super) async fn verify(&mut self) {
        let depth = match self.rng.random_range(0..5) {
            0 => Depth::Light,
            1 => Depth::Sample(0.3),
            _ => Depth::Full,
        };
        let repository = self.open().await;
        let outlook = outlook(&repository, &cluster(), &Policy::default(), Timestamp::now())
            .boxed_local()
            .await
            .unwrap();
        let options = VerifyOptions { depth, ..VerifyOptions::default() };
        let check = Arc::new(Anything);
        let report = verify(&repository, &cluster(), &outlook, check, &options).boxed_local().await.unwrap();
        self.journal.note(format!("verify {depth:?}: {} findings", report.finding_count));
        // Gaps in the WAL are what expiry leaves between backups.
        let objects = report.findings.iter().filter(|f| f.kind != FindingKind::Gap);
        let (mut packs, mut manifests, mut wal) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for finding in objects {
            let key: Key = finding.object.parse().unwrap();
            match self.paths.parse(&key) {
                Some(ClusterObject::Pack(owner, n)) => {
                    packs.insert((owner, n));
                    // What names no backup is damage that none of them needs.
                    if !finding.backups.is_empty() {
                        self.announced.insert((owner, n));
                    }
                }
                Some(ClusterObject::Manifest(id)) => drop(manifests.insert(id)),
                Some(ClusterObject::Wal(_, entry)) => {
                    let number = entry.segment().unwrap().number(segment_size()).unwrap().0;
                    match finding.kind {
                        FindingKind::Missing => assert!(!self.wal.contains(&number), "{finding:?}"),
                        _ => drop(wal.insert(number)),
                    }
                }
                other => panic!("{other:?}: {finding:?}"),
            }
        }
        assert!(packs.is_subset(&self.damaged), "found {packs:?}, damaged are {:?}", self.damaged);
        // Packs of what was deleted by hand are a finding at once where nothing else is listed.
        manifests.retain(|id| self.made.contains_key(id));
        let broken = self.made.iter().filter(|(_, made)| made.manifest != Readable::All);
        assert_eq!(manifests, broken.map(|(id, _)| *id).collect(), "manifests");
        assert!(wal.is_subset(&self.damaged_wal), "found {wal:?}, damaged are {:?}", self.damaged_wal);
        self.reported_wal.extend(&wal);
        for id in &manifests {
            self.made.get_mut(id).unwrap().reported = true;
        }
        if depth == Depth::Full {
            let ids: Vec<BackupId> = self.made.keys().copied().collect();
            for id in ids {
                let Some(error) = self.restore(id).boxed_local().await else { continue };
                let (RepoError::Corrupt { key, .. } | RepoError::NotFound { key, .. }) = &error else {
                    panic!("{error}")
                };
                let found = match self.paths.parse(key) {
                    Some(ClusterObject::Pack(owner, n)) => packs.contains(&(owner, n)),
                    Some(ClusterObject::Manifest(id)) => manifests.contains(&id),
                    _ => false,
                };
                assert!(found, "{id} does not restore ({error}), and verify found {packs:?}");
            }
        }
    }
}
