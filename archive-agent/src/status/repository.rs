//! One repository of a cluster: all it says, or why it says nothing.

use std::collections::BTreeMap;
use std::fmt::Write;

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{ClusterName, Diagnostic, LineageId, TimelineId};
use walpoint_plan::retention::Policy;
use walpoint_repo::Repository;
use walpoint_repo::catalog::status::ClusterStatus;
use walpoint_repo::catalog::{Catalog, Newer};
use walpoint_repo::lineage::bound_lineage;
use walpoint_runtime::human;
use walpoint_storage::RepoError;
use walpoint_storage::object::RepositoryId;
use walpoint_storage::store::StoreSettings;
use walpoint_words::format_chain;

use super::draw;
use super::listing::Listing;
use super::retention::RetentionState;
use super::server::ServerState;
use crate::newer;

/// A repository of a cluster.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct RepositoryState {
    /// Its name in the configuration.
    repository: String,
    /// Its URL.
    url: String,
    /// Why it could not be read. Absent if it could.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Option<Diagnostic>")]
    error: Option<String>,
    /// Whether its settings are wrong.
    #[serde(skip)]
    wrong_settings: bool,
    /// What it has of the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<ClusterStatus>,
    /// Holds, and what `expire` would do.
    #[serde(skip_serializing_if = "Option::is_none")]
    retention: Option<RetentionState>,
    /// What the names of its objects show, if it is encrypted and its key is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    listing: Option<Listing>,
    /// Notes for the operator, one sentence each.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    notes: Vec<String>,
    /// `status` for a person.
    #[serde(skip)]
    drawing: String,
    /// Which repository it is.
    #[serde(skip)]
    id: Option<RepositoryId>,
    /// The timelines that a restore to the latest moment does not follow, and the one that it does.
    #[serde(skip)]
    newer: BTreeMap<(LineageId, TimelineId), Newer>,
}

impl RepositoryState {
    /// Reads a repository.
    pub(super) async fn of(
        name: &str,
        settings: &StoreSettings,
        cluster: &ClusterName,
        policy: &Policy,
    ) -> Self {
        let mut state = Self {
            repository: name.to_owned(),
            url: settings.url.clone(),
            error: None,
            wrong_settings: false,
            status: None,
            retention: None,
            listing: None,
            notes: Vec::new(),
            drawing: String::new(),
            id: None,
            newer: BTreeMap::new(),
        };
        let settings = settings.impatient();
        if let Err(error) = state.read(&settings, cluster, policy).await {
            if matches!(error, RepoError::Locked { .. }) {
                // Names can be read by whoever may list the store.
                match Listing::of(&settings, cluster).await {
                    Ok(listing) => state.listing = listing,
                    Err(error) => tracing::debug!(repository = name, "no listing either: {error}"),
                }
            }
            state.wrong_settings = matches!(error, RepoError::Settings { .. });
            state.error = Some(format_chain(&error.into()));
        }
        state
    }

    async fn read(
        &mut self,
        settings: &StoreSettings,
        cluster: &ClusterName,
        policy: &Policy,
    ) -> Result<(), RepoError> {
        let repository = Repository::open(&self.repository, settings).await?;
        let mut catalog = Catalog::load(&repository, cluster).await?;
        if catalog.lineages().is_empty() && catalog.damaged_lineages().is_empty() {
            let known: Vec<String> =
                repository.clusters().await?.iter().map(ClusterName::to_string).collect();
            if !known.is_empty() {
                // Most likely its name is mistyped: "no backup" would be a fright.
                self.error = Some(format!(
                    "the repository does not know cluster {cluster}\nDETAIL: It has: {}.\nHINT: \"archive-agent init\" \
                     registers a new one.",
                    known.join(", ")
                ));
                return Ok(());
            }
            self.notes.push(format!(
                "the repository is empty\nHINT: \"archive-agent init\" registers cluster {cluster}."
            ));
        }
        // What cannot be decided about retention keeps nobody from the rest.
        match RetentionState::of(&repository, cluster, policy, &mut catalog).await {
            Ok(mut retention) => {
                self.notes.append(&mut retention.take_notes());
                self.retention = Some(retention);
            }
            Err(error) => {
                self.notes
                    .push(format!("cannot determine what expire would do: {}", format_chain(&error.into())));
            }
        }
        self.id = Some(repository.id());
        for lineage in catalog.lineages() {
            let newer = |id| Some(((lineage.id(), id), lineage.newer_than(id)?));
            self.newer.extend(lineage.facts().graph.ids().filter_map(newer));
        }
        let status = catalog.status().await?;
        self.drawing = draw::text(&mut catalog, &status).await?;
        self.status = Some(status);
        Ok(())
    }

    /// Whether anything is known of it.
    pub(super) fn is_known(&self) -> bool {
        self.status.is_some() || self.listing.is_some()
    }

    /// Whether it could not be read because its settings are wrong.
    pub(super) fn has_wrong_settings(&self) -> bool {
        self.wrong_settings
    }

    /// Notes it when the server is not the one whose WAL is here, or not the one that a restore follows. `binding`: the lineages that
    /// its data directory is bound to.
    pub(super) fn compare(&mut self, server: &ServerState, cluster: &ClusterName, binding: &str) {
        let Some(status) = self.status.as_ref().filter(|status| !status.lineages.is_empty()) else { return };
        let system_id = server.system_identifier();
        if !status.lineages.iter().any(|one| one.lineage.system_id == system_id) {
            self.notes.push(format!(
                "the server has system identifier {system_id}, and nothing here is of that cluster\nHINT: Check whether \
                 conninfo leads to another server. If it does not, run \"archive-agent init\" for this one."
            ));
        }
        let bound = self.id.and_then(|id| bound_lineage(binding, cluster, id).ok().flatten());
        let mut its = status.lineages.iter().map(|one| one.lineage).filter(|id| id.system_id == system_id);
        // Of several without a file that says which, it is not known.
        let lineage = bound.or_else(|| its.next().filter(|_| its.next().is_none()));
        if let (Some(lineage), Some(own)) = (lineage, server.writes())
            && let Some(newer) = self.newer.get(&(lineage, own))
        {
            self.notes.push(format!("{}\nHINT: {}", newer::found(newer), newer::advice(newer, own)));
        }
    }

    /// For a person.
    pub(super) fn text(&self, cluster: &str) -> String {
        let mut text = self.drawing.clone();
        if self.status.is_none() {
            writeln!(text, "Cluster {cluster} in {} ({})", self.repository, self.url).ok();
        }
        if let Some(error) = &self.error {
            writeln!(text, "{}", human::hanging("  cannot be read: ", error)).ok();
        }
        if let Some(retention) = &self.retention {
            text.push_str(&retention.text());
        }
        if let Some(listing) = &self.listing {
            text.push_str(&listing.text());
        }
        for note in &self.notes {
            writeln!(text, "{}", human::hanging("  note: ", note)).ok();
        }
        text
    }
}
