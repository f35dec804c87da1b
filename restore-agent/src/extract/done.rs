//! What an extraction did, and how that is reported.

use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_runtime::output;

use super::document::{ExtractDocument, ExtractReport, ListReport, LoadReport};
use super::text;

/// What was done.
#[derive(Debug)]
pub(super) enum Done {
    Listed(ListReport),
    /// Into a file or a directory.
    Extracted(ExtractReport),
    /// To standard output, where a report has no place.
    Printed,
    Loaded(LoadReport),
}

impl Done {
    /// Prints the report, or the list. A report that cannot be printed changes nothing of what was done.
    pub(super) fn print(&self, common: &CommonArgs) -> Result<(), Failure> {
        let printed = match self {
            Self::Listed(list) if common.json => return output::json(&ExtractDocument::Listed(list)),
            Self::Listed(list) => return output::text(&text::list(list)),
            Self::Extracted(report) if common.json => output::json(&ExtractDocument::Extracted(report)),
            Self::Loaded(report) if common.json => output::json(&ExtractDocument::Loaded(report)),
            Self::Extracted(_) | Self::Loaded(_) | Self::Printed => Ok(()),
        };
        if let Err(failure) = printed {
            let why = failure.error.context("everything was extracted, and its report could not be printed");
            tracing::warn!("{}", walpoint_words::format_chain(&why));
        }
        Ok(())
    }
}
