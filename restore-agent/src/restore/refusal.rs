//! Why nothing is done with what lies at the target of a restore, and what to do about it.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use walpoint_base::{Diagnostic, SystemId, WalFileName};

use super::directory::{DirectoryError, InUse};
use super::outside_state::{OutsideState, UsedDirectory};
use super::previous::Immovable;
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
    /// It holds an unfinished restore from another repository, or of another cluster: this one.
    OtherRestore { cluster: String },
    /// It is another cluster's.
    OtherCluster { found: SystemId, wanted: SystemId },
    /// Its `pg_control` does not say whose it is.
    UnknownCluster,
    /// Recovery reads this, no archive has it undamaged, and its `pg_wal` has.
    StoredDamaged {
        name: WalFileName,
        /// Names of the repositories that were read.
        read: String,
    },
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
                DirectoryError::Running { pgdata: pgdata.to_owned(), file, reason: Box::new(reason) }.into()
            }
            Self::NotEmpty { example } => {
                DirectoryError::NotEmpty { pgdata: pgdata.to_owned(), example }.into()
            }
            Self::NoDataDirectory { example } => anyhow!(
                "{shown} is not empty and is not a data directory: nothing was changed\nDETAIL: It contains {example:?}, but no \
                 PG_VERSION.\nHINT: Give a new or an empty directory."
            ),
            Self::OnlyDelta { backup } => anyhow!(
                "{shown} contains an unfinished restore --delta of backup {backup}: nothing was changed\nHINT: Finish it with \
                 --delta."
            ),
            Self::OtherRestore { cluster } => anyhow!(
                "{shown} contains another unfinished restore, of cluster {cluster}: nothing was changed\nDETAIL: That restore is \
                 of another cluster or of another lineage.\nHINT: Empty the directory first, or give another one."
            ),
            Self::OtherCluster { found, wanted } => anyhow!(
                "{shown} is the data directory of another cluster: nothing was changed\nDETAIL: Its system identifier is {found}; \
                 the backup's is {wanted}.\nHINT: To keep the directory, use --replace. To overwrite it, use --delta \
                 --overwrite-other-cluster."
            ),
            Self::UnknownCluster => anyhow!(
                "could not determine to which cluster {shown} belongs: nothing was changed\nDETAIL: Its global/pg_control is \
                 missing or damaged.\nHINT: To keep the directory, use --replace. To repair it whichever cluster it belongs \
                 to, use --delta --overwrite-other-cluster."
            ),
            Self::StoredDamaged { name, read } => anyhow!(
                "no repository that was read ({read}) has \"{name}\", which recovery needs, undamaged, but pg_wal of {shown} has: \
                 nothing was changed\nHINT: Move the damaged object out of the repository, archive the file again with \
                 \"archive-agent push {}\", and run the same command again.\nHINT: With --discard-unarchived-wal, recovery \
                 stops there, and the restore keeps the file.",
                pgdata.join("pg_wal").join(name.to_string()).display()
            ),
            Self::NotArchived { repository, count, first, other } => {
                let ways = "To keep the whole directory, use --replace. To repair it and keep these files in a directory \
                            beside it, use --delta --discard-unarchived-wal.";
                match other {
                    Some(other) => anyhow!(
                        "WAL files that wait in pg_wal of {shown} are not in repository \"{repository}\" (count: {count}, the \
                         first is {first}): nothing was changed\nDETAIL: The repository has {other} with other content, so \
                         the file cannot be archived there: this server diverged from the archive, or the file is \
                         damaged.\nHINT: {ways}"
                    ),
                    None => anyhow!(
                        "WAL files that wait in pg_wal of {shown} are not in repository \"{repository}\" (count: {count}, the \
                         first is {first}): nothing was changed\nHINT: Archive them with \"archive-agent run --once\".\nHINT: \
                         {ways}"
                    ),
                }
            }
        }
    }
}

