//! The lineage and the timeline whose WAL is read. Where several repositories are configured, the WAL of all is read as one archive, as
//! recovery reads it.

use anyhow::anyhow;
use futures_util::future::join_all;
use walpoint_base::{Diagnostic, LineageId, TargetTimeline, TimelineId};
use walpoint_repo::catalog::{Catalog, LineageCatalog};
use walpoint_repo::scan::latest_timeline;
use walpoint_runtime::args::Selection;
use walpoint_runtime::exit::Failure;
use walpoint_storage::store::StoreSettings;

/// Where WAL is read.
#[derive(Debug)]
pub(super) struct Source {
    catalog: Catalog,
    id: LineageId,
    pub(super) timeline: TimelineId,
    /// The repositories that are read, by name.
    pub(super) repositories: Vec<String>,
}

impl Source {
    /// Opens what is configured. A repository that cannot be read is skipped with a warning if another one can.
    pub(super) async fn open(
        selection: &Selection<StoreSettings>,
        lineage: Option<LineageId>,
        timeline: TargetTimeline,
    ) -> Result<Self, Failure> {
        let cluster = &selection.cluster;
        let opened = selection.repositories.iter();
        let opened = opened
            .map(|(name, settings)| async move { (name, Catalog::open(name, settings, cluster).await) });
        let (mut catalogs, mut failure) = (Vec::new(), None);
        for (name, opened) in join_all(opened).await {
            match opened {
                Ok(catalog) => catalogs.push(catalog),
                Err(error) => {
                    if selection.repositories.len() > 1 {
                        let why = walpoint_words::error(&error);
                        tracing::warn!("repository \"{name}\" was skipped: {why}");
                    }
                    failure.get_or_insert(error);
                }
            }
        }
        let newest = |catalog: &Catalog| {
            let known = catalog.lineages().iter().map(LineageCatalog::lineage);
            known.filter(|known| lineage.is_none_or(|id| known.id == id)).map(|l| (l.created, l.id)).max()
        };
        let found = catalogs.iter().filter_map(newest).max();
        let Some((_, id)) = found else {
            return Err(match failure {
                Some(error) => error.into(),
                None => nothing(selection, lineage).into(),
            });
        };
        let has = |catalog: &&Catalog| catalog.lineages().iter().any(|one| one.id() == id);
        let Some(home) = catalogs.iter().find(has) else { return Err(nothing(selection, lineage).into()) };
        let name = |catalog: &Catalog| catalog.repository().name().to_owned();
        let others = catalogs.iter().filter(|other| name(other) != name(home));
        let repositories = catalogs.iter().filter(has).map(name).collect();
        let catalog = home.joined(others);
        let mut source = Self { catalog, id, timeline: TimelineId::FIRST, repositories };
        source.timeline = source.chosen(timeline)?;
        Ok(source)
    }

    /// The lineage, to ask it.
    pub(super) fn lineage(&mut self) -> Result<&mut LineageCatalog, Failure> {
        let id = self.id;
        let found = self.catalog.lineages_mut().iter_mut().find(|one| one.id() == id);
        found.ok_or_else(|| anyhow!("lineage {id} is not known").into())
    }

    /// Its id.
    pub(super) fn id(&self) -> LineageId {
        self.id
    }

    fn chosen(&mut self, timeline: TargetTimeline) -> Result<TimelineId, Failure> {
        let facts = self.lineage()?.facts();
        match timeline {
            TargetTimeline::Id(id) if facts.graph.history(id).is_some() => Ok(id),
            TargetTimeline::Id(id) => Err(anyhow!(
                "the archive has no timeline {id}\nHINT: \"restore-agent list\" shows the timelines."
            )
            .into()),
            TargetTimeline::Current => Err(Failure::usage(anyhow!(
                "--target-timeline: events are not read from a backup, so none is current\nHINT: Give latest, or a number."
            ))),
            TargetTimeline::Latest => match latest_timeline(facts) {
                Ok(Some(latest)) => Ok(latest),
                Ok(None) => Err(anyhow!("the archive has no WAL of lineage {}", self.id).into()),
                Err(doubtful) => Err(Diagnostic::new(format!(
                    "it is not known which timeline is the latest, because timeline {doubtful} is in doubt"
                ))
                .hint("Give the number of a timeline: --target-timeline N. \"restore-agent plan\" says more.")
                .into()),
            },
        }
    }
}

fn nothing(selection: &Selection<StoreSettings>, lineage: Option<LineageId>) -> anyhow::Error {
    let cluster = &selection.cluster;
    match lineage {
        Some(id) => anyhow!(
            "cluster \"{cluster}\" has no lineage {id}\nHINT: \"restore-agent list\" shows the lineages."
        ),
        None => anyhow!("no repository has cluster \"{cluster}\""),
    }
}
