//! The lease on the backups of a cluster, in every repository that gets a copy: two daemons that begin at once would read
//! the cluster twice for nothing. Held while the backup runs, renewed meanwhile; a backup that died leaves one that ends by
//! itself, or at once where it can be seen that its process is gone.

use std::fs;
use std::time::Duration;

use anyhow::{Context, bail};
use walpoint_base::ClusterName;
use walpoint_base::diagnostic::shown;
use walpoint_repo::lease::{BACKUP, HeldLease, Holder, LeaseAnswer, Leases, Renewed};
use walpoint_storage::error::error_chain;

use crate::check::repository::Destination;

/// How long it holds without being renewed.
const SECONDS: u32 = 900;
/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(300);

/// The leases that a backup has, one for each copy.
#[derive(Debug)]
pub(crate) struct BackupLeases {
    held: Vec<(String, HeldLease)>,
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
        let mut leases = Self { held: Vec::new(), stolen: false };
        for copy in copies {
            let asked =
                Leases::of(&copy.repository, cluster, BACKUP).ask(&holder, SECONDS, steal, is_dead).await;
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
                        "no backup was begun: process {process} on {host} has been at a backup of cluster {cluster} into \
                         repository {} since {}\nHINT: Wait for it. If it is known to be dead, use --steal-lease, or wait \
                         until its lease ends, {SECONDS} seconds after its last sign of life.",
                        copy.name(),
                        lease.since
                    );
                }
                Ok(LeaseAnswer::Unreadable { key, what, until }) => {
                    leases.release().await;
                    bail!(
                        "no backup was begun: {key} in repository {}, which names who is at a backup of cluster {cluster}, is \
                         damaged: {what}\nHINT: If no backup is running, use --steal-lease. Otherwise it ends by itself at \
                         {until:.0}.",
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
                        "another backup of the cluster took the lease (--steal-lease)\nDETAIL: Both continue."
                    );
                    lost.push(n);
                }
                Err(error) => {
                    tracing::warn!(repository, "the lease was not renewed: {}", error_chain(&error))
                }
            }
        }
        lost.into_iter().rev().for_each(|n| drop(self.held.remove(n)));
    }

    /// Renews them again and again; never ends.
    pub(crate) async fn keep(&mut self) {
        loop {
            tokio::time::sleep(RENEWAL).await;
            self.renew().await;
        }
    }

    /// Gives them back.
    pub(crate) async fn release(self) {
        for (repository, held) in self.held {
            if let Err(error) = held.release().await {
                tracing::warn!(
                    repository,
                    "the lease ends by itself, it was not given back: {}",
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
