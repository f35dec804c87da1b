//! The restore points of a segment that holds masses of them, read a second time: what is known of a segment holds only the first ones.
//!
//! The second reading need not be believed: the segment is stored only if it gives as many as the first one, which was checked.

use std::collections::VecDeque;
use std::io;

use walpoint_base::SegmentName;
use walpoint_base::facts::RestorePoint;
use walpoint_pg::wal::Inspector;
use walpoint_repo::wal::{SealedSegment, WalArchive, WalContent};
use walpoint_storage::RepoError;

/// Bytes of each piece: it holds fewer restore points than an inspector keeps.
const PIECE: usize = 64 << 10;

/// Stores the restore points of a segment ahead of it, if it holds more than is known of it. `content`: what was sealed.
pub(super) async fn store(
    archive: &WalArchive,
    sealed: SealedSegment,
    content: &WalContent,
) -> Result<SealedSegment, RepoError> {
    match sealed.facts().further_points {
        0 => Ok(sealed),
        _ => {
            let points = Points::of(sealed.facts().name, content.clone());
            archive.put_points(sealed, points).await
        }
    }
}

/// The restore points in a segment's content, in LSN order. Reading blocks.
#[derive(Debug)]
struct Points {
    content: WalContent,
    inspector: Inspector<'static>,
    offset: u64,
    buffer: Vec<u8>,
    found: VecDeque<RestorePoint>,
}

impl Points {
    /// Of a sound segment of that name.
    fn of(name: SegmentName, content: WalContent) -> Self {
        let inspector = Inspector::new(name, content.len(), None);
        Self { content, inspector, offset: 0, buffer: Vec::new(), found: VecDeque::new() }
    }

    fn read(&mut self) -> io::Result<()> {
        let left = usize::try_from(self.content.len() - self.offset).unwrap_or(usize::MAX);
        let piece = self.content.piece(self.offset, left.min(PIECE), &mut self.buffer)?;
        self.inspector.feed(piece).map_err(io::Error::other)?;
        self.offset += piece.len() as u64;
        self.found.extend(self.inspector.take_points());
        Ok(())
    }
}

impl Iterator for Points {
    type Item = io::Result<RestorePoint>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.found.is_empty() && self.offset < self.content.len() {
            if let Err(error) = self.read() {
                return Some(Err(error));
            }
        }
        self.found.pop_front().map(Ok)
    }
}
