//! Storing what PostgreSQL archives.

use std::ops::Range;
use std::sync::Arc;

use futures_util::TryStreamExt;
use walpoint_base::{Lsn, SegmentFacts, SegmentName, SegmentNo, TimelineId, WalFileName};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::{Key, NameHash, WalEntry};
use walpoint_storage::object::{
    ContentHash, MAX_CONTENT, ObjectError, ObjectHeader, ObjectKind, ObjectReader, ObjectWriter, SealError,
    SealedObject, Sealer, pack,
};
use walpoint_storage::store::Creation;

use super::content::WalContent;
use super::header::WalFlags;
use super::parts::{PartTable, PartsSurvey};
use super::seal::{PieceSealer, Sealed, SealedName, SealedSegment, SegmentSealer, failed};
use super::{FRAME, WalArchive};
use crate::cpu;

/// What storing a file did. In every case it is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored {
    /// It was not there and is now.
    New,
    /// The same content was there already.
    Same,
    /// Its name is complete and its content ends early, at that position: it is kept beside, and never served as the
    /// segment of that name.
    Ended(Lsn),
}

/// A file that was read once: what it becomes, and the hashes that were found.
#[derive(Clone, Copy)]
struct Surveyed<'a> {
    kind: ObjectKind,
    name: WalFileName,
    content: &'a WalContent,
    table: &'a PartTable,
    /// The meta frame of its object.
    meta: &'a [u8],
}

impl WalArchive {
    /// Stores a segment whose content `facts` were read from, and the restore points in it. An incomplete one is stored
    /// as [`Stored::Ended`]. Different content under the same name is a [`RepoError::Conflict`] with both hashes. Of a whole segment
    /// that was there already only the header is read ([`Stored::Same`]).
    pub async fn put_segment(
        &self,
        facts: &SegmentFacts,
        content: impl Into<WalContent>,
        flags: WalFlags,
    ) -> Result<Stored> {
        let (content, facts) = (content.into(), Arc::new(facts.clone()));
        let place = SealedName::of(&facts, flags);
        let key = self.paths().segment(facts.name);
        self.check_facts(&key, &facts, content.len())?;
        let (archive, source) = (self.clone(), content.clone());
        let sealed = cpu::run(move || {
            let archive = std::slice::from_ref(&archive);
            let mut sealer = SegmentSealer::new(archive, facts.name, facts.size, place)?;
            pieces(&key, &source, 0..source.len(), |piece| sealer.add(piece))?;
            sealer.finish(&facts, flags)
        });
        match sealed.await??.pop() {
            Some(sealed) => self.put_sealed(sealed, &content).await,
            None => Err(RepoError::Internal("one archive gave no sealed segment".to_owned())),
        }
    }

    /// Stores a segment that was sealed for this archive, and the restore points in it, as [`Self::put_segment`] does.
    /// `content`, what was sealed, is read again only for a segment in parts, and must then be the same. A segment with more restore
    /// points than its facts hold is refused before they are stored ([`Self::put_points`]).
    pub async fn put_sealed(&self, sealed: SealedSegment, content: &WalContent) -> Result<Stored> {
        if !sealed.points_stored {
            self.put_held_points(&sealed.facts, sealed.header.hash).await?;
        }
        let SealedSegment { facts, place, header, sealed, .. } = sealed;
        let (key, creation) = match sealed {
            Sealed::Object(object) => {
                let object = object.kept_with(content.keeper());
                let creation = self.store().create_once(&object).await?;
                (object.key, creation)
            }
            Sealed::Parts(table) => {
                let name = WalFileName::Segment(facts.name);
                let key = match place {
                    SealedName::Whole => self.paths().segment(facts.name),
                    SealedName::Ended(end) => self.paths().ended(facts.name, end, NameHash::of(&table.hash)),
                };
                let content = content.clone().with_zeros_from(place.valid(facts.name, facts.size));
                let (kind, meta) = (place.kind(), header.encode());
                let surveyed = Surveyed { kind, name, content: &content, table: &table, meta: &meta };
                let creation = self.put_surveyed(&key, surveyed).await?;
                (key, creation)
            }
        };
        if matches!(place, SealedName::Ended(_)) && creation == Creation::Same {
            self.read_again(place.kind(), WalFileName::Segment(facts.name), key).await?;
        }
        Ok(stored(place, creation))
    }

