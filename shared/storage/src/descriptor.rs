//! The descriptor, `walpoint.json`: what a repository is. Written first by `init`, read first by everybody.
//!
//! It is the proof that a store holds a repository at all: an unmounted directory or an emptied bucket has none, and then
//! nothing in it is believed to be absent.

use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use walpoint_base::ClusterName;

use crate::document::{self, as_text};
use crate::error::{Remedy, RepoError, Result, found};
use crate::layout::{self, ClusterPaths};
use crate::object::{FORMAT_VERSION, MasterKey, RepositoryId, Sealer};
use crate::store::Store;

/// What a repository is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Descriptor {
    /// The format version of everything in it.
    pub format: u16,
    /// Tells it from every other repository.
    #[serde(with = "as_text")]
    pub id: RepositoryId,
    /// When it was created.
    pub created: jiff::Timestamp,
    /// How it is encrypted; `None` if it is not.
    pub encryption: Option<Encryption>,
}

/// How a repository is encrypted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Encryption {
    /// `aes-256-gcm`, the only one of version 1.
    pub algorithm: String,
    /// A value derived from the master key, in hex: tells a wrong key before anything is read or written.
    pub key_check: String,
}

const ALGORITHM: &str = "aes-256-gcm";

impl Descriptor {
    /// A new repository, encrypted if there is a key.
    pub fn new(master: Option<&MasterKey>) -> Result<Self> {
        let id = RepositoryId::random();
        let encryption = match master {
            None => None,
            Some(master) => {
                Some(Encryption { algorithm: ALGORITHM.to_owned(), key_check: key_check(id, master)? })
            }
        };
        Ok(Self { format: FORMAT_VERSION, id, created: now(), encryption })
    }

    /// Reads `walpoint.json` of the store of that name.
    pub fn parse(store: &str, bytes: &[u8]) -> Result<Self> {
        let key = layout::descriptor();
        // The version comes first: a newer format may check its text in another way.
        #[derive(Deserialize)]
        struct Version {
            format: u64,
        }
        let corrupt = |error: serde_json::Error| RepoError::corrupt(&key, error);
        let cut = bytes.get(..bytes.len().min(document::MAX_DOCUMENT)).unwrap_or_default();
        let version: Version = serde_json::from_slice(cut).map_err(corrupt)?;
        if version.format != u64::from(FORMAT_VERSION) {
            let what = format!(
                "it has format version {}, this program knows version {FORMAT_VERSION}\nHINT: Use a newer Walpoint.",
                version.format
            );
            return Err(RepoError::Format { store: store.to_owned(), what });
        }
        document::open(None, &key, bytes)
    }

    /// How objects are sealed here. Fails where the key is missing, not wanted or wrong.
    pub fn sealer(&self, store: &str, master: Option<MasterKey>) -> Result<Sealer> {
        let unusable = |what: &str| RepoError::Format { store: store.to_owned(), what: what.to_owned() };
        let locked =
            |what: &str| RepoError::Locked { store: store.to_owned(), what: what.to_owned(), remedy: None };
        match (&self.encryption, master) {
            (None, None) => Ok(Sealer::plain(self.id)),
            (None, Some(_)) => Err(unusable("a key is configured, but the repository is not encrypted")),
            (Some(_), None) => Err(locked("it is encrypted and no key is configured")),
            (Some(encryption), Some(_)) if encryption.algorithm != ALGORITHM => Err(unusable(
                "it is encrypted in a way that this program does not know\nHINT: Use a newer Walpoint.",
            )),
            (Some(encryption), Some(master)) => {
                if key_check(self.id, &master)? != encryption.key_check {
                    return Err(locked("the configured key is not this repository's"));
                }
                Sealer::encrypted(self.id, master).map_err(RepoError::sealing)
            }
        }
    }

