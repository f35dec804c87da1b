//! What `archive-agent verify --json` prints.

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{BackupId, ClusterName, Diagnostic};
use walpoint_repo::holds::UNKNOWN_HOLD;
use walpoint_repo::verify::{Cure, Verified, VerifyFinding};

use crate::key::{LOST_SLOT, replace_slot};

/// What `archive-agent verify --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct VerifyDocument<'a> {
    /// The cluster.
    pub(super) cluster: &'a ClusterName,
    /// What was verified and found, for each repository.
    pub(super) repositories: Vec<VerifiedRepository<'a>>,
    /// Repositories that could not be verified, with the reason.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
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
    /// Facts about it, as full sentences; several are lines. Absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// What to do, as full sentences; several are lines.
    hint: String,
}

impl<'a> VerifiedRepository<'a> {
    pub(super) fn of(verified: &'a Verified) -> Self {
        let words = |finding: &'a VerifyFinding| {
            let explained = explained(finding);
            let detail = (!explained.details().is_empty()).then(|| explained.details().join("\n"));
            Finding { finding, detail, hint: explained.hints().join("\n") }
        };
        Self { verified, findings: verified.findings.iter().map(words).collect() }
    }
}

const RESUPPLY: &str = "If PostgreSQL or another repository still has it, remove the damaged object here \
    and archive the file again (archive-agent push).";

const SPLIT_BRAIN: &str = "Find out which server wrote each of the two. Take a backup of the server that \
    stays in production, and give the other one a lineage of its own (archive-agent init --new-lineage).";

const PUT_BACK_OR_INIT: &str = "Put the objects back, from a copy of the store. If that is not possible, or the cluster \
    is new here, run \"archive-agent init\" and take a backup. Until then, restore from another repository. If the name is \
    wrong, correct \"cluster\" in the configuration.";

const WAIT_OR_FORCE: &str = "Nothing needs to be done: the lease expires like any other, 15 minutes after \
    it was stored, and the next backup deletes it. To start a backup at once, run \"archive-agent backup \
--steal-lease\".";

/// What was found, with the facts that explain it and what to do.
pub(super) fn explained(finding: &VerifyFinding) -> Diagnostic {
    let (found, advice) = (Diagnostic::new(&finding.what), advice(&finding.remedy));
    let facts = found.details().iter().chain(advice.details());
    let explained = facts.fold(Diagnostic::new(found.message()), Diagnostic::detail);
    advice.hints().iter().fold(explained, Diagnostic::hint)
}

/// What to do about a finding, with the facts that explain it.
fn advice(cure: &Cure) -> Diagnostic {
    let none = Diagnostic::default();
    match cure {
        Cure::Plain(text) => none.hint(text),
        Cure::Resupply => none.hint(RESUPPLY),
        Cure::ResupplyOrBackup(behind) => {
            none.hint(RESUPPLY).hint(format!("Or take a new backup: it begins a window after {behind}."))
        }
        Cure::SplitBrain => none.hint(SPLIT_BRAIN),
        Cure::PutBackOrExpire(id) => none.hint(put_back_or_expire(*id)),
        Cure::PutBackOrInit => none.hint(PUT_BACK_OR_INIT),
        Cure::WaitOrForce => none.hint(WAIT_OR_FORCE),
        Cure::Hold(remedy) => none.detail(UNKNOWN_HOLD).hint(walpoint_words::hint(remedy)),
        Cure::KeySlot(number) => none.detail(LOST_SLOT).hint(replace_slot(*number)),
        Cure::Acknowledging(remedy) => none
            .detail("A restore may wait forever for an answer from a repository that was lost.")
            .hint(walpoint_words::hint(remedy)),
        Cure::Announcement(remedy) => none
            .detail(
                "It is unknown which objects it marks as expired or damaged, so nothing is deleted, and \
                 backups reuse nothing and store everything again.",
            )
            .hint(walpoint_words::hint(remedy)),
    }
}

fn put_back_or_expire(id: BackupId) -> String {
    format!(
        "Put the object back, from an earlier version in the store or from a copy of the store. If that \
         is not possible, take a backup and delete this one with \"archive-agent expire --backup {id}\". \
         Until then, restore from another backup or another repository."
    )
}

#[cfg(test)]
mod tests {
    use walpoint_repo::verify::FindingKind;

    use super::*;

    #[test]
    fn facts_of_the_finding_come_before_those_of_the_advice() {
        let finding = VerifyFinding {
            kind: FindingKind::Damaged,
            object: "o".to_owned(),
            what: "cut\nDETAIL: It has 3 bytes.".to_owned(),
            backups: Vec::new(),
            moments: None,
            remedy: Cure::SplitBrain,
        };
        assert_eq!(
            explained(&finding).to_string(),
            format!("cut\nDETAIL: It has 3 bytes.\nHINT: {SPLIT_BRAIN}")
        );
        let json = serde_json::to_value(&finding).unwrap();
        assert_eq!(json["message"], "cut");
    }
}
