//! The messages between the thin clients and the processes that serve them, over a Unix socket.
//!
//! A message is a length (u32, little-endian, at most [`MAX_MESSAGE`]) and that many bytes. The bytes begin with the
//! protocol's version and the message's kind; integers are little-endian, texts have a u16 length before them. One
//! request and one reply for each connection; before the reply to a fetch there may be any number of
//! [`FetchOutcome::Working`], which tell that the server is alive and what it waits for.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use crate::{CreatedTablespace, Lsn};

/// No message is longer.
pub const MAX_MESSAGE: usize = 64 << 10;

/// Where a standby keeps the history files it has seen, relative to `pg_wal`.
pub const HISTORY_CACHE: &str = "walpoint-spool/history";

/// Where the prefetcher's socket is unless the configuration says otherwise, relative to the data directory. `pg_rewind` and
/// `pg_basebackup` leave out what they find in this directory, which every data directory has; in `pg_wal` the first would try
/// to read the socket, and fail. PostgreSQL removes only files that begin with `mmap.` from it.
pub const FETCH_SOCKET: &str = "pg_dynshmem/walpoint-fetch";

/// A file of this name in [`HISTORY_CACHE`] says that `standby_history_outage` is `stop`: `restore-fetch` reads no
/// configuration.
pub const STOP_WITHOUT_HISTORY: &str = "stop-without-history";

/// Changes when an old peer could misread a new one.
const VERSION: u8 = 1;

/// Connects to the process that listens at `path`. Connecting waits for `limit` at most; so does each read and write of the
/// stream until it is given other limits.
///
/// A process that hangs accepts nothing, and its queue keeps the connections that earlier clients have long closed. Once it is
/// full, connecting waits until there is room: without a limit, for ever. That is [`io::ErrorKind::TimedOut`] here.
pub fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let begun = Instant::now();
    loop {
        // A timeout of zero would mean none at all.
        let left = limit.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
        // The one for sending is also the one for connecting (unix(7)).
        set_socket_timeout(&socket, Timeout::Send, Some(left))?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => break,
            Err(Errno::INTR) if begun.elapsed() < limit => {}
            Err(Errno::INTR | Errno::AGAIN) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "its queue of connections is full"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_write_timeout(Some(limit))?;
    stream.set_read_timeout(Some(limit))?;
    Ok(stream)
}

/// What the client found at the path it was given, so that both sides know that they speak of the same file although
/// their paths may differ. Of a file that is not a segment the first three are 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FileIdentity {
    /// The system identifier in the segment's first page.
    pub system_id: u64,
    /// The timeline of the first page.
    pub page_timeline: u32,
    /// The address of the first page.
    pub page_address: u64,
    /// The file's length in bytes.
    pub size: u64,
    /// The file's inode.
    pub inode: u64,
    /// Its modification time, seconds since 1970.
    pub mtime: i64,
    /// The nanoseconds of that.
    pub mtime_nsec: u32,
}

impl FileIdentity {
    /// Reads the identity of an open file from its metadata and its first page.
    ///
    /// The fields of a segment are taken from the long page header (`XLogLongPageHeaderData`): magic and info (u16
    /// each), timeline (u32), page address (u64), remaining length (u32), padding, system identifier (u64). They are zero where
    /// that page cannot be read: which file it is shows all the same, and whoever reads its content finds out why not.
    ///
    /// # Errors
    ///
    /// If the file has no metadata.
    pub fn of(file: &std::fs::File, is_segment: bool) -> io::Result<Self> {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let meta = file.metadata()?;
        let mut identity = Self {
            size: meta.size(),
            inode: meta.ino(),
            mtime: meta.mtime(),
            mtime_nsec: u32::try_from(meta.mtime_nsec()).unwrap_or_default(),
            ..Self::default()
        };
        let mut header = [0; 32];
        if is_segment && meta.size() >= 32 && file.read_exact_at(&mut header, 0).is_ok() {
            identity.page_timeline = u32::from_le_bytes(field(&header, 4));
            identity.page_address = u64::from_le_bytes(field(&header, 8));
            identity.system_id = u64::from_le_bytes(field(&header, 24));
        }
        Ok(identity)
    }
}

