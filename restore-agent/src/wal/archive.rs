//! The repositories of a cluster as one archive: the first that has a file, and answers, gives it.
//!
//! Repositories are opened when they are needed and opened anew after they failed, so that repaired credentials and mounts
//! are found. A file lands under its name only after every check has passed.

mod from_one;
mod lineage;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::bail;
use futures_util::FutureExt;
use walpoint_base::{
    ClusterName, CreatedTablespace, SegmentName, SegmentSize, SystemId, TimelineHistory, TimelineId,
    WalDirectory, WalFileName,
};
use walpoint_plan::restore::Unfollowed;
use walpoint_repo::wal::WalArchive;
use walpoint_repo::{Lineage, Repository};
use walpoint_runtime::args::Selection;
use walpoint_storage::object::RepositoryId;
use walpoint_storage::store::StoreSettings;
use walpoint_words::format_chain;

use self::from_one::FetchedFrom;
use self::lineage::BindingFile;
use crate::wal::asking::{Began, PendingQuestions};
use crate::wal::atomic_file::{self, Durability, Unwritable};
use crate::wal::creates::Marked;
use crate::wal::flagged::{self, Flagged};
use crate::wal::note::{Built, TargetNote};
use crate::wal::origin::OriginKeeper;
use crate::wal::prove;
use crate::wal::refusal::{Remedy, Unproven};
use crate::wal::served::Served;
use crate::wal::source::{Failed, FetchSource, listed};
use crate::wal::spool;

/// What an attempt to have a file came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum FetchResult {
    /// It is there, whole and verified.
    Landed(Landed),
    /// It is proven not to be in the archive, or, if no proof was wanted, no repository has it. Says so.
    Absent(String),
    /// Neither. Says why.
    Uncertain(String),
    /// The same, and no later attempt will come to anything else until something is done.
    Refused(String, Remedy),
    /// A repository gave it, and it cannot be written where it was to land. Says why.
    Unwritten(String),
}

impl FetchResult {
    /// What it came to where there is no other place to land in.
    pub(crate) fn in_the_only_place(self) -> Self {
        match self {
            Self::Unwritten(why) => Self::Uncertain(why),
            other => other,
        }
    }

    /// That a file whose content is known did not land.
    pub(crate) fn not_landed(error: &anyhow::Error) -> Self {
        let why = format_chain(error);
        if error.is::<Unwritable>() { Self::Unwritten(why) } else { Self::Uncertain(why) }
    }
}

/// A file that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Landed {
    /// Its length in bytes.
    pub(crate) size: u64,
    /// What is to be logged: empty, or what was wrong in another repository.
    pub(crate) note: String,
    /// Tablespaces that replay of it creates.
    pub(crate) creates: Vec<CreatedTablespace>,
}

impl Landed {
    /// A file about which nothing has to be known.
    pub(crate) fn of(size: u64) -> Self {
        Self { size, note: String::new(), creates: Vec::new() }
    }
}

/// Whether "no such object" is to be proven.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Proof {
    /// PostgreSQL will hear it.
    Wanted,
    /// It only ends fetching ahead.
    NotWanted,
}

#[derive(Debug)]
pub(crate) struct ClusterArchive {
    cluster: ClusterName,
    /// Whose WAL is asked for, from `pg_control`.
    system_id: Option<SystemId>,
    /// Who asks; `None` where a person fetches a file by hand.
    place: Option<WalDirectory>,
    /// What the recovery began with.
    origin: OriginKeeper,
    /// The segment that is built, by the note that `restore` left, or as it was handed over last.
    pub(super) built: Mutex<Option<Built>>,
    /// The timeline that recovery does not follow, by the same note.
    pub(super) unfollowed: Option<Unfollowed>,
    sources: Vec<FetchSource>,
    /// Names of repositories that acknowledge, by the configuration. The lineage's own set comes on top.
    acknowledging: Vec<String>,
    damaged_too: bool,
    /// Names of repositories that are gone for good.
    without: Vec<String>,
    /// Names of repositories of the configuration that `--repo` leaves out.
    left_out: Vec<String>,
    /// The lineage that the first repository to answer has; the others must have the same.
    lineage: Mutex<Option<Lineage>>,
    histories: Mutex<HashMap<TimelineId, TimelineHistory>>,
    /// Which of the segments read lately are marked for a tablespace.
    marked: Mutex<Marked>,
    /// From which repository recovery has its WAL.
    served: Served,
    /// What the data directory was bound by when its lineage was looked up.
    binding: Mutex<BindingFile>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct WantedFile<'a> {
    /// What PostgreSQL calls it.
    pub(crate) name: WalFileName,
    /// Where it lands.
    pub(crate) path: &'a Path,
    /// How sure it has to be there after a crash.
    pub(crate) durability: Durability,
    /// How it is built, if it is not to be had under its own name.
    pub(crate) built: Option<Built>,
    /// Whether a copy will do that was archived although damaged.
    pub(crate) flagged: bool,
}

