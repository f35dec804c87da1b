//! SeaweedFS with TLS, for the whole run: the S3 server of the comparison. It counts the requests itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use walpoint_tests::ports::PortLease;
use walpoint_tests::process::{self, Background};
use walpoint_tests::seaweed::{self, Credentials};
use walpoint_tests::testbed;

/// A server that ends with this value.
#[derive(Debug)]
pub struct Weed {
    process: Background,
    ports: [PortLease; 6],
    authority: PathBuf,
}

const MASTER: usize = 0;
const VOLUME: usize = 1;
const FILER: usize = 2;
const HTTP: usize = 3;
const HTTPS: usize = 4;
const METRICS: usize = 5;

/// The name in the certificate, and how clients call the server.
pub const HOST: &str = "localhost";

impl Weed {
    /// Starts one that keeps its data in an empty directory.
    pub fn start(dir: &Path) -> Weed {
        fs::create_dir_all(dir.join("data")).expect("a directory for SeaweedFS");
        let certificate = certificate(dir);
        let full = Credentials::full();
        let identities = format!(
            "{{\"identities\": [{{\"name\": \"bench\", \"credentials\": [{{\"accessKey\": \"{}\", \"secretKey\": \"{}\"}}], \
             \"actions\": [\"Admin\", \"Read\", \"Write\", \"List\", \"Tagging\"]}}]}}",
            full.key, full.secret
        );
        fs::write(dir.join("s3.json"), identities).expect("write s3.json");
        // Each bucket is a collection of volumes of its own; by default it would take seven at once.
        fs::write(dir.join("master.toml"), "[master.volume_growth]\ncopy_1 = 1\n")
            .expect("write master.toml");
        let ports: [PortLease; 6] = std::array::from_fn(|_| PortLease::new());
        let port = |n: usize| ports[n].port();
        let mut command = Command::new(testbed::program("weed"));
        command.arg("server").arg("-dir=data").current_dir(dir).env("TMPDIR", dir);
        command.args(["-filer", "-s3", "-s3.config=s3.json", "-master.telemetry=false", "-volume.max=2000"]);
        command.args(["-master.volumeSizeLimitMB=1024", "-volume.minFreeSpace=1"]);
        command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
        command.arg(format!("-master.port={}", port(MASTER))).arg(format!("-volume.port={}", port(VOLUME)));
        command.arg(format!("-filer.port={}", port(FILER))).arg(format!("-s3.port={}", port(HTTP)));
        command.arg(format!("-s3.port.https={}", port(HTTPS))).arg(format!("-metricsPort={}", port(METRICS)));
        command.arg(format!("-s3.cert.file={}", certificate.server.display()));
        command.arg(format!("-s3.key.file={}", certificate.key.display()));
        let process = Background::start(&mut command, &dir.join("log"));
        let weed = Weed { process, ports, authority: certificate.authority };
        let begun = Instant::now();
        while !weed.is_healthy() {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "SeaweedFS did not start:\n{}",
                weed.process.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        weed
    }

    fn is_healthy(&self) -> bool {
        http(self.ports[HTTP].port(), "GET", "/healthz").is_ok_and(|(status, _)| status == 200)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The port of S3 over TLS.
    pub fn port(&self) -> u16 {
        self.ports[HTTPS].port()
    }

    /// What clients have to trust.
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// Makes a bucket.
    pub fn create_bucket(&self, name: &str) {
        let path = format!("/buckets/{name}/");
        let (status, body) = http(self.ports[FILER].port(), "POST", &path).expect("the filer answers");
        assert!(status == 201, "making a bucket: {status} {body}");
    }

    /// Removes a bucket with all that is in it.
    pub fn remove_bucket(&self, name: &str) {
        let path = format!("/buckets/{name}?recursive=true&ignoreRecursiveError=true");
        let (status, body) = http(self.ports[FILER].port(), "DELETE", &path).expect("the filer answers");
        assert!(status < 300 || status == 404, "removing a bucket: {status} {body}");
    }

    /// How often a bucket was asked so far, by kind of request.
    pub fn requests(&self, bucket: &str) -> BTreeMap<String, u64> {
        let (_, text) = http(self.ports[METRICS].port(), "GET", "/metrics").expect("the metrics");
        requests_in(&text, bucket)
    }
}

impl Drop for Weed {
    fn drop(&mut self) {
        self.process.kill();
        for socket in seaweed::sockets(self.ports.each_ref().map(PortLease::port)) {
            drop(fs::remove_file(socket));
        }
    }
}

/// Sums the counters of a bucket in Prometheus' text format by type.
fn requests_in(text: &str, bucket: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("SeaweedFS_s3_request_total{")) {
        let label = |name: &str| line.split(&format!("{name}=\"")).nth(1)?.split('"').next();
        let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        if let (Some(kind), Some(found), Some(value)) = (label("type"), label("bucket"), value)
            && found == bucket
        {
            *counts.entry(kind.to_owned()).or_default() += value as u64;
        }
    }
    counts
}

/// A certificate for [`HOST`], its key, and the authority that signed it.
fn certificate(dir: &Path) -> Certificate {
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let authority =
        ["req", "-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt"];
    openssl(dir, &[&authority[..], &new_key].concat());
    let subject = format!("/CN={HOST}");
    let request = ["req", "-new", "-subj", &subject, "-keyout", "server.key", "-out", "server.csr"];
    openssl(dir, &[&request[..], &new_key].concat());
    fs::write(dir.join("names"), format!("subjectAltName=DNS:{HOST},IP:127.0.0.1\n")).expect("write names");
    let sign = [
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        "server.csr",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
    ];
    openssl(dir, &[&sign[..], &["-extfile", "names", "-out", "server.crt"]].concat());
    Certificate { server: dir.join("server.crt"), key: dir.join("server.key"), authority: dir.join("ca.crt") }
}

struct Certificate {
    server: PathBuf,
    key: PathBuf,
    authority: PathBuf,
}

fn openssl(dir: &Path, arguments: &[&str]) {
    let mut command = Command::new("openssl");
    process::run(command.args(arguments).current_dir(dir), Duration::from_secs(30)).expect_success();
}

/// A request without a body to a plain port of 127.0.0.1; status and body. HTTP/1.0, so that no answer comes in chunks.
pub fn http(port: u16, method: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(format!("{method} {path} HTTP/1.0\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let bad = || std::io::Error::new(std::io::ErrorKind::InvalidData, answer.clone());
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    Ok((status, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buckets_requests_are_summed_by_type() {
        let text = "# HELP SeaweedFS_s3_request_total x\n\
            SeaweedFS_s3_request_total{bucket=\"b\",code=\"200\",type=\"PUT\"} 96\n\
            SeaweedFS_s3_request_total{bucket=\"b\",code=\"412\",type=\"PUT\"} 1\n\
            SeaweedFS_s3_request_total{bucket=\"other\",code=\"200\",type=\"PUT\"} 5\n\
            SeaweedFS_s3_request_total{bucket=\"b\",code=\"404\",type=\"GET\"} 1e+01\n";
        let expected = BTreeMap::from([("PUT".to_owned(), 97), ("GET".to_owned(), 10)]);
        assert_eq!(requests_in(text, "b"), expected);
    }
}
