//! The command: unparenthesised options in 13 and 14, parenthesised ones from 15 on.

use walpoint_base::PgMajor;

/// PostgreSQL's limit for a label, in bytes (MAXPGPATH).
const MAX_LABEL: usize = 1024;

/// What is asked for. Always: no WAL in the stream and no waiting for the archive, which whoever stores the backup does;
/// page checksums verified by the server; a manifest with a CRC-32C for each file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BaseBackupCommand<'a> {
    /// The label, one line.
    pub label: &'a str,
    /// Whether the first checkpoint is done at full speed.
    pub fast: bool,
    /// Whether the server writes a map of the tablespaces instead of links to them, which may be 100 bytes long at most. Before
    /// 16 a server that writes one leaves out tablespaces that lie inside the data directory ([`BaseBackupCommand::can_map`]).
    pub map: bool,
}

impl BaseBackupCommand<'_> {
    /// Whether a server of that version sends all tablespaces beside a map. `inside`: whether one is a directory in
    /// `pg_tblspc` and no link.
    pub fn can_map(major: PgMajor, inside: bool) -> bool {
        major.get() >= 16 || !inside
    }

    /// The text for a server of that version; an error if the label cannot be one.
    pub fn text(&self, major: PgMajor) -> Result<String, String> {
        if self.label.len() > MAX_LABEL || self.label.contains(['\n', '\r', '\0']) {
            return Err(format!("the label must be one line of at most {MAX_LABEL} bytes"));
        }
        let label = literal(self.label);
        Ok(if major.get() < 15 {
            let fast = if self.fast { " FAST" } else { "" };
            let map = if self.map { " TABLESPACE_MAP" } else { "" };
            format!(
                "BASE_BACKUP LABEL {label} PROGRESS{fast} NOWAIT{map} MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
            )
        } else {
            let checkpoint = if self.fast { "fast" } else { "spread" };
            let map = if self.map { "TABLESPACE_MAP, " } else { "" };
            format!(
                "BASE_BACKUP (LABEL {label}, PROGRESS, CHECKPOINT '{checkpoint}', WAIT false, {map}MANIFEST 'yes', \
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
            let text = BaseBackupCommand { label: "it's", fast: true, map: true }.text(major).unwrap();
            assert!(text.contains("LABEL 'it''s'"), "{text}");
            assert_eq!(text.contains("CHECKPOINT 'fast'"), major.get() >= 15, "{text}");
            assert_eq!(text.contains(" FAST NOWAIT "), major.get() < 15, "{text}");
            assert!(text.contains(" TABLESPACE_MAP"), "{text}");
            let text = BaseBackupCommand { label: "", fast: false, map: false }.text(major).unwrap();
            assert!(!text.to_lowercase().contains("fast") && !text.contains("TABLESPACE_MAP"), "{text}");
            assert_eq!(
                (BaseBackupCommand::can_map(major, true), BaseBackupCommand::can_map(major, false)),
                (major.get() >= 16, true)
            );
        }
    }

    #[test]
    fn a_label_is_one_line_and_taken_as_it_is() {
        let (major, plain) = (PgMajor::ALL[3], BaseBackupCommand { label: "", fast: true, map: true });
        assert!(BaseBackupCommand { label: "a\nb", ..plain }.text(major).is_err());
        assert!(BaseBackupCommand { label: &"x".repeat(1025), ..plain }.text(major).is_err());
        let text = BaseBackupCommand { label: "C:\\x'", ..plain }.text(major).unwrap();
        assert!(text.contains("LABEL 'C:\\x'''"), "{text}");
    }
}
