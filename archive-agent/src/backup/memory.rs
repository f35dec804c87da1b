//! How many readers a backup has and how much may be on its way to the repositories, so that its buffers stay within one limit,
//! whatever the size of the cluster.

use walpoint_repo::backup::{PackLimits, WriteOptions};
use walpoint_runtime::config::ClusterSettings;

/// Bytes that one reader reads at a time: whole pages, and long enough that the disk reads ahead.
pub(crate) const BUFFER: usize = 1 << 20;

/// Memory for buffers, whatever the size of the cluster: readers, their pack streams, and packs on their way.
const MEMORY: u64 = 72 << 20;
/// What one pack stream holds.
const STREAM: u64 = 5 << 19;
/// What zstd's tables for a frame take beside that at the highest level; levels up to [`LIGHT`] take nearly nothing.
const TABLES: u64 = 5 << 20;
const LIGHT: i32 = 4;
/// Readers, unless the configuration asks for more: beyond that the store is the limit.
const MAX_READERS: usize = 8;
/// Packs on their way have at least this much memory, however many readers there are.
const LEAST_IN_FLIGHT: u64 = 16 << 20;

/// What a backup's threads and packs may take. Together they stay within [`MEMORY`], unless one reader and
/// [`LEAST_IN_FLIGHT`] are more than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryBudget {
    /// Threads that read or store files.
    pub(crate) readers: usize,
    /// Bytes of packs on their way to all replicas.
    in_flight: u64,
    replicas: u64,
}

impl MemoryBudget {
    /// As many readers as the configuration asks for, but no more than memory allows; packs get what these leave.
    pub(crate) fn of(settings: &ClusterSettings, replicas: usize) -> Self {
        let replicas = u64::try_from(replicas).unwrap_or(1).max(1);
        let stream = if settings.compression_level > LIGHT { STREAM + TABLES } else { STREAM };
        let reader = stream * replicas + u64::try_from(BUFFER).unwrap_or(0);
        let wanted =
            settings.workers.map_or_else(|| settings.workers().min(MAX_READERS), |_| settings.workers());
        let most = usize::try_from(MEMORY.saturating_sub(LEAST_IN_FLIGHT) / reader).unwrap_or(usize::MAX);
        let readers = wanted.min(most).max(1);
        let taken = reader * u64::try_from(readers).unwrap_or(1);
        Self { readers, in_flight: MEMORY.saturating_sub(taken).max(LEAST_IN_FLIGHT), replicas }
    }

    /// How one replica is written.
    pub(crate) fn options(&self) -> WriteOptions {
        let default = PackLimits::default();
        let in_flight = (self.in_flight / self.replicas).min(default.in_flight);
        let packs = PackLimits { pack: default.pack.min(in_flight / 2), in_flight };
        WriteOptions { packs, ..WriteOptions::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_and_packs_stay_within_the_limit() {
        for (workers, level) in [(None, 3), (Some(1), 19), (Some(64), 3), (Some(64), 19)] {
            let settings = ClusterSettings {
                workers,
                compression_level: level,
                ..ClusterSettings::with_repositories(Vec::new())
            };
            for replicas in 1..=4u64 {
                let budget = MemoryBudget::of(&settings, usize::try_from(replicas).unwrap());
                let stream = if level > LIGHT { STREAM + TABLES } else { STREAM };
                let readers = u64::try_from(budget.readers).unwrap();
                let taken = readers * (stream * replicas + u64::try_from(BUFFER).unwrap());
                let packs = budget.options().packs;
                assert!(readers >= 1 && packs.pack * 2 <= packs.in_flight, "{budget:?}");
                assert!(taken + packs.in_flight * replicas <= MEMORY, "{budget:?} for {replicas} replicas");
            }
        }
    }
}
