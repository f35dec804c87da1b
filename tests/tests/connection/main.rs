//! K5 (connection and rights): what a user of libpq has configured works the same, and a right that is missing is named.
//!
//! Where libpq's own behaviour is the promise, psql is asked the same and must agree.

mod backup;
mod certificates;
mod hosts;
mod login;
mod rights;
mod session;
mod tls;
mod wal_stream;

use std::time::Duration;

use walpoint_pg::connect::{ConnInfo, Connection, Environment, Error};
use walpoint_pg::server::Server;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process;

/// Settings read without anything of this process's surroundings.
fn settings(text: &str) -> ConnInfo {
    ConnInfo::parse_in(text, &Environment::empty().with_os_user("postgres")).expect(text)
}

async fn connect(text: &str) -> Result<Connection, Error> {
    Connection::open(&settings(text)).await
}

/// A superuser's session over the Unix socket.
async fn server(cluster: &Cluster) -> Server {
    Server::connect(&settings(&cluster.conninfo())).await.expect("a session")
}

const TLS_IN_USE: &str = "select ssl from pg_catalog.pg_stat_ssl where pid = pg_catalog.pg_backend_pid()";

/// Whether the session that we get uses TLS, or why there is none.
async fn ours(text: &str) -> Result<bool, String> {
    let mut connection = connect(text).await.map_err(|e| e.to_string())?;
    let rows = connection.query(TLS_IN_USE).await.expect("a query");
    let encrypted: bool = rows.one().unwrap().get("ssl").unwrap();
    assert_eq!(connection.is_encrypted(), encrypted);
    connection.close().await;
    Ok(encrypted)
}

/// The same by libpq.
fn libpq(cluster: &Cluster, text: &str) -> Result<bool, String> {
    let mut command = cluster.tool("psql");
    command.args(["-X", "-A", "-t", "-w", "-d", text, "-c", TLS_IN_USE]);
    let output = process::run(&mut command, Duration::from_secs(30));
    if output.success() { Ok(output.stdout.trim() == "t") } else { Err(output.stderr) }
}

/// What to expect of a connection string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Tls,
    Plain,
    /// An error that holds this text.
    Refused(&'static str),
}

/// Asks libpq and ourselves.
async fn compare(cluster: &Cluster, text: &str, expected: Expected) {
    let theirs = libpq(cluster, text);
    match (ours(text).await, expected) {
        (Ok(true), Expected::Tls) => assert_eq!(theirs, Ok(true), "libpq differs: {text}"),
        (Ok(false), Expected::Plain) => assert_eq!(theirs, Ok(false), "libpq differs: {text}"),
        (Err(error), Expected::Refused(part)) => {
            assert!(error.contains(part), "{text}: {error}");
            assert!(theirs.is_err(), "libpq connects: {text}");
        }
        (other, _) => panic!("{text}: expected {expected:?}, got {other:?}; libpq: {theirs:?}"),
    }
}
