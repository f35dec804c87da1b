//! The command `restore`: proves that the target can be reached, then writes a cluster that recovers to it.
//!
//! | module | owns |
//! |---|---|
//! | [`directory`] | what may be written to, and the marker of an unfinished restore |
//! | [`running`], [`identity`] | whether a server runs there; which directory a path leads to |
//! | [`ground`], [`existing`] | whether what is there may be repaired or moved aside |
//! | [`aside`], [`rollback`] | a data directory that was moved aside, and its way back |
//! | [`room`] | free space |
//! | [`tablespaces`] | where tablespaces go |
//! | [`layout`], [`places`] | where every path of the backup leads, and that nothing else lies there |
//! | [`owners`] | who gets the files |
//! | [`reach`], [`named`] | what root may write to for another user, and what the command line names |
//! | [`beneath`] | reaching everything below the places without following a link |
//! | [`copy`], [`sync`] | the files, and that they are durable |
//! | [`prune`], [`compare`] | `--delta`: what does not belong, what is right already |
//! | [`forks`] | what recovery reads at a fork without asking for it |
//! | [`settings`], [`command`] | the recovery settings |
//! | [`origin`] | what the recovery will begin with |
//! | [`finish`] | label, settings, signal, and `pg_control` last |
//! | [`created`] | tablespaces that replay creates |
//! | [`unarchived`], [`kept`] | WAL that no archive has; what a repair keeps |
//! | [`report`] | what is printed at the end |
//! | [`failure`] | what a restore that failed leaves, and what to do about it |
//!
//! Until the last step the directory has no `pg_control`, so a crash anywhere leaves something that PostgreSQL refuses to
//! start; the same command begins anew and finishes.

mod aside;
mod beneath;
mod command;
mod compare;
mod copy;
mod created;
mod directory;
mod existing;
mod failure;
mod files;
mod finish;
mod forks;
mod gather;
mod ground;
mod identity;
mod kept;
mod layout;
mod named;
mod origin;
mod owners;
mod places;
mod prune;
mod reach;
mod report;
pub(crate) mod rollback;
mod room;
mod running;
pub(crate) mod settings;
mod sync;
mod tablespaces;
mod unarchived;

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use jiff::Timestamp;
use rustix::fs::FileType;
use walpoint_base::{PgTimestamp, RecoveryTarget, SecretSource};
use walpoint_pg::label::TablespaceMap;
use walpoint_repo::backup::{BackupReader, Backups, Summary};
use walpoint_repo::keys::KeySource;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_runtime::progress::Progress;

use crate::plan::{self, Planned};
use crate::target::{Action, TargetArgs};
use crate::wal::note::TargetNote;
use crate::wal::origin::Origin;
use crate::wal::spool;
use aside::Record;
use beneath::{Anchor, Roots};
use copy::{Copier, Written};
use created::{Created, Found};
use directory::{Held, Marker, RelativeTime, State};
use existing::Existing;
use finish::Finish;
use ground::{Ground, Way};
use kept::Kept;
use layout::Layout;
use named::Named;
use owners::{Owner, Owners};
use prune::Removed;
use report::Report;
use sync::Filesystems;
use tablespaces::{Mapping, Tablespace, Wishes};
use unarchived::Unarchived;

