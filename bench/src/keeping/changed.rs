//! Exactly the blocks that differ between two states of a data directory without `pg_wal`, and what zstd level 1 makes of
//! them: 128 KiB at a time, as frames of packs are, one after the other as they lie in the files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// PostgreSQL's block.
const BLOCK: usize = 8192;

/// What a frame of a pack holds.
const FRAME: usize = walpoint_repo::backup::FRAME_BYTES;

/// Read at a time: whole blocks.
const CHUNK: usize = 1 << 20;

/// What differs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changed {
    /// Blocks of the cluster; the last one of a file may be short.
    pub blocks: u64,
    /// Bytes of the cluster.
    pub bytes: u64,
    /// Blocks that differ, or that the earlier state does not have.
    pub changed: u64,
    /// These, compressed.
    pub compressed: u64,
}

impl Changed {
    /// The part of all blocks that changed.
    pub fn share(&self) -> f64 {
        self.changed as f64 / self.blocks as f64
    }
}

/// Compares a cluster that is not running with a copy of an earlier state, and makes the copy a copy of this state. Where
/// there is no copy yet it is made.
pub fn take(cluster: &Path, copy: &Path) -> io::Result<Changed> {
    let mut taking = Taking {
        found: Changed::default(),
        compressor: zstd::bulk::Compressor::new(1)?,
        frame: Vec::with_capacity(FRAME),
        packed: vec![0; zstd::zstd_safe::compress_bound(FRAME)],
        new: vec![0; CHUNK],
        old: vec![0; CHUNK],
    };
    taking.directory(cluster, copy, true)?;
    taking.close_frame()?;
    Ok(taking.found)
}

struct Taking {
    found: Changed,
    compressor: zstd::bulk::Compressor<'static>,
    frame: Vec<u8>,
    packed: Vec<u8>,
    new: Vec<u8>,
    old: Vec<u8>,
}

impl Taking {
    fn directory(&mut self, cluster: &Path, copy: &Path, is_root: bool) -> io::Result<()> {
        fs::create_dir_all(copy)?;
        let mut entries = fs::read_dir(cluster)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (kind, name) = (entry.file_type()?, entry.file_name());
            if kind.is_dir() && !(is_root && name == "pg_wal") {
                self.directory(&entry.path(), &copy.join(name), false)?;
            } else if kind.is_file() {
                self.file(&entry.path(), &copy.join(name))?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, copy: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        let copy = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(copy)?;
        let (mut new, mut old) = (std::mem::take(&mut self.new), std::mem::take(&mut self.old));
        let mut offset = 0;
        loop {
            let length = fill(&file, &mut new)?;
            if length == 0 {
                break;
            }
            let known = fill_at(&copy, &mut old, offset)?;
            for (n, block) in new[..length].chunks(BLOCK).enumerate() {
                let at = n * BLOCK;
                self.found.blocks += 1;
                if old[..known].get(at..at + block.len()) != Some(block) {
                    self.found.changed += 1;
                    self.add(block)?;
                    copy.write_all_at(block, offset + at as u64)?;
                }
            }
            offset += length as u64;
        }
        self.found.bytes += offset;
        copy.set_len(offset)?;
        (self.new, self.old) = (new, old);
        Ok(())
    }

    fn add(&mut self, block: &[u8]) -> io::Result<()> {
        if self.frame.len() + block.len() > FRAME {
            self.close_frame()?;
        }
        self.frame.extend_from_slice(block);
        Ok(())
    }

    fn close_frame(&mut self) -> io::Result<()> {
        if !self.frame.is_empty() {
            let length = self.compressor.compress_to_buffer(&self.frame, &mut self.packed)?;
            self.found.compressed += length as u64;
            self.frame.clear();
        }
        Ok(())
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(mut file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

fn fill_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use walpoint_tests::dir::TestDir;

    #[test]
    fn each_block_that_differs_is_counted_once() {
        let dir = TestDir::new();
        let (cluster, copy) = (dir.mkdir("cluster"), dir.join("copy"));
        fs::create_dir_all(cluster.join("base/5")).unwrap();
        fs::create_dir_all(cluster.join("pg_wal")).unwrap();
        fs::write(cluster.join("pg_wal/segment"), [1; 100]).unwrap();
        let path = cluster.join("base/5/1");
        let mut content = vec![7; 300 * BLOCK + 5];
        fs::write(&path, &content).unwrap();
        let all = take(&cluster, &copy).unwrap();
        assert_eq!((all.blocks, all.changed, all.bytes), (301, 301, content.len() as u64));

        assert_eq!(take(&cluster, &copy).unwrap(), Changed { changed: 0, compressed: 0, ..all });

        content[BLOCK * 3 + 9] = 1;
        content[BLOCK * 290] = 1;
        content.extend([9; BLOCK]);
        fs::write(&path, &content).unwrap();
        let some = take(&cluster, &copy).unwrap();
        // The short block at the end became a whole one, and another short one follows.
        assert_eq!((some.blocks, some.changed), (302, 4));
        assert!(some.compressed > 0 && some.compressed < 1000, "{some:?}");

        content.truncate(BLOCK);
        fs::write(&path, &content).unwrap();
        assert_eq!(take(&cluster, &copy).unwrap().changed, 0);
        assert_eq!(fs::read(copy.join("base/5/1")).unwrap(), content);
    }
}
