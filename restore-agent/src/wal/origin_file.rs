//! What the file `pg_wal/walpoint-origin` holds: JSON whose members are all text or plain values. A member that is not known, or
//! does not parse, makes the whole file damaged.

use serde::{Deserialize, Serialize};
use walpoint_storage::object::RepositoryId;

use super::origin::{OriginRepository, RecoveryOrigin, ServedSegment};

/// The file's content.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Content {
    recovery: String,
    lineage: String,
    repositories: Vec<ContentRepository>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    served: Option<ContentServed>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContentServed {
    repository: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    segment: Option<ContentSegment>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContentSegment {
    name: String,
    hash: String,
    content_len: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keyed: Option<bool>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContentRepository {
    name: String,
    id: String,
    lineage: Option<String>,
    acknowledges: bool,
    newest: Option<String>,
}

impl From<&RecoveryOrigin> for Content {
    fn from(origin: &RecoveryOrigin) -> Self {
        let repository = |known: &OriginRepository| ContentRepository {
            name: known.name.clone(),
            id: known.id.to_string(),
            lineage: known.lineage.map(|lineage| lineage.to_string()),
            acknowledges: known.acknowledges,
            newest: known.newest.map(|newest| newest.to_string()),
        };
        Self {
            recovery: origin.recovery.clone(),
            lineage: origin.lineage.to_string(),
            repositories: origin.repositories.iter().map(repository).collect(),
            served: origin.served.map(|(repository, segment)| ContentServed {
                repository: repository.to_string(),
                segment: segment.map(|segment| ContentSegment {
                    name: segment.name.to_string(),
                    hash: segment.hash.to_string(),
                    content_len: segment.content_len,
                    keyed: segment.keyed,
                }),
            }),
        }
    }
}

impl Content {
    pub(super) fn into_origin(self) -> Option<RecoveryOrigin> {
        let mut repositories = Vec::new();
        for known in self.repositories {
            repositories.push(OriginRepository {
                name: known.name,
                id: known.id.parse().ok()?,
                lineage: known.lineage.map(|lineage| lineage.parse()).transpose().ok()?,
                acknowledges: known.acknowledges,
                newest: known.newest.map(|newest| newest.parse()).transpose().ok()?,
            });
        }
        let served = match self.served {
            Some(served) => Some(served.parse()?),
            None => None,
        };
        Some(RecoveryOrigin {
            recovery: self.recovery,
            lineage: self.lineage.parse().ok()?,
            repositories,
            served,
        })
    }
}

impl ContentServed {
    fn parse(self) -> Option<(RepositoryId, Option<ServedSegment>)> {
        let segment = match self.segment {
            Some(ContentSegment { name, hash, content_len, keyed }) => {
                Some(ServedSegment { name: name.parse().ok()?, hash: hash.parse().ok()?, content_len, keyed })
            }
            None => None,
        };
        Some((self.repository.parse().ok()?, segment))
    }
}
