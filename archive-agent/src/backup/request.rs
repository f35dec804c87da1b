//! What is asked of a backup, and the signal that ends it.

use std::sync::Arc;

use anyhow::anyhow;
use tokio_util::sync::CancellationToken;
use walpoint_runtime::args::Selection;
use walpoint_runtime::config::ClusterSettings;
use walpoint_storage::store::{Rate, StoreSettings};

/// What an interrupted backup says.
pub(crate) const INTERRUPTED: &str = "interrupted by a signal: no backup was taken";

/// The version that made a backup.
pub(crate) const AGENT: &str = env!("CARGO_PKG_VERSION");

/// PostgreSQL wants a label.
const DEFAULT_LABEL: &str = "walpoint";

/// What is asked of a backup.
#[derive(Debug)]
pub(crate) struct BackupRequest<'a> {
    /// A person's label.
    pub(crate) label: String,
    /// Whether the first checkpoint is done at full speed.
    pub(crate) fast: bool,
    /// Whether earlier backups are left alone.
    pub(crate) full: bool,
    /// Whether to begin though another backup seems to be running.
    pub(crate) steal_lease: bool,
    /// Whether a damaged page means that there is no backup.
    pub(crate) strict: bool,
    /// How fast it is stored, over all repositories.
    pub(crate) rate: Option<Arc<Rate>>,
    /// The cluster.
    pub(crate) selection: &'a Selection<StoreSettings>,
    /// Cancelled by a signal.
    pub(crate) stop: &'a CancellationToken,
    /// Whether progress is shown.
    pub(crate) show_progress: bool,
}

impl BackupRequest<'_> {
    /// The settings of the cluster.
    pub(crate) fn settings(&self) -> &ClusterSettings {
        &self.selection.settings
    }

    /// The label that PostgreSQL gets.
    pub(crate) fn server_label(&self) -> &str {
        if self.label.is_empty() { DEFAULT_LABEL } else { &self.label }
    }

    /// A future that ends with a signal.
    pub(crate) async fn unless_stopped<T, E: Into<anyhow::Error>>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> anyhow::Result<T> {
        tokio::select! {
            result = future => result.map_err(Into::into),
            () = self.stop.cancelled() => Err(anyhow!(INTERRUPTED)),
        }
    }
}

/// The name of this machine.
pub(crate) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
