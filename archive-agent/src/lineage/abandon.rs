//! Settles a timeline as abandoned.
//!
//! Only one that is not in production. What shows which one is: the timeline that was written to last, by the times of its
//! transactions and backups, in any of the repositories.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow, bail};
use jiff::Timestamp;
use walpoint_base::{Lsn, SegmentName, SegmentNo, TimelineId};
use walpoint_repo::catalog::{Catalog, LineageCatalog};
use walpoint_repo::wal::{TimelineOrigin, WalArchive};
use walpoint_repo::{Lineage, Repository};
use walpoint_runtime::args::Selection;
use walpoint_runtime::operator::user;
use walpoint_storage::layout::AbandonedUntil;
use walpoint_storage::store::StoreSettings;

use super::{SettleArgs, Settlement};

/// The lineage in one repository.
struct Known {
    name: String,
    archive: WalArchive,
    /// Where it begins there.
    origin: TimelineOrigin,
    /// Whether WAL of it is stored there.
    wal: bool,
    /// Where the timeline ends there.
    until: Option<SegmentName>,
}

/// Writes the record into every repository that has the timeline, up to where it ends in any of them: what one of them lacks of it now may
/// be copied there later. One that has nothing of it gets the record with its history: a later timeline of that number there may be
/// another server's.
pub(super) async fn abandon(
    selection: &Selection<StoreSettings>,
    args: &SettleArgs,
) -> anyhow::Result<Vec<Settlement>> {
    let mut catalogs: Vec<(&String, Catalog)> = Vec::new();
    for (name, settings) in &selection.repositories {
        let repository =
            Repository::open(name, settings).await.with_context(|| format!("repository {name}"))?;
        let catalog = Catalog::load(&repository, &selection.cluster).await?;
        super::unless_meant(catalog.damaged_lineages(), args)
            .with_context(|| format!("repository {name}"))?;
        catalogs.push((name, catalog));
    }
    let Some(lineage) = the_lineage(&catalogs, args)? else { return Ok(Vec::new()) };
    let mut known: Vec<Known> = Vec::new();
    let mut used: BTreeMap<TimelineId, Timestamp> = BTreeMap::new();
    for (name, catalog) in &mut catalogs {
        let same = |one: &&mut LineageCatalog| one.lineage().is_same_life(&lineage);
        if let Some(lineage) = catalog.lineages_mut().iter_mut().find(same) {
            known.push(look(name, lineage, args.timeline, &mut used).await?);
        }
    }
    known.retain(|one| one.wal || matches!(one.origin, TimelineOrigin::Stored(_)));
    let fork = the_fork(args.timeline, &known)?;
    let Some(until) = known.iter().filter_map(|one| one.until).max() else { return Ok(Vec::new()) };
    not_in_production(args.timeline, &used)?;
    let (who, mut settled) = (args.who.clone().unwrap_or_else(user), Vec::new());
    for Known { name, archive, .. } in known {
        let noted = archive.abandon_timeline(AbandonedUntil { until, fork }, args.reason.trim(), &who).await;
        noted.with_context(|| format!("repository {name}: the record of timeline {}", args.timeline))?;
        settled.push(Settlement {
            repository: name,
            lineage: archive.lineage().id,
            history_hash: None,
            last_abandoned_segment: Some(until),
            is_stored: false,
        });
    }
    Ok(settled)
}

/// Where the timeline left its parent, which is the same in all repositories whose histories can be read.
fn the_fork(timeline: TimelineId, known: &[Known]) -> anyhow::Result<Option<(TimelineId, Lsn)>> {
    let mut found: Option<(&str, Option<(TimelineId, Lsn)>)> = None;
    for one in known {
        match (one.origin, found) {
            (TimelineOrigin::Stored(fork), None) => found = Some((&one.name, fork)),
            (TimelineOrigin::Stored(fork), Some((name, other))) if fork != other => bail!(
                "timeline {timeline} of repository {name} is not the one of repository {}: they begin at different \
                 positions\nHINT: Name one of the repositories with --repo.",
                one.name
            ),
            _ => {}
        }
    }
    if found.is_none() && known.iter().any(|one| one.origin == TimelineOrigin::Damaged) {
        bail!(
            "the history of timeline {timeline} cannot be read, so it is not known which timeline that is\nHINT: Archive it \
             again from pg_wal (archive-agent push), then run this again."
        );
    }
    Ok(found.and_then(|(_, fork)| fork))
}

