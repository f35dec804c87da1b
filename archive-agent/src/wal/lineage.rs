//! Which lineage of a repository a data directory archives to that is not bound to one of it.
//!
//! One that is bound in another repository has the same number here, or none: never another server's. Of a cluster with one lineage it is that one. Where others were split off, the WAL in the directory decides: a standby that
//! was made before its primary got a lineage of its own has that primary's WAL and not its binding. What a directory holds may
//! be another server's WAL after a promotion or a rebuild, so nothing is decided for longer than a [`Moment`]; once the server
//! writes, the directory is bound. Nothing is guessed: where WAL does not decide, nothing is stored.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, anyhow};
use walpoint_base::{
    ClusterName, LineageId, Lsn, SegmentNo, SegmentSize, TimelineHistory, TimelineId, WalFileName,
};
use walpoint_pg::wal::Identity;
use walpoint_repo::lineage::{BINDING, bound_elsewhere};
use walpoint_repo::wal::WalArchive;
use walpoint_repo::{Lineage, Repository};
use walpoint_storage::RepoError;
use walpoint_storage::object::ContentHash;

use super::check::{self, history_in};
use super::claim;
use super::comparison::{self, Comparison};
use super::control::{Moment, read_control};
use super::disk;
use super::identity;
use super::split_brain::SplitBrain;
use super::target::TargetError;
use super::upload::Trouble;
use crate::binding;

/// The newest segments of `pg_wal` that are looked for in each lineage.
const LOOKED_FOR: usize = 12;

/// The newest histories that are compared.
const HISTORIES: usize = 4;

/// A lineage that the WAL of a data directory may belong to.
struct Candidate {
    lineage: Lineage,
    /// With what it has in common with its parent.
    archive: WalArchive,
    /// What shows that it holds another server's WAL, on which timeline.
    other: Option<(TimelineId, String)>,
    /// The newest segment that is the same in it.
    same: Option<SegmentNo>,
}

impl Candidate {
    /// Whether the WAL of a directory shows that it belongs to this one and not to another one: what both servers had before they
    /// parted may be stored in either. That the other one is a third server's does not make this one the directory's.
    fn is_shown_beside(&self, other: &Self, size: SegmentSize) -> bool {
        let parted = [self, other].into_iter().map(|candidate| match candidate.lineage.parent {
            None => Some(Lsn(0)),
            Some(parent) => parent.began,
        });
        match parted.collect::<Option<Vec<Lsn>>>().and_then(|all| all.into_iter().max()) {
            Some(parted) => self.same.is_some_and(|same| same.start(size) >= parted),
            // Of a lineage whose fork is not known nothing before it is stored.
            None => other.other.is_some(),
        }
    }
}

/// The lineage of a repository that a data directory archives to which is not bound to one of it, and whether that had to be found
/// out; `None` if the cluster has none with this system identifier, or not the one that the directory is bound to in another
/// repository (`elsewhere`): a server has the same number in all.
pub(crate) async fn choose(
    repository: &Repository,
    cluster: &ClusterName,
    identity: &Identity,
    (pgdata, elsewhere): (&Path, Option<LineageId>),
    moment: &Moment,
) -> Result<Option<(Lineage, bool)>, TargetError> {
    let mut lineages = repository.lineages(cluster).await?;
    lineages.retain(|lineage| lineage.system_id() == identity.system_id);
    lineages.sort_unstable_by_key(|lineage| lineage.id.n);
    if let Some(elsewhere) = elsewhere {
        match lineages.iter().find(|lineage| lineage.id == elsewhere) {
            None => return Ok(None),
            Some(same) if same.parent.is_none() => return Ok(Some((same.clone(), false))),
            // Under that number it may be another server's here.
            Some(_) => {}
        }
    }
    if lineages.iter().all(|lineage| lineage.parent.is_none()) {
        return Ok(lineages.pop().map(|lineage| (lineage, false)));
    }
    let mut candidates = Vec::new();
    for lineage in lineages {
        let archive = repository.wal_to_read(&lineage).await?;
        candidates.push(Candidate { lineage, archive, other: None, same: None });
    }
    let chosen = decide(&mut candidates, repository, identity, pgdata, moment).await?;
    let is_chosen = |id| Some(id) == chosen && elsewhere.is_none_or(|elsewhere| id == elsewhere);
    if let Some(chosen) = candidates.iter().find(|candidate| is_chosen(candidate.lineage.id)) {
        return Ok(Some((chosen.lineage.clone(), true)));
    }
    // It is another server than all that archive here. Where all of these were split off, its own lineage is not here yet.
    let split = candidates.iter().all(|candidate| candidate.lineage.parent.is_some());
    if split && candidates.iter().all(|candidate| candidate.other.is_some()) {
        return Ok(None);
    }
    if let Some((timeline, what)) = candidates.iter().find_map(|candidate| candidate.other.clone())
        && candidates.iter().all(|candidate| candidate.other.is_some())
        && let Some(first) = candidates.first()
    {
        return Err(SplitBrain::new(&first.archive, timeline, what).into());
    }
    let possible = candidates.iter().filter(|candidate| {
        candidate.other.is_none() && elsewhere.is_none_or(|elsewhere| candidate.lineage.id == elsewhere)
    });
    Err(TargetError::UnknownLineage {
        repository: repository.name().to_owned(),
        cluster: cluster.clone(),
        wal: pgdata.join("pg_wal"),
        binding: pgdata.join(BINDING),
        lines: possible.map(|candidate| line(repository, candidate.lineage.id)).collect(),
    })
}

