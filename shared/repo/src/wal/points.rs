//! Named restore points, beside the WAL, so that a name is found without reading any: an object each, or many of a segment in one.

use std::io;

use crate::cpu;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use walpoint_base::facts::{PointRef, RestorePoint};
use walpoint_base::{Lsn, PgTimestamp, SegmentFacts, SegmentName, TimelineId};
use walpoint_storage::error::{RepoError, Result, found};
use walpoint_storage::layout::{Key, NameHash, Prefix};
use walpoint_storage::object::bytes::Fields;
use walpoint_storage::object::{ObjectKind, ObjectReader, ObjectWriter, SealedObject};

use super::{Inherited, SealedSegment, WalArchive};

/// PostgreSQL's limit for a name (`MAXFNAMELEN`), without the terminating zero.
const MAX_NAME: usize = 63;

/// So many of a segment are an object each, which is found by its name; more are put together.
const SINGLE: usize = 4;

/// Restore points in one object: less than a megabyte. As many as a segment's facts hold.
const BATCH: usize = SegmentFacts::POINTS;

/// Bytes of such an object's content at the most.
const BATCH_BYTES: usize = BATCH * (25 + MAX_NAME);

/// Requests under way at once for the points of a segment, or of a lineage.
const CONCURRENT: usize = 4;

impl FoundPoints {
    /// Adds what another repository has of the same lineage.
    fn add(&mut self, other: Self) {
        let new = |point: &PointRef| self.points.iter().all(|known| known.place() != point.place());
        let new: Vec<PointRef> = other.points.into_iter().filter(new).collect();
        self.points.extend(new);
        self.damaged.extend(other.damaged);
        self.unread.extend(other.unread);
    }
}

/// Restore points, and what is wrong with objects that hold more.
#[derive(Debug, Default)]
pub struct FoundPoints {
    /// By name.
    pub points: Vec<PointRef>,
    /// Each is [`RepoError::Corrupt`].
    pub damaged: Vec<RepoError>,
    /// The timeline of each of these, and where its first restore point lies: all of them are in that segment.
    pub unread: Vec<(TimelineId, Lsn)>,
}

impl WalArchive {
    /// Stores the restore points of a segment whose content has that hash. Names that no recovery target can ask for are left out: empty or
    /// over-long ones.
    pub(super) async fn store_points(
        &self,
        segment: SegmentName,
        points: &[RestorePoint],
        hash: NameHash,
    ) -> Result<()> {
        let timeline = segment.timeline;
        let points: Vec<&RestorePoint> = points.iter().filter(|point| fits(point)).collect();
        let (size, kind) = match points.len() {
            0..=SINGLE => (1, ObjectKind::RestorePoint),
            _ => (BATCH, ObjectKind::RestorePoints),
        };
        let put = |batch: &[&RestorePoint]| {
            let sealed = batch.first().map(|first| {
                let key = match kind {
                    ObjectKind::RestorePoint => self.paths().point(&first.name, timeline, first.lsn),
                    _ => self.paths().point_batch(timeline, first.lsn, hash),
                };
                let mut content = Vec::new();
                for point in batch {
                    encode(point, kind, &mut content);
                }
                self.seal_points(kind, &key, &content)
            });
            async move {
                match sealed {
                    Some(sealed) => self.create_points(segment, &sealed?).await,
                    None => Ok(()),
                }
            }
        };
        stream::iter(points.chunks(size)).map(put).buffer_unordered(CONCURRENT).try_collect().await
    }

    /// Stores the restore points of a sealed segment that has more than its facts hold, `points` of it in LSN order: one object after the
    /// other, so that memory is that of one, however many they are. The segment can be stored afterwards. Others than it was sealed with are
    /// an error, and it cannot.
    pub async fn put_points<P>(&self, mut sealed: SealedSegment, mut points: P) -> Result<SealedSegment>
    where
        P: Iterator<Item = io::Result<RestorePoint>> + Send + 'static,
    {
        let (name, hash) = (sealed.facts.name, sealed.header.hash);
        sealed.points_stored = true;
        if self.is_anothers(name, hash).await? {
            return Ok(sealed);
        }
        let mut count = 0_u64;
        loop {
            let archive = self.clone();
            let work =
                move || archive.next_batch(name, NameHash::of(&hash), &mut points).map(|next| (points, next));
            let (rest, (read, batch)) = cpu::run(work).await??;
            (points, count) = (rest, count.saturating_add(read));
            match batch {
                Some(batch) => self.create_points(name, &batch).await?,
                None => break,
            }
        }
        if count != u64::from(sealed.header.restore_points) {
            let what = format!(
                "it had {} restore points, and {count} when it was read again",
                sealed.header.restore_points
            );
            return Err(RepoError::Refused { key: self.paths().segment(name), what });
        }
        Ok(sealed)
    }

