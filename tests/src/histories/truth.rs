//! After a history: what `check`, `status`, `verify` and `plan` say, and what restores bring back, against the oracle.

use rand::Rng;
use serde_json::Value;
use walpoint_base::Lsn;

use super::oracle::{Effect, next_record};
use super::world::{LIMIT, Outcome, SEGMENT, World, difference};

/// Plans asked for, and restores among them that are run.
const PLANS: usize = 8;
const RESTORES: usize = 2;
/// Moments of any kind that are tried.
const CLAIMS: usize = 2;

impl World {
    /// Compares everything with the oracle.
    pub fn truth(&mut self) -> Outcome<()> {
        self.note("-- the truth");
        self.load(3);
        self.drain()?;
        self.reports()?;
        let primary = self.primary;
        self.servers[primary].stop();
        self.latest()?;
        let mut restores = RESTORES;
        for _ in 0..PLANS {
            let owners: Vec<usize> = self.owners.values().copied().collect();
            let branch = owners[self.rng.random_range(0..owners.len())];
            let all = self.branches[branch].events.len();
            let Some((mut target, count)) = self.random_moment(branch, all) else { continue };
            target.extend(["--target-timeline".to_owned(), self.branches[branch].timeline.to_string()]);
            let claim = self.plan(&target, branch, count)?;
            if restores > 0 {
                restores -= 1;
                self.land(&target, branch, count, true, &claim)?;
            }
        }
        for _ in 0..CLAIMS {
            self.claim()?;
        }
        self.immediate()
    }

    /// Any moment at all, also one that the archive need not have: what is planned has to be reached.
    fn claim(&mut self) -> Outcome<()> {
        let owners: Vec<usize> = self.owners.values().copied().collect();
        let branch = owners[self.rng.random_range(0..owners.len())];
        let at = self.rng.random_range(0..self.branches[branch].events.len());
        let (mut target, count) = self.moment(branch, at);
        target.extend(["--target-timeline".to_owned(), self.branches[branch].timeline.to_string()]);
        let mut arguments = vec!["--json", "plan"];
        arguments.extend(target.iter().map(String::as_str));
        let output = self.servers[self.primary].agent.restore(&arguments);
        if !output.success() {
            return Ok(());
        }
        let claim = self.plan(&target, branch, count)?;
        self.land(&target, branch, count, true, &claim)
    }

    /// The branch whose timeline is the newest in the archive.
    fn newest(&self) -> usize {
        *self.owners.values().last().expect("the first timeline's")
    }

    /// `check`, `status` and `verify` of a server whose archiving works.
    fn reports(&mut self) -> Outcome<()> {
        let primary = &self.servers[self.primary];
        let check = primary.agent.run(&["check", "--timeout", "60s"]);
        if check.status != 0 {
            return Err(format!("check finds fault with a server that archives: {check:#?}"));
        }
        let status = primary.agent.run(&["--json", "status"]);
        if status.status != 0 {
            return Err(format!("status fails: {status:#?}"));
        }
        let json: Value = serde_json::from_str(&status.stdout).expect("JSON");
        let newest = self.newest();
        let branch = &self.branches[newest];
        let repository = &json["clusters"][0]["repositories"][0]["status"];
        let timelines =
            repository["lineages"].as_array().and_then(|all| all.last()).map(|it| &it["timelines"]);
        let own = timelines.and_then(Value::as_array).and_then(|all| {
            all.iter().find(|timeline| timeline["timeline"].as_u64() == Some(u64::from(branch.timeline)))
        });
        let Some(own) = own else {
            return Err(format!("status does not know timeline {}: {json:#}", branch.timeline));
        };
        // Recoverable as far as the oracle knows, if a backup leads there.
        if let Some(last) = self.reachable(branch).last() {
            let end = branch.events[*last].after;
            let windows = own["windows"].as_array().cloned().unwrap_or_default();
            let until =
                windows.iter().filter_map(|window| window["until_lsn"].as_str()?.parse::<Lsn>().ok()).max();
            if *last >= branch.inherited && until.is_none_or(|until| until < end) {
                return Err(format!(
                    "status says that timeline {} can be recovered until {until:?}; archived are rows until {end}: {own:#}",
                    branch.timeline
                ));
            }
        }
        let verify = primary.agent.run(&["verify"]);
        if verify.status != 0 && !self.gap {
            return Err(format!("verify finds fault with a sound repository: {verify:#?}"));
        }
        self.note("check, status and verify find no fault");
        Ok(())
    }

