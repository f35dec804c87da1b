//! Which lineage of a repository a data directory archives to that is not bound to one of it.
//!
//! One that is bound in another repository has the same number here, or none: never another server's. Of a cluster with one lineage it is that one. Where others were split off, the WAL in the directory decides: a standby that
//! was made before its primary got a lineage of its own has that primary's WAL and not its binding. What a directory holds may
//! be another server's WAL after a promotion or a rebuild, so nothing is decided for longer than a [`ServerMoment`], but for what the same server's WAL showed while it was a standby; once the server
//! writes, the directory is bound. Nothing is guessed: where WAL does not decide, nothing is stored.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;
use walpoint_base::{
    ClusterName, LineageId, Lsn, SegmentNo, SegmentSize, TimelineHistory, TimelineId, WalFileName,
};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::lineage::{BINDING, DamagedLineage, Lineages, bound_elsewhere};
use walpoint_repo::wal::WalArchive;
use walpoint_repo::{Lineage, Repository};
use walpoint_storage::RepoError;
use walpoint_storage::object::ContentHash;

use super::check::{self, history_in};
use super::claim;
use super::comparison::{self, Comparison};
use super::control::{ServerMoment, read_control};
use super::disk;
use super::identity;
use super::known::Incarnation;
use super::shown::{SeenLineage, shown};
use super::split_brain::SplitBrain;
use super::target::TargetError;
use super::upload::UploadError;
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
    /// The directory's history of a timeline of which it has another one.
    history: Option<(TimelineId, Vec<u8>)>,
    /// The newest segment that is the same in it.
    same: Option<SegmentNo>,
}

impl Candidate {
    /// What shows that it is another server's, if it is this lineage.
    fn others(&self, id: LineageId) -> Option<&(TimelineId, String)> {
        self.other.as_ref().filter(|_| self.lineage.id == id)
    }

    fn seen(&self, size: SegmentSize) -> SeenLineage {
        SeenLineage {
            id: self.lineage.id,
            own: self.lineage.parent.map_or(Some(Lsn(0)), |parent| parent.began),
            contradicted: self.other.is_some(),
            same: self.same.map(|same| same.start(size)),
        }
    }
}

/// What the WAL of a directory showed once. A checkpoint after a promotion removes it, and what was shown holds as long as the same
/// server runs there and the repository has the same lineages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remembered {
    incarnation: Incarnation,
    /// Those whose facts were damaged meanwhile included.
    among: BTreeSet<LineageId>,
    shown: LineageId,
}

/// The lineage that a data directory archives to.
pub(crate) struct Choice {
    pub(crate) lineage: Lineage,
    /// What it was found out by, if others could be meant.
    pub(crate) found: Option<Remembered>,
}

