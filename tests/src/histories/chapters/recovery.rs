//! Moments, and a primary that is restored to an earlier one.

use rand::Rng;

use crate::histories::oracle::Effect;
use crate::histories::world::{LIMIT, Outcome, World};

impl World {
    /// A moment and how to ask for it: arguments, branch, and how many events it has.
    pub fn moment(&mut self, branch: usize, at: usize) -> (Vec<String>, usize) {
        let events = &self.branches[branch].events;
        let event = &events[at];
        // A time stops recovery at the next end of a transaction; what lies between is replayed.
        let later = events[at + 1..].iter().position(|event| event.ends_transaction());
        let mut kinds = vec![(vec!["--target-lsn".to_owned(), event.after.to_string()], at + 1)];
        if let Some(xid) = event.xid {
            kinds.push((vec!["--target-xid".to_owned(), xid.to_string()], at + 1));
            kinds.push((
                vec!["--target-xid".to_owned(), xid.to_string(), "--target-exclusive".to_owned()],
                at,
            ));
        }
        if let Effect::Point(name) = &event.effect {
            kinds.push((vec!["--target-name".to_owned(), name.clone()], at + 1));
        }
        if let Some(between) = later {
            let target = vec!["--target-time".to_owned(), event.time_after.clone()];
            kinds.push((target, at + 1 + between));
        }
        kinds.swap_remove(self.rng.random_range(0..kinds.len()))
    }

    /// A random moment of a branch that can be recovered to, before event `below`.
    pub fn random_moment(&mut self, branch: usize, below: usize) -> Option<(Vec<String>, usize)> {
        let mut reachable = self.reachable(&self.branches[branch]);
        let events = &self.branches[branch].events;
        let there = reachable.clone();
        // What ends recovery is the next record, and for a time the next end of a transaction.
        reachable.retain(|at| {
            let end = events[at + 1..].iter().position(|event| event.ends_transaction());
            *at + 1 < below
                && there.contains(&(at + 1))
                && end.is_some_and(|end| there.contains(&(at + 1 + end)))
        });
        if reachable.is_empty() {
            return None;
        }
        let at = reachable[self.rng.random_range(0..reachable.len())];
        Some(self.moment(branch, at))
    }

    pub(super) fn pitr(&mut self, before_fork: bool) -> Outcome<()> {
        self.drain()?;
        let current = self.servers[self.primary].branch;
        let newest = *self.owners.values().last().expect("the first timeline's");
        let (branch, below) = if before_fork {
            (newest, self.branches[newest].inherited.max(2))
        } else {
            let owners: Vec<usize> = self.owners.values().copied().collect();
            let branch = owners[self.rng.random_range(0..owners.len())];
            (branch, self.branches[branch].events.len())
        };
        let Some((mut target, count)) = self.random_moment(branch, below) else {
            self.note("no such moment");
            return Ok(());
        };
        if branch != newest || self.rng.random_bool(0.3) {
            target.extend(["--target-timeline".to_owned(), self.branches[branch].timeline.to_string()]);
        }
        let old = self.primary;
        self.servers[old].crash();
        let name = self.servers[old].name();
        self.note(format!("{name} (branch {current}) dies"));
        self.clear_spaces();
        target.extend(["--target-action", "promote", "--resume-archiving"].map(str::to_owned));
        let (mut server, output) = self.restore("data", &target);
        if !output.success() {
            return Err(format!("a moment that is in the archive is refused: {target:?}: {output:#?}"));
        }
        server.archive_here();
        server.start_daemon();
        server.cluster.launch();
        server.wait_promoted(LIMIT)?;
        let branch = self.left(&mut server, branch, count, true)?;
        self.enthrone(server, branch);
        Ok(())
    }
}
