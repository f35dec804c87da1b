//! Reading records: one, all in their order, or the newest ones backward, with many requests at once.

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::Key;
use walpoint_storage::object::{ObjectKind, ObjectReader, Sealer};

use super::record::{FORMAT, MAX_RECORD, Record, Stored};
use super::{Evidence, RecordHash};

/// Records that one task reads, one after the other: a task for each would cost more than the reading.
const BATCH: usize = 8;

/// Tasks at once. With the longest records they hold 16 MiB.
const AT_ONCE: usize = 32;

/// A record with the bytes that its hash is of.
#[derive(Clone, PartialEq, Debug)]
pub struct ReadRecord {
    /// What it says.
    pub record: Record,
    /// Its hash.
    pub hash: RecordHash,
    /// The stored content, byte for byte.
    pub content: Bytes,
}

impl Evidence {
    /// All records that are there, in their order.
    pub async fn records(&self) -> Result<impl Stream<Item = (u64, Result<ReadRecord>)> + use<>> {
        let numbers = self.numbers(0).await?;
        Ok(self.read_all(numbers))
    }

    /// The newest records, at most so many, from the last one backward, and whether there are older ones. Where the copy of the end is
    /// right, older ones are not even listed.
    pub async fn newest(
        &self,
        most: u64,
    ) -> Result<(impl Stream<Item = (u64, Result<ReadRecord>)> + use<>, bool)> {
        let behind = self.head_copy().await?.map_or(0, |copy| copy.number.saturating_sub(most));
        let mut numbers = self.numbers(behind).await?;
        let mut has_older = behind > 0;
        // Records are missing, or the copy is about a chain that was longer.
        if has_older && (numbers.len() as u64) < most {
            numbers = self.numbers(0).await?;
            has_older = false;
        }
        let older = (numbers.len() as u64).saturating_sub(most);
        has_older |= older > 0;
        numbers.reverse();
        numbers.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        Ok((self.read_all(numbers), has_older))
    }

    /// These records, in this order.
    pub(super) fn read_all(
        &self,
        numbers: Vec<u64>,
    ) -> impl Stream<Item = (u64, Result<ReadRecord>)> + use<> {
        let batches: Vec<Vec<u64>> = numbers.chunks(BATCH).map(<[u64]>::to_vec).collect();
        let evidence = self.clone();
        stream::iter(batches)
            .map(move |batch| {
                let (evidence, of_task) = (evidence.clone(), batch.clone());
                let task = tokio::spawn(async move {
                    let mut read = Vec::with_capacity(of_task.len());
                    for number in of_task {
                        read.push((number, evidence.read_record(number).await));
                    }
                    read
                });
                async move {
                    let ended = |_| RepoError::Internal("a thread that reads evidence ended".to_owned());
                    task.await.map_err(ended).unwrap_or_else(|error| {
                        batch.first().map(|number| (*number, Err(error))).into_iter().collect()
                    })
                }
            })
            .buffered(AT_ONCE)
            .flat_map(stream::iter)
    }

    /// One record.
    pub async fn read_record(&self, number: u64) -> Result<ReadRecord> {
        let key = self.paths.evidence(number);
        let bytes = self.store.get(&key).await?;
        parse(&self.sealer, &key, bytes)
    }
}

fn parse(sealer: &Sealer, key: &Key, bytes: Bytes) -> Result<ReadRecord> {
    let mut content = Vec::new();
    ObjectReader::open(sealer, &[ObjectKind::Evidence], key, bytes)
        .and_then(|reader| reader.read_all(MAX_RECORD, &mut content))
        .map_err(|error| RepoError::corrupt(key, error))?;
    let Stored { format, record } =
        serde_json::from_slice(&content).map_err(|error| RepoError::corrupt(key, error))?;
    if format != FORMAT {
        return Err(RepoError::corrupt(
            key,
            format!("it has format {format}, and this version reads {FORMAT}"),
        ));
    }
    Ok(ReadRecord { record, hash: RecordHash::of(&content), content: content.into() })
}
