//! Settles a timeline as abandoned.
//!
//! Only one that is not in production. What shows which one is: the timeline that was written to last, by the times of its
//! transactions and backups, in any of the repositories.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow, bail};
use jiff::Timestamp;
use walpoint_base::{LineageId, SegmentName, SegmentNo, TimelineId};
use walpoint_repo::Repository;
use walpoint_repo::catalog::{Catalog, LineageCatalog};
use walpoint_repo::store::StoreSettings;
use walpoint_repo::wal::WalArchive;
use walpoint_runtime::args::Selection;

use super::{SettleArgs, Settled};
use crate::hold::user;

/// What one repository knows of the timeline.
struct Known {
    name: String,
    archive: WalArchive,
    until: SegmentName,
}

/// Writes the record into every repository that knows the timeline.
pub(super) async fn abandon(
    selection: &Selection<StoreSettings>,
    args: &SettleArgs,
) -> anyhow::Result<Vec<Settled>> {
    let mut known: Vec<Known> = Vec::new();
    let mut used: BTreeMap<TimelineId, Timestamp> = BTreeMap::new();
    let mut found: Option<LineageId> = args.lineage;
    for (name, settings) in &selection.repositories {
        let repository =
            Repository::open(name, settings).await.with_context(|| format!("repository {name}"))?;
        let mut catalog = Catalog::load(&repository, &selection.cluster).await?;
        let Some(lineage) = the_lineage(&mut catalog, args.timeline, &mut found)? else { continue };
        known.extend(look(name, lineage, args.timeline, &mut used).await?);
    }
    if known.is_empty() {
        return Ok(Vec::new());
    }
    not_in_production(args.timeline, &used)?;
    let (who, mut settled) = (args.who.clone().unwrap_or_else(user), Vec::new());
    for Known { name, archive, until } in known {
        archive.abandon_timeline(until, args.reason.trim(), &who).await?;
        settled.push(Settled {
            repository: name,
            lineage: archive.lineage().id.to_string(),
            history: None,
            abandoned_until: Some(until.to_string()),
        });
    }
    Ok(settled)
}

/// The lineage that has the timeline: the same in each repository.
fn the_lineage<'a>(
    catalog: &'a mut Catalog,
    timeline: TimelineId,
    found: &mut Option<LineageId>,
) -> anyhow::Result<Option<&'a mut LineageCatalog>> {
    let has = |lineage: &&LineageCatalog| lineage.facts().graph.contains(timeline);
    let ids: Vec<LineageId> = catalog.lineages().iter().filter(has).map(LineageCatalog::id).collect();
    let id = match (*found, &ids[..]) {
        (Some(id), _) if ids.contains(&id) => id,
        (Some(_), _) | (None, []) => return Ok(None),
        (None, [only]) => *only,
        (None, [first, second, ..]) => {
            bail!("timeline {timeline} is in lineages {first} and {second}: say which one by --lineage")
        }
    };
    *found = Some(id);
    Ok(catalog.lineages_mut().iter_mut().find(|lineage| lineage.id() == id))
}

/// Where the timeline ends in a repository. Adds when each timeline there was written to last.
async fn look(
    name: &str,
    lineage: &mut LineageCatalog,
    timeline: TimelineId,
    used: &mut BTreeMap<TimelineId, Timestamp>,
) -> anyhow::Result<Option<Known>> {
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
    let begin = lineage.facts().graph.history(timeline).and_then(|history| history.begin_of(timeline));
    let before = begin.and_then(|begin| SegmentNo::of(begin, size).0.checked_sub(1)).map(SegmentNo);
    let last = lineage.last_use(timeline).await?.segment.or(before);
    Ok(last.map(|last| Known {
        name: name.to_owned(),
        archive: lineage.archive().clone(),
        until: last.name(timeline, size),
    }))
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
                "timeline {timeline} was written to last, until {own}, so it looks like the one in production: {other}. HINT: If \
                 another server is in production, have it archive first (select pg_switch_wal() after a transaction), then run \
                 this again."
            ))
        }
    }
}
