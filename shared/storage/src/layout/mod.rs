//! Where everything lies in a repository: the one place that composes keys and takes them apart again.
//!
//! The parts of a key are valid by their types ([`ClusterName`], [`LineageId`], …); free text is written in hex.

mod key;
mod object;
mod wal;

use walpoint_base::{BackupId, ClusterName, LineageId, Lsn, TimelineId};

pub use self::key::{Key, MAX_KEY, Prefix};
pub use self::object::ClusterObject;
pub use self::wal::{AbandonedUntil, NameHash, WalEntry, WalPaths};

/// The descriptor, `walpoint.json`.
pub fn descriptor() -> Key {
    Key::composed("walpoint.json".to_owned())
}

/// A key slot, `keys/<slot>`.
pub fn key_slot(slot: u32) -> Key {
    Key::composed(format!("keys/{slot}"))
}

/// Every key slot.
pub fn key_slots() -> Prefix {
    Prefix::composed("keys".to_owned())
}

/// A directory whose directories are the clusters.
pub fn clusters() -> Prefix {
    Prefix::composed("clusters".to_owned())
}

/// What `init` and `check` write and delete to find out what the store can do.
pub fn probe(random: u64) -> Key {
    Key::composed(format!("probe/{random:016x}"))
}

/// Where the probes lie.
pub fn probes() -> Prefix {
    Prefix::composed("probe".to_owned())
}

/// Everything of one cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterPaths {
    root: String,
}

impl ClusterPaths {
    /// Below `clusters/<name>`.
    pub fn new(cluster: &ClusterName) -> Self {
        Self { root: format!("clusters/{cluster}") }
    }

    /// Everything of the cluster.
    pub fn all(&self) -> Prefix {
        Prefix::composed(self.root.clone())
    }

    /// `lineages/<lineage>`: the facts of a lineage.
    pub fn lineage(&self, lineage: LineageId) -> Key {
        Key::composed(format!("{}/lineages/{lineage}", self.root))
    }

    /// Every lineage's facts.
    pub fn lineages(&self) -> Prefix {
        Prefix::composed(format!("{}/lineages", self.root))
    }

    /// `<lineage>/ack/<n>`: which repositories acknowledge its WAL, since one was made anew.
    pub fn acknowledging(&self, lineage: LineageId, n: u64) -> Key {
        Key::composed(format!("{}/{lineage}/ack/{n:012}", self.root))
    }

    /// Every document of that sequence.
    pub fn acknowledging_all(&self, lineage: LineageId) -> Prefix {
        Prefix::composed(format!("{}/{lineage}/ack", self.root))
    }

    /// The WAL, index, histories and restore points of a lineage.
    pub fn wal(&self, lineage: LineageId) -> WalPaths {
        WalPaths::new(format!("{}/{lineage}", self.root))
    }

    /// A directory whose directories are the base backups, finished or not.
    pub fn backups(&self) -> Prefix {
        Prefix::composed(format!("{}/backups", self.root))
    }

    /// Everything of a base backup but its data.
    pub fn backup(&self, id: BackupId) -> Prefix {
        Prefix::composed(format!("{}/backups/{id}", self.root))
    }

    /// `backups/<id>/intent`: created before anything else of a backup.
    pub fn intent(&self, id: BackupId) -> Key {
        Key::composed(format!("{}/backups/{id}/intent", self.root))
    }

    /// `backups/<id>/manifest`: makes it a backup, or a tombstone that ends it.
    pub fn manifest(&self, id: BackupId) -> Key {
        Key::composed(format!("{}/backups/{id}/manifest", self.root))
    }

    /// `backups/<id>/published`: created after the manifest, and says that there was one.
    pub fn published(&self, id: BackupId) -> Key {
        Key::composed(format!("{}/backups/{id}/published", self.root))
    }

    /// `backups/<id>/progress-<n>`: what an unfinished backup has stored.
    pub fn progress(&self, id: BackupId, n: u32) -> Key {
        Key::composed(format!("{}/backups/{id}/progress-{n:08}", self.root))
    }

    /// `data/<id>/<n>.pack`: written by that backup, used by it and later ones.
    pub fn pack(&self, id: BackupId, n: u32) -> Key {
        Key::composed(format!("{}/data/{id}/{n:08}.pack", self.root))
    }

    /// `data/<id>/<name>`: what else a backup stores in parts; `name` of `[0-9A-Za-z._-]`.
    pub fn data_object(&self, id: BackupId, name: &str) -> Result<Key, walpoint_base::ParseError> {
        self.data(id).key(name)
    }