    /// Before the segment: once that is there, a writer that dies need not come back for them. A few are an object each, more are
    /// put together, so that they hold the segment up for a request or two.
    async fn put_held_points(&self, facts: &SegmentFacts, hash: ContentHash) -> Result<()> {
        if facts.further_points > 0 {
            let key = self.paths().segment(facts.name);
            return Err(RepoError::Internal(format!(
                "{key} has restore points that were not stored before it"
            )));
        }
        if facts.restore_points.is_empty() || self.is_anothers(facts.name, hash).await? {
            return Ok(());
        }
        self.store_points(facts.name, &facts.restore_points, NameHash::of(&hash)).await
    }

    /// Whether a segment is about to be refused, because other content is stored under its name: its restore points are another
    /// server's.
    pub(super) async fn is_anothers(&self, name: SegmentName, hash: ContentHash) -> Result<bool> {
        Ok(self.header(name).await?.is_some_and(|stored| stored.whole && stored.hash != hash))
    }

    /// Stores what was surveyed before, in one object where it fits. Found to differ now, it is refused.
    async fn put_surveyed(&self, key: &Key, surveyed: Surveyed<'_>) -> Result<Creation> {
        let Surveyed { kind, content, table, meta, .. } = surveyed;
        if content.len() > MAX_CONTENT as u64 {
            return self.put_parts(key, surveyed).await;
        }
        let (sealer, source, meta, at) = (self.sealer().clone(), content.clone(), meta.to_vec(), key.clone());
        let sealed = cpu::run(move || seal(&sealer, kind, &at, &source, 0..source.len(), &meta)).await??;
        if sealed.content() != table.hash {
            let what = "the file changed while it was read".to_owned();
            return Err(RepoError::Refused { key: key.clone(), what });
        }
        self.store().create_once(&sealed).await
    }

    /// Stores a `.history`, `.backup` or `.partial` file. Segments are refused: they are stored with their facts. A `.partial` is
    /// named by its hash, so that those of several promotions are kept side by side: what counts of it is for the caller to
    /// say ([`WalContent::with_zeros_from`]). One that was there already is read to its end: the caller cannot name it.
    pub async fn put_file(&self, name: WalFileName, content: impl Into<WalContent>) -> Result<Stored> {
        let content = content.into();
        if let WalFileName::Partial(segment) = name {
            let table = self.survey(&self.paths().segment(segment), &content).await?;
            let key = self.paths().partial(segment, NameHash::of(&table.hash));
            let kind = ObjectKind::Partial;
            let surveyed = Surveyed { kind, name, content: &content, table: &table, meta: &[] };
            let creation = self.put_surveyed(&key, surveyed).await?;
            if creation == Creation::Same {
                self.read_again(kind, name, key).await?;
            }
            return Ok(stored(SealedName::Whole, creation));
        }
        let key = self.paths().file(name);
        let kind = match name {
            WalFileName::History(_) => ObjectKind::History,
            WalFileName::Backup(..) => ObjectKind::BackupHistory,
            WalFileName::Segment(_) | WalFileName::Partial(_) => {
                return Err(RepoError::Refused {
                    key,
                    what: "a segment is stored after it was decoded".to_owned(),
                });
            }
        };
        let creation = if content.len() > MAX_CONTENT as u64 {
            let table = self.survey(&key, &content).await?;
            self.put_parts(&key, Surveyed { kind, name, content: &content, table: &table, meta: &[] }).await?
        } else {
            let (sealer, key) = (self.sealer().clone(), key.clone());
            let sealed =
                cpu::run(move || seal(&sealer, kind, &key, &content, 0..content.len(), &[])).await??;
            self.store().create_once(&sealed).await?
        };
        Ok(stored(SealedName::Whole, creation))
    }

    /// Stores a history beside the one that its timeline has already; the hash that names it.
    pub async fn put_refused_history(
        &self,
        timeline: TimelineId,
        content: impl Into<WalContent>,
    ) -> Result<ContentHash> {
        let content = content.into();
        let archive = self.clone();
        let sealed = cpu::run(move || {
            let file = archive.paths().file(WalFileName::History(timeline));
            let mut hasher = archive.sealer().content_hasher();
            pieces(&file, &content, 0..content.len(), |piece| {
                hasher.update(piece);
                Ok(())
            })?;
            let hash = ContentHash(*hasher.finalize().as_bytes());
            let key = archive.paths().refused_history(timeline, hash);
            seal(archive.sealer(), ObjectKind::History, &key, &content, 0..content.len(), &[])
        });
        let sealed = sealed.await??;
        self.create_sound(&sealed).await?;
        Ok(sealed.content())
    }

