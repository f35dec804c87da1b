//! Which blocks of files that are there are right already.
//!
//! Each block is read and its hash compared with the backup's; sizes and times of files say nothing. What has to be zero is
//! made a hole, and so is a block that the disk cannot read: it is written anew, where the filesystem chooses. Memory is bounded by the
//! window: 25 bytes for each block that is compared.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::{io, mem};

use anyhow::{Context, bail};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use tokio::task::JoinSet;
use walpoint_base::filesystem;
use walpoint_repo::backup::{BlockSize, EntryContent, Hashing, ReadWindow};
use walpoint_repo::cpu;
use walpoint_runtime::human;

use super::files::FileTarget;

/// Blocks that are compared in one go.
const PORTION: usize = 1024;

/// Bytes that are read at once.
const READ: usize = 256 << 10;

/// A stored block of a file that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    part: usize,
    number: u64,
    hash: u64,
}

/// The blocks of a window that need not be fetched.
#[derive(Debug, Default)]
pub(crate) struct KeptBlocks {
    /// Sorted.
    blocks: Arc<Vec<Block>>,
    right: Vec<bool>,
    bytes: u64,
}

impl KeptBlocks {
    /// Whether a block is right.
    pub(crate) fn has(&self, part: usize, number: u64) -> bool {
        let at = self.blocks.binary_search_by_key(&(part, number), |block| (block.part, block.number));
        at.is_ok_and(|at| self.right.get(at).copied().unwrap_or(false))
    }