/// The lineage of a repository that a data directory archives to which is not bound to one of it; `None` if the cluster has none with
/// this system identifier, or not the one that the directory is bound to in another repository (`elsewhere`): a server has the same
/// number in all. Where its WAL shows none any more, what it showed `before` counts. Of a server that `archives`, a history that is
/// refused is kept.
pub(crate) async fn choose(
    repository: &Repository,
    cluster: &ClusterName,
    identity: &WalIdentity,
    (pgdata, elsewhere): (&Path, Option<LineageId>),
    (moment, archives): (&ServerMoment, bool),
    before: Option<&Remembered>,
) -> Result<Option<Choice>, TargetError> {
    let known = |lineage: Lineage| Some(Choice { lineage, found: None });
    let all = repository.lineages(cluster).await?.of(identity.system_id);
    let among: BTreeSet<LineageId> = all.ids().collect();
    let Lineages { read: mut lineages, damaged } = all;
    lineages.sort_unstable_by_key(|lineage| lineage.id.n);
    if let Some(elsewhere) = elsewhere {
        if let Some(damaged) = damaged.iter().find(|damaged| damaged.id == elsewhere) {
            return Err(damaged.error().into());
        }
        match lineages.iter().find(|lineage| lineage.id == elsewhere) {
            None => return Ok(None),
            Some(same) if same.parent.is_none() => return Ok(known(same.clone())),
            // Under that number it may be another server's here.
            Some(_) => {}
        }
    }
    if damaged.is_empty() && lineages.iter().all(|lineage| lineage.parent.is_none()) {
        return Ok(lineages.pop().and_then(known));
    }
    let before = before.filter(|before| before.incarnation == moment.incarnation && before.among == among);
    let mut candidates = Vec::new();
    for lineage in lineages {
        let archive = repository.wal_to_read(&lineage).await?;
        candidates.push(Candidate { lineage, archive, other: None, history: None, same: None });
    }
    let chosen = decide(&mut candidates, &damaged, repository, identity, pgdata, moment).await?;
    let is_possible = |id: &LineageId| {
        candidates.iter().any(|candidate| candidate.lineage.id == *id && candidate.other.is_none())
    };
    let chosen = chosen.or_else(|| before.map(|before| before.shown).filter(is_possible));
    let is_chosen = |id| Some(id) == chosen && elsewhere.is_none_or(|elsewhere| id == elsewhere);
    if let Some(chosen) = candidates.iter().find(|candidate| is_chosen(candidate.lineage.id)) {
        let shown = chosen.lineage.id;
        let found = Some(Remembered { incarnation: moment.incarnation, among, shown });
        return Ok(Some(Choice { lineage: chosen.lineage.clone(), found }));
    }
    if archives && moment.written.is_some() {
        refuse_histories(&candidates, repository, identity, &pgdata.join("pg_wal")).await?;
    }
    let possible = candidates.iter().filter(|candidate| candidate.other.is_none());
    // It may be the server of one that cannot be read.
    if let Some(damaged) = damaged.first() {
        let lines = possible.map(|candidate| line(repository, &candidate.lineage)).collect();
        return Err(may_be_damaged(repository, damaged, pgdata, lines));
    }
    if candidates.iter().all(|candidate| candidate.other.is_some()) {
        return of_no_candidate(&candidates).map_or(Ok(None), Err);
    }
    // What the directory is bound to elsewhere is another server's here: no line would be right.
    if let Some(elsewhere) = elsewhere
        && let Some((_, what)) = candidates.iter().find_map(|one| one.others(elsewhere))
    {
        return Err(TargetError::OthersLineage {
            repository: repository.name().to_owned(),
            lineage: elsewhere,
            what: what.clone(),
            binding: pgdata.join(BINDING),
        });
    }
    let possible = possible.filter(|one| elsewhere.is_none_or(|elsewhere| one.lineage.id == elsewhere));
    Err(TargetError::UnknownLineage {
        repository: repository.name().to_owned(),
        cluster: cluster.clone(),
        wal: pgdata.join("pg_wal"),
        binding: pgdata.join(BINDING),
        lines: possible.map(|candidate| line(repository, &candidate.lineage)).collect(),
    })
}

/// Keeps the history of a server that gets no lineage beside the other one of its timeline, in each lineage whose older WAL the
/// directory has: the server may come from there, and readers elsewhere know by nothing else that it does.
async fn refuse_histories(
    candidates: &[Candidate],
    repository: &Repository,
    cluster: &WalIdentity,
    wal: &Path,
) -> Result<(), RepoError> {
    for candidate in candidates {
        let Some((timeline, content)) = &candidate.history else { continue };
        let (timeline, archive) = (*timeline, repository.wal(&candidate.lineage));
        // What is damaged is no server's, and an inherited history is the parent's to be told from.
        let stored = archive.histories().await?.contains(&timeline);
        let Ok(history) = TimelineHistory::parse(timeline, content) else { continue };
        if !stored || TimelineHistory::flaw(content).is_some() {
            continue;
        }
        let mut older = identity::on_path(wal, history, cluster.segment_size).await?;
        older.retain(|name| name.timeline < timeline);
        let both = identity::in_both(&archive, older).await?;
        for name in both.into_iter().take(LOOKED_FOR) {
            if comparison::segment(&archive, cluster, wal, name).await? == Comparison::Same {
                archive.put_refused_history(timeline, content.clone()).await?;
                break;
            }
        }
    }
    Ok(())
}

