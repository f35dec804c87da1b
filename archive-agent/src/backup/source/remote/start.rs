//! The start of `BASE_BACKUP`, in a session of its own beside the one that looked at the server.

use anyhow::bail;
use walpoint_base::PgTimestamp;
use walpoint_pg::base_backup::{BaseBackup, BaseBackupCommand};
use walpoint_pg::server::{Server, ServerIdentity, ServerTablespace, Walsender};
use walpoint_runtime::progress::ByteProgress;

use super::early::EarlyProof;
use crate::backup::begun::Begun;
use crate::backup::request::BackupRequest;
use crate::backup::source::{BackupOrigin, BackupSource};
use crate::check::remote::{RemoteSource, is_the_server};
use crate::check::repository::Destination;
use crate::check::source;

/// The mode of a data directory that the server does not tell.
const DEFAULT_MODE: u16 = 0o700;

/// A backup in progress that its server sends.
pub(crate) struct RemoteBackup {
    pub(super) begun: Begun,
    pub(super) stream: BaseBackup,
    pub(super) origin: BackupOrigin,
    pub(super) identity: ServerIdentity,
    /// The mode of the data directory.
    pub(super) mode: u16,
    /// The tablespaces of the catalog, all of which have to come.
    pub(super) expected: Vec<ServerTablespace>,
    /// Whether its WAL is the stored one.
    pub(super) early: EarlyProof,
    /// What it had replayed when the backup began.
    pub(super) replayed: Option<PgTimestamp>,
}

impl BackupSource for RemoteSource {
    type Started = RemoteBackup;

    fn destinations(&self) -> &[Destination] {
        &self.destinations
    }

    async fn start(
        self,
        request: &BackupRequest<'_>,
        copies: &[Destination],
    ) -> anyhow::Result<RemoteBackup> {
        let RemoteSource { mut server, identity, destinations, pgdata, .. } = self;
        let mode = server.setting("data_directory_mode").await?;
        let mode = mode.and_then(|mode| u16::from_str_radix(&mode, 8).ok()).unwrap_or(DEFAULT_MODE);
        let waiting = ByteProgress::waiting("waiting for PostgreSQL's checkpoint", request.show_progress);
        let mut walsender = source::walsender(request.settings(), &mut server).await?;
        is_the_server(&mut walsender, &identity).await?;
        let started = server.clock().await?.to_time();
        let map = can_map(&identity, &server.tablespaces().await?);
        let stream = sending(walsender, request, map).await;
        waiting.end();
        let stream = stream?;
        let expected = expected(&mut server, &identity, map).await?;
        let mut early = EarlyProof::new(server.last_checkpoint().await?, copies);
        early.look().await?;
        // A standby's own clock may be behind that of the server whose transactions it holds.
        let replayed = server.replayed_until().await?;
        let start = stream.started();
        let bytes = stream.spaces().iter().map(|space| space.bytes).fold(0, u64::saturating_add);
        let begun = Begun::new(started, start.timeline, start.lsn, identity.block_size, bytes);
        let origin = BackupOrigin::new(server, destinations, pgdata);
        Ok(RemoteBackup { begun, stream, origin, identity, mode, expected, early, replayed })
    }
}

/// Whether the server can send a map of these tablespaces.
fn can_map(identity: &ServerIdentity, tablespaces: &[ServerTablespace]) -> bool {
    let inside = tablespaces.iter().any(|tablespace| tablespace.location.is_relative());
    BaseBackupCommand::can_map(identity.major, inside)
}

/// Waits for the checkpoint with which the server begins to send.
async fn sending(walsender: Walsender, request: &BackupRequest<'_>, map: bool) -> anyhow::Result<BaseBackup> {
    let command = BaseBackupCommand { label: request.server_label(), fast: request.fast, map };
    request.unless_stopped(BaseBackup::start(walsender, &command)).await
}

/// The tablespaces that have to come: what was created before the start is not in the WAL that replay reads.
async fn expected(
    server: &mut Server,
    identity: &ServerIdentity,
    map: bool,
) -> anyhow::Result<Vec<ServerTablespace>> {
    let expected = server.tablespaces().await?;
    if map && !can_map(identity, &expected) {
        bail!(
            "a tablespace inside the data directory was created while the backup began\nHINT: Run the backup again."
        );
    }
    Ok(expected)
}
