//! Making a repository, and finding out what a store really does before trusting it.
//!
//! The descriptor is created last of what `init` does to a store, with a create that cannot replace: of two `init`s at
//! the same moment one makes the repository and the other opens it. A crash before leaves at most a probe object and a key
//! slot, which names a repository that is not there and is passed over.

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use walpoint_base::ClusterName;

use crate::descriptor::Descriptor;
use crate::document;
use crate::error::{RepoError, Result, found};
use crate::keys::{KeySlots, KeySource};
use crate::layout::{self, ClusterPaths};
use crate::object::MasterKey;
use crate::repository::{Repository, read_descriptor};
use crate::store::settings::ConditionalWrites;
use crate::store::{Creation, Store, StoreSettings};

/// How a repository is made, if there is none.
#[derive(Debug)]
pub(crate) enum NewRepository<'a> {
    /// Not encrypted.
    Plain,
    /// With that key, and no slot.
    WithKey(MasterKey),
    /// With a random key in a slot for what the settings name.
    Encrypted {
        /// A note for people beside the slot.
        comment: &'a str,
    },
}

/// What `init` did.
#[derive(Debug)]
pub struct Initialised {
    /// The repository, open.
    pub repository: Repository,
    /// Whether it was there before.
    pub existed: bool,
    /// What the store can do.
    pub probe: Probe,
}

/// What a store did with a probe object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// A missing object was answered with "not found". S3 without ListBucket says "denied": then absence cannot be proven.
    pub absence: Finding,
    /// What was created was read back, whole and in part, and its size was right.
    pub reading: Finding,
    /// A create over an existing object was refused, and the object was unchanged.
    pub never_replaces: Finding,
    /// A listing showed the object at once.
    pub listing: Finding,
    /// The object could be deleted and was gone.
    pub deleting: Finding,
    /// How far the store's clock is ahead of this machine's, to about a second; `None` where it cannot be told.
    pub clock_ahead: Option<jiff::SignedDuration>,
}

/// Whether a store does as expected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// It does.
    Good,
    /// It does not; what it did, and what that means.
    Bad(String),
}

impl Finding {
    fn of(good: bool, what: &str) -> Self {
        if good { Self::Good } else { Self::Bad(what.to_owned()) }
    }

    fn or_error<T>(result: Result<T>, good: impl FnOnce(&T) -> bool, what: &str) -> Self {
        match result {
            Ok(value) => Self::of(good(&value), what),
            Err(error) => Self::Bad(error_chain(&error)),
        }
    }

    /// Whether the store does as expected.
    pub fn is_good(&self) -> bool {
        *self == Self::Good
    }
}

