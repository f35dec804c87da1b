//! The repositories of a cluster as one archive: the first that has a file, and answers, gives it.
//!
//! Repositories are opened when they are needed and opened anew after they failed, so that repaired credentials and mounts
//! are found. A file lands under its name only after every check has passed.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use walpoint_base::{
    ClusterName, CreatedTablespace, LineageId, Place, SegmentName, SegmentNo, SegmentSize, SystemId,
    TimelineHistory, TimelineId, WalFileName,
};
use walpoint_repo::layout::WalEntry;
use walpoint_repo::lineage::{BINDING, bound_lineage};
use walpoint_repo::object::RepositoryId;
use walpoint_repo::plan::ForkSegment;
use walpoint_repo::store::StoreSettings;
use walpoint_repo::wal::WalArchive;
use walpoint_repo::{Lineage, RepoError, Repository};
use walpoint_runtime::args::Selection;
use walpoint_runtime::exit::told;

use crate::wal::asking::{Asking, Began};
use crate::wal::creates::{self, Marked};
use crate::wal::cut::CutFile;
use crate::wal::landing::{self, Durability, Landing};
use crate::wal::note::{Built, TargetNote};
use crate::wal::origin::OriginKeeper;
use crate::wal::prove;
use crate::wal::served::Served;
use crate::wal::spool;

/// For how long a repository that did not answer in time is asked last.
const LATE: Duration = Duration::from_secs(60);

/// Objects that a store lists at once.
const PAGE: usize = 1000;

/// What an attempt to have a file came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// It is there, whole and verified.
    Landed(Landed),
    /// It is proven not to be in the archive, or, if no proof was wanted, no repository has it. Says so.
    Absent(String),
    /// Neither. Says why.
    Uncertain(String),
}

/// A file that is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Landed {
    /// Its length in bytes.
    pub(crate) size: u64,
    /// What somebody should know: empty, or what was wrong in another repository.
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

/// The archive of one cluster.
#[derive(Debug)]
pub(crate) struct Archive {
    cluster: ClusterName,
    /// Whose WAL is asked for, from `pg_control`.
    system_id: Option<SystemId>,
    /// Who asks; `None` where a person fetches a file by hand.
    place: Option<Place>,
    /// What the recovery began with.
    origin: OriginKeeper,
    /// The segment that is built, by the note that `restore` left.
    built: Option<Built>,
    sources: Vec<Source>,
    /// Names of repositories that acknowledge, by the configuration. The lineage's own set comes on top.
    acknowledging: Vec<String>,
    damaged_too: bool,
    /// Names of repositories that are gone for good.
    without: Vec<String>,
    /// The lineage that the first repository to answer has; the others must have the same.
    lineage: Mutex<Option<Lineage>>,
    histories: Mutex<HashMap<TimelineId, TimelineHistory>>,
    /// Which of the segments read lately are marked for a tablespace.
    marked: Mutex<Marked>,
    /// From which repository recovery has its WAL.
    served: Served,
}

/// One repository.
#[derive(Debug)]
pub(crate) struct Source {
    name: String,
    settings: StoreSettings,
    open: Mutex<Option<WalArchive>>,
    /// When others were asked because this one did not begin to answer.
    late: Mutex<Option<Instant>>,
}

/// A file that is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// What PostgreSQL calls it.
    pub(crate) name: WalFileName,
    /// Where it lands.
    pub(crate) path: &'a Path,
    /// How sure it has to be there after a crash.
    pub(crate) durability: Durability,
    /// How it is built, if it is not to be had under its own name.
    pub(crate) built: Option<Built>,
}

/// What the repositories answered.
#[derive(Debug, Default)]
pub(crate) struct Asked<'a> {
    /// The file, if one of them gave it.
    pub(crate) landed: Option<Landed>,
    /// Those that answered "no such object".
    pub(crate) missing: Vec<Missing<'a>>,
    /// Those that could not say, or could not give it.
    pub(crate) failures: Vec<Failed>,
    /// Whether one of them has it, and cannot give it.
    pub(crate) there: bool,
}

