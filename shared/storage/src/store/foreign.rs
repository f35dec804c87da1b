//! Keys of another provider than the one that a table's URL leads to.
//!
//! Such a key would do nothing, and its owner believes that it does: that objects are encrypted by `sse`, say, in a store
//! that does not have it.

use walpoint_base::table::WrongKey;

use super::azure::AzureSettings;
use super::google::GoogleSettings;
use super::location::Kind;
use super::network::NetworkSettings;
use super::s3::S3Settings;
use super::table::{Keys, StoreTable};

/// Every group of keys that not each kind of store has, with the kinds that have it.
fn groups(table: &StoreTable) -> [(&'static [Kind], Keys); 4] {
    [
        (&[Kind::S3, Kind::Google, Kind::Azure], NetworkSettings::keys(table)),
        (&[Kind::S3], S3Settings::keys(table)),
        (&[Kind::Google], GoogleSettings::keys(table)),
        (&[Kind::Azure], AzureSettings::keys(table)),
    ]
}

/// Fails if the table of a store of that kind has a key that only others have.
pub(super) fn refuse(table: &StoreTable, kind: Kind) -> Result<(), WrongKey> {
    for (owners, keys) in groups(table).into_iter().filter(|(owners, _)| !owners.contains(&kind)) {
        if let Some((key, _)) = keys.into_iter().find(|(_, set)| *set) {
            return Err(WrongKey {
                key,
                what: format!("\"{key}\" is a setting of {}, but \"url\" leads to {kind}", listed(owners)),
                hint: format!("Remove \"{key}\", or correct \"url\"."),
            });
        }
    }
    Ok(())
}

/// `S3 (s3://), Google Cloud Storage (gs://) and Azure Blob Storage (az://)`.
fn listed(kinds: &[Kind]) -> String {
    let names: Vec<String> = kinds.iter().map(Kind::to_string).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::store::StoreSettings;

    const S3: &str = "S3 (s3://)";
    const GOOGLE: &str = "Google Cloud Storage (gs://)";
    const AZURE: &str = "Azure Blob Storage (az://)";
    const NETWORK: &str = "S3 (s3://), Google Cloud Storage (gs://) and Azure Blob Storage (az://)";

    const URLS: [(&str, &str); 6] = [
        ("/directory", "a directory"),
        ("file:///directory", "a directory"),
        ("s3://bucket/prefix", S3),
        ("gs://bucket", GOOGLE),
        ("az://container", AZURE),
        ("azure://container/prefix", AZURE),
    ];

    /// Each key that not every store has, a value, and whose it is.
    const OWNED: [(&str, &str, &str); 27] = [
        ("endpoint", "\"https://x\"", NETWORK),
        ("allow_http", "false", NETWORK),
        ("ca_file", "\"/x\"", NETWORK),
        ("region", "\"x\"", S3),
        ("path_style", "false", S3),
        ("access_key_id", "\"x\"", S3),
        ("access_key_id_file", "\"/x\"", S3),
        ("access_key_id_command", "\"x\"", S3),
        ("secret_access_key_file", "\"/x\"", S3),
        ("secret_access_key_command", "\"x\"", S3),
        ("session_token_file", "\"/x\"", S3),
        ("session_token_command", "\"x\"", S3),
        ("sse", "\"AES256\"", S3),
        ("sse_kms_key", "\"x\"", S3),
        ("storage_class", "\"x\"", S3),
        ("payload_signing", "false", S3),
        ("checksum", "\"none\"", S3),
        ("service_account_file", "\"/x\"", GOOGLE),
        ("account", "\"x\"", AZURE),
        ("account_key_file", "\"/x\"", AZURE),
        ("account_key_command", "\"x\"", AZURE),
        ("sas_token_file", "\"/x\"", AZURE),
        ("sas_token_command", "\"x\"", AZURE),
        ("tenant_id", "\"x\"", AZURE),
        ("client_id", "\"x\"", AZURE),
        ("client_secret_file", "\"/x\"", AZURE),
        ("client_secret_command", "\"x\"", AZURE),
    ];

    /// What every store has.
    const COMMON: [(&str, &str); 11] = [
        ("conditional_writes", "\"look-first\""),
        ("connect_timeout", "\"5s\""),
        ("read_timeout", "\"5s\""),
        ("retries", "7"),
        ("retry_timeout", "\"5s\""),
        ("key_file", "\"/x\""),
        ("key_command", "\"x\""),
        ("passphrase_file", "\"/x\""),
        ("passphrase_command", "\"x\""),
        ("unwrap_command", "\"x\""),
        ("wrap_command", "\"x\""),
    ];

    /// A table with one key besides its URL.
    fn read(url: &str, key: &str, value: &str) -> Result<StoreSettings, String> {
        let table = format!("{{\"url\": \"{url}\", \"{key}\": {value}}}");
        serde_json::from_str(&table).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_of_another_provider_is_refused_by_name_and_owner() {
        for (url, store) in URLS {
            for (key, value, owners) in OWNED {
                let result = read(url, key, value);
                if owners.contains(store) {
                    assert!(result.is_ok(), "{url} {key}: {result:?}");
                    continue;
                }
                let error = result.unwrap_err();
                let whole = format!(
                    "\"{key}\" is a setting of {owners}, but \"url\" leads to {store}\n\
                     HINT: Remove \"{key}\", or correct \"url\"."
                );
                assert!(error.starts_with(&whole), "{url} {key}: {error}");
            }
            for (key, value) in COMMON {
                assert!(read(url, key, value).is_ok(), "{url} {key}");
            }
        }
    }

    #[test]
    fn every_key_is_in_these_tables() {
        let all = serde_json::from_str::<StoreTable>("{\"?\": 1}").unwrap_err().to_string();
        let all: BTreeSet<&str> = all.split('`').skip(3).step_by(2).collect();
        let known = OWNED.iter().map(|(key, ..)| *key).chain(COMMON.iter().map(|(key, _)| *key));
        assert_eq!(known.chain(["url"]).collect::<BTreeSet<_>>(), all);
    }

    #[test]
    fn owners_are_listed_as_in_a_sentence() {
        assert_eq!(listed(&[Kind::Google]), "Google Cloud Storage (gs://)");
        assert_eq!(listed(&[Kind::S3, Kind::Azure]), "S3 (s3://) and Azure Blob Storage (az://)");
    }

    /// It is an error when the store is opened, and nothing is known of whose keys it could have.
    #[test]
    fn a_wrong_url_has_no_foreign_keys() {
        assert!(read("ftp://x/y", "sse", "\"x\"").unwrap().provider().is_err());
    }
}
