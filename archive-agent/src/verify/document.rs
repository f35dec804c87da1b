//! What `verify --json` prints; `docs/json.md` describes it.

use serde::Serialize;
use walpoint_base::BackupId;
use walpoint_repo::holds::UNKNOWN_HOLD;
use walpoint_repo::verify::{Cure, Verified, VerifyFinding};

#[derive(Debug, Serialize)]
pub(super) struct VerifyDocument<'a> {
    pub(crate) cluster: &'a str,
    pub(crate) repositories: Vec<VerifiedRepository<'a>>,
    pub(crate) failed: &'a [String],
}

/// What was found in one repository.
#[derive(Debug, Serialize)]
pub(super) struct VerifiedRepository<'a> {
    #[serde(flatten)]
    verified: &'a Verified,
    findings: Vec<Finding<'a>>,
}

/// Something that is not as it should be, and what to do.
#[derive(Debug, Serialize)]
struct Finding<'a> {
    #[serde(flatten)]
    finding: &'a VerifyFinding,
    remedy: String,
}

impl<'a> VerifiedRepository<'a> {
    pub(super) fn of(verified: &'a Verified) -> Self {
        let words = |finding: &'a VerifyFinding| Finding { finding, remedy: remedy(&finding.remedy) };
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
