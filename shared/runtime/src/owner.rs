//! Running as PostgreSQL's user: whoever reads or writes a data directory is its owner, or says who it is and who owns it.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use walpoint_base::user;

use crate::sibling::quoted;

/// What to do about a data directory that is not where it was said to be.
const MISSING: &str = "\nHINT: Check pgdata. If the directory was renamed or is not mounted, put it back at this path first: \
    WAL is archived only from there.";

/// Refuses to go on unless this process runs as the owner of the data directory.
pub fn require(pgdata: &Path) -> anyhow::Result<()> {
    let meta = std::fs::metadata(pgdata).map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::NotFound => MISSING,
            _ => "",
        };
        anyhow::anyhow!("the data directory {} cannot be read: {error}{hint}", pgdata.display())
    })?;
    let uid = user::effective();
    if uid == meta.uid() {
        return Ok(());
    }
    let owner = user::name(meta.uid()).map_or(String::new(), |name| format!(" ({name})"));
    anyhow::bail!(
        "{} belongs to uid {}{owner} but this process runs as uid {uid}\nHINT: Run it as PostgreSQL's user: {}",
        pgdata.display(),
        meta.uid(),
        user::run_as(meta.uid(), &typed()),
    )
}

/// The command line of this process.
fn typed() -> String {
    let words = std::env::args_os().map(|word| quoted(&word.to_string_lossy()));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_uids_are_named() {
        let dir = tempfile::tempdir().unwrap();
        require(dir.path()).unwrap();
        let renamed = require(&dir.path().join("renamed")).unwrap_err().to_string();
        assert!(
            renamed.contains("cannot be read: No such file") && renamed.contains("put it back at this path"),
            "{renamed}"
        );
        let foreign = if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(65_534), None).unwrap();
            dir.path()
        } else {
            Path::new("/")
        };
        let error = require(foreign).unwrap_err().to_string();
        let uid = rustix::process::geteuid().as_raw();
        assert!(error.contains(&format!("runs as uid {uid}")) && error.contains("belongs to uid"), "{error}");
        let program = std::env::args().next().unwrap();
        assert!(error.contains(&quoted(&program)), "{error}");
    }
}