/// Options of `restore`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// The directory to restore into: new or empty, unless --delta or --replace say what is to become of what is there.
    #[arg(long, value_name = "DIR")]
    pgdata: PathBuf,
    /// Repair the data directory that is there: keep what is right, write what is not, remove what the backup does not have.
    #[arg(long, conflicts_with = "replace")]
    delta: bool,
    /// Move the data directory that is there aside; "restore-agent rollback" puts it back.
    #[arg(long)]
    replace: bool,
    /// With --delta: also over another cluster's data directory, and over WAL that is not in the repository.
    #[arg(long, requires = "delta")]
    force: bool,
    /// Take the server for stopped although its postmaster.pid is present, as after a crash in a container. A server that
    /// can be seen to run is refused all the same.
    #[arg(long)]
    server_is_down: bool,
    /// What PostgreSQL does at the target [default: pause; promote without a target].
    #[arg(long, value_name = "ACTION")]
    target_action: Option<Action>,
    /// Restore a standby: it keeps recovering, and follows its upstream if primary_conninfo is set.
    #[arg(long, conflicts_with = "target_action")]
    standby: bool,
    /// Put one tablespace elsewhere: its oid or its directory, then the new one. Can be repeated.
    #[arg(long = "tablespace", value_name = "OLD=NEW")]
    tablespaces: Vec<Mapping>,
    /// Put all other tablespaces below this directory, each under its oid.
    #[arg(long, value_name = "DIR", conflicts_with = "flatten_tablespaces")]
    tablespace_dir: Option<PathBuf>,
    /// Put all other tablespaces inside the data directory.
    #[arg(long)]
    flatten_tablespaces: bool,
    /// Put pg_wal here, with a link in the data directory [default: inside it].
    #[arg(long, value_name = "DIR")]
    wal_dir: Option<PathBuf>,
    /// Put what lay outside the data directory here [default: beside it, with the suffix .extra].
    #[arg(long, value_name = "DIR")]
    extra_dir: Option<PathBuf>,
    /// Let the restored cluster archive again into the repository it came from: only if the original is gone for good.
    #[arg(long)]
    resume_archiving: bool,
    /// Show the plan and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Run this in a shell before anything is written; a failure ends the restore.
    #[arg(long, value_name = "CMD")]
    before: Option<String>,
    /// Run this in a shell when the cluster is complete.
    #[arg(long, value_name = "CMD")]
    after: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, args: &RestoreArgs) -> Result<(), Failure> {
    // What is wrong with the options is said before the directory is looked at.
    args.target.request(args.target_action, args.standby, Timestamp::now(), None)?;
    let pgdata = directory::resolve(&args.pgdata)?;
    let way = match (args.delta, args.replace) {
        (true, _) => Way::Delta { force: args.force },
        (false, true) => Way::Replace,
        (false, false) => Way::New,
    };
    let ground = Ground::look(&pgdata, way, args.server_is_down)?;
    ground.log_crashed(&pgdata);
    let resolved = resolved_before(&args.target, &ground.state);
    let request = args.target.request(args.target_action, args.standby, Timestamp::now(), resolved)?;
    if let (State::Finished(marker), false) = (&ground.state, args.dry_run) {
        return Ok(end_finished(args, &request.target, &pgdata, marker)?);
    }
    let planned = match plan::make(common, &request).await {
        Ok(planned) => planned,
        Err(no_plan) => return plan::refuse(common, no_plan),
    };
    if args.dry_run {
        return dry_run(common, args, planned, pgdata, ground).await;
    }
    let restore = Restore::prepare(common, args, planned, pgdata, ground).await?;
    let report = restore.execute(common, args).await?;
    report::print(common, &report)
}

/// Prints the plan and what lies where replay creates tablespaces; fails if the restore would refuse.
async fn dry_run(
    common: &CommonArgs,
    args: &RestoreArgs,
    planned: Planned,
    pgdata: PathBuf,
    mut ground: Ground,
) -> Result<(), Failure> {
    let id = planned.plan.backup.id;
    let reader = Backups::of(&planned.repository, &planned.cluster).open(id).await;
    let reader = reader.map_err(|e| failure::unread(id, e.into()))?;
    let summary = reader.manifest().summary.clone();
    let owners = Owners::of_backup(&summary.facts.users, &summary.facts.groups)?;
    let owner = owner_of_root(&reader, &owners).await.map_err(|e| failure::unread(id, e))?.0;
    ground.act_for(owner);
    let created = Created::read(&planned, summary.facts.major).await?;
    let (tablespaces, refusal) = if created.is_empty() {
        (Vec::new(), None)
    } else {
        let layout = lay_out(args, &summary, pgdata.clone(), ground.existing.as_ref())?;
        created.describe(&layout, &ground)?
    };
    plan::print(common, &planned, &tablespaces)?;
    if let Some(refusal) = refusal {
        return Err(anyhow!(refusal).into());
    }
    // Over a finished restore there is nothing to prepare.
    if !matches!(ground.state, State::Finished(_)) {
        Restore::prepare(common, args, planned, pgdata, ground).await?;
    }
    Ok(())
}

