//! Objects that cannot be read though their repository answers, for so long that it is no outage: each is as good as damaged.
//!
//! An I/O error of one sector, or a server's error for one key, looks like an outage that never ends. So what fails is remembered as
//! long as the process lasts. It counts only where the repository's descriptor could be read right afterwards: an outage does not.
//! A crash forgets everything here.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use walpoint_base::{ClusterName, SegmentName};
use walpoint_repo::agreement::{self, Agreement};
use walpoint_repo::wal::{WalArchive, WalHeader};
use walpoint_storage::RepoError;
use walpoint_storage::error::error_chain;
use walpoint_storage::layout::Key;

/// What failed for so long and so often is not an outage.
const LASTS: Duration = Duration::from_secs(30);
const TIMES: u32 = 3;

/// What failed last so long ago is an earlier failure. Longer than what could not be copied is left alone.
const EARLIER: Duration = Duration::from_secs(2 * 3600);

/// How long a repository may take to say whether a segment can be read again.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// What an object is read for: what cannot be read to its end may have a header that can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Asked {
    Header,
    Content,
}

/// A store, one of its objects, and what that is read for.
type Question = (String, String, Asked);

/// An object that cannot be read.
#[derive(Debug)]
struct Failing {
    since: Instant,
    last: Instant,
    times: u32,
    problem: String,
    /// Whether it was reported that it lasts.
    reported: bool,
    /// The segment that it is, to ask for it again.
    segment: Option<(WalArchive, SegmentName)>,
}

impl Failing {
    fn lasts(&self, now: Instant) -> bool {
        self.times >= TIMES && now.duration_since(self.since) >= LASTS
    }
}

#[derive(Debug, Default)]
struct Failures(HashMap<Question, Failing>);

static FAILURES: LazyLock<Mutex<Failures>> = LazyLock::new(Mutex::default);

fn failures() -> MutexGuard<'static, Failures> {
    FAILURES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Failures {
    /// An object could not be read, and its repository answers. Whether that lasts, and whether it is to be reported now.
    fn add(
        &mut self,
        question: Question,
        problem: String,
        segment: Option<(WalArchive, SegmentName)>,
        now: Instant,
    ) -> (bool, bool) {
        let new =
            || Failing { since: now, last: now, times: 0, problem: String::new(), reported: false, segment };
        if self.0.get(&question).is_some_and(|failing| now.duration_since(failing.last) > EARLIER) {
            self.0.remove(&question);
        }
        let failing = self.0.entry(question).or_insert_with(new);
        failing.times = failing.times.saturating_add(1);
        failing.last = now;
        failing.problem = problem;
        let lasts = failing.lasts(now);
        (lasts, lasts && !std::mem::replace(&mut failing.reported, lasts))
    }
}

/// What a failure says.
pub(super) enum Verdict {
    /// Nothing of one object alone.
    Error(RepoError),
    /// That one object cannot be read. It is not known yet whether that lasts.
    Doubtful(RepoError),
    /// That one object cannot be read at all: as an error about damage.
    Lasting(RepoError),
}

impl Verdict {
    /// The error.
    pub(super) fn error(self) -> RepoError {
        match self {
            Self::Error(error) | Self::Doubtful(error) | Self::Lasting(error) => error,
        }
    }
}

/// What an error says of the content of an object of that archive.
pub(super) async fn judge(archive: &WalArchive, error: RepoError) -> Verdict {
    judge_as(&[archive], error, Asked::Content).await
}

/// What was read of an archive. An object that cannot be read for long is an error about damage.
pub(super) async fn settled<T>(archive: &WalArchive, read: Result<T, RepoError>) -> Result<T, RepoError> {
    match read {
        Ok(read) => Ok(read),
        Err(error) => Err(judge(archive, error).await.error()),
    }
}

