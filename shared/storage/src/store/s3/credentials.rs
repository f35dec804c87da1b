//! S3's credentials: from files and commands, read again while the daemon runs, because keys are rotated and tokens expire; else
//! what Amazon's own tools find in the environment, else the machine's role.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::CredentialProvider;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use tokio::sync::Mutex;
use walpoint_base::secret::{SecretError, SecretSource};

use super::settings::S3Settings;
use crate::error::{RepoError, Result};
use crate::store::network::{has_metadata, no_credentials};

/// How long what was read is used.
const LIFETIME: Duration = Duration::from_secs(60);

pub(super) async fn add(builder: AmazonS3Builder, settings: &S3Settings) -> Result<AmazonS3Builder> {
    if let Some(key) = RotatingKey::from_settings(settings)? {
        key.check().await?;
        return Ok(builder.with_credentials(Arc::new(key)));
    }
    let set = |key| builder.get_config_value(&key).is_some();
    let from_environment = set(AmazonS3ConfigKey::AccessKeyId)
        || set(AmazonS3ConfigKey::WebIdentityTokenFile)
        || set(AmazonS3ConfigKey::ContainerCredentialsRelativeUri)
        || set(AmazonS3ConfigKey::ContainerCredentialsFullUri)
        || set(AmazonS3ConfigKey::SkipSignature);
    if !from_environment && !has_metadata().await {
        return Err(no_credentials(
            "access_key_id",
            "Set access_key_id and secret_access_key_file (or …_command), or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        ));
    }
    Ok(builder)
}

/// Settings of an access key that are incomplete, or of which only one can be meant.
pub(super) fn contradiction(settings: &S3Settings) -> Option<RepoError> {
    RotatingKey::from_settings(settings).err()
}

/// An access key that is read where the settings say.
struct RotatingKey {
    id: Id,
    secret: SecretSource,
    token: Option<SecretSource>,
    current: Mutex<Option<(Instant, Arc<AwsCredential>)>>,
}

#[derive(Clone)]
enum Id {
    Given(String),
    Source(SecretSource),
}

impl RotatingKey {
    /// `None` if the settings say nothing about keys.
    fn from_settings(settings: &S3Settings) -> Result<Option<Self>> {
        let choose = |key: &'static str, file: &Option<_>, command: &Option<_>| {
            SecretSource::choose(key, Option::clone(file), Option::clone(command))
                .map_err(|error| RepoError::settings(key, error))
        };
        let id = choose("access_key_id", &settings.access_key_id_file, &settings.access_key_id_command)?
            .map(Id::Source);
        let id = match (id, settings.access_key_id.clone()) {
            (Some(_), Some(_)) => {
                return Err(RepoError::settings(
                    "access_key_id",
                    "is set, and its _file or _command too\nHINT: Keep one of them.",
                ));
            }
            (id, given) => id.or(given.map(Id::Given)),
        };
        let secret = choose(
            "secret_access_key",
            &settings.secret_access_key_file,
            &settings.secret_access_key_command,
        )?;
        let token = choose("session_token", &settings.session_token_file, &settings.session_token_command)?;
        match (id, secret) {
            (Some(id), Some(secret)) => Ok(Some(Self { id, secret, token, current: Mutex::new(None) })),
            (None, None) if token.is_none() => Ok(None),
            (None, _) => Err(RepoError::settings("access_key_id", "is required with secret_access_key")),
            (Some(_), None) => Err(RepoError::settings(
                "secret_access_key_file",
                "(or secret_access_key_command) is required with access_key_id",
            )),
        }
    }

    /// Reads it once, so that a wrong path shows when the store is opened.
    async fn check(&self) -> Result<()> {
        self.get().await.map(drop).map_err(|error| RepoError::settings("secret_access_key", error))
    }

    async fn get(&self) -> Result<Arc<AwsCredential>, SecretError> {
        let mut current = self.current.lock().await;
        if let Some((read, credential)) = &*current
            && read.elapsed() < LIFETIME
        {
            return Ok(Arc::clone(credential));
        }
        let (id, secret, token) = (self.id.clone(), self.secret.clone(), self.token.clone());
        let read = move || {
            let key_id = match id {
                Id::Given(id) => id,
                Id::Source(source) => source.read()?.expose().to_owned(),
            };
            let token = token.map(|t| t.read()).transpose()?.map(|t| t.expose().to_owned());
            Ok(AwsCredential { key_id, secret_key: secret.read()?.expose().to_owned(), token })
        };
        let ended = |_| SecretError::Content { source_name: "the settings".to_owned(), what: "not read" };
        let credential = Arc::new(tokio::task::spawn_blocking(read).await.map_err(ended)??);
        *current = Some((Instant::now(), Arc::clone(&credential)));
        Ok(credential)
    }
}

impl fmt::Debug for RotatingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RotatingKey(***)")
    }
}

#[async_trait::async_trait]
impl CredentialProvider for RotatingKey {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.get().await.map_err(|error| object_store::Error::Unauthenticated {
            path: "credentials".to_owned(),
            source: error.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::location::Bucket;

    fn settings(json: &str) -> Result<Option<RotatingKey>> {
        let bucket = Bucket { name: "b".to_owned(), prefix: String::new() };
        RotatingKey::from_settings(&S3Settings::of(bucket, &serde_json::from_str(json).unwrap()))
    }

    #[tokio::test]
    async fn from_commands() {
        let key = settings(
            r#"{"access_key_id": "AK", "secret_access_key_command": "echo s3", "session_token_command": "echo tk"}"#,
        );
        let credential = key.unwrap().unwrap().get_credential().await.unwrap();
        assert_eq!((&*credential.key_id, &*credential.secret_key), ("AK", "s3"));
        assert_eq!(credential.token.as_deref(), Some("tk"));
    }

    #[tokio::test]
    async fn half_a_key_is_an_error() {
        assert!(settings("{}").unwrap().is_none());
        for bad in [
            r#"{"access_key_id": "AK"}"#,
            r#"{"secret_access_key_file": "/x"}"#,
            r#"{"session_token_file": "/x"}"#,
            r#"{"access_key_id": "AK", "access_key_id_file": "/x", "secret_access_key_file": "/x"}"#,
            r#"{"access_key_id": "AK", "secret_access_key_file": "/x", "secret_access_key_command": "x"}"#,
        ] {
            assert!(settings(bad).is_err(), "{bad}");
        }
        let key = settings(r#"{"access_key_id": "AK", "secret_access_key_file": "/nonexistent"}"#)
            .unwrap()
            .unwrap();
        let error = key.check().await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent"), "{error}");
    }
}
