//! Reading all of an object to find out whether it is what was written.

use bytes::Bytes;
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::Key;
use walpoint_storage::object::{ObjectError, ObjectKind, ObjectReader, Sealer};

/// Reads a whole object, a frame at a time: the plain bytes in it.
pub(crate) async fn whole(sealer: Sealer, kind: ObjectKind, key: Key, bytes: Bytes) -> Result<u64> {
    crate::cpu::run(move || {
        let corrupt = |e: ObjectError| RepoError::corrupt(&key, e);
        let mut reader = ObjectReader::open(&sealer, &[kind], &key, bytes).map_err(corrupt)?;
        let (mut frame, mut plain) = (Vec::new(), 0u64);
        loop {
            frame.clear();
            if reader.next_frame(&mut frame).map_err(corrupt)?.is_none() {
                break;
            }
            plain += u64::try_from(frame.len()).unwrap_or(0);
        }
        reader.finish().map_err(corrupt)?;
        Ok(plain)
    })
    .await?
}
