//! The S3 server of the tests: one SeaweedFS, started by the first test that needs it and shared by all that run meanwhile.
//!
//! Starting takes seconds and every test is a process of its own, so tests share one by locks, which the kernel drops
//! with the process whatever becomes of it: each user holds `users` shared; a watcher (a shell started with the server)
//! tries it exclusively now and then, and once nobody has held it for a while kills its server by id. Both take `start`
//! first, so nobody joins a server that is being ended. Buckets keep tests apart.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::ports::PortLease;
use crate::process::{self, Background};
use crate::testbed;

/// A pair of S3 credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub key: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret: String,
}

impl Credentials {
    fn named(name: &str) -> Credentials {
        Credentials { key: name.to_owned(), secret: format!("{name}-secret") }
    }

    /// May do everything.
    pub fn full() -> Credentials {
        Credentials::named("walpoint")
    }

    /// May read and list.
    pub fn reader() -> Credentials {
        Credentials::named("reader")
    }

    /// May read and write but not list: a missing key then answers 403 on some stores.
    pub fn no_list() -> Credentials {
        Credentials::named("nolist")
    }

    /// Unknown to the server.
    pub fn unknown() -> Credentials {
        Credentials::named("nobody")
    }
}

const IDENTITIES: &str = r#"{"identities": [
  {"name": "walpoint", "credentials": [{"accessKey": "walpoint", "secretKey": "walpoint-secret"}],
   "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
  {"name": "reader", "credentials": [{"accessKey": "reader", "secretKey": "reader-secret"}],
   "actions": ["Read", "List"]},
  {"name": "nolist", "credentials": [{"accessKey": "nolist", "secretKey": "nolist-secret"}],
   "actions": ["Read", "Write"]}
]}"#;

/// Runs the server (arguments 4 and on) until it ends or nobody needs it any more.
const WATCHER: &str = r#"
dir=$1 log=$2 sockets=$3; shift 3
exec </dev/null >>"$log" 2>&1
"$@" &
server=$!
echo $server >"$dir/pid"
idle=0
while kill -0 $server 2>/dev/null; do
    sleep 5
    (flock 8; flock -n -x "$dir/users" true) 8>"$dir/start" || { idle=0; continue; }
    idle=$((idle + 1))
    [ $idle -lt 6 ] && continue
    # Nobody for half a minute. Asked once more, now holding the lock that newcomers need.
    exec 8>"$dir/start"
    flock 8
    if flock -n -x "$dir/users" true; then
        rm -f "$dir/ports"
        kill -9 $server
        wait $server
        rm -rf "$dir/data" "$dir/logs" $sockets
        exit
    fi
    exec 8>&-
done
rm -f $sockets
"#;

/// The shared server, as one of its users sees it. Lives as long as the test process.
#[derive(Debug)]
pub struct SeaweedFs {
    /// Port of the S3 API on 127.0.0.1.
    pub s3_port: u16,
    filer_port: u16,
    _user: File,
}

/// The shared server; starts it when it does not run.
#[track_caller]
pub fn shared() -> &'static SeaweedFs {
    static SHARED: OnceLock<SeaweedFs> = OnceLock::new();
    SHARED.get_or_init(|| join(&testbed::root().join("run/seaweed")))
}

fn join(dir: &Path) -> SeaweedFs {
    fs::create_dir_all(dir).expect("a directory for SeaweedFS");
    let start = File::create(dir.join("start")).expect("the lock file");
    start.lock().expect("lock");
    let user = File::create(dir.join("users")).expect("the users' lock file");
    let ports = running(dir).unwrap_or_else(|| launch(dir));
    user.lock_shared().expect("lock");
    SeaweedFs { s3_port: ports.0, filer_port: ports.1, _user: user }
}

/// The ports of the server that runs now, if one answers.
fn running(dir: &Path) -> Option<(u16, u16)> {
    let ports = fs::read_to_string(dir.join("ports")).ok()?;
    let (s3, filer) = ports.trim().split_once(' ')?;
    let ports = (s3.parse().ok()?, filer.parse().ok()?);
    healthy(ports.0).then_some(ports)
}

fn healthy(s3_port: u16) -> bool {
    http(s3_port, "GET", "/healthz").is_ok_and(|(status, _)| status == 200)
}

