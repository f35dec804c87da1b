//! Putting pieces of files together before they are written.
//!
//! What many backups wrote comes a few blocks at a time, each time from another pack. Written as they come, such pieces cost
//! the kernel several times what whole chunks do: it makes a page of its own for each, which goes to the disk by itself.
//! So a chunk that comes in pieces waits in memory until it is complete. How much may wait is bounded; beyond that, pieces
//! are written as they come.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a chunk of a file: longer writes are hardly cheaper, and a data frame delivers as much.
const CHUNK: usize = 128 << 10;

/// Pieces this long are written as they come: copying them costs more than is won.
const LONG: usize = CHUNK / 2;

/// Buffers of chunks that wait, used again and again.
#[derive(Debug)]
pub(crate) struct Buffers(Mutex<Free>);

#[derive(Debug)]
struct Free {
    buffers: Vec<Box<[u8]>>,
    /// How many more may be made.
    more: usize,
}

impl Buffers {
    /// At most so many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Mutex::new(Free { buffers: Vec::new(), more: bytes / CHUNK }))
    }

    /// `None` if all are in use.
    fn take(&self) -> Option<Box<[u8]>> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.buffers.pop().or_else(|| {
            free.more = free.more.checked_sub(1)?;
            Some(vec![0; CHUNK].into_boxed_slice())
        })
    }

    fn give_back(&self, buffer: Box<[u8]>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).buffers.push(buffer);
    }
}

/// The chunks of the files of one window of which anything is expected, by the part and their number in its file.
#[derive(Debug)]
pub(crate) struct Gather {
    buffers: Arc<Buffers>,
    chunks: HashMap<(usize, u64), Mutex<FetchRange>>,
}

#[derive(Debug, Default)]
struct FetchRange {
    /// Bytes that are still to come.
    missing: usize,
    waiting: Option<Waiting>,
}

/// What came of a chunk and was not written.
#[derive(Debug)]
struct Waiting {
    buffer: Box<[u8]>,
    /// What of the buffer it fills.
    filled: Vec<Range<usize>>,
}

impl Gather {
    /// For a window of which nothing is expected yet.
    pub(crate) fn new(buffers: &Arc<Buffers>) -> Self {
        Self { buffers: Arc::clone(buffers), chunks: HashMap::new() }
    }

    /// Expects bytes of a part, which do not reach over the end of a chunk.
    pub(crate) fn expect(&mut self, part: usize, offset: u64, length: usize) {
        let chunk = self.chunks.entry((part, place(offset).0)).or_default();
        chunk.get_mut().unwrap_or_else(PoisonError::into_inner).missing += length;
    }

