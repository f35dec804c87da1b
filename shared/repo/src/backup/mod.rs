//! Base backups: page-granular, always complete, in packs that later backups share (`FORMAT.md`, chapter "Base backup").
//!
//! | module | owns |
//! |---|---|
//! | `catalog` | [`Backups`]: which there are, and the way to each |
//! | `write` | [`BackupWriter`], [`PackStream`], [`Draft`]: from the intent to the manifest |
//! | `parent` | what a new backup builds on: blocks, leaves and index blocks of earlier ones |
//! | `read` | [`BackupReader`], [`Windows`]: entries, and content in the order of packs |
//! | `path`, `entry`, `blocks` | a file's name, what it is, where its blocks are |
//! | `frame`, `pack`, `index_block` | what the frames of a pack hold |
//! | `manifest`, `facts`, `pack_table`, `findings` | the root, and what it says |
//! | `ending`, `progress` | intent, tombstone, and what an unfinished backup left |
//! | `announcements` | what must not be built on any more |
//! | `geometry`, `hash`, `location`, `live`, `wire`, `json` | the pieces of all these |
//!
//! What always holds: a backup exists when its manifest does; that is created once, last, after every pack it names was
//! found with its size. What is read was checked: frames by their tag or CRC, blocks by the hash that the manifest leads
//! to, paths so that none leaves its root or lies below a link. Memory is bounded by what the caller chooses
//! ([`PackLimits`], [`WindowLimits`]), not by the cluster. A crash leaves an intent and packs that no manifest names.
//!
//! # Writing
//!
//! One [`PackStream`] for each thread that reads files; all they do is computing and blocking, so they live on blocking threads.
//!
//! ```no_run
//! # use walpoint_repo::backup::*;
//! # async fn example(
//! #     backups: Backups, intent: Intent, facts: BackupFacts, attributes: Attributes, next_page_run: fn() -> Option<Vec<u8>>,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let size = BlockSize::new(8192).ok_or("no block size")?; // from pg_control
//! let writer = backups.begin(intent, size, &WriteOptions::default()).await?;
//! let mut stream = writer.stream(); // one for each thread
//! let thread = tokio::task::spawn_blocking(move || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//!     stream.directory(TablePath::data("")?, attributes)?; // every parent, in any order
//!     stream.directory(TablePath::data("base")?, attributes)?;
//!     let mut file = stream.file(TablePath::data("base/1259")?);
//!     while let Some(bytes) = next_page_run() {
//!         file.write(&bytes)?; // or file.zeros(len) for a hole
//!     }
//!     file.bad_page(7, PageFault::Checksum { stored: 1, computed: 2 });
//!     file.finish(attributes)?; // dropped instead: the file is not in the backup
//!     stream.finish()?;
//!     Ok(())
//! });
//! if writer.progress_is_due() {
//!     writer.note_progress().await?; // meanwhile, again and again
//! }
//! thread.await?.map_err(|e| e as Box<dyn std::error::Error>)?;
//! // pg_backup_stop, which completes the facts; then:
//! let draft = writer.finish(facts).await?;
//! let (first, last) = draft.needs_wal()?;
//! // wait until the lineage has every segment from the first to the last; then:
//! let summary = draft.publish(WalStored { first, last }).await?;
//! # Ok(()) }
//! ```
//!
//! # Reading
//!
//! A [`ReadWindow`] is a range of the file table; its units say what to read, pack by pack. Fetch some units at a time, by
//! [`PackUnit::fetch_bytes`], and scatter each on a blocking thread.
//!
//! ```no_run
//! # use walpoint_repo::backup::*;
//! # async fn example(backups: Backups, id: walpoint_base::BackupId) -> walpoint_repo::Result<()> {
//! # fn create(_: &Entry) {}
//! # fn complete(_: &Entry) {}
//! # fn write_at(_: &Entry, _: u64, _: &[u8]) -> walpoint_repo::Result<()> { Ok(()) }
//! let reader = backups.open(id).await?;
//! let mut windows = reader.windows(WindowLimits::default());
//! while let Some(window) = windows.next().await? {
//!     for part in window.parts().iter().filter(|part| part.begins) {
//!         create(&part.entry); // a directory before what is in it; a file with its whole length, all hole
//!     }
//!     for unit in window.units() {
//!         let fetched = reader.fetch(&unit).await?;
//!         reader.scatter(&unit, &fetched, |piece| {
//!             // Checked. Blocks of zeros are never delivered: they are the hole.
//!             write_at(&window.parts()[piece.part].entry, piece.offset, piece.bytes)
//!         })?;
//!     }
//!     for part in window.parts().iter().filter(|part| part.ends) {
//!         complete(&part.entry); // sync; or read again with reader.content_hasher()
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! Over files that are there already, [`ReadWindow::units_of`] asks which blocks are wanted ([`Hashing::block`] tells which are
//! right), and [`ReadWindow::zero_runs`] says where zeros belong.

mod announcements;
mod blocks;
mod catalog;
mod ending;
mod entry;
mod facts;
mod findings;
#[cfg(any(test, feature = "conformance"))]
pub mod fixtures;
mod frame;
mod geometry;
mod hash;
mod index_block;
mod json;
mod live;
mod location;
mod manifest;
mod pack;
mod pack_table;
mod parent;
mod path;
mod progress;
mod read;
mod sorter;
mod summaries;
mod wire;
mod write;

pub(crate) use self::announcements::list_announcements;
pub use self::announcements::{
    AnnouncedPacks, AnnouncedRequest, AnnouncedSet, AnnouncedWal, Announcement, AnnouncementReason,
    Announcements, DamagedAnnouncement, FoundDamage, NumberedAnnouncement, backups_to_delete,
};
pub use self::blocks::{BlockList, BlockLocation, BlockRun};
pub use self::catalog::{BackupStage, Backups, ListedBackup, ListedState, ManifestState};
pub(crate) use self::catalog::{Unread, list_names};
pub use self::ending::{Intent, Tombstone};
pub use self::entry::{Attributes, Blocks, EntryContent, FileContent, FileEntry, LeafRun, NodeRef};
pub use self::facts::{
    BackupDescription, BackupKind, BackupSummary, BackupTablespace, Method, OwnerName, Totals,
};
pub use self::findings::{MAX_FINDINGS, PageFault, PageFinding};
pub use self::frame::{DataFrame, FRAME_BYTES};
pub use self::geometry::{BlockSize, INLINE_BLOCKS, LEAF_BLOCKS, MAX_FILE};
pub use self::hash::{ContentHasher, FileBeginning, FileHasher, Hashing};
pub use self::json::HexBytes;
pub use self::location::{BackupRef, BlockRef, FrameRef, PackNo};
pub use self::manifest::{IndexBlockRef, Manifest};
pub use self::pack::{FrameKind, PACK_BYTES, PackDirectory, PackFrame};
pub use self::pack_table::{PackTable, PackUse};
pub use self::parent::ReusableBackups;
pub use self::path::{MAX_PATH, RelativePath, Root, TablePath, TreeCheck};
pub use self::progress::{BlockRange, ProgressObject};
pub use self::read::{
    BackupReader, Entries, FetchedUnit, FilePiece, OpenUnit, Outline, PackUnit, ReadWindow, WindowLimits,
    WindowPart, Windows, ZeroRun,
};
pub(crate) use self::summaries::ENOUGH;
pub use self::wire::Malformed;
pub use self::write::{
    BackupWriter, Draft, FileSummary, FileWriter, PackLimits, PackStream, WalStored, WriteOptions,
};

#[cfg(test)]
pub(crate) mod tests;
