//! A place for one tool's repository: an empty directory, bucket or sink, which goes with the value.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::{Certificate, ClientOptions, ObjectStore};
use walpoint_tests::ports::PortLease;
use walpoint_tests::process::Background;
use walpoint_tests::seaweed::Credentials;
use walpoint_tests::user;

use crate::far::Far;
use crate::sink;
use crate::template::Values;
use crate::weed::{self, Weed};
use crate::work::WorkDirectory;

/// The kinds of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreKind {
    /// A directory on a disk.
    Local,
    /// SeaweedFS over TLS.
    S3,
    /// The same, behind a line with this round trip.
    Far {
        /// Milliseconds.
        round_trip_ms: u64,
    },
    /// A server that keeps next to nothing, without TLS.
    Sink,
}

impl StoreKind {
    /// As in `tools.toml`, which knows nothing of distance.
    pub fn name(self) -> &'static str {
        match self {
            StoreKind::Local => "local",
            StoreKind::S3 | StoreKind::Far { .. } => "s3",
            StoreKind::Sink => "sink",
        }
    }
}

/// The stores of a run.
#[derive(Debug)]
pub struct Stores {
    weed: Option<Weed>,
    dir: PathBuf,
    program: PathBuf,
}

impl Stores {
    /// None is started yet.
    pub fn new(work: &WorkDirectory) -> Stores {
        Stores { weed: None, dir: work.dir("stores"), program: work.program() }
    }

    /// SeaweedFS, started when it is needed first.
    pub fn weed(&mut self) -> &Weed {
        let dir = self.dir.join("weed");
        self.weed.get_or_insert_with(|| Weed::start(&dir))
    }

    /// The processes of SeaweedFS, whose CPU time is not the tools'.
    pub fn pids(&self) -> Vec<u32> {
        self.weed.iter().map(Weed::pid).collect()
    }
}

/// A place for a repository. [`remove`](StorePlace::remove) takes away what is there.
#[derive(Debug)]
pub struct StorePlace {
    kind: StoreKind,
    values: Values,
    directory: Option<PathBuf>,
    bucket: Option<String>,
    sink: Option<(Background, PortLease)>,
    far: Option<Far>,
}

impl StorePlace {
    /// An empty one.
    pub fn make(kind: StoreKind, stores: &mut Stores) -> StorePlace {
        let name = format!("b{:012x}", rand::random::<u64>() >> 16);
        let mut place =
            StorePlace { kind, values: Values::new(), directory: None, bucket: None, sink: None, far: None };
        let full = Credentials::full();
        let values = &mut place.values;
        let mut set = |name: &str, value: String| drop(values.insert(name.to_owned(), value));
        set("key", full.key);
        set("secret", full.secret);
        match kind {
            StoreKind::Local => {
                let directory = stores.dir.join("local").join(&name);
                fs::create_dir_all(&directory).expect("a directory for a repository");
                user::give(&directory);
                set("repo", directory.display().to_string());
                place.directory = Some(directory);
            }
            StoreKind::S3 | StoreKind::Far { .. } => {
                let weed = stores.weed();
                weed.create_bucket(&name);
                let mut port = weed.port();
                if let StoreKind::Far { round_trip_ms } = kind {
                    let far = Far::from(port, Duration::from_millis(round_trip_ms));
                    port = far.port();
                    place.far = Some(far);
                }
                set("bucket", name.clone());
                set("host", weed::HOST.to_owned());
                set("s3_port", port.to_string());
                set("endpoint", format!("https://{}:{port}", weed::HOST));
                set("ca", weed.authority().display().to_string());
                place.bucket = Some(name);
            }
            StoreKind::Sink => {
                let lease = PortLease::new();
                let mut command = Command::new(&stores.program);
                command.arg("sink").arg(lease.port().to_string());
                let process = Background::start(&mut command, &stores.dir.join("sink.log"));
                let begun = Instant::now();
                while weed::http(lease.port(), "GET", sink::COUNTS).is_err() {
                    assert!(begun.elapsed() < Duration::from_secs(10), "the sink: {}", process.log());
                    std::thread::sleep(Duration::from_millis(5));
                }
                set("bucket", "sink".to_owned());
                set("endpoint", format!("http://127.0.0.1:{}", lease.port()));
                place.sink = Some((process, lease));
            }
        }
        place
    }

    /// What its placeholders stand for.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// Its kind.
    pub fn kind(&self) -> StoreKind {
        self.kind
    }

    /// Processes of its own, whose CPU time is not the tool's.
    pub fn pids(&self) -> Vec<u32> {
        self.sink.iter().map(|(process, _)| process.pid()).collect()
    }

    /// How often it was asked so far, by kind of request; nothing for a directory.
    pub fn requests(&self, stores: &mut Stores) -> BTreeMap<String, u64> {
        if let Some(bucket) = &self.bucket {
            return stores.weed().requests(bucket);
        }
        let mut counts = self.sink_counts();
        counts.remove("bytes");
        counts
    }

    fn sink_counts(&self) -> BTreeMap<String, u64> {
        let Some((_, lease)) = &self.sink else { return BTreeMap::new() };
        let (_, body) = weed::http(lease.port(), "GET", sink::COUNTS).expect("the sink answers");
        serde_json::from_str(&body).expect("the sink's counts")
    }

    /// The bytes of all objects.
    pub fn stored(&self, stores: &mut Stores) -> u64 {
        match (&self.directory, &self.bucket) {
            (Some(directory), _) => bytes_below(directory),
            (None, Some(bucket)) => bytes_in_bucket(stores.weed(), bucket),
            (None, None) => self.sink_counts().get("bytes").copied().unwrap_or(0),
        }
    }

    /// Removes it with all that is in it.
    pub fn remove(self, stores: &mut Stores) {
        if let Some(directory) = self.directory {
            fs::remove_dir_all(&directory).unwrap_or_else(|e| panic!("remove {}: {e}", directory.display()));
        }
        if let Some(bucket) = self.bucket {
            stores.weed().remove_bucket(&bucket);
        }
    }
}

/// The length of all files below a directory.
pub fn bytes_below(directory: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes += bytes_below(&entry.path()),
            Ok(meta) if meta.is_file() => bytes += meta.len(),
            _ => {}
        }
    }
    bytes
}

fn bytes_in_bucket(weed: &Weed, bucket: &str) -> u64 {
    let full = Credentials::full();
    let pem = fs::read(weed.authority()).expect("the authority");
    let certificate = Certificate::from_pem(&pem).expect("a certificate");
    let store = AmazonS3Builder::new()
        .with_endpoint(format!("https://{}:{}", weed::HOST, weed.port()))
        .with_bucket_name(bucket)
        .with_region("us-east-1")
        .with_client_options(ClientOptions::new().with_root_certificate(certificate))
        .with_access_key_id(full.key)
        .with_secret_access_key(full.secret)
        .build()
        .expect("an S3 client");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let sum = store.list(None).try_fold(0, async |sum, object| Ok(sum + object.size));
    runtime.block_on(sum).expect("list the bucket")
}
