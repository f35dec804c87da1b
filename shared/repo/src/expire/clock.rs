//! How far the store's clock is from this machine's. Ages are judged by the one and grace periods by the other, so nothing
//! may be deleted while they disagree, neither by `expire` nor by `forget`.

use bytes::Bytes;
use futures_util::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use walpoint_base::ClusterName;
use walpoint_plan::retention::CLOCK_LIMIT;
use walpoint_storage::error::Result;
use walpoint_storage::layout::{self, ClusterPaths};
use walpoint_storage::store::Store;

use super::full_disk;

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
    ahead.map_or(Ok(()), |ahead| admit(store, ahead))?;
    Ok(ahead)
}

/// The difference for who deletes by ages without a grace period, or why nothing may be deleted. A filesystem that is too full for an
/// object has its clock looked at in another way.
pub(crate) async fn compare_for_deletion(store: &Store, cluster: &ClusterName) -> Result<SignedDuration> {
    match compare(store).await {
        Ok(ahead) => Ok(ahead.unwrap_or_default()),
        Err(error) if full_disk::is_lacking(&error) => of_full(store, cluster).await,
        Err(error) => Err(error),
    }
}

/// How far the clock of a full filesystem is taken to be ahead: an empty file tells, for which there may be room. Otherwise it is as
/// late there as when the newest object was stored, at least: so nothing is taken to be older than it is.
pub(super) async fn of_full(store: &Store, cluster: &ClusterName) -> Result<SignedDuration> {
    let before = Timestamp::now();
    if let Some(time) = store.filesystem_time().await {
        let between = before + Timestamp::now().duration_since(before) / 2;
        let ahead = time.duration_since(between);
        return admit(store, ahead).map(|()| ahead);
    }
    let mut newest = None;
    let mut listing = store.list(&ClusterPaths::new(cluster).all(), None);
    while let Some(entry) = listing.try_next().await? {
        newest = newest.max(Some(entry.modified));
    }
    let ahead = newest.map_or(SignedDuration::ZERO, |newest| newest.duration_since(Timestamp::now()));
    Ok(ahead.min(SignedDuration::ZERO))
}

/// Says that the clocks are too far apart to reckon with; `None` if they are not.
pub fn clocks_apart(store: &Store, ahead: SignedDuration) -> Option<String> {
    (ahead.abs() > CLOCK_LIMIT).then(|| {
        format!(
            "{} is {} s {} this machine's clock: more than 5 minutes apart",
            store.name(),
            ahead.as_secs().abs(),
            if ahead.is_negative() { "behind" } else { "ahead of" },
        )
    })
}

fn admit(store: &Store, ahead: SignedDuration) -> Result<()> {
    let Some(apart) = clocks_apart(store, ahead) else { return Ok(()) };
    Err(super::refuse(format!(
        "{apart}\nDETAIL: The age of objects is unknown, so nothing is deleted.\nHINT: Set the clocks right (NTP) and run it again."
    )))
}
