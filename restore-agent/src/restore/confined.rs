//! A restore into a new directory whose server is kept apart from the original: it runs beside it, and nothing of the original's
//! configuration has any effect in it.
//!
//! What always holds: `pg_control` appears only after the configuration files were replaced, so no server ever starts here with the
//! settings of the original. Tablespaces lie inside the data directory; recovery that would create one elsewhere is refused before
//! anything is written. A crash leaves an unfinished restore, which cannot start.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use walpoint_base::diagnostic::shown;
use walpoint_base::{durable, user};
use walpoint_plan::restore::RestoreRequest;
use walpoint_repo::backup::Backups;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;

use super::beneath::Anchor;
use super::decided::Decided;
use super::owners::{Owner, Owners};
use super::prepare::owner_of_root;
use super::stand_in::StandIns;
use super::start::ConfigurationFiles;
use super::started::StartArgs;
use super::steps::RestoreMode;
use super::{Restore, RestoreArgs};
use crate::plan::Planned;
use crate::settings;
use crate::target::TargetArgs;

/// Configuration files of a data directory, each with its text.
pub(crate) type ConfigurationTexts = Vec<(&'static str, String)>;

/// Makes the configuration files of a confined server. Given is the configuration of the original, as one text.
pub(crate) type Confine = Arc<dyn Fn(&str) -> ConfigurationTexts + Send + Sync>;

/// What is looked at before the first byte is written. Given is who gets the files, if not this process's user.
pub(crate) type Proof<'a> = &'a (dyn Fn(Option<Owner>) -> anyhow::Result<()> + Sync);

/// A restore that is confined.
pub(crate) struct ConfinedRestore<'a> {
    /// The options that chose the target.
    pub(crate) target: &'a TargetArgs,
    /// What they mean.
    pub(crate) request: &'a RestoreRequest,
    /// The new data directory.
    pub(crate) pgdata: PathBuf,
    /// Where files from outside the data directory go.
    pub(crate) extra: PathBuf,
    /// Makes the configuration.
    pub(crate) confine: Confine,
    /// What is proven first.
    pub(crate) prove: Proof<'a>,
}

impl fmt::Debug for ConfinedRestore<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfinedRestore").field("pgdata", &self.pgdata).finish_non_exhaustive()
    }
}

/// What was restored.
#[derive(Debug)]
pub(crate) struct ConfinedCluster {
    /// The plan that was carried out; another one than at first if a backup was damaged.
    pub(crate) planned: Planned,
    /// Who owns the files, if not this process's user.
    pub(crate) owner: Option<Owner>,
    /// The number of files that were written.
    pub(crate) file_count: u64,
    /// The size of what was written.
    pub(crate) written_bytes: u64,
}

impl ConfinedRestore<'_> {
    /// Carries out the plan. A damaged backup is replaced as `restore` does.
    pub(crate) async fn run(
        &self,
        common: &CommonArgs,
        mut planned: Planned,
    ) -> Result<ConfinedCluster, Failure> {
        let args = self.arguments();
        let mut stand_ins = StandIns::default();
        loop {
            match Box::pin(self.attempt(common, &args, planned.clone())).await {
                Ok(restored) => return Ok(restored),
                Err(error) => {
                    planned = stand_ins.instead(common, self.request, &planned, error.into()).await?;
                }
            }
        }
    }

    async fn attempt(
        &self,
        common: &CommonArgs,
        args: &RestoreArgs,
        planned: Planned,
    ) -> anyhow::Result<ConfinedCluster> {
        let decided = Decided::look(&self.pgdata, RestoreMode::New, false)?;
        let prepared = Restore::prepare(common, args, planned.clone(), self.pgdata.clone(), decided).await?;
        if let Some((location, lsn)) = prepared.created.first() {
            bail!(
                "at {lsn} replay creates a tablespace in {}, outside the scratch directory: nothing was restored\nDETAIL: Replay \
                 uses the directory in the WAL record, wherever a restore puts the other tablespaces.\nHINT: Take a new backup, \
                 which has the tablespace, or recover to a moment before it (--target-lsn {lsn} --target-exclusive).",
                shown(&location.to_string_lossy())
            );
        }
        (self.prove)(prepared.owner)?;
        let owner = prepared.owner;
        let restore = Restore { confine: Some(Arc::clone(&self.confine)), ..prepared };
        let report = restore.execute(common, args, &mut None).await?;
        let (file_count, written_bytes) = report.written();
        Ok(ConfinedCluster { planned, owner, file_count, written_bytes })
    }

    /// The options of `restore` that stand for it.
    fn arguments(&self) -> RestoreArgs {
        RestoreArgs {
            target: self.target.clone(),
            pgdata: self.pgdata.clone(),
            tablespaces: Vec::new(),
            tablespace_dir: None,
            flatten_tablespaces: true,
            wal_dir: None,
            extra_dir: Some(self.extra.clone()),
            delta: false,
            replace: false,
            if_empty: false,
            target_action: None,
            standby: false,
            resume_archiving: false,
            discard_unarchived_wal: false,
            overwrite_other_cluster: false,
            server_is_down: false,
            start: StartArgs::default(),
            dry_run: false,
            max_rate: None,
            pre_command: None,
            post_command: None,
        }
    }
}

/// Who will own the files of a restore, if not this process's user.
pub(crate) async fn owner_of(planned: &Planned) -> anyhow::Result<Option<Owner>> {
    if user::effective() != 0 {
        return Ok(None);
    }
    let reader = Backups::of(&planned.files_from, &planned.cluster).open(planned.plan.backup.id).await?;
    let facts = &reader.manifest().summary.facts;
    let owners = Owners::of_backup(&facts.users, &facts.groups)?;
    Ok(owner_of_root(&reader, &owners).await?.0)
}

/// Replaces the configuration files of a restored data directory. `original`: what these say.
pub(super) fn replace_configuration(
    data: &Anchor,
    files: &ConfigurationFiles,
    confine: &Confine,
    owner: Option<Owner>,
) -> anyhow::Result<()> {
    let main = files.main.clone().unwrap_or_else(|| data.path().join("postgresql.conf"));
    let texts = confine(&settings::configuration_of(&main, data.path()));
    // What ALTER SYSTEM set would override all of it.
    let automatic = data.path().join("postgresql.auto.conf");
    durable::remove(&automatic).with_context(|| not_replaced(data, "postgresql.auto.conf"))?;
    for (name, text) in texts {
        let path = data.path().join(name);
        durable::replace(&path, text.as_bytes(), 0o600).with_context(|| not_replaced(data, name))?;
        if let Some(owner) = owner {
            owner.give(&path).with_context(|| not_replaced(data, name))?;
        }
    }
    Ok(())
}

fn not_replaced(data: &Anchor, name: &str) -> String {
    format!("could not replace the configuration file {name} of {}", data.path().display())
}