/// What a relative target time meant to the interrupted restore that the same command began here.
fn resolved_before(target: &TargetArgs, state: &State) -> Option<PgTimestamp> {
    let (State::Unfinished(marker) | State::Finished(marker)) = state else { return None };
    let before = marker.relative.as_ref().filter(|before| Some(before.text.as_str()) == target.relative())?;
    let meant = PgTimestamp(before.meant);
    tracing::warn!(
        "\"{}\" was {meant} when the interrupted restore began, and is taken for that moment again; for another one give it as \
         --target-time \"…\"",
        before.text
    );
    Some(meant)
}

/// Ends a restore that was killed between its last file and the removal of its marker.
fn end_finished(
    args: &RestoreArgs,
    target: &RecoveryTarget,
    pgdata: &Path,
    marker: &Marker,
) -> anyhow::Result<()> {
    let shown = pgdata.display();
    let wanted = target.to_string();
    if marker.target != wanted {
        bail!(
            "{shown} holds a finished restore of backup {} that recovers to {}, not to {wanted}; start it, or give an empty \
             directory: nothing was changed",
            marker.backup,
            marker.target
        );
    }
    directory::release(pgdata, marker, reach::owner_of(pgdata))?;
    tracing::info!("{shown} holds the finished restore of backup {}; nothing was left to do", marker.backup);
    hook("--after", args.after.as_deref(), pgdata)
}

/// A restore that was found possible.
struct Restore {
    planned: Planned,
    /// What the recovery will begin with.
    origin: Origin,
    reader: BackupReader,
    layout: Arc<Layout>,
    owners: Owners,
    /// Who gets what the restore itself writes.
    owner: Option<Owner>,
    /// The mode that the data directory gets.
    root_mode: u32,
    marker: Marker,
    ground: Ground,
    named: Named,
    /// How what is there will be moved aside.
    replacement: Option<Record>,
    /// Tablespaces that replay creates.
    created: Created,
    /// What lies at their locations.
    found: Found,
    /// WAL of the data directory that is repaired, and in no archive.
    unarchived: Unarchived,
    /// Whether the restored server archives.
    resumes: bool,
    /// Where the configured repositories are that are directories.
    repositories: Vec<PathBuf>,
    settings: Vec<(String, String)>,
}

/// What a restore did.
#[derive(Debug, Default)]
struct Done {
    written: Written,
    removed: Removed,
    kept: Option<Kept>,
}

