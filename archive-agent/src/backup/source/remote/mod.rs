//! The other reader: the server sends the cluster (`BASE_BACKUP`), and needs no process beside it.
//!
//! ```text
//! socket -> pump (async) -> unpack (one thread: tar, CRC-32C, manifest) -> store (threads: pages, hashes, zstd) -> packs
//! ```
//!
//! | module | owns |
//! |---|---|
//! | `start` | the way to the first archive |
//! | `sent` | what is sent, and whether it is what was asked for |
//! | `pump` | the socket, and everything that ends the copying early |
//! | `unpack` | the server's archives as files, and the comparison with the server's manifest |
//! | `dispatch` | which thread stores which file |
//! | `early` | whether its WAL is the stored one, found out early |
//! | `store` | one of these threads |
//!
//! What always holds: the same files with the same content as from the other reader. Each queue is bounded, so a slow store
//! slows the server down and memory stays. Nothing counts before the server said that everything was sent, and all of it had
//! the size and the checksum of the server's manifest. A crash leaves an intent and packs; on the server the session's end
//! ends the backup.

mod dispatch;
mod early;
mod pump;
mod sent;
mod start;
mod store;
mod unpack;
