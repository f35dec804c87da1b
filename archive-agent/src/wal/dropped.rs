//! WAL that was dropped (`queue_max`, `push --skip`), or archived although it is damaged, and matters still: what no backup makes up for that begins behind it and is in every
//! repository that has to acknowledge, or was archived after all. What is stored under the name of a dropped segment may be
//! another server's, or so damaged that the segment was dropped for that.
//!
//! A look takes headers only. What they do not show, only a daemon reads ([`read_back`]), beside all looks: until then the segment
//! counts as unread ([`super::unread`]).

use std::fmt;
use std::path::Path;

use anyhow::Context;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::dropped::{self, DropReason, Dropped};
use walpoint_base::{BackupId, SegmentName, SegmentSize, WalFileName};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::{WalArchive, WalHeader};

use super::comparison::{self, Comparison};
use super::damaged_copy;
use super::disk;
use super::read_back::{self, Object, Reading};
use super::target::WalTarget;
use super::unread::Unread;
use super::upload::Uploader;
use super::{base, claim};

/// Dropped files that are looked for in the archive, the newest ones.
const LOOKED_FOR: usize = 200;

/// Requests under way at once.
const AT_ONCE: usize = 8;

/// WAL that was dropped, or archived although damaged, and after which no backup begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DroppedWal")]
pub(crate) struct Gap {
    /// The number of files.
    pub(super) file_count: usize,
    /// The first file.
    first_file: String,
    /// The last file.
    last_file: String,
    /// When the first one was dropped.
    since_time: Timestamp,
    /// The number of files that were skipped on request (`push --skip`).
    skipped_count: usize,
    /// The number of files that were archived although damaged (`push --accept-damaged`).
    damaged_count: usize,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file_count: files,
            first_file: first,
            last_file: last,
            since_time: since,
            skipped_count: skipped,
            damaged_count: damaged,
        } = self;
        let what = match damaged {
            0 => "dropped and not archived",
            all if all == files => "archived although damaged",
            _ => "dropped, or archived although damaged,",
        };
        match files {
            1 => write!(f, "{first} was {what}, {since:.0}")?,
            _ => write!(f, "{files} files of WAL from {first} to {last} were {what} since {since:.0}")?,
        }
        let asked = [(*skipped, "push --skip"), (*damaged, "push --accept-damaged")];
        let queue_max = (skipped + damaged < *files).then(|| "because more than queue_max waited".to_owned());
        let asked = asked.into_iter().filter(|(count, _)| *count > 0);
        let why =
            queue_max.into_iter().chain(asked.map(|(_, command)| format!("as requested with {command}")));
        let why = why.collect::<Vec<_>>().join(", or ");
        write!(f, ", {why}: recovery cannot pass them\nHINT: Take a new backup.")
    }
}

impl std::error::Error for Gap {}

impl Gap {
    /// One of one file.
    #[cfg(test)]
    pub(crate) fn example() -> Self {
        let name = "000000010000000000000005".parse().unwrap();
        Self::of(&[Dropped { name, at: 7, reason: DropReason::QueueMax }]).unwrap()
    }

    pub(super) fn of(dropped: &[Dropped]) -> Option<Self> {
        let (first, last) = (dropped.first()?, dropped.last()?);
        let since = Timestamp::from_second(first.at).unwrap_or(Timestamp::UNIX_EPOCH);
        let count = |reason| dropped.iter().filter(|dropped| dropped.reason == reason).count();
        Some(Self {
            skipped_count: count(DropReason::Skipped),
            damaged_count: count(DropReason::Damaged),
            file_count: dropped.len(),
            first_file: first.name.to_string(),
            last_file: last.name.to_string(),
            since_time: since,
        })
    }
}

/// What a look found of the WAL that recovery from the newest backups needs and that was dropped.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// What cannot be recovered for certain: it is missing, damaged, or another server's.
    pub(crate) gap: Option<Gap>,
    /// What is in the repositories by its headers, and not known to be sound.
    pub(crate) unread: Option<Unread>,
    /// What has to be read to know more.
    pub(crate) objects: Vec<Object>,
}

