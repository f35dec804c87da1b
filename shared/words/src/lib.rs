//! What both agents say about errors of a repository. The libraries return what failed, and what could be done about it as a value;
//! here are the commands and options that do it. [`lineage`]: what both show of what a repository holds. [`recording`]: what both put
//! on record as evidence.

pub mod lineage;
pub mod recording;

use std::error::Error;

use walpoint_base::Diagnostic;
use walpoint_pg::base_backup::BaseBackupError;
use walpoint_runtime::exit::{self, Failure};
use walpoint_storage::error::{Obstacle, Override, Remark, Remedy, RepoError};

/// An error and what to do about it.
pub fn error(error: &RepoError) -> Diagnostic {
    let mut diagnostic = with_hint(error.to_string(), error.remedy());
    if let RepoError::Protected { obstacles, .. } = error {
        for Obstacle { remedy, overridden_by, .. } in obstacles {
            diagnostic = remedy.iter().fold(diagnostic, |all, remedy| all.hint(hint(remedy)));
            diagnostic = diagnostic.hint(overriding(*overridden_by));
        }
    }
    diagnostic
}

/// Something that a person should know, and what to do about it.
pub fn remark(remark: &Remark) -> Diagnostic {
    with_hint(&remark.what, remark.remedy.as_ref())
}

fn with_hint(text: impl AsRef<str>, remedy: Option<&Remedy>) -> Diagnostic {
    remedy.into_iter().fold(Diagnostic::new(text), |all, remedy| all.hint(hint(remedy)))
}

/// How to have something deleted although an obstacle stands against it.
fn overriding(obstacle: Override) -> &'static str {
    match obstacle {
        Override::Held => "To delete it despite the holds, add --even-if-held.",
        Override::Last => "To delete even the last backup, add --even-if-last.",
        Override::InUse => "If no agent works on the cluster any more, add --even-if-in-use.",
        Override::AbortUnfinished => {
            "To abort the unfinished backup that builds on it, add --abort-unfinished."
        }
    }
}

/// What to do: whole sentences.
pub fn hint(remedy: &Remedy) -> String {
    match remedy {
        Remedy::CreateRepository => {
            "If the repository does not exist yet, create it with \"archive-agent init\".".to_owned()
        }
        Remedy::RegisterAnew => {
            "If you recreated it on purpose, register the cluster with \"archive-agent init\" and take a backup.".to_owned()
        }
        Remedy::ListKeySlots => "\"archive-agent key list\" lists its key slots.".to_owned(),
        Remedy::MakeEncrypted => "Add --encrypt to create an encrypted one.".to_owned(),
        Remedy::ListBackups => "\"archive-agent status\" lists the backups.".to_owned(),
        Remedy::VerifyBackups => {
            "Earlier backups may be incomplete: run \"archive-agent verify\".".to_owned()
        }
        Remedy::ExpireBackup(id) => {
            format!("If you can do without that backup, run \"archive-agent expire --backup {id}\".")
        }
        Remedy::PlaceHoldAnew { number, repository } => format!(
            "Place a new hold on the backups that it may have held, then run \"archive-agent hold remove \
             {number} --repo {repository}\"."
        ),
        Remedy::VerifyAll => "Run \"archive-agent verify\" without --light, --sample, --budget and --backup: it records again what \
             is damaged, and deletes this object. Then repeat the deletions that you requested by name."
            .to_owned(),
        Remedy::SupersedeAgain => "Run \"archive-agent init --lost-repo ID\" again on the server in production, with the ID of the \
             repository that was lost and replaced (\"archive-agent init\" shows it), or without --lost-repo if none was. That records \
             again which repositories acknowledge."
            .to_owned(),
        Remedy::MoveAway => {
            "Move that object away. The next attempt then stores the file.".to_owned()
        }
        Remedy::AbandonTimeline(timeline) => format!(
            "If nothing of timeline {timeline} is needed, run \"archive-agent lineage settle --timeline {timeline} --abandoned --reason \
             TEXT\"."
        ),
    }
}

/// An error and its causes, with what to do about those of a repository.
pub fn diagnostic(error: &anyhow::Error) -> Diagnostic {
    exit::chain(error, cause)
}

/// The text form of [`diagnostic`].
pub fn format_chain(error: &anyhow::Error) -> String {
    diagnostic(error).to_string()
}

fn cause(cause: &(dyn Error + 'static)) -> Diagnostic {
    if let Some(BaseBackupError::LeftOut(_)) = cause.downcast_ref() {
        return Diagnostic::new(cause.to_string())
            .hint("Back this cluster up from its data directory, without --remote.");
    }
    cause.downcast_ref::<RepoError>().map_or_else(|| Diagnostic::new(cause.to_string()), error)
}

/// A command's result, whose error says what to do.
pub fn advised(result: Result<(), Failure>) -> Result<(), Failure> {
    result.map_err(|failure| Failure { status: failure.status, error: diagnostic(&failure.error).into() })
}

#[cfg(test)]
mod tests {
    use walpoint_storage::layout;

    use super::*;

    #[test]
    fn what_stands_against_deleting_has_a_hint_for_each() {
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
            error(&protected).to_string(),
            "backup a is not deleted: hold 2; backup b builds on it\nHINT: To delete it despite the holds, add \
             --even-if-held.\nHINT: To abort the unfinished backup that builds on it, add --abort-unfinished."
        );
    }

    #[test]
    fn a_remark_names_the_command_that_ends_it() {
        let remedy = Some(Remedy::AbandonTimeline(walpoint_base::TimelineId::FIRST));
        let text = remark(&Remark { what: "a history is archived".to_owned(), remedy }).to_string();
        assert_eq!(
            text,
            "a history is archived\nHINT: If nothing of timeline 1 is needed, run \"archive-agent lineage settle --timeline 1 \
             --abandoned --reason TEXT\"."
        );
    }

    #[test]
    fn hints_follow_all_causes() {
        let remedy = Some(Remedy::PlaceHoldAnew { number: 2, repository: "main".to_owned() });
        let damaged = RepoError::Corrupt { key: layout::descriptor(), what: "torn".to_owned(), remedy };
        let error = anyhow::Error::from(damaged).context("repository \"main\"");
        assert_eq!(
            format_chain(&error),
            "repository \"main\": walpoint.json is damaged: torn\nHINT: Place a new hold on the backups \
             that it may have held, then run \
             \"archive-agent hold remove 2 --repo main\"."
        );
        let advised = advised(Err(Failure::usage(error))).unwrap_err();
        assert_eq!((advised.status, advised.to_string().lines().count()), (exit::USAGE, 2), "{advised}");
    }

    #[test]
    fn an_error_of_the_system_keeps_its_own_words() {
        let denied = RepoError::Denied {
            what: "walpoint.json".to_owned(),
            store: "s3://x".to_owned(),
            source: "403 Forbidden".into(),
        };
        let text = format_chain(&anyhow::Error::from(denied).context("could not open repository \"main\""));
        assert!(text.starts_with("could not open repository \"main\": access to walpoint.json in s3://x was denied: 403 Forbidden\nHINT: "), "{text}");
    }
}