/// A repository in which a file was looked for, or is to be.
#[derive(Debug)]
pub(crate) struct Missing<'a> {
    /// What the configuration calls it.
    pub(crate) name: &'a str,
    /// Its archive, which answered "no such object".
    pub(crate) wal: WalArchive,
}

impl Archive {
    /// The archive of the selected cluster. Nothing is opened yet.
    pub(crate) fn new(selection: Selection<StoreSettings>, place: Option<&Place>) -> Self {
        let source =
            |(name, settings)| Source { name, settings, open: Mutex::new(None), late: Mutex::new(None) };
        let note = place.and_then(|place| TargetNote::read(&place.wal.join(spool::DIRECTORY)));
        Self {
            cluster: selection.cluster,
            system_id: place.map(|place| place.system_id),
            place: place.cloned(),
            origin: OriginKeeper::new(place),
            built: note.and_then(|note| note.fork),
            acknowledging: selection.settings.ack_set().to_vec(),
            damaged_too: selection.settings.fetch_damaged,
            without: selection.settings.fetch_without.clone(),
            sources: selection.repositories.into_iter().map(source).collect(),
            lineage: Mutex::new(None),
            histories: Mutex::default(),
            marked: Mutex::default(),
            served: Served::default(),
        }
    }

    /// Who asks; `None` where a person fetches a file by hand.
    pub(crate) fn place(&self) -> Option<&Place> {
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

    /// Names of repositories that are gone for good: nobody waits for their word.
    pub(crate) fn without(&self) -> &[String] {
        &self.without
    }

    /// One attempt to make `path` the file `name`, from the first repository that can give it.
    pub(crate) async fn fetch(
        &self,
        name: WalFileName,
        path: &Path,
        proof: Proof,
        durability: Durability,
    ) -> Outcome {
        if name.is_never_written() {
            return Outcome::Absent(format!(
                "\"{name}\" is not in the archive: the first timeline has no history"
            ));
        }
        let built = self.built.filter(|built| WalFileName::Segment(built.segment.name) == name);
        let of_itself = built.filter(|built| built.segment.is_of_itself());
        let wanted = Wanted { name, path, durability, built: of_itself };
        // What the path leaves is none of its business under its own name.
        let asked = match built {
            Some(built) if built.segment.left && of_itself.is_none() => Asked::default(),
            _ => self.ask(wanted).await,
        };
        if let Some(landed) = asked.landed {
            return Outcome::Landed(landed);
        }
        if let Some(built) = built.filter(|_| of_itself.is_none()) {
            return self.build(wanted, built, proof, asked).await;
        }
        let Asked { missing, failures, there, .. } = asked;
        if let WalFileName::History(timeline) = name
            && !there
            && let Some((repository, content)) = from_younger(&missing, timeline).await
        {
            let (size, target) = (content.len() as u64, path.to_owned());
            let landed = landing::blocking(move || landing::land(&target, &content, durability)).await;
            return match landed {
                Ok(()) => Outcome::Landed(Landed {
                    note: format!(
                        "\"{name}\" is gone from repository {repository}; a younger timeline's history has its lines"
                    ),
                    ..Landed::of(size)
                }),
                Err(error) => Outcome::Uncertain(told(&error)),
            };
        }
        // Whatever the others say: one of them has it, and only cannot give it.
        if proof == Proof::Wanted && !there {
            return prove::absence(self, name, &missing, failures).await;
        }
        if failures.is_empty() {
            return Outcome::Absent(format!("no repository has \"{name}\""));
        }
        Outcome::Uncertain(listed(&failures))
    }

    /// Asks the repositories for a file until one gives it.
    pub(crate) async fn ask<'a>(&'a self, wanted: Wanted<'a>) -> Asked<'a> {
        let mut asked = Asked::default();
        let first = self.first();
        let first = move |source: &Source| first.as_ref() == Some(&source.name);
        let mut asking = Asking::of(&self.sources, first, move |source, began| {
            self.fetch_from(source, wanted, began).boxed()
        });
        while let Some((source, answer)) = asking.next().await {
            match answer {
                Ok(Found::Landed(size, creates)) => {
                    asked.failures.extend(asking.unanswered());
                    let mut note = listed(&asked.failures);
                    if !note.is_empty() {
                        note = format!(
                            "\"{}\" comes from repository {}, because {note}",
                            wanted.name, source.name
                        );
                    }
                    asked.landed = Some(Landed { size, note, creates });
                    return asked;
                }
                Ok(Found::Missing(wal)) => asked.missing.push(Missing { name: &source.name, wal }),
                Ok(Found::Unusable(error)) => {
                    asked.there = true;
                    asked.failures.push(source.failed(&error));
                }
                Err(error) => asked.failures.push(source.failed(&error)),
            }
        }
        asked.failures.extend(asking.unanswered());
        asked
    }

    async fn fetch_from(&self, source: &Source, wanted: Wanted<'_>, began: Began) -> anyhow::Result<Found> {
        let Wanted { name, path, durability, built } = wanted;
        let wal = self.open(source).await?;
        let fork = built.map(|built| built.segment);
        let stored = fork.map_or(name, |fork| fork.source_name());
        let read = match stored {
            WalFileName::Partial(copy) if fork.is_some() => wal.read_incomplete(copy).await,
            _ => wal.read(stored).await,
        };
        let reader = match read {
            Ok(Some(reader)) => reader,
            Ok(None) => match fork {
                None => return Ok(Found::Missing(wal)),
                Some(_) => {
                    return Ok(Found::Unusable(anyhow!(
                        "\"{name}\" is built from \"{stored}\", which is not in it"
                    )));
                }
            },
            Err(error @ RepoError::Corrupt { .. }) => return Ok(Found::Unusable(error.into())),
            Err(error) => return Err(error.into()),
        };
        began.store(true, Ordering::Relaxed);
        if reader.header().is_some_and(|header| header.damaged) && !self.damaged_too {
            return Ok(Found::Unusable(anyhow!(
                "\"{name}\" was archived though damaged (push --accept-damaged), and PostgreSQL would end recovery in it; HINT: \
                 choose a target before it, or set fetch_damaged = true to recover up to the damage"
            )));
        }
        let given = match (stored, reader.header()) {
            (WalFileName::Segment(segment), Some(header)) => Some((segment, header.clone())),
            _ => None,
        };
        if let Some((segment, header)) = &given
            && let Err(error) = self.served.admit(&wal, *segment, header, |id| self.opened(id)).await
        {
            return Ok(Found::Unusable(error));
        }
        let creates = match name {
            WalFileName::Segment(segment) => {
                creates::by_segment(self, &wal, segment, reader.header(), fork).await?
            }
            _ => Vec::new(),
        };
        let size = fork.map_or(reader.length(), |_| wal.lineage().segment_size.bytes());
        let target = path.to_owned();
        let landing = landing::blocking(move || Landing::begin(&target)).await?;
        let segment_size = wal.lineage().segment_size;
        let start =
            |fork: &ForkSegment| fork.name.number(segment_size).map(|number| number.start(segment_size));
        let keep = fork.map_or(size, |fork| fork.cut.since(start(&fork).unwrap_or(fork.cut)));
        let cut = CutFile::new(landing, keep, size).expecting(built.and_then(|built| built.hash));
        let landing = match reader.write_to(cut).await {
            Ok((cut, _)) => match landing::blocking(move || cut.finish()).await {
                Ok(landing) => landing,
                Err(error) => return Ok(Found::Unusable(error.context(format!("\"{stored}\"")))),
            },
            Err(error) => return Ok(Found::Unusable(error.into())),
        };
        landing::blocking(move || landing.finish(durability)).await?;
        if let Some((segment, header)) = &given {
            self.served.note(&wal, *segment, header, &self.origin);
        }
        // What is inherited is no sign of the lineage itself.
        if let WalFileName::Segment(segment) = stored
            && !wal.inherits(segment)
        {
            let mut newest = segment;
            if self.origin.is_new(wal.repository().id()) {
                // What cannot be listed is not known to be there.
                newest = reach(self, &wal, segment).await.unwrap_or(segment);
            }
            self.origin.seen(wal.repository().id(), newest);
        }
        Ok(Found::Landed(size, creates))
    }

    /// What the configuration calls the repository that is asked first, if one is.
    fn first(&self) -> Option<String> {
        self.served.begin(&self.origin);
        let id = self.served.first()?;
        Some(self.opened(id).0)
    }

    /// What the configuration calls a repository, and its archive, if it is open.
    fn opened(&self, id: RepositoryId) -> (String, Option<WalArchive>) {
        let open = |source: &Source| lock(&source.open).clone().filter(|wal| wal.repository().id() == id);
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
        let mut asking = Asking::of(&self.sources, |_| false, ask);
        while let Some((source, answer)) = asking.next().await {
            match answer {
                Ok(wal) => opened.push(Missing { name: &source.name, wal }),
                Err(error) => failures.push(source.failed(&error)),
            }
        }
        failures.extend(asking.unanswered());
        (opened, failures)
    }

    /// The WAL of this cluster in a repository: its descriptor was read, its lineage fits the data directory, and both are
    /// what the recovery began with.
    async fn open(&self, source: &Source) -> anyhow::Result<WalArchive> {
        if let Some(wal) = lock(&source.open).clone() {
            return Ok(wal);
        }
        let repository = Repository::open(&source.name, &source.settings).await?;
        let lineage = self.find_lineage(&repository).await?;
        let acknowledges = self.acknowledging.contains(&source.name);
        self.origin.admit(&source.name, repository.id(), &lineage, acknowledges)?;
        let wal = repository.wal_to_read(&lineage).await?;
        lock(&self.lineage).get_or_insert(lineage);
        *lock(&source.open) = Some(wal.clone());
        Ok(wal)
    }

    async fn find_lineage(&self, repository: &Repository) -> anyhow::Result<Lineage> {
        let cluster = &self.cluster;
        let elsewhere = lock(&self.lineage).clone();
        let known = match &elsewhere {
            Some(lineage) => Some(lineage.id),
            None => self.origin.lineage()?,
        };
        if let Some(id) = known {
            let found = repository.read_lineage(cluster, id).await?;
            let found = found.with_context(|| format!("lineage {id} of cluster {cluster} is not in it"))?;
            if elsewhere.is_some_and(|elsewhere| !elsewhere.is_same_life(&found)) {
                bail!(
                    "lineage {id} of cluster {cluster} is another server's in it than in the other repositories"
                );
            }
            return Ok(found);
        }
        if let Some(system_id) = self.system_id {
            let found = repository.lineage_of(cluster, system_id, self.bound(repository)?).await?;
            return found.with_context(|| {
                format!("cluster {cluster} with system identifier {system_id} is not in it; HINT: is this the right cluster?")
            });
        }
        let lineages = repository.lineages(cluster).await?;
        // One that was split off is asked for from its own data directory.
        let newest = lineages.iter().rev().find(|lineage| lineage.parent.is_none()).or(lineages.last());
        let newest = newest.cloned().with_context(|| format!("cluster {cluster} is not in it"))?;
        if lineages.iter().any(|lineage| lineage.system_id() != newest.system_id()) {
            bail!(
                "cluster {cluster} has had several system identifiers; HINT: fetch into pg_wal of the data directory that needs it"
            );
        }
        Ok(newest)
    }

    /// The lineage of a repository that the data directory is bound to.
    fn bound(&self, repository: &Repository) -> anyhow::Result<Option<LineageId>> {
        let Some(Place { pgdata, .. }) = &self.place else { return Ok(None) };
        let path = pgdata.join(BINDING);
        let read = match std::fs::read_to_string(&path) {
            Ok(text) => bound_lineage(&text, repository.id()).map_err(anyhow::Error::from),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        };
        read.with_context(|| {
            format!(
                "{} cannot be read: which lineage this data directory belongs to is not known",
                path.display()
            )
        })
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
        let mut asking = Asking::of(&self.sources, |_| false, ask);
        while let Some((source, found)) = asking.next().await {
            match found {
                Ok(Some(history)) => return Ok(Some(history)),
                Ok(None) => {}
                Err(error) => failures.push(source.failed(&error)),
            }
        }
        failures.extend(asking.unanswered());
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
        if let Some(history) = &found {
            lock(&self.histories).insert(timeline, history.clone());
        }
        Ok(found)
    }
}

/// The history of a timeline that none of these repositories has any more, if a younger timeline's begins with it, and the
/// repository that has that. Which it is counts only for its own timeline; what cannot be read says nothing.
async fn from_younger(missing: &[Missing<'_>], timeline: TimelineId) -> Option<(String, Vec<u8>)> {
    for source in missing {
        match source.wal.history_from_younger(timeline).await {
            Ok(Some(content)) => return Some((source.name.to_owned(), content)),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!("the histories in repository {} cannot be read: {error}", source.name)
            }
        }
    }
    None
}

/// The newest segment from `segment` on that one page of a listing shows, but for what the timeline went on to hold after a
/// later one left it: recovery may not go there, and `expire` removes such a branch some day.
async fn reach(archive: &Archive, wal: &WalArchive, segment: SegmentName) -> anyhow::Result<SegmentName> {
    let size = wal.lineage().segment_size;
    let mut entries = wal.list(segment.timeline, Some(segment)).take(PAGE);
    let mut newest = segment;
    while let Some((entry, _)) = entries.try_next().await? {
        if let WalEntry::File(WalFileName::Segment(found)) = entry {
            newest = newest.max(found);
        }
    }
    for timeline in wal.histories().await?.into_iter().filter(|timeline| *timeline > segment.timeline) {
        let history = archive.history_in(wal, timeline).await?;
        if let Some(left) = history.and_then(|history| history.end_of(segment.timeline)) {
            newest = newest.min(SegmentNo::of(left, size).name(segment.timeline, size));
        }
    }
    Ok(newest.max(segment))
}

enum Found {
    /// Its length, and the tablespaces that replay of it creates.
    Landed(u64, Vec<CreatedTablespace>),
    Missing(WalArchive),
    /// It is there and cannot be handed over.
    Unusable(anyhow::Error),
}

/// A repository that could not say whether it has a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failed {
    /// What the configuration calls it.
    pub(crate) repository: String,
    /// Why.
    pub(crate) why: String,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "repository {}: {}", self.repository, self.why)
    }
}

impl Source {
    /// Whether it did not answer in time a while ago.
    pub(crate) fn is_late(&self) -> bool {
        lock(&self.late).is_some_and(|at| at.elapsed() < LATE)
    }

    /// It does not answer in time.
    pub(crate) fn set_late(&self) {
        *lock(&self.late) = Some(Instant::now());
    }

    /// The failure of one that has not answered.
    pub(crate) fn unanswered(&self) -> Failed {
        Failed { repository: self.name.clone(), why: "it has not answered yet".to_owned() }
    }

    /// Notes a failure: the next attempt opens the repository anew, unless that cannot help.
    fn failed(&self, error: &anyhow::Error) -> Failed {
        if !matches!(error.downcast_ref(), Some(RepoError::Corrupt { .. })) {
            *lock(&self.open) = None;
        }
        Failed { repository: self.name.clone(), why: told(error) }
    }
}

/// All failures in one line.
pub(crate) fn listed(failures: &[Failed]) -> String {
    failures.iter().map(Failed::to_string).collect::<Vec<_>>().join("; ")
}

/// What is behind a lock. A panic elsewhere leaves it usable: each change is a single assignment or insertion.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
