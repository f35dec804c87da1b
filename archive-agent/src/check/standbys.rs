//! Whether the standbys of a server that is bound to a lineage have its binding.
//!
//! The file is not replicated: a standby has it if it was made from this server, or from a backup of it, since the file was
//! written. One that has been connected since before then was made before.

use std::path::Path;
use std::time::UNIX_EPOCH;

use walpoint_pg::server::{Receiver, Server};
use walpoint_repo::lineage::BINDING;

use super::report::CheckReport;

/// Names the standbys of a server with a binding, and warns about those that were made without it.
pub(super) async fn bindings(report: &mut CheckReport, server: &mut Server, pgdata: &Path) {
    let path = pgdata.join(BINDING);
    let Ok(meta) = std::fs::metadata(&path) else { return };
    let written = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let written = written.and_then(|since| i64::try_from(since.as_micros()).ok()).unwrap_or(i64::MAX);
    let what = "standbys";
    let Some(receivers) = report.take(what, server.receivers().await.map_err(Into::into)) else { return };
    let older = |receiver: &&Receiver| receiver.since.is_some_and(|since| since.unix_micros() < written);
    let (before, since): (Vec<&Receiver>, Vec<&Receiver>) = receivers.iter().partition(older);
    if !before.is_empty() {
        let found = format!(
            "{} streamed before {} was written, and a standby does not receive that file",
            names(&before),
            path.display()
        );
        let advice = format!(
            "Copy {} into the data directory of each, with the same owner: without it, the archive refuses a promoted standby whose \
             WAL does not show the lineage.",
            path.display()
        );
        report.warning(what, found, &advice);
    }
    if !since.is_empty() {
        let found = format!(
            "{} need {} in their data directories, too: give a copy to a standby made before this server had it",
            names(&since),
            path.display()
        );
        report.ok(what, found);
    }
}

fn names(receivers: &[&Receiver]) -> String {
    let name = |receiver: &&Receiver| {
        let name = receiver.name.as_deref().filter(|name| !name.is_empty()).unwrap_or("a receiver of WAL");
        match &receiver.address {
            Some(address) => format!("{name} ({address})"),
            None => name.to_owned(),
        }
    };
    receivers.iter().map(name).collect::<Vec<_>>().join(", ")
}