fn field<const N: usize>(header: &[u8; 32], at: usize) -> [u8; N] {
    std::array::from_fn(|i| header[at + i])
}

/// `archive-push` asks that a file of `pg_wal` be made durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PushRequest {
    /// The file's name, without a directory.
    pub name: String,
    /// What the client found there.
    pub identity: FileIdentity,
}

/// How long a client waits for the reply about a file of that many bytes from a daemon that says now and then that it is at
/// work. The daemon gives up on a store, and says so, after half of that at the latest.
pub fn push_patience(size: u64) -> Duration {
    Duration::from_secs(120 + size / (512 << 10))
}

/// How often the daemon says that a push is under way, until its reply.
pub const PUSH_ALIVE: Duration = Duration::from_secs(4);

/// A daemon that has said nothing about a push for so long hangs: the client archives without it.
pub const PUSH_SILENCE: Duration = Duration::from_secs(15);

/// Set for the `archive-agent push` that stands in for the daemon: it writes its exit status to its standard output, as a line, when it
/// is done. A process cannot end as long as one of its threads is in a filesystem that hangs.
pub const PUSH_OUTCOME: &str = "WALPOINT_PUSH_OUTCOME";

/// What became of a push.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PushReply {
    /// Stored in every repository that has to acknowledge, or not.
    pub outcome: PushOutcome,
    /// The identity of the file that the daemon read.
    pub identity: FileIdentity,
    /// For PostgreSQL's log: empty, or what failed and what to do.
    pub message: String,
    /// Lines to be remembered in `pg_wal` ([`crate::archived`]), where the daemon may not write there.
    pub remember: Vec<String>,
}

/// The outcome of a push.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PushOutcome {
    /// Durable in every repository that has to acknowledge.
    Stored,
    /// Not stored. The message says why.
    Failed,
    /// The daemon is going away: ask again.
    Retry,
    /// Not stored and dropped: too much waits (`queue_max`), or an operator skipped it. The message says so.
    Dropped,
    /// No answer yet; another reply follows.
    Working,
}

/// Somebody asks the daemon of `archive-push` how it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthRequest;

/// The daemon answers, so it lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthReply {
    /// Which of its tasks fail, and why, a line each; empty if none does.
    pub problems: String,
}

/// `restore-fetch` asks for a file of WAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchRequest {
    /// What PostgreSQL asks for (`%f`).
    pub name: String,
    /// Where it wants it (`%p`), as given; for messages only.
    pub path: String,
    /// The system identifier in the `global/pg_control` beside that path: whose WAL it is.
    pub system_id: u64,
    /// The inode of the path's directory, `pg_wal`, so that both sides know that they speak of the same one although
    /// their paths may differ.
    pub directory: u64,
    /// Whether a server recovers there and will ask for what follows. `pg_rewind` does not.
    pub ahead: bool,
}

/// What became of a fetch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchReply {
    /// Whether the file is there.
    pub outcome: FetchOutcome,
    /// When ready: the verified file, as a path relative to the directory of the requested path, or an absolute one if
    /// the spool lies elsewhere. The client renames it.
    pub file: String,
    /// When ready: the file's length in bytes.
    pub size: u64,
    /// For PostgreSQL's log: empty, or what failed and what to do.
    pub message: String,
    /// When ready: the tablespaces that replay of the file creates. The client judges whether it may: it sees the same files
    /// as PostgreSQL.
    pub tablespaces: Vec<CreatedTablespace>,
}

/// The outcome of a fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchOutcome {
    /// Verified and complete, under the path of the reply.
    Ready,
    /// Proven not to be in the archive: exit 1.
    Absent,
    /// Not to be had, and not proven absent: exit 255 so that recovery does not end.
    Uncertain,
    /// On a standby, not to be had at the moment: exit 1, so that the standby goes on and asks again.
    Later,
    /// This prefetcher serves another cluster or another data directory: nothing is known about the file.
    Elsewhere,
    /// No answer yet; another reply follows. The message says what is waited for, or nothing.
    Working,
}

