//! Azure's credentials: the account's key, a shared access signature or a service principal, else what the environment
//! names, else the machine's identity.

use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use walpoint_base::secret::SecretSource;

use super::settings::AzureSettings;
use crate::error::{RepoError, Result};
use crate::store::network::{has_metadata, no_credentials, secret};

/// Secrets that two settings name, and what a service principal lacks, where it is what opening would use.
pub(super) fn contradictions(settings: &AzureSettings) -> Vec<RepoError> {
    let [key, sas, client] = [
        ("account_key", &settings.account_key_file, &settings.account_key_command),
        ("sas_token", &settings.sas_token_file, &settings.sas_token_command),
        ("client_secret", &settings.client_secret_file, &settings.client_secret_command),
    ];
    let ambiguous = [key, sas, client].into_iter().filter_map(|(key, file, command)| {
        let chosen = SecretSource::choose(key, file.clone(), command.clone());
        chosen.map_err(|error| RepoError::settings(key, error)).err()
    });
    let [key, sas, client] = [key, sas, client].map(|(_, file, command)| file.is_some() || command.is_some());
    let principal = client && !key && !sas;
    let needed = [("tenant_id", &settings.tenant_id), ("client_id", &settings.client_id)];
    let lacking = needed.into_iter().filter(|(_, value)| principal && value.is_none());
    ambiguous.chain(lacking.map(|(setting, _)| missing(setting, settings))).collect()
}

/// The service principal's secret is set, and that setting is not.
fn missing(setting: &'static str, settings: &AzureSettings) -> RepoError {
    let secret = match settings.client_secret_file {
        Some(_) => "client_secret_file",
        None => "client_secret_command",
    };
    RepoError::settings(setting, format!("is required with {secret}"))
}

pub(super) async fn add(
    builder: MicrosoftAzureBuilder,
    settings: &AzureSettings,
) -> Result<MicrosoftAzureBuilder> {
    let key = secret("account_key", &settings.account_key_file, &settings.account_key_command).await?;
    let sas = secret("sas_token", &settings.sas_token_file, &settings.sas_token_command).await?;
    let client =
        secret("client_secret", &settings.client_secret_file, &settings.client_secret_command).await?;
    if let Some(key) = key {
        return Ok(builder.with_access_key(key.expose()));
    }
    if let Some(sas) = sas {
        return Ok(builder.with_config(AzureConfigKey::SasKey, sas.expose().trim_start_matches('?')));
    }
    if let Some(client) = client {
        let tenant = settings.tenant_id.as_deref().ok_or_else(|| missing("tenant_id", settings))?;
        let id = settings.client_id.as_deref().ok_or_else(|| missing("client_id", settings))?;
        return Ok(builder.with_client_secret_authorization(id, client.expose(), tenant));
    }
    let set = |key| builder.get_config_value(&key).is_some();
    let given = set(AzureConfigKey::AccessKey)
        || set(AzureConfigKey::SasKey)
        || set(AzureConfigKey::ClientSecret)
        || set(AzureConfigKey::FederatedTokenFile)
        || set(AzureConfigKey::Token)
        || set(AzureConfigKey::MsiEndpoint);
    if !given && !has_metadata().await {
        return Err(no_credentials(
            "account_key_file",
            "Set account and account_key_file, sas_token_file or client_secret_file (or …_command), or \
             AZURE_STORAGE_ACCOUNT_KEY.",
        ));
    }
    Ok(builder)
}