async fn judge_as(archives: &[&WalArchive], error: RepoError, asked: Asked) -> Verdict {
    let RepoError::Unavailable { what, store, .. } = &error else { return Verdict::Error(error) };
    let asked_of = archives.iter().find(|archive| archive.repository().store().name() == store);
    let (Some(archive), Ok(key)) = (asked_of, what.parse::<Key>()) else { return Verdict::Error(error) };
    if archive.repository().read_descriptor_again().await.is_err() {
        return Verdict::Error(error);
    }
    let name = what.rsplit('/').next().and_then(|name| name.parse().ok());
    let segment = name.filter(|_| asked == Asked::Header).map(|name| ((*archive).clone(), name));
    let problem = error_chain(&error);
    let (lasts, news) =
        failures().add((store.clone(), what.clone(), asked), problem.clone(), segment, Instant::now());
    if news {
        tracing::error!(repository = archive.repository().name(), "{}", described(what, archive, &problem));
    }
    match lasts {
        true => Verdict::Lasting(RepoError::corrupt(
            &key,
            format!("it cannot be read, although the repository answers: {problem}"),
        )),
        false => Verdict::Doubtful(error),
    }
}

fn described(key: &str, archive: &WalArchive, problem: &str) -> String {
    format!(
        "{key} cannot be read, although repository {} answers: {problem}\nDETAIL: It is treated as \
         damaged, and recovery cannot use it.\nHINT: Check the disk or the store, and run \"archive-agent \
         verify\". If \
         it stays unreadable, move \
         the object away and restart the daemon, which copies it from another repository that has it; if none has it, take a new \
         backup.",
        archive.repository().name()
    )
}

/// What is stored about a segment. One that cannot be read for long is an error about damage.
pub(super) async fn header(archive: &WalArchive, name: SegmentName) -> Result<Option<WalHeader>, RepoError> {
    match archive.header(name).await {
        Ok(header) => {
            forget(archive, name);
            Ok(header)
        }
        Err(error) => Err(judge_as(&[archive], error, Asked::Header).await.error()),
    }
}

/// Whether a segment's header cannot be read for long.
pub(super) fn is_lasting(archive: &WalArchive, name: SegmentName) -> bool {
    let (failures, now) = (failures(), Instant::now());
    failures.0.iter().any(|(question, failing)| is_header_of(question, archive, name) && failing.lasts(now))
}

fn forget(archive: &WalArchive, name: SegmentName) {
    failures().0.retain(|question, _| !is_header_of(question, archive, name));
}

fn is_header_of((store, key, asked): &Question, archive: &WalArchive, name: SegmentName) -> bool {
    *asked == Asked::Header
        && store == archive.repository().store().name()
        && *key == archive.paths().segment(name).to_string()
}

/// [`agreement::newest`] without the segments that cannot be read for long in one of the archives.
pub(super) async fn newest(
    (one, other): (&WalArchive, &WalArchive),
    mut segments: Vec<SegmentName>,
) -> Result<Agreement, RepoError> {
    loop {
        let error = match agreement::newest(one, other, &segments).await {
            Ok(agreement) => return Ok(agreement),
            Err(error) => error,
        };
        match judge_as(&[one, other], error, Asked::Header).await {
            Verdict::Lasting(RepoError::Corrupt { key, what, remedy }) => {
                let before = segments.len();
                segments.retain(|name| !key.as_str().ends_with(&name.to_string()));
                if segments.len() == before {
                    return Err(RepoError::Corrupt { key, what, remedy });
                }
            }
            verdict => return Err(verdict.error()),
        }
    }
}

/// Another comparison of two archives, which an object that cannot be read for long leaves open.
pub(super) async fn agreement(
    (one, other): (&WalArchive, &WalArchive),
    compared: Result<Agreement, RepoError>,
) -> Result<Agreement, RepoError> {
    match compared {
        Ok(agreement) => Ok(agreement),
        Err(error) => match judge_as(&[one, other], error, Asked::Content).await {
            Verdict::Lasting(error) => Ok(Agreement::Unknown(error_chain(&error))),
            verdict => Err(verdict.error()),
        },
    }
}