    /// How many bytes are right.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Compares what a window's files hold with what they shall hold, and clears what shall be zero.
pub(crate) async fn compare(
    window: &ReadWindow,
    targets: &Arc<Vec<Option<FileTarget>>>,
    hashing: &Hashing,
    size: BlockSize,
) -> anyhow::Result<KeptBlocks> {
    let kept = |part: usize| targets.get(part).and_then(Option::as_ref).filter(|target| target.present > 0);
    if (0..targets.len()).all(|part| kept(part).is_none()) {
        return Ok(KeptBlocks::default());
    }
    let mut blocks = Vec::new();
    // Nothing is fetched yet; this is the way to all blocks.
    window.units_of(|part, number, hash| {
        if kept(part).is_some_and(|target| number.saturating_mul(size.bytes()) < target.present) {
            blocks.push(Block { part, number, hash });
        }
        false
    });
    // In the order of packs until here.
    blocks.sort_unstable();
    let blocks = Arc::new(blocks);
    let mut tasks = JoinSet::new();
    let mut right = vec![false; blocks.len()];
    for start in (0..blocks.len()).step_by(PORTION) {
        let (blocks, targets, hashing) = (Arc::clone(&blocks), Arc::clone(targets), hashing.clone());
        tasks.spawn(cpu::run(move || {
            let portion = blocks.get(start..blocks.len().min(start + PORTION)).unwrap_or_default();
            let compared = compare_portion(portion, &targets, &hashing, size)?;
            Ok::<_, anyhow::Error>((start, compared))
        }));
    }
    let mut bytes = 0;
    while let Some(done) = tasks.join_next().await {
        let (start, compared) = done.context("a worker thread of the restore ended abnormally")???;
        for (at, length) in (start..).zip(compared) {
            if let (Some(slot), Some(length)) = (right.get_mut(at), length) {
                *slot = true;
                bytes += length;
            }
        }
    }
    let (zeros, targets) = (zeros(window, targets, &blocks, size), Arc::clone(targets));
    tokio::task::spawn_blocking(move || {
        for (part, ranges) in zeros {
            let Some(target) = targets.get(part).and_then(Option::as_ref) else { continue };
            target
                .change()
                .and_then(|file| clear(&file, &ranges))
                .with_context(|| format!("{} cannot be cleared where it is empty", target.path.display()))?;
        }
        Ok::<_, anyhow::Error>(())
    })
    .await
    .context("a worker thread of the restore ended abnormally")??;
    Ok(KeptBlocks { blocks, right, bytes })
}

/// For each block its length if it is right.
fn compare_portion(
    blocks: &[Block],
    targets: &[Option<FileTarget>],
    hashing: &Hashing,
    size: BlockSize,
) -> anyhow::Result<Vec<Option<u64>>> {
    let mut compared = Vec::with_capacity(blocks.len());
    let mut buffer = vec![0; READ.max(size.as_usize())];
    for same_file in blocks.chunk_by(|a, b| a.part == b.part) {
        let target = same_file.first().and_then(|block| targets.get(block.part)?.as_ref());
        let target = target.context("internal error: a block of no file is compared")?;
        let EntryContent::File(content) = &target.entry.content else {
            bail!("internal error: {} is compared and is no file", target.path.display())
        };
        let file = target.read().with_context(|| unread(target))?;
        let read = |bytes: &mut [u8], at: u64| file.read_exact_at(bytes, at);
        let found = compare_file(read, content.length, same_file, &mut buffer, hashing, size)
            .with_context(|| unread(target))?;
        compared.extend(found.lengths);
        if let Some((first, error)) = found.unreadable.first() {
            tracing::warn!(
                "{}: could not read {}, the first at byte {first}, and will write that anew: {error}\nHINT: Check the disk.",
                target.path.display(),
                human::count(found.unreadable.len() as u64, "block"),
            );
            let blocks: Vec<u64> = found.unreadable.iter().map(|(offset, _)| *offset).collect();
            target.change().and_then(|file| release(&file, &blocks, content.length, size)).with_context(|| {
                format!(
                    "{} has blocks that cannot be read and cannot be replaced in place\nHINT: Remove this file and run the \
                     same command again: it writes the file anew.",
                    target.path.display()
                )
            })?;
        }
    }
    Ok(compared)
}

fn unread(target: &FileTarget) -> String {
    format!("{} cannot be read", target.path.display())
}

/// What is known of blocks of one file.
struct ComparedFile {
    /// For each block its length if it is right.
    lengths: Vec<Option<u64>>,
    /// Where those begin that cannot be read, and why not.
    unreadable: Vec<(u64, io::Error)>,
}

/// Compares blocks of one file of this length, in their order. `read` fills a buffer from a position on.
fn compare_file(
    read: impl Fn(&mut [u8], u64) -> io::Result<()>,
    length: u64,
    blocks: &[Block],
    buffer: &mut [u8],
    hashing: &Hashing,
    size: BlockSize,
) -> anyhow::Result<ComparedFile> {
    let mut compared = ComparedFile { lengths: Vec::with_capacity(blocks.len()), unreadable: Vec::new() };
    let at_once = (buffer.len() / size.as_usize()).max(1);
    for run in blocks.chunk_by(|a, b| a.number + 1 == b.number).flat_map(|run| run.chunks(at_once)) {
        let lengths = run.iter().map(|block| size.block_len(length, block.number));
        let total: usize = lengths.clone().sum();
        let offset = run.first().map_or(0, |block| block.number * size.bytes());
        let bytes = buffer.get_mut(..total).context("internal error: a run of blocks is too long")?;
        let is_whole = match read(bytes, offset) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(error.into()),
            // One by one: which of them the disk cannot read.
            Err(_) => false,
        };
        let mut rest = bytes;
        for (block, length) in run.iter().zip(lengths) {
            let (content, later) = mem::take(&mut rest).split_at_mut_checked(length).unwrap_or_default();
            rest = later;
            let offset = block.number * size.bytes();
            let again = if is_whole { Ok(()) } else { read(content, offset) };
            let is_right = again.is_ok() && hashing.block(content) == block.hash;
            compared.lengths.push(is_right.then_some(content.len() as u64));
            compared.unreadable.extend(again.err().map(|error| (offset, error)));
        }
    }
    Ok(compared)
}

/// Makes blocks of a file of this length holes, given where they begin: to write only a part of a page the kernel would read the rest.
fn release(file: &File, blocks: &[u64], length: u64, size: BlockSize) -> io::Result<()> {
    for &start in blocks {
        // Whole, also behind the end of the file.
        punch(file, start, size.bytes())?;
    }
    file.set_len(length)
}

/// The ranges of files that are there and shall be zero: what is between the stored blocks.
fn zeros(
    window: &ReadWindow,
    targets: &[Option<FileTarget>],
    blocks: &[Block],
    size: BlockSize,
) -> Vec<(usize, Vec<(u64, u64)>)> {
    let mut all = Vec::new();
    for (part, (target, described)) in targets.iter().zip(window.parts()).enumerate() {
        let Some(target) = target.as_ref().filter(|target| target.present > 0) else { continue };
        let begin = blocks.partition_point(|block| block.part < part);
        let end = blocks.partition_point(|block| block.part <= part);
        let end_of_part = described.range.end.min(target.present);
        let mut at = described.range.start;
        let mut ranges = Vec::new();
        for block in blocks.get(begin..end).unwrap_or_default() {
            let start = block.number * size.bytes();
            if start > at {
                ranges.push((at, start));
            }
            at = start + size.bytes();
        }
        if at < end_of_part {
            ranges.push((at, end_of_part));
        }
        if !ranges.is_empty() {
            all.push((part, ranges));
        }
    }
    all
}

