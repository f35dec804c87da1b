//! Holds: who forbade to delete which backups, why, and until when.
//!
//! `clusters/<name>/holds/<n>` is a numbered sequence of small objects. Each places a hold on a backup or on a label, or
//! removes an earlier one; none is ever changed, so the sequence is also the record of who did what. A crash in the middle
//! leaves an entry or none. Beside each entry stands `holds/<n>.given`, which says that there is one: numbers have no gap, and so a lost
//! entry is missed, the newest one too. What cannot be read is an error and never "no hold", until it is removed by its number.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walpoint_base::{BackupId, ClusterName};
use walpoint_plan::retention::HoldFacts;
use walpoint_storage::error::{Remedy, RepoError, Result, error_chain, found};
use walpoint_storage::layout::{ClusterObject, ClusterPaths, Key};
use walpoint_storage::object::{ObjectKind, ObjectReader, ObjectWriter, Sealer};
use walpoint_storage::store::{NumberClaim, Store};

use crate::Repository;

/// No entry is longer than this many plain bytes.
const MAX_ENTRY: usize = 64 << 10;

/// Numbers that are missing and are looked for.
const LOST: usize = 100;

/// What follows from an entry that cannot be read.
pub const UNKNOWN_HOLD: &str = "Nothing is deleted until it is known which backups it holds.";

/// How often the next number is tried when others are faster.
const ATTEMPTS: usize = 20;

/// A hold, as it was placed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    /// What it is on.
    pub on: HeldOn,
    /// Why.
    pub reason: String,
    /// Who placed it.
    pub who: String,
    /// When.
    pub at: Timestamp,
    /// When it ends; `None`: when somebody removes it.
    pub until: Option<Timestamp>,
}

/// What a hold is on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HeldOn {
    /// One backup.
    Backup(BackupId),
    /// Every backup with that label, also those still to come.
    Label(String),
}

/// A hold and what became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    /// Its number.
    pub number: u64,
    /// How it was placed.
    pub placed: Placement,
    /// Who removed it, and when.
    pub removed: Option<(String, Timestamp)>,
}

/// What can be read of the holds.
#[derive(Debug, Default)]
pub struct Holdings {
    /// Every hold that was ever placed, by number.
    pub holds: Vec<Hold>,
    /// Entries that are damaged and that nobody removed, by number.
    pub damaged: Vec<DamagedHold>,
}

/// An entry that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DamagedHold {
    /// What the configuration calls the repository.
    pub repository: String,
    /// Its number.
    pub number: u64,
    /// The object.
    pub key: Key,
    /// What is wrong with it.
    pub what: String,
}

impl DamagedHold {
    /// What to do.
    pub fn remedy(&self) -> Remedy {
        Remedy::PlaceHoldAnew { number: self.number, repository: self.repository.clone() }
    }

    /// The same as an error.
    pub fn error(&self) -> RepoError {
        let (key, what) = (self.key.clone(), format!("{}\nDETAIL: {UNKNOWN_HOLD}", self.what));
        RepoError::Corrupt { key, what, remedy: Some(self.remedy()) }
    }
}

/// The holds of one cluster in one repository.
#[derive(Clone, Debug)]
pub struct Holds {
    repository: String,
    store: Store,
    sealer: Sealer,
    paths: ClusterPaths,
}

/// An entry of the sequence, as JSON has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Entry {
    at: Timestamp,
    who: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removes: Option<u64>,
}

/// What an entry says.
enum HoldRecord {
    Places(Placement),
    Removes(u64, String, Timestamp),
}

impl Hold {
    /// Whether it keeps anything at that time.
    pub fn is_in_force(&self, now: Timestamp) -> bool {
        self.removed.is_none() && self.placed.until.is_none_or(|until| now < until)
    }

    /// For [`walpoint_plan::retention`]; `None` if it was removed.
    pub fn held(&self) -> Option<HoldFacts> {
        let Placement { on, reason, who, until, .. } = &self.placed;
        let (backup, label) = match on {
            HeldOn::Backup(id) => (Some(*id), None),
            HeldOn::Label(label) => (None, Some(label.clone())),
        };
        let held = HoldFacts {
            number: self.number,
            backup,
            label,
            reason: reason.clone(),
            who: who.clone(),
            until: *until,
        };
        self.removed.is_none().then_some(held)
    }
}

impl Holds {
    /// Of `cluster` in `repository`.
    pub fn of(repository: &Repository, cluster: &ClusterName) -> Self {
        Self {
            repository: repository.name().to_owned(),
            store: repository.store().clone(),
            sealer: repository.sealer().clone(),
            paths: ClusterPaths::new(cluster),
        }
    }

