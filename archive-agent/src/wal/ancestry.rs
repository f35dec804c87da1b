//! Whether the WAL that a directory has of the timelines before its server's own continues what an archive holds of them.
//!
//! A server that was promoted brings WAL that it did not archive itself. It may be a copy that wrote on an earlier timeline by
//! itself before it followed a server: then that WAL has the names of production's and is not production's. Where
//! neither content nor records meet what is stored, PostgreSQL's own marks tell what a standby received
//! (`XLogArchiveForceDone` in src/backend/access/transam/xlogarchive.c) from what a server wrote while it did not archive. With
//! `archive_mode = always` a standby has no such mark: it archives what it receives. Then the times of the files tell.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use walpoint_base::chain::{ChainEnd, Link};
use walpoint_base::{SegmentName, SegmentNo, TimelineHistory, TimelineId, WalFileName};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;

use super::comparison::{self, Comparison};
use super::neighbors::{self, StoredNeighbor, newest_before, stored_between};
use super::split_brain::SplitBrain;
use super::target::WalTarget;
use super::{claim, disk, elsewhere};

/// How a segment of a directory relates to what an archive holds before it on the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tie {
    /// Nothing is stored there.
    First,
    /// What is stored there is this directory's.
    Shown,
    /// The segment before is stored. Nothing contradicts it, nothing shows whose it is.
    Fits,
    /// The segment before is not stored, an earlier one is, and nothing shows that this one is this directory's.
    Gap {
        /// The segment before.
        missing: SegmentName,
        /// One that is stored before that.
        stored: SegmentName,
    },
    /// What is stored is another server's; what shows it.
    Other(String),
}

/// The path to a timeline, as a directory and an archive have it.
pub(super) struct Ancestry<'a> {
    pub(super) target: &'a WalTarget,
    pub(super) archive: &'a WalArchive,
    /// The repositories of the cluster.
    pub(super) around: &'a [WalTarget],
    pub(super) cluster: &'a WalIdentity,
    /// The directory.
    pub(super) wal: &'a Path,
    /// Of the timeline that the server of the directory is on.
    pub(super) history: &'a TimelineHistory,
}

impl Ancestry<'_> {
    /// How a segment of the directory, which lies before the server's own timeline, relates to what is stored before it.
    pub(super) async fn tie(&self, name: SegmentName) -> Result<Tie, RepoError> {
        let Some(before) = self.before(name) else { return Ok(Tie::First) };
        let header = match neighbors::header(self.archive, before).await? {
            StoredNeighbor::Absent => return self.behind_a_gap(before).await,
            StoredNeighbor::Damaged => return Ok(Tie::Fits),
            StoredNeighbor::Sound(header) => header,
        };
        if self.has(before).await? {
            match comparison::content(self.archive, self.cluster, self.wal, before, header.hash).await? {
                Comparison::Same => return Ok(Tie::Shown),
                Comparison::Other(what) => return Ok(Tie::Other(what)),
                Comparison::Unknown => {}
            }
        }
        if self.noted(before.timeline).await?.is_some_and(|noted| noted >= before)
            || self.is_shown_elsewhere(before).await?
        {
            return Ok(Tie::Shown);
        }
        let chain = comparison::edges(self.wal, name, self.cluster).await;
        Ok(match chain.map(|chain| header.chain.end.link(&chain)) {
            Some(Link::Broken(found)) if header.chain.end != ChainEnd::UNKNOWN => {
                Tie::Other(format!("segment {name} does not continue {before}, which is stored: {found}"))
            }
            _ => Tie::Fits,
        })
    }

    /// What shows that the server's own timeline does not come from what is stored, or leaves that open though the server wrote
    /// the WAL before it by itself.
    pub(super) async fn contradiction(&self) -> Result<Option<SplitBrain>, RepoError> {
        let timeline = self.history.timeline();
        let run = self.before_own_timeline().await?;
        let Some(oldest) = run.last() else { return Ok(None) };
        let split = |what| SplitBrain::new(self.archive, timeline, what);
        Ok(match self.tie(*oldest).await? {
            Tie::Other(what) => Some(split(what)),
            Tie::Gap { missing, stored } if self.wrote(&run).await? => {
                let path = self.wal.join(self.own_first().unwrap_or(*oldest).to_string());
                Some(
                    split(format!(
                        "timeline {timeline} follows segment {oldest}, which this server wrote while it did not archive; \
                         segment {missing} is neither stored nor in pg_wal, {stored} before it is stored, and nothing shows \
                         that this server or its primary wrote that\nHINT: If one of them did, run \"archive-agent push \
                         --same-server {}\", and nothing else.",
                        path.display()
                    ))
                    .not_shown(),
                )
            }
            _ => None,
        })
    }

    /// Whether the server wrote these segments by itself. What a standby received is its primary's, however much was lost before
    /// it, and of that only one lacks the mark at times: the last one of a base backup, or the last one of all.
    async fn wrote(&self, run: &[SegmentName]) -> Result<bool, RepoError> {
        for name in run {
            if self.was_received(*name).await? {
                return Ok(false);
            }
        }
        Ok(run.len() > 1)
    }

    /// Whether a standby received a segment of the directory, of a timeline before its own: PostgreSQL has marked it as archived, or
    /// it was written since the server was started. A start of a server that was promoted has written on no timeline before.
    pub(super) async fn was_received(&self, name: SegmentName) -> Result<bool, RepoError> {
        let (wal, timeline) = (self.wal.to_owned(), self.history.timeline());
        let received = move || {
            wal.join(format!("archive_status/{name}.done")).exists() || is_of_this_start(&wal, timeline, name)
        };
        Ok(disk::look(self.wal, received).await?)
    }

    /// The segment before one on the path.
    pub(super) fn before(&self, name: SegmentName) -> Option<SegmentName> {
        neighbors::before(name, Some(self.history), self.cluster.segment_size)
    }

    /// Whether the directory has a segment that lies before the server's own timeline. One that cannot be read shows nothing.
    async fn has(&self, name: SegmentName) -> Result<bool, RepoError> {
        let size = self.cluster.segment_size;
        let Some(number) = name.number(size) else { return Ok(false) };
        let path = self.wal.join(name.to_string());
        Ok(disk::look(self.wal, move || comparison::has_begun(&path, number, size)).await?)
    }

    /// The segment that the server's own timeline begins in.
    fn own_first(&self) -> Option<SegmentName> {
        let timeline = self.history.timeline();
        let switch = self.history.begin_of(timeline).filter(|switch| switch.is_valid())?;
        let size = self.cluster.segment_size;
        Some(SegmentNo::of(switch, size).name(timeline, size))
    }

    /// The segments of the directory right before the server's own timeline, newest first.
    async fn before_own_timeline(&self) -> Result<Vec<SegmentName>, RepoError> {
        let mut run = Vec::new();
        let mut next = self.own_first().and_then(|first| self.before(first));
        while let Some(name) = next {
            if !self.has(name).await? {
                break;
            }
            run.push(name);
            next = self.before(name);
        }
        Ok(run)
    }

    /// [`Self::tie`] where the segment before is not stored.
    async fn behind_a_gap(&self, missing: SegmentName) -> Result<Tie, RepoError> {
        let size = self.cluster.segment_size;
        let mut path: Vec<TimelineId> = self.history.path().collect();
        path.reverse();
        for timeline in path.into_iter().skip_while(|timeline| *timeline != missing.timeline) {
            let end = match self.history.end_of(timeline) {
                _ if timeline == missing.timeline => missing,
                Some(end) => SegmentNo::of(end, size).name(timeline, size),
                None => continue,
            };
            let noted = self.noted(timeline).await?;
            let Some(stored) = stored_between(self.archive, noted, Some(end), timeline).await? else {
                match noted {
                    Some(_) => return Ok(Tie::Shown),
                    None => continue,
                }
            };
            if let Some(newest) = newest_before(self.archive, end).await?
                && self.is_shown_elsewhere(newest).await?
            {
                return Ok(Tie::Shown);
            }
            return Ok(Tie::Gap { missing, stored });
        }
        Ok(Tie::First)
    }

    async fn noted(&self, timeline: TimelineId) -> Result<Option<SegmentName>, RepoError> {
        elsewhere::claimed(self.wal, self.archive, timeline).await
    }

    async fn is_shown_elsewhere(&self, stored: SegmentName) -> Result<bool, RepoError> {
        elsewhere::shows((self.target, self.archive), self.around, self.cluster, self.wal, stored).await
    }
}

