//! A scratch instance: a cluster at a moment of its past, restored into a directory of its own and run by a private server, to be
//! looked into and thrown away.
//!
//! | module | owns |
//! |---|---|
//! | [`directory`], [`leftover`] | the scratch directory, its mark and its lock; what a killed run left |
//! | [`libraries`] | which preloaded libraries are loaded |
//! | [`configuration`] | the settings of the private server |
//! | [`server`] | starting and stopping it, as PostgreSQL's user |
//! | [`options`] | what a command line says of it |
//! | [`moment`] | the moment that it has reached, as documents have it |
//! | [`recovery`] | waiting until it has reached the target |
//!
//! Programs, users, sessions and positions are those of any server that recovers: [`crate::server`].
//!
//! What always holds: the server listens only on a Unix socket in a directory that PostgreSQL's user alone can enter; it takes no
//! setting of the original that leads outside, archives nothing, follows no primary and no publisher, and runs no job of an extension.
//! Everything that is written lies in the scratch directory. A crash leaves the directory and perhaps the server; the next run in the
//! same place ends and removes both ([`leftover`]), unless the directory was to be kept.

mod configuration;
mod directory;
mod leftover;
mod libraries;
mod moment;
mod options;
mod recovery;
mod server;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tokio::task::JoinHandle;
use walpoint_plan::restore::RestoreRequest;
use walpoint_repo::backup::Backups;
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_storage::store::StoreSettings;

pub(crate) use self::configuration::CLUSTER_NAME;
use self::configuration::ScratchSettings;
use self::directory::ScratchDirectory;
use self::libraries::Preloaded;
pub(crate) use self::moment::Moment;
pub(crate) use self::options::{SCRATCH, ScratchArgs};
use self::recovery::Waiting;
use self::server::Server;
use crate::plan::{self, NoPlan, Planned};
use crate::restore::confined::{self, ConfinedCluster, ConfinedRestore};
use crate::restore::owners::Owner;
use crate::server::{self as servers, Instance, Programs, ServerUser};
use crate::target::TargetArgs;

/// Gives a read-only instance of a cluster at a moment of its past.
pub(crate) trait OpenMoment {
    /// Opens it. Whatever comes of that, [`OpenMoment::close`] ends and removes what was made.
    async fn open(&mut self, planned: Planned) -> Result<Instance, Failure>;

    /// Stops the server; its files remain until [`OpenMoment::close`].
    async fn stop(&mut self) -> anyhow::Result<()>;

    /// Removes everything, or keeps the files if that was asked for. What a person has to know of what is left.
    async fn close(&mut self) -> anyhow::Result<Option<Kept>>;
}

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) struct ScratchRequest {
    /// The options that chose the target.
    pub(crate) target: TargetArgs,
    /// What they mean.
    pub(crate) request: RestoreRequest,
    /// The scratch directory; a fresh one in the configured place if none is given.
    pub(crate) directory: Option<PathBuf>,
    /// Where PostgreSQL's programs are, if that was given.
    pub(crate) bindir: Option<PathBuf>,
    /// Libraries that are preloaded although they may start jobs.
    pub(crate) preload: Vec<String>,
    /// The role whose rights a person's checks have; the superuser's if none is given.
    pub(crate) role: Option<String>,
    /// How long recovery may take.
    pub(crate) recovery_timeout: Duration,
    /// Whether the files are kept.
    pub(crate) keep: bool,
}

/// Files that were kept.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    /// The scratch directory.
    pub(crate) directory: PathBuf,
    /// The command that starts the server again; absent if the restore was not finished.
    pub(crate) start_command: Option<String>,
    /// The directory of its socket.
    pub(crate) socket_directory: PathBuf,
}

/// How long each part took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spans {
    /// Writing the files.
    pub(crate) restore: Duration,
    /// From the start of the server to the target.
    pub(crate) recovery: Duration,
}

/// An instance that is restored into a scratch directory.
#[derive(Debug)]
pub(crate) struct ScratchRestore<'a> {
    common: &'a CommonArgs,
    request: ScratchRequest,
    /// The scratch directory while it is made: an interruption ends what waits for it, and not what makes it.
    making: Option<JoinHandle<anyhow::Result<ScratchDirectory>>>,
    directory: Option<ScratchDirectory>,
    programs: Option<Programs>,
    user: ServerUser,
    server: Option<Server>,
    restored: Option<ConfinedCluster>,
    spans: Spans,
    notes: Vec<String>,
}

