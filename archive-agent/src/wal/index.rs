//! Keeping the WAL index of a repository: after uploads, and for what others stored, now and then.
//!
//! The index may lag behind what is stored, so nothing here delays an acknowledgement, and a crash costs nothing but the
//! next catch-up.

use std::sync::Arc;
use std::time::Duration;

use walpoint_repo::index::IndexWriter;

use super::archiver::Archiver;

/// How often to look for what standbys and pushes without a daemon have stored.
const CATCH_UP: Duration = Duration::from_secs(3600);

/// How often to look which lineage the WAL of a standby shows.
const FOLLOWING: Duration = Duration::from_secs(60);

/// Keeps the index in the repository with that number; `working` is called after every success.
pub(crate) async fn keep(
    archiver: Arc<Archiver>,
    repository: usize,
    working: impl Fn(),
) -> anyhow::Result<()> {
    let Some(target) = archiver.uploader().targets().get(repository) else { return Ok(()) };
    let cluster = archiver.uploader().identity().await?;
    loop {
        let archive = target.archive(&cluster).await?;
        let (lineage, left) = (archive.lineage().id, target.lineages_left());
        let mut writer = IndexWriter::new(archive);
        catch_up(&mut writer).await?;
        // Now, and not when the first segments are waited for.
        if let Some(timeline) = archiver.uploader().timeline().await? {
            writer.remember(timeline).await?;
        }
        working();
        let next = tokio::time::Instant::now() + CATCH_UP;
        loop {
            let noted = tokio::select! {
                noted = target.next_stored() => noted,
                () = tokio::time::sleep_until(next) => break,
                () = tokio::time::sleep(FOLLOWING) => {
                    if let Err(error) = target.look_while_it_follows(&cluster).await {
                        tracing::debug!(repository = target.name(), "could not determine the lineage of \
                            the WAL: {error}");
                    }
                    continue;
                }
            };
            if noted.lineage != lineage || target.lineages_left() != left {
                // The data directory was bound to another one, or the repository is another; catching up finds this segment there.
                break;
            }
            if writer.note(noted.name, noted.entry) {
                let written = writer.write_due().await?;
                tracing::debug!(repository = target.name(), groups = written.groups, "indexed");
                working();
            }
        }
    }
}

/// Indexes all that is stored and not indexed, on every timeline.
async fn catch_up(writer: &mut IndexWriter) -> anyhow::Result<()> {
    for timeline in writer.archive().timelines().await? {
        let written = writer.catch_up(timeline).await?;
        if written != walpoint_repo::index::write::IndexWritten::default() {
            let repository = writer.archive().repository().name();
            tracing::info!(repository, %timeline, groups = written.groups, "index caught up");
        }
    }
    Ok(())
}

/// Indexes what is stored in every repository, once. The files are safe without it, so a failure is only logged.
pub(crate) async fn catch_up_once(archiver: &Archiver) {
    for target in archiver.uploader().targets() {
        let caught_up = async {
            let cluster = archiver.uploader().identity().await?;
            let mut writer = IndexWriter::new(target.archive(&cluster).await?);
            catch_up(&mut writer).await
        };
        if let Err(error) = caught_up.await {
            let told = walpoint_words::format_chain(&error);
            tracing::warn!(repository = target.name(), "the index of WAL was not brought up to date: {told}");
        }
    }
}
