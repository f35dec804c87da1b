//! WAL as PostgreSQL writes it, read by us and by `pg_waldump` of the same version: the same records, times, xids, restore
//! points and ends (A3, A10). 13's package has no `pg_waldump`; there the running server is asked instead. And where real
//! recoveries stop (R1).

use std::fs;
use std::path::{Path, PathBuf};

use walpoint_base::SegmentName;
use walpoint_pg::wal::{RecordReader, WalRecord};
use walpoint_tests::waldata::WalData;

mod agreement;
mod ended;
mod recovery;
mod server;
mod waldump;

fn name_of(path: &Path) -> SegmentName {
    path.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

fn read(segments: &[PathBuf]) -> Vec<WalRecord> {
    let mut reader = RecordReader::new();
    let mut records = Vec::new();
    for path in segments {
        let content = fs::read(path).unwrap();
        let segment = reader.segment(name_of(path), &content).unwrap();
        records.extend(segment.map(|record| record.unwrap()));
    }
    records
}

fn on_timeline(wal: &WalData, timeline: u32) -> Vec<PathBuf> {
    wal.segments().into_iter().filter(|path| name_of(path).timeline.get() == timeline).collect()
}