    /// Creates an object of restore points of a segment. A damaged one of that name keeps the segment from nothing: it only helps to find a
    /// name. The segment is acknowledged then, and comes again only if a person hands it over.
    async fn create_points(&self, segment: SegmentName, object: &SealedObject) -> Result<()> {
        match self.create_sound(object).await {
            Err(RepoError::Corrupt { key, .. }) => {
                tracing::warn!(
                    repository = self.repository().name(),
                    "{key} is damaged\nDETAIL: The segment is stored all the same. A restore may not find restore points of it by name.\n\
                     HINT: Move that object away, fetch segment {segment} from the archive, and push it: that stores its restore points."
                );
                Ok(())
            }
            created => created.map(drop),
        }
    }

    /// The next object of many restore points, sealed, and how many points were read for it; `None` behind the last. Those of a segment
    /// are put together in the same way each time, so that one that is stored twice stores the same.
    fn next_batch(
        &self,
        segment: SegmentName,
        hash: NameHash,
        points: &mut impl Iterator<Item = io::Result<RestorePoint>>,
    ) -> Result<(u64, Option<SealedObject>)> {
        let (mut read, mut held, mut first, mut content) = (0, 0, None, Vec::new());
        while held < BATCH {
            let Some(point) = points.next() else { break };
            let point = point.map_err(|source| RepoError::Io {
                what: format!("the restore points of {segment} cannot be read"),
                source,
            })?;
            read += 1;
            if fits(&point) {
                held += 1;
                first.get_or_insert(point.lsn);
                encode(&point, ObjectKind::RestorePoints, &mut content);
            }
        }
        let sealed = first.map(|first| {
            let key = self.paths().point_batch(segment.timeline, first, hash);
            self.seal_points(ObjectKind::RestorePoints, &key, &content)
        });
        Ok((read, sealed.transpose()?))
    }

    fn seal_points(&self, kind: ObjectKind, key: &Key, content: &[u8]) -> Result<SealedObject> {
        let sealed = ObjectWriter::new(self.sealer(), kind, key).and_then(|mut writer| {
            writer.frame(content)?;
            writer.finish()
        });
        sealed.map_err(|e| RepoError::Internal(format!("{key} could not be sealed: {e}")))
    }

    /// Every restore point of that name, on all timelines, by position. What is damaged may hold more of that name.
    pub async fn points_named(&self, name: &str) -> Result<FoundPoints> {
        let mut own = FoundPoints {
            points: self.list_points(&self.paths().points_named(name)).await?.0,
            ..Default::default()
        };
        let (_, batches) = self.list_points(&self.paths().point_batches()).await?;
        self.read_batches(batches, |point| point.name == name, &mut own).await?;
        for other in self.beside() {
            let found = Box::pin(other.points_named(name)).await?;
            own.add(found);
        }
        own.points.sort_unstable();
        let Some(inherited) = self.inherited() else { return Ok(own) };
        let parents = Box::pin(inherited.archive().points_named(name)).await?;
        own.points = inherited.add_points(own.points, parents.points);
        own.damaged.extend(parents.damaged);
        own.unread.extend(parents.unread);
        Ok(own)
    }

    /// Every restore point, by name.
    pub async fn points(&self) -> Result<FoundPoints> {
        let (points, batches) = self.list_points(&self.paths().points()).await?;
        let mut own = FoundPoints { points, ..Default::default() };
        self.read_batches(batches, |_| true, &mut own).await?;
        for other in self.beside() {
            let found = Box::pin(other.points()).await?;
            own.add(found);
        }
        own.points.sort_unstable();
        let Some(inherited) = self.inherited() else { return Ok(own) };
        let parents = Box::pin(inherited.archive().points()).await?;
        own.points = inherited.add_points(own.points, parents.points);
        own.damaged.extend(parents.damaged);
        own.unread.extend(parents.unread);
        Ok(own)
    }