impl Restore {
    /// Checks everything that can be checked before the first byte is written.
    async fn prepare(
        common: &CommonArgs,
        args: &RestoreArgs,
        planned: Planned,
        pgdata: PathBuf,
        mut ground: Ground,
    ) -> anyhow::Result<Self> {
        if let Some(damage) = &planned.damage {
            tracing::warn!("{damage}");
        }
        ground.prove(&pgdata, &planned).await?;
        let origin = origin::read(common, &planned).await?;
        let backups = Backups::of(&planned.repository, &planned.cluster);
        let unread = |error| failure::unread(planned.plan.backup.id, error);
        let reader = backups.open(planned.plan.backup.id).await.map_err(|e| unread(e.into()))?;
        let summary = reader.manifest().summary.clone();
        let owners = Owners::of_backup(&summary.facts.users, &summary.facts.groups)?;
        let (owner, root_mode) = owner_of_root(&reader, &owners).await.map_err(unread)?;
        ground.act_for(owner);
        let named = Named::by(args, &pgdata);
        let layout = Arc::new(lay_out(args, &summary, pgdata, ground.existing.as_ref())?);
        let marker = Marker {
            repository: planned.repository.id().to_string(),
            cluster: planned.cluster.to_string(),
            backup: planned.plan.backup.id.to_string(),
            target: planned.plan.target.to_string(),
            relative: match (args.target.relative(), &planned.plan.target) {
                (Some(text), RecoveryTarget::Time(meant)) => {
                    Some(RelativeTime { text: text.to_owned(), meant: meant.0 })
                }
                _ => None,
            },
            directories: layout.others(),
            delta: matches!(ground.way, Way::Delta { .. }),
            claiming: false,
        };
        let repositories = places::local_repositories(common)?;
        let places = places::check(&layout, &ground, &marker, &repositories)?;
        let mut in_the_way = ground.check_others(&layout, &named)?;
        if !matches!(ground.state, State::Unfinished(_)) {
            reach::check(layout.pgdata(), named.pgdata, owner).map_err(|e| anyhow!(e))?;
        }
        let mut created = Created::read(&planned, summary.facts.major).await?;
        let mut found = created.look(&layout, &ground)?;
        let mut unarchived = Unarchived::default();
        if let Way::Delta { .. } = ground.way {
            let earlier = kept_before(layout.pgdata(), &ground.state);
            unarchived = Unarchived::find(common, layout.pgdata(), &planned, &earlier).await?;
            let more = created.with(&unarchived.creates);
            match more.look(&layout, &ground) {
                Ok(look) => (created, found) = (more, look),
                Err(error) => unarchived.leave(error.to_string()),
            }
        }
        found.missing.iter().for_each(|missing| tracing::warn!("{missing}"));
        if ground.way == Way::Replace {
            in_the_way.extend(found.ours.iter().map(|directory| (directory.clone(), None)));
        }
        let replacement = ground.replacement(layout.pgdata(), in_the_way)?;
        room::check(&reader, &layout, &planned.plan, &ground).await.map_err(unread)?;
        let source = command::Source {
            config: common.config_path().map(std::path::absolute).transpose()?,
            repo: common.repo.clone(),
            key_file: key_file(&planned),
            cluster: planned.cluster.to_string(),
        };
        if let Some(owner) = owner {
            // What is missing will be made for that user.
            let parents = places.iter().filter_map(|place| place.ancestors().skip(1).find(|a| a.exists()));
            owners::prove_usable(
                owner,
                &plan::probe_arguments(
                    source.config.as_deref(),
                    source.repo.as_deref(),
                    &planned.cluster,
                    parents,
                ),
            )?;
        }
        let mut settings = vec![("restore_command".to_owned(), command::restore_command(&source))];
        if !args.resume_archiving {
            settings.push(("archive_mode".to_owned(), "off".to_owned()));
        }
        settings.extend(planned.plan.settings.iter().map(|s| (s.name.to_owned(), s.value.clone())));
        Ok(Self {
            planned,
            origin,
            reader,
            layout,
            owners,
            owner,
            root_mode,
            marker,
            ground,
            named,
            replacement,
            created,
            found,
            unarchived,
            resumes: args.resume_archiving,
            repositories,
            settings,
        })
    }

    async fn execute(self, common: &CommonArgs, args: &RestoreArgs) -> anyhow::Result<Report> {
        let began = Instant::now();
        let pgdata = self.layout.pgdata().to_owned();
        hook("--before", args.before.as_deref(), &pgdata)?;
        let _held = self.take_place(&pgdata)?;
        let kept = match self.ground.way {
            Way::Delta { .. } => {
                let now = Timestamp::now();
                Kept::keep(&pgdata, &self.unarchived.names, &self.found.ours, now, self.owner)?
            }
            Way::New | Way::Replace => None,
        };
        let roots = Arc::new(self.claim(&pgdata)?);
        kept.iter().try_for_each(|kept| kept.rename(self.owner))?;
        // Before the first byte: only then it is told what cannot be written.
        let directories = self.marker.directories.iter().map(PathBuf::as_path);
        let filesystems = Arc::new(Filesystems::open(directories.chain([pgdata.as_path()]))?);
        let incomplete = |error| failure::incomplete(&pgdata, error);
        let removed = match self.ground.way {
            Way::Delta { .. } => {
                prune::prune(&self.reader, &self.layout, &roots).await.map_err(incomplete)?
            }
            Way::New | Way::Replace => Removed::default(),
        };
        let total = self.reader.manifest().summary.totals.blocks * self.reader.block_size().bytes();
        let progress = Progress::bytes("restoring", total, common.show_progress());
        let copier = Copier {
            reader: self.reader.clone(),
            layout: Arc::clone(&self.layout),
            owners: self.owners.clone(),
            progress: progress.clone(),
            delta: self.marker.delta,
            roots: Arc::clone(&roots),
            filesystems,
        };
        let written = copier.copy().await;
        progress.end();
        let written = written.map_err(incomplete)?;
        if let Some(extra) = self.layout.extra() {
            walpoint_base::durable::sync_directory(extra)?;
        }
        self.leave_target(&roots)?;
        let wal = self.wal_directory();
        let anchor = roots.anchor(&wal).with_context(|| wal.display().to_string())?;
        let explain = |error| anchor.explain(error);
        origin::leave(&self.origin, anchor.path(), self.owner).map_err(explain)?;
        let data = roots.anchor(&pgdata).with_context(|| pgdata.display().to_string())?;
        origin::bind(&self.origin, &self.planned, data.path(), self.owner)
            .await
            .map_err(|error| data.explain(error))?;
        let archive = self.planned.repository.wal_to_read(&self.planned.lineage).await?;
        forks::write(&archive, &self.planned.plan, anchor.path(), self.owner).await.map_err(explain)?;
        let size = self.planned.lineage.segment_size;
        self.unarchived
            .put(kept.as_ref(), anchor.path(), self.owner, size, args.resume_archiving)
            .map_err(explain)?;
        self.finish(&pgdata, &roots)?;
        hook("--after", args.after.as_deref(), &pgdata)?;
        Ok(self.report(args, &Done { written, removed, kept }, began.elapsed()))
    }

