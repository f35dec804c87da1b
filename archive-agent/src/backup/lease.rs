//! The lease on the backups of a cluster, in every repository that gets a copy: two daemons that begin at once would read
//! the cluster twice for nothing. Held while the backup runs, renewed meanwhile; a backup that died leaves one that ends by
//! itself, or at once where it can be seen that its process is gone.

use std::fs;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::Instant;
use walpoint_base::ClusterName;
use walpoint_base::diagnostic::shown;
use walpoint_repo::lease::{BACKUP, HeldLease, Holder, LeaseAnswer, Leases, Renewed};
use walpoint_storage::error::error_chain;

use crate::check::repository::Destination;

/// How long it holds without being renewed.
const SECONDS: u32 = 900;
/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(300);
/// How often one that was stolen is asked for again.
const REGAINING: Duration = Duration::from_secs(10);

/// The leases that a backup has, one for each copy.
#[derive(Debug)]
pub(crate) struct BackupLeases {
    held: Vec<(String, HeldLease)>,
    /// Those that another backup took over meanwhile. They are asked for again: once that one has ended, the next one would
    /// resume and abort this one, which still runs.
    stolen_here: Vec<(String, Leases)>,
    holder: Holder,
    /// Whether somebody else's was taken over though it was good: that backup may still be running.
    pub(crate) stolen: bool,
}

impl BackupLeases {
    /// Asks for all of them; an error says who has the one that cannot be had.
    pub(crate) async fn take(
        cluster: &ClusterName,
        copies: &[Destination],
        agent: &str,
        steal: bool,
    ) -> anyhow::Result<Self> {
        let holder = this_process(agent);
        let mut leases = Self { held: Vec::new(), stolen_here: Vec::new(), holder, stolen: false };
        for copy in copies {
            let of_copy = Leases::of(&copy.repository, cluster, BACKUP);
            let asked = of_copy.ask(&leases.holder, SECONDS, steal, is_dead).await;
            let asked = asked.with_context(|| format!("the lease on backups in repository {}", copy.name()));
            match asked {
                Ok(LeaseAnswer::Held(held, before)) => {
                    leases.stolen |= before.is_some();
                    leases.held.push((copy.name().to_owned(), *held));
                }
                Ok(LeaseAnswer::Busy(lease)) => {
                    leases.release().await;
                    let Holder { host, process, .. } = &lease.holder;
                    let host = shown(host);
                    bail!(
                        "no backup was started: process {process} on {host} has been backing up cluster \
                         {cluster} into repository {} since {}\nHINT: Wait for it. If that process is \
                         dead, use --steal-lease, or wait until its lease expires, {SECONDS} seconds after \
                         it was last renewed.",
                        copy.name(),
                        lease.since
                    );
                }
                Ok(LeaseAnswer::Unreadable { key, what, until }) => {
                    leases.release().await;
                    bail!(
                        "no backup was started: {key} in repository {}, the lease on backups of cluster \
                         {cluster}, is damaged: {what}\nHINT: If no backup is running, use --steal-lease. \
                         Otherwise, wait until the lease expires, at {until:.0}.",
                        copy.name()
                    );
                }
                Err(error) => {
                    leases.release().await;
                    return Err(error);
                }
            }
        }
        Ok(leases)
    }

    /// Shows that the backup goes on. Failing is no reason to end it.
    async fn renew(&mut self) {
        let mut lost = Vec::new();
        for (n, (repository, held)) in self.held.iter_mut().enumerate() {
            match held.renew().await {
                Ok(Renewed::Yes) => {}
                Ok(Renewed::Lost) => {
                    tracing::warn!(
                        repository,
                        "another backup of the cluster took the lease (--steal-lease)\nDETAIL: Both \
                         continue.\nHINT: Do not start a third backup while this one is running: it may \
                         resume and abort this one."
                    );
                    lost.push(n);
                }
                Err(error) => {
                    tracing::warn!(repository, "the lease was not renewed: {}", error_chain(&error))
                }
            }
        }
        for n in lost.into_iter().rev() {
            let (repository, held) = self.held.remove(n);
            self.stolen_here.push((repository, held.leases().clone()));
        }
    }

    /// Asks again for those that were stolen, which are free when that backup has ended.
    async fn regain(&mut self) {
        for (repository, leases) in std::mem::take(&mut self.stolen_here) {
            match leases.ask(&self.holder, SECONDS, false, is_dead).await {
                Ok(LeaseAnswer::Held(held, _)) => self.held.push((repository, *held)),
                Ok(_) => self.stolen_here.push((repository, leases)),
                Err(error) => {
                    tracing::debug!(repository, "the lease was not requested again: {}", error_chain(&error));
                    self.stolen_here.push((repository, leases));
                }
            }
        }
    }

