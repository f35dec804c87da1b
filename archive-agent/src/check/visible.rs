//! Whether this process sees what its server sees: the directory of every tablespace and of every database.
//!
//! A filesystem that is not mounted here, a mount point that is empty here, a link that leads nowhere in this container: to a
//! walk over the data directory each looks like something that was dropped a moment ago. The server is asked what there is.

use anyhow::bail;
use walpoint_pg::server::{Server, TablespaceDirectory};

use super::report::CheckReport;
use crate::walk::{BackupRoots, Entered};

/// What to do about it.
const ADVICE: &str = "Mount it where this process runs, at the same place as for the server (in a container: share the \
                      volume), or let the server send the cluster (backup --remote). If the files of a tablespace are lost \
                      for good, drop it: until then there is no backup.";

/// Looks for everything that the server has, after a walk.
pub(super) async fn examine(
    report: &mut CheckReport,
    server: &mut Server,
    roots: &BackupRoots,
    entered: &Entered,
) {
    let what = "tablespaces and databases";
    match report.take(what, unseen(server, roots, entered).await) {
        None => {}
        Some(unseen) if unseen.is_empty() => report.ok(what, "all that the server has are visible here"),
        Some(unseen) => report.failed(what, describe(roots, &unseen), ADVICE),
    }
}

/// What the server has and this process does not see. What was created since the walk is looked for once more, and what was
/// dropped meanwhile does not count.
async fn unseen(
    server: &mut Server,
    roots: &BackupRoots,
    entered: &Entered,
) -> anyhow::Result<Vec<TablespaceDirectory>> {
    let mut unseen = server.places().await?;
    unseen.retain(|place| !entered.has(place));
    if unseen.is_empty() {
        return Ok(unseen);
    }
    let looking = roots.clone();
    let mut unseen = tokio::task::spawn_blocking(move || {
        unseen.retain(|place| !looking.sees(place));
        unseen
    })
    .await?;
    if !unseen.is_empty() {
        keep_those_there(&mut unseen, server).await?;
    }
    Ok(unseen)
}

/// There is no backup without what the server had before the walk, `before`, and still has, and the walk did not meet.
pub(crate) async fn all_seen(
    server: &mut Server,
    roots: &BackupRoots,
    before: &[TablespaceDirectory],
    entered: &Entered,
) -> anyhow::Result<()> {
    entered.check()?;
    let mut unseen: Vec<TablespaceDirectory> =
        before.iter().filter(|place| !entered.has(place)).cloned().collect();
    if unseen.is_empty() {
        return Ok(());
    }
    keep_those_there(&mut unseen, server).await?;
    if unseen.is_empty() {
        return Ok(());
    }
    bail!("no backup was taken: {}\nHINT: {ADVICE}", describe(roots, &unseen))
}

/// Drops what the server does not have any more.
async fn keep_those_there(places: &mut Vec<TablespaceDirectory>, server: &mut Server) -> anyhow::Result<()> {
    let there = server.places().await?;
    let same = |a: &TablespaceDirectory, b: &TablespaceDirectory| {
        (a.tablespace, a.database) == (b.tablespace, b.database)
    };
    places.retain(|place| there.iter().any(|there| same(there, place)));
    Ok(())
}

fn describe(roots: &BackupRoots, unseen: &[TablespaceDirectory]) -> String {
    let names: Vec<String> = unseen.iter().map(|place| roots.shown(place)).collect();
    format!("the server has files that are not visible here: {}", names.join(", "))
}