/// Whether a segment of a timeline before the server's own was written since the server was started. Blocks.
fn is_of_this_start(wal: &Path, own: TimelineId, name: SegmentName) -> bool {
    // PostgreSQL writes it at each start.
    let Some(started) = wal.parent().and_then(|pgdata| modified(&pgdata.join("postmaster.opts"))) else {
        return false;
    };
    // A clock that was set back makes what is older seem newer, but not than the promotion.
    let promoted = WalFileName::History(own);
    let at = |name: String| modified(&wal.join(name));
    let (written, promoted) = (at(name.to_string()), at(promoted.to_string()));
    name.timeline != own && written > Some(started) && written <= promoted
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|file| file.modified()).ok()
}

/// Notes in a directory that what an archive holds of a path before a segment is its server's; the newest segment of that, if
/// there is one, and why there was no room for the note.
pub(super) async fn note_as_own(
    archive: &WalArchive,
    wal: &Path,
    name: SegmentName,
    history: &TimelineHistory,
) -> Result<Option<(SegmentName, Option<io::Error>)>, RepoError> {
    let size = archive.lineage().segment_size;
    let mut path: Vec<TimelineId> = history.path().collect();
    path.reverse();
    for timeline in path {
        let end = match history.end_of(timeline) {
            _ if timeline == name.timeline => name,
            Some(end) => SegmentNo::of(end, size).name(timeline, size),
            None => continue,
        };
        let Some(newest) = newest_before(archive, end).await? else { continue };
        let Some(header) = archive.header(newest).await?.filter(|header| !header.damaged) else {
            return Ok(None);
        };
        let what = || format!("{} cannot be written", wal.join(claim::FILE).display());
        let (directory, noting) = (wal.to_owned(), archive.clone());
        let claim = claim::SegmentClaim { segment: newest, hash: header.hash };
        return match disk::run(wal, move || claim::note(&directory, &noting, claim)).await? {
            Ok(()) => Ok(Some((newest, None))),
            Err(full) if claim::is_full(&full) => Ok(Some((newest, Some(full)))),
            Err(source) => Err(RepoError::Io { what: what(), source }),
        };
    }
    Ok(None)
}
