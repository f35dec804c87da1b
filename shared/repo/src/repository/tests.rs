//! Slots of a repository in a directory: what opens them and what does not.

use std::path::Path;

use serde_json::Value;
use walpoint_base::durable;
use walpoint_storage::keys::source::{print_key, random_key};
use walpoint_storage::keys::{KeySource, Removal};
use walpoint_storage::store::settings::EncryptionSettings;

use super::*;

fn at(dir: &Path) -> StoreSettings {
    StoreSettings::at(dir.to_str().unwrap())
}

/// The same with something that opens it.
fn keyed(dir: &Path, encryption: EncryptionSettings) -> StoreSettings {
    StoreSettings { encryption, ..at(dir) }
}

fn no_key() -> EncryptionSettings {
    EncryptionSettings::default()
}

fn write(path: &Path, text: &str) {
    durable::replace(path, text.as_bytes(), 0o600).unwrap();
}

/// Settings for each kind of secret, the files in `dir`.
fn kinds(dir: &Path, repository: &Path) -> Vec<StoreSettings> {
    let key = dir.join("key");
    write(&key, &format!("{}\n", *print_key(&random_key().unwrap())));
    let passphrase = dir.join("passphrase");
    write(&passphrase, "correct horse battery staple\n");
    let kms = "tr 0-9a-f g-v".to_owned();
    let all = [
        EncryptionSettings { key_file: Some(key.clone()), ..no_key() },
        EncryptionSettings { key_command: Some(format!("cat {} | tr a-f A-F", key.display())), ..no_key() },
        EncryptionSettings { passphrase_file: Some(passphrase), ..no_key() },
        EncryptionSettings {
            passphrase_command: Some("echo another long passphrase".to_owned()),
            ..no_key()
        },
        EncryptionSettings {
            wrap_command: Some(kms),
            unwrap_command: Some("tr g-v 0-9a-f".to_owned()),
            ..no_key()
        },
    ];
    all.map(|encryption| keyed(repository, encryption)).into()
}

fn source(settings: &StoreSettings) -> KeySource {
    KeySource::of(&settings.encryption).unwrap().unwrap()
}

