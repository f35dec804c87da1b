//! Backups: taken at once, stopped and resumed, cut off by a crash, or taken while something expires.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use jiff::SignedDuration;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use walpoint_base::{BackupId, SegmentNo};
use walpoint_storage::error::{RepoError, Result};

use super::cluster::{DIRECTORIES, Files};
use super::oracle::LABEL;
use super::world::{FIRST, Made, Readable, World, segment_size};
use crate::Repository;
use crate::backup::tests::{attributes, facts};
use crate::backup::{
    BackupDescription, BackupWriter, Backups, Intent, ManifestState, PackLimits, PackStream, ReusableBackups,
    TablePath, WalStored, WriteOptions,
};
use crate::expire::expire;
use crate::expire::tests::cluster;

/// Backups of a life, at most: each is an hour younger than the one before.
pub(super) const HOURS: i64 = 60;

/// A backup that has begun.
pub(super) struct Writing {
    pub(super) intent: Intent,
    plan: Plan,
    writer: BackupWriter,
    streams: Vec<PackStream>,
    /// Files that were not read, the next one last.
    left: Vec<String>,
}

/// What a backup will be.
#[derive(Clone, Debug)]
struct Plan {
    facts: BackupDescription,
    files: Files,
    segment: u64,
}

impl World {
    /// Chooses what the next backup is. `None` when there were enough.
    fn plan(&mut self) -> Option<(BackupId, Plan)> {
        let ago = HOURS - i64::from(self.number);
        if ago < 1 {
            return None;
        }
        self.number += 1;
        let mut ended = self.now - SignedDuration::from_hours(ago);
        if self.rng.random_ratio(1, 20) {
            // The server's clock was wrong.
            ended -= SignedDuration::from_mins(5 * 60 + 7);
        }
        let started = ended - SignedDuration::from_mins(10);
        let start = SegmentNo(self.segment).start(segment_size()) + 40;
        let label = if self.rng.random_bool(0.25) { LABEL } else { "" };
        let facts = BackupDescription {
            label: label.to_owned(),
            started,
            ended,
            lineage: self.bed.archive.lineage().id,
            wal_segment_size: segment_size().bytes(),
            start_lsn: start,
            ..facts(u32::try_from(self.block.bytes()).unwrap())
        };
        let id = BackupId::new(started, FIRST, start, self.number);
        Some((id, Plan { facts, files: self.cluster.files.clone(), segment: self.segment }))
    }

    /// Begins a backup as the agent does: it builds on what a listing shows. An error leaves an intent, or nothing.
    async fn begin(&mut self, repository: &Repository, id: BackupId, plan: Plan) -> Result<Writing> {
        let backups = Backups::of(repository, &cluster());
        let full = self.rng.random_ratio(1, 12);
        let base =
            if full { ReusableBackups::default() } else { ReusableBackups::choose(&backups.list().await?) };
        let ReusableBackups { parents, resumed } = base;
        let intent = Intent {
            id,
            lineage: plan.facts.lineage,
            started: plan.facts.started,
            host: String::new(),
            agent: String::new(),
            label: plan.facts.label.clone(),
            parents,
            resumed,
        };
        let pack = self.rng.random_range(20_000..400_000);
        let packs = PackLimits { pack, in_flight: 2 * pack + self.rng.random_range(0..pack) };
        let options = WriteOptions { packs, scratch: self.scratch.clone() };
        let writer = backups.begin(intent.clone(), self.block, &options).await?;
        let mut left: Vec<String> = plan.files.keys().cloned().collect();
        left.shuffle(&mut self.rng);
        let streams = vec![writer.stream(), writer.stream()];
        Ok(Writing { intent, plan, writer, streams, left })
    }

    /// Takes note of what became of a backup, from what is in the repository.
    async fn became(&mut self, id: BackupId, plan: &Plan, stop: u64) {
        let backups = self.backups().await;
        match backups.standing(id).await.unwrap() {
            ManifestState::Finished(_) => {
                self.unfinished.remove(&id);
                let reader = backups.open(id).await.unwrap();
                let manifest = reader.manifest();
                let packs = manifest.packs.packs().iter();
                let packs: BTreeSet<(BackupId, u32)> =
                    packs.map(|pack| (manifest.backups[usize::from(pack.backup.0)], pack.pack.0)).collect();
                let wrong = packs.intersection(&self.announced).next();
                assert_eq!(wrong, None, "{id} builds on what was announced");
                let Plan { facts, files, segment } = plan.clone();
                // The store had it then.
                let stored = std::fs::File::open(self.file_of(&backups.paths().manifest(id))).unwrap();
                stored.set_modified(std::time::SystemTime::from(facts.ended)).unwrap();
                let made = Made {
                    files,
                    label: facts.label,
                    ended: facts.ended,
                    segments: (segment, stop),
                    packs,
                    manifest: Readable::All,
                    reported: false,
                };
                self.made.insert(id, made);
            }
            ManifestState::Unfinished => {
                if let Some(intent) = backups.intent(id).await.unwrap() {
                    self.unfinished.insert(id, intent);
                }
            }
            ManifestState::Aborted(_) => drop(self.unfinished.remove(&id)),
        }
    }