/// The lineage of a repository that a data directory archives to: the one that it is bound to, or else what [`choose`] says.
pub(crate) async fn of_directory(
    repository: &Repository,
    cluster: &ClusterName,
    pgdata: &Path,
) -> anyhow::Result<Option<Lineage>> {
    let all = binding::read_all(pgdata)
        .await
        .with_context(|| format!("{} cannot be read", pgdata.join(BINDING).display()))?;
    let directory = pgdata.to_owned();
    let read = disk::run(pgdata, move || {
        let control = read_control(&directory)?;
        Ok((check::identity(&control), Moment::of(&directory, TimelineId::FIRST)?))
    });
    let (identity, moment) = read.await?.map_err(|Trouble { text, .. }| anyhow!(text))?;
    let bound = all.get(&repository.id()).filter(|bound| bound.system_id == identity.system_id);
    if let Some(bound) = bound {
        return Ok(repository.read_lineage(cluster, *bound).await?);
    }
    let elsewhere = bound_elsewhere(&all, identity.system_id).map(|(_, id)| id);
    let chosen = choose(repository, cluster, &identity, (pgdata, elsewhere), &moment).await?;
    Ok(chosen.map(|(lineage, _)| lineage))
}

fn line(repository: &Repository, lineage: LineageId) -> String {
    format!("\"{}\"", walpoint_repo::lineage::binding([(repository.id(), lineage)]).trim_end())
}

/// The lineage that what lies in `pg_wal` shows, if it shows one.
async fn decide(
    candidates: &mut [Candidate],
    repository: &Repository,
    identity: &Identity,
    pgdata: &Path,
    moment: &Moment,
) -> Result<Option<LineageId>, RepoError> {
    let wal = pgdata.join("pg_wal");
    let known = history_in(&wal, moment.newest);
    let history = known.map_or_else(|| TimelineHistory::root(moment.newest), |(history, _)| history);
    histories(candidates, &history, &wal).await?;
    segments(candidates, identity, &wal, history).await?;
    let candidates = &*candidates;
    let possible: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.other.is_none()).collect();
    if let Some(claimed) = claimed(&possible, repository, &wal, moment).await? {
        return Ok(Some(claimed));
    }
    let size = identity.segment_size;
    let shown = |one: &&&Candidate| {
        let mut others = candidates.iter().filter(|other| other.lineage.id != one.lineage.id);
        one.same.is_some() && others.all(|other| one.is_shown_beside(other, size))
    };
    let shown: Vec<&&Candidate> = possible.iter().filter(shown).collect();
    Ok(if let [only] = shown[..] { Some(only.lineage.id) } else { None })
}

/// The only lineage that a server noted when it stored there what it wrote on the timeline that it writes still. Another server
/// that has its WAL since does not have its notes.
async fn claimed(
    possible: &[&Candidate],
    repository: &Repository,
    wal: &Path,
    moment: &Moment,
) -> Result<Option<LineageId>, RepoError> {
    let Some(written) = moment.written else { return Ok(None) };
    let mut claimed = Vec::new();
    for candidate in possible {
        let (directory, archive) = (wal.to_owned(), repository.wal(&candidate.lineage));
        if disk::run(wal, move || claim::read(&directory, &archive, written)).await?.is_some() {
            claimed.push(candidate.lineage.id);
        }
    }
    Ok(if let [only] = claimed[..] { Some(only) } else { None })
}

/// Compares the newest histories on the path.
async fn histories(
    candidates: &mut [Candidate],
    history: &TimelineHistory,
    wal: &Path,
) -> Result<(), RepoError> {
    let mut path: Vec<TimelineId> =
        history.path().filter(|timeline| *timeline != TimelineId::FIRST).collect();
    path.sort_unstable();
    for timeline in path.into_iter().rev().take(HISTORIES) {
        let name = WalFileName::History(timeline);
        let Ok(ours) = tokio::fs::read(wal.join(name.to_string())).await else { continue };
        for candidate in candidates.iter_mut().filter(|candidate| candidate.other.is_none()) {
            match candidate.archive.get(name).await {
                Ok(Some(file)) if file.content != ours => {
                    let what = identity::other_history(&candidate.archive, timeline, &ours, &file.content);
                    candidate.other = Some((timeline, what));
                }
                // What is damaged proves nothing.
                Ok(_) | Err(RepoError::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Compares the newest finished segments on the path.
async fn segments(
    candidates: &mut [Candidate],
    cluster: &Identity,
    wal: &Path,
    history: TimelineHistory,
) -> Result<(), RepoError> {
    let size = cluster.segment_size;
    let found = identity::on_path(wal, history, size).await?;
    // Those of the newest that are stored anywhere: more may wait.
    let mut names = BTreeSet::new();
    for candidate in candidates.iter() {
        names
            .extend(identity::in_both(&candidate.archive, found.clone()).await?.into_iter().take(LOOKED_FOR));
    }
    for name in found.into_iter().filter(|name| names.contains(name)) {
        let mut compared: Vec<(ContentHash, Comparison)> = Vec::new();
        for candidate in candidates.iter_mut() {
            let stored = match candidate.archive.header(name).await {
                Ok(Some(header)) if !header.damaged => header.hash,
                Ok(_) | Err(RepoError::Corrupt { .. }) => continue,
                Err(error) => return Err(error),
            };
            let found = match compared.iter().find(|(hash, _)| *hash == stored) {
                Some((_, found)) => found.clone(),
                None => {
                    let found = comparison::content(&candidate.archive, cluster, wal, name, stored).await;
                    compared.push((stored, found.clone()));
                    found
                }
            };
            match found {
                Comparison::Same => candidate.same = candidate.same.max(name.number(size)),
                Comparison::Other(what) => {
                    candidate.other.get_or_insert((name.timeline, what));
                }
                Comparison::Unknown => {}
            }
        }
    }
    Ok(())
}
