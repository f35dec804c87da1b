//! Writing the cluster: the place is made this restore's, its files are written, and `pg_control` comes last.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use jiff::Timestamp;
use rustix::fs::FileType;
use walpoint_base::RecoveryTarget;
use walpoint_pg::label::TablespaceMap;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::progress::ByteProgress;

use super::beneath::{Anchor, OpenRoots};
use super::copy::{Copier, WrittenFiles};
use super::created::LocationStates;
use super::decided::DecidedOutside;
use super::directory::{self, Contents, DirectoryLock};
use super::finish::{Finish, UNFINISHED_CONTROL};
use super::kept::{Apart, Kept, Whose};
use super::opened::{self, Judged};
use super::owners::Owner;
use super::prune::{self, Removed};
use super::report::RestoreReport;
use super::steps::{RestoreMode, Step};
use super::sync::Filesystems;
use super::{
    Done, Restore, RestoreArgs, confined, elsewhere, failure, forks, hook, identity, origin, previous, reach,
    required, tablespaces,
};
use crate::plan::Planned;
use crate::settings;
use crate::wal::note::{Built, TargetNote};
use crate::wal::spool;

/// How often it is looked whether what a failed attempt had begun is at rest.
const AT_REST: Duration = Duration::from_millis(5);

/// The place that a restore has taken.
struct TakenPlace {
    /// The data directory: the one that was judged.
    own: Anchor,
    outside: DecidedOutside,
    _held: DirectoryLock,
}

impl Restore {
    /// Writes the cluster. `pre_command`: what is run first, taken so that another attempt does not run it
    /// again.
    pub(super) async fn execute(
        self,
        common: &CommonArgs,
        args: &RestoreArgs,
        pre_command: &mut Option<&str>,
    ) -> anyhow::Result<RestoreReport> {
        let began = Instant::now();
        let pgdata = self.layout.pgdata().to_owned();
        let built = built(common, &self.planned).await?;
        hook("--pre-command", pre_command.take(), &pgdata)?;
        let taken = self.take_place(&pgdata)?;
        let kept = if self.decided.does(&Step::Keep) {
            let now = Timestamp::now();
            let lineage = self.planned.lineage.id.to_string();
            let apart = self.unarchived.apart.clone().map(|why| Apart { lineage, why });
            let whose = Whose { apart, vouched: self.unarchived.vouched.clone() };
            let wal = (&self.unarchived.names[..], whose);
            Kept::keep(&pgdata, wal, &self.found.paths(), now, self.owner)?
        } else {
            None
        };
        let roots = Arc::new(self.claim(&pgdata, &taken)?);
        kept.iter().try_for_each(|kept| kept.rename(self.owner))?;
        let (removed, written) = self.write_files(common, &pgdata, &roots).await?;
        if let Some(extra) = self.layout.extra() {
            walpoint_base::durable::sync_directory(extra)?;
        }
        self.leave_target(&roots, built)?;
        let wal = self.wal_directory();
        let anchor = roots.anchor(&wal).with_context(|| wal.display().to_string())?;
        let explain = |error| anchor.explain(error);
        origin::leave(&self.origin, anchor.path(), self.owner).map_err(explain)?;
        let data = roots.anchor(&pgdata).with_context(|| pgdata.display().to_string())?;
        origin::bind(&self.origin, &self.planned, data.path(), self.owner)
            .await
            .map_err(|error| data.explain(error))?;
        forks::write(common, &self.planned, anchor.path(), self.owner).await.map_err(explain)?;
        let size = self.planned.lineage.segment_size;
        let old = match self.decided.mode {
            RestoreMode::Replace { .. } => self.moved_aside().map(|record| record.aside.join("pg_wal")),
            RestoreMode::New | RestoreMode::Delta { .. } => kept.as_ref().map(|kept| kept.directory.clone()),
        };
        self.unarchived
            .put(old.as_deref(), anchor.path(), self.owner, size, args.resume_archiving)
            .map_err(explain)?;
        let raised = self.finish(&pgdata, &roots)?;
        hook("--post-command", args.post_command.as_deref(), &pgdata)?;
        Ok(self.report(common, args, &Done { written, removed, kept, raised }, began.elapsed()))
    }