/// Makes ranges of a file holes where they are not; all of them, where the filesystem is not known to tell the truth about
/// holes.
fn clear(file: &File, ranges: &[(u64, u64)]) -> io::Result<()> {
    let kind = rustix::fs::fstatfs(file)?.f_type;
    #[allow(clippy::useless_conversion, reason = "its width depends on the machine")]
    let is_known = filesystem::reports_holes(i64::from(kind));
    for &(start, end) in ranges {
        if !is_known {
            punch(file, start, end - start)?;
            continue;
        }
        let mut at = start;
        while at < end {
            let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                // Nothing but a hole up to the end of the file.
                Err(Errno::NXIO) => break,
                data => data?,
            };
            if data >= end {
                break;
            }
            let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?.min(end);
            punch(file, data, hole - data)?;
            at = hole;
        }
    }
    Ok(())
}

/// Makes a hole, or writes zeros where the filesystem has none.
fn punch(file: &File, start: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, start, length) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
        done => return Ok(done?),
    }
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    let (mut at, end) = (start, start + length);
    while at < end {
        let piece = usize::try_from(end - at).unwrap_or(ZEROS.len()).min(ZEROS.len());
        file.write_all_at(ZEROS.get(..piece).unwrap_or(&ZEROS), at)?;
        at += piece as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use walpoint_base::durable;
    use walpoint_storage::object::{RepositoryId, Sealer};

    use super::*;

    /// Reads from a file in which these bytes cannot be read. What was read before it failed is in the buffer.
    fn failing(
        content: &[u8],
        bad: [usize; 2],
        kind: io::ErrorKind,
    ) -> impl Fn(&mut [u8], u64) -> io::Result<()> {
        move |bytes: &mut [u8], at: u64| {
            let start = usize::try_from(at).unwrap();
            let range = start..start + bytes.len();
            bytes.copy_from_slice(&content[range.clone()]);
            if bad.iter().any(|at| range.contains(at)) { Err(io::Error::from(kind)) } else { Ok(()) }
        }
    }

    #[test]
    fn a_block_that_cannot_be_read_is_not_right_and_those_around_it_are() {
        let size = BlockSize::new(8192).unwrap();
        let length = 4 * 8192 + 100;
        let content: Vec<u8> = (0..length).map(|at| u8::try_from(at / 8192 + 1).unwrap()).collect();
        let hashing = Hashing::new(&Sealer::plain(RepositoryId([1; 16])));
        let hash = |number: u64| {
            let start = usize::try_from(number).unwrap() * 8192;
            hashing.block(&content[start..content.len().min(start + 8192)])
        };
        let blocks: Vec<Block> = (0..5).map(|number| Block { part: 0, number, hash: hash(number) }).collect();
        let mut buffer = vec![0; READ];
        let read = failing(&content, [2 * 8192 + 512, 4 * 8192 + 1], io::ErrorKind::Other);
        let found = compare_file(read, length, &blocks, &mut buffer, &hashing, size).unwrap();
        assert_eq!(found.lengths, [Some(8192), Some(8192), None, Some(8192), None]);
        let offsets: Vec<u64> = found.unreadable.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, [2 * 8192, 4 * 8192]);
        let shrunk = failing(&content, [512, 512], io::ErrorKind::UnexpectedEof);
        assert!(compare_file(shrunk, length, &blocks, &mut buffer, &hashing, size).is_err());
    }

    #[test]
    fn blocks_that_cannot_be_read_become_holes_and_the_file_keeps_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let length = 3 * 8192 + 100;
        durable::create(&path, &vec![7; length]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        release(&file, &[8192, 3 * 8192], length as u64, BlockSize::new(8192).unwrap()).unwrap();
        let content = std::fs::read(&path).unwrap();
        assert_eq!(content.len(), length);
        for (at, byte) in content.iter().enumerate() {
            assert_eq!(*byte, if at / 8192 % 2 == 1 { 0 } else { 7 }, "{at}");
        }
    }

    #[test]
    fn what_shall_be_zero_becomes_a_hole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        durable::create(&path, &vec![7; 1 << 20]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        clear(&file, &[(0, 8192), (65536, 1 << 20)]).unwrap();
        let content = std::fs::read(&path).unwrap();
        assert_eq!(content.len(), 1 << 20);
        let nonzero = content.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at as u64);
        assert!(nonzero.eq(8192..65536));
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 1 << 19, "the file is sparse");
        clear(&file, &[(0, 1 << 20)]).unwrap();
        clear(&file, &[(0, 1 << 21)]).unwrap();
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
    }
}