/// Looks for what recovery from the newest backups cannot pass. While a repository cannot be read, all that was ever dropped
/// counts.
pub(crate) async fn look(uploader: &Uploader) -> anyhow::Result<Look> {
    let wal = uploader.wal_directory();
    let directory = wal.clone();
    let read = disk::run(&directory, move || {
        dropped::read(&wal).with_context(|| {
            format!("the record of dropped WAL, {}, cannot be read", wal.join(dropped::FILE).display())
        })
    });
    let dropped = read.await??;
    if dropped.is_empty() {
        return Ok(Look::default());
    }
    let cluster = uploader.identity().await?;
    let (mut newest, mut archives) = (Vec::new(), Vec::new());
    for target in uploader.targets().iter().filter(|target| target.acknowledges) {
        let archive = target.archive(&cluster).await.ok();
        newest.push(match &archive {
            Some(archive) => newest_backup(uploader, archive).await.ok().flatten(),
            None => None,
        });
        archives.push(archive);
    }
    let matters = |dropped: &Dropped| {
        let made_up_for = |backup: &Option<BackupId>| {
            backup.is_some_and(|backup| makes_up_for(backup, dropped, cluster.segment_size))
        };
        newest.is_empty() || !newest.iter().all(made_up_for)
    };
    let matter: Vec<Dropped> = dropped.into_iter().filter(matters).collect();
    let Some(archives) = archives.into_iter().collect::<Option<Vec<_>>>() else {
        return Ok(Look { gap: Gap::of(&matter), ..Look::default() });
    };
    let acknowledge = uploader.targets().iter().filter(|target| target.acknowledges);
    let places: Vec<(&WalTarget, WalArchive)> = acknowledge.zip(archives).collect();
    Ok(look_for(&places, (&cluster, &uploader.wal_directory()), matter).await.into())
}

/// The newest backup that this server can be recovered from.
async fn newest_backup(uploader: &Uploader, archive: &WalArchive) -> anyhow::Result<Option<BackupId>> {
    match base::path(uploader, archive).await? {
        Some(path) => Ok(base::newest_backup(archive, &path).await?),
        None => Ok(None),
    }
}

/// Dropped files, by what the archives have of them.
#[derive(Debug, Default)]
struct Sorted {
    missing: Vec<Dropped>,
    unread: Vec<Dropped>,
    objects: Vec<Object>,
}

impl From<Sorted> for Look {
    fn from(sorted: Sorted) -> Self {
        let Sorted { missing, unread, objects } = sorted;
        Self { gap: Gap::of(&missing), unread: Unread::of(&unread), objects }
    }
}

/// Looks for dropped files in every archive: PostgreSQL had not removed the newest when the store was back.
async fn look_for(
    places: &[(&WalTarget, WalArchive)],
    of: (&WalIdentity, &Path),
    mut dropped: Vec<Dropped>,
) -> Sorted {
    let newest = dropped.split_off(dropped.len().saturating_sub(LOOKED_FOR));
    let mut sorted = Sorted { missing: dropped, ..Sorted::default() };
    let looked = stream::iter(newest).map(|dropped| async move {
        let copies = match dropped.name {
            WalFileName::Segment(name) if dropped.reason != DropReason::Damaged => {
                copies(places, of, name).await
            }
            _ => Found::Missing(Vec::new()),
        };
        (dropped, copies)
    });
    let looked: Vec<(Dropped, Found)> = looked.buffered(AT_ONCE).collect().await;
    for (dropped, found) in looked {
        match found {
            Found::Missing(objects) => {
                sorted.missing.push(dropped);
                sorted.objects.extend(objects);
            }
            Found::Unread(objects) => {
                sorted.unread.push(dropped);
                sorted.objects.extend(objects);
            }
            Found::Sound => {}
        }
    }
    sorted
}

/// What there is of a dropped segment.
enum Found {
    /// Nothing that counts. What is there was read, is damaged, and may have been replaced since.
    Missing(Vec<Object>),
    /// Objects that were not read.
    Unread(Vec<Object>),
    /// This server's segment, which was read to its end.
    Sound,
}

/// What all archives have of a segment: it is missing if one lacks it.
async fn copies(places: &[(&WalTarget, WalArchive)], of: (&WalIdentity, &Path), name: SegmentName) -> Found {
    let mut unread = Vec::new();
    for (target, archive) in places {
        match copy((target, archive), of, name).await {
            Found::Sound => {}
            Found::Unread(objects) => unread.extend(objects),
            missing @ Found::Missing(_) => return missing,
        }
    }
    if unread.is_empty() { Found::Sound } else { Found::Unread(unread) }
}