#[tokio::test]
async fn every_kind_of_secret_opens_its_own_slot_and_no_other() {
    let (dir, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all = kinds(secrets.path(), dir.path());
    let made = Repository::init_encrypted("main", &all[0], "the first").await.unwrap();
    assert!(!made.existed && made.repository.sealer().is_encrypted());
    assert_eq!(made.repository.opened_by(), Some((&source(&all[0]), 0)));
    let master = made.repository.key_slots().open(&source(&all[0])).await.unwrap().master;
    for settings in &all[2..] {
        let error = Repository::open("main", settings).await.unwrap_err();
        assert!(matches!(error, RepoError::Locked { .. }), "{error}");
        made.repository.key_slots().add(&master, &source(settings), "").await.unwrap();
    }
    for (settings, slot) in all.iter().zip([0, 0, 1, 2, 3]) {
        let opened = made.repository.key_slots().open(&source(settings)).await.unwrap();
        assert_eq!(opened.slot, slot, "{settings:?}");
        assert_eq!(opened.master.expose(), master.expose());
        // Twice: the second time the key is known already.
        for _ in 0..2 {
            let opened = Repository::open("main", settings).await.unwrap();
            assert_eq!(opened.opened_by().unwrap().1, slot);
            assert_eq!(opened.sealer().block_key(), made.repository.sealer().block_key());
        }
    }
    let listed = made.repository.key_slots().list().await.unwrap();
    let shown: Vec<_> = listed.iter().map(|l| l.slot.as_ref().unwrap().kind.name()).collect();
    assert_eq!(shown, ["key", "passphrase", "passphrase", "command"]);
    assert_eq!(listed[0].slot.as_ref().unwrap().comment, "the first");

    let wrong = tempfile::tempdir().unwrap();
    for settings in kinds(wrong.path(), dir.path()).into_iter().take(2) {
        let error = Repository::open("main", &settings).await.unwrap_err().to_string();
        assert!(error.contains("does not open its key slot"), "{error}");
    }
    let wrong = keyed(
        dir.path(),
        EncryptionSettings { passphrase_command: Some("echo not the passphrase".to_owned()), ..no_key() },
    );
    let error = Repository::open("main", &wrong).await.unwrap_err().to_string();
    assert!(error.contains("opens none of the 2 key slots of its kind"), "{error}");
    let error = Repository::open("main", &at(dir.path())).await.unwrap_err().to_string();
    assert!(error.contains("it is encrypted and no key is configured"), "{error}");
}

#[tokio::test]
async fn encryption_is_chosen_once() {
    let (dir, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let with_key = &kinds(secrets.path(), dir.path())[0];
    // A key for a repository that would not be encrypted, and encryption without a key.
    let told = Repository::init("main", with_key, None).await.unwrap_err();
    assert_eq!(told.remedy(), Some(&Remedy::MakeEncrypted), "{told}");
    let told = Repository::init_encrypted("main", &at(dir.path()), "").await.unwrap_err().to_string();
    assert!(told.contains("key_file"), "{told}");
    assert!(!dir.path().join("walpoint.json").exists() && !dir.path().join("keys").exists());

    Repository::init("main", &at(dir.path()), None).await.unwrap();
    let told = Repository::init_encrypted("main", with_key, "").await.unwrap_err().to_string();
    assert!(told.contains("not encrypted"), "{told}");
    // A plain repository where an encrypted one is meant is not believed.
    let error = Repository::open("main", with_key).await.unwrap_err();
    assert!(matches!(&error, RepoError::Format { what, .. } if what.contains("not encrypted")), "{error}");
}

#[tokio::test]
async fn a_slot_of_an_init_that_did_not_finish_is_passed_over() {
    let (dir, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let settings = &kinds(secrets.path(), dir.path())[2];
    Repository::init_encrypted("main", settings, "").await.unwrap();
    durable::remove(&dir.path().join("walpoint.json")).unwrap();
    let again = Repository::init_encrypted("main", settings, "").await.unwrap();
    assert!(!again.existed);
    assert_eq!(again.repository.opened_by().unwrap().1, 1);
    assert!(!again.repository.key_slots().proves(0, &source(settings)).await.unwrap());
}

#[tokio::test]
async fn the_slot_that_was_to_remain_is_looked_for_again() {
    let (dir, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all = kinds(secrets.path(), dir.path());
    let repository = Repository::init_encrypted("main", &all[0], "").await.unwrap().repository;
    let slots = repository.key_slots();
    let master = slots.open(&source(&all[0])).await.unwrap().master;
    let second = slots.add(&master, &source(&all[2]), "").await.unwrap();
    assert!(slots.remove(0, Some(0)).await.is_err());
    assert!(slots.remove(7, Some(0)).await.unwrap_err().is_not_found());
    // Two removals, each of which found the other's slot a moment ago.
    let before = std::fs::read(dir.path().join("keys/1")).unwrap();
    assert_eq!(slots.remove(0, Some(second)).await.unwrap(), Removal::Removed);
    assert_eq!(slots.remove(second, Some(0)).await.unwrap(), Removal::PutBack);
    assert_eq!(std::fs::read(dir.path().join("keys/1")).unwrap(), before);
    assert_eq!(slots.open(&source(&all[2])).await.unwrap().slot, second);
    assert_eq!(slots.remove(second, None).await.unwrap(), Removal::Removed);
    assert!(slots.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_secret_that_changes_makes_no_slot() {
    let (dir, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = &kinds(secrets.path(), dir.path())[0];
    let repository = Repository::init_encrypted("main", first, "").await.unwrap().repository;
    let slots = repository.key_slots();
    let master = slots.open(&source(first)).await.unwrap().master;
    let unsteady = [
        EncryptionSettings { passphrase_command: Some("date +%N-and-more-words".to_owned()), ..no_key() },
        EncryptionSettings {
            wrap_command: Some("cat".to_owned()),
            unwrap_command: Some("tr 0-9a-f a-f0-9".to_owned()),
            ..no_key()
        },
        EncryptionSettings {
            wrap_command: Some("cat".to_owned()),
            unwrap_command: Some("echo nothing like a key".to_owned()),
            ..no_key()
        },
        EncryptionSettings {
            wrap_command: Some("exit 7".to_owned()),
            unwrap_command: Some("cat".to_owned()),
            ..no_key()
        },
        EncryptionSettings { unwrap_command: Some("cat".to_owned()), ..no_key() },
        EncryptionSettings { passphrase_command: Some("echo short".to_owned()), ..no_key() },
        EncryptionSettings { key_command: Some("echo 0123".to_owned()), ..no_key() },
    ];
    for encryption in unsteady {
        let settings = keyed(dir.path(), encryption);
        let error = slots.add(&master, &source(&settings), "").await.unwrap_err().to_string();
        assert_eq!(slots.list().await.unwrap().len(), 1, "{error}");
    }
    let error = slots.add(&master, &source(first), &"x".repeat(201)).await.unwrap_err().to_string();
    assert!(error.contains("comment"), "{error}");
    for ambiguous in [
        EncryptionSettings { key_command: Some("x".to_owned()), ..first.encryption.clone() },
        EncryptionSettings { passphrase_command: Some("x".to_owned()), ..first.encryption.clone() },
        EncryptionSettings { unwrap_command: Some("x".to_owned()), ..first.encryption.clone() },
        EncryptionSettings { wrap_command: Some("x".to_owned()), ..no_key() },
    ] {
        assert!(
            matches!(KeySource::of(&ambiguous).unwrap_err(), RepoError::Settings { .. }),
            "{ambiguous:?}"
        );
    }
}

#[tokio::test]
async fn a_passphrase_is_asked_for_once_in_a_process() {
    let (dir, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let asked = secrets.path().join("asked");
    let command = format!("echo x >>{}; echo a passphrase of many words", asked.display());
    let settings = keyed(dir.path(), EncryptionSettings { passphrase_command: Some(command), ..no_key() });
    Repository::init_encrypted("main", &settings, "").await.unwrap();
    let before = std::fs::read(&asked).unwrap().len();
    for _ in 0..5 {
        Repository::open("main", &settings).await.unwrap();
    }
    assert_eq!(std::fs::read(&asked).unwrap().len(), before);
}

#[tokio::test]
async fn damaged_and_foreign_slots_do_not_keep_out_who_has_the_key() {
    let (dir, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let settings = &kinds(secrets.path(), dir.path())[0];
    Repository::init_encrypted("main", settings, "").await.unwrap();
    let slot = dir.path().join("keys/0");
    let good = std::fs::read(&slot).unwrap();
    durable::rename(&slot, &dir.path().join("keys/9")).unwrap();
    write(&dir.path().join("keys/1"), "nonsense");
    write(&dir.path().join("keys/not-a-number"), "nonsense");
    // Under another number it is not the slot that was made.
    let slots = {
        let store = Store::open(settings).await.unwrap();
        let bytes = store.get(&layout::descriptor()).await.unwrap();
        KeySlots::new(store, Descriptor::parse("x", &bytes).unwrap())
    };
    let error = slots.open(&source(settings)).await.unwrap_err().to_string();
    assert!(error.contains("keys/1 is damaged") && error.contains("keys/9 is damaged"), "{error}");
    durable::replace(&slot, &good, 0o600).unwrap();
    assert_eq!(slots.open(&source(settings)).await.unwrap().slot, 0);
    for number in 10..40 {
        write(&dir.path().join(format!("keys/{number}")), "nonsense");
    }
    let error = slots.open(&source(settings)).await.unwrap_err().to_string();
    assert!(error.contains("key slots, and no more than"), "{error}");
    // Its own document is what a repository's key slots have to look like.
    let key = layout::key_slot(0);
    assert!(document::open::<Value>(None, &key, &good).is_ok());
}

/// Every call can run in a task of its own.
#[test]
fn futures_can_be_sent() {
    fn sendable<T: Send>(_: T) {}
    sendable(Repository::open("main", &StoreSettings::at("/tmp")));
    sendable(Repository::init("main", &StoreSettings::at("/tmp"), None));
}