    /// Takes a piece of a part. What can be written now goes to `write`, with its offset in the file.
    pub(crate) fn take<E>(
        &self,
        part: usize,
        offset: u64,
        bytes: &[u8],
        mut write: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let long = bytes.len() >= LONG;
        if long {
            write(offset, bytes)?;
        }
        let (mut offset, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (number, within) = place(offset);
            let (piece, later) = rest.split_at(rest.len().min(CHUNK - within));
            match self.chunks.get(&(part, number)) {
                Some(chunk) => {
                    let mut chunk = chunk.lock().unwrap_or_else(PoisonError::into_inner);
                    chunk.missing = chunk.missing.saturating_sub(piece.len());
                    let alone = chunk.missing == 0 && chunk.waiting.is_none();
                    let waits = !long && !alone && chunk.wait(within, piece, &self.buffers);
                    let complete = if chunk.missing == 0 { chunk.waiting.take() } else { None };
                    drop(chunk);
                    if !long && !waits {
                        write(offset, piece)?;
                    }
                    if let Some(waiting) = complete {
                        let written = waiting.write(number * CHUNK as u64, &mut write);
                        self.buffers.give_back(waiting.buffer);
                        written?;
                    }
                }
                None if !long => write(offset, piece)?,
                None => {}
            }
            offset += piece.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Whether everything that was expected came and was written.
    pub(crate) fn is_complete(&self) -> bool {
        self.chunks.values().all(|chunk| {
            let chunk = chunk.lock().unwrap_or_else(PoisonError::into_inner);
            chunk.missing == 0 && chunk.waiting.is_none()
        })
    }
}

impl FetchRange {
    /// Keeps a piece; `false` if there is no room.
    fn wait(&mut self, within: usize, piece: &[u8], buffers: &Buffers) -> bool {
        if self.waiting.is_none() {
            self.waiting = buffers.take().map(|buffer| Waiting { buffer, filled: Vec::new() });
        }
        let Some(waiting) = &mut self.waiting else { return false };
        let range = within..within + piece.len();
        let Some(room) = waiting.buffer.get_mut(range.clone()) else { return false };
        room.copy_from_slice(piece);
        waiting.filled.push(range);
        true
    }
}

impl Waiting {
    /// Writes what came, what lies together at once. `start`: of the chunk in its file.
    fn write<E>(&self, start: u64, write: &mut impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut filled = self.filled.clone();
        filled.sort_unstable_by_key(|range| range.start);
        for together in filled.chunk_by(|a, b| a.end == b.start) {
            let (Some(first), Some(last)) = (together.first(), together.last()) else { continue };
            let bytes = self.buffer.get(first.start..last.end).unwrap_or_default();
            write(start + first.start as u64, bytes)?;
        }
        Ok(())
    }
}

/// In which chunk of a file an offset is, and where in it.
fn place(offset: u64) -> (u64, usize) {
    (offset / CHUNK as u64, usize::try_from(offset % CHUNK as u64).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const BLOCK: usize = 8192;

    /// What became of blocks that came in an order in which no two neighbours follow each other: the files, and how often was
    /// written. The first part is a piece of a longer file and ends in half a block; every fifth block of it is not expected.
    fn scattered(room: usize) -> (Vec<Vec<u8>>, usize) {
        let ranges = [(1 << 20) + 65536..(2 << 20) - 4096, 0..0, 0..24576_u64];
        let mut gather = Gather::new(&Arc::new(Buffers::new(room)));
        let mut blocks = Vec::new();
        for (part, range) in ranges.iter().enumerate() {
            for offset in range.clone().step_by(BLOCK).filter(|offset| part > 0 || (offset / 8192) % 5 > 0) {
                let length = BLOCK.min(usize::try_from(range.end - offset).unwrap());
                gather.expect(part, offset, length);
                blocks.push((part, offset, length));
            }
        }
        let mut files = vec![vec![0; 2 << 20], Vec::new(), vec![0; 24576]];
        let mut writes = 0;
        for n in (0..7).flat_map(|first| (first..blocks.len()).step_by(7)) {
            let (part, offset, length) = blocks[n];
            let content = vec![u8::try_from(n % 255).unwrap() + 1; length];
            let written = gather.take(part, offset, &content, |offset, bytes| {
                writes += 1;
                let start = usize::try_from(offset).unwrap();
                let room = &mut files[part][start..start + bytes.len()];
                assert!(room.iter().all(|byte| *byte == 0), "written once");
                room.copy_from_slice(bytes);
                Ok::<_, Infallible>(())
            });
            let Ok(()) = written;
        }
        assert!(gather.is_complete());
        for (n, (part, offset, length)) in blocks.into_iter().enumerate() {
            let start = usize::try_from(offset).unwrap();
            let content = &mut files[part][start..start + length];
            assert!(content.iter().all(|byte| usize::from(*byte) == n % 255 + 1), "block {n}");
            content.fill(0);
        }
        (files, writes)
    }

    #[test]
    fn pieces_are_put_together_while_there_is_room() {
        let (files, together) = scattered(1 << 20);
        assert!(files.iter().flatten().all(|byte| *byte == 0), "nothing else is written");
        let (files, partly) = scattered(CHUNK);
        assert!(files.iter().flatten().all(|byte| *byte == 0));
        let (files, alone) = scattered(0);
        assert!(files.iter().flatten().all(|byte| *byte == 0));
        // One for each run of four blocks that stays in one chunk.
        assert!(together < 35 && together < partly && partly < alone, "{together} {partly} {alone}");
    }

    #[test]
    fn what_is_long_or_a_whole_file_is_written_as_it_comes() {
        let mut gather = Gather::new(&Arc::new(Buffers::new(1 << 20)));
        gather.expect(0, 0, CHUNK);
        gather.expect(0, 1 << 17, CHUNK);
        gather.expect(0, 2 << 17, CHUNK);
        gather.expect(1, 0, BLOCK);
        let content = vec![1; 3 << 17];
        let mut writes = Vec::new();
        let mut take = |part, from: usize, length| {
            let taken = gather.take(part, from as u64, &content[from..from + length], |offset, bytes| {
                writes.push((part, offset, bytes.len()));
                Ok::<_, Infallible>(())
            });
            let Ok(()) = taken;
        };
        // Over the border of two chunks, the rest of which comes before and after it.
        take(0, 0, LONG);
        take(0, CHUNK + LONG, LONG / 2);
        take(0, LONG, CHUNK);
        take(0, CHUNK + LONG + LONG / 2, LONG / 2);
        take(0, 2 << 17, CHUNK);
        assert!(!gather.is_complete(), "a file is still to come");
        take(1, 0, BLOCK);
        let (long, chunk) = (LONG as u64, CHUNK as u64);
        assert_eq!(
            writes,
            [(0, 0, LONG), (0, long, CHUNK), (0, chunk + long, LONG), (0, 2 * chunk, CHUNK), (1, 0, BLOCK)]
        );
        assert!(gather.is_complete());
    }
}