impl<'a> ScratchRestore<'a> {
    /// Nothing is done yet.
    pub(crate) fn new(common: &'a CommonArgs, request: ScratchRequest) -> Self {
        Self {
            common,
            request,
            making: None,
            directory: None,
            programs: None,
            user: ServerUser::default(),
            server: None,
            restored: None,
            spans: Spans::default(),
            notes: Vec::new(),
        }
    }

    /// Plans, writing nothing.
    pub(crate) async fn plan(&self) -> Result<Planned, NoPlan> {
        plan::make(self.common, &self.request.request).await
    }

    /// What was restored.
    pub(crate) fn restored(&self) -> Option<&ConfinedCluster> {
        self.restored.as_ref()
    }

    /// The scratch directory, once there is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.directory.as_ref().map(ScratchDirectory::path)
    }

    /// The data directory, once there is one.
    pub(crate) fn pgdata(&self) -> Option<PathBuf> {
        self.directory.as_ref().map(ScratchDirectory::data)
    }

    /// PostgreSQL's programs, once they were found.
    pub(crate) fn programs(&self) -> Option<&Programs> {
        self.programs.as_ref()
    }

    /// Who runs the server.
    pub(crate) fn user(&self) -> &ServerUser {
        &self.user
    }

    /// How long each part took so far.
    pub(crate) fn spans(&self) -> Spans {
        self.spans
    }

    /// Fails unless the server, once stopped, had run until then and shut down in order.
    pub(crate) fn require_shut_down(&self) -> anyhow::Result<()> {
        self.server.as_ref().map_or(Ok(()), Server::require_shut_down)
    }

    /// What a person should know.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Finds PostgreSQL's programs of a plan's version: before anything is restored. Found once.
    pub(crate) async fn find_programs(&mut self, planned: &Planned) -> anyhow::Result<Programs> {
        if let Some(programs) = &self.programs {
            return Ok(programs.clone());
        }
        self.user = self.user_for(planned).await;
        let programs = Programs::find(self.request.bindir.as_deref(), planned.lineage.major, &self.user)?;
        Ok(self.programs.insert(programs).clone())
    }

    /// Makes the scratch directory, after removing what killed runs left in the same place.
    async fn make_directory(&mut self, selection: &Selection<StoreSettings>) -> anyhow::Result<()> {
        let configured = selection.settings.scratch_directory.clone();
        let place = configured.unwrap_or_else(directory::default_place);
        let (given, cluster) = (self.request.directory.clone(), selection.cluster.clone());
        let kept = self.request.keep;
        let made = move || directory::made(given, &place, &cluster, kept);
        self.making = Some(tokio::task::spawn_blocking(made));
        self.made().await
    }

    /// Waits for the scratch directory, if it is being made.
    async fn made(&mut self) -> anyhow::Result<()> {
        let Some(making) = &mut self.making else { return Ok(()) };
        let made = making.await.context("the scratch directory could not be made");
        self.making = None;
        self.directory = Some(made??);
        Ok(())
    }

    /// Who runs programs before anything is restored: the user who will own the files.
    async fn user_for(&self, planned: &Planned) -> ServerUser {
        let owner = confined::owner_of(planned).await.unwrap_or_else(|error| {
            tracing::debug!("the owner of the files is not known yet: {error:#}");
            None
        });
        servers::user_before_restore(owner)
    }

    /// Decides which libraries are loaded, by the configuration in the backup: before anything else of it is read. A backup that cannot be
    /// read may have a stand-in, and the decision is made again with what was restored.
    async fn look_at_libraries(&self, planned: &Planned, programs: &Programs) -> anyhow::Result<()> {
        let configuration = self.configuration(planned).await.unwrap_or_else(|error| {
            tracing::debug!("the configuration in the backup is not known yet: {error:#}");
            String::new()
        });
        let (given, libraries) = (&self.request.preload, programs.libraries(&self.user));
        Preloaded::require(&configuration, given, &libraries)?;
        for left_out in Preloaded::decide(&configuration, given, &libraries).notes() {
            tracing::warn!("{left_out}");
        }
        Ok(())
    }

    async fn configuration(&self, planned: &Planned) -> anyhow::Result<String> {
        let backups = Backups::of(&planned.files_from, &planned.cluster);
        let reader = backups.open(planned.plan.backup.id).await?;
        configuration::in_backup(&reader).await
    }

    /// Restores into the directory.
    async fn restore(&mut self, planned: Planned, programs: &Programs) -> Result<(), Failure> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let settings = ScratchSettings {
            socket_directory: directory.socket(),
            major: planned.lineage.major,
            given: self.request.preload.clone(),
            libraries: programs.libraries(&self.user),
        };
        let notes = Arc::new(Mutex::new(Vec::new()));
        let left = Arc::clone(&notes);
        let confine = move |original: &str| {
            let (texts, notes) = settings.texts(original);
            *left.lock().unwrap_or_else(PoisonError::into_inner) = notes;
            texts
        };
        let prove = |owner: Option<Owner>| {
            directory.make_socket_directory(owner)?;
            ServerUser::of(owner).prove(programs, directory.path(), &directory.socket())
        };
        let restore = ConfinedRestore {
            target: &self.request.target,
            request: &self.request.request,
            pgdata: directory.data(),
            extra: directory.extra(),
            confine: Arc::new(confine),
            prove: &prove,
        };
        let began = Instant::now();
        let restored = Box::pin(restore.run(self.common, planned)).await?;
        self.spans.restore = began.elapsed();
        self.user = ServerUser::of(restored.owner);
        self.restored = Some(restored);
        self.notes = std::mem::take(&mut *notes.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

impl OpenMoment for ScratchRestore<'_> {
    async fn open(&mut self, planned: Planned) -> Result<Instance, Failure> {
        let selection: Selection<StoreSettings> = self.common.select_to_read()?;
        let programs = self.find_programs(&planned).await?;
        self.look_at_libraries(&planned, &programs).await?;
        self.make_directory(&selection).await?;
        self.restore(planned, &programs).await?;
        let began = Instant::now();
        let (Some(directory), Some(restored)) = (&self.directory, &self.restored) else {
            return Err(anyhow!("nothing was restored").into());
        };
        let server = self.server.insert(Server::start(&programs, &self.user, directory)?);
        let waiting = Waiting {
            planned: &restored.planned,
            directory,
            user: &self.user,
            role: self.request.role.as_deref(),
            timeout: self.request.recovery_timeout,
            show_progress: self.common.show_progress(),
        };
        let instance = waiting.wait(server).await?;
        self.spans.recovery = began.elapsed();
        Ok(instance)
    }

    async fn stop(&mut self) -> anyhow::Result<()> {
        match &mut self.server {
            Some(server) => server.stop().await,
            None => Ok(()),
        }
    }

    async fn close(&mut self) -> anyhow::Result<Option<Kept>> {
        self.made().await?;
        let stopped = self.stop().await;
        let Some(directory) = self.directory.take() else { return Ok(None) };
        // What still runs uses the files: a later run removes them.
        stopped?;
        if !self.request.keep {
            let removed = tokio::task::spawn_blocking(move || directory.remove());
            return removed.await.context("the scratch directory could not be removed")?.map(|()| None);
        }
        let start = self.programs.as_ref().filter(|_| self.restored.is_some());
        let start_command = start.map(|programs| self.user.start_command(programs, &directory.data()));
        let socket_directory = directory.socket();
        Ok(Some(Kept { directory: directory.path().to_owned(), start_command, socket_directory }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use jiff::Timestamp;

    use super::*;

    #[tokio::test]
    async fn a_directory_that_is_made_during_an_interruption_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let (at, cluster) = (place.path().to_owned(), "main".parse().unwrap());
        let common = CommonArgs::default();
        let request = ScratchArgs::default().request(&TargetArgs::default(), Timestamp::now());
        let mut scratch = ScratchRestore::new(&common, request.unwrap_or_else(|_| panic!("no request")));
        let (made, wait) = mpsc::channel();
        scratch.making = Some(tokio::task::spawn_blocking(move || {
            wait.recv().unwrap();
            ScratchDirectory::fresh(&at, &cluster, false)
        }));
        let interrupted = tokio::time::timeout(Duration::ZERO, scratch.made()).await;
        assert!(interrupted.is_err() && scratch.path().is_none());
        made.send(()).unwrap();
        assert!(scratch.close().await.unwrap().is_none());
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
