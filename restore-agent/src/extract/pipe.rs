//! pg_dump on the instance into pg_restore on the server, without a file between them.
//!
//! The dump is an archive, of which pg_restore executes SQL and nothing else: a script may hold commands of psql, which names from a
//! cluster of the past could smuggle in. The end of the archive is handed over only once pg_dump has succeeded, and pg_restore commits only
//! once it has read all: so a dump that failed is never committed.

use std::io::{self, ErrorKind};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::client::{self, Failed, Running};
use super::pg_dump;

/// The program that loads.
pub(super) const LOADER: &str = "pg_restore";

/// Bytes that are handed over at once.
const CHUNK: usize = 256 << 10;

/// What came of a dump and a load.
#[derive(Debug)]
pub(super) enum Piped {
    /// Everything was loaded.
    Loaded,
    /// The dump failed; nothing was committed.
    DumpFailed(Failed),
    /// The load failed, by what pg_restore says: if its connection broke, it may not know of the commit.
    LoadFailed(Failed),
}

/// How both programs ended.
struct Both {
    dumped: Result<(), Failed>,
    /// Whether pg_restore took everything.
    handed: io::Result<()>,
    restored: Result<(), Failed>,
    /// What pg_restore printed.
    printed: Vec<u8>,
}

/// Loads. Both programs are killed if this is dropped.
pub(super) async fn run(dump: Command, load: Command) -> anyhow::Result<Piped> {
    let Both { dumped, handed, restored, .. } = both(dump, load, Stdio::null()).await?;
    match (dumped, handed, restored) {
        (Ok(()), Ok(()), Ok(())) => Ok(Piped::Loaded),
        // pg_dump fails, too, if nothing reads what it writes.
        (_, Err(error), Err(failed)) if error.kind() == ErrorKind::BrokenPipe => {
            Ok(Piped::LoadFailed(failed))
        }
        (Err(failed), ..) => Ok(Piped::DumpFailed(failed)),
        (Ok(()), _, Err(failed)) => Ok(Piped::LoadFailed(failed)),
        (Ok(()), Err(error), Ok(())) => {
            Err(anyhow!(error).context("the dump was not handed over to pg_restore"))
        }
    }
}

/// What an archive holds, as pg_restore lists it. It need not read beyond the list, so what was handed over does not matter.
pub(super) async fn contents(dump: Command, list: Command) -> anyhow::Result<Result<String, Failed>> {
    let Both { dumped, restored, printed, .. } = both(dump, list, Stdio::piped()).await?;
    Ok(dumped.and(restored).map(|()| String::from_utf8_lossy(&printed).into_owned()))
}

/// Runs both to their ends.
async fn both(dump: Command, mut restore: Command, printed: Stdio) -> anyhow::Result<Both> {
    restore.stdin(Stdio::piped());
    let mut dump = started(pg_dump::PROGRAM, dump, Stdio::piped())?;
    let mut restore = started(LOADER, restore, printed)?;
    let (from, to) = (dump.stdout(), restore.stdin());
    let (from, to) = from.zip(to).context("pg_dump and pg_restore are not connected")?;
    let printed = all_of(restore.stdout());
    let (carried, printed, restored) = tokio::join!(carry(dump, from, to), printed, restore.end());
    let (dumped, handed) = carried?;
    let printed = printed.context("what pg_restore printed was not read")?;
    Ok(Both { dumped, handed, restored: restored?, printed })
}

/// Everything that is printed, if anything is read of it.
async fn all_of(printed: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut printed) = printed {
        printed.read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn started(program: &'static str, command: Command, stdout: Stdio) -> anyhow::Result<Running> {
    let path = command.get_program().to_owned();
    client::start(program, command, stdout).with_context(|| format!("could not run {path:?}"))
}

/// Hands over what a dump prints: all but the end at once, and the end if the dump succeeded.
async fn carry(
    dump: Running,
    from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> anyhow::Result<(Result<(), Failed>, io::Result<()>)> {
    let (rest, dumped) = tokio::join!(all_but_the_end(from, &mut to), dump.end());
    let dumped = dumped?;
    let handed = match (rest, &dumped) {
        (Ok(rest), Ok(())) => end(&mut to, &rest).await,
        (rest, _) => rest.map(drop),
    };
    Ok((dumped, handed))
}

async fn end(to: &mut (impl AsyncWrite + Unpin), rest: &[u8]) -> io::Result<()> {
    to.write_all(rest).await?;
    to.shutdown().await
}

/// Copies all but the end, which it gives: never empty, unless nothing was read at all.
async fn all_but_the_end(
    mut from: impl AsyncRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<Vec<u8>> {
    let (mut held, mut read) = (Vec::new(), Vec::with_capacity(CHUNK));
    loop {
        read.clear();
        if from.read_buf(&mut read).await? == 0 {
            return Ok(held);
        }
        to.write_all(&held).await?;
        std::mem::swap(&mut held, &mut read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    /// What reaches the loader of a dump, and what comes of both.
    async fn ran(dump: &str, load: &str) -> (String, Piped) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("loaded");
        let piped =
            run(shell(dump), shell(&load.replace("FILE", &file.display().to_string()))).await.unwrap();
        (std::fs::read_to_string(file).unwrap_or_default(), piped)
    }

    #[tokio::test]
    async fn the_end_of_a_dump_that_failed_is_withheld() {
        let (text, piped) = ran("printf one; sleep 0.2; printf two", "cat > FILE").await;
        assert!(matches!(piped, Piped::Loaded) && text == "onetwo", "{text}: {piped:?}");
        let failing = "printf one; sleep 0.2; printf two; echo 'pg_dump: error: no' >&2; exit 1";
        let (text, piped) = ran(failing, "cat > FILE; exit 1").await;
        assert!(matches!(piped, Piped::DumpFailed(_)) && text == "one", "{text}: {piped:?}");
        let (text, piped) = ran("printf one; exit 1", "cat > FILE").await;
        assert!(matches!(piped, Piped::DumpFailed(_)) && text.is_empty(), "{text}: {piped:?}");
    }

    #[tokio::test]
    async fn a_list_is_what_pg_restore_prints_of_a_dump_that_succeeded() {
        let listed = contents(shell("printf one"), shell("cat; printf two")).await.unwrap();
        assert_eq!(listed.unwrap(), "onetwo");
        contents(shell("printf one; exit 1"), shell("cat")).await.unwrap().unwrap_err();
        contents(shell("printf one"), shell("cat; exit 1")).await.unwrap().unwrap_err();
    }

    #[tokio::test]
    async fn a_load_that_ends_early_is_the_failure_not_the_dump_that_it_breaks() {
        let endless = "while printf 'a long line that fills the pipe\\n' 2>/dev/null; do :; done; exit 1";
        let (_, piped) = ran(endless, "echo 'pg_restore: error: could not execute' >&2; exit 1").await;
        let Piped::LoadFailed(failed) = piped else { panic!("{piped:?}") };
        assert!(failed.line_with("could not execute").is_some());
        let (_, piped) = ran("printf one", "cat > /dev/null; exit 3").await;
        assert!(matches!(piped, Piped::LoadFailed(_)), "{piped:?}");
    }
}
