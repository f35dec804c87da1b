//! Running as PostgreSQL's user: whoever reads or writes a data directory is its owner, or says who it is and who owns it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Refuses to go on unless this process runs as the owner of the data directory.
pub fn require(pgdata: &Path) -> anyhow::Result<()> {
    let meta = std::fs::metadata(pgdata)
        .map_err(|e| anyhow::anyhow!("the data directory {} cannot be read: {e}", pgdata.display()))?;
    let uid = rustix::process::geteuid().as_raw();
    if uid == meta.uid() {
        return Ok(());
    }
    anyhow::bail!(
        "{} belongs to uid {} but this process runs as uid {uid}\nHINT: Run it as PostgreSQL's user (for example: runuser -u \
         postgres -- …).",
        pgdata.display(),
        meta.uid(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_uids_are_named() {
        let dir = tempfile::tempdir().unwrap();
        require(dir.path()).unwrap();
        let foreign = if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(65_534), None).unwrap();
            dir.path()
        } else {
            Path::new("/")
        };
        let error = require(foreign).unwrap_err().to_string();
        let uid = rustix::process::geteuid().as_raw();
        assert!(error.contains(&format!("runs as uid {uid}")) && error.contains("belongs to uid"), "{error}");
    }
}
