//! Reading back what PostgreSQL archived. Nothing is handed out before every check has passed.

use std::io::Write;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryStreamExt};
use walpoint_base::{Lsn, SegmentName, SegmentNo, TimelineHistory, TimelineId, WalFileName};
use walpoint_storage::error::{RepoError, Result, found};
use walpoint_storage::layout::{Key, NameHash, WalEntry};
use walpoint_storage::object::{
    Codec, ContentHash, MAX_CONTENT, ObjectHeader, ObjectKind, ObjectReader, open_frame,
};

use super::WalArchive;
use super::fetched::FetchedWal;
use super::header::{WAL_HEADER_RANGE, WalHeader};
use super::parts::{MAX_TABLE, PartTable};
use super::put::kind_of;
use super::slices::assembled::{AssembledSegment, write_piece};
use crate::cpu;

/// A file that is read a part at a time, so that a segment of 1 GiB takes no more memory than one of 16 MiB.
#[derive(Debug)]
pub struct WalReader {
    archive: WalArchive,
    key: Key,
    name: WalFileName,
    header: Option<WalHeader>,
    length: u64,
    rest: Rest,
}

#[derive(Debug)]
enum Rest {
    /// The object holds the content itself.
    Whole(Option<Bytes>),
    /// It is in parts.
    Parts { table: PartTable, next: usize, whole: Box<blake3::Hasher> },
    /// It was put together from slices.
    Sliced(Box<AssembledSegment>),
}

/// One object of content.
struct PartRange {
    kinds: Vec<ObjectKind>,
    key: Key,
    bytes: Bytes,
    /// What the table of parts says about it: length and hash.
    expected: Option<(u32, ContentHash)>,
}

impl WalArchive {
    /// A file of that name, checked; `None` if the store has none. A segment's `.partial` and `.ended` are other names.
    pub async fn get(&self, name: WalFileName) -> Result<Option<FetchedWal>> {
        self.get_into(name, Vec::new()).await
    }

