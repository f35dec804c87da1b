//! Google's credentials: a service account's key, else what Google's own tools use, else the machine's account.

use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};

use super::settings::GoogleSettings;
use crate::error::{RepoError, Result};
use crate::store::network::{has_metadata, no_credentials, secret};

pub(super) async fn add(
    builder: GoogleCloudStorageBuilder,
    settings: &GoogleSettings,
) -> Result<GoogleCloudStorageBuilder> {
    if let Some(path) = &settings.service_account_file {
        // Beside a path, which the environment may name, the library takes no key: another path alone replaces it.
        if builder.get_config_value(&GoogleConfigKey::ServiceAccount).is_some() {
            let path =
                path.to_str().ok_or_else(|| RepoError::settings("service_account_file", "is not text"))?;
            return Ok(builder.with_service_account_path(path));
        }
        if let Some(key) = secret("service_account_file", &Some(path.clone()), &None).await? {
            return Ok(builder.with_service_account_key(key.expose()));
        }
    }
    if settings.network.endpoint.is_some() && settings.network.allow_http {
        // An emulator, which knows no credentials; without any the library would ask the machine for them.
        return Ok(builder.with_bearer_token("none"));
    }
    let set = |key| builder.get_config_value(&key).is_some();
    let given = set(GoogleConfigKey::ServiceAccount)
        || set(GoogleConfigKey::ServiceAccountKey)
        || set(GoogleConfigKey::ApplicationCredentials);
    let default_file = std::env::home_dir()
        .is_some_and(|home| home.join(".config/gcloud/application_default_credentials.json").exists());
    if !given && !default_file && !has_metadata().await {
        return Err(no_credentials(
            "service_account_file",
            "Set service_account_file, or GOOGLE_APPLICATION_CREDENTIALS.",
        ));
    }
    Ok(builder)
}
