//! PostgreSQL's formats and protocol: WAL, pg_control, page checksums, connections.

pub mod base_backup;
pub mod connect;
pub mod server;

mod bytes;
pub mod checksum;
pub mod control;
pub mod files;
pub mod label;
pub mod synchronous;
pub mod wal;
pub mod wal_stream;