/// Why nothing is stored while a lineage cannot be read that the server may belong to. `lines`: how the binding file names the others
/// that it may belong to.
fn may_be_damaged(
    repository: &Repository,
    damaged: &DamagedLineage,
    pgdata: &Path,
    lines: Vec<String>,
) -> TargetError {
    let hint = match lines.is_empty() {
        true => String::new(),
        false => format!(
            "\nDETAIL: Nothing shows that this server's WAL does not belong to it.\nHINT: If it belongs to another lineage, \
             write its line into {}: {}",
            pgdata.join(BINDING).display(),
            lines.join(" or ")
        ),
    };
    TargetError::DamagedLineage(format!("repository {}: {damaged}{hint}", repository.name()))
}

/// Why a server that belongs to none of the lineages stores nothing; `None` where all of them were split off: its own lineage is not
/// here yet.
fn of_no_candidate(candidates: &[Candidate]) -> Option<TargetError> {
    if candidates.iter().all(|candidate| candidate.lineage.parent.is_some()) {
        return None;
    }
    let (timeline, what) = candidates.iter().find_map(|candidate| candidate.other.clone())?;
    Some(SplitBrain::new(&candidates.first()?.archive, timeline, what).into())
}

/// The lineage of a repository that a data directory archives to: the one that it is bound to, or else what [`choose`] says.
pub(crate) async fn of_directory(
    repository: &Repository,
    cluster: &ClusterName,
    pgdata: &Path,
) -> anyhow::Result<Option<Lineage>> {
    let all = binding::read_all(pgdata, cluster)
        .await
        .with_context(|| format!("{} cannot be read", pgdata.join(BINDING).display()))?;
    let directory = pgdata.to_owned();
    let read = disk::run(pgdata, move || {
        let control = read_control(&directory)?;
        Ok::<_, UploadError>((check::identity(&control), ServerMoment::of(&directory, TimelineId::FIRST)?))
    });
    let (identity, moment) = read.await??;
    let bound = all.get(&repository.id()).filter(|bound| bound.system_id == identity.system_id);
    if let Some(bound) = bound {
        return Ok(repository.read_lineage(cluster, *bound).await?);
    }
    let elsewhere = bound_elsewhere(&all, identity.system_id).map(|(_, id)| id);
    let chosen = choose(repository, cluster, &identity, (pgdata, elsewhere), (&moment, false), None).await?;
    Ok(chosen.map(|choice| choice.lineage))
}

fn line(repository: &Repository, lineage: &Lineage) -> String {
    let line = walpoint_repo::lineage::binding(&lineage.cluster, [(repository.id(), lineage.id)]);
    format!("\"{}\"", line.trim_end())
}

/// The lineage that what lies in `pg_wal` shows, if it shows one.
async fn decide(
    candidates: &mut [Candidate],
    damaged: &[DamagedLineage],
    repository: &Repository,
    identity: &WalIdentity,
    pgdata: &Path,
    moment: &ServerMoment,
) -> Result<Option<LineageId>, RepoError> {
    let wal = pgdata.join("pg_wal");
    let known = history_in(&wal, moment.newest);
    let history = known.map_or_else(|| TimelineHistory::root(moment.newest), |(history, _)| history);
    histories(candidates, &history, &wal).await?;
    segments(candidates, identity, &wal, history).await?;
    let candidates = &*candidates;
    let possible: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.other.is_none()).collect();
    if let Some(claimed) = claimed(&possible, repository, &wal, moment).await? {
        for damaged in damaged {
            tracing::warn!(repository = repository.name(), "{damaged}");
        }
        return Ok(Some(claimed));
    }
    // Of what it has in common with one that cannot be read nothing is known.
    if !damaged.is_empty() {
        return Ok(None);
    }
    let size = identity.segment_size;
    Ok(shown(&candidates.iter().map(|candidate| candidate.seen(size)).collect::<Vec<_>>()))
}