    /// Makes the directory that is written to what it has to be: there, nobody else's, and empty unless it is repaired.
    fn take_place(&self, pgdata: &Path) -> anyhow::Result<Held> {
        // What is there is held too until it is out of the way.
        let old = pgdata.exists().then(|| directory::hold(pgdata)).transpose()?;
        // Planning takes a while, and --before may do anything: mount a filesystem, say.
        if self.ground.look_again(pgdata)?.state != self.ground.state {
            bail!("{} is not what it was when the restore began; nothing was changed", pgdata.display());
        }
        places::check(&self.layout, &self.ground, &self.marker, &self.repositories)?;
        self.ground.check_others(&self.layout, &self.named)?;
        if self.created.look(&self.layout, &self.ground)? != self.found {
            bail!(
                "where replay creates tablespaces something else lies than when the restore began; nothing was changed"
            );
        }
        if let Some(record) = &self.replacement {
            record.go()?;
            tracing::info!("what was in {} lies in {}", pgdata.display(), record.aside.display());
        }
        self.open_data(pgdata)?;
        let held = match old {
            Some(held) if self.replacement.is_none() => held,
            _ => directory::hold(pgdata)?,
        };
        if let State::Unfinished(earlier) = &self.ground.state {
            let claimed =
                |other: &PathBuf| Some((other.clone(), directory::claimed(other, pgdata, self.owner)?));
            let ours = earlier.directories.iter().filter_map(claimed);
            if self.marker.delta {
                tracing::info!("an earlier restore into {} was interrupted; it goes on", pgdata.display());
                for (_, anchor) in ours.filter(|(other, _)| !self.marker.directories.contains(other)) {
                    directory::disown(&anchor)?;
                }
            } else {
                tracing::info!(
                    "an earlier restore into {} was interrupted; it is begun anew",
                    pgdata.display()
                );
                for (_, anchor) in ours {
                    directory::clear(&anchor)?;
                    directory::disown(&anchor)?;
                }
                let own = Anchor::open(pgdata).with_context(|| pgdata.display().to_string())?;
                own.require_ours(self.owner).with_context(|| pgdata.display().to_string())?;
                directory::clear(&own)?;
            }
        }
        Ok(held)
    }

    /// Marks the directories as this restore's and opens them: from then on everything is reached from there. As root, the
    /// data directory and `pg_wal` are taken from their owner until the end, so that nobody changes what lies directly in them.
    fn claim(&self, pgdata: &Path) -> anyhow::Result<Roots> {
        let shown = |path: &Path| path.display().to_string();
        let own = self.open_data(pgdata)?;
        own.require_ours(self.owner).with_context(|| shown(pgdata))?;
        let mut open = vec![(pgdata.to_owned(), own.directory().try_clone()?.into())];
        for other in &self.marker.directories {
            let ours = |directory: &File| {
                let anchor = directory.try_clone().map(|directory| Anchor::of(directory, other));
                anchor.is_ok_and(|a| directory::is_claimed(&a, pgdata, self.owner).is_ok_and(|ours| ours))
            };
            let made = reach::make(other, self.named.has(other), self.owner, ours);
            open.push((other.clone(), made.with_context(|| shown(other))?));
        }
        let roots = Roots::of(open);
        if self.owner.is_some() {
            own.give(Some(Owner { uid: 0, gid: 0 }), 0o700).with_context(|| shown(pgdata))?;
        }
        directory::claim(own.path(), &self.marker).map_err(|error| own.explain(error.into()))?;
        for other in &self.marker.directories {
            let anchor = roots.anchor(other).with_context(|| shown(other))?;
            anchor.require_ours(self.owner).with_context(|| shown(other))?;
            directory::claim_other(anchor.path(), pgdata).map_err(|error| anchor.explain(error.into()))?;
        }
        let wal = self.wal_directory();
        if self.owner.is_some() && (roots.is_root(&wal) || roots.kind(&wal)? == Some(FileType::Directory)) {
            roots.anchor(&wal)?.give(Some(Owner { uid: 0, gid: 0 }), 0o700).with_context(|| shown(&wal))?;
        }
        Ok(roots)
    }

