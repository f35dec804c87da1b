//! What a server sends, in the order in which it has to come: an archive for each tablespace, one for the data directory, the
//! manifest, where the backup stops.
//!
//! Always holds: [`Part::End`] comes only after every archive and the manifest, each once, and after the server said that the
//! command is complete. An ERROR about checksums after everything else means that the backup is complete and damaged.

use std::path::PathBuf;

use bytes::Bytes;
use walpoint_base::{Lsn, PgMajor, TimelineId};

use super::error::{BaseBackupError, shown};
use super::framing::{Framed, decode};
use crate::connect::{AnswerPiece, RowError, Rows, ServerReport};

/// SQLSTATE of damaged data.
const DATA_CORRUPTED: &str = "XX001";

/// Where a backup starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// Where recovery from it begins (the redo position).
    pub lsn: Lsn,
    /// Its timeline.
    pub timeline: TimelineId,
}

/// A directory that is sent as an archive of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Space {
    /// Which.
    pub archive: StreamArchive,
    /// Where it is on the server; empty for the data directory.
    pub location: PathBuf,
    /// Bytes in it, as the server estimated.
    pub bytes: u64,
}

/// An archive of the stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StreamArchive {
    /// The data directory.
    Data,
    /// The tablespace with that oid.
    Tablespace(u32),
}

/// What the stream consists of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StreamPart {
    /// An archive begins.
    Archive(StreamArchive),
    /// The manifest begins.
    Manifest,
    /// The next bytes of what began last.
    Data(Bytes),
    /// The server complains about what it reads now.
    Notice(ServerReport),
    /// Everything was sent.
    End(StreamEnd),
}

/// How a backup ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamEnd {
    /// The end of the WAL that the backup needs, exclusive.
    pub lsn: Lsn,
    /// The timeline of that.
    pub timeline: TimelineId,
    /// What the server says about damaged pages, if it found any.
    pub damage: Option<String>,
}

/// What has to come next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// In the copying; so many archives have begun.
    Copy { archives: usize, manifest: bool, open: bool },
    /// The position of the end has come.
    Stopped { lsn: Lsn, timeline: TimelineId },
    /// [`Part::End`] was given.
    Ended,
}

/// Why a piece is not the next part.
#[derive(Debug)]
pub(super) enum Unexpected {
    /// The server refuses.
    Refused(ServerReport),
    /// A result that is not what this result should be.
    Answer(RowError),
    /// Something else.
    Error(BaseBackupError),
}

impl From<BaseBackupError> for Unexpected {
    fn from(error: BaseBackupError) -> Self {
        Self::Error(error)
    }
}

/// Follows a stream from its first archive on.
#[derive(Debug)]
pub(super) struct StreamOrder {
    major: PgMajor,
    spaces: Vec<Space>,
    stage: Stage,
    damage: Option<String>,
}

impl StreamOrder {
    /// Of a server of that version, which has announced these archives.
    pub(super) fn new(major: PgMajor, spaces: Vec<Space>) -> Result<Self, BaseBackupError> {
        if spaces.iter().filter(|space| space.archive == StreamArchive::Data).count() != 1 {
            return Err(BaseBackupError::malformed("it has not exactly one data directory"));
        }
        let stage = Stage::Copy { archives: 0, manifest: false, open: false };
        Ok(Self { major, spaces, stage, damage: None })
    }

    /// What was announced.
    pub(super) fn spaces(&self) -> &[Space] {
        &self.spaces
    }

