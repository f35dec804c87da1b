//! A fetch: `restore-fetch` asks the prefetcher for a file of WAL; where the two meet.

use super::message::{Message, MessageInput, put_text};
use crate::{CreatedTablespace, Lsn, SystemId};

/// Where a standby keeps the history files it has seen, relative to `pg_wal`.
pub const HISTORY_CACHE: &str = "walpoint-spool/history";

/// Where the prefetcher's socket is unless the configuration says otherwise, relative to the data directory. `pg_rewind` and
/// `pg_basebackup` leave out what they find in this directory, which every data directory has; in `pg_wal` the first would try
/// to read the socket, and fail. PostgreSQL removes only files that begin with `mmap.` from it.
pub const FETCH_SOCKET: &str = "pg_dynshmem/walpoint-fetch";

/// A file of this name in [`HISTORY_CACHE`] says that `standby_history_outage` is `stop`: `restore-fetch` reads no
/// configuration.
pub const STOP_WITHOUT_HISTORY: &str = "stop-without-history";

/// `restore-fetch` asks for a file of WAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchRequest {
    /// What PostgreSQL asks for (`%f`).
    pub name: String,
    /// Where it wants it (`%p`), as given; for messages only.
    pub path: String,
    /// The system identifier in the `global/pg_control` beside that path: whose WAL it is.
    pub system_id: SystemId,
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

impl Message for FetchRequest {
    const KIND: u8 = 3;

    fn put(&self, out: &mut Vec<u8>) {
        put_text(out, &self.name);
        put_text(out, &self.path);
        out.extend(self.system_id.0.to_le_bytes());
        out.extend(self.directory.to_le_bytes());
        out.push(self.ahead.into());
    }

    fn take(input: &mut MessageInput<'_>) -> Option<Self> {
        Some(Self {
            name: input.text()?,
            path: input.text()?,
            system_id: SystemId(input.u64()?),
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

    fn take(input: &mut MessageInput<'_>) -> Option<Self> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetches_arrive_as_sent() {
        let request = FetchRequest {
            name: "00000002.history".into(),
            path: "pg_wal/x".into(),
            system_id: SystemId(7),
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
}