    /// Opens the data directory, and makes it if it is missing.
    fn open_data(&self, pgdata: &Path) -> anyhow::Result<Anchor> {
        // One that an interrupted restore took from its owner is root's.
        let ours = |_: &File| matches!(self.ground.state, State::Unfinished(_));
        let open = reach::make(pgdata, self.named.pgdata, self.owner, ours);
        Ok(Anchor::of(open.with_context(|| pgdata.display().to_string())?.into(), pgdata))
    }

    /// The version that will run.
    fn major(&self) -> u8 {
        self.reader.manifest().summary.facts.major.get()
    }

    /// Where `pg_wal` lies.
    fn wal_directory(&self) -> PathBuf {
        self.layout.wal().map_or_else(|| self.layout.pgdata().join("pg_wal"), Path::to_owned)
    }

    /// Leaves the target for the prefetcher, so that it does not fetch beyond it.
    fn leave_target(&self, roots: &Roots) -> anyhow::Result<()> {
        let plan = &self.planned.plan;
        let last =
            plan.wal.last().map(|range| range.last.name(range.timeline, self.planned.lineage.segment_size));
        // Without a stop, recovery goes on to whatever the archive holds by then.
        let last = plan.stop.as_ref().and(plan.fork.map(|fork| fork.name).or(last));
        let spool = self.wal_directory().join(spool::DIRECTORY);
        let told = || format!("{} cannot be made", spool.display());
        // One that is there is perhaps not ours.
        if roots.kind(&spool).with_context(told)?.is_some() {
            roots.remove(&spool).with_context(told)?;
        }
        roots.make_directory(&spool).with_context(told)?;
        let anchor = roots.anchor(&spool).with_context(told)?;
        let note = TargetNote {
            timeline: plan.timeline,
            last,
            fork: plan.fork,
            until: (plan.target != RecoveryTarget::Latest).then(|| plan.replayed_until()),
            settings: settings::targets(&settings::rewrite("", &self.settings, self.major())),
        };
        note.write(anchor.path()).map_err(|error| anchor.explain(error))?;
        if let Some(owner) = self.owner {
            for entry in std::fs::read_dir(anchor.path())? {
                owner.give(&entry?.path())?;
            }
        }
        anchor.give(self.owner, 0o700).and_then(|()| anchor.sync()).with_context(told)
    }

    /// The `wal_keep_size`, in MB, under which a server that archives keeps what only its `pg_wal` has.
    fn keep_size(&self, pgdata: &Path) -> Option<u64> {
        let needed = self.unarchived.keep_size(self.planned.lineage.segment_size).filter(|_| self.resumes)?;
        let read = |name: &str| std::fs::read_to_string(pgdata.join(name)).unwrap_or_default();
        let own = settings::wal_keep_size(&[read("postgresql.conf"), read("postgresql.auto.conf")]);
        Some(needed.max(own))
    }