    /// Every pack that a backup wrote.
    pub fn data(&self, id: BackupId) -> Prefix {
        Prefix::composed(format!("{}/data/{id}", self.root))
    }

    /// A directory whose directories are the backups that wrote packs.
    pub fn all_data(&self) -> Prefix {
        Prefix::composed(format!("{}/data", self.root))
    }

    /// `announcements/<n>`: what must not be built on any more: `expire` is about to delete it, or it is damaged.
    pub fn announcement(&self, n: u64) -> Key {
        Key::composed(format!("{}/announcements/{n:012}", self.root))
    }

    /// `holds/<n>`: what must be kept.
    pub fn hold(&self, n: u64) -> Key {
        Key::composed(format!("{}/holds/{n:012}", self.root))
    }

    /// `holds/<n>.given`: says that an entry of that number was written, so that one that is lost is missed, the last one too.
    pub fn hold_given(&self, n: u64) -> Key {
        Key::composed(format!("{}/holds/{n:012}.given", self.root))
    }

    /// `summaries/<n>`: summaries of finished backups.
    pub fn summaries(&self, n: u64) -> Key {
        Key::composed(format!("{}/summaries/{n:012}", self.root))
    }

    /// `evidence/<n>`: the chain of what was done and proven.
    pub fn evidence(&self, n: u64) -> Key {
        Key::composed(format!("{}/evidence/{n:012}", self.root))
    }

    /// `leases/<task>/<n>`: who is at it, advisory. `task` of `[0-9A-Za-z._-]`.
    pub fn lease(&self, task: &str, n: u64) -> Result<Key, walpoint_base::ParseError> {
        format!("{}/leases/{task}/{n:012}", self.root).parse()
    }

    /// `evidence/head`: a copy of where the chain ends, which saves looking for its end.
    pub fn evidence_head(&self) -> Key {
        Key::composed(format!("{}/evidence/head", self.root))
    }

    /// A numbered sequence: `announcements`, `holds`, `summaries`, `evidence` or `leases/<task>`.
    pub fn sequence(&self, name: &str) -> Result<Prefix, walpoint_base::ParseError> {
        format!("{}/{name}", self.root).parse()
    }
}

/// A named restore point: `points/<hex-name>/<TLI>-<lsn>`.
pub fn point_file(timeline: TimelineId, lsn: Lsn) -> String {
    format!("{}-{:016X}", timeline.hex(), lsn.0)
}

/// Free text as it appears in a key.
pub fn hex(text: &str) -> String {
    use std::fmt::Write;
    let mut hex = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        // Writing to a String cannot fail.
        write!(hex, "{byte:02x}").ok();
    }
    hex
}

/// The text that [`hex`] wrote; `None` for anything else.
pub fn unhex(hex: &str) -> Option<String> {
    let digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if !hex.len().is_multiple_of(2) || !hex.bytes().all(digit) {
        return None;
    }
    let bytes: Option<Vec<u8>> =
        hex.as_bytes().chunks(2).map(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 16).ok()).collect();
    String::from_utf8(bytes?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_as_the_format_says() {
        let paths = ClusterPaths::new(&"main".parse().unwrap());
        let lineage: LineageId = "7400000000000000001-1".parse().unwrap();
        let backup: BackupId = "20261121T101500Z-00000001-0000000002000028-9f3a0c11".parse().unwrap();
        assert_eq!(paths.lineage(lineage).as_str(), "clusters/main/lineages/7400000000000000001-1");
        let base = "clusters/main/backups/20261121T101500Z-00000001-0000000002000028-9f3a0c11";
        assert_eq!(paths.intent(backup).as_str(), format!("{base}/intent"));
        assert_eq!(paths.progress(backup, 3).as_str(), format!("{base}/progress-00000003"));
        assert_eq!(
            paths.pack(backup, 12).as_str(),
            "clusters/main/data/20261121T101500Z-00000001-0000000002000028-9f3a0c11/00000012.pack"
        );
        assert!(paths.lease("../x", 1).is_err());
    }

    #[test]
    fn text_survives_hex() {
        for text in ["", "before upgrade", "ä/..\0"] {
            assert_eq!(unhex(&hex(text)).as_deref(), Some(text));
        }
        for bad in ["a", "zz", "AB", "+1", "c3"] {
            assert_eq!(unhex(bad), None, "{bad:?}");
        }
    }
}
