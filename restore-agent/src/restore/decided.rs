//! What lies where a cluster is to be restored, and whether that may be repaired or moved aside.
//!
//! Nothing is changed here. Without `--delta` or `--replace` only an empty directory and what an interrupted restore left
//! are written to. With them a data directory has to be one, no server may run on it, and what lies outside it has to be
//! its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use jiff::Timestamp;
use walpoint_base::WalFileName;

use super::aside::{self, Record};
use super::directory::{self, Contents, DirectoryError, MARKER};
use super::existing::{self, Existing};
use super::layout::Layout;
use super::named::Named;
use super::owners::Owner;
use super::reach;
use super::running::{self, LockFile};
use super::stored::NotStored;
use crate::plan::Planned;

/// What is to become of a data directory that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestoreMode {
    /// There must be none.
    New,
    /// It is repaired.
    Delta {
        /// Whosever it is, and whatever is lost with it.
        force: bool,
    },
    /// It is moved aside.
    Replace,
}

/// What a server writes when it starts; no backup has it.
const SERVER_OPTIONS: &str = "postmaster.opts";

/// What was found.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) mode: RestoreMode,
    /// Whether the person who restores says that no server runs there.
    vouched: bool,
    pub(crate) contents: Contents,
    /// The data directory that is there, or that was before an interrupted run moved it aside.
    pub(crate) existing: Option<Existing>,
    /// What a server that does not run any more left there.
    crashed: Option<LockFile>,
    /// For whom root acts.
    pub(crate) user: Option<Owner>,
}

impl Decided {
    /// Looks, and refuses what may not be written to. `vouched`: the person who restores says that no server runs there.
    pub(crate) fn look(pgdata: &Path, mode: RestoreMode, vouched: bool) -> anyhow::Result<Self> {
        let shown = pgdata.display();
        let crashed = directory::require_down(pgdata, vouched)?;
        let mut contents = directory::inspect(pgdata)?;
        // A server that started there has made the restored cluster one of its own; it takes the label away. A repair leaves
        // an earlier server's file until it removes what the backup does not have.
        let started = pgdata.join(SERVER_OPTIONS).exists();
        let used = match &contents {
            Contents::Finished(_) => started || !pgdata.join("backup_label").exists(),
            Contents::Unfinished(marker) => started && !marker.delta,
            Contents::Empty | Contents::Occupied(_) => false,
        };
        if used {
            contents = Contents::Occupied(if started { SERVER_OPTIONS } else { MARKER }.to_owned());
        }
        let existing = match (&contents, mode) {
            (Contents::Occupied(example), RestoreMode::New) => {
                return Err(
                    DirectoryError::NotEmpty { pgdata: pgdata.to_owned(), example: example.clone() }.into()
                );
            }
            (Contents::Unfinished(marker), RestoreMode::New | RestoreMode::Replace) if marker.delta => bail!(
                "{shown} holds an unfinished restore --delta of backup {}, which only --delta can finish; nothing was changed",
                marker.backup
            ),
            (_, RestoreMode::New) | (Contents::Finished(_), _) => None,
            (Contents::Empty | Contents::Unfinished(_), RestoreMode::Replace) => before(pgdata)?,
            (_, RestoreMode::Delta { .. } | RestoreMode::Replace) => {
                Existing::look(pgdata).with_context(|| shown.to_string())?
            }
        };
        if let (Contents::Occupied(example), None) = (&contents, &existing) {
            bail!(
                "{shown} is not empty (it holds {example:?}) and is no data directory of PostgreSQL: it has no PG_VERSION; give an \
                 empty or a new directory: nothing was changed"
            );
        }
        Ok(Self { mode, vouched, contents, existing, crashed, user: None })
    }

    /// Says for whom root acts.
    pub(crate) fn act_for(&mut self, user: Option<Owner>) {
        self.user = user;
        if let Some(existing) = &mut self.existing {
            existing.user = user;
        }
    }