/// Why nothing is done with the directories outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OutsideRefusal {
    /// Where a name leads could not be found out.
    Unread { name: PathBuf },
    /// One place would lie within another one, or be it.
    WithinEachOther { outer: PathBuf, inner: PathBuf },
    /// A place and a repository would lie within each other.
    WithRepository { place: PathBuf, repository: PathBuf },
    /// A place would lie within another data directory.
    WithinData { place: PathBuf, data: PathBuf },
    /// Root must not fill it for another user.
    Barred { why: String },
    /// Another data directory uses it.
    Used(UsedDirectory),
    /// Something is in the way there that is not the data directory's.
    InUse { directory: PathBuf, in_use: InUse },
    /// A server may be using it that cannot be seen.
    Hidden { directory: PathBuf, reason: Reason },
    /// Whether one can be seen could not be found out.
    Unseen { directory: PathBuf, error: String },
    /// It has to be moved aside, and cannot be.
    Fixed { directory: PathBuf, immovable: Immovable },
    /// What lies where replay creates a tablespace could not be found out.
    UnreadLocation { location: PathBuf, error: String },
}

impl OutsideRefusal {
    /// Says it. Why a name could not be followed is in the state that was decided about.
    pub(super) fn explain_from(self, state: OutsideState) -> anyhow::Error {
        if let Self::Unread { name } = &self {
            let other = state.others.into_iter().find(|other| other.name == *name);
            if let Some(error) = other.and_then(|other| other.found.err()) {
                return anyhow::Error::from(error).context(name.display().to_string());
            }
        }
        self.explain()
    }

    /// Says it.
    pub(super) fn explain(self) -> anyhow::Error {
        let another = "nothing was changed\nHINT: Choose another place.";
        match self {
            Self::Unread { name } => anyhow!("{} could not be read: nothing was changed", name.display()),
            Self::WithinEachOther { outer, inner } => anyhow!(
                "{} and {} would overlap: nothing was changed\nHINT: Choose other places with --tablespace \
                 OLD=NEW, --wal-dir or --extra-dir.",
                outer.display(),
                inner.display()
            ),
            Self::WithRepository { place, repository } => {
                anyhow!("{} and the repository {} overlap: {another}", place.display(), repository.display())
            }
            Self::WithinData { place, data } => anyhow!(
                "{} lies within {}, which is a data directory of its own: {another}",
                place.display(),
                data.display()
            ),
            Self::Barred { why } => anyhow!(why),
            Self::Used(UsedDirectory { directory, data, runs: true }) => anyhow!(
                "{} is in use by the server that runs on {}: nothing was changed\nHINT: Choose another place with \
                 --tablespace OLD=NEW or --wal-dir.",
                directory.display(),
                data.display()
            ),
            Self::Used(UsedDirectory { directory, data, runs: false }) => anyhow!(
                "{0} belongs to the data directory {1}: nothing was changed\nDETAIL: A copy of a data directory has the \
                 original's links, so the restore would overwrite what {1} needs.\nHINT: Choose another place with --tablespace \
                 OLD=NEW or --wal-dir, or restore into {1} itself. If {1} is no longer needed, delete it first.",
                directory.display(),
                data.display()
            ),
            Self::InUse { directory, in_use } => anyhow!(in_use.explain(&directory)),
            Self::Hidden { directory, reason } => anyhow!(
                "{}: nothing was changed, because a PostgreSQL server may be using it: the data directory whose link leads there may \
                 be a copy, and {reason}",
                directory.display()
            ),
            Self::Unseen { directory: path, error } | Self::UnreadLocation { location: path, error } => {
                anyhow!(error).context(path.display().to_string())
            }
            Self::Fixed { directory, immovable } => immovable.explain(&directory),
        }
    }

    /// Why the place is not used, with its causes, for a restore that does without it: neither what was changed nor what to do.
    pub(super) fn reason(self) -> String {
        match self {
            Self::Hidden { directory, reason } => format!(
                "a PostgreSQL server may be using {}: {}",
                directory.display(),
                Diagnostic::new(reason.to_string()).message()
            ),
            other => Diagnostic::new(walpoint_words::format_chain(&other.explain())).message().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_repository_has_undamaged_is_said_of_those_that_were_read() {
        let (name, read) = ("000000010000000000000002".parse().unwrap(), "\"near\"".to_owned());
        let text = Refusal::StoredDamaged { name, read }.explain(Path::new("/data")).to_string();
        assert!(text.starts_with("no repository that was read (\"near\") has"), "{text}");
        assert!(text.contains("archive-agent push /data/pg_wal/000000010000000000000002"), "{text}");
    }
}
