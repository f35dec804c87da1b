//! The table `[repository.NAME]` as a file has it: flat, the same keys whichever store it is about. What a key means is said
//! where it ends up: in the settings of its provider, of the network, of encryption, or of the limits.

use std::path::PathBuf;

use jiff::SignedDuration;
use serde::Deserialize;
use walpoint_base::span;

/// The keys of the table. Unknown ones are errors. Secrets are never here, only where to find them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreTable {
    pub(super) url: String,
    pub(super) conditional_writes: ConditionalWrites,

    // The stores behind a network.
    pub(super) endpoint: Option<String>,
    pub(super) allow_http: Option<bool>,
    pub(super) ca_file: Option<PathBuf>,

    // S3.
    pub(super) region: Option<String>,
    pub(super) path_style: Option<bool>,
    pub(super) access_key_id: Option<String>,
    pub(super) access_key_id_file: Option<PathBuf>,
    pub(super) access_key_id_command: Option<String>,
    pub(super) secret_access_key_file: Option<PathBuf>,
    pub(super) secret_access_key_command: Option<String>,
    pub(super) session_token_file: Option<PathBuf>,
    pub(super) session_token_command: Option<String>,
    pub(super) sse: Option<String>,
    pub(super) sse_kms_key: Option<String>,
    pub(super) storage_class: Option<String>,
    pub(super) payload_signing: Option<bool>,
    pub(super) checksum: Option<String>,

    // Google.
    pub(super) service_account_file: Option<PathBuf>,

    // Azure.
    pub(super) account: Option<String>,
    pub(super) account_key_file: Option<PathBuf>,
    pub(super) account_key_command: Option<String>,
    pub(super) sas_token_file: Option<PathBuf>,
    pub(super) sas_token_command: Option<String>,
    pub(super) tenant_id: Option<String>,
    pub(super) client_id: Option<String>,
    pub(super) client_secret_file: Option<PathBuf>,
    pub(super) client_secret_command: Option<String>,

    // Encryption.
    pub(super) key_file: Option<PathBuf>,
    pub(super) key_command: Option<String>,
    pub(super) passphrase_file: Option<PathBuf>,
    pub(super) passphrase_command: Option<String>,
    pub(super) unwrap_command: Option<String>,
    pub(super) wrap_command: Option<String>,

    // Limits.
    #[serde(deserialize_with = "span::deserialize_some")]
    pub(super) connect_timeout: Option<SignedDuration>,
    #[serde(deserialize_with = "span::deserialize_some")]
    pub(super) read_timeout: Option<SignedDuration>,
    pub(super) retries: Option<u32>,
    #[serde(deserialize_with = "span::deserialize_some")]
    pub(super) retry_timeout: Option<SignedDuration>,
}

/// Names of keys, and whether a table has them.
pub(super) type Keys = Vec<(&'static str, bool)>;

/// The [`Keys`] of those names.
macro_rules! keys {
    ($table:ident: $($key:ident),+ $(,)?) => { vec![$((stringify!($key), $table.$key.is_some())),+] };
}
pub(super) use keys;

/// Whether the store itself keeps objects from being replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConditionalWrites {
    /// It must.
    #[default]
    Required,
    /// It cannot.
    LookFirst,
}
