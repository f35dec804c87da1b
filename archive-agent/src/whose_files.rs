//! Whose files a data directory holds: those of the server that answers, or of another one. Path, inode, start time and
//! system identifier are no proof: a primary and its standby share them in containers and in mount namespaces.
//!
//! The session exports snapshots, and their files have to appear in this very directory, name the session's process, and
//! disappear with the transaction. How many there are is chosen at random, so that neither the left-overs of a crash nor
//! another session of the same number, on a server that began at the same moment, answers for this one. A crash of this
//! program ends the session and leaves nothing.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rand::Rng;
use walpoint_pg::server::{ExportedSnapshots, SNAPSHOTS, Server};

/// Snapshots that are exported at most.
const MOST: u32 = 16;

/// How long a file may take to appear or to disappear: at once in a local directory, later in one that another machine mounts.
/// The open transaction holds back vacuum, and a standby may cancel it.
const TIME_LIMIT: Duration = Duration::from_secs(2);

const PAUSE: Duration = Duration::from_millis(20);

/// Proves that the session's server runs on this data directory; the server process of the session.
pub(crate) async fn prove(server: &mut Server, pgdata: &Path) -> anyhow::Result<i32> {
    match examine(server, pgdata).await? {
        Some(process) => Ok(process),
        None => Err(another(server, pgdata).await),
    }
}

/// The same; `None` if the server runs on another directory.
pub(crate) async fn examine(server: &mut Server, pgdata: &Path) -> anyhow::Result<Option<i32>> {
    let count = rand::rng().random_range(1..=MOST);
    let exported = server.export_snapshots(count).await;
    let here = match &exported {
        Ok(exported) => until(pgdata, exported, true).await,
        Err(_) => Ok(false),
    };
    server.withdraw_snapshots().await?;
    let exported = exported?;
    let ours = here? && until(pgdata, &exported, false).await?;
    Ok(ours.then(|| exported.process()))
}

/// Waits until the snapshots are there, or are not; whether it came to that.
async fn until(pgdata: &Path, exported: &ExportedSnapshots, there: bool) -> anyhow::Result<bool> {
    let directory = pgdata.join(SNAPSHOTS);
    let began = Instant::now();
    loop {
        let (place, of) = (directory.clone(), exported.clone());
        let found = tokio::task::spawn_blocking(move || look(&place, &of)).await?;
        let found = found.with_context(|| format!("could not read {}", directory.display()))?;
        if found == (if there { ExportedFiles::All } else { ExportedFiles::None }) {
            return Ok(true);
        }
        if began.elapsed() >= TIME_LIMIT {
            return Ok(false);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What is in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExportedFiles {
    /// Exactly what the session exported.
    All,
    /// Nothing of it.
    None,
    /// Something else.
    Other,
}

fn look(directory: &Path, exported: &ExportedSnapshots) -> io::Result<ExportedFiles> {
    let read = |name: String| match std::fs::read(directory.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    };
    // A path that leads nowhere is no directory without snapshots.
    std::fs::metadata(directory)?;
    let (mut there, mut missing) = (read(exported.next_name())?.is_some(), false);
    let too_many = there;
    let mut ours = true;
    for name in exported.names() {
        let content = read(name)?;
        missing |= content.is_none();
        there |= content.is_some();
        ours &= content.is_none_or(|content| exported.is_ours(&content));
    }
    Ok(match (there, missing) {
        (false, _) => ExportedFiles::None,
        (true, false) if ours && !too_many => ExportedFiles::All,
        _ => ExportedFiles::Other,
    })
}

/// What it means that the server runs on another directory.
async fn another(server: &mut Server, pgdata: &Path) -> anyhow::Error {
    let host = server.connection().host().to_owned();
    let facts = server.identity().await.ok();
    let facts = facts.map(|facts| {
        let kind = if facts.in_recovery { "standby" } else { "primary" };
        format!(", a {kind} that calls its data directory {}", facts.data_directory.display())
    });
    let runs = match pgdata.join("postmaster.pid").exists() {
        true => {
            "another server runs on it, with the same system identifier: its primary, a standby or a copy"
        }
        false => "no server runs on it",
    };
    anyhow!(
        "conninfo leads to another server than that of {}\nDETAIL: The server that answers on {host}{} does not write into \
         this directory (snapshots that it exported did not appear in {SNAPSHOTS}); {runs}.\nHINT: Set conninfo to the Unix \
         socket of the server on this directory, for example \"host=/var/run/postgresql\". To back up the server that \
         conninfo names, whatever lies here, use backup --remote.",
        pgdata.display(),
        facts.unwrap_or_default(),
    )
}

/// Fails unless the server process is the one that gave the proof.
pub(crate) fn same_process(proven: i32, now: i32) -> anyhow::Result<()> {
    if proven != now {
        bail!(
            "two server processes ({proven} and {now}) executed the statements of one session\nDETAIL: \
             There is a connection pooler between this program and the server.\nHINT: Set conninfo to the \
             server itself: a backup needs its own session."
        );
    }
    Ok(())
}
