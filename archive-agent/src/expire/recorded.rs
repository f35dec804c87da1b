//! What an expiry puts on record as evidence.

use walpoint_repo::Repository;
use walpoint_repo::evidence::{Draft, Kind, Outcome};
use walpoint_repo::expire::{BackupDecision, ExpireOptions, Expired, NamedBackup};
use walpoint_runtime::args::Selection;
use walpoint_runtime::human;
use walpoint_storage::store::StoreSettings;
use walpoint_words::{format_chain, recording};

use super::is_refusal;
use crate::evidence::draft;

/// Records what was marked and deleted, or that the run did not finish; nothing of one that was refused or changed nothing.
pub(super) async fn ended(
    repository: &Repository,
    selection: &Selection<StoreSettings>,
    expired: &anyhow::Result<Expired>,
    options: &ExpireOptions,
) {
    let said = match expired {
        Ok(expired) => said(expired, options.named.as_ref()),
        Err(error) if options.dry_run || is_refusal(error) => None,
        // What it deleted before is not known.
        Err(error) => Some(draft(Kind::Expiry, Outcome::Failed).with_issues([format_chain(error)])),
    };
    if let Some(said) = said {
        recording::append(repository, selection, &said).await;
    }
}

fn said(expired: &Expired, named: Option<&NamedBackup>) -> Option<Draft> {
    let total = |count: fn(&_) -> u64| expired.classes.iter().map(count).sum::<u64>();
    let (marked, deleted) = (total(|class| class.marked_count), total(|class| class.deleted_count));
    let changed = marked > 0 || deleted > 0 || !expired.aborted_backups.is_empty();
    if expired.dry_run || !changed {
        return None;
    }
    let denied = Some(expired.denied_count).filter(|count| *count > 0);
    let denied = denied.map(|count| format!("the store refused to delete {}", human::count(count, "object")));
    let outcome = if denied.is_some() { Outcome::Partial } else { Outcome::Success };
    let backups =
        expired.backups.iter().filter(|one| one.decision == BackupDecision::Expire).map(|one| one.id);
    let scenario = match named {
        None => "by the retention policy".to_owned(),
        Some(named) => {
            let overrides =
                [(named.even_if_held, "despite holds"), (named.even_if_last, "although it is the last one")];
            let overrides = overrides.into_iter().filter(|(given, _)| *given).map(|(_, what)| what);
            std::iter::once("one backup, by name").chain(overrides).collect::<Vec<_>>().join(", ")
        }
    };
    Some(Draft {
        scenario: Some(scenario),
        note: Some(format!(
            "{} marked for deletion, {} deleted ({}), {} aborted",
            human::count(marked, "object"),
            human::count(deleted, "object"),
            human::size(expired.freed_bytes),
            human::count(expired.aborted_backups.len() as u64, "unfinished backup")
        )),
        ..draft(Kind::Expiry, outcome).about(backups).with_issues(denied)
    })
}
