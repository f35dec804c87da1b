//! The command: unparenthesised options in 13 and 14, parenthesised ones from 15 on.

use walpoint_base::PgMajor;

/// PostgreSQL's limit for a label, in bytes (MAXPGPATH).
const MAX_LABEL: usize = 1024;

/// What is asked for. Always: no WAL in the stream and no waiting for the archive, which whoever stores the backup does; a
/// map instead of links; page checksums verified by the server; a manifest with a CRC-32C for each file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command<'a> {
    /// The label, one line.
    pub label: &'a str,
    /// Whether the first checkpoint is done at full speed.
    pub fast: bool,
}

impl Command<'_> {
    /// The text for a server of that version; an error if the label cannot be one.
    pub fn text(&self, major: PgMajor) -> Result<String, String> {
        if self.label.len() > MAX_LABEL || self.label.contains(['\n', '\r', '\0']) {
            return Err(format!("the label must be one line of at most {MAX_LABEL} bytes"));
        }
        let label = literal(self.label);
        Ok(if major.get() < 15 {
            let fast = if self.fast { " FAST" } else { "" };
            format!(
                "BASE_BACKUP LABEL {label} PROGRESS{fast} NOWAIT TABLESPACE_MAP MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
            )
        } else {
            let checkpoint = if self.fast { "fast" } else { "spread" };
            format!(
                "BASE_BACKUP (LABEL {label}, PROGRESS, CHECKPOINT '{checkpoint}', WAIT false, TABLESPACE_MAP, MANIFEST 'yes', \
                 MANIFEST_CHECKSUMS 'CRC32C')"
            )
        })
    }
}

/// A literal of the replication grammar, which knows no backslashes: only quotes are doubled.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_own_dialect() {
        for major in PgMajor::ALL {
            let text = Command { label: "it's", fast: true }.text(major).unwrap();
            assert!(text.contains("LABEL 'it''s'"), "{text}");
            assert_eq!(text.contains("CHECKPOINT 'fast'"), major.get() >= 15, "{text}");
            assert_eq!(text.contains(" FAST NOWAIT "), major.get() < 15, "{text}");
            let text = Command { label: "", fast: false }.text(major).unwrap();
            assert!(!text.to_lowercase().contains("fast"), "{text}");
        }
    }

    #[test]
    fn a_label_is_one_line_and_taken_as_it_is() {
        let major = PgMajor::ALL[3];
        assert!(Command { label: "a\nb", fast: true }.text(major).is_err());
        assert!(Command { label: &"x".repeat(1025), fast: true }.text(major).is_err());
        let text = Command { label: "C:\\x'", fast: true }.text(major).unwrap();
        assert!(text.contains("LABEL 'C:\\x'''"), "{text}");
    }
}