    /// As [`Self::get`], into a buffer that is emptied first, to be used again and again.
    pub fn get_into(&self, name: WalFileName, buffer: Vec<u8>) -> BoxFuture<'_, Result<Option<FetchedWal>>> {
        if self.beside().is_empty() {
            return self.get_here(name, buffer).boxed();
        }
        let sound = |file: &FetchedWal| file.header.as_ref().is_none_or(|header| !header.damaged);
        let ask = move |archive: Self| async move { archive.get_here(name, Vec::new()).await }.boxed();
        self.first_sound(ask, sound).boxed()
    }

    async fn get_here(&self, name: WalFileName, mut buffer: Vec<u8>) -> Result<Option<FetchedWal>> {
        buffer.clear();
        let Some(reader) = self.read_here(name).await? else { return Ok(None) };
        reader.fetch_into(buffer).await.map(Some)
    }

    /// The incomplete copy of a segment that holds most, checked; `None` if the store has none.
    pub async fn get_incomplete(&self, segment: SegmentName) -> Result<Option<FetchedWal>> {
        match self.read_incomplete(segment).await? {
            Some(reader) => reader.fetch_into(Vec::new()).await.map(Some),
            None => Ok(None),
        }
    }

    /// Opens a file of that name to be read a part at a time; `None` if the store has none. Of several `.partial` files the one that holds
    /// most: for another see [`Self::read_partial`].
    pub fn read(&self, name: WalFileName) -> BoxFuture<'_, Result<Option<WalReader>>> {
        if self.beside().is_empty() {
            return self.read_here(name).boxed();
        }
        let sound = |reader: &WalReader| reader.header().is_none_or(|header| !header.damaged);
        let ask = move |archive: Self| async move { archive.read_here(name).await }.boxed();
        self.first_sound(ask, sound).boxed()
    }

    pub(crate) async fn read_here(&self, name: WalFileName) -> Result<Option<WalReader>> {
        let own = match name {
            WalFileName::Partial(segment) => self.longest_partial(segment).await?,
            _ => self.open(kind_of(name), name, self.paths().file(name)).await?,
        };
        match (own, self.parent_of(name)) {
            (None, Some(parent)) => parent.read(name).await,
            (own, _) => Ok(own),
        }
    }

    /// A `.partial` file with that content; `None` if there is none.
    pub async fn read_partial(&self, segment: SegmentName, hash: NameHash) -> Result<Option<WalReader>> {
        let (name, key) = (WalFileName::Partial(segment), self.paths().partial(segment, hash));
        self.open(ObjectKind::Partial, name, key).await
    }

    /// The incomplete content of a complete name that ends at `end`; `None` if there is none.
    pub async fn read_ended(&self, name: SegmentName, end: Lsn, hash: NameHash) -> Result<Option<WalReader>> {
        let file = WalFileName::Segment(name);
        self.open(ObjectKind::Ended, file, self.paths().ended(name, end, hash)).await
    }

    pub(super) async fn read_sliced(&self, segment: SegmentName) -> Result<Option<WalReader>> {
        let Some(assembled) = self.assemble(segment).await? else { return Ok(None) };
        Ok(Some(WalReader {
            archive: self.clone(),
            key: self.paths().sliced(segment),
            name: WalFileName::Segment(segment),
            header: None,
            length: self.lineage().segment_size.bytes(),
            rest: Rest::Sliced(Box::new(assembled)),
        }))
    }

    /// What is stored about a segment, by one ranged request; `None` if there is no such segment.
    pub fn header(&self, name: SegmentName) -> BoxFuture<'_, Result<Option<WalHeader>>> {
        if self.beside().is_empty() {
            return self.header_here(name).boxed();
        }
        let sound = |header: &WalHeader| !header.damaged;
        let ask = move |archive: Self| async move { archive.header_here(name).await }.boxed();
        self.first_sound(ask, sound).boxed()
    }

    async fn header_here(&self, name: SegmentName) -> Result<Option<WalHeader>> {
        let key = self.paths().segment(name);
        let own = self.read_header(ObjectKind::Segment, &key, name).await?;
        match (own, self.parent_of(WalFileName::Segment(name))) {
            (None, Some(parent)) => parent.header(name).await,
            (own, _) => Ok(own),
        }
    }

    /// What is stored about the incomplete content of a name that ends at `end`.
    pub async fn ended_header(
        &self,
        name: SegmentName,
        end: Lsn,
        hash: NameHash,
    ) -> Result<Option<WalHeader>> {
        let key = self.paths().ended(name, end, hash);
        self.read_header(ObjectKind::Ended, &key, name).await
    }

    /// A timeline's history; `None` if the store has none. The first timeline never has one.
    pub async fn history(&self, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
        let Some(file) = self.get(WalFileName::History(timeline)).await? else { return Ok(None) };
        let key = self.paths().file(WalFileName::History(timeline));
        TimelineHistory::parse(timeline, &file.content).map(Some).map_err(|e| RepoError::corrupt(&key, e))
    }

    /// A history that was refused because its timeline has another one; `None` if there is none of that hash.
    pub async fn refused_history(&self, timeline: TimelineId, hash: ContentHash) -> Result<Option<Vec<u8>>> {
        let key = self.paths().refused_history(timeline, hash);
        let Some(mut reader) =
            self.open(ObjectKind::History, WalFileName::History(timeline), key.clone()).await?
        else {
            return Ok(None);
        };
        let content = reader.next_part(Vec::new()).await?;
        if self.sealer().content_hash(&content) != hash {
            return Err(RepoError::corrupt(&key, "its content does not match its name"));
        }
        Ok(Some(content))
    }

    pub(super) async fn open(
        &self,
        kind: ObjectKind,
        name: WalFileName,
        key: Key,
    ) -> Result<Option<WalReader>> {
        let Some(bytes) = found(self.store().get(&key).await)? else { return Ok(None) };
        let (object, header, meta) = {
            let corrupt = |e: walpoint_storage::object::ObjectError| RepoError::corrupt(&key, e);
            let reader = ObjectReader::open(self.sealer(), &[kind], &key, bytes.clone()).map_err(corrupt)?;
            let segment = matches!(kind, ObjectKind::Segment | ObjectKind::Ended);
            let header = match name.segment().filter(|_| segment) {
                Some(name) => Some(self.check_header(&key, name, reader.meta())?),
                None => None,
            };
            (*reader.header(), header, reader)
        };
        let rest = if object.in_parts {
            let mut table = Vec::new();
            meta.read_all(MAX_TABLE, &mut table).map_err(|e| RepoError::corrupt(&key, e))?;
            let table = PartTable::parse(&table)
                .ok_or_else(|| RepoError::corrupt(&key, "its table of parts is invalid"))?;
            Rest::Parts { table, next: 0, whole: Box::new(self.sealer().content_hasher()) }
        } else {
            Rest::Whole(Some(bytes))
        };
        let (length, hash) = match &rest {
            Rest::Whole(_) => (object.content_len, object.content),
            Rest::Parts { table, .. } => (table.length, table.hash),
            Rest::Sliced(_) => (object.content_len, object.content),
        };
        if let Some(header) = &header
            && (header.hash != hash || header.size.bytes() != length)
        {
            return Err(RepoError::corrupt(&key, "its content is not what its header describes"));
        }
        Ok(Some(WalReader { archive: self.clone(), key, name, header, length, rest }))
    }

    async fn read_header(&self, kind: ObjectKind, key: &Key, name: SegmentName) -> Result<Option<WalHeader>> {
        let Some(found) = found(self.store().get_range(key, 0..WAL_HEADER_RANGE).await)? else {
            return Ok(None);
        };
        let corrupt = |e: walpoint_storage::object::ObjectError| RepoError::corrupt(key, e);
        let (object, keys) = ObjectHeader::parse(self.sealer(), key, &found.bytes).map_err(corrupt)?;
        if object.kind != kind || object.object_len != found.size {
            return Err(RepoError::corrupt(key, "it is not the object that its header describes"));
        }
        let frame = found.bytes.get(walpoint_storage::object::OBJECT_HEADER..).unwrap_or_default();
        let mut meta = Vec::new();
        open_frame(&keys, 0, frame, &mut Codec::for_opening(), &mut meta).map_err(|e| corrupt(e.into()))?;
        self.check_header(key, name, &meta).map(Some)
    }

    /// Reads a segment's header and holds it against the name and the lineage.
    fn check_header(&self, key: &Key, name: SegmentName, meta: &[u8]) -> Result<WalHeader> {
        let header =
            WalHeader::parse(meta).ok_or_else(|| RepoError::corrupt(key, "its header is invalid"))?;
        let lineage = self.lineage();
        let ours =
            header.lineage == lineage.id && header.size == lineage.segment_size && header.name() == name;
        if !ours {
            return Err(RepoError::corrupt(
                key,
                format!("its header is of segment {} of {}", header.name(), header.lineage),
            ));
        }
        Ok(header)
    }

    /// The table of an object in parts; `None` if there is no such object or it is in one piece.
    pub(super) async fn table(&self, key: &Key, kind: ObjectKind) -> Result<Option<PartTable>> {
        let Some(bytes) = found(self.store().get(key).await)? else { return Ok(None) };
        let corrupt = |e: walpoint_storage::object::ObjectError| RepoError::corrupt(key, e);
        let reader = ObjectReader::open(self.sealer(), &[kind], key, bytes).map_err(corrupt)?;
        if !reader.header().in_parts {
            return Ok(None);
        }
        let mut table = Vec::new();
        reader.read_all(MAX_TABLE, &mut table).map_err(corrupt)?;
        Ok(PartTable::parse(&table))
    }

    /// Where something of the timeline that is newer than a segment lies: a later segment, whole or not. `None` if the
    /// store has nothing of the kind. One request.
    pub async fn anything_after(&self, timeline: TimelineId, segment: SegmentNo) -> Result<Option<Key>> {
        let after = self.paths().after(segment.name(timeline, self.lineage().segment_size));
        let mut entries = self.store().list(&self.paths().timeline(timeline), Some(&after));
        while let Some(entry) = entries.try_next().await? {
            match self.paths().parse(&entry.key) {
                // Parts that nothing names are what an upload left that never finished.
                None | Some(WalEntry::Part(_) | WalEntry::Gap(_)) => {}
                Some(_) => return Ok(Some(entry.key)),
            }
        }
        Ok(None)
    }
}