/// What the repositories answered.
#[derive(Debug, Default)]
pub(crate) struct ArchiveAnswer<'a> {
    /// The file, if one of them gave it.
    pub(crate) landed: Option<Landed>,
    /// Those that answered "no such object".
    pub(crate) missing: Vec<Missing<'a>>,
    /// Those that could not say, or could not give it.
    pub(crate) failures: Vec<Failed>,
    /// Those of them that may have it: they have not said.
    silent: Vec<&'a str>,
    /// Whether one of them has it, and cannot give it.
    pub(crate) there: bool,
    /// Why it could not be written where it was to land.
    pub(crate) unwritten: Option<String>,
}

impl<'a> ArchiveAnswer<'a> {
    /// A repository did not say whether it has the file.
    fn unanswered(&mut self, source: &'a FetchSource, failed: Failed) {
        // One that is refused is not of this archive.
        self.silent.extend(Some(source.name.as_str()).filter(|_| !failed.refused));
        self.failures.push(failed);
    }

    /// A repository gave the file.
    fn land(
        &mut self,
        wanted: WantedFile<'_>,
        source: &FetchSource,
        size: u64,
        creates: Vec<CreatedTablespace>,
    ) {
        let mut note = listed(&self.failures);
        if !note.is_empty() {
            note = format!("\"{}\" comes from repository {}, because {note}", wanted.name, source.name);
        }
        self.landed = Some(Landed { size, note, creates });
    }
}

/// A repository in which a file was looked for, or is to be.
#[derive(Debug)]
pub(crate) struct Missing<'a> {
    /// What the configuration calls it.
    pub(crate) name: &'a str,
    /// Its archive, which answered "no such object".
    pub(crate) wal: WalArchive,
}

impl ClusterArchive {
    /// The archive of the selected cluster. Nothing is opened yet.
    pub(crate) fn new(selection: Selection<StoreSettings>, place: Option<&WalDirectory>) -> Self {
        let left_out = selection.left_out();
        let note = place.and_then(|place| TargetNote::read(&place.wal.join(spool::DIRECTORY)));
        Self {
            cluster: selection.cluster,
            system_id: place.map(|place| place.system_id),
            place: place.cloned(),
            origin: OriginKeeper::new(place),
            built: Mutex::new(note.as_ref().and_then(|note| note.fork)),
            unfollowed: note.and_then(|note| note.unfollowed),
            acknowledging: selection.settings.ack_set().to_vec(),
            damaged_too: selection.settings.fetch_damaged,
            without: selection.settings.lost_repositories.clone(),
            left_out,
            sources: selection.repositories.into_iter().map(FetchSource::new).collect(),
            lineage: Mutex::new(None),
            histories: Mutex::default(),
            marked: Mutex::default(),
            served: Served::default(),
            binding: Mutex::new(BindingFile::of(place)),
        }
    }

    /// Who asks; `None` where a person fetches a file by hand.
    pub(crate) fn place(&self) -> Option<&WalDirectory> {
        self.place.as_ref()
    }

    /// What the recovery began with.
    pub(crate) fn origin(&self) -> &OriginKeeper {
        &self.origin
    }