    /// What is stored about a restore point that is an object of its own; `None` if there is none.
    pub async fn point(&self, point: &PointRef) -> Result<Option<RestorePoint>> {
        let key = self.paths().point(&point.name, point.timeline, point.lsn);
        let Some(bytes) = found(self.store().get(&key).await)? else {
            for other in self.beside() {
                if let Some(found) = Box::pin(other.point(point)).await? {
                    return Ok(Some(found));
                }
            }
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

    /// The restore points below a prefix that are objects of their own, and the keys of the objects that hold many.
    async fn list_points(&self, prefix: &Prefix) -> Result<(Vec<PointRef>, Vec<Key>)> {
        let (mut points, mut batches) = (Vec::new(), Vec::new());
        let mut entries = self.store().list(prefix, None);
        while let Some(entry) = entries.try_next().await? {
            if self.paths().parse_point_batch(&entry.key).is_some() {
                batches.push(entry.key);
            } else if let Some((name, timeline, lsn)) = self.paths().parse_point(&entry.key) {
                points.push(PointRef { name, timeline, lsn, time: None });
            }
        }
        points.sort_unstable();
        Ok((points, batches))
    }

    /// Adds the restore points in these objects that are `wanted`.
    async fn read_batches(
        &self,
        batches: Vec<Key>,
        wanted: impl Fn(&RestorePoint) -> bool,
        to: &mut FoundPoints,
    ) -> Result<()> {
        let read = |key: Key| async move {
            // Deleted since it was listed: its segment is out of reach.
            let bytes = found(self.store().get(&key).await)?;
            Ok((bytes.map(|bytes| self.open_batch(&key, bytes)), key))
        };
        let mut all = stream::iter(batches).map(read).buffer_unordered(CONCURRENT);
        while let Some((read, key)) = all.try_next().await? {
            let Some((timeline, first)) = self.paths().parse_point_batch(&key) else { continue };
            match read {
                Some(Ok(points)) => to.points.extend(points.into_iter().filter(&wanted).map(|point| {
                    PointRef { name: point.name, timeline, lsn: point.lsn, time: Some(point.time) }
                })),
                Some(Err(damaged)) => {
                    to.damaged.push(damaged);
                    to.unread.push((timeline, first));
                }
                None => {}
            }
        }
        // The same ones may come from a segment that was cut short and from the whole one.
        to.points.sort_unstable_by(|a, b| (a.place(), b.time).cmp(&(b.place(), a.time)));
        to.points.dedup_by(|a, b| a.place() == b.place());
        Ok(())
    }

    fn open_batch(&self, key: &Key, bytes: Bytes) -> Result<Vec<RestorePoint>> {
        let reader = ObjectReader::open(self.sealer(), &[ObjectKind::RestorePoints], key, bytes);
        let mut content = Vec::new();
        reader
            .and_then(|reader| reader.read_all(BATCH_BYTES, &mut content))
            .map_err(|error| RepoError::corrupt(key, error))?;
        let mut fields = Fields::new(&content);
        let mut points = Vec::new();
        while !fields.is_empty() {
            let length = fields.u8().map(usize::from);
            let point = length.and_then(|length| decode(&mut fields, length));
            points.push(point.ok_or_else(|| RepoError::corrupt(key, "it holds no restore points"))?);
        }
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
        own.sort_unstable_by(|a, b| (a.place(), b.time).cmp(&(b.place(), a.time)));
        own.dedup_by(|a, b| a.place() == b.place());
        own
    }
}

/// Whether a recovery target can ask for it.
fn fits(point: &RestorePoint) -> bool {
    !point.name.is_empty() && point.name.len() <= MAX_NAME
}

fn encode(point: &RestorePoint, kind: ObjectKind, out: &mut Vec<u8>) {
    if kind == ObjectKind::RestorePoints {
        // Checked before: a name has at most 63 bytes.
        out.push(u8::try_from(point.name.len()).unwrap_or(u8::MAX));
    }
    out.extend_from_slice(&point.time.0.to_le_bytes());
    out.extend_from_slice(&point.lsn.0.to_le_bytes());
    out.extend_from_slice(&point.end.0.to_le_bytes());
    out.extend_from_slice(point.name.as_bytes());
}

fn decode(fields: &mut Fields<'_>, name: usize) -> Option<RestorePoint> {
    let (time, lsn, end) = (PgTimestamp(fields.i64()?), Lsn(fields.u64()?), Lsn(fields.u64()?));
    let name = std::str::from_utf8(fields.bytes(name)?).ok()?.to_owned();
    Some(RestorePoint { name, time, lsn, end })
}

fn parse(key: &Key, content: &[u8]) -> Result<RestorePoint> {
    let name = content.len().checked_sub(24);
    let point = name.and_then(|name| decode(&mut Fields::new(content), name));
    point.ok_or_else(|| RepoError::corrupt(key, "it is not a restore point"))
}
