//! A directory outside a data directory, which goes along when that is moved.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use walpoint_base::durable;

use crate::restore::beneath::OpenRoots;

/// A directory outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Move {
    /// Where it belongs.
    pub(crate) from: PathBuf,
    /// Where it lies.
    pub(crate) to: PathBuf,
    /// The link in the data directory that leads to it, relative; none for what the server does not know of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) link: Option<PathBuf>,
    /// What the link says where that is not `from`: the directory has another name, by a link further on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) spelled: Option<PathBuf>,
}

impl Move {
    /// What the data directory calls it where it belongs.
    pub(super) fn named(&self) -> &Path {
        self.spelled.as_deref().unwrap_or(&self.from)
    }

    /// Makes the link in a data directory, which is open, lead there, if it has one.
    pub(super) fn lead(&self, data: &OpenRoots, pgdata: &Path, target: &Path) -> anyhow::Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        let link = pgdata.join(link);
        let name = link.file_name().unwrap_or_default();
        let lead = || {
            let anchor = match data.anchor(link.parent().unwrap_or(pgdata)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                anchor => anchor?,
            };
            // Always the same name, so that an interrupted run leaves nothing that the next one does not use.
            let temporary = format!("{}{}", durable::TEMPORARY_PREFIX, name.to_string_lossy());
            let (temporary, link) = (anchor.path().join(temporary), anchor.path().join(name));
            durable::remove(&temporary)?;
            if leads_to(&link, target) || !link.is_symlink() {
                return Ok(());
            }
            symlink(target, &temporary).and_then(|()| durable::rename(&temporary, &link))
        };
        lead().map_err(|error: io::Error| anyhow!(error)).with_context(|| {
            format!("the link {} cannot be made to lead to {}", link.display(), target.display())
        })
    }
}

/// Whether a link says this.
pub(super) fn leads_to(link: &Path, target: &Path) -> bool {
    fs::read_link(link).is_ok_and(|found| found == target)
}
