//! Whether the repositories that recovery under a plan reads from hold one server's WAL: asked of all that have its lineage, also of
//! those without a plan, before any plan is chosen.

use futures_util::future::join_all;
use walpoint_plan::restore::{DoubtfulEnd, RestorePlan};
use walpoint_repo::agreement::{self, Agreement, Along};
use walpoint_repo::catalog::{Catalog, LineageCatalog};

use crate::plan::Planned;

/// What the repositories hold, compared along the path of a plan.
#[derive(Debug)]
pub(crate) struct ComparedRepositories {
    /// What shows that two servers archived there.
    pub(crate) different: Option<String>,
    /// For each plan, why the incomplete copy that it ends in is not known to be that end.
    pub(crate) ends: Vec<Option<DoubtfulEnd>>,
}

/// Compares the repository of each plan with every other one, all at the same time. What cannot be read shows nothing, and is said.
pub(crate) async fn compare(plans: &[Planned], catalogs: &mut [Catalog]) -> ComparedRepositories {
    join_all(catalogs.iter_mut().map(|catalog| look_at(plans, catalog))).await;
    let catalogs: &[Catalog] = catalogs;
    let mut questions: Vec<(usize, &LineageCatalog, &LineageCatalog)> = Vec::new();
    for (at, planned) in plans.iter().enumerate() {
        let plan = &planned.plan;
        let Some(own) = lineages(catalogs, plan).find(|lineage| is_in(lineage, planned)) else { continue };
        for other in lineages(catalogs, plan).filter(|lineage| !is_in(lineage, planned)) {
            let asked = questions.iter().any(|(before, here, there)| {
                let before = plans.get(*before).map(|planned| &planned.plan);
                let reversed = std::ptr::eq(*here, other) && std::ptr::eq(*there, own);
                reversed && before.is_some_and(|before| shows_the_same(before, plan, own, other))
            });
            if !asked {
                questions.push((at, own, other));
            }
        }
    }
    let compared = questions.iter().map(|(at, own, other)| async move {
        match plans.get(*at) {
            Some(planned) => Some((*at, other, agreement::along(&planned.plan, own, other).await)),
            None => None,
        }
    });
    let mut found = ComparedRepositories { different: None, ends: vec![None; plans.len()] };
    for (at, other, along) in join_all(compared).await.into_iter().flatten() {
        let here = plans.get(at).map(|planned| planned.repository.name()).unwrap_or_default();
        let there = other.archive().repository().name();
        match along {
            Ok(Along { agreement: Agreement::Different(what), .. }) => {
                found.different.get_or_insert(what);
            }
            Ok(Along { agreement, end }) => {
                if let Agreement::Unknown(why) = agreement {
                    tracing::debug!("{why}");
                }
                if let (Some(why), Some(of)) = (end, found.ends.get_mut(at)) {
                    of.get_or_insert(why);
                }
            }
            Err(error) => {
                tracing::warn!("WAL is not compared between \"{here}\" and \"{there}\": {error}");
            }
        }
    }
    found
}

/// Looks at what a repository has on the way of these plans.
async fn look_at(plans: &[Planned], catalog: &mut Catalog) {
    for planned in plans {
        let of = |lineage: &&mut LineageCatalog| lineage.id() == planned.plan.lineage;
        if let Some(lineage) = catalog.lineages_mut().iter_mut().find(of) {
            lineage.look_at(&planned.plan).await;
        }
    }
}

/// The lineage of a plan in each repository that has one of that name.
fn lineages<'a>(catalogs: &'a [Catalog], plan: &RestorePlan) -> impl Iterator<Item = &'a LineageCatalog> {
    let id = plan.lineage;
    catalogs.iter().flat_map(Catalog::lineages).filter(move |lineage| lineage.id() == id)
}

fn is_in(lineage: &LineageCatalog, planned: &Planned) -> bool {
    lineage.archive().repository().name() == planned.repository.name()
}

/// Whether the plans of two repositories lead to the same comparison.
fn shows_the_same(
    one: &RestorePlan,
    other: &RestorePlan,
    own: &LineageCatalog,
    theirs: &LineageCatalog,
) -> bool {
    one.path == other.path
        && one.fork.is_none()
        && other.fork.is_none()
        && agreement::newest_in_common(one, theirs, own) == agreement::newest_in_common(other, own, theirs)
}
