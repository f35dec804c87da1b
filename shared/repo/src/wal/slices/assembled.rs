//! The beginning of a segment that was put together from slices, read piece by piece like a file of the segment's length: behind its
//! end there are zeros.

use std::io::Write;

use bytes::Bytes;
use walpoint_base::{Lsn, SegmentSize};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::Key;

use super::super::FRAME;
use super::SliceName;
use crate::cpu;

/// A segment's beginning as its slices have it.
#[derive(Debug)]
pub struct AssembledSegment {
    content: Bytes,
    end: Lsn,
    /// Bytes that were not handed out yet: of the content, and of the zeros behind it.
    left: Bytes,
    zeros: u64,
    fault: Option<RepoError>,
    hidden: Vec<SliceName>,
}

impl AssembledSegment {
    /// What ends at `end` in a segment of that size. `fault`: why there may be more than that, and in which slices.
    pub(super) fn new(
        content: Bytes,
        (end, size): (Lsn, SegmentSize),
        (fault, hidden): (Option<RepoError>, Vec<SliceName>),
    ) -> Self {
        let zeros = size.bytes().saturating_sub(content.len() as u64);
        Self { left: content.clone(), content, end, zeros, fault, hidden }
    }

    /// Its bytes, from the segment's first one on.
    pub fn content(&self) -> &Bytes {
        &self.content
    }

    /// The position behind the last one.
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// What contradicts it, or is damaged and may continue it.
    pub fn fault(&self) -> Option<&RepoError> {
        self.fault.as_ref()
    }

    /// The damaged slice that may continue it, and what by their names continues that; none where it is contradicted.
    pub fn hidden(&self) -> &[SliceName] {
        &self.hidden
    }

    /// Whether another server's slices contradict it.
    pub fn is_contradicted(&self) -> bool {
        self.fault.is_some() && self.hidden.is_empty()
    }

    pub(in crate::wal) fn is_done(&self) -> bool {
        self.left.is_empty() && self.zeros == 0
    }

    /// The next piece; `None` when all was handed out.
    pub(in crate::wal) fn next_piece(&mut self) -> Option<Bytes> {
        if !self.left.is_empty() {
            return Some(self.left.split_to(FRAME.min(self.left.len())));
        }
        let zeros = usize::try_from(self.zeros).unwrap_or(FRAME).min(FRAME);
        self.zeros -= zeros as u64;
        (zeros > 0).then(|| Bytes::from(vec![0; zeros]))
    }
}

/// Writes a piece of a file out.
pub(in crate::wal) async fn write_piece<W: Write + Send + 'static>(
    key: &Key,
    piece: Bytes,
    mut writer: W,
) -> Result<W> {
    let what = format!("{key} cannot be written out");
    let written = cpu::run(move || writer.write_all(&piece).map(|()| writer)).await?;
    written.map_err(|source| RepoError::Io { what, source })
}
