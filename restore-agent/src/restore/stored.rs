//! Which files of a `pg_wal` no archive has.
//!
//! Their content decides. Servers that went apart (a copy that was started beside its original, two standbys that were both
//! promoted) write different files of the same names, and the archive has those of one of them.
//!
//! Of what is about to be removed the stored copies are read whole: a header says nothing about the bytes behind it, and what is there
//! may be the only sound copy.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use futures_util::{StreamExt, TryStreamExt};
use walpoint_base::{SegmentFacts, SegmentName, SegmentSize, SystemId, TimelineId, WalFileName};
use walpoint_pg::control::CONTROL_FILE;
use walpoint_pg::wal::{LONG_HEADER, LongHeader, same_records};
use walpoint_repo::wal::{WalArchive, WalCopies, WalHeader};
use walpoint_runtime::args::CommonArgs;
use walpoint_storage::RepoError;
use walpoint_storage::layout::NameHash;
use walpoint_storage::object::{ContentHash, Sealer};

use super::decided::{Decided, OldWal};
use super::directory::MARKER;
use super::unarchived::inspect;
use super::{apart, elsewhere, reach, vouched};
use crate::plan::Planned;
use crate::wal::spool;

/// Requests at the same time to find out what a repository has.
const AT_ONCE: usize = 16;

/// Stored files that are read whole at the same time.
const READ_AT_ONCE: usize = 4;

/// A file is read in pieces of this length.
const PIECE: usize = 1 << 20;

/// What a data directory holds that no archive has.
#[derive(Debug)]
pub(super) struct NotStored {
    /// The plan's lineage, in every repository that can be read.
    pub(super) copies: WalCopies,
    /// Other lineages of the cluster.
    others: Vec<WalArchive>,
    /// In its `pg_wal`.
    pub(super) here: Remains,
    /// Where that data directory lies if a run that was interrupted moved it aside.
    pub(super) aside: Option<PathBuf>,
    /// What earlier restores of the same data directory kept of it or moved aside, which is gone from there.
    pub(super) earlier: Vec<Remains>,
}

/// Files of WAL in one directory that no archive has.
#[derive(Debug, Default)]
pub(super) struct Remains {
    /// Where they lie.
    pub(super) directory: PathBuf,
    /// The files, in order.
    pub(super) files: Vec<WalFileName>,
    /// Those of them under whose names the plan's lineage has other content.
    pub(super) differ: BTreeSet<WalFileName>,
    /// Those of them that an archive has damaged.
    pub(super) damaged: BTreeSet<WalFileName>,
    /// Those that waited to be archived.
    pub(super) waiting: BTreeSet<WalFileName>,
    /// What shows that they are another server's than the archive's, if anything does.
    pub(super) apart: Option<String>,
    /// What shows which stored segments are theirs ([`vouched`]).
    pub(super) vouched: Vec<String>,
    /// Whether `rollback` took their data directory away.
    pub(super) rolled_back: bool,
}

/// How a file compares with what an archive has under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    /// The archive has nothing sound of that name.
    Missing,
    /// The archive has it, and what is stored of it is damaged.
    Damaged,
    /// The same content.
    Same,
    /// All records of a segment that was not finished, or that ends before its file does, and perhaps more.
    Records,
    /// Another content.
    Other,
}

/// Whose files count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// Anyone's: they would be lost.
    All,
    /// The plan's cluster's: the others lie aside.
    Own,
}

impl NotStored {
    /// Nothing yet.
    pub(super) async fn begin(common: &CommonArgs, planned: &Planned) -> anyhow::Result<Self> {
        let (copies, others) = elsewhere::all_lineages(common, planned).await?;
        Ok(Self { copies, others, here: Remains::default(), aside: None, earlier: Vec::new() })
    }

