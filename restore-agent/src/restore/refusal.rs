//! Why nothing is done with what lies at the target of a restore, and what to do about it.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use walpoint_base::{SystemId, WalFileName};

use super::directory::{DirectoryError, InUse};
use super::outside_state::OutsideState;
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
                "{shown} is not empty (it holds {example:?}) and is no data directory of PostgreSQL: it has no PG_VERSION: \
                 nothing was changed\nHINT: Give an empty or a new directory."
            ),
            Self::OnlyDelta { backup } => anyhow!(
                "{shown} holds an unfinished restore --delta of backup {backup}, which only --delta can finish: nothing was \
                 changed"
            ),
            Self::OtherRestore { cluster } => anyhow!(
                "{shown} holds the unfinished restore of cluster {cluster} from another repository\nHINT: Empty it first."
            ),
            Self::OtherCluster { found, wanted } => anyhow!(
                "{shown} is the data directory of another cluster (system identifier {found}, the backup's is {wanted}): \
                 nothing was changed\nHINT: --replace keeps it, --delta --overwrite-other-cluster overwrites it."
            ),
            Self::UnknownCluster => anyhow!(
                "{shown}: cannot determine whose data directory it is, because its global/pg_control is missing or damaged: \
                 nothing was changed\nHINT: --replace keeps it, --delta --overwrite-other-cluster repairs it whosever it is."
            ),
            Self::StoredDamaged { name } => anyhow!(
                "{shown}: \"{name}\", which recovery reads, is damaged in every archive that has it, and undamaged in its \
                 pg_wal: nothing was changed\nHINT: Move the damaged object away, archive the file again with \"archive-agent \
                 push {}\", and run the same command again. With --discard-unarchived-wal recovery stops there, and the file \
                 is kept.",
                pgdata.join("pg_wal").join(name.to_string()).display()
            ),
            Self::NotArchived { repository, count, first, other } => {
                let ways = "--replace keeps the whole directory, --delta --discard-unarchived-wal repairs it and keeps these \
                            files in a directory beside it.";
                match other {
                    Some(other) => anyhow!(
                        "{shown}: files of WAL wait in its pg_wal that are not in repository \"{repository}\": {count} (the \
                         first is {first}): nothing was changed\nDETAIL: Under the name {other} it has other content: this \
                         server went another way than the archive, or the file is damaged, and it cannot be archived \
                         there.\nHINT: {ways}"
                    ),
                    None => anyhow!(
                        "{shown}: files of WAL wait in its pg_wal that are not in repository \"{repository}\": {count} (the \
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
    /// A server uses it that runs on another data directory.
    Used { directory: PathBuf, server: PathBuf },
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
                "{} and {} would lie within each other: nothing was changed\nHINT: Choose other places with --tablespace \
                 OLD=NEW, --wal-dir or --extra-dir.",
                outer.display(),
                inner.display()
            ),
            Self::WithRepository { place, repository } => anyhow!(
                "{} and the repository {} lie within each other: {another}",
                place.display(),
                repository.display()
            ),
            Self::WithinData { place, data } => anyhow!(
                "{} lies within {}, which is a data directory of its own: {another}",
                place.display(),
                data.display()
            ),
            Self::Barred { why } => anyhow!(why),
            Self::Used { directory, server } => anyhow!(
                "{} is in use by the server that runs on {}: nothing was changed\nHINT: Choose another place with \
                 --tablespace OLD=NEW or --wal-dir.",
                directory.display(),
                server.display()
            ),
            Self::InUse { directory, in_use } => anyhow!(in_use.explain(&directory)),
            Self::Hidden { directory, reason } => anyhow!(
                "{}: nothing was changed, because a PostgreSQL server may be using it, if the data directory whose link leads \
                 there is a copy, and {reason}",
                directory.display()
            ),
            Self::Unseen { directory: path, error } | Self::UnreadLocation { location: path, error } => {
                anyhow!(error).context(path.display().to_string())
            }
            Self::Fixed { directory, immovable } => immovable.explain(&directory),
        }
    }
}
