//! Leases: who is at a task of a cluster, so that two do not begin the same work (`FORMAT.md`, chapter "Announcements and leases").
//!
//! Advisory. Nothing depends on a lease being right: two backups at once cost time and space, and both are whole; one that is
//! wrong makes `expire` abort an unfinished backup later. A lease is
//! the highest number of its sequence; who creates the next number has it from then on. It ends when its holder deletes it, or,
//! without the right to delete, creates a next number that says so,
//! when it was not renewed in time (by the store's clock against this machine's, so a clock that is wrong makes it end early
//! or late), or when it can be seen that its holder is dead. A crash leaves a lease that ends in one of these ways.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use walpoint_base::ClusterName;
use walpoint_storage::error::{RepoError, Result, found};
use walpoint_storage::layout::{ClusterPaths, Key};
use walpoint_storage::object::{ObjectKind, ObjectReader, ObjectWriter, SealedObject, Sealer};
use walpoint_storage::store::{NumberClaim, Store};

/// The task of who backs a cluster up.
pub const BACKUP: &str = "backup";

/// No lease is longer.
const MAX_LEASE: usize = 16 << 10;
/// No lease holds longer than that without being renewed: what is older need not be read.
const LONGEST: SignedDuration = SignedDuration::from_hours(24);
/// How often a number is tried that somebody else was faster to take.
const ATTEMPTS: u32 = 20;

/// Who holds a lease, precise enough to see on the same machine whether it is still there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// The machine's name.
    pub host: String,
    /// The version of Walpoint.
    pub agent: String,
    /// Which start of the machine: the kernel's boot id. Empty if unknown.
    pub boot: String,
    /// The number of the process.
    pub process: u32,
    /// When the process was started, in the kernel's ticks since the machine's start.
    pub process_start: u64,
    /// The PID namespace that the number is of, as the kernel names it. Empty if unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pid_namespace: String,
}

/// A lease as it is stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease {
    /// Who holds it.
    pub holder: Holder,
    /// Since when, by the holder's clock.
    pub since: Timestamp,
    /// How long it holds after it was stored, unless it is renewed.
    pub seconds: u32,
    /// Tells renewals apart, which would be equal otherwise.
    pub renewal: u32,
    /// Given back by its holder, who could not delete it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
}

/// Leases on one task of a cluster, in one repository.
#[derive(Clone, Debug)]
pub struct Leases {
    store: Store,
    sealer: Sealer,
    paths: ClusterPaths,
    task: String,
}

/// A lease that this process has.
#[derive(Debug)]
pub struct HeldLease {
    leases: Leases,
    lease: Lease,
    n: u64,
}

/// What asking for a lease came to.
#[derive(Debug)]
pub enum LeaseAnswer {
    /// It is held now; whose it was before, if that one was still good.
    Held(Box<HeldLease>, Option<Lease>),
    /// Somebody else has it.
    Busy(Lease),
    /// An object that cannot be read may be a holder's.
    Unreadable {
        /// The object.
        key: Key,
        /// What is wrong with it.
        what: String,
        /// When it counts as over.
        until: Timestamp,
    },
}

/// What a renewal came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Renewed {
    /// It goes on.
    Yes,
    /// Somebody took it over.
    Lost,
}

impl Lease {
    fn seal(&self, sealer: &Sealer, key: &Key) -> Result<SealedObject> {
        let broken = |e: &dyn std::fmt::Display| RepoError::Internal(format!("{key} cannot be written: {e}"));
        let json = serde_json::to_vec(self).map_err(|e| broken(&e))?;
        let seal = || {
            let mut writer = ObjectWriter::new(sealer, ObjectKind::Lease, key)?;
            writer.frame(&json)?;
            writer.finish()
        };
        seal().map_err(|e| broken(&e))
    }