    /// Refuses a directory that only a link proves to belong to the data directory, where a server could hide: the data
    /// directory may be a copy, whose links lead to the original's directories.
    pub(crate) fn require_visible(&self, directory: &Path) -> anyhow::Result<()> {
        if self.vouched {
            return Ok(());
        }
        match running::hidden(directory).with_context(|| directory.display().to_string())? {
            None => Ok(()),
            Some(reason) => bail!(
                "{}: a PostgreSQL server may be using it, if the data directory whose link leads there is a copy, and {reason}: \
                 nothing was changed",
                directory.display()
            ),
        }
    }

    /// Looks again, later.
    pub(crate) fn look_again(&self, pgdata: &Path) -> anyhow::Result<Self> {
        Self::look(pgdata, self.mode, self.vouched)
    }

    /// Logs whose word was taken for it that the server is down.
    pub(crate) fn log_crashed(&self, pgdata: &Path) {
        if let Some(file) = &self.crashed {
            let why = if self.vouched { "--server-is-down says so" } else { "no process works there" };
            tracing::warn!(
                "{}: its postmaster.pid is present ({file}); the server is taken for crashed, because {why}",
                pgdata.display()
            );
        }
    }

    /// Whether what is there may only be repaired if it is the plan's cluster's, and if that loses nothing.
    fn is_to_be_proven(&self) -> bool {
        matches!((&self.contents, self.mode), (Contents::Occupied(_), RestoreMode::Delta { force: false }))
    }

    /// The data directory whose `pg_wal` may hold what no archive has, where it lies now. One that is moved aside, or that an
    /// interrupted restore had moved, is another cluster's if its `pg_control` says so; a damaged one says nothing.
    pub(super) fn old(&self, pgdata: &Path, planned: &Planned) -> Option<PathBuf> {
        let own = planned.lineage.system_id();
        let may_be_own = |existing: &Existing| existing.system_id.is_none_or(|found| found == own);
        match (self.mode, &self.contents) {
            (RestoreMode::Delta { .. }, _) => Some(pgdata.to_owned()),
            (RestoreMode::Replace, Contents::Occupied(_)) => {
                self.existing.as_ref().is_some_and(may_be_own).then(|| pgdata.to_owned())
            }
            (RestoreMode::Replace, _) | (RestoreMode::New, Contents::Unfinished(_)) => {
                let aside = replaced(pgdata)?.aside;
                let existing = Existing::look(&aside).ok()??;
                may_be_own(&existing).then_some(aside)
            }
            (RestoreMode::New, _) => None,
        }
    }

    /// Refuses to repair another cluster's directory.
    pub(crate) fn prove_cluster(&self, pgdata: &Path, planned: &Planned) -> anyhow::Result<()> {
        let Some(existing) = self.existing.as_ref().filter(|_| self.is_to_be_proven()) else {
            return Ok(());
        };
        let shown = pgdata.display();
        let wanted = planned.lineage.system_id();
        match existing.system_id {
            Some(found) if found == wanted => Ok(()),
            Some(found) => bail!(
                "{shown} is the data directory of another cluster (system identifier {found}, the backup's is {wanted}); --replace \
                 keeps it, --delta --force overwrites it: nothing was changed"
            ),
            None => bail!(
                "{shown}: whose data directory it is cannot be told, because its global/pg_control is missing or damaged; \
                 --replace keeps it, --delta --force repairs it whosever it is: nothing was changed"
            ),
        }
    }

    /// Refuses to repair a directory whose `pg_wal` holds files that wait for the archive, while no archive has them.
    pub(super) async fn prove_archived(&self, pgdata: &Path, not_stored: &NotStored) -> anyhow::Result<()> {
        if !self.is_to_be_proven() {
            return Ok(());
        }
        let shown = pgdata.display();
        let waiting = existing::waiting(pgdata).with_context(|| shown.to_string())?;
        let lost = not_stored.among(pgdata, waiting).await?;
        let Some(first) = lost.first() else { return Ok(()) };
        let repository = not_stored.copies.first().repository().name();
        let ways = "--replace keeps the whole directory, --delta --force repairs it and keeps these files in a directory beside it";
        // Of an incomplete segment there may be several copies.
        let only_one = |name: &&WalFileName| !matches!(name, WalFileName::Partial(_));
        let differs = lost.iter().filter(only_one).find(|name| not_stored.here.differ.contains(*name));
        match differs {
            Some(other) => bail!(
                "{shown}: files of WAL wait in its pg_wal that are not in repository \"{repository}\": {} (the first is {first}); under the \
                 name {other} it has other content: this server went another way than the archive, or the file is damaged, and it cannot \
                 be archived there; {ways}: nothing was changed",
                lost.len()
            ),
            None => bail!(
                "{shown}: files of WAL wait in its pg_wal that are not in repository \"{repository}\": {} (the first is {first}); archive \
                 them with \"archive-agent run --once\"; {ways}: nothing was changed",
                lost.len()
            ),
        }
    }

