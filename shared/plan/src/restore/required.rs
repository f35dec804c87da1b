//! Settings that recovery under a plan needs: PostgreSQL compares five of its own with those of the server that wrote the WAL, and a
//! server that takes connections while it recovers goes no further where its own are lower (`CheckRequiredParameterValues` in
//! xlogrecovery.c). A backup has the settings of its time; a record in the WAL says what they were changed to.

use walpoint_base::{Lsn, SegmentName};

/// Looks for such records, fed with consecutive segments in LSN order, beginning anywhere.
pub trait RequiredSearch: Send {
    /// Where the records that end in the next whole segment start, and what they require. The error says what is wrong with its content.
    fn feed(&mut self, name: SegmentName, content: &[u8]) -> Result<Vec<(Lsn, RequiredSettings)>, String>;
}

/// What the settings have to be at least.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RequiredSettings {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

impl RequiredSettings {
    /// What satisfies both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            max_connections: self.max_connections.max(other.max_connections),
            max_worker_processes: self.max_worker_processes.max(other.max_worker_processes),
            max_wal_senders: self.max_wal_senders.max(other.max_wal_senders),
            max_prepared_transactions: self.max_prepared_transactions.max(other.max_prepared_transactions),
            max_locks_per_transaction: self.max_locks_per_transaction.max(other.max_locks_per_transaction),
        }
    }

    /// Each setting with its value and PostgreSQL's default.
    pub fn all(&self) -> [(&'static str, u32, u32); 5] {
        [
            ("max_connections", self.max_connections, 100),
            ("max_worker_processes", self.max_worker_processes, 8),
            ("max_wal_senders", self.max_wal_senders, 10),
            ("max_prepared_transactions", self.max_prepared_transactions, 0),
            ("max_locks_per_transaction", self.max_locks_per_transaction, 64),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_the_higher_values_count() {
        let one = RequiredSettings { max_connections: 60, max_wal_senders: 3, ..Default::default() };
        let other = RequiredSettings { max_connections: 20, max_wal_senders: 5, ..Default::default() };
        let both = one.and(other);
        assert_eq!((both.max_connections, both.max_wal_senders), (60, 5));
        assert_eq!(both, other.and(one));
        assert_eq!(both.all()[0], ("max_connections", 60, 100));
    }
}