    /// One that cannot be read: whose it is, is not known. It counts for as long as that of who asks.
    fn unknown(stored: Timestamp, seconds: u32) -> Self {
        let holder = Holder {
            host: String::new(),
            agent: String::new(),
            boot: String::new(),
            process: 0,
            process_start: 0,
            pid_namespace: String::new(),
        };
        Self { holder, since: stored, seconds, renewal: 0, ended: false }
    }

    /// Whether it was given back, or not renewed in time. `stored` is by the store's clock.
    fn is_over(&self, stored: Timestamp, now: Timestamp) -> bool {
        self.ended || now.duration_since(stored) > SignedDuration::from_secs(i64::from(self.seconds))
    }
}

impl Leases {
    /// On `task` (`[0-9A-Za-z._-]`) of a cluster.
    pub fn of(repository: &crate::Repository, cluster: &ClusterName, task: &str) -> Self {
        Self::new(repository.store(), repository.sealer(), cluster, task)
    }

    /// The same in a store.
    pub fn new(store: &Store, sealer: &Sealer, cluster: &ClusterName, task: &str) -> Self {
        let paths = ClusterPaths::new(cluster);
        Self { store: store.clone(), sealer: sealer.clone(), paths, task: task.to_owned() }
    }

    pub(crate) fn key(&self, n: u64) -> Result<Key> {
        self.paths.lease(&self.task, n).map_err(|e| RepoError::Internal(e.to_string()))
    }

    /// Asks for the lease. It is had if nobody has it, if it was not renewed in time, if `is_dead` says so of its holder, or
    /// with `force` in any case. What cannot be read counts as held for `seconds`, and is deleted by who comes next.
    pub async fn ask(
        &self,
        holder: &Holder,
        seconds: u32,
        force: bool,
        is_dead: impl Fn(&Holder) -> bool,
    ) -> Result<LeaseAnswer> {
        let is_over = |lease: &Lease, stored| {
            // No process is known to be gone.
            let known = !lease.holder.host.is_empty();
            lease.is_over(stored, Timestamp::now()) || (known && is_dead(&lease.holder))
        };
        for _ in 0..ATTEMPTS {
            let mut next = 0;
            let (mut judged, mut alive) = (None, false);
            if let Some((n, stored)) = self.highest().await? {
                next = n + 1;
                let lease = match self.read(n).await {
                    Ok(Some(lease)) => lease,
                    // Deleted since the listing: its number may be taken again.
                    Ok(None) => continue,
                    Err(RepoError::Corrupt { key, what, .. }) => {
                        let lease = Lease::unknown(stored, seconds);
                        if !is_over(&lease, stored) && !force {
                            let until = stored + SignedDuration::from_secs(i64::from(seconds));
                            return Ok(LeaseAnswer::Unreadable { key, what, until });
                        }
                        tracing::warn!(
                            "{key} is damaged: {what}\nDETAIL: It is unknown whose lease it was. It is \
                             treated as expired."
                        );
                        lease
                    }
                    Err(error) => return Err(error),
                };
                alive = !is_over(&lease, stored);
                if alive && !force {
                    return Ok(LeaseAnswer::Busy(lease));
                }
                judged = Some((n, lease));
            }
            let lease =
                Lease { holder: holder.clone(), since: Timestamp::now(), seconds, renewal: 0, ended: false };
            let object = lease.seal(&self.sealer, &self.key(next)?)?;
            if self.store.claim(&object).await? == NumberClaim::Won {
                let Some(older) = self.nobody_else(next, judged.as_ref(), is_over).await? else {
                    HeldLease { leases: self.clone(), lease, n: next }.release().await.ok();
                    continue;
                };
                for n in older {
                    // Without the right to delete they stay, however many.
                    if self.forget(n).await.is_err() {
                        break;
                    }
                }
                let held = HeldLease { leases: self.clone(), lease, n: next };
                return Ok(LeaseAnswer::Held(
                    Box::new(held),
                    judged.filter(|_| alive).map(|(_, lease)| lease),
                ));
            }
        }
        Err(RepoError::Internal(format!("the lease on {} changes hands all the time", self.task)))
    }

