//! What is wrong with the settings of a store as they are written, without a look at where they lead.

use super::limits::Limits;
use super::settings::{Provider, StoreSettings};
use super::{azure, google, s3};
use crate::error::RepoError;

impl StoreSettings {
    /// Everything that opening the store would refuse because of what is written, whatever is there: settings that are wrong by
    /// themselves, and settings that contradict one another. Nothing is opened, and no secret is read.
    pub fn contradictions(&self) -> Vec<RepoError> {
        let mut found = match &self.provider {
            Err(wrong) => vec![RepoError::settings("url", wrong)],
            Ok(Provider::Directory(_)) => Vec::new(),
            Ok(Provider::S3(settings)) => s3::contradictions(settings),
            Ok(Provider::Google(settings)) => google::contradictions(settings),
            Ok(Provider::Azure(settings)) => azure::contradictions(settings),
        };
        found.extend(Limits::of(&self.limits).err());
        found.extend(self.limits.connect_timeout().err());
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str) -> Vec<&'static str> {
        let settings: StoreSettings = serde_json::from_str(json).unwrap();
        let settings = settings.contradictions();
        let setting = |error: RepoError| match error {
            RepoError::Settings { setting, .. } => setting,
            other => panic!("{other}"),
        };
        settings.into_iter().map(setting).collect()
    }

    #[test]
    fn what_is_written_is_judged_without_opening() {
        for (json, settings) in [
            (r#"{"url": "/nowhere"}"#, &[][..]),
            (r#"{"url": ""}"#, &["url"]),
            (r#"{"url": "ftp://x/y", "read_timeout": "0s"}"#, &["url", "read_timeout"]),
            (r#"{"url": "s3://b", "access_key_id": "k", "secret_access_key_file": "/missing"}"#, &[]),
            (r#"{"url": "s3://b", "access_key_id": "k", "access_key_id_file": "/k"}"#, &["access_key_id"]),
            (r#"{"url": "s3://b", "access_key_id": "k"}"#, &["secret_access_key_file"]),
            (
                r#"{"url": "s3://b", "endpoint": "http://h", "checksum": "md5", "sse": "x", "connect_timeout": "0s"}"#,
                &["endpoint", "checksum", "sse", "connect_timeout"],
            ),
            (r#"{"url": "gs://b", "endpoint": "h"}"#, &["endpoint"]),
            (r#"{"url": "az://c", "sas_token_file": "/a", "sas_token_command": "b"}"#, &["sas_token"]),
            (r#"{"url": "az://c", "client_secret_file": "/a", "client_id": "x"}"#, &["tenant_id"]),
            (r#"{"url": "az://c", "client_secret_command": "a"}"#, &["tenant_id", "client_id"]),
            (r#"{"url": "az://c", "client_secret_file": "/a", "account_key_file": "/k"}"#, &[]),
            (r#"{"url": "az://c", "client_secret_file": "/a", "sas_token_command": "k"}"#, &[]),
            (
                r#"{"url": "az://c", "client_secret_file": "/a", "client_secret_command": "b", "sas_token_file": "/s"}"#,
                &["client_secret"],
            ),
        ] {
            assert_eq!(found(json), settings, "{json}");
        }
    }

    #[test]
    fn what_a_service_principal_lacks_is_said_of_the_key_that_is_set() {
        for key in ["client_secret_file", "client_secret_command"] {
            let json = format!(r#"{{"url": "az://c", "{key}": "/a", "client_id": "x"}}"#);
            let settings: StoreSettings = serde_json::from_str(&json).unwrap();
            let found: Vec<String> = settings.contradictions().iter().map(ToString::to_string).collect();
            assert!(matches!(&found[..], [only] if only.contains(&format!("with {key}"))), "{found:?}");
        }
    }
}
