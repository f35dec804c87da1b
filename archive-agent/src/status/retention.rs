//! What is held, what the next expire drops, and what is older than it may be.

use std::fmt::Write as _;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::ClusterName;
use walpoint_plan::retention::Policy;
use walpoint_repo::Repository;
use walpoint_repo::backup::Backups;
use walpoint_repo::catalog::Catalog;
use walpoint_repo::expire::{DecisionReport, Outlook, outlook};
use walpoint_repo::holds::{Holdings, Holds};
use walpoint_storage::RepoError;

use crate::hold::HoldDocument;

/// Backups that are named in the text; the JSON names all.
const NAMED: usize = 10;

/// Holds, and what `expire` would do.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct RetentionState {
    /// Whether a retention policy is configured that can expire a backup.
    retention_configured: bool,
    /// The holds in force.
    holds: Vec<HoldDocument>,
    /// Backups that the next `expire` marks for deletion, oldest first.
    next_expired: Vec<DecisionReport>,
    /// Backups that stay although they are older than `max_age`, oldest first.
    over_max_age: Vec<DecisionReport>,
    /// What is wrong with holds that cannot be read.
    #[serde(skip)]
    damaged: Vec<String>,
}

impl RetentionState {
    /// Decides as expire would, and changes nothing; tells the catalog which WAL is gone on purpose.
    pub(super) async fn of(
        repository: &Repository,
        cluster: &ClusterName,
        policy: &Policy,
        catalog: &mut Catalog,
    ) -> Result<Self, RepoError> {
        let now = Timestamp::now();
        let Holdings { holds, damaged } = Holds::of(repository, cluster).look().await?;
        // Without a retention nothing goes but what was asked for by name, and no manifest has to be read to say so.
        let announced = Backups::of(repository, cluster).announcements().await?;
        let asked = announced.read.iter().any(|one| !one.announcement.requests.is_empty());
        let Outlook { decisions, mut wal, .. } = match policy.drops() || asked {
            true => outlook(repository, cluster, policy, now).await?,
            false => Outlook::default(),
        };
        for lineage in catalog.lineages_mut() {
            if let Some(at) = wal.iter().position(|(id, _)| *id == lineage.id()) {
                lineage.promise(wal.swap_remove(at).1);
            }
        }
        let dropped = decisions.iter().filter(|decision| !decision.stays());
        let exceeding = decisions.iter().filter(|decision| decision.stays() && decision.exceeds_max_age);
        Ok(Self {
            retention_configured: policy.drops(),
            holds: holds
                .iter()
                .filter(|hold| hold.is_in_force(now))
                .map(|hold| HoldDocument::of(hold, now))
                .collect(),
            next_expired: dropped.map(DecisionReport::from).collect(),
            over_max_age: exceeding.map(DecisionReport::from).collect(),
            damaged: damaged.iter().map(|damaged| walpoint_words::error(&damaged.error()).into()).collect(),
        })
    }

    /// What somebody should know, one sentence each.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.damaged)
    }

    /// For a person; nothing if there is nothing to say.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut list = |heading: &str, decisions: &[DecisionReport]| {
            if decisions.is_empty() {
                return;
            }
            // Writing to a String cannot fail.
            writeln!(text, "\n{heading}").ok();
            for decision in decisions.iter().take(NAMED) {
                writeln!(text, "  {}  {}", decision.id, decision.reason).ok();
            }
            if decisions.len() > NAMED {
                writeln!(text, "  and {} more", decisions.len() - NAMED).ok();
            }
        };
        list("Older than max_age", &self.over_max_age);
        list("Expired by the next expire", &self.next_expired);
        if !self.holds.is_empty() {
            text.push_str("\nHolds\n");
        }
        for hold in &self.holds {
            writeln!(text, "{}", hold.line()).ok();
        }
        text
    }
}
