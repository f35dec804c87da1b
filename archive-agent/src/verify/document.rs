//! What `archive-agent verify --json` prints.

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{BackupId, ClusterName};
use walpoint_repo::holds::UNKNOWN_HOLD;
use walpoint_repo::verify::{Cure, Verified, VerifyFinding};

/// What `archive-agent verify --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct VerifyDocument<'a> {
    /// The cluster.
    pub(super) cluster: &'a ClusterName,
    /// What was verified and found, for each repository.
    pub(super) repositories: Vec<VerifiedRepository<'a>>,
    /// Repositories that could not be verified, with the reason.
    pub(super) failed: &'a [String],
}

walpoint_runtime::document!(VerifyDocument<'_>, "archive-agent verify");

/// What was verified and found in one repository.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct VerifiedRepository<'a> {
    #[serde(flatten)]
    verified: &'a Verified,
    /// The first thousand findings.
    findings: Vec<Finding<'a>>,
}

/// A finding, and what to do about it.
#[derive(Debug, Serialize, JsonSchema)]
struct Finding<'a> {
    #[serde(flatten)]
    finding: &'a VerifyFinding,
    /// What to do.
    hint: String,
}

impl<'a> VerifiedRepository<'a> {
    pub(super) fn of(verified: &'a Verified) -> Self {
        let words = |finding: &'a VerifyFinding| Finding { finding, hint: remedy(&finding.remedy) };
        Self { verified, findings: verified.findings.iter().map(words).collect() }
    }
}

const RESUPPLY: &str = "if PostgreSQL or another repository still has it, remove what is damaged here and archive it again \
     (archive-agent push)";

const SPLIT_BRAIN: &str = "find out which server wrote which of both; take a backup of the one that goes on, and give the other one a \
     lineage of its own (archive-agent init --new-lineage)";

const WAIT_OR_FORCE: &str = "nothing has to be done: it ends like any other, a quarter of an hour after it was stored, and the next \
     backup deletes it; archive-agent backup --steal-lease begins one at once";

/// What to do about a finding.
pub(super) fn remedy(cure: &Cure) -> String {
    match cure {
        Cure::Plain(text) => text.clone(),
        Cure::Resupply => RESUPPLY.to_owned(),
        Cure::ResupplyOrBackup(behind) => format!("{RESUPPLY}; a new backup begins a window behind {behind}"),
        Cure::SplitBrain => SPLIT_BRAIN.to_owned(),
        Cure::PutBackOrExpire(id) => put_back_or_expire(*id),
        Cure::WaitOrForce => WAIT_OR_FORCE.to_owned(),
        Cure::Hold(remedy) => format!("{UNKNOWN_HOLD}: {}", walpoint_words::instruction(remedy)),
        Cure::Acknowledging(remedy) => format!(
            "a restore may wait for ever for the word of a repository that was lost: {}",
            walpoint_words::instruction(remedy)
        ),
        Cure::Announcement(remedy) => format!(
            "what it announced is not known, so nothing is deleted and backups build on nothing and store everything anew. {}",
            walpoint_words::instruction(remedy)
        ),
    }
}

fn put_back_or_expire(id: BackupId) -> String {
    format!(
        "put the object back, from another version of it in the store or from a copy of the store, else take a backup and delete this \
         one with archive-agent expire --backup {id}; until then restore from another one, or from another repository"
    )
}