    fn finish(&self, pgdata: &Path, roots: &Roots) -> anyhow::Result<()> {
        let anchor = roots.anchor(pgdata).with_context(|| pgdata.display().to_string())?;
        let hand_over = || {
            if let (Some(owner), Some(_)) = (self.owner, self.layout.wal()) {
                roots.give_link(&pgdata.join("pg_wal"), owner)?;
            }
            for directory in [&roots.anchor(&self.wal_directory())?, &anchor] {
                directory.give(self.owner, self.root_mode)?;
                directory.sync()?;
            }
            Ok(())
        };
        let facts = &self.reader.manifest().summary.facts;
        let tablespaces = facts.tablespaces.iter().filter_map(|t| {
            let spot = self.layout.tablespace(t.oid)?;
            Some(walpoint_pg::label::Tablespace { oid: t.oid, path: spot.as_os_str().as_bytes().to_vec() })
        });
        let mut settings = self.settings.clone();
        // Some were inside when the backup was made, whatever the command line says.
        if tablespaces::lie_inside(pgdata)
            .with_context(|| format!("{}/pg_tblspc cannot be read", pgdata.display()))?
        {
            // Without it recovery takes a directory in pg_tblspc for damage, and panics (CheckTablespaceDirectory).
            settings.push(("allow_in_place_tablespaces".to_owned(), "on".to_owned()));
        }
        if let Some(size) = self.keep_size(anchor.path()) {
            settings.push(("wal_keep_size".to_owned(), format!("{size}MB")));
        }
        let finish = Finish {
            pgdata: anchor.path(),
            major: facts.major,
            backup_label: &facts.backup_label.0,
            tablespace_map: TablespaceMap { tablespaces: tablespaces.collect() },
            settings,
            signal: self.planned.plan.signal,
            owner: self.owner,
            hand_over: &hand_over,
        };
        finish.write().map_err(|error| anchor.explain(error))?;
        Ok(directory::release(pgdata, &self.marker, self.owner)?)
    }
}

/// What interrupted runs of this restore may have kept of the data directory, oldest first.
fn kept_before(pgdata: &Path, state: &State) -> Vec<Kept> {
    if matches!(state, State::Unfinished(_)) { kept::all(pgdata) } else { Vec::new() }
}

/// The key file that the environment names, if it opened the repository.
fn key_file(planned: &Planned) -> Option<PathBuf> {
    let Some((KeySource::Key(SecretSource::File(path)), _)) = planned.repository.opened_by() else {
        return None;
    };
    let named = std::env::var_os("WALPOINT_KEY_FILE").is_some_and(|named| path.as_os_str() == named);
    named.then(|| path.clone())
}

fn lay_out(
    args: &RestoreArgs,
    summary: &Summary,
    pgdata: PathBuf,
    existing: Option<&Existing>,
) -> anyhow::Result<Layout> {
    let path = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
    let facts = &summary.facts;
    let known: Vec<Tablespace> =
        facts.tablespaces.iter().map(|t| Tablespace { oid: t.oid, location: path(&t.path.0) }).collect();
    // Links in them are seen through when they are opened.
    let absolute = |dir: &Option<PathBuf>| dir.as_ref().map(named::absolute);
    let wishes = Wishes {
        mappings: args.tablespaces.clone(),
        all: absolute(&args.tablespace_dir),
        flatten: args.flatten_tablespaces,
        existing: existing.map(|existing| existing.tablespaces.clone()).unwrap_or_default(),
    };
    let places = tablespaces::place(&known, &wishes, &pgdata).map_err(|e| anyhow!(e))?;
    let extra = absolute(&args.extra_dir).unwrap_or_else(|| ground::default_extra(&pgdata));
    let extra_paths = facts.extra_paths.iter().map(|p| path(&p.0)).collect();
    let wal = absolute(&args.wal_dir).or_else(|| existing?.wal.clone());
    Ok(Layout::new(pgdata, places, wal, extra, extra_paths))
}

/// The owner that the data directory itself will have, if root restores, and its mode.
async fn owner_of_root(reader: &BackupReader, owners: &Owners) -> anyhow::Result<(Option<Owner>, u32)> {
    let root = reader.entries().next().await?.context("the backup is empty: its file table has no entry")?;
    Ok((owners.of(root.attributes.uid, root.attributes.gid), files::directory_mode(&root)))
}

/// Runs a command of the person who restores.
fn hook(option: &str, command: Option<&str>, pgdata: &Path) -> anyhow::Result<()> {
    let Some(command) = command else { return Ok(()) };
    let status = Command::new("sh").args(["-c", command]).env("WALPOINT_PGDATA", pgdata).status();
    let status = status.with_context(|| format!("{option} {command:?} cannot be run"))?;
    if !status.success() {
        bail!("{option} {command:?} failed with {status}");
    }
    Ok(())
}