/// What an archive has of a segment, by its header and by what was read before.
async fn copy(
    (target, archive): (&WalTarget, &WalArchive),
    of: (&WalIdentity, &Path),
    name: SegmentName,
) -> Found {
    let header = match archive.header(name).await {
        Ok(Some(header)) if !header.damaged => header,
        Ok(_) => {
            read_back::forget((target, archive), name);
            return Found::Missing(Vec::new());
        }
        Err(_) => return Found::Missing(Vec::new()),
    };
    let compared = match owner(target, archive, of, &header).await {
        Owner::This => None,
        Owner::Content => Some((*of.0, of.1.to_owned())),
        Owner::Other => return Found::Missing(Vec::new()),
    };
    let object = Object::new((target, archive), &header, compared);
    match object.reading(target) {
        Some(Reading::Sound) => Found::Sound,
        Some(Reading::Damaged { again }) => Found::Missing(again.then_some(object).into_iter().collect()),
        None => Found::Unread(vec![object]),
    }
}

/// Whose the segment is that an archive has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    This,
    Other,
    /// This server's if the damaged file of its name in the directory has the same records, which takes reading it.
    Content,
}

/// Whether an archive has this server's segment of a name. It may be damaged.
pub(super) async fn has_own(
    target: &WalTarget,
    archive: &WalArchive,
    (cluster, wal): (&WalIdentity, &Path),
    name: SegmentName,
) -> bool {
    let Ok(Some(header)) = archive.header(name).await else { return false };
    match owner(target, archive, (cluster, wal), &header).await {
        Owner::This => true,
        Owner::Other => false,
        Owner::Content => damaged_copy::is_damaged_copy(archive, cluster, wal, name).await,
    }
}

/// Whose the segment is that an archive has: this server's as this process knows, as the directory remembers, or as the file in
/// it shows, damaged or not. Where nothing shows that the timeline is this server's, a damaged one shows nothing.
async fn owner(
    target: &WalTarget,
    archive: &WalArchive,
    (cluster, wal): (&WalIdentity, &Path),
    header: &WalHeader,
) -> Owner {
    let (name, lineage) = (header.name(), archive.lineage().id);
    if target.known(lineage, |known| known.has_stored(name)) {
        return Owner::This;
    }
    let (directory, of) = (wal.to_owned(), archive.clone());
    let read = disk::run(wal, move || claim::read(&directory, &of, name.timeline)).await;
    let claim = read.unwrap_or_default();
    match claim {
        Some(claim) if claim.segment == name && claim.hash == header.hash => Owner::This,
        Some(claim) if claim.segment == name => Owner::Other,
        // What it stored behind this one continues what is stored.
        Some(claim) if claim.segment > name => Owner::This,
        _ => match comparison::content(archive, cluster, wal, name, header.hash).await {
            Comparison::Same => Owner::This,
            Comparison::Unknown if target.known(lineage, |known| known.has_claimed(name.timeline)) => {
                Owner::Content
            }
            Comparison::Other(_) | Comparison::Unknown => Owner::Other,
        },
    }
}

