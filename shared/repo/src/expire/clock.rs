//! How far the store's clock is from this machine's. Ages are judged by the one and grace periods by the other, so nothing
//! may be deleted while they disagree.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use walpoint_plan::retention::CLOCK_LIMIT;
use walpoint_storage::error::Result;
use walpoint_storage::layout;
use walpoint_storage::store::Store;

/// How far the store's clock is ahead, to about a second: an object is created, looked at and deleted. `None` where the
/// object cannot be seen.
pub async fn clock_ahead(store: &Store) -> Result<Option<SignedDuration>> {
    let key = layout::probe(rand::random());
    let before = Timestamp::now();
    store.create_blindly(&key, Bytes::from_static(b"walpoint clock")).await?;
    let after = Timestamp::now();
    let seen = store.head(&key).await;
    // Where objects are locked it stays: a few bytes that no program reads.
    let deleted = store.delete(&key).await;
    if let Err(error) = deleted
        && error.is_transient()
    {
        return Err(error);
    }
    let between = before + after.duration_since(before) / 2;
    Ok(seen?.map(|meta| meta.modified.duration_since(between)))
}

/// The difference, or why nothing may be deleted.
pub(super) async fn compare(store: &Store) -> Result<Option<SignedDuration>> {
    let ahead = clock_ahead(store).await?;
    match ahead {
        Some(ahead) if ahead.abs() > CLOCK_LIMIT => Err(super::refuse(format!(
            "{} is {} s {} this machine's clock: more than 5 minutes apart\nDETAIL: The age of objects is unknown, so nothing \
             is deleted.\nHINT: Set the clocks right (NTP) and run it again.",
            store.name(),
            ahead.as_secs().abs(),
            if ahead.is_negative() { "behind" } else { "ahead of" },
        ))),
        ahead => Ok(ahead),
    }
}
