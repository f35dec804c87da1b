//! Which page the server complains about while it reads.
//!
//! Source: `sendFile` in `src/backend/backup/basebackup.c`. The text is translated where `lc_messages` asks for it; then
//! nothing is found here, and the pages that carry PostgreSQL's checksums are found by whoever verifies them.

use std::path::Path;

use crate::connect::ServerReport;

/// A page whose checksum the server found wrong, twice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReportedPage {
    /// The file as the server names it, below the data directory.
    pub path: Vec<u8>,
    /// Which block of the file.
    pub block: u64,
    /// The checksum in the page.
    pub stored: u16,
    /// That of its content.
    pub computed: u16,
}

impl ReportedPage {
    /// Reads a notice; `None` if it is about something else.
    pub fn read(notice: &ServerReport) -> Option<Self> {
        let rest = notice.message.strip_prefix("checksum verification failed in file \"")?;
        let (path, rest) = rest.rsplit_once("\", block ")?;
        let (block, rest) = rest.split_once(": calculated ")?;
        let (computed, stored) = rest.split_once(" but expected ")?;
        let path = Path::new(path).strip_prefix(".").unwrap_or(Path::new(path));
        Some(Self {
            path: path.as_os_str().as_encoded_bytes().to_vec(),
            block: block.parse().ok()?,
            stored: u16::from_str_radix(stored.trim(), 16).ok()?,
            computed: u16::from_str_radix(computed, 16).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &str) -> Option<ReportedPage> {
        ReportedPage::read(&ServerReport { message: message.to_owned(), ..ServerReport::default() })
    }

    #[test]
    fn a_page_is_told_with_file_and_block() {
        let text = "checksum verification failed in file \"./base/5/16384\", block 3: calculated 1A2B but expected C4D";
        let page = ReportedPage { path: b"base/5/16384".to_vec(), block: 3, stored: 0xC4D, computed: 0x1A2B };
        assert_eq!(read(text), Some(page));
        for other in [
            "further checksum verification failures in file \"./base/5/16384\" will not be reported",
            "checksum verification failed in file \"./base/5/16384\", block x: calculated 1 but expected 2",
            "checksum verification failed in file \"./base/5/16384\", block 1: calculated 10000 but expected 2",
            "",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
