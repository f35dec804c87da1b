//! Stores under test: where a repository may lie, how a program reaches it, and a back door for the test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde_json::json;
use walpoint_storage::store::StoreSettings;

use crate::dir::TestDir;
use crate::ports::PortLease;
use crate::process::Background;
use crate::seaweed::{self, Credentials, SeaweedBucket};
use crate::{testbed, user};

/// A store with an empty place for a repository. It has the name of the type that opens it (`walpoint_storage::store::Store`), because a
/// test has one store, and this is where that comes from.
#[derive(Debug)]
pub struct Store {
    kind: Kind,
    credentials: Credentials,
    /// Goes last: what the server serves.
    _dir: Option<Arc<TestDir>>,
}

#[derive(Debug)]
enum Kind {
    Local {
        root: PathBuf,
    },
    S3 {
        port: u16,
        bucket: String,
        _bucket: Option<SeaweedBucket>,
        _server: Option<Background>,
        _lease: Option<PortLease>,
    },
}

impl Store {
    /// A directory on the local filesystem, owned by the user that the programs run as.
    pub fn local() -> Store {
        let dir = Arc::new(TestDir::new());
        let root = dir.mkdir("repo");
        Store { kind: Kind::Local { root }, credentials: Credentials::full(), _dir: Some(dir) }
    }

    /// A local store in a directory that exists already: a small filesystem, a mount.
    pub fn local_at(root: impl Into<PathBuf>) -> Store {
        Store { kind: Kind::Local { root: root.into() }, credentials: Credentials::full(), _dir: None }
    }

    /// A bucket of its own on the shared SeaweedFS.
    #[track_caller]
    pub fn s3() -> Store {
        let server = seaweed::shared();
        let bucket = server.bucket();
        Store {
            kind: Kind::S3 {
                port: server.s3_port,
                bucket: bucket.name().to_owned(),
                _bucket: Some(bucket),
                _server: None,
                _lease: None,
            },
            credentials: Credentials::full(),
            _dir: None,
        }
    }

    /// The bad store, `rclone serve s3`: takes `If-None-Match` and overwrites all the same.
    #[track_caller]
    pub fn rclone() -> Store {
        let dir = Arc::new(TestDir::new());
        let (lease, credentials) = (PortLease::new(), Credentials::full());
        let port = lease.port();
        std::fs::create_dir_all(dir.join("served/bucket")).expect("a bucket");
        user::give_tree(&dir.join("served"));
        let mut command = Command::new(testbed::program("rclone"));
        command.args(["serve", "s3", "--config", "/dev/null", "--force-path-style"]);
        command.args(["--auth-key", &format!("{},{}", credentials.key, credentials.secret)]);
        command
            .args(["--addr", &format!("127.0.0.1:{port}"), "--vfs-cache-mode", "off"])
            .arg(dir.join("served"));
        command.env("XDG_CACHE_HOME", dir.path());
        let mut server = Background::start(&mut command, &dir.join("rclone.log"));
        let start = Instant::now();
        while seaweed::http(port, "GET", "/").is_err() {
            assert!(server.try_status().is_none(), "rclone ended: {}", server.log());
            assert!(start.elapsed() < Duration::from_secs(30), "rclone did not start: {}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Store {
            kind: Kind::S3 {
                port,
                bucket: "bucket".to_owned(),
                _bucket: None,
                _server: Some(server),
                _lease: Some(lease),
            },
            credentials,
            _dir: Some(dir),
        }
    }

    /// The stores that every promise about repositories is tested on.
    pub fn all_good() -> Vec<Store> {
        vec![Store::local(), Store::s3()]
    }

    /// The same place, with other credentials.
    pub fn set_credentials(&mut self, credentials: Credentials) {
        self.credentials = credentials;
    }

    /// The repository's URL: `file:///…` or `s3://bucket/repo`.
    pub fn url(&self) -> String {
        match &self.kind {
            Kind::Local { root } => format!("file://{}", root.display()),
            Kind::S3 { bucket, .. } => format!("s3://{bucket}/repo"),
        }
    }

    /// Where a local store's files are.
    pub fn root(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Local { root } => Some(root),
            Kind::S3 { .. } => None,
        }
    }

    /// The port of an S3 server on 127.0.0.1: where a fault proxy shall forward to.
    pub fn port(&self) -> Option<u16> {
        match &self.kind {
            Kind::Local { .. } => None,
            Kind::S3 { port, .. } => Some(*port),
        }
    }

    /// The bucket of an S3 store.
    pub fn bucket(&self) -> Option<&str> {
        match &self.kind {
            Kind::Local { .. } => None,
            Kind::S3 { bucket, .. } => Some(bucket),
        }
    }

    /// The lines of a `[repository.NAME]` table below its name; `port` reaches the server through a proxy.
    pub fn config(&self, port: Option<u16>) -> String {
        let mut text = format!("url = \"{}\"\n", self.url());
        if let Some(own) = self.port() {
            text += &format!("endpoint = \"http://127.0.0.1:{}\"\n", port.unwrap_or(own));
            text += "region = \"us-east-1\"\npath_style = true\nallow_http = true\n";
        }
        text
    }

