//! Opening a directory.

use std::time::Duration;

use super::Local;
use super::settings::DirectorySettings;
use crate::store::failure::Failure;
use crate::store::limits::Limits;

/// Waits no longer than that: a directory whose file server does not answer hangs.
pub(in crate::store) async fn open(
    settings: &DirectorySettings,
    timeout: Duration,
) -> Result<Local, Failure> {
    Limits::within(timeout, Local::open(&settings.path)).await
}
