//! What the processor could do: decoding, hashing and compressing the same WAL in memory, on all cores, at zstd's own level
//! 1. Archiving cannot be much faster than this.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use walpoint_base::SegmentName;
use walpoint_pg::wal::inspect;

use crate::{machine, processes};

/// A frame's length.
const FRAME: usize = 1 << 20;

/// What was reached.
#[derive(Debug, Clone, Copy)]
pub struct Reference {
    /// Million plain bytes a second, on all cores together.
    pub rate: f64,
    /// CPU seconds for a thousand million plain bytes.
    pub cpu_per_gb: f64,
    /// Compressed bytes of all segments.
    pub compressed: u64,
}

/// Segments in memory.
#[derive(Debug)]
pub struct InMemory {
    segments: Vec<(SegmentName, Vec<u8>)>,
}

impl InMemory {
    /// Reads them.
    pub fn read(pg_wal: &Path, names: &[String]) -> InMemory {
        let read = |name: &String| {
            let content = std::fs::read(pg_wal.join(name)).expect("read a segment");
            (name.parse().expect("a segment's name"), content)
        };
        InMemory { segments: names.iter().map(read).collect() }
    }

    /// Decodes, hashes and compresses them all once.
    pub fn measure(&self) -> Reference {
        let (next, begun, cpu) = (AtomicUsize::new(0), Instant::now(), processes::own_cpu());
        let compressed = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..machine::cores()).map(|_| scope.spawn(|| self.work(&next))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread")).sum()
        });
        let bytes: usize = self.segments.iter().map(|(_, content)| content.len()).sum();
        let seconds = begun.elapsed().as_secs_f64();
        Reference {
            rate: bytes as f64 / 1e6 / seconds,
            cpu_per_gb: (processes::own_cpu() - cpu) / (bytes as f64 / 1e9),
            compressed,
        }
    }

    fn work(&self, next: &AtomicUsize) -> u64 {
        let mut compressor = zstd::bulk::Compressor::new(1).expect("a compressor");
        let mut packed = vec![0; zstd::zstd_safe::compress_bound(FRAME)];
        let mut compressed = 0;
        while let Some((name, content)) = self.segments.get(next.fetch_add(1, Ordering::Relaxed)) {
            inspect(*name, content).expect("sound WAL");
            std::hint::black_box(blake3::hash(content));
            for frame in content.chunks(FRAME) {
                compressed += compressor.compress_to_buffer(frame, &mut packed).expect("compress") as u64;
            }
        }
        compressed
    }
}