    /// Every hold that was ever placed, by number; an error if one cannot be read.
    pub async fn list(&self) -> Result<Vec<Hold>> {
        let Holdings { holds, damaged } = self.look().await?;
        damaged.into_iter().next().map_or(Ok(holds), |damaged| Err(damaged.error()))
    }

    /// The holds that can be read, and the entries that cannot.
    pub async fn look(&self) -> Result<Holdings> {
        let mut read = Holdings::default();
        let mut numbers: BTreeSet<u64> = self.numbers().await?.into_iter().collect();
        // They have no gap: what is missing up to the highest is lost, or was created while the listing was taken.
        let last = numbers.last().copied().unwrap_or(0);
        let unlisted: Vec<u64> = (1..last).filter(|n| !numbers.contains(n)).take(LOST).collect();
        numbers.extend(unlisted);
        for number in numbers {
            match self.read(number).await {
                Ok(HoldRecord::Places(placed)) => read.holds.push(Hold { number, placed, removed: None }),
                Ok(HoldRecord::Removes(removes, who, at)) => {
                    read.damaged.retain(|damaged| damaged.number != removes);
                    let hold = read.holds.iter_mut().find(|hold| hold.number == removes);
                    if let Some(hold) = hold.filter(|hold| hold.removed.is_none()) {
                        hold.removed = Some((who, at));
                    }
                }
                Err(RepoError::Corrupt { key, what, .. }) => {
                    read.damaged.push(DamagedHold { repository: self.repository.clone(), number, key, what });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    /// Places a hold; its number.
    pub async fn add(&self, placement: &Placement) -> Result<u64> {
        let (backup, label) = match &placement.on {
            HeldOn::Backup(id) => (Some(id.to_string()), None),
            HeldOn::Label(label) => (None, Some(label.clone())),
        };
        let entry = Entry {
            at: placement.at,
            who: placement.who.clone(),
            backup,
            label,
            reason: Some(placement.reason.clone()),
            until: placement.until,
            removes: None,
        };
        self.append(&entry).await
    }

    /// Removes a hold; the number of the entry that says so. That it exists is the caller's to know.
    pub async fn remove(&self, number: u64, who: &str, at: Timestamp) -> Result<u64> {
        let who = who.to_owned();
        let removes = Some(number);
        self.append(&Entry { at, who, backup: None, label: None, reason: None, until: None, removes }).await
    }

    async fn append(&self, entry: &Entry) -> Result<u64> {
        let numbers = self.numbers().await?;
        let mut next = numbers.last().map_or(1, |last| last.saturating_add(1));
        for _ in 0..ATTEMPTS {
            let key = self.paths.hold(next);
            let internal = |what: String| RepoError::Internal(format!("{key} cannot be written: {what}"));
            let json = serde_json::to_vec(entry).map_err(|e| internal(e.to_string()))?;
            if json.len() > MAX_ENTRY {
                let what = "reason, who and label are too long together".to_owned();
                return Err(RepoError::Refused { key, what });
            }
            let sealed = ObjectWriter::new(&self.sealer, ObjectKind::Hold, &key).and_then(|mut writer| {
                writer.frame(&json)?;
                writer.finish()
            });
            let sealed = sealed.map_err(|e| internal(e.to_string()))?;
            match self.store.claim(&sealed).await? {
                NumberClaim::Won => {
                    // It counts already: an error would say that it does not, and who tries again writes it twice.
                    if let Err(error) = self.note_given(next).await {
                        let (repository, error) = (&self.repository, error_chain(&error));
                        tracing::warn!(
                            "repository {repository}: {key} was written and counts, but {} could not be written: {error}\nDETAIL: \
                             Until another hold is placed or removed, nothing would show that {key} is lost.",
                            self.paths.hold_given(next)
                        );
                    }
                    for earlier in numbers {
                        self.note_again(earlier).await;
                    }
                    return Ok(next);
                }
                NumberClaim::Lost => next = next.saturating_add(1),
            }
        }
        Err(RepoError::Internal(format!(
            "others placed {ATTEMPTS} holds at the same moment\nHINT: Try again."
        )))
    }

    /// Notes that an entry was written. Until then the hold is in force, and not missed if it is lost.
    async fn note_given(&self, number: u64) -> Result<()> {
        let key = self.paths.hold_given(number);
        let sealed =
            ObjectWriter::new(&self.sealer, ObjectKind::Hold, &key).and_then(|writer| writer.finish());
        let sealed = sealed.map_err(|e| RepoError::Internal(format!("{key} cannot be written: {e}")))?;
        self.store.create_once(&sealed).await.map(drop)
    }

    /// Notes it once more if that is lost. The next entry shows by its number that this one was there, so a failure harms nothing.
    async fn note_again(&self, number: u64) {
        let is_lost = matches!(self.store.head(&self.paths.hold_given(number)).await, Ok(None));
        if is_lost && let Err(error) = self.note_given(number).await {
            tracing::debug!("{}: {}", self.paths.hold_given(number), error_chain(&error));
        }
    }

    /// The objects beside entries that are not there. Without the newest one, nothing would show that its entry is lost.
    pub async fn lacking_given(&self) -> Result<Vec<Key>> {
        let mut lacking = Vec::new();
        for number in self.numbers().await? {
            let given = self.paths.hold_given(number);
            if self.store.head(&given).await?.is_none() {
                lacking.push(given);
            }
        }
        Ok(lacking)
    }

    /// The numbers that were given, by the entries and by what stands beside them.
    async fn numbers(&self) -> Result<Vec<u64>> {
        let Ok(prefix) = self.paths.sequence("holds") else { return Ok(Vec::new()) };
        let mut listing = self.store.list(&prefix, None);
        let mut numbers = Vec::new();
        while let Some(entry) = listing.try_next().await? {
            numbers.extend(match self.paths.parse(&entry.key) {
                Some(ClusterObject::Hold(number)) => Some(number),
                _ => None,
            });
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    async fn read(&self, number: u64) -> Result<HoldRecord> {
        let key = self.paths.hold(number);
        let bytes = found(self.store.get(&key).await)?;
        let bytes = bytes
            .ok_or_else(|| RepoError::corrupt(&key, "it is gone, and entries of holds are never deleted"))?;
        let mut json = Vec::new();
        ObjectReader::open(&self.sealer, &[ObjectKind::Hold], &key, bytes)
            .and_then(|reader| reader.read_all(MAX_ENTRY, &mut json))
            .map_err(|e| RepoError::corrupt(&key, e))?;
        parse(&key, &json)
    }
}

fn parse(key: &Key, json: &[u8]) -> Result<HoldRecord> {
    let entry: Entry = serde_json::from_slice(json).map_err(|e| RepoError::corrupt(key, e))?;
    let strange = || RepoError::corrupt(key, "it says neither what it holds nor what it removes");
    let Entry { at, who, backup, label, reason, until, removes } = entry;
    if let Some(number) = removes {
        return Ok(HoldRecord::Removes(number, who, at));
    }
    let on = match (backup, label) {
        (Some(id), None) => HeldOn::Backup(id.parse().map_err(|e| RepoError::corrupt(key, e))?),
        (None, Some(label)) => HeldOn::Label(label),
        _ => return Err(strange()),
    };
    Ok(HoldRecord::Places(Placement { on, reason: reason.unwrap_or_default(), who, at, until }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use walpoint_storage::object::testing::sealers;

    use super::*;

    fn holds() -> Holds {
        let store = Store::over("memory", Arc::new(InMemory::new()));
        let paths = ClusterPaths::new(&"main".parse().unwrap());
        Holds { repository: "main".to_owned(), store, sealer: sealers()[1].clone(), paths }
    }

    fn placement(on: HeldOn, until: Option<&str>) -> Placement {
        let at = "2026-11-21T10:00:00Z".parse().unwrap();
        let until = until.map(|text| text.parse().unwrap());
        Placement { on, reason: "audit ä".to_owned(), who: "dba".to_owned(), at, until }
    }

    #[tokio::test]
    async fn placed_removed_and_run_out() {
        let holds = holds();
        assert_eq!(holds.list().await.unwrap(), []);
        let id = "20261121T101500Z-00000001-0000000002000028-9f3a0c11".parse().unwrap();
        let first = placement(HeldOn::Backup(id), Some("2026-12-01T00:00:00Z"));
        let second = placement(HeldOn::Label("pre-deploy".to_owned()), None);
        assert_eq!(holds.add(&first).await.unwrap(), 1);
        assert_eq!(holds.add(&second).await.unwrap(), 2);
        let at = "2026-11-22T00:00:00Z".parse().unwrap();
        assert_eq!(holds.remove(2, "boss", at).await.unwrap(), 3);
        assert_eq!(holds.remove(9, "boss", at).await.unwrap(), 4, "no harm");
        let list = holds.list().await.unwrap();
        assert_eq!(list.iter().map(|hold| &hold.placed).collect::<Vec<_>>(), [&first, &second]);
        assert_eq!(list[1].removed, Some(("boss".to_owned(), at)));
        assert!(list[0].is_in_force(at) && !list[1].is_in_force(at));
        assert!(!list[0].is_in_force("2026-12-01T00:00:00Z".parse().unwrap()));
        assert_eq!(list[0].held().unwrap().backup, Some(id));
        assert_eq!(list[1].held(), None);
    }

    #[tokio::test]
    async fn many_at_once_get_numbers_of_their_own() {
        let holds = holds();
        let on = |n: usize| placement(HeldOn::Label(n.to_string()), None);
        let all = futures_util::future::join_all((0..8).map(|n| {
            let (holds, placement) = (holds.clone(), on(n));
            async move { holds.add(&placement).await.unwrap() }
        }));
        let mut numbers = all.await;
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=8).collect::<Vec<u64>>());
        assert_eq!(holds.list().await.unwrap().len(), 8);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_never_no_hold() {
        let holds = holds();
        holds.add(&placement(HeldOn::Label("x".to_owned()), None)).await.unwrap();
        let other = Holds { sealer: sealers()[0].clone(), ..holds.clone() };
        assert!(other.list().await.is_err(), "without the key");
        let key = holds.paths.hold(2);
        assert!(holds.store.create_blindly(&key, bytes::Bytes::from_static(b"noise")).await.unwrap());
        holds.add(&placement(HeldOn::Label("y".to_owned()), None)).await.unwrap();
        let refused = holds.list().await.unwrap_err();
        let remedy = Remedy::PlaceHoldAnew { number: 2, repository: "main".to_owned() };
        assert_eq!(refused.remedy(), Some(&remedy), "{refused}");
        let read = holds.look().await.unwrap();
        assert_eq!(read.holds.iter().map(|hold| hold.number).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(read.damaged.len(), 1);
        holds.remove(2, "boss", "2026-11-22T00:00:00Z".parse().unwrap()).await.unwrap();
        assert_eq!(holds.list().await.unwrap().len(), 2, "somebody answers for it");
        for json in ["{}", "{\"at\":\"2026-11-21T10:00:00Z\",\"who\":\"x\"}", "[]", "{\"removes\":1}"] {
            assert!(parse(&key, json.as_bytes()).is_err(), "{json}");
        }
    }

    /// K1: a hold that the store has lost is found by its number, and stops deletion until a person answers for it.
    #[tokio::test]
    async fn a_lost_hold_is_never_no_hold() {
        let holds = holds();
        for label in ["a", "b", "c"] {
            holds.add(&placement(HeldOn::Label(label.to_owned()), None)).await.unwrap();
        }
        holds.store.delete(&holds.paths.hold(2)).await.unwrap();
        let refused = holds.list().await.unwrap_err();
        let remedy = Remedy::PlaceHoldAnew { number: 2, repository: "main".to_owned() };
        assert_eq!(refused.remedy(), Some(&remedy), "{refused}");
        let read = holds.look().await.unwrap();
        assert_eq!((read.holds.len(), read.damaged.len(), read.damaged[0].number), (2, 1, 2));
        holds.remove(2, "boss", "2026-11-22T00:00:00Z".parse().unwrap()).await.unwrap();
        assert_eq!(holds.list().await.unwrap().len(), 2);
    }

    /// K1: the newest one, which may be the only one, is missed as well, and its number is not given again.
    #[tokio::test]
    async fn the_newest_hold_is_missed_when_it_is_lost() {
        let holds = holds();
        assert_eq!(holds.add(&placement(HeldOn::Label("a".to_owned()), None)).await.unwrap(), 1);
        holds.store.delete(&holds.paths.hold(1)).await.unwrap();
        let refused = holds.list().await.unwrap_err();
        let remedy = Remedy::PlaceHoldAnew { number: 1, repository: "main".to_owned() };
        assert_eq!(refused.remedy(), Some(&remedy), "{refused}");
        assert_eq!(holds.add(&placement(HeldOn::Label("b".to_owned()), None)).await.unwrap(), 2);
        holds.remove(1, "boss", "2026-11-22T00:00:00Z".parse().unwrap()).await.unwrap();
        assert_eq!(holds.list().await.unwrap().len(), 1);
    }

    /// K1: a hold that was written is in force, whatever could not be written beside it, and is not written twice.
    #[tokio::test]
    async fn a_hold_that_was_written_is_told_though_what_stands_beside_it_could_not_be() {
        let bed = crate::index::tests::bed().await;
        let holds = Holds::of(bed.archive.repository(), &"main".parse().unwrap());
        // Nothing can be created in its place.
        std::fs::create_dir_all(bed.dir.path().join(holds.paths.hold_given(1).as_str())).unwrap();
        let label = |text: &str| placement(HeldOn::Label(text.to_owned()), None);
        assert_eq!(holds.add(&label("a")).await.unwrap(), 1);
        assert_eq!(holds.add(&label("b")).await.unwrap(), 2);
        let numbers: Vec<u64> = holds.list().await.unwrap().iter().map(|hold| hold.number).collect();
        assert_eq!(numbers, [1, 2]);
    }
}
