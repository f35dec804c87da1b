//! The named restore points that recovery can stop at.

use std::collections::HashMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::facts::PointRef;
use walpoint_base::{Lsn, PgTimestamp, TimelineId};
use walpoint_plan::restore::NamedPoint;
use walpoint_storage::error::{RepoError, Result};

use super::LineageCatalog;
use super::status::TimelineParts;
use crate::wal::{FoundPoints, WalArchive};

/// Restore points of one name whose times are told, the newest ones: each costs a request.
const TOLD: usize = 20;

/// Requests under way at once.
const CONCURRENT: usize = 8;

/// How many are looked into of what costs a request each, the newest ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Newest {
    /// Finished backups that are in no summary object.
    pub backups: usize,
    /// Restore points of each lineage.
    pub restore_points: usize,
}

impl Default for Newest {
    /// As many as are shown to a person.
    fn default() -> Self {
        Self { backups: 20, restore_points: 20 }
    }
}

/// A restore point that can be recovered to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct RestorePointStatus {
    /// Its name, as `recovery_target_name` takes it.
    pub name: String,
    /// The timeline on which it was created.
    pub timeline: TimelineId,
    /// The position at which its record starts.
    pub lsn: Lsn,
    /// When it was created, if that can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<PgTimestamp>,
    /// The number of others in a window of the lineage that have its name: PostgreSQL stops at the first one that it replays.
    #[serde(skip)]
    pub same_name: usize,
}

/// When a restore point was made.
async fn time_of(archive: &WalArchive, point: &PointRef) -> Result<Option<PgTimestamp>> {
    match point.time {
        Some(time) => Ok(Some(time)),
        None => Ok(archive.point(point).await?.map(|stored| stored.time)),
    }
}

impl LineageCatalog {
    /// The restore points of one name by position, with the times of the newest.
    pub(super) async fn points_named(&mut self, name: &str) -> Result<Vec<NamedPoint>> {
        let FoundPoints { mut points, damaged, .. } = self.archive().points_named(name).await?;
        self.damaged_points(damaged.iter().map(ToString::to_string).collect());
        points.sort_by_key(|point| (point.lsn, point.timeline));
        let newest = points.split_off(points.len().saturating_sub(TOLD));
        let archive = self.archive();
        let read: Vec<_> = stream::iter(newest)
            .map(|point| async move {
                let time = match time_of(archive, &point).await {
                    Ok(time) => time,
                    // Its name tells all that recovery needs.
                    Err(RepoError::Corrupt { .. }) => None,
                    Err(error) => return Err(error),
                };
                Ok(NamedPoint { timeline: point.timeline, lsn: point.lsn, time })
            })
            .buffered(CONCURRENT)
            .try_collect()
            .await?;
        let older =
            points.into_iter().map(|PointRef { timeline, lsn, time, .. }| NamedPoint { timeline, lsn, time });
        Ok(older.chain(read).collect())
    }

    /// The newest restore points that lie in a window, oldest first, and how many older ones do.
    pub(super) async fn restore_points(
        &mut self,
        parts: &[TimelineParts],
        newest: usize,
    ) -> Result<(Vec<RestorePointStatus>, usize)> {
        let reachable = |point: &PointRef| {
            let own = parts.iter().filter(|part| part.timeline == point.timeline);
            own.flat_map(|part| &part.windows).any(|w| w.from <= point.lsn && point.lsn < w.until)
        };
        let FoundPoints { mut points, damaged, .. } = self.archive().points().await?;
        damaged.iter().for_each(|problem| self.add_problem(problem.to_string()));
        points.retain(reachable);
        points.sort_by_key(|point| (point.lsn, point.timeline));
        let mut named: HashMap<String, usize> = HashMap::new();
        for point in &points {
            *named.entry(point.name.clone()).or_default() += 1;
        }
        let newest = points.split_off(points.len().saturating_sub(newest));
        let archive = self.archive();
        let read: Vec<_> = stream::iter(newest)
            .map(|point| async move {
                match time_of(archive, &point).await {
                    Ok(made) => Ok((point, Ok(made))),
                    // Its name tells all that recovery needs.
                    Err(error @ RepoError::Corrupt { .. }) => Ok((point, Err(error.to_string()))),
                    Err(error) => Err(error),
                }
            })
            .buffered(CONCURRENT)
            .try_collect()
            .await?;
        let mut told = Vec::with_capacity(read.len());
        for (PointRef { name, timeline, lsn, .. }, time) in read {
            let time = time.unwrap_or_else(|problem| {
                self.add_problem(problem);
                None
            });
            let same_name = named.get(&name).map_or(0, |all| all.saturating_sub(1));
            told.push(RestorePointStatus { name, timeline, lsn, time, same_name });
        }
        Ok((told, points.len()))
    }
}