/// A message that can be sent.
pub trait Message: Sized {
    /// Tells the kinds apart.
    const KIND: u8;
    /// Appends the fields.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads the fields. `None` if they are not there.
    fn take(input: &mut Input<'_>) -> Option<Self>;

    /// The message with its length before it.
    fn encode(&self) -> io::Result<Vec<u8>> {
        let mut out = vec![0, 0, 0, 0, VERSION, Self::KIND];
        self.put(&mut out);
        let length = out.len() - 4;
        let length = u32::try_from(length).ok().filter(|_| length <= MAX_MESSAGE);
        let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "message too long"))?;
        for (to, from) in out.iter_mut().zip(length.to_le_bytes()) {
            *to = from;
        }
        Ok(out)
    }

    /// Reads what follows the length. Any bytes give a message or an error.
    fn decode(bytes: &[u8]) -> io::Result<Self> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut input = Input(bytes);
        match (input.u8(), input.u8()) {
            (Some(VERSION), Some(kind)) if kind == Self::KIND => {}
            (Some(version), Some(kind)) => {
                return Err(invalid(format!(
                    "the peer speaks version {version} of the socket protocol, message {kind}; expected version {VERSION}, message {}: \
                     are client and daemon of the same release?",
                    Self::KIND
                )));
            }
            _ => return Err(invalid("empty message".to_owned())),
        }
        let message = Self::take(&mut input).filter(|_| input.0.is_empty());
        message.ok_or_else(|| invalid("a message with missing or surplus bytes".to_owned()))
    }

    /// Sends the message.
    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.encode()?)?;
        to.flush()
    }

    /// Receives a message.
    fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let mut bytes = vec![0; checked_length(length)?];
        from.read_exact(&mut bytes)?;
        Self::decode(&bytes)
    }
}

/// The length of a message, refused if it is over [`MAX_MESSAGE`].
pub fn checked_length(prefix: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MAX_MESSAGE {
        let text = format!("a message of {length} bytes: the peer does not speak this protocol");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(length)
}

/// The unread rest of a message.
pub struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self, length: usize) -> Option<&[u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        String::from_utf8(self.bytes(length)?.to_vec()).ok()
    }
}

/// Appends a text, cut at a character boundary to what a length of 16 bits and the message can hold.
fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(16 << 10);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.extend(u16::try_from(end).unwrap_or_default().to_le_bytes());
    out.extend(&text.as_bytes()[..end]);
}

fn put_identity(out: &mut Vec<u8>, identity: &FileIdentity) {
    out.extend(identity.system_id.to_le_bytes());
    out.extend(identity.page_timeline.to_le_bytes());
    out.extend(identity.page_address.to_le_bytes());
    out.extend(identity.size.to_le_bytes());
    out.extend(identity.inode.to_le_bytes());
    out.extend(identity.mtime.to_le_bytes());
    out.extend(identity.mtime_nsec.to_le_bytes());
}

fn take_identity(input: &mut Input<'_>) -> Option<FileIdentity> {
    Some(FileIdentity {
        system_id: input.u64()?,
        page_timeline: input.u32()?,
        page_address: input.u64()?,
        size: input.u64()?,
        inode: input.u64()?,
        mtime: i64::from_le_bytes(input.array()?),
        mtime_nsec: input.u32()?,
    })
}

impl Message for PushRequest {
    const KIND: u8 = 1;

    fn put(&self, out: &mut Vec<u8>) {
        put_text(out, &self.name);
        put_identity(out, &self.identity);
    }

    fn take(input: &mut Input<'_>) -> Option<Self> {
        Some(Self { name: input.text()?, identity: take_identity(input)? })
    }
}

