//! One short file of a backup, as a whole: a configuration file, before anything else is read.

use walpoint_storage::error::{RepoError, Result};

use super::super::geometry::INLINE_BLOCKS;
use super::super::path::TablePath;
use super::{BackupReader, ReadWindow};

impl BackupReader {
    /// The content of a regular file of at most 64 blocks, verified; `None` if there is no such file, or if it is a link or longer.
    pub async fn short_file(&self, path: &TablePath) -> Result<Option<Vec<u8>>> {
        let Some(entry) = self.find(path).await? else { return Ok(None) };
        let Some((window, length)) = ReadWindow::of_short_file(self, entry) else { return Ok(None) };
        let most = INLINE_BLOCKS.saturating_mul(self.block_size.bytes());
        let Ok(length) = usize::try_from(length.min(most)) else { return Ok(None) };
        // What is stored nowhere is zero.
        let mut content = vec![0; length];
        for unit in window.units() {
            let fetched = self.fetch(&unit).await?;
            self.scatter::<RepoError>(&unit, &fetched, |piece| {
                let from = usize::try_from(piece.offset).unwrap_or(usize::MAX);
                if let Some(place) =
                    content.get_mut(from..).and_then(|rest| rest.get_mut(..piece.bytes.len()))
                {
                    place.copy_from_slice(piece.bytes);
                }
                Ok(())
            })?;
        }
        Ok(Some(content))
    }
}
