//! What knows PostgreSQL's pages and WAL.

use walpoint_base::SegmentName;
use walpoint_pg::checksum::{PageState, verify_page};
use walpoint_pg::files;
use walpoint_pg::wal::{RecordReader, SegmentEnd};
use walpoint_repo::backup::{BackupDescription, Root, TablePath};
use walpoint_repo::verify::{ContentCheck, WalCheck};

/// Pages and records.
#[derive(Debug, Clone, Copy)]
pub(super) struct PgContent;

impl ContentCheck for PgContent {
    /// As the backup did: a page that was written while it ran may be torn, and replay repairs it.
    fn pages(
        &self,
        facts: &BackupDescription,
        path: &TablePath,
        offset: u64,
        bytes: &[u8],
        bad: &mut dyn FnMut(u64, u16, u16),
    ) {
        let relation = (path.root == Root::Data).then(|| files::relation(path.path.as_path())).flatten();
        let (Some(relation), Ok(size)) = (relation, usize::try_from(facts.block_size)) else { return };
        let first = offset / u64::from(facts.block_size.max(1));
        for (page, block) in bytes.chunks_exact(size.max(1)).zip(first..) {
            let number = u32::try_from(block).ok();
            let number = number.and_then(|n| relation.block_in_relation(n, facts.relation_segment_blocks));
            let Some(number) = number else { continue };
            if let PageState::Bad { stored, computed } =
                verify_page(page, number, Some(facts.start_lsn..=facts.stop_lsn))
            {
                bad(block, stored, computed);
            }
        }
    }

    fn wal(&self) -> Box<dyn WalCheck> {
        Box::new(Records(RecordReader::new()))
    }
}

/// Records over consecutive segments.
struct Records(RecordReader);

impl WalCheck for Records {
    fn segment(&mut self, name: SegmentName, content: &[u8]) -> Result<(), String> {
        let mut records = self.0.segment(name, content).map_err(|e| e.to_string())?;
        for record in records.by_ref() {
            record.map_err(|e| e.to_string())?;
        }
        match records.outcome() {
            Some(SegmentEnd::Ended(at)) => Err(format!("its records end at {at}, before its end")),
            _ => Ok(()),
        }
    }
}
