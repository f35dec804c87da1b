//! TCP ports that no two tests share.
//!
//! A port is leased by a lock on a file of its own, which the kernel drops with the process; the range lies below the
//! one that the kernel hands out to outgoing connections, so nobody takes a leased port before its server listens.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

/// SeaweedFS wants port + 10000 too: both lie below the range of outgoing connections, which starts at 32768.
const FIRST: u16 = 10_100;
const LAST: u16 = 19_900;

/// A port that is this process's own until dropped.
#[derive(Debug)]
pub struct PortLease {
    port: u16,
    _lock: File,
}

impl PortLease {
    /// Leases a port on which nothing listens now.
    #[allow(clippy::new_without_default)]
    pub fn new() -> PortLease {
        let dir = dir();
        loop {
            let port = rand::random_range(FIRST..=LAST);
            let lock = File::create(dir.join(port.to_string())).expect("a port's lock file");
            if lock.try_lock().is_ok() && free(port) && free(port + 10_000) {
                return PortLease { port, _lock: lock };
            }
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

fn free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn dir() -> PathBuf {
    let dir = PathBuf::from(format!("/tmp/walpoint-ports-{}", rustix::process::geteuid().as_raw()));
    std::fs::create_dir_all(&dir).expect("a directory for port locks");
    dir
}
