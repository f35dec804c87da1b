//! Why nothing is done with what lies at the target of a restore, and what to do about it.

use std::path::Path;

use anyhow::anyhow;
use walpoint_base::{SystemId, WalFileName};

use super::directory::DirectoryError;
use super::running::{LockFile, Reason};
use super::target_state::TargetState;

/// Why nothing is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// What decides could not be found out.
    Unread(Unread),
    /// A server runs there, or may.
    Running { file: Option<LockFile>, reason: Reason },
    /// It holds something, this for example.
    NotEmpty { example: String },
    /// It holds something, and is no data directory.
    NoDataDirectory { example: String },
    /// It holds an unfinished repair.
    OnlyDelta { backup: String },
    /// It is another cluster's.
    OtherCluster { found: SystemId, wanted: SystemId },
    /// Its `pg_control` does not say whose it is.
    UnknownCluster,
    /// Recovery reads this, no archive has it undamaged, and its `pg_wal` has.
    StoredDamaged { name: WalFileName },
    /// WAL waits there that no archive has. `other`: a name under which the archive has other content.
    NotArchived { repository: String, count: usize, first: WalFileName, other: Option<WalFileName> },
}

/// What could not be found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// What lies there.
    Contents,
    /// What the data directory there is, and what its links lead to.
    Present,
    /// The record of a data directory that was moved aside.
    Record,
    /// The same of the data directory that was moved aside last.
    Previous,
}

impl Refusal {
    /// Says it. What could not be found out has its cause in the state that was decided about.
    pub(super) fn explain_from(self, pgdata: &Path, state: TargetState) -> anyhow::Error {
        let cause = match self {
            Self::Unread(Unread::Contents) => state.contents.err().map(anyhow::Error::from),
            Self::Unread(Unread::Present) => {
                state.present.err().map(|error| anyhow!(error).context(pgdata.display().to_string()))
            }
            Self::Unread(Unread::Record) => state.previous.err(),
            Self::Unread(Unread::Previous) => state.previous.ok().flatten().and_then(|previous| {
                let error = previous.existing.err()?;
                Some(anyhow!(error).context(previous.record.aside.display().to_string()))
            }),
            _ => None,
        };
        cause.unwrap_or_else(|| self.explain(pgdata))
    }

    /// Says it of a directory.
    pub(super) fn explain(self, pgdata: &Path) -> anyhow::Error {
        let shown = pgdata.display();
        match self {
            Self::Unread(_) => anyhow!("{shown} could not be read: nothing was changed"),
            Self::Running { file, reason } => {
                DirectoryError::Running { pgdata: pgdata.to_owned(), file, reason }.into()
            }
            Self::NotEmpty { example } => {
                DirectoryError::NotEmpty { pgdata: pgdata.to_owned(), example }.into()
            }
            Self::NoDataDirectory { example } => anyhow!(
                "{shown} is not empty (it holds {example:?}) and is no data directory of PostgreSQL: it has no PG_VERSION; give an \
                 empty or a new directory: nothing was changed"
            ),
            Self::OnlyDelta { backup } => anyhow!(
                "{shown} holds an unfinished restore --delta of backup {backup}, which only --delta can finish; nothing was changed"
            ),
            Self::OtherCluster { found, wanted } => anyhow!(
                "{shown} is the data directory of another cluster (system identifier {found}, the backup's is {wanted}); --replace \
                 keeps it, --delta --overwrite-other-cluster overwrites it: nothing was changed"
            ),
            Self::UnknownCluster => anyhow!(
                "{shown}: cannot determine whose data directory it is, because its global/pg_control is missing or damaged; \
                 --replace keeps it, --delta --overwrite-other-cluster repairs it whosever it is: nothing was changed"
            ),
            Self::StoredDamaged { name } => anyhow!(
                "{shown}: \"{name}\", which recovery reads, is damaged in every archive that has it, and undamaged in its pg_wal: move \
                 the damaged object away, archive the file again with \"archive-agent push {}\", and run the same command again; with \
                 --discard-unarchived-wal recovery stops there, and the file is kept: nothing was changed",
                pgdata.join("pg_wal").join(name.to_string()).display()
            ),
            Self::NotArchived { repository, count, first, other } => {
                let ways = "--replace keeps the whole directory, --delta --discard-unarchived-wal repairs it and keeps these files in a directory beside it";
                match other {
                    Some(other) => anyhow!(
                        "{shown}: files of WAL wait in its pg_wal that are not in repository \"{repository}\": {count} (the first is \
                         {first}); under the name {other} it has other content: this server went another way than the archive, or the \
                         file is damaged, and it cannot be archived there; {ways}: nothing was changed"
                    ),
                    None => anyhow!(
                        "{shown}: files of WAL wait in its pg_wal that are not in repository \"{repository}\": {count} (the first is \
                         {first}); archive them with \"archive-agent run --once\"; {ways}: nothing was changed"
                    ),
                }
            }
        }
    }
}
