//! Whether PostgreSQL is shutting down: it waits for its archiver then, and a person waits for PostgreSQL.
//!
//! Source: line 8 of `postmaster.pid`, `LOCK_FILE_LINE_PM_STATUS` in `src/include/utils/pidfile.h`.

use std::path::Path;

/// Whether the server of a data directory says that it is stopping. Anything unreadable counts as no.
pub(crate) fn is_stopping(pgdata: &Path) -> bool {
    let text = std::fs::read_to_string(pgdata.join("postmaster.pid")).unwrap_or_default();
    text.lines().nth(7).is_some_and(|status| status.trim() == "stopping")
}

#[cfg(test)]
mod tests {
    use walpoint_base::durable;

    use super::*;

    #[test]
    fn only_the_status_line_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_stopping(dir.path()));
        for (status, expected) in [("stopping", true), ("ready   ", false), ("", false)] {
            let text = format!("1\n/data\n1700000000\n5432\nstopping\n\n  1  2\n{status}\n");
            durable::replace(&dir.path().join("postmaster.pid"), text.as_bytes(), 0o600).unwrap();
            assert_eq!(is_stopping(dir.path()), expected, "{status:?}");
        }
    }
}
