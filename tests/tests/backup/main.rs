//! Base backups of real clusters, by both readers: under load, with everything that is odd about a data directory, damaged, interrupted,
//! without WAL (B1, B2, B3, B5, B6, B8). What a backup holds is read back with the library, block by block verified, and
//! started by PostgreSQL.

mod bed;
mod changing;
mod clock;
mod damage;
mod in_place;
mod incremental;
mod interrupted;
mod layout;
mod load;
mod memory;
mod moved;
mod rate;
mod remote;
mod remote_faults;
mod repositories;
mod unseen;
mod upgrade;
mod wal;
mod whose_files;