    /// Renews them again and again; never ends.
    pub(crate) async fn keep(&mut self) {
        let mut renewed = Instant::now();
        loop {
            let rest = RENEWAL.saturating_sub(renewed.elapsed());
            tokio::time::sleep(if self.stolen_here.is_empty() { rest } else { rest.min(REGAINING) }).await;
            self.regain().await;
            if renewed.elapsed() >= RENEWAL {
                renewed = Instant::now();
                self.renew().await;
            }
        }
    }

    /// Gives them back.
    pub(crate) async fn release(self) {
        for (repository, held) in self.held {
            if let Err(error) = held.release().await {
                tracing::warn!(
                    repository,
                    "the lease was not released, and expires by itself: {}",
                    error_chain(&error)
                );
            }
        }
    }
}

fn this_process(agent: &str) -> Holder {
    let process = std::process::id();
    Holder {
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        agent: agent.to_owned(),
        boot: boot().unwrap_or_default(),
        process,
        process_start: started(process).unwrap_or(0),
        pid_namespace: pid_namespace().unwrap_or_default(),
    }
}

/// Whether it is certain that a holder is gone: on this machine, since its last start, in this PID namespace, and no living
/// process has that number but perhaps one that was started at another time. Processes of other namespaces, as those of
/// containers that share the machine's name, cannot be seen from here, or have other numbers.
fn is_dead(holder: &Holder) -> bool {
    let here = rustix::system::uname().nodename().to_string_lossy() == holder.host.as_str();
    if !here || holder.boot.is_empty() || holder.process_start == 0 || holder.pid_namespace.is_empty() {
        return false;
    }
    if pid_namespace().as_deref() != Some(holder.pid_namespace.as_str()) {
        return false;
    }
    // Another start of this machine, or another machine of this name: that cannot be told apart.
    boot().is_some_and(|boot| boot == holder.boot) && started(holder.process) != Some(holder.process_start)
}

fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// The PID namespace that this process sees through `/proc`: that of the process, unless `/proc` is another one's.
fn pid_namespace() -> Option<String> {
    // `/proc/self` leads nowhere, or to another process, where `/proc` belongs to a namespace that this process is not in.
    let number = fs::read_link("/proc/self").ok()?;
    let seen = number.to_str()?.parse::<u32>().ok()?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(namespace.to_string_lossy().into_owned()).filter(|_| seen == std::process::id())
}

/// When a living process was started, in ticks.
fn started(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name may hold anything, blanks and parentheses too.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    // Dead, though its parent has not noticed.
    fields.next().filter(|state| !matches!(*state, "Z" | "X"))?;
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::fixtures::Bed;

    #[tokio::test]
    async fn a_stolen_lease_is_had_again_when_the_thief_has_ended() {
        let bed = Bed::new().await;
        let leases = Leases::of(bed.archive.repository(), &"main".parse().unwrap(), BACKUP);
        let ask = async |name: &str, steal: bool| match leases
            .ask(&this_process(name), SECONDS, steal, is_dead)
            .await
            .unwrap()
        {
            LeaseAnswer::Held(held, _) => Some(*held),
            _ => None,
        };
        let held = vec![("main".to_owned(), ask("first", false).await.unwrap())];
        let (stolen_here, holder) = (Vec::new(), this_process("first"));
        let mut first = BackupLeases { held, stolen_here, holder, stolen: false };
        let second = ask("second", true).await.unwrap();
        first.renew().await;
        first.regain().await;
        assert_eq!((first.held.len(), first.stolen_here.len()), (0, 1));
        second.release().await.unwrap();
        first.regain().await;
        assert_eq!((first.held.len(), first.stolen_here.len()), (1, 0));
        assert!(ask("third", false).await.is_none(), "the first one still runs");
    }

    #[test]
    fn a_process_is_dead_only_when_that_is_certain() {
        let this = this_process("0.1.0");
        assert!(this.process_start > 0 && !is_dead(&this));
        assert!(
            is_dead(&Holder { process_start: this.process_start + 1, ..this.clone() }),
            "another one by now"
        );
        assert!(is_dead(&Holder { process: u32::MAX, ..this.clone() }));
        assert!(!is_dead(&Holder { boot: "another".to_owned(), ..this.clone() }));
        assert!(!is_dead(&Holder { process: u32::MAX, host: "elsewhere".to_owned(), ..this.clone() }));
        let elsewhere =
            |name: &str| Holder { process: u32::MAX, pid_namespace: name.to_owned(), ..this.clone() };
        assert!(!is_dead(&elsewhere("pid:[1]")) && !is_dead(&elsewhere("")), "what runs there is not known");
        assert!(!is_dead(&Holder { boot: String::new(), ..this }));
    }
}