    /// Whether the end was given.
    pub(super) fn has_ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// Takes the next piece; the part that it is, if it is one.
    pub(super) fn part(&mut self, piece: AnswerPiece) -> Result<Option<StreamPart>, Unexpected> {
        let malformed = |what: &str| Err(BaseBackupError::malformed(what).into());
        match (piece, self.stage) {
            (AnswerPiece::CopyBegin, Stage::Copy { archives, manifest, open: false }) => {
                if self.major.get() >= 15 {
                    if archives > 0 || manifest {
                        return malformed("a second stream");
                    }
                    self.stage = Stage::Copy { archives, manifest, open: true };
                    return Ok(None);
                }
                match self.spaces.get(archives) {
                    Some(space) => {
                        self.stage = Stage::Copy { archives: archives + 1, manifest, open: true };
                        Ok(Some(StreamPart::Archive(space.archive)))
                    }
                    None if !manifest => {
                        self.stage = Stage::Copy { archives, manifest: true, open: true };
                        Ok(Some(StreamPart::Manifest))
                    }
                    None => malformed("a stream after the manifest"),
                }
            }
            (AnswerPiece::Data(data), Stage::Copy { archives, manifest, open: true }) => {
                match self.major.get() {
                    ..15 => Ok(Some(StreamPart::Data(data))),
                    _ => Ok(self.framed(&data, archives, manifest)?),
                }
            }
            (AnswerPiece::CopyEnd, Stage::Copy { archives, manifest, open: true }) => {
                self.stage = Stage::Copy { archives, manifest, open: false };
                Ok(None)
            }
            (AnswerPiece::Rows(rows), Stage::Copy { archives, manifest: true, open: false })
                if archives == self.spaces.len() =>
            {
                let (lsn, timeline) = position(&rows).map_err(Unexpected::Answer)?;
                self.stage = Stage::Stopped { lsn, timeline };
                Ok(None)
            }
            (AnswerPiece::Refused(report), Stage::Stopped { .. }) if report.sqlstate == DATA_CORRUPTED => {
                self.damage = Some(report.message);
                Ok(None)
            }
            (AnswerPiece::Refused(report), _) => Err(Unexpected::Refused(report)),
            (AnswerPiece::Complete, _) => Ok(None),
            (AnswerPiece::Ready, Stage::Stopped { lsn, timeline }) => {
                self.stage = Stage::Ended;
                Ok(Some(StreamPart::End(StreamEnd { lsn, timeline, damage: self.damage.take() })))
            }
            (AnswerPiece::Ready, _) => malformed("it ends before everything was sent"),
            (
                AnswerPiece::CopyBegin
                | AnswerPiece::CopyBothBegin
                | AnswerPiece::Data(_)
                | AnswerPiece::CopyEnd
                | AnswerPiece::Rows(_),
                _,
            ) => malformed("its pieces come in another order than PostgreSQL sends them"),
        }
    }

    /// A message of 15 and later.
    fn framed(
        &mut self,
        data: &Bytes,
        archives: usize,
        manifest: bool,
    ) -> Result<Option<StreamPart>, BaseBackupError> {
        match decode(data).map_err(BaseBackupError::Malformed)? {
            Framed::Archive { name } => {
                let archive = archive(&name)?;
                let announced = self.spaces.get(archives).is_some_and(|space| space.archive == archive);
                if !announced || manifest {
                    let name = shown(&name);
                    return Err(BaseBackupError::malformed(format!(
                        "archive {name} was not announced as next"
                    )));
                }
                self.stage = Stage::Copy { archives: archives + 1, manifest, open: true };
                Ok(Some(StreamPart::Archive(archive)))
            }
            Framed::Manifest if archives == self.spaces.len() && !manifest => {
                self.stage = Stage::Copy { archives, manifest: true, open: true };
                Ok(Some(StreamPart::Manifest))
            }
            Framed::Manifest => Err(BaseBackupError::malformed("its manifest comes too early, or twice")),
            Framed::Data(data) if archives > 0 || manifest => Ok(Some(StreamPart::Data(data))),
            Framed::Data(_) => Err(BaseBackupError::malformed("data of no archive")),
            Framed::Progress => Ok(None),
        }
    }
}

/// A position and its timeline: the first result, and the last.
pub(super) fn position(rows: &Rows) -> Result<(Lsn, TimelineId), RowError> {
    let row = rows.clone().one()?;
    Ok((row.get("recptr")?, row.get("tli")?))
}

/// The second result: what will be sent.
pub(super) fn spaces(rows: &Rows) -> Result<Vec<Space>, RowError> {
    let space = |row: &crate::connect::Row| {
        let archive = row.nullable("spcoid")?.map_or(StreamArchive::Data, StreamArchive::Tablespace);
        let location = row.path("spclocation")?.unwrap_or_default();
        // In kilobytes, as a signed number.
        let size = row.nullable::<i64>("size")?.unwrap_or(0);
        Ok(Space { archive, location, bytes: u64::try_from(size).unwrap_or(0).saturating_mul(1024) })
    };
    rows.iter().map(space).collect()
}

/// `base.tar`, `<oid>.tar`.
fn archive(name: &[u8]) -> Result<StreamArchive, BaseBackupError> {
    let stem = std::str::from_utf8(name).ok().and_then(|name| name.strip_suffix(".tar"));
    match stem {
        Some("base") => Ok(StreamArchive::Data),
        Some(oid) if oid.parse::<u32>().is_ok() => Ok(StreamArchive::Tablespace(oid.parse().unwrap_or(0))),
        _ => Err(BaseBackupError::malformed(format!("an archive of the name {}", shown(name)))),
    }
}

#[cfg(test)]
mod tests;
