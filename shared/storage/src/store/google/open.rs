//! From settings to a bucket of Google's.

use std::sync::Arc;

use object_store::gcp::GoogleCloudStorageBuilder;

use super::credentials;
use super::settings::GoogleSettings;
use crate::error::{RepoError, Result};
use crate::store::evidence::Connector;
use crate::store::limits::LimitSettings;
use crate::store::network::{no_retries, wrong_url};
use crate::store::remote::Remote;

/// What of the settings opening refuses, wherever they lead.
pub(in crate::store) fn contradictions(settings: &GoogleSettings) -> Vec<RepoError> {
    settings.network.uses_http().err().into_iter().collect()
}

pub(in crate::store) async fn open(settings: &GoogleSettings, limits: &LimitSettings) -> Result<Remote> {
    let GoogleSettings { bucket, network, .. } = settings;
    network.uses_http()?;
    let client = network.client_options(limits).await?;
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(&bucket.name)
        .with_client_options(client)
        .with_http_connector(Connector::default())
        .with_retry(no_retries());
    if let Some(endpoint) = network.endpoint() {
        builder = builder.with_base_url(endpoint);
    }
    builder = credentials::add(builder, settings).await?;
    let store = Arc::new(builder.build().map_err(wrong_url)?);
    Ok(Remote::new(store, &bucket.prefix).with_bulk(None))
}