    /// Looks into the `pg_wal` of a data directory. Of each timeline the newest segment that an archive has is read, and those
    /// that it does not have; what lies before one that is the same is the same server's. `leave`: a `pg_wal` that is not there is
    /// taken for lost.
    pub(super) async fn look(&mut self, old: &OldWal, leave: bool, planned: &Planned) -> anyhow::Result<()> {
        self.aside = old.is_aside.then(|| old.data.clone());
        let is_repaired = old.whose == Whose::All;
        let must_be_there = had_a_server(&old.data) && !(leave && is_repaired);
        let found = self.remains(&old.wal, old.whose, must_be_there, planned).await;
        let is_absent = |error: &anyhow::Error| {
            let cause = error.downcast_ref::<io::Error>();
            cause.is_some_and(|cause| cause.kind() == io::ErrorKind::NotFound)
        };
        self.here = match found {
            Err(error) if is_repaired && must_be_there && is_absent(&error) => {
                return Err(error.context(format!(
                    "{}: its pg_wal, which may hold unarchived WAL, is missing: nothing was \
                     changed\nHINT: Check that its filesystem is mounted. If that WAL is lost, use \
                     --delta --discard-unarchived-wal.",
                    old.data.display()
                )));
            }
            found => found?,
        };
        Ok(())
    }

    /// Looks into what earlier restores of a data directory kept of it and moved aside, but for what was looked at.
    pub(super) async fn look_back(&mut self, decided: &Decided, planned: &Planned) -> anyhow::Result<()> {
        let told = |error| anyhow!(walpoint_runtime::exit::format_chain(error));
        let (kept, asides) = (decided.kept.as_ref().map_err(told)?, decided.asides.as_ref().map_err(told)?);
        for kept in kept {
            let mut remains = self.remains(&kept.directory, Whose::Own, false, planned).await?;
            remains.waiting.extend(kept.waiting.iter().filter_map(|name| name.parse::<WalFileName>().ok()));
            // What showed it then was perhaps not kept, because another lineage has it.
            let noted = kept.apart.iter().find(|noted| noted.lineage == planned.lineage.id.to_string());
            remains.apart = remains.apart.or_else(|| noted.map(|noted| noted.why.clone()));
            // Their directory may have been deleted since.
            remains.vouched.extend(kept.vouched.iter().cloned());
            self.earlier.push(remains);
        }
        for record in asides.iter().filter(|record| record.wal() != self.here.directory) {
            let must_be_there = had_a_server(&record.aside);
            let remains = self.remains(&record.wal(), Whose::Own, must_be_there, planned).await?;
            self.earlier.push(Remains { rolled_back: record.was_rolled_back(), ..remains });
        }
        Ok(())
    }

    /// What lies in one directory. `must_be_there`: a server wrote to it.
    async fn remains(
        &self,
        wal: &Path,
        whose: Whose,
        must_be_there: bool,
        planned: &Planned,
    ) -> anyhow::Result<Remains> {
        let own = planned.lineage.system_id();
        let mut present =
            present(wal, must_be_there).with_context(|| format!("could not read \"{}\"", wal.display()))?;
        // Another cluster's of the same name is not this one.
        let is_own = |system_id: &Option<SystemId>| system_id.is_none_or(|found| found == own);
        if whose == Whose::Own {
            // Files that do not say whose they are belong to those that do.
            let is_proven = present.iter().any(|(_, id)| *id == Some(own));
            present.retain(|(_, id)| is_proven && is_own(id));
        }
        let mut left: Vec<WalFileName> =
            present.iter().filter(|(_, id)| is_own(id)).map(|(name, _)| *name).collect();
        let (mut differ, mut damaged) = (BTreeSet::new(), BTreeSet::new());
        let (mut other, copies) = (BTreeSet::new(), self.copies.archives().len());
        for (at, archive) in self.copies.archives().iter().chain(&self.others).enumerate() {
            let compared = match compare_all(archive, wal, &left, whose).await {
                Err(error) if at > 0 && error.downcast_ref::<RepoError>().is_some() => {
                    let name = archive.repository().name();
                    tracing::warn!("could not determine what repository \"{name}\" has: {error}");
                    continue;
                }
                compared => compared?,
            };
            left.clear();
            for (name, comparison) in compared {
                if matches!(comparison, Comparison::Missing | Comparison::Damaged | Comparison::Other) {
                    left.push(name);
                }
                if comparison == Comparison::Damaged {
                    damaged.insert(name);
                }
                if comparison == Comparison::Other && at < copies {
                    differ.insert(name);
                }
            }
            if at < copies {
                other = differ.iter().copied().filter(|name| left.contains(name)).collect();
            }
        }
        let files = present.iter().filter(|(name, id)| !is_own(id) || left.contains(name));
        let files: Vec<WalFileName> = files.map(|(name, _)| *name).collect();
        differ.retain(|name| files.contains(name));
        damaged.retain(|name| files.contains(name));
        let waiting = files.iter().copied().filter(|name| waits(wal, *name)).collect();
        let has_segments = files.iter().any(|name| matches!(name, WalFileName::Segment(_)));
        let apart = if has_segments { apart::shown(&self.copies, wal, &other, planned).await? } else { None };
        let vouched = vouched::look(&self.copies, wal, &files, planned).await?;
        let (directory, rolled_back) = (wal.to_owned(), false);
        Ok(Remains { directory, files, differ, damaged, waiting, apart, vouched, rolled_back })
    }