fn launch(dir: &Path) -> (u16, u16) {
    // One that does not answer any more: its watcher, if it lives, ends with it.
    if let Some(pid) = fs::read_to_string(dir.join("pid")).ok().and_then(|pid| pid.trim().parse().ok()) {
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        if exe.file_name().is_some_and(|name| name == "weed") {
            process::kill_pid(pid, rustix::process::Signal::KILL);
        }
    }
    let data = dir.join("data");
    drop(fs::remove_dir_all(&data));
    fs::create_dir_all(&data).expect("a data directory");
    let config = dir.join("s3.json");
    fs::write(&config, IDENTITIES).expect("write s3.json");
    // Each bucket is a collection of volumes of its own; by default it would take seven at once.
    fs::write(dir.join("master.toml"), "[master.volume_growth]\ncopy_1 = 1\n").expect("write master.toml");

    let leases: [PortLease; 4] = std::array::from_fn(|_| PortLease::new());
    let [master, volume, filer, s3] = leases.each_ref().map(PortLease::port);
    let log = dir.join("log");
    let mut command = Command::new("setsid");
    command.args(["bash", "-c", WATCHER, "walpoint-seaweed"]).arg(dir).arg(&log);
    command.arg(sockets([master, volume, filer, s3]).join(" "));
    command.arg(testbed::program("weed")).arg("server").arg(format!("-dir={}", data.display()));
    command.args([
        "-filer",
        "-s3",
        "-master.telemetry=false",
        "-volume.max=2000",
        "-master.volumeSizeLimitMB=512",
    ]);
    command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
    command.arg("-volume.minFreeSpace=1").arg(format!("-s3.config={}", config.display()));
    command.arg(format!("-master.port={master}")).arg(format!("-volume.port={volume}"));
    command.arg(format!("-filer.port={filer}")).arg(format!("-s3.port={s3}")).current_dir(dir);
    let logs = dir.join("logs");
    fs::create_dir_all(&logs).expect("a directory for the server's own logs");
    command.env("TMPDIR", logs);
    fs::write(&log, "").expect("write the log");
    let watcher = Background::start(&mut command, &log);
    let start = Instant::now();
    while !healthy(s3) {
        assert!(start.elapsed() < Duration::from_secs(60), "SeaweedFS did not start:\n{}", watcher.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    fs::write(dir.join("ports"), format!("{s3} {filer}")).expect("note the ports");
    // It outlives this test; the watcher ends it.
    std::mem::forget(watcher);
    (s3, filer)
}

/// The Unix sockets that a server with those ports leaves in `/tmp` when it is killed; no option moves them. Beside each port
/// it has another for gRPC.
pub fn sockets(ports: impl IntoIterator<Item = u16>) -> Vec<String> {
    let parts = ["master", "volume", "filer", "s3"];
    let of = |port: u16| {
        parts.iter().flat_map(move |part| {
            let grpc = u32::from(port) + 10_000;
            [format!("/tmp/seaweedfs-{part}-{port}.sock"), format!("/tmp/seaweedfs-{part}-grpc-{grpc}.sock")]
        })
    };
    ports.into_iter().flat_map(of).collect()
}

impl SeaweedFs {
    /// Makes a bucket that nobody else has; it goes with the value.
    pub fn bucket(&'static self) -> SeaweedBucket {
        let name = format!("t{:016x}", rand::random::<u64>());
        let (status, body) =
            http(self.filer_port, "POST", &format!("/buckets/{name}/")).expect("the filer answers");
        assert!(status == 201, "making a bucket: {status} {body}");
        SeaweedBucket { server: self, name }
    }

    /// The server's log: what it thought of a request.
    pub fn log_path(&self) -> PathBuf {
        testbed::root().join("run/seaweed/log")
    }
}

/// A bucket of the shared server; removed with all its objects when dropped.
#[derive(Debug)]
pub struct SeaweedBucket {
    server: &'static SeaweedFs,
    name: String,
}

impl SeaweedBucket {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Removes the bucket now: every later request finds none.
    pub fn remove(&self) {
        let path = format!("/buckets/{}?recursive=true&ignoreRecursiveError=true", self.name);
        let (status, body) = http(self.server.filer_port, "DELETE", &path).expect("the filer answers");
        assert!(status < 300 || status == 404, "removing a bucket: {status} {body}");
    }
}

impl Drop for SeaweedBucket {
    fn drop(&mut self) {
        let path = format!("/buckets/{}?recursive=true&ignoreRecursiveError=true", self.name);
        drop(http(self.server.filer_port, "DELETE", &path));
    }
}

/// A request without a body to 127.0.0.1; status and body.
pub(crate) fn http(port: u16, method: &str, path: &str) -> std::io::Result<(u16, String)> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    exchange(port, request.as_bytes())
}

/// Sends a whole HTTP/1.1 request that asks to close the connection; status and body.
pub(crate) fn exchange(port: u16, request: &[u8]) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let bad = || std::io::Error::new(std::io::ErrorKind::InvalidData, answer.clone());
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
    Ok((status, body))
}
