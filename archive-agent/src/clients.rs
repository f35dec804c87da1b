//! `archive-agent install-clients`: the thin clients for PostgreSQL's container.
//!
//! Each file is there whole or not at all, and one that PostgreSQL executes at this moment is replaced under it, not
//! written to. Running it again brings both to this program's release.

use std::path::Path;

use anyhow::Context;
use walpoint_base::durable;
use walpoint_runtime::exit::Failure;

const CLIENTS: [&str; 2] = ["archive-push", "restore-fetch"];

/// Copies the clients that lie beside this program into a directory, which is made if it is not there.
pub(crate) fn install(directory: &Path) -> Result<(), Failure> {
    let own = std::env::current_exe().context("the path of this program is not known")?;
    let beside = own.parent().unwrap_or(Path::new("/"));
    durable::create_public_directories(directory)
        .with_context(|| format!("{} cannot be created", directory.display()))?;
    for name in CLIENTS {
        let (from, to) = (beside.join(name), directory.join(name));
        let content = std::fs::read(&from).with_context(|| {
            format!("{} cannot be read\nHINT: Install it beside archive-agent.", from.display())
        })?;
        durable::replace(&to, &content, 0o755)
            .with_context(|| format!("{} cannot be written", to.display()))?;
        tracing::info!("{} is installed", to.display());
    }
    Ok(())
}