impl WalReader {
    /// What is stored about a segment; `None` for PostgreSQL's other files.
    pub fn header(&self) -> Option<&WalHeader> {
        self.header.as_ref()
    }

    /// The file's length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// All that was not handed out yet, in a buffer that is empty.
    pub(super) async fn fetch_into(mut self, buffer: Vec<u8>) -> Result<FetchedWal> {
        let mut content = self.next_part(buffer).await?;
        while !self.is_done() {
            content = self.append_part(content).await?;
        }
        Ok(FetchedWal { header: self.header, content })
    }

    /// Whether all was handed out, and the whole is checked.
    pub fn is_done(&self) -> bool {
        match &self.rest {
            Rest::Whole(bytes) => bytes.is_none(),
            Rest::Parts { table, next, .. } => *next >= table.parts.len(),
            Rest::Sliced(assembled) => assembled.is_done(),
        }
    }

    /// The next part, in `buffer`, which is emptied first; empty when all was handed out. Each part is checked by
    /// itself; the file as a whole is right only when the last one has come ([`Self::is_done`]) without an error.
    pub async fn next_part(&mut self, mut buffer: Vec<u8>) -> Result<Vec<u8>> {
        buffer.clear();
        self.append_part(buffer).await
    }

    /// Writes all that was not handed out yet, a frame at a time: no more is in memory than one object as it is stored,
    /// which is what to do with a file. What was written is right only if this returns without an error; a failed write
    /// is [`RepoError::Io`].
    ///
    /// The future is boxed: a hasher as the writer would make those around it large, and threads have small stacks.
    pub fn write_to<W: Write + Send + 'static>(
        self,
        writer: W,
    ) -> BoxFuture<'static, Result<(W, Option<WalHeader>)>> {
        self.write_all_to(writer).boxed()
    }

    async fn write_all_to<W: Write + Send + 'static>(
        mut self,
        mut writer: W,
    ) -> Result<(W, Option<WalHeader>)> {
        while let Some(piece) = self.next_piece().await? {
            writer = write_piece(&self.key, piece, writer).await?;
        }
        while let Some(PartRange { kinds, key, bytes, expected }) = self.next_object().await? {
            let sealer = self.archive.sealer().clone();
            let mut whole = match &mut self.rest {
                Rest::Whole(_) | Rest::Sliced(_) => None,
                Rest::Parts { whole, .. } => Some(std::mem::take(whole)),
            };
            let (returned, object, length) = cpu::run(move || {
                let corrupt = |e: walpoint_storage::object::ObjectError| RepoError::corrupt(&key, e);
                let mut reader = ObjectReader::open(&sealer, &kinds, &key, bytes).map_err(corrupt)?;
                let (mut frame, mut length) = (Vec::new(), 0);
                loop {
                    frame.clear();
                    if reader.next_frame(&mut frame).map_err(corrupt)?.is_none() {
                        break;
                    }
                    length += frame.len() as u64;
                    if let Some(whole) = &mut whole {
                        whole.update(&frame);
                    }
                    writer.write_all(&frame).map_err(|source| RepoError::Io {
                        what: format!("{key} cannot be written out"),
                        source,
                    })?;
                }
                let object = reader.finish().map_err(corrupt)?;
                Ok::<_, RepoError>(((writer, whole), object, length))
            })
            .await??;
            writer = returned.0;
            if let (Rest::Parts { whole, .. }, Some(hasher)) = (&mut self.rest, returned.1) {
                *whole = hasher;
            }
            self.note_object(length, object.content, expected)?;
        }
        Ok((writer, self.header))
    }

    /// Writes what can be read from the beginning on, a frame at a time, each checked by itself; and what is wrong with the file, if
    /// that is not all of it.
    pub(super) fn write_readable<W: Write + Send + 'static>(
        self,
        writer: W,
    ) -> BoxFuture<'static, Result<(W, Option<RepoError>)>> {
        self.write_readable_to(writer).boxed()
    }

    async fn write_readable_to<W: Write + Send + 'static>(
        mut self,
        mut writer: W,
    ) -> Result<(W, Option<RepoError>)> {
        while let Some(piece) = self.next_piece().await? {
            writer = write_piece(&self.key, piece, writer).await?;
        }
        loop {
            let next = match self.next_object().await {
                Err(error @ RepoError::Corrupt { .. }) => return Ok((writer, Some(error))),
                next => next?,
            };
            let Some(PartRange { kinds, key, bytes, .. }) = next else { return Ok((writer, None)) };
            let sealer = self.archive.sealer().clone();
            let (returned, read) = cpu::run(move || {
                let corrupt = |e: walpoint_storage::object::ObjectError| RepoError::corrupt(&key, e);
                let read = || -> Result<()> {
                    let mut reader = ObjectReader::open(&sealer, &kinds, &key, bytes).map_err(corrupt)?;
                    let mut frame = Vec::new();
                    while reader.next_frame(&mut frame).map_err(corrupt)?.is_some() {
                        writer.write_all(&frame).map_err(|source| RepoError::Io {
                            what: format!("{key} cannot be written out"),
                            source,
                        })?;
                        frame.clear();
                    }
                    reader.finish().map(drop).map_err(corrupt)
                };
                let read = read();
                (writer, read)
            })
            .await?;
            writer = returned;
            match read {
                Err(error @ RepoError::Corrupt { .. }) => return Ok((writer, Some(error))),
                read => read?,
            }
        }
    }

    async fn append_part(&mut self, mut buffer: Vec<u8>) -> Result<Vec<u8>> {
        if let Some(piece) = self.next_piece().await? {
            buffer.extend_from_slice(&piece);
            return Ok(buffer);
        }
        let Some(PartRange { kinds, key, bytes, expected }) = self.next_object().await? else {
            return Ok(buffer);
        };
        let sealer = self.archive.sealer().clone();
        let begin = buffer.len();
        let (buffer, object) = cpu::run(move || {
            let corrupt = |e: walpoint_storage::object::ObjectError| RepoError::corrupt(&key, e);
            let reader = ObjectReader::open(&sealer, &kinds, &key, bytes).map_err(corrupt)?;
            let object = reader.read_all(MAX_CONTENT, &mut buffer).map_err(corrupt)?;
            Ok::<_, RepoError>((buffer, object))
        })
        .await??;
        let plain = buffer.get(begin..).unwrap_or_default();
        if let Rest::Parts { whole, .. } = &mut self.rest {
            whole.update(plain);
        }
        self.note_object(plain.len() as u64, object.content, expected)?;
        Ok(buffer)
    }

    async fn next_piece(&mut self) -> Result<Option<Bytes>> {
        if let Rest::Sliced(assembled) = &mut self.rest { assembled.next_piece().await } else { Ok(None) }
    }

    /// The object that holds what comes next; `None` when all was handed out, and where no single object does.
    async fn next_object(&mut self) -> Result<Option<PartRange>> {
        match &mut self.rest {
            Rest::Sliced(_) => Ok(None),
            Rest::Whole(bytes) => {
                let Some(bytes) = bytes.take() else { return Ok(None) };
                let kinds = vec![
                    ObjectKind::Segment,
                    ObjectKind::Ended,
                    ObjectKind::History,
                    ObjectKind::BackupHistory,
                    ObjectKind::Partial,
                ];
                Ok(Some(PartRange { kinds, key: self.key.clone(), bytes, expected: None }))
            }
            Rest::Parts { table, next, .. } => {
                let Some(&expected) = table.parts.get(*next) else { return Ok(None) };
                let hex = table.hash.to_string();
                let stem = hex.get(..32).unwrap_or(&hex);
                let n = u32::try_from(*next).unwrap_or(u32::MAX);
                let key = self.archive.paths().part(self.name, stem, n);
                // Not absence of the file: it is there, and incomplete.
                let bytes = found(self.archive.store().get(&key).await)?
                    .ok_or_else(|| RepoError::corrupt(&self.key, format!("its part {key} is missing")))?;
                *next += 1;
                Ok(Some(PartRange { kinds: vec![ObjectKind::Part], key, bytes, expected: Some(expected) }))
            }
        }
    }

    /// Holds an object that was read against the table of parts, and after the last one the whole.
    fn note_object(
        &mut self,
        length: u64,
        content: ContentHash,
        expected: Option<(u32, ContentHash)>,
    ) -> Result<()> {
        if let Rest::Parts { table, next, whole } = &mut self.rest {
            let described = expected == Some((u32::try_from(length).unwrap_or(u32::MAX), content));
            let last = *next >= table.parts.len();
            if !described || (last && ContentHash(*whole.finalize().as_bytes()) != table.hash) {
                return Err(RepoError::corrupt(&self.key, "its parts are not what its table describes"));
            }
        }
        Ok(())
    }
}
