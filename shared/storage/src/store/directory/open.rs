//! Opening a directory.

use std::path::Path;
use std::time::Duration;

use super::Local;
use crate::store::failure::Failure;
use crate::store::limits::Limits;

/// Waits no longer than that: a directory whose file server does not answer hangs.
pub(in crate::store) async fn open(path: &Path, timeout: Duration) -> Result<Local, Failure> {
    Limits::within(timeout, Local::open(path)).await
}