    /// Creates an object. One that was there already is read to its end: its header says what it should hold, not that it does, and what
    /// was offered may be the only sound copy.
    pub(super) async fn create_sound(&self, object: &SealedObject) -> Result<Creation> {
        let creation = self.store().create_once(object).await?;
        if creation == Creation::Same {
            self.read_object(object.header.kind, &object.key).await?;
        }
        Ok(creation)
    }

    /// Reads a file to its end that was there already, its parts included.
    async fn read_again(&self, kind: ObjectKind, name: WalFileName, key: Key) -> Result<()> {
        let Some(reader) = self.open(kind, name, key.clone()).await.map_err(in_the_way)? else {
            return Err(RepoError::NotFound { key, store: self.store().name().to_owned() });
        };
        reader.write_to(std::io::sink()).await.map(drop).map_err(in_the_way)
    }

    /// Reads an object of this lineage to its end, with the parts that it names; `false` if it is gone. Its key shows of which kind it is. One
    /// whose key does not counts as damaged as long as it is there.
    pub async fn can_be_read(&self, key: &Key) -> Result<bool> {
        let again = |kind, name| self.read_again(kind, name, key.clone());
        let read = match self.paths().parse(key) {
            Some(WalEntry::File(name)) => again(kind_of(name), name).await,
            Some(WalEntry::Partial(name, _)) => again(ObjectKind::Partial, WalFileName::Partial(name)).await,
            Some(WalEntry::Ended(name, ..)) => again(ObjectKind::Ended, WalFileName::Segment(name)).await,
            Some(WalEntry::Part(_)) => self.read_object(ObjectKind::Part, key).await,
            Some(WalEntry::Slice(..)) => self.read_object(ObjectKind::Slice, key).await,
            Some(WalEntry::RefusedHistory(..)) => self.read_object(ObjectKind::History, key).await,
            None if self.paths().parse_point(key).is_some() => {
                self.read_object(ObjectKind::RestorePoint, key).await
            }
            None if self.paths().parse_point_batch(key).is_some() => {
                self.read_object(ObjectKind::RestorePoints, key).await
            }
            _ => match self.store().get(key).await {
                Ok(_) => Err(RepoError::in_the_way(key, "it was found to be damaged, and cannot be checked")),
                Err(error) => Err(error),
            },
        };
        match read {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Facts of another cluster, or of another segment size, are refused.
    pub(super) fn check_facts(&self, key: &Key, facts: &SegmentFacts, length: u64) -> Result<SegmentNo> {
        let lineage = self.lineage();
        let refused = |what: String| Err(RepoError::Refused { key: key.clone(), what });
        if facts.system_id != lineage.system_id() {
            return refused(format!(
                "it is WAL of the cluster with system identifier {}, this is the archive of {}",
                facts.system_id,
                lineage.system_id()
            ));
        }
        if facts.major != lineage.major {
            return refused(format!(
                "it was written by {:?}, this is the archive of {:?}",
                facts.major, lineage.major
            ));
        }
        if facts.size != lineage.segment_size || length != facts.size.bytes() {
            return refused(format!(
                "it has {length} bytes and says that segments have {}, in this cluster they have {}",
                facts.size.bytes(),
                lineage.segment_size.bytes()
            ));
        }
        match facts.name.number(facts.size) {
            Some(number) => Ok(number),
            None => refused("no cluster with that segment size writes such a name".to_owned()),
        }
    }

    /// Creates the parts of a file that is too large for one object, and then the object that names them. Parts that an earlier
    /// attempt stored are not sent again.
    async fn put_parts(&self, key: &Key, surveyed: Surveyed<'_>) -> Result<Creation> {
        let Surveyed { kind, name, content, table, meta } = surveyed;
        let stem = table.stem();
        let mut offset = 0;
        let there = self.store().list(&self.paths().parts(name), None).map_ok(|entry| entry.key);
        let there: Vec<Key> = there.try_collect().await?;
        for (n, &(length, hash)) in table.parts.iter().enumerate() {
            let part = self.paths().part(name, &stem, u32::try_from(n).unwrap_or(u32::MAX));
            let (sealer, content) = (self.sealer().clone(), content.clone());
            let range = offset..offset + u64::from(length);
            offset = range.end;
            if there.contains(&part) && self.store().holds(&sealer, &part, hash).await? {
                self.read_object(ObjectKind::Part, &part).await?;
                continue;
            }
            let sealed =
                cpu::run(move || seal(&sealer, ObjectKind::Part, &part, &content, range, &[])).await??;
            if sealed.content() != hash {
                let what = "the file changed while it was read".to_owned();
                return Err(RepoError::Refused { key: key.clone(), what });
            }
            self.create_sound(&sealed).await?;
        }
        let sealed = self.seal_table(kind, key, meta, table).map_err(|e| failed(key, e))?;
        let sealed = sealed.kept_with(content.keeper());
        match self.store().create_once(&sealed).await {
            // The hash of the table means nothing to a person: name those of the contents.
            Err(RepoError::Conflict { key, .. }) => {
                let theirs = self.table(&key, kind).await?.map_or(table.hash, |t| t.hash);
                Err(RepoError::Conflict { key, ours: table.hash, theirs })
            }
            created => created,
        }
    }

    /// Reads an object of its own to its end.
    async fn read_object(&self, kind: ObjectKind, key: &Key) -> Result<()> {
        let (sealer, at, bytes) = (self.sealer().clone(), key.clone(), self.store().get(key).await?);
        let read = move || -> std::result::Result<ObjectHeader, ObjectError> {
            let mut reader = ObjectReader::open(&sealer, &[kind], &at, bytes)?;
            let mut frame = Vec::new();
            while reader.next_frame(&mut frame)?.is_some() {
                frame.clear();
            }
            reader.finish()
        };
        cpu::run(read).await?.map(drop).map_err(|error| RepoError::in_the_way(key, error))
    }

    fn seal_table(
        &self,
        kind: ObjectKind,
        key: &Key,
        meta: &[u8],
        table: &PartTable,
    ) -> std::result::Result<SealedObject, SealError> {
        let mut writer = ObjectWriter::new(self.sealer(), kind, key)?;
        if !meta.is_empty() {
            writer.meta(meta)?;
        }
        writer.in_parts();
        writer.frame(&table.encode())?;
        writer.finish()
    }

    /// Reads a large file once, for the hashes that the names of its parts need.
    async fn survey(&self, key: &Key, content: &WalContent) -> Result<PartTable> {
        let (sealer, content, key) = (self.sealer().clone(), content.clone(), key.clone());
        cpu::run(move || {
            let mut survey = PartsSurvey::new(&sealer);
            pieces(&key, &content, 0..content.len(), |piece| {
                survey.add(piece);
                Ok(())
            })?;
            Ok(survey.finish())
        })
        .await?
    }
}

/// Reads the pieces of a range of the content, in order, into one buffer that is used again.
fn pieces(
    key: &Key,
    content: &WalContent,
    range: Range<u64>,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let (mut buffer, mut offset) = (Vec::new(), range.start);
    while offset < range.end {
        let length = usize::try_from(range.end - offset).unwrap_or(usize::MAX).min(FRAME);
        let piece = content.piece(offset, length, &mut buffer).map_err(|source| RepoError::Io {
            what: format!("the file to be stored as {key} cannot be read"),
            source,
        })?;
        each(piece)?;
        offset += length as u64;
    }
    Ok(())
}

/// Seals a range of the content as an object, described by `meta` if it is of a kind that is.
fn seal(
    sealer: &Sealer,
    kind: ObjectKind,
    key: &Key,
    content: &WalContent,
    range: Range<u64>,
    meta: &[u8],
) -> Result<SealedObject> {
    let mut sealing = PieceSealer::new(sealer, kind, key, range.end - range.start)?;
    let mut codec = sealer.codec();
    pieces(key, content, range, |piece| sealing.add(pack(piece, &mut codec)))?;
    Ok(sealing.finish(meta)?.kept_with(content.keeper()))
}

/// Of what kind the object is that has a file's own name.
pub(super) fn kind_of(name: WalFileName) -> ObjectKind {
    match name {
        WalFileName::Segment(_) => ObjectKind::Segment,
        WalFileName::History(_) => ObjectKind::History,
        WalFileName::Backup(..) => ObjectKind::BackupHistory,
        WalFileName::Partial(_) => ObjectKind::Partial,
    }
}

/// A damaged object, as one that prevents storing another.
fn in_the_way(error: RepoError) -> RepoError {
    match error {
        RepoError::Corrupt { key, what, .. } => RepoError::in_the_way(&key, what),
        other => other,
    }
}

fn stored(place: SealedName, creation: Creation) -> Stored {
    match (place, creation) {
        (SealedName::Ended(end), _) => Stored::Ended(end),
        (SealedName::Whole, Creation::New) => Stored::New,
        (SealedName::Whole, Creation::Same) => Stored::Same,
    }
}
