//! What commands print on standard output: the answer itself, as text or JSON. Logs go elsewhere.

use std::io::{self, Write};

use crate::document::Document;
use crate::exit::Failure;

/// Prints text. A reader that has gone away (`| head`) is no failure.
pub fn text(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// Prints a document as JSON, and a line end.
pub fn json<T: Document>(document: &T) -> Result<(), Failure> {
    let mut json = serde_json::to_string_pretty(document)?;
    json.push('\n');
    text(&json)
}
