//! From settings to a container of Azure's.

use std::sync::Arc;

use object_store::azure::MicrosoftAzureBuilder;

use super::credentials;
use super::settings::AzureSettings;
use crate::error::{RepoError, Result};
use crate::store::evidence::Connector;
use crate::store::limits::LimitSettings;
use crate::store::network::{no_retries, wrong_url};
use crate::store::remote::Remote;

/// Objects that one request can delete.
const BULK: usize = 256;

/// What of the settings opening refuses, wherever they lead.
pub(in crate::store) fn contradictions(settings: &AzureSettings) -> Vec<RepoError> {
    settings.network.uses_http().err().into_iter().chain(credentials::contradictions(settings)).collect()
}

pub(in crate::store) async fn open(settings: &AzureSettings, limits: &LimitSettings) -> Result<Remote> {
    let AzureSettings { container, network, .. } = settings;
    network.uses_http()?;
    let client = network.client_options(limits).await?;
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(&container.name)
        .with_client_options(client)
        .with_http_connector(Connector::default())
        .with_retry(no_retries());
    if let Some(account) = &settings.account {
        builder = builder.with_account(account);
    }
    if let Some(endpoint) = network.endpoint() {
        builder = builder.with_endpoint(endpoint.to_owned()).with_allow_http(network.allow_http);
    }
    builder = credentials::add(builder, settings).await?;
    let store = Arc::new(builder.build().map_err(wrong_url)?);
    Ok(Remote::new(store, &container.prefix).with_bulk(Some(BULK)))
}
