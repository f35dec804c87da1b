//! Who a server is, and what it writes, as `pg_control` in its data directory says.

use std::path::Path;
use std::time::Duration;

use walpoint_base::TimelineId;
use walpoint_pg::control::{ClusterState, ControlFile};

use super::known::Incarnation;
use super::upload::UploadError;

/// Reads `pg_control`. PostgreSQL writes the file while it runs, so a torn read is tried again. Blocks.
pub(crate) fn read_control(pgdata: &Path) -> Result<ControlFile, UploadError> {
    let path = pgdata.join("global/pg_control");
    let mut tries = 0;
    loop {
        let bytes = std::fs::read(&path).map_err(|error| UploadError {
            text: format!(
                "{} cannot be read: {error}\nHINT: Check that pgdata in the configuration is the data directory of this \
                 server.",
                path.display()
            ),
            permanent: true,
        })?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok(control),
            Err(error) if tries == 5 => {
                return Err(UploadError::permanent(format!("{}: {error}", path.display())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
        tries += 1;
    }
}

/// The timeline that a server writes on: `None` of a standby, or while it recovers.
pub(super) fn written(control: &ControlFile) -> Option<TimelineId> {
    control.newest_timeline().filter(|_| control.state == ClusterState::InProduction)
}

/// Whether a server writes a timeline, or did last and is stopped or recovers from a crash. Blocks.
pub(crate) fn writes(pgdata: &Path, control: &ControlFile, timeline: TimelineId) -> bool {
    control.newest_timeline() == Some(timeline) && !recovers(pgdata, control)
}

/// Whether a server is a standby, recovers from an archive, or will when it is started. Blocks.
pub(crate) fn recovers(pgdata: &Path, control: &ControlFile) -> bool {
    let asked = |name: &str| pgdata.join(name).exists();
    matches!(control.state, ClusterState::InArchiveRecovery | ClusterState::ShutDownInRecovery)
        || asked("standby.signal")
        || asked("recovery.signal")
}

/// Whether a server answers for what lies in its `pg_wal` of a timeline: it writes on it or did last, also when it is stopped; or it
/// is a standby or recovers from an archive, and received it. Of what is older, it need not have stored what came before. Blocks.
pub(super) fn answers_for(pgdata: &Path, control: &ControlFile, timeline: TimelineId) -> bool {
    recovers(pgdata, control) || control.newest_timeline() == Some(timeline)
}

/// What a data directory is at a moment: which server wrote its WAL can be another one at the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServerMoment {
    pub(super) incarnation: Incarnation,
    /// The timeline that it writes on, if it does.
    pub(super) written: Option<TimelineId>,
    /// The newest one that it has reached.
    pub(super) newest: TimelineId,
}

impl ServerMoment {
    /// Of a data directory, now, where a file of timeline `at_least` is. Blocks.
    pub(crate) fn of(pgdata: &Path, at_least: TimelineId) -> Result<Self, UploadError> {
        let control = read_control(pgdata)?;
        Ok(Self {
            incarnation: Incarnation::of(pgdata),
            written: written(&control),
            newest: control.newest_timeline().map_or(at_least, |newest| newest.max(at_least)),
        })
    }

    /// Whether what was found at `before` still holds.
    pub(super) fn is_as(&self, before: &Self) -> bool {
        Self { newest: before.newest, ..*self } == *before && self.newest <= before.newest
    }
}