impl Message for PushReply {
    const KIND: u8 = 2;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(match self.outcome {
            PushOutcome::Stored => 0,
            PushOutcome::Failed => 1,
            PushOutcome::Retry => 2,
            PushOutcome::Dropped => 3,
            PushOutcome::Working => 4,
        });
        put_identity(out, &self.identity);
        put_text(out, &self.message);
        out.extend(u32::try_from(self.remember.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.remember.iter().for_each(|line| put_text(out, line));
    }

    fn take(input: &mut Input<'_>) -> Option<Self> {
        let outcome = match input.u8()? {
            0 => PushOutcome::Stored,
            1 => PushOutcome::Failed,
            2 => PushOutcome::Retry,
            3 => PushOutcome::Dropped,
            4 => PushOutcome::Working,
            _ => return None,
        };
        let (identity, message) = (take_identity(input)?, input.text()?);
        // Each is longer than a byte, so a count that is not true soon finds the end.
        let mut remember = Vec::new();
        for _ in 0..input.u32()? {
            remember.push(input.text()?);
        }
        Some(Self { outcome, identity, message, remember })
    }
}

impl Message for FetchRequest {
    const KIND: u8 = 3;

    fn put(&self, out: &mut Vec<u8>) {
        put_text(out, &self.name);
        put_text(out, &self.path);
        out.extend(self.system_id.to_le_bytes());
        out.extend(self.directory.to_le_bytes());
        out.push(self.ahead.into());
    }

    fn take(input: &mut Input<'_>) -> Option<Self> {
        Some(Self {
            name: input.text()?,
            path: input.text()?,
            system_id: input.u64()?,
            directory: input.u64()?,
            ahead: input.u8()? != 0,
        })
    }
}

impl Message for FetchReply {
    const KIND: u8 = 4;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(match self.outcome {
            FetchOutcome::Ready => 0,
            FetchOutcome::Absent => 1,
            FetchOutcome::Uncertain => 2,
            FetchOutcome::Later => 3,
            FetchOutcome::Working => 4,
            FetchOutcome::Elsewhere => 5,
        });
        put_text(out, &self.file);
        out.extend(self.size.to_le_bytes());
        put_text(out, &self.message);
        out.extend(u32::try_from(self.tablespaces.len()).unwrap_or(u32::MAX).to_le_bytes());
        for tablespace in &self.tablespaces {
            out.extend(tablespace.record.0.to_le_bytes());
            out.extend(tablespace.oid.to_le_bytes());
            out.extend(u32::try_from(tablespace.location.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend(&tablespace.location);
        }
    }

    fn take(input: &mut Input<'_>) -> Option<Self> {
        let outcome = match input.u8()? {
            0 => FetchOutcome::Ready,
            1 => FetchOutcome::Absent,
            2 => FetchOutcome::Uncertain,
            3 => FetchOutcome::Later,
            4 => FetchOutcome::Working,
            5 => FetchOutcome::Elsewhere,
            _ => return None,
        };
        let (file, size, message) = (input.text()?, input.u64()?, input.text()?);
        // Each is longer than a byte, so a count that is not true soon finds the end.
        let mut tablespaces = Vec::new();
        for _ in 0..input.u32()? {
            let (record, oid) = (Lsn(input.u64()?), input.u32()?);
            let length = usize::try_from(input.u32()?).ok()?;
            let location = input.bytes(length)?.to_vec();
            tablespaces.push(CreatedTablespace { record, oid, location });
        }
        Some(Self { outcome, file, size, message, tablespaces })
    }
}

impl Message for HealthRequest {
    const KIND: u8 = 5;

    fn put(&self, _: &mut Vec<u8>) {}

    fn take(_: &mut Input<'_>) -> Option<Self> {
        Some(Self)
    }
}

impl Message for HealthReply {
    const KIND: u8 = 6;

    fn put(&self, out: &mut Vec<u8>) {
        put_text(out, &self.problems);
    }