    /// Those of the files that wait to be archived which no archive has. Of one that is not in `pg_wal` any more the name decides.
    pub(super) async fn among(
        &self,
        pgdata: &Path,
        waiting: Vec<WalFileName>,
    ) -> anyhow::Result<Vec<WalFileName>> {
        let mut lost = Vec::new();
        for name in waiting {
            let file = pgdata.join("pg_wal").join(name.to_string());
            let stored = match fs::symlink_metadata(file) {
                Ok(meta) if meta.is_file() => !self.here.files.contains(&name),
                _ => self.is_named(name).await?,
            };
            if !stored {
                lost.push(name);
            }
        }
        Ok(lost)
    }

    /// Whether an archive has a file of that name.
    async fn is_named(&self, name: WalFileName) -> anyhow::Result<bool> {
        for archive in self.copies.archives().iter().chain(&self.others) {
            let is_there = match name {
                WalFileName::Segment(name) => header(archive, name).await?.is_some(),
                WalFileName::Partial(name) => !archive.partials(name).await?.is_empty(),
                WalFileName::History(_) | WalFileName::Backup(..) => {
                    sound(archive, archive.get(name).await)?.is_some()
                }
            };
            if is_there {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// How files of `pg_wal` compare with what one archive has. What it has of those that will be removed is read whole.
async fn compare_all(
    archive: &WalArchive,
    wal: &Path,
    files: &[WalFileName],
    whose: Whose,
) -> anyhow::Result<Vec<(WalFileName, Comparison)>> {
    let names = files.iter().filter_map(|name| match name {
        WalFileName::Segment(name) => Some(*name),
        _ => None,
    });
    let headers = futures_util::stream::iter(names)
        .map(|name| async move { Ok::<_, anyhow::Error>((name, header(archive, name).await?)) });
    let mut headers: Vec<(SegmentName, Option<WalHeader>)> = headers.buffered(AT_ONCE).try_collect().await?;
    headers.sort_unstable_by_key(|(name, _)| std::cmp::Reverse(*name));
    let (mut compared, mut proven): (Vec<_>, BTreeSet<TimelineId>) = (Vec::new(), BTreeSet::new());
    for (name, header) in headers {
        let comparison = match header {
            None => Comparison::Missing,
            // A segment that waits was perhaps refused.
            Some(header)
                if proven.contains(&name.timeline)
                    && !header.damaged
                    && !waits(wal, WalFileName::Segment(name)) =>
            {
                Comparison::Same
            }
            Some(header) => compare_segment(archive, wal, name, &header).await?,
        };
        if comparison == Comparison::Same {
            proven.insert(name.timeline);
        }
        compared.push((WalFileName::Segment(name), comparison));
    }
    for &name in files {
        let comparison = match name {
            WalFileName::History(timeline) => compare_history(archive, wal, timeline).await?,
            WalFileName::Partial(segment) => compare_partial(archive, wal, segment).await?,
            WalFileName::Segment(_) | WalFileName::Backup(..) => continue,
        };
        compared.push((name, comparison));
    }
    if whose == Whose::Own {
        return Ok(compared);
    }
    let read = futures_util::stream::iter(compared).map(|(name, comparison)| async move {
        let is_sound = comparison != Comparison::Same || is_stored_whole(archive, wal, name).await?;
        Ok::<_, anyhow::Error>((name, if is_sound { comparison } else { Comparison::Damaged }))
    });
    read.buffered(READ_AT_ONCE).try_collect().await
}

/// Whether what an archive has of a file, which is the same by its hash, can be read to its end.
async fn is_stored_whole(archive: &WalArchive, wal: &Path, name: WalFileName) -> anyhow::Result<bool> {
    let reader = match name {
        WalFileName::Segment(_) => archive.read(name).await,
        WalFileName::Partial(segment) => {
            let ours = hash(archive, &wal.join(name.to_string()), u64::MAX).await?;
            archive.read_partial(segment, NameHash::of(&ours)).await
        }
        // They were read when they were compared.
        WalFileName::History(_) | WalFileName::Backup(..) => return Ok(true),
    };
    let Some(reader) = sound(archive, reader)? else { return Ok(false) };
    Ok(sound(archive, reader.write_to(io::sink()).await.map(Some))?.is_some())
}

/// What an archive says about a segment. What is damaged there is as good as missing.
pub(super) async fn header(archive: &WalArchive, name: SegmentName) -> anyhow::Result<Option<WalHeader>> {
    sound(archive, archive.header(name).await)
}

pub(super) fn sound<T>(
    archive: &WalArchive,
    read: Result<Option<T>, RepoError>,
) -> anyhow::Result<Option<T>> {
    match read {
        Err(error @ RepoError::Corrupt { .. }) => {
            tracing::warn!("repository \"{}\": {error}", archive.repository().name());
            Ok(None)
        }
        read => Ok(read?),
    }
}

async fn compare_segment(
    archive: &WalArchive,
    wal: &Path,
    name: SegmentName,
    header: &WalHeader,
) -> anyhow::Result<Comparison> {
    let path = wal.join(name.to_string());
    if hash(archive, &path, u64::MAX).await? == header.hash {
        return Ok(Comparison::Same);
    }
    let inspected = path.clone();
    let facts = tokio::task::spawn_blocking(move || inspect(name, &inspected, None)).await??;
    // Nothing follows what is torn or damaged that could be compared.
    let Ok((facts, None)) = facts else { return Ok(Comparison::Other) };
    let length = length_of_records(&facts);
    // Behind a switch lies what a standby, or what made a copy, happened to write there.
    if facts.whole && !facts.switched {
        let same = header.chain == facts.chain && holds_the_records(archive, &path, &facts).await?;
        return Ok(if same { Comparison::Records } else { Comparison::Other });
    }
    let stored = sound(archive, archive.hash_of_beginning(WalFileName::Segment(name), length).await)?;
    Ok(match stored {
        None => Comparison::Missing,
        Some(stored) if stored == hash(archive, &path, length).await? => Comparison::Records,
        Some(_) if holds_the_records(archive, &path, &facts).await? => Comparison::Records,
        Some(_) => Comparison::Other,
    })
}

/// How many bytes of a segment its records take: of one that a switch or the end of WAL ends, those up to there.
pub(super) fn length_of_records(facts: &SegmentFacts) -> u64 {
    let begin = facts.name.number(facts.size).map_or(facts.end, |number| number.start(facts.size));
    if facts.whole && !facts.switched { facts.size.bytes() } else { facts.end.since(begin) }
}

/// Whether an archive's copy of a segment has all records of the file, whatever differs in bytes that mean nothing. Both are read whole.
pub(super) async fn holds_the_records(
    archive: &WalArchive,
    path: &Path,
    facts: &SegmentFacts,
) -> anyhow::Result<bool> {
    let name = facts.name;
    let stored = sound(archive, archive.get(WalFileName::Segment(name)).await)?;
    let Some(stored) = stored else { return Ok(false) };
    let length = usize::try_from(length_of_records(facts)).unwrap_or(usize::MAX);
    let file = path.to_owned();
    let compared = tokio::task::spawn_blocking(move || -> io::Result<bool> {
        let mut ours = Vec::new();
        reach::plain(&file)?.read_to_end(&mut ours)?;
        Ok(same_records(name, &ours, &stored.content, length))
    });
    compared.await?.with_context(|| format!("could not read \"{}\"", path.display()))
}

/// Histories are compared as they are.
async fn compare_history(
    archive: &WalArchive,
    wal: &Path,
    timeline: TimelineId,
) -> anyhow::Result<Comparison> {
    let name = WalFileName::History(timeline);
    let Some(stored) = sound(archive, archive.get(name).await)? else { return Ok(Comparison::Missing) };
    let ours = hash(archive, &wal.join(name.to_string()), u64::MAX).await?;
    let same = archive.repository().sealer().content_hash(&stored.content) == ours;
    Ok(if same { Comparison::Same } else { Comparison::Other })
}

/// Of a `.partial` file there may be several, each under its hash.
async fn compare_partial(
    archive: &WalArchive,
    wal: &Path,
    segment: SegmentName,
) -> anyhow::Result<Comparison> {
    let stored = archive.partials(segment).await?;
    if stored.is_empty() {
        return Ok(Comparison::Missing);
    }
    let ours = hash(archive, &wal.join(WalFileName::Partial(segment).to_string()), u64::MAX).await?;
    let same = stored.contains(&NameHash::of(&ours));
    Ok(if same { Comparison::Same } else { Comparison::Other })
}

/// The hash of the first bytes of a file, as an archive makes it.
pub(super) async fn hash(archive: &WalArchive, path: &Path, length: u64) -> anyhow::Result<ContentHash> {
    let (sealer, file) = (archive.repository().sealer().clone(), path.to_owned());
    let hashed = tokio::task::spawn_blocking(move || hash_file(&sealer, &file, length)).await?;
    hashed.with_context(|| format!("could not read \"{}\"", path.display()))
}

fn hash_file(sealer: &Sealer, path: &Path, length: u64) -> io::Result<ContentHash> {
    let (mut file, mut hasher) = (reach::plain(path)?.take(length), sealer.content_hasher());
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(ContentHash(*hasher.finalize().as_bytes())),
            read => drop(hasher.update(piece.get(..read).unwrap_or_default())),
        }
    }
}

/// Whether a file waits to be archived.
fn waits(wal: &Path, name: WalFileName) -> bool {
    wal.join("archive_status").join(format!("{name}.ready")).exists()
}

/// The files that were written under their names: segments, each with its cluster, histories and `.partial` files. A file that
/// waits to be used again holds an older segment; one that waits to be archived does not, whatever is wrong with it.
/// `must_be_there`: a server wrote to it, so an empty one is another one.
fn present(wal: &Path, must_be_there: bool) -> io::Result<Vec<(WalFileName, Option<SystemId>)>> {
    let entries = match fs::read_dir(wal) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && !must_be_there => return Ok(Vec::new()),
        entries => entries?,
    };
    let (mut found, mut is_a_servers) = (Vec::new(), !must_be_there);
    for entry in entries {
        let entry = entry?;
        is_a_servers = is_a_servers || is_of_a_server(&entry.file_name());
        let name = entry.file_name().to_str().and_then(|name| name.parse::<WalFileName>().ok());
        let Some(name) = name.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_file())) else {
            continue;
        };
        let segment = match name {
            WalFileName::Segment(segment) => segment,
            WalFileName::History(_) | WalFileName::Partial(_) => {
                found.push((name, None));
                continue;
            }
            WalFileName::Backup(..) => continue,
        };
        let mut page = Vec::new();
        reach::plain(&entry.path())?.take(LONG_HEADER as u64).read_to_end(&mut page)?;
        let header = LongHeader::parse(&page).filter(|header| {
            let size = SegmentSize::new(u64::from(header.segment_size));
            size.and_then(|size| Some(segment.number(size)?.start(size))) == Some(header.page.address)
        });
        if header.is_some() || waits(wal, name) {
            found.push((name, header.map(|header| header.system_id)));
        }
    }
    if !is_a_servers {
        let what = "it has nothing of a server\nHINT: Check that its filesystem is mounted.";
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    }
    found.sort_by_key(|(name, _)| name.to_string());
    Ok(found)
}

/// Whether a name in `pg_wal` is a server's or a restore's. Each leaves some, and an empty mount point has none.
fn is_of_a_server(name: &OsStr) -> bool {
    name == "archive_status"
        || name == spool::DIRECTORY
        || name.to_str().is_some_and(|name| name.parse::<WalFileName>().is_ok())
}

/// Whether a server worked on what lies there, or could: it has a `pg_wal` then. An unfinished restore need not have one; the marker of
/// one that was finished says nothing of what came after.
fn had_a_server(pgdata: &Path) -> bool {
    let is_unfinished = || pgdata.join(MARKER).exists() && !pgdata.join(CONTROL_FILE).exists();
    pgdata.join("PG_VERSION").is_file() && !is_unfinished()
}
