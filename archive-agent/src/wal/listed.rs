//! Which of many segments an archive lists: a request for each thousand instead of one for each.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use walpoint_base::{SegmentName, WalFileName};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;
use walpoint_storage::layout::WalEntry;

/// Those of these segments, ordered by timeline and position, that are in no listing of the archive. What it inherits from another lineage
/// is in none.
pub(super) async fn not_listed(
    archive: &WalArchive,
    names: &[SegmentName],
) -> Result<Vec<SegmentName>, RepoError> {
    let mut missing = Vec::new();
    for of_timeline in names.chunk_by(|a, b| a.timeline == b.timeline) {
        let Some(first) = of_timeline.first() else { continue };
        let mut here = BTreeSet::new();
        let mut listed = archive.list(first.timeline, Some(*first));
        while let Some((entry, _)) = listed.try_next().await? {
            if let WalEntry::File(WalFileName::Segment(name)) = entry {
                here.insert(name);
            }
        }
        missing.extend(of_timeline.iter().filter(|name| !here.contains(name)));
    }
    Ok(missing)
}
