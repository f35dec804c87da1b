//! Named restore points: an object each, so that a name is found without reading any WAL.

use futures_util::TryStreamExt;
use walpoint_base::facts::RestorePoint;
use walpoint_base::{Lsn, PgTimestamp, TimelineId};

use super::{Inherited, WalArchive};
use crate::error::{RepoError, Result, found};
use crate::layout::{Key, Prefix};
use crate::object::bytes::Fields;
use crate::object::{ObjectKind, ObjectReader, ObjectWriter};
use crate::store::Creation;

/// PostgreSQL's limit for a name (`MAXFNAMELEN`), without the terminating zero.
const MAX_NAME: usize = 63;

/// Where a restore point is, from its key alone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PointRef {
    /// Its name.
    pub name: String,
    /// The timeline in the name of its segment: the one it was made on, or one that took its bytes over.
    pub timeline: TimelineId,
    /// Where its record starts.
    pub lsn: Lsn,
}

impl WalArchive {
    /// Stores a restore point. Names that no recovery target can ask for are left out: empty or over-long ones.
    pub async fn put_point(&self, timeline: TimelineId, point: &RestorePoint) -> Result<()> {
        if point.name.is_empty() || point.name.len() > MAX_NAME {
            return Ok(());
        }
        let key = self.paths().point(&point.name, timeline, point.lsn);
        let mut bytes = Vec::with_capacity(24 + point.name.len());
        bytes.extend_from_slice(&point.time.0.to_le_bytes());
        bytes.extend_from_slice(&point.lsn.0.to_le_bytes());
        bytes.extend_from_slice(&point.end.0.to_le_bytes());
        bytes.extend_from_slice(point.name.as_bytes());
        let sealed =
            ObjectWriter::new(self.sealer(), ObjectKind::RestorePoint, &key).and_then(|mut writer| {
                writer.frame(&bytes)?;
                writer.finish()
            });
        let sealed = sealed.map_err(|e| RepoError::Internal(format!("{key} could not be sealed: {e}")))?;
        match self.store().create_once(&sealed).await? {
            Creation::New | Creation::Same => Ok(()),
        }
    }

    /// Every restore point of that name, on all timelines, by position.
    pub async fn points_named(&self, name: &str) -> Result<Vec<PointRef>> {
        let own = self.list_points(&self.paths().points_named(name)).await?;
        let Some(inherited) = self.inherited() else { return Ok(own) };
        Ok(inherited.add_points(own, Box::pin(inherited.archive().points_named(name)).await?))
    }

    /// Every restore point, by name.
    pub async fn points(&self) -> Result<Vec<PointRef>> {
        let own = self.list_points(&self.paths().points()).await?;
        let Some(inherited) = self.inherited() else { return Ok(own) };
        Ok(inherited.add_points(own, Box::pin(inherited.archive().points()).await?))
    }

    /// What is stored about a restore point; `None` if there is none.
    pub async fn point(&self, point: &PointRef) -> Result<Option<RestorePoint>> {
        let key = self.paths().point(&point.name, point.timeline, point.lsn);
        let Some(bytes) = found(self.store().get(&key).await)? else {
            return match self.inherited().filter(|inherited| inherited.holds_point(point)) {
                Some(inherited) => Box::pin(inherited.archive().point(point)).await,
                None => Ok(None),
            };
        };
        let reader = ObjectReader::open(self.sealer(), &[ObjectKind::RestorePoint], &key, bytes);
        let mut content = Vec::new();
        reader
            .and_then(|reader| reader.read_all(4096, &mut content))
            .map_err(|error| RepoError::corrupt(&key, error))?;
        parse(&key, &content).map(Some)
    }

    async fn list_points(&self, prefix: &Prefix) -> Result<Vec<PointRef>> {
        let mut points = Vec::new();
        let mut entries = self.store().list(prefix, None);
        while let Some(entry) = entries.try_next().await? {
            let parsed = self.paths().parse_point(&entry.key);
            points.extend(parsed.map(|(name, timeline, lsn)| PointRef { name, timeline, lsn }));
        }
        points.sort_unstable();
        Ok(points)
    }
}

impl Inherited {
    fn holds_point(&self, point: &PointRef) -> bool {
        self.holds_before(point.timeline, Lsn(point.lsn.0.saturating_add(1)))
    }

    /// A lineage's own restore points, and those of its parent from before the fork.
    fn add_points(&self, mut own: Vec<PointRef>, parents: Vec<PointRef>) -> Vec<PointRef> {
        own.extend(parents.into_iter().filter(|point| self.holds_point(point)));
        own.sort_unstable();
        own.dedup();
        own
    }
}

fn parse(key: &Key, content: &[u8]) -> Result<RestorePoint> {
    let mut f = Fields::new(content);
    let mut read = || {
        let (time, lsn, end) = (PgTimestamp(f.i64()?), Lsn(f.u64()?), Lsn(f.u64()?));
        let name = std::str::from_utf8(f.rest()).ok()?.to_owned();
        Some(RestorePoint { name, time, lsn, end })
    };
    read().ok_or_else(|| RepoError::corrupt(key, "it is no restore point"))
}