/// The lineage that has the timeline, as the first repository knows it that does; `None` if none has.
fn the_lineage(catalogs: &[(&String, Catalog)], args: &SettleArgs) -> anyhow::Result<Option<Lineage>> {
    let timeline = args.timeline;
    let has = |lineage: &&LineageCatalog| {
        args.lineage.is_none_or(|id| lineage.id() == id) && lineage.facts().graph.contains(timeline)
    };
    let mut found: Option<&Lineage> = None;
    for (name, catalog) in catalogs {
        for lineage in catalog.lineages().iter().filter(has).map(LineageCatalog::lineage) {
            match found {
                None => found = Some(lineage),
                Some(found) if found.is_same_life(lineage) => {}
                Some(found) if found.id == lineage.id => bail!(
                    "lineage {} is another server's in repository {name} than in another one, and timeline {timeline} is in \
                     both\nHINT: Name one of the repositories with --repo.",
                    lineage.id
                ),
                Some(found) => bail!(
                    "timeline {timeline} is in lineages {} and {}\nHINT: Name one of them with --lineage.",
                    found.id,
                    lineage.id
                ),
            }
        }
    }
    Ok(found.cloned())
}

/// Where the timeline ends in a repository, if anything is known of it there. Adds when each timeline there was written to last.
async fn look(
    name: &str,
    lineage: &mut LineageCatalog,
    timeline: TimelineId,
    used: &mut BTreeMap<TimelineId, Timestamp>,
) -> anyhow::Result<Known> {
    let abandoned = |id: &TimelineId| lineage.facts().abandoned.contains_key(id);
    let children = lineage.facts().graph.children(timeline);
    if let Some((child, _)) = children.into_iter().find(|(child, _)| !abandoned(child)) {
        bail!(
            "timeline {child} goes on from timeline {timeline}, which is therefore not the latest: if {child} was abandoned, settle \
             that first"
        );
    }
    let others: Vec<TimelineId> = lineage.facts().graph.ids().filter(|id| !abandoned(id)).collect();
    for id in others {
        if let Some(at) = lineage.last_use(id).await?.at {
            let latest = used.entry(id).or_insert(at);
            *latest = at.max(*latest);
        }
    }
    let size = lineage.lineage().segment_size;
    let graph = &lineage.facts().graph;
    // Its own history, even if it contradicts others.
    let history = graph.stored().get(&timeline).or_else(|| graph.history(timeline));
    let begin = history.and_then(|history| history.begin_of(timeline));
    let before = begin.and_then(|begin| SegmentNo::of(begin, size).0.checked_sub(1)).map(SegmentNo);
    let segment = lineage.last_use(timeline).await?.segment;
    let until = segment.or(before).map(|last| last.name(timeline, size));
    let archive = lineage.archive().clone();
    let origin = archive.origin_of(timeline).await?;
    Ok(Known { name: name.to_owned(), archive, origin, wal: segment.is_some(), until })
}

/// Fails if no other timeline was written to later.
fn not_in_production(timeline: TimelineId, used: &BTreeMap<TimelineId, Timestamp>) -> anyhow::Result<()> {
    let Some(own) = used.get(&timeline) else { return Ok(()) };
    let others = used.iter().filter(|(id, _)| **id != timeline);
    match others.max_by_key(|(_, at)| **at) {
        Some((_, at)) if at > own => Ok(()),
        other => {
            let other = other.map_or_else(
                || "no other one has WAL".to_owned(),
                |(id, at)| format!("timeline {id} was written to until {at}"),
            );
            Err(anyhow!(
                "timeline {timeline} was written to last, until {own}, so it looks like the one in production: {other}\nHINT: \
                 If another server is in production, have it archive first (select pg_switch_wal() after a transaction), then \
                 run this again."
            ))
        }
    }
}