    /// Removes what the backup does not have, if the directory is repaired, and writes the backup's files. Once it has failed
    /// nothing is written any more.
    async fn write_files(
        &self,
        common: &CommonArgs,
        pgdata: &Path,
        roots: &Arc<OpenRoots>,
    ) -> anyhow::Result<(Removed, WrittenFiles)> {
        // Before the first byte: only then it is told what cannot be written.
        let directories = self.marker.directories.iter().map(PathBuf::as_path);
        let filesystems = Arc::new(Filesystems::open(directories.chain([pgdata]))?);
        let incomplete = |error| failure::incomplete(pgdata, error);
        let removed = if self.decided.does(&Step::Prune) {
            prune::prune(&self.reader, &self.layout, roots).await.map_err(incomplete)?
        } else {
            Removed::default()
        };
        let total = self.reader.manifest().summary.totals.blocks * self.reader.block_size().bytes();
        let progress = ByteProgress::bytes("restoring", total, common.show_progress());
        let copier = Copier {
            reader: self.reader.clone(),
            layout: Arc::clone(&self.layout),
            owners: self.owners.clone(),
            progress: progress.clone(),
            delta: self.marker.delta,
            roots: Arc::clone(roots),
            filesystems,
            is_confined: self.confine.is_some(),
        };
        let written = copier.copy().await;
        drop(copier);
        progress.end();
        if written.is_err() {
            // What was begun in other threads goes on there, and the next attempt writes to the same places.
            while Arc::strong_count(roots) > 1 {
                tokio::time::sleep(AT_REST).await;
            }
        }
        Ok((removed, written.map_err(incomplete)?))
    }

    /// Makes the directory that is written to what it has to be: there, ours, and empty unless it is repaired.
    fn take_place(&self, pgdata: &Path) -> anyhow::Result<TakenPlace> {
        // What is there is held too until it is out of the way.
        let old = pgdata.exists().then(|| directory::hold(pgdata)).transpose()?;
        // The deliberate second look: it says there why.
        self.decided.prove_unchanged(pgdata)?;
        let outside = DecidedOutside::look(&self.layout, &self.decided, &self.named, &self.repositories)?;
        if let Some(directory) = outside.first_moved_otherwise(&self.outside) {
            bail!("{} is not what it was when the restore began; nothing was changed", directory.display());
        }
        let states = self.created.probe(LocationStates::default(), &self.layout, &self.decided);
        if !self.created.found(&states)?.is_as(&self.found) {
            bail!(
                "where replay creates tablespaces something else lies than when the restore began; nothing was changed"
            );
        }
        if let Some(record) = &self.replacement {
            record.go()?;
            tracing::info!("what was in {} lies in {}", pgdata.display(), record.aside.display());
        }
        let own = self.open_data(pgdata)?;
        let held = match old {
            Some(held) if self.replacement.is_none() => held,
            _ => directory::hold(pgdata)?,
        };
        // Nothing is removed there either before it is known to be the one that was judged.
        self.decided.judged().prove(&own, |_| false)?;
        Judged::This(Some(held.identity()?)).prove(&own, |_| false)?;
        for step in self.decided.steps() {
            match step {
                Step::Resume(claimed) => self.resume(pgdata, claimed)?,
                Step::StartOver(claimed) => self.start_over(&own, claimed)?,
                _ => {}
            }
        }
        Ok(TakenPlace { own, outside, _held: held })
    }

    /// Continues what an interrupted restore left. Directories that this one does not write to are no longer its own.
    fn resume(&self, pgdata: &Path, claimed: &[PathBuf]) -> anyhow::Result<()> {
        tracing::info!("an earlier restore into {} was interrupted: it continues", pgdata.display());
        for other in claimed.iter().filter(|other| !self.fills(other)) {
            if let Some(anchor) = directory::claimed(other, pgdata, self.owner) {
                self.hand_back(&anchor)?;
            }
        }
        Ok(())
    }