    /// Whether that is the master key of this repository.
    pub fn is_key(&self, master: &MasterKey) -> Result<bool> {
        match &self.encryption {
            Some(encryption) => Ok(key_check(self.id, master)? == encryption.key_check),
            None => Ok(false),
        }
    }
}

fn key_check(id: RepositoryId, master: &MasterKey) -> Result<String> {
    let sealer = Sealer::encrypted(id, master.clone()).and_then(|s| s.derive_key("key check"));
    let key = sealer.map_err(RepoError::sealing)?;
    Ok(blake3::Hash::from_bytes(key).to_hex().to_string())
}

/// Reads a store's descriptor. That there is none is never "not found": there is no repository then.
pub async fn read_descriptor(store: &Store) -> Result<Descriptor> {
    let Some(bytes) = found(store.get(&layout::descriptor()).await)? else {
        // That it cannot be listed is no reason to say less.
        if let Ok(Some(lost)) = lost(store).await {
            return Err(lost);
        }
        return Err(RepoError::NoRepository {
            store: store.name().to_owned(),
            what: "it has no walpoint.json\nHINT: Check the URL, that the directory is mounted, and that the bucket is the \
                   right one."
                .to_owned(),
            remedy: Some(Remedy::CreateRepository),
        });
    };
    Descriptor::parse(store.name(), &bytes)
}

/// What to say of a store that has lineages or backups and no descriptor; `None` if it has none. A daemon that has not noticed yet
/// that its repository was deleted may leave a segment or two: they are no reason.
pub async fn lost(store: &Store) -> Result<Option<RepoError>> {
    for cluster in store.list_dirs(&layout::clusters()).await? {
        let Ok(name) = cluster.parse::<ClusterName>() else { continue };
        let paths = ClusterPaths::new(&name);
        // Objects and not directories: those of a filesystem stay when they are empty.
        let (mut lineages, mut backups) =
            (store.list(&paths.lineages(), None), store.list(&paths.backups(), None));
        if lineages.try_next().await?.is_none() && backups.try_next().await?.is_none() {
            continue;
        }
        return Ok(Some(RepoError::NoRepository {
            store: store.name().to_owned(),
            what: format!(
                "it has objects of cluster {cluster}, but no walpoint.json: that object is lost\nDETAIL: \
                 Creating a repository here would make everything that is stored unreadable, so it is \
                 refused.\nHINT: Put the object back, from another version of it in the store or from a \
                 copy of the store."
            ),
            remedy: None,
        }));
    }
    Ok(None)
}

/// Now, to the second: finer says nothing here.
pub fn now() -> jiff::Timestamp {
    jiff::Timestamp::new(jiff::Timestamp::now().as_second(), 0).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_its_text_and_knows_its_key() {
        let master = MasterKey::new([1; 32]);
        for key in [None, Some(master.clone())] {
            let descriptor = Descriptor::new(key.as_ref()).unwrap();
            let sealed = document::seal(None, &layout::descriptor(), &descriptor).unwrap();
            assert_eq!(Descriptor::parse("x", &sealed.bytes).unwrap(), descriptor);
            assert_eq!(descriptor.sealer("x", key.clone()).unwrap().is_encrypted(), key.is_some());
        }
        let encrypted = Descriptor::new(Some(&master)).unwrap();
        let plain = Descriptor::new(None).unwrap();
        for (descriptor, key, word) in [
            (&encrypted, None, "no key"),
            (&encrypted, Some(MasterKey::new([2; 32])), "not this repository's"),
            (&plain, Some(master), "not encrypted"),
        ] {
            let error = descriptor.sealer("x", key).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_newer_format_is_named_before_its_check() {
        let error = Descriptor::parse("x", br#"{"format":2,"something":"else"}"#).unwrap_err();
        assert!(matches!(&error, RepoError::Format { what, .. } if what.contains("version 2")), "{error}");
        assert!(matches!(Descriptor::parse("x", b"{}").unwrap_err(), RepoError::Corrupt { .. }));
    }
}
