//! The first and the last word of a backup that has no manifest: intent and tombstone. And the word beside a manifest, which says that
//! there was one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walpoint_base::{BackupId, LineageId};
use walpoint_storage::layout::Key;
use walpoint_storage::object::{ObjectKind, ObjectReader, ObjectWriter, SealedObject, Sealer};

use super::facts::{from_json, to_json};
use super::json::{text, texts};
use super::manifest::EncodeError;
use super::wire::Malformed;

/// Created before anything else of a backup, and before a parent is read: as long as it has no manifest beside it, what
/// it names is needed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Intent {
    /// The backup that begins.
    #[serde(with = "text")]
    pub id: BackupId,
    /// Of which life of the cluster.
    #[serde(with = "text")]
    pub lineage: LineageId,
    /// When.
    pub started: Timestamp,
    /// On which machine.
    pub host: String,
    /// The version of Walpoint.
    pub agent: String,
    /// The label the backup will have.
    pub label: String,
    /// Finished backups whose blocks it may use.
    #[serde(with = "texts")]
    pub parents: Vec<BackupId>,
    /// Unfinished backups whose blocks it may use.
    #[serde(with = "texts")]
    pub resumed: Vec<BackupId>,
}

/// Stands where a manifest would, once nobody may write it any more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tombstone {
    /// The backup that ended.
    #[serde(with = "text")]
    pub id: BackupId,
    /// When.
    pub ended: Timestamp,
    /// Why, in words.
    pub reason: String,
}

/// What says that a backup was finished: the meta frame of an object without content, so that two of one backup are the same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Published {
    /// The backup.
    #[serde(with = "text")]
    pub(super) id: BackupId,
}

impl Published {
    pub(super) fn seal(&self, sealer: &Sealer, key: &Key) -> Result<SealedObject, EncodeError> {
        let mut writer = ObjectWriter::new(sealer, ObjectKind::Published, key)?;
        writer.meta(&to_json(self)?)?;
        Ok(writer.finish()?)
    }
}

impl Intent {
    pub(super) fn seal(&self, sealer: &Sealer, key: &Key) -> Result<SealedObject, EncodeError> {
        // Content, not a description: two intents of one name would be a conflict.
        let mut writer = ObjectWriter::new(sealer, ObjectKind::Intent, key)?;
        writer.frame(&to_json(self)?)?;
        Ok(writer.finish()?)
    }

    pub(super) fn read(reader: ObjectReader, id: BackupId) -> Result<Self, EncodeError> {
        let mut json = Vec::new();
        let limit = super::facts::MAX_SUMMARY;
        reader.read_all(limit, &mut json).map_err(|e| Malformed(e.to_string()))?;
        let intent: Self = from_json(&json)?;
        same_id(intent.id, id)?;
        Ok(intent)
    }
}

impl Tombstone {
    pub(super) fn seal(&self, sealer: &Sealer, key: &Key) -> Result<SealedObject, EncodeError> {
        // No content: two tombstones of one backup are the same, whoever came first.
        let mut writer = ObjectWriter::new(sealer, ObjectKind::Tombstone, key)?;
        writer.meta(&to_json(self)?)?;
        Ok(writer.finish()?)
    }

    pub(super) fn read(meta: &[u8], id: BackupId) -> Result<Self, EncodeError> {
        let tombstone: Self = from_json(meta)?;
        same_id(tombstone.id, id)?;
        Ok(tombstone)
    }
}

fn same_id(is: BackupId, expected: BackupId) -> Result<(), Malformed> {
    if is == expected { Ok(()) } else { Err(Malformed(format!("it describes backup {is}"))) }
}
