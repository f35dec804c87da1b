//! How many readers a backup has and how much may be on its way to the repositories, so that its buffers stay within one limit,
//! whatever the size of the cluster.

use walpoint_repo::backup::{PackLimits, WriteOptions};

use super::run::Run;
use super::source::local::reader::BUFFER;

/// Memory for buffers, whatever the size of the cluster: readers, their lanes, and packs on their way.
const MEMORY: u64 = 72 << 20;
/// What one lane holds.
const LANE: u64 = 5 << 19;
/// What zstd's tables for a frame take beside that at the highest level; levels up to [`LIGHT`] take nearly nothing.
const TABLES: u64 = 5 << 20;
const LIGHT: i32 = 4;
/// Readers, unless the configuration asks for more: beyond that the store is the limit.
const MAX_READERS: usize = 8;
/// Packs on their way have at least this much memory, however many readers there are.
const LEAST_IN_FLIGHT: u64 = 16 << 20;

impl Run<'_> {
    fn lane(&self) -> u64 {
        if self.selection.settings.compression_level > LIGHT { LANE + TABLES } else { LANE }
    }

    /// As many as the configuration asks for, but no more than memory allows.
    pub(in crate::backup) fn readers(&self, copies: usize) -> usize {
        let copies = u64::try_from(copies).unwrap_or(1);
        let settings = &self.selection.settings;
        let wanted =
            settings.workers.map_or_else(|| settings.workers().min(MAX_READERS), |_| settings.workers());
        let buffer = u64::try_from(BUFFER).unwrap_or(0);
        let room = MEMORY.saturating_sub(LEAST_IN_FLIGHT) / (self.lane() * copies.max(1) + buffer);
        wanted.min(usize::try_from(room).unwrap_or(usize::MAX)).max(1)
    }

    pub(in crate::backup) fn options(&self, copies: usize) -> WriteOptions {
        let readers = self.readers(copies);
        let copies = u64::try_from(copies).unwrap_or(1).max(1);
        let readers = u64::try_from(readers).unwrap_or(1);
        let buffer = u64::try_from(BUFFER).unwrap_or(0);
        let left = MEMORY.saturating_sub(readers * (self.lane() * copies + buffer)).max(LEAST_IN_FLIGHT);
        let default = PackLimits::default();
        let in_flight = (left / copies).min(default.in_flight);
        let packs = PackLimits { pack: default.pack.min(in_flight / 2), in_flight };
        WriteOptions { packs, ..WriteOptions::default() }
    }
}
