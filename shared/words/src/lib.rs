//! What both agents say about errors of a repository. The libraries return what failed, and what could be done about it as a value;
//! here are the commands and options that do it. [`lineage`]: what both show of what a repository holds.

pub mod lineage;

use std::error::Error;

use walpoint_pg::base_backup::BaseBackupError;
use walpoint_runtime::exit::{self, Failure};
use walpoint_storage::error::{Obstacle, Override, Remark, Remedy, RepoError};

/// An error and what to do about it.
pub fn error(error: &RepoError) -> String {
    match error {
        RepoError::Protected { what, obstacles, remedy } => {
            let all: Vec<String> = obstacles.iter().map(obstacle).collect();
            let all = if all.is_empty() { String::new() } else { format!(": {}", all.join("; ")) };
            format!("{what}{all}{}", remedy.as_ref().map(advice).unwrap_or_default())
        }
        _ => format!("{error}{}", error.remedy().map(advice).unwrap_or_default()),
    }
}

/// Something that a person should know, and what to do about it.
pub fn remark(remark: &Remark) -> String {
    format!("{}{}", remark.what, remark.remedy.as_ref().map(advice).unwrap_or_default())
}

/// What stands against deleting something, and what overrides it.
fn obstacle(obstacle: &Obstacle) -> String {
    let option = match obstacle.overridden_by {
        Override::Held => "--even-if-held overrides this",
        Override::Last => "--even-if-last overrides this",
        Override::InUse => "--even-if-in-use overrides this",
        Override::AbortUnfinished => "--abort-unfinished aborts that one",
    };
    let remedy = obstacle.remedy.as_ref().map(advice).unwrap_or_default();
    format!("{}{remedy} ({option})", obstacle.what)
}

/// What follows the text of an error.
fn advice(remedy: &Remedy) -> String {
    match remedy {
        Remedy::CreateRepository => ", or create a repository with archive-agent init".to_owned(),
        Remedy::RegisterAnew => {
            "; if it was made anew on purpose, register the cluster with archive-agent init and take a backup"
                .to_owned()
        }
        Remedy::ListKeySlots => "; archive-agent key list shows what it has".to_owned(),
        Remedy::MakeEncrypted => ": add --encrypt to make an encrypted one".to_owned(),
        Remedy::ListBackups => "; archive-agent status lists the backups".to_owned(),
        Remedy::VerifyBackups => {
            ". HINT: earlier backups may be incomplete, run \"archive-agent verify\"".to_owned()
        }
        Remedy::ExpireBackup(id) => format!("; archive-agent expire --backup {id} deletes it"),
        Remedy::PlaceHoldAnew { .. } | Remedy::VerifyAll | Remedy::SupersedeAgain => {
            format!("{}{}", lead(remedy), instruction(remedy))
        }
    }
}

fn lead(remedy: &Remedy) -> &'static str {
    if matches!(remedy, Remedy::PlaceHoldAnew { .. }) { ": " } else { ". " }
}

/// What to do about what cannot be read, as an instruction by itself.
pub fn instruction(remedy: &Remedy) -> String {
    match remedy {
        Remedy::PlaceHoldAnew { number, repository } => format!(
            "place anew what it may have held, then run archive-agent hold remove {number} --repo {repository}"
        ),
        Remedy::VerifyAll => "Run archive-agent verify without --light, --sample, --budget and --backup: it announces again what is \
             damaged, and deletes this object; what was asked to be deleted by name has to be asked for again"
            .to_owned(),
        Remedy::SupersedeAgain => "Run archive-agent init --lost-repo ID again on the server in production, with the id of the \
             repository that was lost and replaced (archive-agent init shows it): it records anew which repositories acknowledge"
            .to_owned(),
        other => advice(other).trim_start_matches([',', ';', ':', '.', ' ']).to_owned(),
    }
}

/// An error and its causes in one line, with what to do about those of a repository.
pub fn told(error: &anyhow::Error) -> String {
    exit::chain(error, cause)
}

fn cause(cause: &(dyn Error + 'static)) -> String {
    if let Some(BaseBackupError::LeftOut(_)) = cause.downcast_ref() {
        return format!("{cause}. Back this cluster up from its data directory, without --remote");
    }
    cause.downcast_ref::<RepoError>().map_or_else(|| cause.to_string(), error)
}

/// A command's result, whose error says what to do.
pub fn advised(result: Result<(), Failure>) -> Result<(), Failure> {
    result.map_err(|failure| Failure {
        status: failure.status,
        error: anyhow::Error::msg(told(&failure.error)),
    })
}

#[cfg(test)]
mod tests {
    use walpoint_storage::layout;

    use super::*;

    #[test]
    fn what_stands_against_deleting_is_said_with_what_overrides_it() {
        let held = Obstacle { what: "hold 2".to_owned(), remedy: None, overridden_by: Override::Held };
        let unfinished = Obstacle {
            what: "backup b builds on it".to_owned(),
            remedy: None,
            overridden_by: Override::AbortUnfinished,
        };
        let protected = RepoError::Protected {
            what: "backup a is not deleted".to_owned(),
            obstacles: vec![held, unfinished],
            remedy: None,
        };
        assert_eq!(protected.to_string(), "backup a is not deleted: hold 2; backup b builds on it");
        assert_eq!(
            error(&protected),
            "backup a is not deleted: hold 2 (--even-if-held overrides this); backup b builds on it (--abort-unfinished aborts that \
             one)"
        );
    }

    #[test]
    fn causes_are_said_with_what_to_do() {
        let remedy = Some(Remedy::PlaceHoldAnew { number: 2, repository: "main".to_owned() });
        let damaged = RepoError::Corrupt { key: layout::descriptor(), what: "torn".to_owned(), remedy };
        let error = anyhow::Error::from(damaged).context("repository main");
        let text = told(&error);
        assert!(
            text.starts_with("repository main: ") && text.contains("is damaged: torn: place anew"),
            "{text}"
        );
        assert!(text.ends_with("archive-agent hold remove 2 --repo main"), "{text}");
        let missing = RepoError::NoRepository {
            store: "file:///x".to_owned(),
            what: "it has no walpoint.json".to_owned(),
            remedy: Some(Remedy::CreateRepository),
        };
        assert!(super::error(&missing).ends_with(", or create a repository with archive-agent init"));
    }
}