    /// Empties what an interrupted restore wrote. The markers of directories that are filled again stay: as root's, they are this restore's
    /// only by them.
    fn start_over(&self, own: &Anchor, claimed: &[PathBuf]) -> anyhow::Result<()> {
        let pgdata = self.layout.pgdata();
        tracing::info!("an earlier restore into {} was interrupted: starting over", pgdata.display());
        for other in claimed {
            let Some(anchor) = directory::claimed(other, pgdata, self.owner) else { continue };
            directory::clear(&anchor)?;
            if !self.fills(other) {
                self.hand_back(&anchor)?;
            }
        }
        own.require_ours(self.owner).with_context(|| pgdata.display().to_string())?;
        Ok(directory::clear(own)?)
    }

    /// Whether it is one of the directories outside that this restore writes to.
    fn fills(&self, other: &Path) -> bool {
        self.marker.directories.iter().any(|directory| identity::same(directory, other))
    }

    /// Gives up a directory outside that an interrupted restore had claimed. What root had taken is its owner's again.
    fn hand_back(&self, directory: &Anchor) -> anyhow::Result<()> {
        let shown = || directory.shown().display().to_string();
        let meta = directory.directory().metadata().with_context(shown)?;
        if meta.uid() == 0 && self.owner.is_some() {
            directory.give(self.owner, 0o700).and_then(|()| directory.sync()).with_context(shown)?;
        }
        Ok(directory::disown(directory)?)
    }

