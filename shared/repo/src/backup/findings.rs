//! What was wrong with the cluster while it was backed up: bad pages, by file and block.

use super::path::TablePath;
use super::wire::{Input, Malformed, Output};

/// A manifest names this many findings at most; each file's entry and the totals count all of them.
pub const MAX_FINDINGS: usize = 10_000;

/// One bad page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageFinding {
    /// In which file.
    pub path: TablePath,
    /// Which block of the file, counted from 0 in each file.
    pub block: u64,
    /// What is wrong with it.
    pub fault: PageFault,
}

/// What is wrong with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageFault {
    /// It says one checksum, its content has another, twice.
    Checksum {
        /// In the page's header.
        stored: u16,
        /// Of its content.
        computed: u16,
    },
    /// The server said so during `BASE_BACKUP`, without the values.
    Reported,
}

impl PageFinding {
    /// Path, block (64 bits), what (8 bits), stored and computed checksum (16 bits each).
    fn encode(&self, out: &mut Vec<u8>) {
        let (what, stored, computed) = match self.fault {
            PageFault::Checksum { stored, computed } => (1, stored, computed),
            PageFault::Reported => (3, 0, 0),
        };
        self.path.encode(out);
        out.put_u64(self.block);
        out.put_u8(what);
        out.put_u16(stored);
        out.put_u16(computed);
    }

    fn decode(input: &mut Input<'_>) -> Result<Self, Malformed> {
        let (path, block, what) = (TablePath::decode(input)?, input.u64()?, input.u8()?);
        let (stored, computed) = (input.u16()?, input.u16()?);
        let fault = match what {
            1 => PageFault::Checksum { stored, computed },
            3 => PageFault::Reported,
            other => return Err(Malformed(format!("{other} is no kind of finding"))),
        };
        Ok(Self { path, block, fault })
    }
}

/// Writes a 32-bit count and the findings.
pub(super) fn encode(findings: &[PageFinding], out: &mut Vec<u8>) {
    out.put_count(findings.len());
    findings.iter().for_each(|finding| finding.encode(out));
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(input: &mut Input<'_>) -> Result<Vec<PageFinding>, Malformed> {
    let count = input.count(17)?;
    if count > MAX_FINDINGS {
        return Err(Malformed(format!("{count} findings are too many")));
    }
    (0..count).map(|_| PageFinding::decode(input)).collect()
}
