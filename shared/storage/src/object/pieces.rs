//! The bytes of an object that is being made, in pieces of one size that are used again when it is stored: giving out new pages
//! costs the kernel as much as it costs us to hash what comes into them.
//!
//! A piece is a mapping of its own, not a part of the allocator's heap: what is in memory is what objects take, and what is
//! released goes back to the system whatever was allocated beside it.

use std::alloc::{Layout, handle_alloc_error};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use memmap2::MmapMut;

/// Bytes of each piece but the last.
const PIECE: usize = 128 << 10;

/// Shorter ends are copied: a small object does not hold a whole piece.
const SHORT: usize = PIECE / 2;

/// Pieces kept that nobody uses: 16 MiB, four segments of WAL that compress as usual. They are taken before new ones are made,
/// so they never add to the most that was in use.
const KEPT: usize = 128;

static SPARE: Mutex<Vec<MmapMut>> = Mutex::new(Vec::new());

/// What was added so far.
#[derive(Default, Debug)]
pub(super) struct Pieces {
    whole: Vec<Bytes>,
    last: Option<Piece>,
}

/// A piece, spare again when it is dropped.
#[derive(Debug)]
struct Piece {
    /// `None` while it is dropped.
    memory: Option<MmapMut>,
    used: usize,
}

impl Pieces {
    /// Appends a copy.
    pub(super) fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let mut last = self.last.take().unwrap_or_else(Piece::take);
            bytes = last.fill(bytes);
            if last.used < PIECE {
                self.last = Some(last);
            } else {
                self.whole.push(Bytes::from_owner(last));
            }
        }
    }

    /// All that was added, in order.
    pub(super) fn finish(mut self) -> Vec<Bytes> {
        match self.last.take() {
            Some(last) if last.used < SHORT => self.whole.push(Bytes::copy_from_slice(last.as_ref())),
            Some(last) => self.whole.push(Bytes::from_owner(last)),
            None => {}
        }
        self.whole
    }

    /// Gives the pieces that nobody uses back to the system.
    pub(super) fn release_spare() {
        let spare = std::mem::take(&mut *SPARE.lock().unwrap_or_else(PoisonError::into_inner));
        drop(spare);
    }
}

impl Piece {
    /// A spare one, or a new one. Without memory it ends the process, as any allocation does.
    fn take() -> Self {
        let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let new =
            || MmapMut::map_anon(PIECE).unwrap_or_else(|_| handle_alloc_error(Layout::new::<[u8; PIECE]>()));
        Self { memory: Some(spare.unwrap_or_else(new)), used: 0 }
    }

    /// Takes what there is room for; gives what is left.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let room =
            self.memory.as_deref_mut().and_then(|memory| memory.get_mut(self.used..)).unwrap_or_default();
        let (now, later) = bytes.split_at(bytes.len().min(room.len()));
        if let Some(to) = room.get_mut(..now.len()) {
            to.copy_from_slice(now);
        }
        self.used += now.len();
        later
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self.memory.as_deref().and_then(|memory| memory.get(..self.used)).unwrap_or_default()
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < KEPT {
            spare.extend(self.memory.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_comes_back_in_pieces() {
        let content: Vec<u8> = (0..3 * PIECE + 17).map(|n| u8::try_from(n % 251).unwrap()).collect();
        for length in [0, 1, SHORT - 1, SHORT, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 17] {
            for step in [1000, PIECE, 2 * PIECE + 5] {
                let mut pieces = Pieces::default();
                content[..length].chunks(step).for_each(|part| pieces.add(part));
                let pieces = pieces.finish();
                assert!(pieces.concat() == content[..length] && pieces.len() == length.div_ceil(PIECE));
                assert!(pieces.iter().rev().skip(1).all(|piece| piece.len() == PIECE));
            }
        }
    }
}
