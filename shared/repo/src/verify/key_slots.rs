//! Whether the key slots of an encrypted repository can be read. One that opens is enough to verify everything else, and a person who
//! has only the secret of another one, which is damaged, can restore nothing.

use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout;

use super::Run;
use super::report::{Cure, FindingKind, VerifyFinding};

impl Run<'_> {
    /// Looks at every slot, whichever opened the repository.
    pub(super) async fn key_slots(&mut self) -> Result<()> {
        if !self.repository.sealer().is_encrypted() {
            return Ok(());
        }
        for listed in self.repository.key_slots().list().await? {
            let (number, key) = (listed.number, layout::key_slot(listed.number));
            match listed.slot {
                Ok(_) => {}
                Err(RepoError::Corrupt { what, .. }) => self.report.finding(VerifyFinding {
                    kind: FindingKind::Damaged,
                    object: key.to_string(),
                    what,
                    backups: Vec::new(),
                    moments: None,
                    remedy: Cure::KeySlot(number),
                }),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use walpoint_base::durable;
    use walpoint_plan::retention::Policy;
    use walpoint_storage::keys::KeySource;
    use walpoint_storage::keys::source::{print_key, random_key};
    use walpoint_storage::store::StoreSettings;
    use walpoint_storage::store::settings::EncryptionSettings;

    use super::*;
    use crate::Repository;
    use crate::expire::outlook;
    use crate::expire::tests::cluster;
    use crate::verify::tests::{Anything, replace};
    use crate::verify::{Depth, VerifyOptions, verify};

    /// K4: a damaged slot is a finding at every depth, though another one opens the repository.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_damaged_key_slot_is_a_finding() {
        let (dir, secrets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = secrets.path().join("key");
        durable::replace(&file, print_key(&random_key().unwrap()).as_bytes(), 0o600).unwrap();
        let encryption = EncryptionSettings { key_file: Some(file), ..EncryptionSettings::default() };
        let settings = StoreSettings { encryption, ..StoreSettings::at(dir.path().to_str().unwrap()) };
        let repository = Repository::init_encrypted("main", &settings, "").await.unwrap().repository;
        let source = KeySource::of(&settings.encryption).unwrap().unwrap();
        let master = repository.key_slots().open(&source).await.unwrap().master;
        assert_eq!(repository.key_slots().add(&master, &source, "").await.unwrap(), 1);

        let slot = dir.path().join("keys/1");
        let mut bytes = std::fs::read(&slot).unwrap();
        for damaged in [false, true] {
            for depth in [Depth::Light, Depth::Sample(1.0), Depth::Full] {
                let (host, agent) = (String::new(), String::new());
                let options = VerifyOptions { depth, host, agent, ..VerifyOptions::default() };
                let (policy, now) = (Policy::default(), Timestamp::now());
                let outlook = outlook(&repository, &cluster(), &policy, now).await.unwrap();
                let report =
                    verify(&repository, &cluster(), &outlook, Arc::new(Anything), &options).await.unwrap();
                let found: Vec<_> =
                    report.findings.iter().filter(|f| f.object.starts_with("keys/")).collect();
                assert_eq!(found.len(), usize::from(damaged), "{report:#?}");
                if let Some(found) = found.first() {
                    assert_eq!((found.kind, found.object.as_str()), (FindingKind::Damaged, "keys/1"));
                    assert_eq!(found.remedy, Cure::KeySlot(1));
                }
            }
            bytes[40] ^= 1;
            replace(&slot, &bytes);
        }
    }
}