    /// A whole backup. What it resumed is aborted, as long as nothing comes in between.
    pub(super) async fn back_up(&mut self) {
        let Some((id, plan)) = self.plan() else { return };
        let repository = self.open().await;
        let writing = self.begin(&repository, id, plan.clone()).boxed_local().await.unwrap();
        let resumed = writing.intent.resumed.clone();
        self.journal.note(format!("backup {id} on {:?}, resumes {resumed:?}", writing.intent.parents));
        let stop = self.archive().await;
        writing.finish(&mut self.rng, stop).boxed_local().await.unwrap();
        self.became(id, &plan, stop).await;
        assert!(self.made.contains_key(&id));
        if self.rng.random_bool(0.9) {
            self.end(&resumed, id).await;
        }
        self.restore(id).boxed_local().await;
    }

    async fn end(&mut self, resumed: &[BackupId], by: BackupId) {
        let backups = self.backups().await;
        for id in resumed {
            match backups.abort(*id, &format!("backup {by} resumed it")).await {
                Ok(()) => drop(self.unfinished.remove(id)),
                // It was finished meanwhile.
                Err(RepoError::Conflict { .. }) => assert!(self.made.contains_key(id)),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// A backup whose process dies at some request.
    pub(super) async fn back_up_and_crash(&mut self) {
        let Some((id, plan)) = self.plan() else { return };
        let life = self.rng.random_range(1..70);
        let stop = self.archive().await;
        let (crashing, repository) = self.open_crashing(life).await;
        let done = match repository {
            Ok(repository) => match self.begin(&repository, id, plan.clone()).boxed_local().await {
                Ok(writing) => writing.finish(&mut self.rng, stop).boxed_local().await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let died = crashing.has_crashed().await;
        if let Err(error) = &done {
            assert!(died, "backup {id} failed: {error}");
        }
        self.became(id, &plan, stop).await;
        let state = if self.made.contains_key(&id) { "finished" } else { "not finished" };
        self.journal.note(format!("backup {id} dies before request {life}: {state}"));
        assert!(done.is_err() || self.made.contains_key(&id));
    }

    /// A backup that begins and then stops for a while.
    pub(super) async fn begin_and_sleep(&mut self) {
        if self.asleep.len() == 2 {
            return;
        }
        let Some((id, plan)) = self.plan() else { return };
        let repository = self.open().await;
        let mut writing = self.begin(&repository, id, plan).boxed_local().await.unwrap();
        let some = self.rng.random_range(0..=writing.left.len());
        writing = writing.write(&mut self.rng, some).await.unwrap();
        // What is on its way arrives before time goes by.
        writing.writer.progress().await.unwrap();
        self.journal.note(format!("backup {id} begins on {:?} and sleeps", writing.intent.parents));
        self.unfinished.insert(id, writing.intent.clone());
        self.asleep.push(writing);
    }

    /// One that sleeps goes on. It may fail where it was aborted meanwhile, or what it builds on was damaged.
    pub(super) async fn wake(&mut self) {
        if self.asleep.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.asleep.len());
        let writing = self.asleep.swap_remove(at);
        let (id, plan) = (writing.intent.id, writing.plan.clone());
        let standing = self.backups().await.standing(id).await.unwrap();
        let (aborted, over) =
            (!self.unfinished.contains_key(&id), matches!(standing, ManifestState::Aborted(_)));
        let stop = self.archive().await;
        let done = writing.finish(&mut self.rng, stop).boxed_local().await;
        self.journal.note(format!("backup {id} wakes: {done:?}"));
        match done {
            Ok(()) => assert!(!over, "{id} was aborted and is finished"),
            Err(error) => assert!(aborted || !self.damaged.is_empty(), "{id} failed: {error}"),
        }
        self.became(id, &plan, stop).await;
        if self.made.contains_key(&id) {
            self.restore(id).boxed_local().await;
        }
    }

    /// A backup and an expiry at the same time.
    pub(super) async fn back_up_beside_expiry(&mut self) {
        let Some((id, plan)) = self.plan() else { return };
        let stop = self.archive().await;
        let repository = self.open().await;
        let (keep, grace) = self.some_keep();
        let silences = self.silences();
        let before = self.expectation_after(&keep, &silences);
        let options = self.options(&keep, grace);
        self.journal.note(format!("backup {id} beside an expiry: {keep:?}, grace {grace} h"));
        let wait = Duration::from_micros(self.rng.random_range(0..4000));
        let mut rng = StdRng::seed_from_u64(self.rng.random());
        let cluster = cluster();
        let expiry = async {
            tokio::time::sleep(wait).await;
            expire(&repository, &cluster, &options).boxed_local().await
        };
        let backup = async {
            let writing = self.begin(&repository, id, plan.clone()).boxed_local().await?;
            writing.finish(&mut rng, stop).boxed_local().await
        };
        let (done, expired) = tokio::join!(backup, expiry);
        expired.unwrap();
        // Announcement after it had looked: it is told to try again.
        if let Err(error) = &done {
            let told = matches!(error, RepoError::Refused { .. });
            assert!(told || !self.damaged.is_empty(), "backup {id} failed: {error}");
        }
        self.became(id, &plan, stop).await;
        // It saw the backup finished, or not.
        let after = self.expectation_after(&keep, &silences);
        self.check_safety(&before.or(after)).boxed_local().await;
        if self.made.contains_key(&id) {
            self.restore(id).boxed_local().await;
        }
    }
}

impl Writing {
    /// Reads so many files.
    async fn write(mut self, rng: &mut StdRng, mut count: usize) -> Result<Self> {
        while count > 0 && !self.left.is_empty() {
            let some = rng.random_range(1..=count.min(self.left.len()));
            count -= some;
            let paths = self.left.split_off(self.left.len() - some).into_iter();
            let batch: Files = paths
                .map(|path| {
                    let bytes = Arc::clone(&self.plan.files[&path]);
                    (path, bytes)
                })
                .collect();
            let mut streams = std::mem::take(&mut self.streams);
            let mut rng_of_it = StdRng::seed_from_u64(rng.random());
            let work = move || {
                for (path, bytes) in &batch {
                    let stream = rng_of_it.random_range(0..streams.len());
                    write_file(&mut streams[stream], path, bytes, &mut rng_of_it)?;
                }
                Ok::<_, RepoError>(streams)
            };
            self.streams = tokio::task::spawn_blocking(work).await.unwrap()?;
            match rng.random_range(0..4) {
                0 => self.writer.note_progress().await?,
                1 => self.writer.progress().await?,
                _ => {}
            }
        }
        Ok(self)
    }

    /// Reads the rest and announces the backup, which stops in segment `stop`.
    async fn finish(self, rng: &mut StdRng, stop: u64) -> Result<()> {
        let Self { writer, plan, streams, .. } = self.write(rng, usize::MAX).await?;
        let work = move || {
            let mut streams = streams.into_iter();
            let mut stream = streams.next().unwrap();
            for path in DIRECTORIES {
                stream.directory(TablePath::data(path).unwrap(), attributes(path.as_bytes()))?;
            }
            stream.finish()?;
            streams.try_for_each(PackStream::finish)
        };
        tokio::task::spawn_blocking(work).await.unwrap()?;
        let stop_lsn = SegmentNo(stop).start(segment_size()) + 200;
        let draft = writer.finish(BackupDescription { stop_lsn, ..plan.facts }).await?;
        let (first, last) = draft.needs_wal()?;
        draft.publish(WalStored { first, last }).await.map(drop)
    }
}

/// Reads a file as the agent does: in pieces, holes as holes, and a new one perhaps by its content.
fn write_file(stream: &mut PackStream, path: &str, bytes: &[u8], rng: &mut StdRng) -> Result<()> {
    let table_path = TablePath::data(path).unwrap();
    let attributes = attributes(path.as_bytes());
    if stream.may_be_elsewhere(&table_path, u64::try_from(bytes.len()).unwrap())? {
        let mut hasher = stream.hasher();
        hasher.update(bytes);
        let may_be = stream.may_still_be_elsewhere(u64::try_from(bytes.len()).unwrap(), &hasher)?;
        if may_be != Some(false) && stream.same_file(&table_path, hasher.finish(), attributes)? {
            return Ok(());
        }
    }
    if rng.random_ratio(1, 30) {
        // Another file that is dropped while it is read.
        let mut gone = stream.file(TablePath::data(format!("{path}_gone")).unwrap());
        gone.write(bytes)?;
    }
    let mut file = stream.file(table_path);
    let mut rest = bytes;
    while !rest.is_empty() {
        let step = rng.random_range(1..200_000).min(rest.len());
        let (now, later) = rest.split_at(step);
        if step > 4096 && now.iter().all(|byte| *byte == 0) {
            file.zeros(u64::try_from(step).unwrap())?;
        } else {
            file.write(now)?;
        }
        rest = later;
    }
    file.finish(attributes).map(drop)
}
