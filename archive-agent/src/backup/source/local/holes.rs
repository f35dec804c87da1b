//! Holes of sparse files, which are not read where the filesystem is known to tell the truth about them.
//!
//! Everywhere else they are read as zeros: a filesystem that reports data as a hole would lose it without a trace, and one
//! that compresses has fewer blocks than bytes in every file.

use std::fs::File;
use std::io;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use walpoint_base::filesystem;

/// Whether the filesystem tells the truth about a file's holes.
pub(super) fn are_reported(file: &File) -> io::Result<bool> {
    let kind = rustix::fs::fstatfs(file)?.f_type;
    #[allow(clippy::useless_conversion, reason = "its width depends on the machine")]
    Ok(filesystem::reports_holes(i64::from(kind)))
}

/// The holes of a sparse file, found one after the other.
#[derive(Debug)]
pub(super) struct Holes<'a> {
    file: &'a File,
    block_size: u64,
    /// The range of data that was found last.
    data: (u64, u64),
}

impl<'a> Holes<'a> {
    pub(super) fn new(file: &'a File, block_size: usize) -> Self {
        Self { file, block_size: u64::try_from(block_size).unwrap_or(1).max(1), data: (0, 0) }
    }

    /// The next range of data from `at` on, begin and end, cut at whole blocks; where there is none it begins and ends with
    /// the file.
    pub(super) fn data(&mut self, at: u64, length: u64) -> io::Result<(u64, u64)> {
        if at >= self.data.0 && at < self.data.1 {
            return Ok((at, self.data.1));
        }
        let data = match rustix::fs::seek(self.file, SeekFrom::Data(at)) {
            Ok(data) => data.clamp(at, length),
            Err(Errno::NXIO) => length,
            // A filesystem that knows nothing of holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(error) => return Err(error.into()),
        };
        let begin = (data - data % self.block_size).max(at);
        let end = match rustix::fs::seek(self.file, SeekFrom::Hole(data)) {
            Ok(end) if end > data => end.div_ceil(self.block_size).saturating_mul(self.block_size),
            // Cut meanwhile, or no answer to rely on: reading finds the end.
            _ => length,
        };
        self.data = (begin, end.min(length).max(begin));
        Ok(self.data)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_are_skipped_and_data_is_found_at_whole_blocks() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        let far = (1 << 39) + 5000;
        file.write_all_at(b"data", far).unwrap();
        let mut holes = Holes::new(&file, 8192);
        let (mut at, mut read, mut steps) = (0, 0, 0);
        while at < 1 << 40 {
            let (begin, end) = holes.data(at, 1 << 40).unwrap();
            assert!(begin >= at && begin % 8192 == 0 && (end > begin || begin == 1 << 40));
            read += end - begin;
            assert!(!(begin..end).is_empty() || end == 1 << 40);
            at = end.max(begin);
            steps += 1;
        }
        assert!(steps < 5 && read < 1 << 20, "{steps} steps, {read} bytes");
    }

    #[test]
    fn holes_are_believed_only_where_they_are_known_to_be_true() {
        assert!(!are_reported(&File::open("/proc/self/status").unwrap()).unwrap());
    }
}