    /// Which of the segments read lately are marked for a tablespace.
    pub(crate) fn marked(&self) -> MutexGuard<'_, Marked> {
        lock(&self.marked)
    }

    /// The segment size, once a repository has answered.
    pub(crate) fn segment_size(&self) -> Option<SegmentSize> {
        lock(&self.lineage).as_ref().map(|lineage| lineage.segment_size)
    }

    /// Names of the repositories that acknowledge, by the configuration.
    pub(crate) fn acknowledging(&self) -> &[String] {
        &self.acknowledging
    }

    /// Names of repositories that are gone for good: the end of the archive is proven without them.
    pub(crate) fn without(&self) -> &[String] {
        &self.without
    }

    /// Names of repositories of the configuration that `--repo` leaves out.
    pub(crate) fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// One attempt to make `path` the file `name`, from the first repository that can give it.
    pub(crate) async fn fetch(
        &self,
        name: WalFileName,
        path: &Path,
        proof: Proof,
        durability: Durability,
    ) -> FetchResult {
        if name.is_never_written() {
            return FetchResult::Absent(format!(
                "\"{name}\" is not in the archive: the first timeline has no history"
            ));
        }
        if let WalFileName::Segment(segment) = name
            && let Some(instead) = self.withheld(segment, proof).await
        {
            return instead;
        }
        let built = lock(&self.built).filter(|built| WalFileName::Segment(built.segment.name) == name);
        let of_itself = built.filter(|built| built.segment.is_of_itself());
        let wanted = WantedFile { name, path, durability, built: of_itself, flagged: false };
        // What the path leaves is none of its business under its own name.
        let asked = match built {
            Some(built) if built.segment.left && of_itself.is_none() => ArchiveAnswer::default(),
            _ => self.ask(wanted).await,
        };
        if let Some(landed) = asked.landed {
            return FetchResult::Landed(landed);
        }
        if let Some(why) = asked.unwritten {
            return FetchResult::Unwritten(why);
        }
        let (streamed, seen) = self.streamed(name, proof, (built, &asked)).await;
        if let Some(built) = streamed.or(built.filter(|_| of_itself.is_none())) {
            return self.build(wanted, (built, seen), proof, asked).await;
        }
        let ArchiveAnswer { missing, failures, silent, there, .. } = asked;
        if let WalFileName::History(timeline) = name
            && let Some((content, note)) = self.history_instead(timeline, &silent, there, proof).await
        {
            let (size, target) = (content.len() as u64, path.to_owned());
            let landed =
                atomic_file::blocking(move || atomic_file::land(&target, &content, durability)).await;
            return match landed {
                Ok(()) => FetchResult::Landed(Landed { note, ..Landed::of(size) }),
                Err(error) => FetchResult::not_landed(&error),
            };
        }
        if there
            && silent.is_empty()
            && let Some(why) = self.not_needed(name, &failures)
        {
            return FetchResult::Absent(why);
        }
        // Whatever the others say: one of them has it, and only cannot give it.
        if proof == Proof::Wanted && !there {
            return prove::absence(self, name, &missing, failures).await;
        }
        if failures.is_empty() {
            return FetchResult::Absent(format!("no repository has \"{name}\""));
        }
        Unproven::by(&failures, listed(&failures)).into()
    }

    /// Asks the repositories for a file until one gives it.
    pub(crate) async fn ask<'a>(&'a self, wanted: WantedFile<'a>) -> ArchiveAnswer<'a> {
        let (mut asked, mut flagged) = (ArchiveAnswer::default(), Vec::new());
        let first = self.first();
        let first = move |source: &FetchSource| first.as_ref() == Some(&source.name);
        let mut asking = PendingQuestions::of(&self.sources, first, move |source, began| {
            self.fetch_from(source, wanted, began).boxed()
        });
        while let Some((source, answer)) = asking.next().await {
            match answer {
                Ok(FetchedFrom::Landed(size, creates)) => {
                    asked.failures.extend(asking.unanswered().map(FetchSource::unanswered));
                    asked.land(wanted, source, size, creates);
                    return asked;
                }
                Ok(FetchedFrom::Missing(wal)) => asked.missing.push(Missing { name: &source.name, wal }),
                Ok(FetchedFrom::Flagged(wal)) => {
                    asked.there = true;
                    asked.failures.push(flagged::failure(source));
                    flagged.push(Flagged { source, wal });
                }
                Ok(FetchedFrom::Unusable(error)) => {
                    asked.there = true;
                    asked.failures.push(source.failed(&error));
                }
                Err(error) if error.is::<Unwritable>() => {
                    asked.unwritten = Some(error.to_string());
                    return asked;
                }
                Err(error) => asked.unanswered(source, source.failed(&error)),
            }
        }
        asking.unanswered().for_each(|source| asked.unanswered(source, source.unanswered()));
        if !flagged.is_empty() {
            self.take_flagged(wanted, flagged, &mut asked).await;
        }
        asked
    }

    /// Takes one of the copies that were archived though damaged, if no repository can have a sound one.
    async fn take_flagged(
        &self,
        wanted: WantedFile<'_>,
        flagged: Vec<Flagged<'_>>,
        asked: &mut ArchiveAnswer<'_>,
    ) {
        let is_gone = |name: &str| self.without.iter().any(|gone| gone == name);
        let left_out: Vec<&String> = self.left_out.iter().filter(|name| !is_gone(name)).collect();
        if !left_out.is_empty() || asked.silent.iter().any(|name| !is_gone(name)) {
            asked.failures.extend(left_out.into_iter().map(|name| flagged::left_out(name)));
            return;
        }
        let name = wanted.built.map_or(wanted.name, |built| built.segment.source_name());
        for source in flagged::in_order(&flagged, name, self.served.first()).await {
            let wanted = WantedFile { flagged: true, ..wanted };
            match self.fetch_from(source, wanted, Began::default()).await {
                Ok(FetchedFrom::Landed(size, creates)) => return asked.land(wanted, source, size, creates),
                Err(error) if error.is::<Unwritable>() => {
                    asked.unwritten = Some(error.to_string());
                    return;
                }
                Ok(FetchedFrom::Unusable(error)) | Err(error) => asked.failures.push(source.failed(&error)),
                Ok(FetchedFrom::Missing(_) | FetchedFrom::Flagged(_)) => {}
            }
        }
    }

    /// What the configuration calls the repository that is asked first, if one is.
    fn first(&self) -> Option<String> {
        self.served.begin(&self.origin);
        let id = self.served.first()?;
        Some(self.opened(id).0)
    }

    /// A segment is handed to the server.
    pub(crate) fn hand_over(&self, name: SegmentName) {
        self.served.hand_over(name);
    }

    /// Fails if a segment that was fetched ahead does not continue what the server has by now, or if that cannot be found out.
    pub(crate) async fn admit_again(&self, name: SegmentName) -> anyhow::Result<()> {
        self.served.admit_again(name, self.origin.wal(), |id| self.opened(id).1).await
    }

    /// What the configuration calls a repository, and its archive, if it is open.
    fn opened(&self, id: RepositoryId) -> (String, Option<WalArchive>) {
        let open = |source: &FetchSource| source.opened().filter(|wal| wal.repository().id() == id);
        let found = self.sources.iter().find_map(|source| Some((source.name.clone(), open(source)?)));
        match found {
            Some((name, wal)) => (name, Some(wal)),
            None => (self.origin.name_of(id).unwrap_or_else(|| id.to_string()), None),
        }
    }

    /// All repositories that can be opened, and what the others failed with.
    pub(crate) async fn open_all(&self) -> (Vec<Missing<'_>>, Vec<Failed>) {
        let (mut opened, mut failures) = (Vec::new(), Vec::new());
        let ask = move |source, _| self.open(source).boxed();
        let mut asking = PendingQuestions::of(&self.sources, |_| false, ask);
        while let Some((source, answer)) = asking.next().await {
            match answer {
                Ok(wal) => opened.push(Missing { name: &source.name, wal }),
                Err(error) => failures.push(source.failed(&error)),
            }
        }
        failures.extend(asking.unanswered().map(FetchSource::unanswered));
        (opened, failures)
    }

    /// Opens a repository anew the next time that it is asked: what it said is not to be relied on.
    pub(crate) fn close(&self, name: &str) {
        self.sources.iter().filter(|source| source.name == name).for_each(FetchSource::close);
    }

    /// The WAL of this cluster in a repository: its descriptor was read, its lineage fits the data directory, and both are
    /// what the recovery began with.
    async fn open(&self, source: &FetchSource) -> anyhow::Result<WalArchive> {
        if let Some(wal) = source.opened() {
            return Ok(wal);
        }
        let binding = lock(&self.binding).clone();
        let repository = Repository::open(&source.name, &source.settings).await?;
        let lineage = self.find_lineage(&repository).await?;
        let acknowledges = self.acknowledging.contains(&source.name);
        self.origin.admit(&source.name, repository.id(), &lineage, acknowledges)?;
        let wal = repository.wal_to_read(&lineage).await?;
        if *lock(&self.binding) != binding {
            bail!("the data directory was bound to another lineage meanwhile");
        }
        lock(&self.lineage).get_or_insert(lineage);
        source.set_open(&wal);
        Ok(wal)
    }

    /// The history of a timeline, from any repository; `None` if all say that they have none. Histories never change, so
    /// they are remembered.
    pub(crate) async fn history(&self, timeline: TimelineId) -> anyhow::Result<Option<TimelineHistory>> {
        if let Some(history) = lock(&self.histories).get(&timeline) {
            return Ok(Some(history.clone()));
        }
        let mut failures = Vec::new();
        let ask = move |source, _| {
            let found = async move { self.history_in(&self.open(source).await?, timeline).await };
            found.boxed()
        };
        let mut asking = PendingQuestions::of(&self.sources, |_| false, ask);
        while let Some((source, found)) = asking.next().await {
            match found {
                Ok(Some(history)) => return Ok(Some(history)),
                Ok(None) => {}
                Err(error) => failures.push(source.failed(&error)),
            }
        }
        failures.extend(asking.unanswered().map(FetchSource::unanswered));
        if failures.is_empty() { Ok(None) } else { bail!(listed(&failures)) }
    }

    /// The history of a timeline in one repository.
    pub(crate) async fn history_in(
        &self,
        wal: &WalArchive,
        timeline: TimelineId,
    ) -> anyhow::Result<Option<TimelineHistory>> {
        if let Some(history) = lock(&self.histories).get(&timeline) {
            return Ok(Some(history.clone()));
        }
        let found = wal.history(timeline).await?;
        // The data directory may have been bound to another lineage meanwhile.
        let is_read = lock(&self.lineage).as_ref().is_some_and(|read| read.id == wal.lineage().id);
        if let Some(history) = found.as_ref().filter(|_| is_read) {
            lock(&self.histories).insert(timeline, history.clone());
        }
        Ok(found)
    }
}

/// What is behind a lock. A panic elsewhere leaves it usable: each change is a single assignment or insertion.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