impl Probe {
    /// Everything that was found, with a name for each.
    pub fn findings(&self) -> [(&'static str, &Finding); 5] {
        [
            ("absence", &self.absence),
            ("reading", &self.reading),
            ("never replaces", &self.never_replaces),
            ("listing", &self.listing),
            ("deleting", &self.deleting),
        ]
    }

    /// Finds out what a store does, with one small object that is deleted afterwards. Fails if that object cannot be
    /// created; everything else is a finding.
    pub async fn of(store: &Store) -> Result<Self> {
        let key = layout::probe(rand::random());
        let absence = match store.head(&key).await {
            Ok(None) => match store.get(&key).await {
                Err(RepoError::NotFound { .. }) => Finding::Good,
                Ok(_) => Finding::Bad("an object that was never written was found".to_owned()),
                Err(error) => Finding::Bad(error_chain(&error)),
            },
            Ok(Some(_)) => Finding::Bad("an object that was never written was found".to_owned()),
            Err(error) => Finding::Bad(format!(
                "a missing object was not answered with \"not found\": {}; may the credentials list the bucket \
                 (s3:ListBucket)?",
                error_chain(&error)
            )),
        };
        let (first, second) =
            (Bytes::from_static(b"walpoint probe 1"), Bytes::from_static(b"walpoint probe two"));
        if !store.create_blindly(&key, first.clone()).await? {
            return Err(RepoError::Rejected {
                what: format!("the creation of {key}"),
                store: store.name().to_owned(),
                source: "it says that an object of a random name exists already".into(),
            });
        }
        let before = jiff::Timestamp::now();
        let reading = match (store.get(&key).await, store.get_range(&key, 9..14).await) {
            (Ok(whole), Ok(part)) => {
                let good = whole == first && part.bytes == "probe" && part.size == first.len() as u64;
                Finding::of(good, "what was read is not what was written")
            }
            (Err(error), _) | (_, Err(error)) => Finding::Bad(error_chain(&error)),
        };
        let refused = store.create_blindly(&key, second).await;
        let unchanged = store.get(&key).await;
        let never_replaces = match (refused, unchanged) {
            (Ok(false), Ok(now)) if now == first => Finding::Good,
            (Ok(true), Ok(now)) if now != first => Finding::Bad(
                "the store accepted If-None-Match and overwrote the object all the same: two hosts could replace each \
                 other's WAL unnoticed"
                    .to_owned(),
            ),
            (Ok(_), Ok(_)) => Finding::Bad("a create over an existing object was answered wrongly".to_owned()),
            (Err(error), _) | (_, Err(error)) => Finding::Bad(error_chain(&error)),
        };
        let listed = store.list_all(&layout::probes()).await;
        let listing = Finding::or_error(
            listed,
            |l| l.iter().any(|e| e.key == key),
            "a listing does not show the object",
        );
        let clock_ahead = store.head(&key).await.ok().flatten().map(|m| m.modified.duration_since(before));
        let deleting = match store.delete(&key).await {
            Ok(()) => {
                Finding::or_error(store.head(&key).await, Option::is_none, "a deleted object is still there")
            }
            Err(error) => Finding::Bad(error_chain(&error)),
        };
        Ok(Self { absence, reading, never_replaces, listing, deleting, clock_ahead })
    }
}

pub(crate) async fn init(
    name: &str,
    settings: &StoreSettings,
    new: NewRepository<'_>,
) -> Result<Initialised> {
    let store = Store::open(settings).await?;
    // Any failure, a missing bucket included, says that it is not known whether there is one; some stores would make
    // the bucket.
    let there = match found(store.get(&layout::descriptor()).await)? {
        Some(bytes) => Some(Descriptor::parse(store.name(), &bytes)?),
        None => None,
    };
    let probe = Probe::of(&store).await?;
    good_enough(&store, &probe, settings.conditional_writes)?;
    let (descriptor, existed) = match there {
        Some(descriptor) => (descriptor, true),
        None => match lost(&store).await? {
            // No repository is made around what another one left: its id is part of every content's hash.
            Some(error) => match found(store.get(&layout::descriptor()).await)? {
                // It was made at this moment.
                Some(bytes) => (Descriptor::parse(store.name(), &bytes)?, true),
                None => return Err(error),
            },
            None => make(&store, settings, &new).await?,
        },
    };
    let repository = match new {
        NewRepository::WithKey(master) => Repository::assemble(name, store, descriptor, Some(master), None)?,
        NewRepository::Encrypted { .. } if descriptor.encryption.is_none() => {
            return Err(RepoError::Format {
                store: store.name().to_owned(),
                what: "there is one already, and it is not encrypted: that is chosen once, when a repository is made; \
                       choose another place for an encrypted one"
                    .to_owned(),
            });
        }
        _ => Repository::open_described(name, settings, store, descriptor).await?,
    };
    Ok(Initialised { repository, existed, probe })
}

/// What to say of a store that has lineages or backups and no descriptor; `None` if it has none. A daemon that has not noticed yet
/// that its repository was deleted may leave a segment or two: they are no reason.
pub(crate) async fn lost(store: &Store) -> Result<Option<RepoError>> {
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
                "it has no walpoint.json, and it has what was stored of cluster {cluster}: the object is lost. Put it back, from \
                 another version of it in the store or from a copy of the store. Making a repository here would make \
                 everything that is stored unreadable, so that is refused"
            ),
        }));
    }
    Ok(None)
}