    /// The leases that may be held at `now`, by the store's clock. One that cannot be read may be anybody's, since whenever.
    pub async fn living(&self, now: Timestamp) -> Result<Vec<Lease>> {
        let mut numbers = self.numbers().await?;
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        let (mut living, mut ended) = (Vec::new(), Vec::new());
        for (n, stored) in numbers {
            if now.duration_since(stored) > LONGEST {
                continue;
            }
            match self.read(n).await {
                Ok(Some(lease)) if lease.ended => ended.push(lease.holder),
                Ok(Some(lease)) if lease.is_over(stored, now) || ended.contains(&lease.holder) => {}
                Ok(Some(lease)) => living.push(lease),
                Ok(None) => {}
                Err(RepoError::Corrupt { .. }) => living.push(Lease::unknown(Timestamp::MIN, 0)),
                Err(error) => return Err(error),
            }
        }
        Ok(living)
    }

    /// Every number below `own`, if nobody has the lease by another one. A number is free again once its holder renewed or
    /// gave it back, so who claims one may have looked too long ago.
    async fn nobody_else(
        &self,
        own: u64,
        judged: Option<&(u64, Lease)>,
        is_over: impl Fn(&Lease, Timestamp) -> bool,
    ) -> Result<Option<Vec<u64>>> {
        let mut numbers = self.numbers().await?;
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        let (mut older, mut ended) = (Vec::new(), Vec::new());
        for (n, stored) in numbers {
            if n == own {
                continue;
            }
            if n < own && Timestamp::now().duration_since(stored) > LONGEST {
                older.push(n);
                continue;
            }
            let lease = match self.read(n).await {
                Ok(Some(lease)) => lease,
                Ok(None) => continue,
                // Who created the one that was judged has seen what came before it.
                Err(RepoError::Corrupt { .. }) if judged.is_some_and(|(judged, _)| n <= *judged) => {
                    older.push(n);
                    continue;
                }
                Err(RepoError::Corrupt { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            // What its holder left, when it died in mid-renewal or because it may not delete, is judged with its newest.
            let judged = judged.is_some_and(|(_, judged)| judged.holder == lease.holder);
            let over = judged || ended.contains(&lease.holder) || is_over(&lease, stored);
            if n > own || !over {
                return Ok(None);
            }
            older.push(n);
            if lease.ended {
                ended.push(lease.holder);
            }
        }
        Ok(Some(older))
    }

    /// The highest number, and when the store received it.
    async fn highest(&self) -> Result<Option<(u64, Timestamp)>> {
        Ok(self.numbers().await?.into_iter().max())
    }

    /// Every number, and when the store received it.
    async fn numbers(&self) -> Result<Vec<(u64, Timestamp)>> {
        let name = format!("leases/{}", self.task);
        let prefix = self.paths.sequence(&name).map_err(|e| RepoError::Internal(e.to_string()))?;
        let entries = self.store.list_all(&prefix).await?;
        let numbered = entries.iter().filter_map(|entry| {
            let n = entry.key.below(&prefix).filter(|n| n.len() == 12)?.parse::<u64>().ok()?;
            Some((n, entry.modified))
        });
        Ok(numbered.collect())
    }

    async fn read(&self, n: u64) -> Result<Option<Lease>> {
        let key = self.key(n)?;
        let Some(bytes) = found(self.store.get(&key).await)? else { return Ok(None) };
        let corrupt = |e: &dyn std::fmt::Display| RepoError::corrupt(&key, e);
        let reader = ObjectReader::open(&self.sealer, &[ObjectKind::Lease], &key, bytes);
        let mut json = Vec::new();
        reader.and_then(|reader| reader.read_all(MAX_LEASE, &mut json)).map_err(|e| corrupt(&e))?;
        serde_json::from_slice(&json).map(Some).map_err(|e| corrupt(&e))
    }

    /// Deletes a number that does not count any more. If that fails it only takes room.
    async fn forget(&self, n: u64) -> Result<()> {
        self.store.delete(&self.key(n)?).await
    }
}

impl HeldLease {
    /// The task that it is on.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Holds it for another while.
    pub async fn renew(&mut self) -> Result<Renewed> {
        let (n, renewal) = (self.n + 1, self.lease.renewal.saturating_add(1));
        let lease = Lease { renewal, ..self.lease.clone() };
        let object = lease.seal(&self.leases.sealer, &self.leases.key(n)?)?;
        if self.leases.store.claim(&object).await? == NumberClaim::Lost {
            return Ok(Renewed::Lost);
        }
        self.leases.forget(self.n).await.ok();
        (self.n, self.lease) = (n, lease);
        Ok(Renewed::Yes)
    }

    /// Gives it back: deletes it or, where that is not allowed, creates a next number that says so. If both fail it ends by itself.
    pub async fn release(self) -> Result<()> {
        let Self { leases, lease, n } = self;
        if leases.forget(n).await.is_ok() {
            return Ok(());
        }
        let object = Lease { ended: true, ..lease }.seal(&leases.sealer, &leases.key(n + 1)?)?;
        // Lost: another process took it over, so it is not this one's to give back.
        leases.store.claim(&object).await.map(|_: NumberClaim| ())
    }
}

#[cfg(test)]
impl Leases {
    /// Stores a lease under a number.
    pub(crate) async fn put(&self, n: u64, lease: &Lease) -> Key {
        let key = self.key(n).unwrap();
        let object = lease.seal(&self.sealer, &key).unwrap();
        assert_eq!(self.store.claim(&object).await.unwrap(), NumberClaim::Won);
        key
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use walpoint_storage::object::testing::sealers;

    use super::*;

    fn holder(process: u32) -> Holder {
        let (host, agent) = ("db1".to_owned(), "0.1.0".to_owned());
        let pid_namespace = String::new();
        Holder { host, agent, boot: "b".to_owned(), process, process_start: 7, pid_namespace }
    }

    fn held(asked: LeaseAnswer) -> HeldLease {
        match asked {
            LeaseAnswer::Held(held, _) => *held,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_lease_lives_until_it_is_given_back_or_over() {
        let store = Store::over("memory", Arc::new(InMemory::new()));
        let leases = Leases::new(&store, &sealers().remove(0), &"main".parse().unwrap(), BACKUP);
        let now = Timestamp::now;
        assert!(leases.living(now()).await.unwrap().is_empty());
        let mut first = held(leases.ask(&holder(1), 900, false, |_| false).await.unwrap());
        first.renew().await.unwrap();
        let living = leases.living(now()).await.unwrap();
        assert_eq!(living.iter().map(|lease| &lease.holder).collect::<Vec<_>>(), [&holder(1)]);
        assert!(leases.living(now() + SignedDuration::from_secs(960)).await.unwrap().is_empty());
        first.release().await.unwrap();
        assert!(leases.living(now()).await.unwrap().is_empty());
        let key = leases.key(7).unwrap();
        assert!(store.create_blindly(&key, bytes::Bytes::from_static(b"noise")).await.unwrap());
        assert_eq!(leases.living(now()).await.unwrap().len(), 1, "it may be held");
        assert!(leases.living(now() + SignedDuration::from_hours(25)).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn one_at_a_time() {
        for sealer in sealers() {
            let store = Store::over("memory", Arc::new(InMemory::new()));
            let leases = Leases::new(&store, &sealer, &"main".parse().unwrap(), "backup");
            let alive = |_: &Holder| false;
            let mut first = held(leases.ask(&holder(1), 900, false, alive).await.unwrap());
            let LeaseAnswer::Busy(busy) = leases.ask(&holder(2), 900, false, alive).await.unwrap() else {
                panic!("two have it");
            };
            assert_eq!(busy.holder, holder(1));
            assert_eq!(first.renew().await.unwrap(), Renewed::Yes);
            assert!(matches!(leases.ask(&holder(2), 900, false, alive).await.unwrap(), LeaseAnswer::Busy(_)));
            first.release().await.unwrap();
            let second = held(leases.ask(&holder(2), 900, false, alive).await.unwrap());

            // Its process is gone, and was seen to be.
            drop(second);
            let third = leases.ask(&holder(3), 900, false, |holder| holder.process == 2).await.unwrap();
            let mut third = held(third);
            // Taken over on purpose: the holder learns of it when it renews.
            let LeaseAnswer::Held(fourth, Some(before)) =
                leases.ask(&holder(4), 0, true, alive).await.unwrap()
            else {
                panic!("not had by force");
            };
            assert_eq!(before.holder, holder(3));
            assert_eq!(third.renew().await.unwrap(), Renewed::Lost);
            third.release().await.unwrap();
            // Not renewed in time.
            drop(fourth);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            held(leases.ask(&holder(5), 900, false, alive).await.unwrap());
        }
    }

    #[tokio::test]
    async fn of_many_at_the_same_moment_one_has_it() {
        let store = Store::over("memory", Arc::new(InMemory::new()));
        let sealer = sealers().remove(0);
        let leases = Leases::new(&store, &sealer, &"main".parse().unwrap(), "backup");
        let asked = (0..20).map(|n| {
            let leases = leases.clone();
            async move { leases.ask(&holder(n), 900, false, |_| false).await.unwrap() }
        });
        let asked = futures_util::future::join_all(asked).await;
        assert_eq!(asked.iter().filter(|asked| matches!(asked, LeaseAnswer::Held(..))).count(), 1);
    }

    #[test]
    fn a_wrong_clock_ends_it_early_or_late_and_no_more() {
        let lease =
            Lease { holder: holder(1), since: Timestamp::UNIX_EPOCH, seconds: 900, renewal: 0, ended: false };
        let stored: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        for (now, over) in [
            ("2026-11-22T09:00:00Z", false),
            ("2026-11-22T10:15:00Z", false),
            ("2026-11-22T10:15:01Z", true),
            ("2031-01-01T00:00:00Z", true),
        ] {
            assert_eq!(lease.is_over(stored, now.parse().unwrap()), over, "{now}");
        }
    }

    /// B4: a lease that cannot be read ends as others do, is ignored by force, and is deleted by who has the lease next.
    #[tokio::test]
    async fn a_damaged_lease_ends_like_any_other() {
        let memory = Arc::new(InMemory::new());
        let store = Store::over("memory", Arc::clone(&memory) as _);
        let leases = Leases::new(&store, &sealers().remove(0), &"main".parse().unwrap(), "backup");
        let key = leases.key(4).unwrap();
        assert!(store.create_blindly(&key, bytes::Bytes::from_static(b"noise")).await.unwrap());
        let asked = leases.ask(&holder(1), 900, false, |_| true).await.unwrap();
        let LeaseAnswer::Unreadable { key: named, until, .. } = asked else { panic!("{asked:?}") };
        let left = until.duration_since(Timestamp::now()).as_secs();
        assert!(named == key && (890..=900).contains(&left), "{named} {left}");
        // It may be held.
        let LeaseAnswer::Held(held, Some(_)) = leases.ask(&holder(1), 900, true, |_| true).await.unwrap()
        else {
            panic!("by force")
        };
        assert_eq!(leases.numbers().await.unwrap().len(), 1, "the damaged one is deleted");
        held.release().await.unwrap();

        assert!(store.create_blindly(&key, bytes::Bytes::from_static(b"noise")).await.unwrap());
        tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
        let LeaseAnswer::Held(_, None) = leases.ask(&holder(1), 1, false, |_| false).await.unwrap() else {
            panic!("it was not renewed in time")
        };
        assert_eq!(leases.numbers().await.unwrap().len(), 1);
    }
}