    /// Marks the directories as this restore's and opens them: from then on everything is reached from there. As root, the
    /// data directory and `pg_wal` are taken from their owner until the end, so that no other process changes what lies directly in them.
    fn claim(&self, pgdata: &Path, taken: &TakenPlace) -> anyhow::Result<OpenRoots> {
        let shown = |path: &Path| path.display().to_string();
        let own = &taken.own;
        own.require_ours(self.owner).with_context(|| shown(pgdata))?;
        let mut open = vec![(pgdata.to_owned(), own.directory().try_clone()?.into())];
        let is_claimed = |a: &Anchor| directory::is_claimed(a, pgdata, self.owner).is_ok_and(|ours| ours);
        for (other, judged) in self.marker.directories.iter().zip(&taken.outside.judged) {
            let ours = |directory: &File| {
                let anchor = directory.try_clone().map(|directory| Anchor::of(directory, other));
                anchor.is_ok_and(|anchor| is_claimed(&anchor))
            };
            let made = reach::make(other, self.named.has(other), self.owner, ours);
            let made = Anchor::of(made.with_context(|| self.not_made(other))?.into(), other);
            judged.prove(&made, is_claimed)?;
            open.push((other.clone(), made.into_directory().into()));
        }
        // Here the first file is written, and not only root writes it by the name.
        opened::prove_name(own)?;
        let roots = OpenRoots::of(open);
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

    /// That a directory outside the data directory is neither there nor can be made: a link perhaps leads to it.
    fn not_made(&self, directory: &Path) -> String {
        let text = format!("the directory {} could not be opened or made", directory.display());
        // What root may not do for a user says so itself.
        match self.owner {
            Some(_) => text,
            None => format!(
                "{text}\nHINT: Make it, or mount the filesystem on which it lies, and let this user write to it; or choose another \
                 place with --tablespace OLD=NEW, --wal-dir or --extra-dir."
            ),
        }
    }

    /// Opens the data directory, and makes it if it is missing.
    fn open_data(&self, pgdata: &Path) -> anyhow::Result<Anchor> {
        opened::prove_path(pgdata)?;
        // One that an interrupted restore took from its owner is root's.
        let ours = |_: &File| matches!(self.decided.contents, Contents::Unfinished(_));
        let open = reach::make(pgdata, self.named.pgdata, self.owner, ours);
        let own = Anchor::of(open.with_context(|| pgdata.display().to_string())?.into(), pgdata);
        opened::prove_name(&own)?;
        Ok(own)
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
    fn leave_target(&self, roots: &OpenRoots, fork: Option<Built>) -> anyhow::Result<()> {
        let plan = &self.planned.plan;
        let last =
            plan.wal.last().map(|range| range.last.name(range.timeline, self.planned.lineage.segment_size));
        // Without a stop, recovery goes on to whatever the archive holds by then.
        let last = plan.stop.as_ref().and(plan.fork.map(|fork| fork.name).or(last));
        let spool = self.wal_directory().join(spool::DIRECTORY);
        let context = || format!("{} cannot be made", spool.display());
        // One that is there is perhaps not ours.
        if roots.kind(&spool).with_context(context)?.is_some() {
            roots.remove(&spool).with_context(context)?;
        }
        roots.make_directory(&spool).with_context(context)?;
        let anchor = roots.anchor(&spool).with_context(context)?;
        let note = TargetNote {
            timeline: plan.timeline,
            last,
            fork,
            unfollowed: plan.unfollowed,
            until: (plan.target != RecoveryTarget::Latest).then(|| plan.replayed_until()),
            youngest: plan.youngest,
            without: plan.without.clone(),
            settings: settings::targets(&String::from_utf8_lossy(&settings::rewrite(
                b"",
                &self.settings,
                self.major(),
            ))),
        };
        note.write(anchor.path()).map_err(|error| anchor.explain(error))?;
        if let Some(owner) = self.owner {
            for entry in std::fs::read_dir(anchor.path())? {
                owner.give(&entry?.path())?;
            }
        }
        anchor.give(self.owner, 0o700).and_then(|()| anchor.sync()).with_context(context)
    }

    /// The `wal_keep_size`, in MB, under which a server that archives keeps what only its `pg_wal` has.
    fn keep_size(&self, pgdata: &Path) -> Option<u64> {
        let needed = self.unarchived.keep_size(self.planned.lineage.segment_size).filter(|_| self.resumes)?;
        Some(needed.max(settings::wal_keep_size(&settings::configuration(pgdata))))
    }

    /// Makes it complete; the settings that were raised.
    fn finish(&self, pgdata: &Path, roots: &OpenRoots) -> anyhow::Result<Vec<(String, String)>> {
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
            Some(walpoint_pg::label::MappedTablespace {
                oid: t.oid,
                path: spot.as_os_str().as_bytes().to_vec(),
            })
        });
        if let Some(confine) = &self.confine {
            confined::replace_configuration(&anchor, &self.configuration_files(), confine, self.owner)
                .map_err(|error| anchor.explain(error))?;
        }
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
        let had = required::of_control(&anchor.path().join(UNFINISHED_CONTROL))
            .map_err(|error| anchor.explain(error))?;
        let raised = required::raised(&self.required.and(had), &settings::configuration(anchor.path()));
        settings.extend(raised.iter().cloned());
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
        directory::announce(anchor.path(), &self.marker, &anchor.path().join(UNFINISHED_CONTROL))
            .map_err(|error| anchor.explain(error.into()))?;
        finish.write().map_err(|error| anchor.explain(error))?;
        // It may be started now, and be lost later. Before, the same command finishes it, also in another directory. If this is
        // interrupted here, the marker shows that it is still to be done.
        previous::succeed(pgdata);
        directory::release(pgdata, &self.marker, self.owner)?;
        Ok(raised)
    }
}

/// The segment that is built, with what its bytes have to be: other repositories may have another copy.
async fn built(common: &CommonArgs, planned: &Planned) -> anyhow::Result<Option<Built>> {
    let Some(segment) = planned.plan.fork else { return Ok(None) };
    let size = planned.lineage.segment_size;
    let start = segment.name.number(size).map_or(segment.cut, |number| number.start(size));
    if segment.is_of_itself() {
        return Ok(Some(Built { segment, hash: None }));
    }
    let (name, length) = (segment.source_name(), segment.cut.since(start));
    let hash = match planned.together {
        // The plan counts on the longest copy, which may be another repository's.
        true => elsewhere::copies(common, planned).await?.beginning(name, length).await?,
        false => planned.repository.wal_to_read(&planned.lineage).await?.beginning(name, length).await?,
    };
    Ok(Some(Built { segment, hash }))
}