/// Refuses a store that replaces objects or does not give back what it was given.
fn good_enough(store: &Store, probe: &Probe, conditional: ConditionalWrites) -> Result<()> {
    if let Finding::Bad(what) = &probe.never_replaces {
        let what = match conditional {
            ConditionalWrites::Required => {
                format!(
                    "{what}. Use another store, or, knowing the risk, set conditional_writes = \"look-first\""
                )
            }
            ConditionalWrites::LookFirst => what.clone(),
        };
        return Err(RepoError::settings("conditional_writes", what));
    }
    if let Finding::Bad(what) = &probe.reading {
        let (what, store) = (format!("a probe: {what}"), store.name().to_owned());
        return Err(RepoError::Rejected {
            what,
            store,
            source: "what was written cannot be read back".into(),
        });
    }
    Ok(())
}

/// Makes a repository; its descriptor, and whether somebody else made it at the same moment.
async fn make(
    store: &Store,
    settings: &StoreSettings,
    new: &NewRepository<'_>,
) -> Result<(Descriptor, bool)> {
    let source = KeySource::of(settings)?;
    let (master, slot) = match new {
        NewRepository::Plain if source.is_some() => {
            return Err(RepoError::settings(
                "encrypt",
                "there is no repository yet, and a key is configured for it: add --encrypt to make an encrypted one",
            ));
        }
        NewRepository::Plain => (None, None),
        NewRepository::WithKey(master) => (Some(master.clone()), None),
        NewRepository::Encrypted { comment } => {
            let source = source.ok_or_else(|| {
                RepoError::settings("encrypt", "needs to know what opens the repository: key_file, say")
            })?;
            (Some(MasterKey::random().map_err(RepoError::sealing)?), Some((source, *comment)))
        }
    };
    let descriptor = Descriptor::new(master.as_ref())?;
    let slots = KeySlots::new(store.clone(), descriptor.clone());
    let slot = match (&master, slot) {
        (Some(master), Some((source, comment))) => Some(slots.add(master, &source, comment).await?),
        _ => None,
    };
    let sealed = document::seal(None, &layout::descriptor(), &descriptor)?;
    match store.create_document(&sealed).await {
        Ok(Creation::New | Creation::Same) => Ok((descriptor, false)),
        // Somebody was faster. A moment, so that theirs is visible everywhere; then it is the repository.
        Err(RepoError::Conflict { .. }) => {
            if let Some(slot) = slot {
                slots.remove(slot, None).await?;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            Ok((read_descriptor(store).await?, true))
        }
        Err(error) => Err(error),
    }
}

/// An error and what is beneath it, in one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expire::tests::{keys, world};

    /// K5: where only the descriptor is lost, no repository is made around what it described.
    #[tokio::test(flavor = "multi_thread")]
    async fn no_repository_is_made_around_what_another_left() {
        let (bed, _) = world().await;
        let descriptor = bed.dir.path().join(layout::descriptor().as_str());
        let bytes = std::fs::read(&descriptor).unwrap();
        std::fs::remove_file(&descriptor).unwrap();
        let settings = StoreSettings::at(bed.dir.path().to_str().unwrap());
        let before = keys(&bed).await;
        let made = Repository::init("main", &settings, None).await.unwrap_err().to_string();
        let opened = Repository::open("main", &settings).await.unwrap_err().to_string();
        for told in [&made, &opened] {
            assert!(told.contains("cluster main: the object is lost. Put it back"), "{told}");
        }
        assert!(!descriptor.exists() && keys(&bed).await == before);
        walpoint_base::durable::replace(&descriptor, &bytes, 0o640).unwrap();
        assert!(Repository::init("main", &settings, None).await.unwrap().existed);
    }
}