/// The only lineage that a server noted when it stored there what it wrote on the timeline that it writes still. Another server
/// that has its WAL since does not have its notes.
async fn claimed(
    possible: &[&Candidate],
    repository: &Repository,
    wal: &Path,
    moment: &ServerMoment,
) -> Result<Option<LineageId>, RepoError> {
    let Some(written) = moment.written else { return Ok(None) };
    let mut claimed = Vec::new();
    for candidate in possible {
        let (directory, archive) = (wal.to_owned(), repository.wal(&candidate.lineage));
        let noted = disk::run(wal, move || claim::read(&directory, &archive, written)).await?;
        // What cannot be read shows nothing.
        if matches!(noted, Ok(Some(_))) {
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
                    candidate.history = Some((timeline, ours.clone()));
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
    cluster: &WalIdentity,
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
                    let found = comparison::content(&candidate.archive, cluster, wal, name, stored).await?;
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

#[cfg(test)]
mod tests {
    use walpoint_base::PgMajor;

    use walpoint_repo::lineage::ParentLineage;
    use walpoint_repo::repository::NewLineage;

    use super::super::fixtures::{Bed, size, switch_in};
    use super::*;

    /// A server without a lineage that has another history of timeline 2 than the one that is stored.
    #[tokio::test]
    async fn a_history_is_kept_where_the_servers_older_wal_is_stored() {
        let (ours, timeline) = (switch_in("000000010000000000000003", 0x800), TimelineId::new(2).unwrap());
        for (seed, kept) in [(1, 1), (2, 0)] {
            let bed = Bed::new().await;
            bed.put_history(2, switch_in("000000010000000000000002", 0x800)).await;
            bed.put("000000010000000000000001", 1).await;
            bed.write("000000010000000000000001", seed);
            let (archive, repository) = (bed.archive.clone(), bed.archive.repository().clone());
            let lineage = archive.lineage().clone();
            let cluster = WalIdentity {
                system_id: lineage.system_id(),
                major: PgMajor::new(17).unwrap(),
                segment_size: size(),
            };
            let history = Some((timeline, ours.clone()));
            let other = Some((timeline, "it differs".to_owned()));
            let candidates = [Candidate { lineage, archive, other, history, same: None }];
            refuse_histories(&candidates, &repository, &cluster, &bed.pgdata().join("pg_wal")).await.unwrap();
            assert_eq!(bed.archive.all_histories().await.unwrap().refused.len(), kept);
        }
    }

    /// In one repository a number is the directory's own lineage, in the other one a lineage that another server split off there.
    #[tokio::test]
    async fn a_number_that_is_another_servers_lineage_is_named_with_the_way_out() {
        let bed = Bed::new().await;
        let (repository, first) = (bed.archive.repository(), bed.archive.lineage());
        let new = NewLineage {
            system_id: first.system_id(),
            major: first.major,
            segment_size: first.segment_size,
            wal_block_size: first.wal_block_size,
            block_size: first.block_size,
            relation_segment_blocks: first.relation_segment_blocks,
            ack: vec![],
        };
        let parent = ParentLineage { lineage: first.id, fork: None, began: None, life: None };
        let others = repository.split_lineage(&first.cluster, new, Some(parent), 0).await.unwrap();
        let (timeline, history) =
            (TimelineId::new(2).unwrap(), |name: &str| switch_in(&format!("0000000100000000{name}"), 0x800));
        let name = WalFileName::History(timeline);
        repository.wal(&others).put_file(name, history("00000002")).await.unwrap();
        let path = bed.pgdata().join("pg_wal").join(name.to_string());
        walpoint_base::durable::replace(&path, &history("00000003"), 0o600).unwrap();
        let identity = WalIdentity {
            system_id: first.system_id(),
            major: first.major,
            segment_size: first.segment_size,
        };
        let incarnation = Incarnation::of(&bed.pgdata());
        let moment = ServerMoment { incarnation, written: Some(timeline), newest: timeline };
        let pgdata = bed.pgdata();
        let of = async |elsewhere| {
            let place = (pgdata.as_path(), elsewhere);
            let chosen = choose(repository, &first.cluster, &identity, place, (&moment, true), None).await;
            chosen.map(drop).unwrap_err().to_string()
        };
        let text = of(Some(others.id)).await;
        assert!(
            text.starts_with(&format!("lineage {} in repository main is another server's", others.id)),
            "{text}"
        );
        assert!(
            text.contains("init --new-lineage --even-if-bound") && !text.contains("is missing"),
            "{text}"
        );
        // A directory that is bound nowhere may still be the first one's.
        let text = of(None).await;
        assert!(text.contains("is missing") && text.contains(&format!("main {}", first.id)), "{text}");
    }
}