    /// What a program needs in its environment to be let in.
    pub fn env(&self) -> Vec<(String, String)> {
        match &self.kind {
            Kind::Local { .. } => Vec::new(),
            Kind::S3 { .. } => vec![
                ("AWS_ACCESS_KEY_ID".to_owned(), self.credentials.key.clone()),
                ("AWS_SECRET_ACCESS_KEY".to_owned(), self.credentials.secret.clone()),
            ],
        }
    }

    /// The same for the library.
    pub fn settings(&self) -> StoreSettings {
        self.settings_through(self.port())
    }

    /// The same, reaching the server at `port`: through a proxy.
    pub fn settings_through(&self, port: Option<u16>) -> StoreSettings {
        self.settings_as(&self.credentials, port)
    }

    /// The same with other credentials.
    pub fn settings_as(&self, who: &Credentials, port: Option<u16>) -> StoreSettings {
        self.settings_at(&self.url(), who, port)
    }

    /// The same for another place in the same server.
    pub fn settings_at(&self, url: &str, who: &Credentials, port: Option<u16>) -> StoreSettings {
        let table = match self.kind {
            Kind::Local { .. } => json!({ "url": url }),
            Kind::S3 { port: own, .. } => json!({
                "url": url,
                "endpoint": format!("http://127.0.0.1:{}", port.unwrap_or(own)),
                "region": "us-east-1",
                "path_style": true,
                "allow_http": true,
                "access_key_id": who.key,
                "secret_access_key_command": format!("echo {}", who.secret),
            }),
        };
        serde_json::from_value(table).expect("a table of the configuration")
    }

    /// The test's own way to the objects, past everything under test; keys are relative to the repository.
    pub fn back_door(&self) -> BackDoor {
        let store: Arc<dyn ObjectStore> = match &self.kind {
            Kind::Local { root } => {
                Arc::new(LocalFileSystem::new_with_prefix(root).expect("the store's root"))
            }
            Kind::S3 { port, bucket, .. } => {
                let full = Credentials::full();
                let s3 = AmazonS3Builder::new()
                    .with_endpoint(format!("http://127.0.0.1:{port}"))
                    .with_bucket_name(bucket)
                    .with_region("us-east-1")
                    .with_allow_http(true)
                    .with_virtual_hosted_style_request(false)
                    .with_access_key_id(full.key)
                    .with_secret_access_key(full.secret)
                    .build()
                    .expect("an S3 client");
                Arc::new(object_store::prefix::PrefixStore::new(s3, "repo"))
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        BackDoor { store, runtime }
    }
}

/// Looks at and damages a repository behind the programs' backs. Blocking: not for use inside async code.
#[derive(Debug)]
pub struct BackDoor {
    store: Arc<dyn ObjectStore>,
    runtime: tokio::runtime::Runtime,
}

impl BackDoor {
    /// The store itself.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store)
    }

    /// All keys below a prefix (whole path parts), sorted.
    pub fn list(&self, prefix: &str) -> Vec<String> {
        let prefix = object_store::path::Path::from(prefix);
        let listing = self.store.list(Some(&prefix)).map_ok(|meta| meta.location.to_string());
        let mut keys: Vec<String> = self.runtime.block_on(listing.try_collect()).expect("list");
        keys.sort();
        keys
    }

    /// An object's bytes, if it is there.
    pub fn get(&self, key: &str) -> Option<Bytes> {
        let key = object_store::path::Path::from(key);
        self.runtime.block_on(async {
            match self.store.get(&key).await {
                Ok(found) => Some(found.bytes().await.expect("read")),
                Err(object_store::Error::NotFound { .. }) => None,
                Err(e) => panic!("get {key}: {e}"),
            }
        })
    }

    /// Writes an object, replacing what is there.
    pub fn put(&self, key: &str, bytes: impl Into<PutPayload>) {
        let key = object_store::path::Path::from(key);
        self.runtime.block_on(self.store.put(&key, bytes.into())).expect("put");
    }

    /// Deletes an object.
    pub fn delete(&self, key: &str) {
        let key = object_store::path::Path::from(key);
        self.runtime.block_on(self.store.delete(&key)).expect("delete");
    }

    /// Turns over one bit of an object.
    #[track_caller]
    pub fn flip_bit(&self, key: &str, byte: usize) {
        let mut bytes = self.get(key).unwrap_or_else(|| panic!("no object {key}")).to_vec();
        assert!(byte < bytes.len(), "{key} has {} bytes", bytes.len());
        bytes[byte] ^= 1;
        self.put(key, bytes);
    }

    /// Cuts an object to its first bytes.
    #[track_caller]
    pub fn truncate(&self, key: &str, length: usize) {
        let bytes = self.get(key).unwrap_or_else(|| panic!("no object {key}"));
        self.put(key, bytes.slice(..length));
    }
}