    /// Refuses directories outside PGDATA that are in use. What has to be moved aside, if that is the way: each directory
    /// with its link.
    pub(crate) fn check_others(
        &self,
        layout: &Layout,
        named: &Named,
    ) -> anyhow::Result<Vec<(PathBuf, Option<PathBuf>)>> {
        let pgdata = layout.pgdata();
        let mut others = Vec::new();
        for other in layout.others() {
            if !directory::belongs_to(&other, pgdata, self.user) {
                reach::check(&other, named.has(&other), self.user).map_err(|e| anyhow::anyhow!(e))?;
            }
            others.push(directory::resolve(&other).with_context(|| other.display().to_string())?);
        }
        if self.mode != RestoreMode::New
            && let Some((directory, server)) = existing::used_by_another_server(pgdata, &others)
        {
            bail!(
                "{} is in use by the server that runs on {}; choose another place with --tablespace OLD=NEW or --wal-dir: nothing \
                 was changed",
                directory.display(),
                server.display()
            );
        }
        others.retain(|other| !directory::belongs_to(other, pgdata, self.user));
        let link_to = |other: &Path| match self.mode {
            RestoreMode::New => None,
            RestoreMode::Delta { .. } | RestoreMode::Replace => self.existing.as_ref()?.link_to(other),
        };
        // Moving loses nothing, and an earlier restore made it by itself.
        let beside = |other: &Path| self.mode == RestoreMode::Replace && other == default_extra(pgdata);
        let in_the_way = aside::in_the_way(&others, link_to, beside).map_err(|e| anyhow::anyhow!(e))?;
        for (directory, link) in &in_the_way {
            if link.is_some() {
                self.require_visible(directory)?;
            }
        }
        Ok(in_the_way)
    }

    /// How the data directory will be moved aside, if it will.
    pub(crate) fn replacement(
        &self,
        pgdata: &Path,
        in_the_way: Vec<(PathBuf, Option<PathBuf>)>,
    ) -> anyhow::Result<Option<Record>> {
        match (&self.contents, self.mode) {
            (Contents::Occupied(_), RestoreMode::Replace) => {
                Record::plan(pgdata, in_the_way, None, Timestamp::now()).map(Some)
            }
            (Contents::Empty | Contents::Unfinished(_), RestoreMode::Replace) => {
                // An earlier run had moved the data directory and not yet all that belongs to it.
                let record = aside::latest(pgdata)?.filter(|record| !record.is_complete());
                let waits = |directory: &Path| {
                    record.as_ref().is_some_and(|record| record.pending().any(|pending| pending == directory))
                };
                match in_the_way.iter().find(|(directory, _)| !waits(directory)) {
                    Some((other, _)) => {
                        directory::require_empty(other).map_err(|e| anyhow::anyhow!(e)).map(|()| None)
                    }
                    None => Ok(record),
                }
            }
            _ => Ok(None),
        }
    }
}

/// Where what lay outside the data directory goes unless told otherwise.
pub(crate) fn default_extra(pgdata: &Path) -> PathBuf {
    let mut beside = pgdata.as_os_str().to_owned();
    beside.push(".extra");
    PathBuf::from(beside)
}

/// What was replaced.
pub(crate) fn replaced(pgdata: &Path) -> Option<Record> {
    aside::latest(pgdata).ok()?
}

/// The data directory that an earlier run moved aside, with everything under the names it had.
fn before(pgdata: &Path) -> anyhow::Result<Option<Existing>> {
    let Some(record) = aside::latest(pgdata)? else { return Ok(None) };
    let existing = Existing::look(&record.aside).with_context(|| record.aside.display().to_string())?;
    Ok(existing.map(|existing| existing.renamed(|path| record.original(path))))
}