/// Whether recovery from that backup does not need a file.
fn makes_up_for(backup: BackupId, dropped: &Dropped, size: SegmentSize) -> bool {
    let name = dropped.name;
    let behind = match name.segment().and_then(|segment| segment.number(size)) {
        Some(number) => backup.start() >= number.end(size),
        // A history: a backup on its timeline has seen to it.
        None => name.segment().is_none(),
    };
    behind && backup.timeline() >= name.timeline()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::two;
    use super::*;

    fn dropped(name: &str) -> Dropped {
        Dropped { name: name.parse().unwrap(), at: 7, reason: DropReason::QueueMax }
    }

    #[test]
    fn only_a_backup_that_begins_behind_it_makes_up_for_it() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let makes_up = |timeline: u32, start: u64, name: &str| {
            let id = format!("20261122T000000Z-{timeline:08X}-{start:016X}-00000000");
            makes_up_for(id.parse().unwrap(), &dropped(name), size)
        };
        let segment = "000000010000000000000005";
        assert!(!makes_up(1, 0x5ff_ff28, segment));
        assert!(makes_up(1, 0x600_0028, segment) && makes_up(2, 0x600_0028, segment));
        assert!(!makes_up(1, 0x600_0028, "000000020000000000000005"));
        assert!(makes_up(2, 0x100_0028, "00000002.history"));
        assert!(!makes_up(1, 0x900_0028, "00000002.history"));
    }

    /// The names of dropped segments, and the objects that have to be read.
    fn shown(sorted: &Sorted) -> (Vec<String>, Vec<String>, usize) {
        let names = |dropped: &[Dropped]| dropped.iter().map(|one| one.name.to_string()).collect();
        (names(&sorted.missing), names(&sorted.unread), sorted.objects.len())
    }

    #[tokio::test]
    async fn what_is_stored_under_the_name_of_a_dropped_segment_counts_once_it_was_read_and_is_sound() {
        let (main, _far, uploader, cluster) = two().await;
        let (target, wal) = (&uploader.targets()[0], main.pgdata().join("pg_wal"));
        let names = ["000000010000000000000005", "000000010000000000000006"];
        for name in names {
            main.put(name, 1).await;
            main.write(name, 1);
        }
        let all = names.map(dropped);
        let look = async || {
            let places = [(target, main.archive.clone())];
            look_for(&places, (&cluster, &wal), all.to_vec()).await
        };
        let read = async || {
            for object in look().await.objects {
                object.read(&uploader).await;
            }
        };
        let [first, second] = names.map(|name| vec![name.to_owned()]);
        main.damage(names[0]);
        let both = [first.clone(), second].concat();
        for _ in 0..2 {
            assert_eq!(shown(&look().await), (vec![], both.clone(), 2), "a look reads headers only");
        }
        read().await;
        assert_eq!(
            shown(&look().await),
            (first.clone(), vec![], 0),
            "the other one is sound, and this server's"
        );
        main.damage(names[1]);
        read().await;
        assert_eq!(shown(&look().await), (first.clone(), vec![], 0), "each is read once");

        // The way out: the object is moved away, and the segment is archived again.
        std::fs::remove_file(main.stored(names[0])).unwrap();
        assert_eq!(shown(&look().await), (first.clone(), vec![], 0));
        main.put(names[0], 1).await;
        assert_eq!(shown(&look().await), (vec![], first, 1));
        read().await;
        assert_eq!(shown(&look().await), (vec![], vec![], 0));
    }

    #[tokio::test]
    async fn what_is_missing_by_its_header_is_a_gap_before_anything_is_read() {
        let (main, _far, uploader, cluster) = two().await;
        let (target, wal) = (&uploader.targets()[0], main.pgdata().join("pg_wal"));
        let names = [
            "000000010000000000000005",
            "000000010000000000000006",
            "000000010000000000000007",
            "000000010000000000000008",
        ];
        // There is no object of 5; that of 6 is another server's, and that of 8 was accepted although damaged.
        for (name, stored) in [(names[1], 2), (names[2], 1), (names[3], 1)] {
            main.put(name, stored).await;
            main.write(name, 1);
        }
        let mut all = names.map(dropped);
        all[3].reason = DropReason::Damaged;
        let sorted = look_for(&[(target, main.archive.clone())], (&cluster, &wal), all.to_vec()).await;
        let missing = [names[0], names[1], names[3]].map(str::to_owned).to_vec();
        assert_eq!(shown(&sorted), (missing, vec![names[2].to_owned()], 1));
        let look = Look::from(sorted);
        let gap = look.gap.unwrap();
        assert_eq!((gap.file_count, gap.damaged_count), (3, 1));
        assert_eq!((gap.first_file.as_str(), gap.last_file.as_str()), (names[0], names[3]));
        assert!(look.unread.is_some());
    }

    #[test]
    fn a_gap_names_its_ends() {
        assert_eq!(Gap::of(&[]), None);
        let one = Gap::of(&[dropped("000000010000000000000005")]).unwrap();
        assert!(
            one.to_string()
                .starts_with("000000010000000000000005 was dropped and not archived, 1970-01-01T00:00:07Z")
        );
        assert!(one.to_string().contains("queue_max"));
        let skipped = Dropped { reason: DropReason::Skipped, ..dropped("000000010000000000000005") };
        assert!(Gap::of(&[skipped]).unwrap().to_string().contains("as requested with push --skip"));
        let accepted = Dropped { reason: DropReason::Damaged, ..dropped("000000010000000000000005") };
        let accepted = Gap::of(&[accepted]).unwrap().to_string();
        assert!(accepted.contains(
            "05 was archived although damaged, 1970-01-01T00:00:07Z, as requested with push --accept-damaged"
        ));
        let two =
            Gap::of(&[dropped("000000010000000000000005"), dropped("000000010000000000000006")]).unwrap();
        assert!(two.to_string().starts_with(
            "2 files of WAL from 000000010000000000000005 to 000000010000000000000006 were dropped and not archived since 1970"
        ));
    }
}
