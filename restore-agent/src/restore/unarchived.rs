//! Segments in a data directory's `pg_wal` that no archive has: what a crashed server had written last.
//!
//! A repair removes them from there, so they are kept first ([`kept`](super::kept)). Nothing is changed here.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt};
use walpoint_base::{SegmentName, SegmentSize, SystemId};
use walpoint_pg::wal::{LONG_HEADER, LongHeader};

use crate::plan::Planned;

/// Requests at the same time to find out what the repository has.
const AT_ONCE: usize = 16;

/// Names of the segments that the plan's repository does not have, in order.
pub(super) async fn find(pgdata: &Path, planned: &Planned) -> anyhow::Result<Vec<String>> {
    let wal = pgdata.join("pg_wal");
    let present = present(&wal).with_context(|| wal.display().to_string())?;
    let archive = planned.repository.wal_to_read(&planned.lineage).await?;
    let own = planned.lineage.system_id();
    let missing = futures_util::stream::iter(present).map(|(name, system_id)| {
        let archive = &archive;
        async move {
            // Another cluster's of the same name is not this one.
            let stored = system_id == own && archive.header(name).await?.is_some();
            Ok::<_, anyhow::Error>((!stored).then(|| name.to_string()))
        }
    });
    let found: Vec<Option<String>> = missing.buffered(AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// The segments that were written under their names, each with its cluster. A file that waits to be used again holds an
/// older segment.
fn present(wal: &Path) -> io::Result<Vec<(SegmentName, SystemId)>> {
    let entries = match fs::read_dir(wal) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_str().and_then(|name| name.parse::<SegmentName>().ok());
        let Some(name) = name.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_file())) else {
            continue;
        };
        let mut page = Vec::new();
        File::open(entry.path())?.take(LONG_HEADER as u64).read_to_end(&mut page)?;
        let Some(header) = LongHeader::parse(&page) else { continue };
        let size = SegmentSize::new(u64::from(header.segment_size));
        let start = size.and_then(|size| Some(name.number(size)?.start(size)));
        if start == Some(header.page.address) {
            found.push((name, header.system_id));
        }
    }
    found.sort_unstable();
    Ok(found)
}
