//! Why nothing is stored in a repository.
//!
//! Each error says on which repository or file, and what to do next. One that another attempt may cure is transient; all
//! others are for a person.

use std::io;
use std::path::PathBuf;

use walpoint_base::timeline::HistoryError;
use walpoint_base::{ClusterName, LineageId, WalFileName};
use walpoint_pg::wal::WalIdentity;
use walpoint_storage::RepoError;
use walpoint_storage::error::Remedy;

use super::split_brain::SplitBrain;
use crate::same_place::SamePlace;

/// Why nothing was stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// The repository failed.
    #[error("{advised}", advised = walpoint_words::error(.0))]
    Repository(#[from] RepoError),
    /// The repository does not know this cluster.
    #[error(
        "repository {repository} does not know cluster {cluster} with system identifier {}\nHINT: If the cluster is new there, \
         register it with \"archive-agent init\". After pg_upgrade or a rebuild with initdb, and for a copy that archives \
         separately, run \"archive-agent init --new-lineage\".", .identity.system_id
    )]
    Unregistered {
        /// The repository's name.
        repository: String,
        /// The cluster's name.
        cluster: ClusterName,
        /// Whose WAL it is.
        identity: WalIdentity,
    },
    /// The cluster was registered as another one.
    #[error("repository {repository}: {what}\nHINT: Register the cluster again with \"archive-agent init\".")]
    Different {
        /// The repository's name.
        repository: String,
        /// What differs.
        what: String,
    },
    /// It is another repository of the configuration, too.
    #[error(transparent)]
    SamePlace(#[from] SamePlace),
    /// Another server's WAL is there.
    #[error("{0}")]
    SplitBrain(Box<SplitBrain>),
    /// A history cannot be used.
    #[error(transparent)]
    History(HistoryError),
    /// What lies here under a history's name is none that PostgreSQL has written to its end.
    #[error(
        "{} is damaged: {flaw}, and PostgreSQL writes no such history\nDETAIL: Neither it nor WAL of timeline {} is stored in \
         repository {repository} before it is whole.\nHINT: {}",
        .path.display(), .name.timeline(), .stored.advice(.name)
    )]
    DamagedHistory {
        /// The history.
        name: WalFileName,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        flaw: &'static str,
        /// The repository's name.
        repository: String,
        /// What the repository has of it.
        stored: StoredHistory,
    },
    /// WAL cannot be stored before its timeline's history, which is nowhere.
    #[error(
        "{name} is neither in pg_wal nor in a repository, so no WAL of timeline {} is stored in repository {repository}: \
         recovery could not find its way there\nHINT: Copy it into pg_wal from a standby or from the server that was \
         promoted. If there never was one (pg_resetwal), run \"archive-agent push --no-ancestors {name}\".", .name.timeline()
    )]
    NoHistory {
        /// The history.
        name: WalFileName,
        /// The repository's name.
        repository: String,
    },
    /// The cluster has several lineages, and nothing shows which of them this server's WAL belongs to.
    #[error(
        "cluster {cluster} has several lineages in repository {repository}, {} is missing, and nothing in {} shows which of \
         them this server's WAL belongs to, so none of it is stored\nHINT: Copy walpoint.lineage from the server that this \
         one was made from or followed. If that has none, write one of these lines into {} by its lineage, which \
         \"archive-agent status\" shows: {}\nHINT: To let a copy archive by itself, run \"archive-agent init --new-lineage\" \
         on it.",
        .binding.display(), .wal.display(), .binding.display(), .lines.join(" or ")
    )]
    UnknownLineage {
        /// The repository's name.
        repository: String,
        /// The cluster's name.
        cluster: ClusterName,
        /// The directory of WAL.
        wal: PathBuf,
        /// The file that would say it.
        binding: PathBuf,
        /// What it could hold.
        lines: Vec<String>,
    },
    /// The number of the server's lineage in other repositories is another server's lineage in this one.
    #[error(
        "lineage {lineage} in repository {repository} is another server's, so nothing of this server is stored there: {what}\n\
         DETAIL: In another repository, lineage {lineage} is this server's, by {}.\nHINT: To begin a lineage that is this server's \
         in all repositories, run \"archive-agent init --new-lineage --even-if-bound\" on it.",
        .binding.display()
    )]
    OthersLineage {
        /// The repository's name.
        repository: String,
        /// The lineage.
        lineage: LineageId,
        /// What shows it.
        what: String,
        /// The file that binds the data directory in the other repository.
        binding: PathBuf,
    },
    /// Nothing shows that this server's WAL does not belong to a lineage whose facts are damaged.
    #[error("{0}")]
    DamagedLineage(String),
    /// A write that was abandoned is still under way.
    #[error(
        "a write that timed out has not returned, so nothing more is stored there until it does\nHINT: Its filesystem hangs, \
         or the network to it: check the mount and its server, or the disk."
    )]
    Hangs,
    /// What was found under the name of a file is there no longer: a person may have moved it away. Nothing is stored of the file then.
    #[error("{name} was there when it was offered, and was gone before it could be read")]
    Vanished {
        /// The file.
        name: WalFileName,
    },
    /// A segment cannot take the place of another copy that was accepted although damaged.
    #[error(
        "{conflict}\nDETAIL: Repository {repository} holds {name} as it was accepted although damaged (push \
         --accept-damaged), and keeps it so: recovery from there cannot pass it.\nHINT: If PostgreSQL waits for it, run \
         \"archive-agent push --skip\" with its path in pg_wal, and take a new backup (archive-agent backup)."
    )]
    StoredDamaged {
        /// The segment.
        name: WalFileName,
        /// The repository's name.
        repository: String,
        /// What was offered, and what is stored.
        conflict: Box<RepoError>,
    },
    /// The data directory does not say who the server is.
    #[error("{0}")]
    Server(String),
    /// Something beside the WAL cannot be read.
    #[error("{} cannot be read: {source}", .path.display())]
    Local {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a repository has of a history that is damaged here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoredHistory {
    /// Another content, which may be the whole one.
    Other,
    None,
}

impl StoredHistory {
    fn advice(self, name: &WalFileName) -> String {
        match self {
            Self::Other => format!(
                "The repository has one of that name: look at it (restore-agent fetch {name} /tmp/{name}), and put it in the \
                 place of the damaged one if it is this server's."
            ),
            Self::None => {
                "Copy it into pg_wal from a standby, or from the server that was promoted.".to_owned()
            }
        }
    }
}

impl From<SplitBrain> for TargetError {
    fn from(split: SplitBrain) -> Self {
        Self::SplitBrain(Box::new(split))
    }
}

/// What goes wrong where a file is stored. A damaged object under its name does not become another one: it has to be moved away.
pub(super) fn in_the_way(error: RepoError) -> RepoError {
    match error {
        RepoError::Corrupt { key, what, remedy: None } => {
            RepoError::Corrupt { key, what, remedy: Some(Remedy::MoveAway) }
        }
        other => other,
    }
}

impl TargetError {
    /// Whether trying again soon may help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Repository(error) => error.is_transient(),
            Self::Hangs | Self::Vanished { .. } => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::{PgMajor, SegmentSize, SystemId};

    use super::*;

    #[test]
    fn an_unknown_system_identifier_is_registered_by_what_made_it() {
        let identity = WalIdentity {
            system_id: SystemId(7),
            major: PgMajor::new(17).unwrap(),
            segment_size: SegmentSize::DEFAULT,
        };
        let (repository, cluster) = ("near".to_owned(), "main".parse().unwrap());
        let text = TargetError::Unregistered { repository, cluster, identity }.to_string();
        let way_out = "After pg_upgrade or a rebuild with initdb";
        assert!(text.contains(way_out) && text.contains("init --new-lineage\"."), "{text}");
    }
}
