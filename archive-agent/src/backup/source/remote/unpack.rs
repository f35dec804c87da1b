//! The thread between the socket and the threads that store: archives become files, and everything is compared with the
//! server's manifest.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::PathBuf;

use anyhow::{Context, bail};
use bytes::{Buf, Bytes};
use tokio::sync::mpsc::Receiver;
use walpoint_pg::base_backup::{
    Event, ReceivedFiles, ReportedPage, ServerManifest, Space, Status, StreamEnd, StreamPart, Unpacked,
    Unpacker, check,
};
use walpoint_pg::control::ControlFile;

use super::dispatch::{Dispatcher, Gone};

/// What came besides the files.
#[derive(Debug)]
pub(super) struct Delivered {
    /// `backup_label`.
    pub(super) label: Vec<u8>,
    /// `tablespace_map`; empty if there is none.
    pub(super) tablespace_map: Vec<u8>,
    /// The tablespaces that came, by OID.
    pub(super) tablespaces: BTreeSet<u32>,
    /// `global/pg_control`.
    pub(super) control: ControlFile,
    /// The server's manifest, which agrees with what was received.
    pub(super) manifest: ServerManifest,
    /// Where the backup stopped.
    pub(super) end: StreamEnd,
}

/// What is known before the first archive.
#[derive(Debug)]
pub(super) struct Announced {
    /// What will be sent.
    pub(super) spaces: Vec<Space>,
    /// The data directory on the server.
    pub(super) data_directory: PathBuf,
    /// Its mode, which is in no archive.
    pub(super) mode: u16,
}

/// Takes everything that the server sends. Blocks. `None` if the threads that store have ended; one of them says why.
pub(super) fn unpack(
    parts: Receiver<StreamPart>,
    announced: &Announced,
    mut dispatcher: Dispatcher,
) -> anyhow::Result<Option<Delivered>> {
    let mut parts = Parts { parts, data: Bytes::new(), end: None };
    let unpacked = match archives(&mut parts, announced, &mut dispatcher) {
        Err(error) if error.is::<Gone>() => return Ok(None),
        unpacked => unpacked?,
    };
    // Whoever stores may finish while the manifest is compared.
    drop(dispatcher);
    let Unpacked { label, tablespace_map, tablespaces, control, ledger, .. } = unpacked;
    let manifest = check(&mut parts, ledger)?;
    let Some(end) = parts.end.take() else { bail!(ENDED_EARLY) };
    let control = ControlFile::parse(&control).context(
        "the server sent a pg_control while it was writing that file\nHINT: Run the backup again: this is rare.",
    )?;
    Ok(Some(Delivered { label, tablespace_map, tablespaces, control, manifest, end }))
}

const ENDED_EARLY: &str = "the server stopped sending before the backup was complete";

/// Everything up to the manifest.
fn archives(
    parts: &mut Parts,
    announced: &Announced,
    dispatcher: &mut Dispatcher,
) -> anyhow::Result<Unpacked> {
    let scratch = tempfile::tempfile()
        .context("could not create a scratch file in the directory for temporary files")?;
    let Announced { spaces, data_directory, mode } = announced;
    let mut unpacker = Unpacker::new(spaces, data_directory, ReceivedFiles::new(scratch));
    loop {
        match parts.parts.blocking_recv() {
            Some(StreamPart::Archive(archive)) => unpacker.archive(archive)?,
            Some(StreamPart::Data(bytes)) => unpacker.data(&bytes, &mut |event| dispatcher.take(event))?,
            Some(StreamPart::Notice(notice)) => match ReportedPage::read(&notice) {
                Some(page) => dispatcher.reported(page)?,
                None => tracing::debug!("the server says: {notice}"),
            },
            Some(StreamPart::Manifest) => break,
            Some(StreamPart::End(_)) | None => bail!(ENDED_EARLY),
        }
    }
    let unpacked = unpacker.finish()?;
    dispatcher.take(Event::Directory { path: b"", status: Status { mode: *mode, ..unpacked.root } })?;
    Ok(unpacked)
}

/// The bytes of the manifest, up to whatever else comes.
struct Parts {
    parts: Receiver<StreamPart>,
    data: Bytes,
    end: Option<StreamEnd>,
}

impl Read for &mut Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.data.is_empty() {
            match self.parts.blocking_recv() {
                Some(StreamPart::Data(bytes)) => self.data = bytes,
                Some(StreamPart::Notice(notice)) => tracing::debug!("the server says: {notice}"),
                Some(StreamPart::End(end)) => {
                    self.end = Some(end);
                    return Ok(0);
                }
                None if self.end.is_some() => return Ok(0),
                Some(StreamPart::Archive(_) | StreamPart::Manifest) | None => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, ENDED_EARLY));
                }
            }
        }
        let n = self.data.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..n), self.data.get(..n)) {
            to.copy_from_slice(from);
        }
        self.data.advance(n);
        Ok(n)
    }
}
