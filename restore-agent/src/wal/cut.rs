//! A segment as its timeline left it: another file's bytes up to the fork, zeros behind.

use std::io::{self, Write};

use anyhow::Context;
use walpoint_repo::wal::BeginningHasher;
use walpoint_storage::object::ContentHash;

/// Passes on the first bytes that are written, and replaces the rest by zeros.
#[derive(Debug)]
pub(crate) struct CutFile<W> {
    inner: W,
    /// Bytes that are still passed on as they are.
    keep: u64,
    /// Bytes that are still missing from the length.
    left: u64,
    /// What the bytes that are passed on have to be.
    expected: Option<(BeginningHasher, ContentHash)>,
}

/// Zeros are written in pieces of this size.
const ZEROS: [u8; 8192] = [0; 8192];

impl<W: Write> CutFile<W> {
    /// A file of `length` bytes, of which `keep` are those that will be written.
    pub(crate) fn new(inner: W, keep: u64, length: u64) -> Self {
        Self { inner, keep: keep.min(length), left: length, expected: None }
    }

    /// Finishes only if the bytes that are passed on have that hash; any will do if that is not known.
    pub(crate) fn expecting(self, hash: Option<ContentHash>) -> Self {
        let expected = hash.map(|hash| (BeginningHasher::of(self.keep), hash));
        Self { expected, ..self }
    }

    /// Fills up with zeros. A source that ends before the fork is an error.
    pub(crate) fn finish(mut self) -> anyhow::Result<W> {
        anyhow::ensure!(self.keep == 0, "it ends {} bytes before the fork", self.keep);
        if let Some((passed_on, expected)) = &self.expected {
            anyhow::ensure!(
                passed_on.hash() == Some(*expected),
                "it is shorter than the copy that the restore was planned with, or another server wrote it"
            );
        }
        while self.left > 0 {
            let piece = usize::try_from(self.left).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            let written =
                self.inner.write(ZEROS.get(..piece).unwrap_or(&ZEROS)).context("it cannot be written out")?;
            self.left = self.left.saturating_sub(written as u64);
        }
        Ok(self.inner)
    }
}

impl<W: Write> Write for CutFile<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.keep == 0 {
            // Behind the cut: counted by `finish`.
            return Ok(bytes.len());
        }
        let most = usize::try_from(self.keep).map_or(bytes.len(), |keep| keep.min(bytes.len()));
        let written = self.inner.write(bytes.get(..most).unwrap_or(bytes))?;
        if let Some((passed_on, _)) = &mut self.expected {
            passed_on.write_all(bytes.get(..written).unwrap_or(bytes))?;
        }
        self.keep = self.keep.saturating_sub(written as u64);
        self.left = self.left.saturating_sub(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_behind_the_cut_is_zero() {
        for (written, keep, expected) in [
            ("abcdef", 3, Some("abc\0\0\0")),
            ("abcdef", 6, Some("abcdef")),
            ("abcd", 4, Some("abcd\0\0")),
            ("abcd", 3, Some("abc\0\0\0")),
            ("abcd", 5, None),
        ] {
            let mut cut = CutFile::new(Vec::new(), keep, 6);
            for piece in written.as_bytes().chunks(2) {
                cut.write_all(piece).unwrap();
            }
            let content = cut.finish().ok().map(|content| String::from_utf8(content).unwrap());
            assert_eq!(content.as_deref(), expected, "{written} {keep}");
        }
    }

    #[test]
    fn what_was_not_planned_with_is_not_finished() {
        let mut planned = BeginningHasher::of(3);
        planned.write_all(b"abc").unwrap();
        for (written, right) in [("abcxyz", true), ("ab\0\0\0\0", false)] {
            let mut cut = CutFile::new(Vec::new(), 3, 6).expecting(planned.hash());
            cut.write_all(written.as_bytes()).unwrap();
            assert_eq!(cut.finish().is_ok(), right, "{written}");
        }
    }
}
