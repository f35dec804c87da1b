//! What the archiver needs of an uploader: one attempt to store one file, and what is known of the repositories that have to
//! acknowledge. Tests put a script in its place, and pause the clock.
//!
//! The rest of what the archiver needs it reads itself: the small files of `archive_status` and `pg_wal`, and tokio's clock.

use std::path::{Path, PathBuf};

use walpoint_base::WalFileName;
use walpoint_base::socket::FileIdentity;
use walpoint_pg::wal::WalIdentity;

use super::{UploadError, Uploader};

/// Stores the WAL of one cluster, one attempt at a time.
pub(crate) trait Upload: Send + Sync + 'static {
    /// [`Uploader::pgdata`].
    fn pgdata(&self) -> &Path;

    /// [`Uploader::wal_directory`].
    fn wal_directory(&self) -> PathBuf;

    /// [`Uploader::epoch`].
    fn epoch(&self) -> u64;

    /// [`Uploader::waits_for`].
    fn waits_for(&self) -> String;

    /// What `pg_wal` has to remember of a file that was stored.
    fn to_remember(&self, name: WalFileName) -> Vec<String>;

    /// [`Uploader::identity`].
    fn identity(&self) -> impl Future<Output = Result<WalIdentity, UploadError>> + Send;

    /// [`Uploader::are_still_there`].
    fn are_still_there(&self, name: WalFileName) -> impl Future<Output = Result<(), UploadError>> + Send;

    /// [`Uploader::look`].
    fn look(&self, name: WalFileName) -> impl Future<Output = Result<FileIdentity, UploadError>> + Send;

    /// [`Uploader::holds_sound`].
    fn holds_sound(&self, name: WalFileName) -> impl Future<Output = bool> + Send;

    /// [`Uploader::upload`].
    fn upload(&self, name: WalFileName) -> impl Future<Output = Result<FileIdentity, UploadError>> + Send;
}

impl Upload for Uploader {
    fn pgdata(&self) -> &Path {
        self.pgdata()
    }

    fn wal_directory(&self) -> PathBuf {
        self.wal_directory()
    }

    fn epoch(&self) -> u64 {
        self.epoch()
    }

    fn waits_for(&self) -> String {
        self.waits_for()
    }

    fn to_remember(&self, name: WalFileName) -> Vec<String> {
        self.to_remember(name)
    }

    fn identity(&self) -> impl Future<Output = Result<WalIdentity, UploadError>> + Send {
        self.identity()
    }

    fn are_still_there(&self, name: WalFileName) -> impl Future<Output = Result<(), UploadError>> + Send {
        self.are_still_there(name)
    }

    fn look(&self, name: WalFileName) -> impl Future<Output = Result<FileIdentity, UploadError>> + Send {
        self.look(name)
    }

    fn holds_sound(&self, name: WalFileName) -> impl Future<Output = bool> + Send {
        self.holds_sound(name)
    }

    fn upload(&self, name: WalFileName) -> impl Future<Output = Result<FileIdentity, UploadError>> + Send {
        self.upload(name)
    }
}
