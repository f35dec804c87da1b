//! Making a repository, in a store that is looked at before it is trusted.
//!
//! The descriptor is created last of what `init` does to a store, with a create that cannot replace: of two `init`s at
//! the same moment one makes the repository and the other opens it. A crash before leaves at most a probe object and a key
//! slot, which names a repository that is not there and is passed over.

use std::time::Duration;

use walpoint_storage::descriptor::{Descriptor, lost, read_descriptor};
use walpoint_storage::document;
use walpoint_storage::error::{Remedy, RepoError, Result, found};
use walpoint_storage::keys::{KeySlots, KeySource};
use walpoint_storage::layout;
use walpoint_storage::object::MasterKey;
use walpoint_storage::store::settings::ConditionalWrites;
use walpoint_storage::store::{Creation, Probe, ProbeFinding, Store, StoreSettings};

use crate::repository::Repository;

/// How a repository is made, if there is none.
#[derive(Debug)]
enum NewRepository<'a> {
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

impl Repository {
    /// Creates an encrypted repository with a key slot for what the settings name, or opens the one that is there. Otherwise
    /// as [`Self::init`].
    pub async fn init_encrypted(name: &str, settings: &StoreSettings, comment: &str) -> Result<Initialised> {
        init(name, settings, NewRepository::Encrypted { comment }).await
    }

    /// Creates a repository, encrypted if a key is given, or opens the one that is there. Probes the store first and refuses
    /// one that would replace objects.
    pub async fn init(
        name: &str,
        settings: &StoreSettings,
        master: Option<MasterKey>,
    ) -> Result<Initialised> {
        init(name, settings, master.map_or(NewRepository::Plain, NewRepository::WithKey)).await
    }
}

async fn init(name: &str, settings: &StoreSettings, new: NewRepository<'_>) -> Result<Initialised> {
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
                what: "there is one already, and it is not encrypted\nDETAIL: Encryption is chosen once, when a repository is \
                       created.\nHINT: Choose another place for an encrypted one."
                    .to_owned(),
            });
        }
        _ => Repository::open_described(name, settings, store, descriptor).await?,
    };
    Ok(Initialised { repository, existed, probe })
}

/// Refuses a store that replaces objects or does not give back what it was given.
fn good_enough(store: &Store, probe: &Probe, conditional: ConditionalWrites) -> Result<()> {
    if let ProbeFinding::Bad(what) = &probe.never_replaces {
        let what = match conditional {
            ConditionalWrites::Required => {
                format!(
                    "{what}\nHINT: Use another store, or, knowing the risk, set conditional_writes = \"look-first\"."
                )
            }
            ConditionalWrites::LookFirst => what.clone(),
        };
        return Err(RepoError::settings("conditional_writes", what));
    }
    if let ProbeFinding::Bad(what) = &probe.reading {
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
    let source = KeySource::of(&settings.encryption)?;
    let (master, slot) = match new {
        NewRepository::Plain if source.is_some() => {
            return Err(RepoError::Settings {
                setting: "encrypt",
                what: "there is no repository yet, and a key is configured for it".to_owned(),
                remedy: Some(Remedy::MakeEncrypted),
            });
        }
        NewRepository::Plain => (None, None),
        NewRepository::WithKey(master) => (Some(master.clone()), None),
        NewRepository::Encrypted { comment } => {
            let source = source.ok_or_else(|| {
                RepoError::settings(
                    "encrypt",
                    "needs to know what opens the repository\nHINT: Set key_file, for example.",
                )
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
            assert!(
                told.contains("cluster main, but no walpoint.json: that object is lost\nDETAIL: "),
                "{told}"
            );
        }
        assert!(!descriptor.exists() && keys(&bed).await == before);
        walpoint_base::durable::replace(&descriptor, &bytes, 0o640).unwrap();
        assert!(Repository::init("main", &settings, None).await.unwrap().existed);
    }
}
