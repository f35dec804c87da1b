//! The file that is to be stored, as it lies there, and whose it is.

use std::path::PathBuf;

use walpoint_base::socket::FileIdentity;
use walpoint_base::{SegmentSize, TimelineId, WalFileName};
use walpoint_pg::wal::WalIdentity;

use super::{UploadError, Uploader};
use crate::wal::check;
use crate::wal::control::{answers_for, read_control, writes, written};
use crate::wal::disk;
use crate::wal::known::Incarnation;
use crate::wal::prepare::Rules;

/// A file that is to be stored.
#[derive(Debug, Clone)]
pub(crate) struct UploadSource {
    pub(crate) name: WalFileName,
    pub(super) path: PathBuf,
    pub(super) rules: Rules,
    pub(super) cluster: WalIdentity,
    /// As of before it was read.
    pub(super) incarnation: Incarnation,
    /// Whether it lies in the server's `pg_wal`, and whether the server answers for it besides.
    pub(super) in_wal: bool,
    pub(super) answers: bool,
    /// Whether that server writes its timeline.
    pub(super) writes: bool,
    /// The timeline that the server writes, if that is a later one than the file's.
    pub(super) later: Option<TimelineId>,
    /// Whether a person asks that it be stored although it is damaged.
    pub(super) by_hand: bool,
    /// What it has to be, once that is known.
    pub(super) expected: Option<FileIdentity>,
}

impl UploadSource {
    /// The length of its server's segments.
    pub(in crate::wal) fn segment_size(&self) -> SegmentSize {
        self.cluster.segment_size
    }
}

impl Uploader {
    /// A file to be stored, and what is accepted of it: of a segment that this server finished on the timeline that it writes, or
    /// wrote last before it was stopped, as PostgreSQL's status file says, all of it.
    pub(super) async fn source(
        &self,
        name: WalFileName,
        path: PathBuf,
        accept_damaged: bool,
    ) -> Result<UploadSource, UploadError> {
        let (pgdata, wal) = (self.pgdata.clone(), self.wal_directory());
        let looked = disk::run(&self.pgdata, move || {
            let control = read_control(&pgdata)?;
            let incarnation = Incarnation::of(&pgdata);
            let in_wal = path.parent().is_some_and(|parent| {
                parent == wal
                    || matches!((parent.canonicalize(), wal.canonicalize()), (Ok(a), Ok(b)) if a == b)
            });
            let writes = in_wal && writes(&pgdata, &control, name.timeline());
            let finished = || wal.join(format!("archive_status/{name}.ready")).exists();
            let whole_only = matches!(name, WalFileName::Segment(_)) && writes && finished();
            let rules = Rules { accept_damaged, whole_only };
            let answers = in_wal && answers_for(&pgdata, &control, name.timeline());
            let later = control.newest_timeline().filter(|newest| in_wal && *newest > name.timeline());
            Ok(UploadSource {
                name,
                path,
                rules,
                cluster: check::identity(&control),
                incarnation,
                in_wal,
                answers,
                writes,
                later: later.filter(|_| written(&control).is_some()),
                by_hand: false,
                expected: None,
            })
        });
        looked.await.map_err(UploadError::permanent)?
    }
}
