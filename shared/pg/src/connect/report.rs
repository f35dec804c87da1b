//! What a server says: errors, warnings and notices.

use std::fmt;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;
use walpoint_base::Diagnostic;

/// An error or notice as the server sent it, in the server's language.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServerReport {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, `NOTICE`, `DEBUG`, `INFO` or `LOG`, never translated.
    pub severity: String,
    /// Five characters, such as `42501`.
    pub sqlstate: String,
    /// The primary message.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl ServerReport {
    /// Reads the fields of an ErrorResponse or NoticeResponse. Fields this version does not know are left out; text
    /// that is not UTF-8 (messages before the session's encoding is set) is mended.
    pub(super) fn read(mut fields: ErrorFields<'_>) -> Result<Self, String> {
        let mut report = Self::default();
        let mut localized = String::new();
        while let Some(field) = fields.next().map_err(|e| format!("a malformed error message: {e}"))? {
            let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'S' => localized = text,
                b'V' => report.severity = text,
                b'C' => report.sqlstate = text,
                b'M' => report.message = text,
                b'D' => report.detail = Some(text),
                b'H' => report.hint = Some(text),
                _ => {}
            }
        }
        if report.severity.is_empty() {
            report.severity = localized;
        }
        Ok(report)
    }

    /// Whether the server ends the session with it.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }
}

impl fmt::Display for ServerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = format!("{}: {} (SQLSTATE {})", self.severity, self.message, self.sqlstate);
        let said = self.detail.iter().fold(Diagnostic::new(said), Diagnostic::detail);
        write!(f, "{}", self.hint.iter().fold(said, Diagnostic::hint))
    }
}
