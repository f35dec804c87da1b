//! Memory for what is read, used again and again: for the kernel, giving out a new page costs more than copying into it.

use std::sync::{Arc, Mutex, PoisonError};

/// Shorter ones are not worth keeping: the allocator does that.
const SHORT: usize = 64 << 10;

/// Buffers that are free. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Buffers(Arc<Free>);

#[derive(Debug)]
struct Free {
    /// The most bytes that are kept.
    limit: usize,
    buffers: Mutex<Vec<Vec<u8>>>,
}

/// A buffer, which is free again when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) bytes: Vec<u8>,
    home: Buffers,
}

impl Buffers {
    /// Keeps at most so many bytes that nobody uses.
    pub(super) fn new(limit: usize) -> Self {
        Self(Arc::new(Free { limit, buffers: Mutex::default() }))
    }

    /// An empty buffer with room for so many bytes.
    pub(super) fn take(&self, room: usize) -> Buffer {
        let mut free = self.0.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = (0..free.len()).filter_map(|n| Some((free.get(n)?.capacity(), n)));
        // Not much more than is needed: who asks reckons with what it asked for.
        let smallest =
            fits.filter(|(capacity, _)| room >= SHORT && (room..=room * 2).contains(capacity)).min();
        let bytes = match smallest {
            Some((_, n)) => free.swap_remove(n),
            None if room < SHORT || self.0.limit == 0 => Vec::with_capacity(room),
            None => Vec::with_capacity(room.next_power_of_two()),
        };
        Buffer { bytes, home: self.clone() }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        let Free { limit, buffers } = &*self.home.0;
        let mut free = buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = free.iter().map(Vec::capacity).sum();
        if bytes.capacity() >= SHORT && kept + bytes.capacity() <= *limit {
            bytes.clear();
            free.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_up_to_a_limit() {
        let buffers = Buffers::new(5 << 20);
        let free = || {
            let free = buffers.0.buffers.lock().unwrap();
            let mut free: Vec<usize> = free.iter().map(Vec::capacity).collect();
            free.sort_unstable();
            free
        };
        let (large, small) = (buffers.take(3 << 20), buffers.take(100 << 10));
        drop((large, small, buffers.take(100)));
        assert_eq!(free(), [128 << 10, 4 << 20]);
        let mut again = buffers.take(70 << 10);
        again.bytes.extend_from_slice(b"something");
        assert_eq!((again.bytes.capacity(), free()), (128 << 10, vec![4 << 20]), "the smallest that fits");
        let bytes = bytes::Bytes::from_owner(again);
        let part = bytes.slice(4..);
        drop(bytes);
        assert_eq!((&part[..], free()), (&b"thing"[..], vec![4 << 20]), "it is in use");
        drop(part);
        assert_eq!(free(), [128 << 10, 4 << 20]);
        drop([buffers.take(4 << 20), buffers.take(4 << 20)]);
        assert_eq!(free(), [128 << 10, 4 << 20], "no more than the limit");
        assert!(buffers.take(128 << 10).bytes.is_empty());
    }
}