    /// Asks for a plan, which has to claim what the oracle knows.
    fn plan(&mut self, target: &[String], branch: usize, count: usize) -> Outcome<Value> {
        let mut arguments = vec!["--json", "plan"];
        arguments.extend(target.iter().map(String::as_str));
        let output = self.servers[self.primary].agent.restore(&arguments);
        let json: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        if json["result"] != "plan" {
            return Err(format!("a moment that is in the archive is not planned: {target:?}: {output:#?}"));
        }
        let stop = &json["stop"];
        let end = if stop["replayed"] == true { &stop["end_lsn"] } else { &stop["lsn"] };
        self.note(format!("plan {}: recovery ends at {end}", target.join(" ")));
        if let Some(end) = end.as_str().and_then(|end| end.parse::<Lsn>().ok()) {
            let branch = &self.branches[branch];
            let (claimed, expected) = (branch.state(branch.ended_by(end)), branch.state(count));
            if claimed != expected {
                return Err(format!(
                    "the plan for {target:?} ends at {end}, where other rows are than asked for: {}",
                    difference(&expected, &claimed)
                ));
            }
        }
        Ok(json)
    }

    /// Restores to a moment, promotes, and compares rows, and where recovery ended with what the plan claimed.
    fn land(
        &mut self,
        target: &[String],
        branch: usize,
        count: usize,
        exactly: bool,
        claim: &Value,
    ) -> Outcome<()> {
        self.clear_spaces();
        let arguments = [target, &["--target-action".to_owned(), "promote".to_owned()]].concat();
        let (mut copy, output) = self.restore("check", &arguments);
        if !output.success() {
            return Err(format!("a restore is refused: {target:?}: {output:#?}"));
        }
        copy.cluster.launch();
        copy.wait_promoted(LIMIT).map_err(|why| format!("{target:?}: {why}"))?;
        self.left(&mut copy, branch, count, exactly).map_err(|why| format!("{target:?}: {why}"))?;
        let (_, _, fork) = self.fork_of(&mut copy)?;
        let stop = &claim["stop"];
        let end = if stop["replayed"] == true { &stop["end_lsn"] } else { &stop["lsn"] };
        if let Some(end) = end.as_str().and_then(|end| end.parse::<Lsn>().ok())
            && next_record(end) != next_record(fork)
            // Behind a segment switch comes the next segment.
            && Lsn(end.0.next_multiple_of(SEGMENT)) != fork
        {
            return Err(format!(
                "the plan for {target:?} said that recovery ends at {end}; it ended at {fork}"
            ));
        }
        copy.stop();
        // The next copy takes the same name.
        for gone in [copy.cluster.pgdata().to_owned(), self.dir.join(format!("spaces-{}", copy.name()))] {
            drop(std::fs::remove_dir_all(gone));
        }
        Ok(())
    }

    /// Without a target: the newest timeline, to what is archived of it at least.
    fn latest(&mut self) -> Outcome<()> {
        let newest = self.newest();
        let Some(last) = self.reachable(&self.branches[newest]).last().copied() else {
            self.note("no backup leads to the newest timeline");
            return Ok(());
        };
        self.land(&[], newest, last + 1, false, &Value::Null)
    }

    /// The end of a random backup.
    fn immediate(&mut self) -> Outcome<()> {
        let newest = self.newest();
        let events = &self.branches[newest].events;
        let backups: Vec<(usize, String)> = (events.iter().enumerate())
            .filter_map(|(at, event)| match &event.effect {
                Effect::Backup(id) => Some((at, id.clone())),
                _ => None,
            })
            .collect();
        if backups.is_empty() {
            return Ok(());
        }
        let (at, id) = backups[self.rng.random_range(0..backups.len())].clone();
        let target = ["--target-immediate", "--backup", &id].map(str::to_owned);
        self.plan(&target, newest, at + 1)?;
        Ok(())
    }

    /// A damaged history is no reason to recover silently along an older timeline, and no sound repository.
    pub fn damaged_history(&mut self) -> Outcome<()> {
        let newest = self.newest();
        let timeline = self.branches[newest].timeline;
        let name = format!("{timeline:08X}.history");
        let back_door = self.store.back_door();
        let Some(key) = back_door.list("clusters").into_iter().find(|key| key.ends_with(&name)) else {
            return Err(format!("{name} is not in the repository"));
        };
        if self.rng.random_bool(0.5) {
            let bytes = back_door.get(&key).expect("an object");
            back_door.flip_bit(&key, bytes.len() / 2);
            self.note(format!("a bit of {name} in the repository is flipped"));
        } else {
            back_door.delete(&key);
            self.note(format!("{name} is deleted from the repository"));
        }
        let agent = &self.servers[self.primary].agent;
        let verify = agent.run(&["verify"]);
        if verify.status != 3 {
            return Err(format!("verify finds no fault with {name}: {verify:#?}"));
        }
        let output = agent.restore(&["--json", "plan"]);
        let json: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        if json["result"] == "plan" && json["timeline"].as_u64() != Some(u64::from(timeline)) {
            return Err(format!(
                "the plan for the latest moment silently takes timeline {}",
                json["timeline"]
            ));
        }
        Ok(())
    }
}