    fn take(input: &mut Input<'_>) -> Option<Self> {
        Some(Self { problems: input.text()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> PushRequest {
        let identity = FileIdentity {
            system_id: 7,
            page_timeline: 1,
            page_address: 2 << 24,
            size: 16 << 20,
            inode: 5,
            mtime: -1,
            mtime_nsec: 9,
        };
        PushRequest { name: "000000010000000000000002".into(), identity }
    }

    #[test]
    fn messages_arrive_as_sent() {
        let sent = request();
        let mut wire = Vec::new();
        sent.write(&mut wire).unwrap();
        assert_eq!(PushRequest::read(&mut wire.as_slice()).unwrap(), sent);

        let reply = PushReply {
            outcome: PushOutcome::Failed,
            identity: sent.identity,
            message: "é".repeat(40_000),
            remember: vec!["a line".into(), "another".into()],
        };
        let got = PushReply::decode(&reply.encode().unwrap()[4..]).unwrap();
        assert_eq!((got.outcome, got.identity), (reply.outcome, reply.identity));
        assert!(reply.message.starts_with(&got.message) && got.message.len() > 16_000);
    }

    #[test]
    fn health_arrives_as_sent_and_is_no_push() {
        let asked = HealthRequest.encode().unwrap();
        assert_eq!(HealthRequest::decode(&asked[4..]).unwrap(), HealthRequest);
        assert!(PushRequest::decode(&asked[4..]).is_err());
        assert!(HealthRequest::decode(&request().encode().unwrap()[4..]).is_err());
        let reply = HealthReply { problems: "main: look-ahead: no disk\n".into() };
        assert_eq!(HealthReply::decode(&reply.encode().unwrap()[4..]).unwrap(), reply);
    }

    #[test]
    fn fetches_arrive_as_sent() {
        let request = FetchRequest {
            name: "00000002.history".into(),
            path: "pg_wal/x".into(),
            system_id: 7,
            directory: 9,
            ahead: true,
        };
        assert_eq!(FetchRequest::decode(&request.encode().unwrap()[4..]).unwrap(), request);
        for outcome in [
            FetchOutcome::Ready,
            FetchOutcome::Absent,
            FetchOutcome::Uncertain,
            FetchOutcome::Later,
            FetchOutcome::Working,
            FetchOutcome::Elsewhere,
        ] {
            let one = CreatedTablespace { record: Lsn(40), oid: 16400, location: b"/x\xFF".to_vec() };
            let reply = FetchReply {
                outcome,
                file: "walpoint-spool/x".into(),
                size: 5,
                message: "m".into(),
                tablespaces: vec![one.clone(), CreatedTablespace { location: Vec::new(), ..one }],
            };
            assert_eq!(FetchReply::decode(&reply.encode().unwrap()[4..]).unwrap(), reply);
        }
    }

    #[test]
    fn connecting_ends_where_a_queue_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // Room for one.
        rustix::net::listen(&listener, 0).unwrap();
        let limit = Duration::from_millis(200);
        // It keeps its place in the queue.
        drop(connect(&path, limit).unwrap());
        let begun = Instant::now();
        assert_eq!(connect(&path, limit).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!((limit..limit * 20).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        listener.accept().unwrap();
        let mut stream = connect(&path, limit).unwrap();
        let begun = Instant::now();
        assert_eq!(HealthReply::read(&mut stream).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!((limit..limit * 20).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        drop(listener);
        assert_eq!(connect(&path, limit).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let nowhere = dir.path().join("nowhere");
        assert_eq!(connect(&nowhere, limit).unwrap_err().kind(), io::ErrorKind::NotFound);
        let long = dir.path().join("l".repeat(108));
        assert!(connect(&long, limit).is_err());
    }

    #[test]
    fn a_foreign_peer_is_an_error() {
        assert!(PushRequest::read(&mut b"GET / HTTP/1.1\r\n".as_slice()).is_err());
        assert!(PushReply::decode(&request().encode().unwrap()[4..]).is_err());
        let mut other = request().encode().unwrap();
        other[4] = 9;
        assert!(PushRequest::decode(&other[4..]).unwrap_err().to_string().contains("same release"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(mut bytes: Vec<u8>, kind in 1u8..5) {
            for (i, b) in [VERSION, kind].into_iter().enumerate() {
                if let Some(slot) = bytes.get_mut(i) { *slot = b; }
            }
            let _results = (
                PushRequest::decode(&bytes).is_ok(), PushReply::decode(&bytes).is_ok(),
                FetchRequest::decode(&bytes).is_ok(), FetchReply::decode(&bytes).is_ok(),
            );
        }
    }
}
