//! What a configuration says about a bucket of S3's.

use std::path::{Path, PathBuf};

use crate::store::location::Bucket;
use crate::store::network::NetworkSettings;
use crate::store::table::{Keys, StoreTable, keys};

/// Where the bucket is, how it is reached, and what is asked of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct S3Settings {
    /// The bucket and the prefix.
    pub bucket: Bucket,
    /// The address of an S3-compatible store, such as `https://minio.example:9000`.
    pub network: NetworkSettings,
    /// The region. Default `us-east-1`.
    pub region: Option<String>,
    /// The bucket in the path (true) or in the host name. Default: in the path where an endpoint is set.
    pub path_style: Option<bool>,
    /// The access key's name, which is no secret.
    pub access_key_id: Option<String>,
    /// A file that holds the access key's name.
    pub access_key_id_file: Option<PathBuf>,
    /// A command that prints the access key's name.
    pub access_key_id_command: Option<String>,
    /// A file that holds the secret key. Read again every minute.
    pub secret_access_key_file: Option<PathBuf>,
    /// A command that prints the secret key. Run again every minute in which it is needed.
    pub secret_access_key_command: Option<String>,
    /// A file that holds the session token of temporary credentials.
    pub session_token_file: Option<PathBuf>,
    /// A command that prints the session token.
    pub session_token_command: Option<String>,
    /// Server-side encryption, `AES256`, `aws:kms` or `aws:kms:dsse`.
    pub sse: Option<String>,
    /// The key for `aws:kms`; without it the bucket's.
    pub sse_kms_key: Option<String>,
    /// The storage class of new objects, such as `STANDARD_IA`. Restores need classes that answer at once.
    pub storage_class: Option<String>,
    /// Whether bodies are signed (SHA-256). Default: over plain HTTP only, TLS protects them otherwise.
    pub payload_signing: Option<bool>,
    /// The checksum that is sent with a body, `crc64nvme`, `sha256` or `none`. Default: `crc64nvme` where bodies are
    /// not signed, else `none`. Old S3-compatible stores refuse `crc64nvme`.
    pub checksum: Option<String>,
}

impl S3Settings {
    pub(in crate::store) fn of(bucket: Bucket, table: &StoreTable) -> Self {
        Self {
            bucket,
            network: NetworkSettings::of(table),
            region: table.region.clone(),
            path_style: table.path_style,
            access_key_id: table.access_key_id.clone(),
            access_key_id_file: table.access_key_id_file.clone(),
            access_key_id_command: table.access_key_id_command.clone(),
            secret_access_key_file: table.secret_access_key_file.clone(),
            secret_access_key_command: table.secret_access_key_command.clone(),
            session_token_file: table.session_token_file.clone(),
            session_token_command: table.session_token_command.clone(),
            sse: table.sse.clone(),
            sse_kms_key: table.sse_kms_key.clone(),
            storage_class: table.storage_class.clone(),
            payload_signing: table.payload_signing,
            checksum: table.checksum.clone(),
        }
    }

    /// What only this provider has.
    pub(in crate::store) fn keys(table: &StoreTable) -> Keys {
        keys![
            table:
            region,
            path_style,
            access_key_id,
            access_key_id_file,
            access_key_id_command,
            secret_access_key_file,
            secret_access_key_command,
            session_token_file,
            session_token_command,
            sse,
            sse_kms_key,
            storage_class,
            payload_signing,
            checksum,
        ]
    }

    pub(in crate::store) fn secret_files(&self) -> Vec<&Path> {
        let files = [&self.secret_access_key_file, &self.session_token_file];
        files.into_iter().flatten().map(PathBuf::as_path).collect()
    }
}
