//! The beginning of a segment that was put together from slices, read piece by piece like a file of the segment's length: behind its
//! end there are zeros.

use std::io::Write;

use bytes::Bytes;
use walpoint_base::{Lsn, SegmentSize};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::Key;

use super::super::FRAME;
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
}

impl AssembledSegment {
    /// What ends at `end` in a segment of that size. `fault`: why there may be more than that.
    pub(super) fn new(content: Bytes, (end, size): (Lsn, SegmentSize), fault: Option<RepoError>) -> Self {
        let zeros = size.bytes().saturating_sub(content.len() as u64);
        Self { left: content.clone(), content, end, zeros, fault }
    }

    /// Its bytes, from the segment's first one on.
    pub fn content(&self) -> &Bytes {
        &self.content
    }

    /// The position behind the last one.
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// What contradicts it, or is damaged and may continue it; `None` once it was handed out.
    pub fn fault(&self) -> Option<&RepoError> {
        self.fault.as_ref()
    }

    pub(in crate::wal) fn is_done(&self) -> bool {
        self.left.is_empty() && self.zeros == 0 && self.fault.is_none()
    }

    /// The next piece; `None` when all was handed out. A fault comes behind the content.
    pub(in crate::wal) fn next_piece(&mut self) -> Result<Option<Bytes>> {
        if !self.left.is_empty() {
            return Ok(Some(self.left.split_to(FRAME.min(self.left.len()))));
        }
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        let zeros = usize::try_from(self.zeros).unwrap_or(FRAME).min(FRAME);
        self.zeros -= zeros as u64;
        Ok((zeros > 0).then(|| Bytes::from(vec![0; zeros])))
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