/// What is wrong with segments of a cluster that could not be read for long, and still cannot be.
pub(super) async fn reports(cluster: &ClusterName) -> Vec<String> {
    let now = Instant::now();
    let known: Vec<(WalArchive, SegmentName, String)> = {
        let failures = failures();
        let lasting = failures.0.values().filter(|failing| failing.lasts(now));
        let of_segments =
            lasting.filter_map(|failing| failing.segment.clone().zip(Some(failing.problem.clone())));
        of_segments.map(|((archive, name), problem)| (archive, name, problem)).collect()
    };
    let mut all = Vec::new();
    for (archive, name, problem) in known {
        if archive.lineage().cluster != *cluster {
            continue;
        }
        match tokio::time::timeout(TIME_LIMIT, archive.header(name)).await {
            Ok(Err(RepoError::Unavailable { .. })) | Err(_) => {
                let key = archive.paths().segment(name).to_string();
                all.push(described(&key, &archive, &problem));
            }
            // It was moved away, or can be read. That it is damaged is for verify to say.
            _ => forget(&archive, name),
        }
    }
    all
}

/// Lets what fails in an archive have failed for longer, for tests.
#[cfg(test)]
pub(super) fn age(archive: &WalArchive) {
    let store = archive.repository().store().name().to_owned();
    let mut failures = failures();
    failures.0.iter_mut().filter(|((of, ..), _)| *of == store).for_each(|(_, failing)| {
        failing.since = failing.since.checked_sub(LASTS).unwrap_or(failing.since);
    });
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::Bed;
    use super::super::neighbors::{self, StoredNeighbor};
    use super::*;

    #[test]
    fn only_what_fails_often_and_for_long_is_no_outage() {
        let question = || ("store".to_owned(), "key".to_owned(), Asked::Content);
        let begun = Instant::now();
        let mut failures = Failures::default();
        let mut add =
            |seconds| failures.add(question(), "EIO".to_owned(), None, begun + Duration::from_secs(seconds));
        assert_eq!([0, 1, 2, 3].map(&mut add), [(false, false); 4], "not for long");
        assert_eq!([31, 32].map(&mut add), [(true, true), (true, false)], "said once");
        let mut failures = Failures::default();
        let mut add =
            |seconds| failures.add(question(), "EIO".to_owned(), None, begun + Duration::from_secs(seconds));
        assert_eq!([0, 40, 41].map(&mut add), [(false, false), (false, false), (true, true)], "not often");
        let later = 42 + EARLIER.as_secs();
        assert_eq!(add(later), (false, false), "another failure");
    }

    #[tokio::test]
    async fn a_segment_that_cannot_be_read_for_long_is_as_good_as_damaged_until_it_can_be() {
        let bed = Bed::new().await;
        let name: SegmentName = "000000010000000000000001".parse().unwrap();
        bed.put(&name.to_string(), 1).await;
        let aside = bed.make_unreadable(&name.to_string());
        let cluster = bed.archive.lineage().cluster.clone();
        for _ in 0..TIMES {
            let error = header(&bed.archive, name).await.unwrap_err();
            assert!(error.is_transient() && !is_lasting(&bed.archive, name), "{error}");
        }
        age(&bed.archive);
        let error = header(&bed.archive, name).await.unwrap_err();
        assert!(matches!(error, RepoError::Corrupt { .. }) && is_lasting(&bed.archive, name), "{error}");
        let neighbor = neighbors::header(&bed.archive, name).await;
        assert!(matches!(neighbor, Ok(StoredNeighbor::Damaged)), "archiving goes on behind it");
        let reported = reports(&cluster).await;
        assert!(reported.iter().any(|report| report.contains(&name.to_string())), "{reported:?}");
        aside.put_back();
        assert!(header(&bed.archive, name).await.unwrap().is_some());
        assert!(!is_lasting(&bed.archive, name));
    }

    #[tokio::test]
    async fn what_cannot_be_read_while_the_repository_is_away_is_not_counted() {
        let bed = Bed::new().await;
        let name: SegmentName = "000000010000000000000001".parse().unwrap();
        bed.put(&name.to_string(), 1).await;
        bed.make_unreadable(&name.to_string());
        bed.hide_descriptor();
        for _ in 0..=TIMES {
            header(&bed.archive, name).await.unwrap_err();
            age(&bed.archive);
        }
        assert!(!is_lasting(&bed.archive, name));
    }
}
