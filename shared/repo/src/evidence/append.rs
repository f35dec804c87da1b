//! The next record.
//!
//! Where the copy of the end is current, three requests: it is read, the record is created, the copy is replaced. Where another writer was
//! faster, or a writer was killed between the last two, the records behind the copy are listed and the last one is read.

use futures_util::TryStreamExt;
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::ClusterObject;
use walpoint_storage::object::{ObjectKind, ObjectWriter};
use walpoint_storage::store::NumberClaim;

use super::record::{Draft, FORMAT, MAX_RECORD, Record, Stored};
use super::{Evidence, Head, RecordHash};

/// How often the next number is tried when others are faster.
const ATTEMPTS: usize = 100;

/// A record that was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Its hash and its number.
    pub head: Head,
    /// The record before it, if that cannot be read: the chain is broken there.
    pub unreadable: Option<u64>,
}

/// Where a chain ends.
#[derive(Clone, Copy, Default)]
struct End {
    /// The last number, 0 if there is none.
    number: u64,
    /// The last record's hash; `None` if there is none or it cannot be read.
    hash: Option<RecordHash>,
}

impl Evidence {
    /// Writes a record at the end of the chain.
    pub async fn append(&self, draft: &Draft) -> Result<Appended> {
        let mut end = match self.head_copy().await? {
            Some(Head { hash, number }) => End { number, hash: Some(hash) },
            None => self.end_behind(End::default()).await?,
        };
        for _ in 0..ATTEMPTS {
            let number = end.number.saturating_add(1);
            let (hash, won) = self.try_append(draft, number, end.hash).await?;
            if won {
                let head = Head { hash, number };
                self.copy_head(head).await;
                let unreadable = Some(end.number).filter(|before| *before > 0 && end.hash.is_none());
                return Ok(Appended { head, unreadable });
            }
            end = self.end_behind(end).await?;
        }
        Err(RepoError::Internal(format!(
            "others wrote {ATTEMPTS} records of evidence at the same moment\nHINT: Try again."
        )))
    }

    /// The hash and the number of the last record; `None` if there is none.
    pub async fn head(&self) -> Result<Option<Head>> {
        // The copy's own number is listed too: its record may have been removed.
        let from = self.head_copy().await?.map_or(0, |copy| copy.number.saturating_sub(1));
        let mut last = self.last_behind(from).await?;
        if last.is_none() && from > 0 {
            last = self.last_behind(0).await?;
        }
        match last {
            None => Ok(None),
            Some(number) => Ok(Some(Head { hash: self.read_record(number).await?.hash, number })),
        }
    }

    /// Creates a record under that number, unless there is one: its hash, and whether this one is there now.
    async fn try_append(
        &self,
        draft: &Draft,
        number: u64,
        previous_hash: Option<RecordHash>,
    ) -> Result<(RecordHash, bool)> {
        let key = self.paths.evidence(number);
        let record = Record {
            number,
            previous_hash,
            cluster: self.cluster.clone(),
            repository_id: self.repository.to_string(),
            said: draft.clone(),
        };
        let json = serde_json::to_vec(&Stored { format: FORMAT, record })
            .map_err(|error| RepoError::Internal(format!("{key} cannot be written: {error}")))?;
        if json.len() > MAX_RECORD {
            let what = format!(
                "the record has {} bytes, and {MAX_RECORD} is the most\nHINT: Shorten its texts, or attach a file.",
                json.len()
            );
            return Err(RepoError::Refused { key, what });
        }
        let hash = RecordHash::of(&json);
        let sealed = ObjectWriter::new(&self.sealer, ObjectKind::Evidence, &key).and_then(|mut writer| {
            writer.frame(&json)?;
            writer.finish()
        });
        match self.store.claim(&sealed.map_err(RepoError::sealing)?).await {
            Ok(claim) => Ok((hash, claim == NumberClaim::Won)),
            // The number is taken by what cannot be read.
            Err(RepoError::Corrupt { key: taken, .. }) if taken == key => Ok((hash, false)),
            Err(error) => Err(error),
        }
    }

    /// The end of the chain, by the records behind what was taken for it.
    async fn end_behind(&self, known: End) -> Result<End> {
        // None: the first record is still to come, or the store does not list yet what it refused to create again.
        let Some(number) = self.last_behind(known.number).await? else { return Ok(known) };
        match self.read_record(number).await {
            Ok(last) => Ok(End { number, hash: Some(last.hash) }),
            Err(RepoError::Corrupt { .. } | RepoError::NotFound { .. }) => Ok(End { number, hash: None }),
            Err(error) => Err(error),
        }
    }

    /// The highest number behind that one.
    async fn last_behind(&self, number: u64) -> Result<Option<u64>> {
        Ok(self.numbers(number).await?.last().copied())
    }

    /// The numbers of the records behind that one, in their order.
    pub(super) async fn numbers(&self, behind: u64) -> Result<Vec<u64>> {
        let after = (behind > 0).then(|| self.paths.evidence(behind));
        let Ok(prefix) = self.paths.sequence("evidence") else { return Ok(Vec::new()) };
        let mut listing = self.store.list(&prefix, after.as_ref().map(|key| key.as_str()));
        let mut numbers = Vec::new();
        while let Some(entry) = listing.try_next().await? {
            if let Some(ClusterObject::Evidence(number)) = self.paths.parse(&entry.key) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}
