//! What must not be built on any more: packs and backups that `expire` is about to delete, or that `verify` found damaged.
//!
//! A process that writes a backup reads all announcements twice, after its intent and before its manifest; what is announced counts as
//! absent and is stored again. Announcement objects are a numbered sequence while they exist. The process that finished the work they
//! announce deletes them. A crash leaves one that names what is still there: then some of it is stored again.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walpoint_base::{BackupId, LineageId, SegmentNo, TimelineId};
use walpoint_plan::retention::DeletionRequest;
use walpoint_storage::error::{Remark, Remedy, RepoError, Result, found};
use walpoint_storage::layout::{ClusterPaths, Key};
use walpoint_storage::object::{ObjectKind, ObjectReader, ObjectWriter, SealedObject, Sealer};
use walpoint_storage::store::{NumberClaim, Store};

use super::catalog::Backups;
use super::json::{text, texts, timeline};
use super::location::PackNo;
use super::manifest::{EncodeError, cannot_write};
use super::wire::Malformed;

/// No announcement has more plain bytes: about 60,000 ranges of packs. What is more goes into several.
const MAX_ANNOUNCEMENT: usize = 8 << 20;
/// Announcement objects that are read at the same time.
const AT_ONCE: usize = 8;

/// Why something is announced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnnouncementReason {
    /// Nothing that is kept needs it: it will be deleted after the grace period, if that still holds then.
    Expired,
    /// It is not what was written: backups that use it stay as they are, new ones do without it.
    Damaged,
}

/// Consecutive packs of one backup.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct AnnouncedPacks {
    /// The backup that wrote them.
    #[serde(with = "text")]
    pub backup: BackupId,
    /// The number of the first one.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl AnnouncedPacks {
    /// All packs of a backup, however many there are.
    pub fn all_of(backup: BackupId) -> Self {
        Self { backup, first: 0, count: u32::MAX }
    }

    /// Whether that pack is one of them.
    pub fn names(&self, backup: BackupId, pack: PackNo) -> bool {
        self.backup == backup && pack.0.checked_sub(self.first).is_some_and(|n| n < self.count)
    }
}

/// One announcement.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Announcement {
    /// When it was written, by the clock of who wrote it. How long it has been there tells the store's.
    pub written: Timestamp,
    /// On which machine.
    pub host: String,
    /// The version of Walpoint.
    pub agent: String,
    /// Why.
    pub reason: AnnouncementReason,
    /// Backups whose intent, progress and manifest are announced: none of them is a parent, or resumed, any more. Their
    /// packs are announced only where `packs` names them.
    #[serde(with = "texts")]
    pub backups: Vec<BackupId>,
    /// Packs.
    pub packs: Vec<AnnouncedPacks>,
    /// Segments, and all that goes with them.
    #[serde(default)]
    pub wal: Vec<AnnouncedWal>,
    /// Backups among them that were asked to be deleted by name, whatever retention says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<AnnouncedRequest>,
}

/// That a backup was asked to be deleted by name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AnnouncedRequest {
    /// The backup.
    #[serde(with = "text")]
    pub backup: BackupId,
    /// Who asked.
    pub who: String,
    /// When.
    pub at: Timestamp,
    /// The numbers of the holds that are overridden.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub despite_holds: BTreeSet<u64>,
    /// Whether it goes even if nothing else can be restored without it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub even_if_last: bool,
}

impl From<&AnnouncedRequest> for DeletionRequest {
    fn from(stored: &AnnouncedRequest) -> Self {
        let AnnouncedRequest { backup, who, at, despite_holds, even_if_last } = stored.clone();
        Self { backup, who, at, despite_holds, even_if_last }
    }
}

impl From<&DeletionRequest> for AnnouncedRequest {
    fn from(request: &DeletionRequest) -> Self {
        let DeletionRequest { backup, who, at, despite_holds, even_if_last } = request.clone();
        Self { backup, who, at, despite_holds, even_if_last }
    }
}

/// Consecutive segments of a timeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AnnouncedWal {
    /// The lineage.
    #[serde(with = "text")]
    pub lineage: LineageId,
    /// The timeline in their names.
    #[serde(with = "timeline")]
    pub timeline: TimelineId,
    /// The number of the first one.
    pub first: u64,
    /// The number of the last one.
    pub last: u64,
}

impl AnnouncedWal {
    /// The first and the last segment.
    pub fn segments(&self) -> (SegmentNo, SegmentNo) {
        (SegmentNo(self.first), SegmentNo(self.last))
    }
}

impl Announcement {
    fn seal(&self, sealer: &Sealer, key: &Key) -> Result<SealedObject, EncodeError> {
        let json = serde_json::to_vec(self).map_err(|e| Malformed(format!("it cannot be written: {e}")))?;
        if json.len() > MAX_ANNOUNCEMENT {
            return Err(Malformed(format!("{} bytes are too many: divide it", json.len())).into());
        }
        let mut writer = ObjectWriter::new(sealer, ObjectKind::Announcement, key)?;
        writer.frames(&json, 1 << 20)?;
        Ok(writer.finish()?)
    }

    fn read(reader: ObjectReader) -> Result<Self, Malformed> {
        let mut json = Vec::new();
        reader.read_all(MAX_ANNOUNCEMENT, &mut json).map_err(|e| Malformed(e.to_string()))?;
        let read: Self =
            serde_json::from_slice(&json).map_err(|e| Malformed(format!("it cannot be read: {e}")))?;
        match read.wal.iter().find(|wal| wal.first > wal.last) {
            Some(wal) => {
                Err(Malformed(format!("a range of WAL ends before it begins: {}, {}", wal.first, wal.last)))
            }
            None => Ok(read),
        }
    }
}

/// An announcement, and what the listing said of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NumberedAnnouncement {
    /// Its number.
    pub n: u64,
    /// When it was stored, by the store's clock: the grace period counts from then.
    pub stored: Timestamp,
    /// What it says.
    pub announcement: Announcement,
}

/// The backups that announcements name to be deleted. One of them that has no manifest any more is no unfinished one: what is left of it
/// waits for the next `expire`, or is under lock.
pub fn backups_to_delete(announced: &[NumberedAnnouncement]) -> BTreeSet<BackupId> {
    let expired = announced.iter().filter(|one| one.announcement.reason == AnnouncementReason::Expired);
    expired.flat_map(|one| one.announcement.backups.iter().copied()).collect()
}

/// What was found damaged of a backup.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FoundDamage {
    /// Packs that it uses.
    pub packs: u64,
    /// Whether its manifest was.
    pub manifest: bool,
}

/// Everything that is announced, as far as it can be read.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Announcements {
    /// Those that can be read, in the order of numbers.
    pub read: Vec<NumberedAnnouncement>,
    /// Those that cannot.
    pub damaged: Vec<DamagedAnnouncement>,
}

/// An announcement that cannot be read: what it names is not known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DamagedAnnouncement {
    /// Its number.
    pub n: u64,
    /// The object.
    pub key: Key,
    /// What is wrong with it.
    pub what: String,
}

impl DamagedAnnouncement {
    /// The same as a remark.
    pub fn remark(&self) -> Remark {
        Remark { what: self.error().to_string(), remedy: Some(Remedy::VerifyAll) }
    }

    /// The same as an error.
    pub fn error(&self) -> RepoError {
        let what = format!(
            "{}\nDETAIL: It is unknown which objects it marks as expired or damaged, so nothing is \
             deleted, and backups reuse nothing and store everything again.",
            self.what
        );
        let key = self.key.clone();
        RepoError::Corrupt { key, what, remedy: Some(Remedy::VerifyAll) }
    }
}

/// Everything that is announced, for looking up.
#[derive(Clone, Default, Debug)]
pub struct AnnouncedSet {
    /// Whether something is announced and it is not known what: then anything may be.
    anything: bool,
    backups: Vec<BackupId>,
    /// Sorted.
    packs: Vec<AnnouncedPacks>,
}

impl AnnouncedSet {
    /// What these say together.
    pub fn new<'a>(all: impl IntoIterator<Item = &'a Announcement>) -> Self {
        let mut set = Self::default();
        for announced in all {
            set.backups.extend_from_slice(&announced.backups);
            set.packs.extend_from_slice(&announced.packs);
        }
        set.packs.sort_unstable();
        set
    }

    /// The same; where one cannot be read, everything counts as announced.
    pub fn of(all: &Announcements) -> Self {
        let set = Self::new(all.read.iter().map(|one| &one.announcement));
        Self { anything: !all.damaged.is_empty(), ..set }
    }

    /// Whether a backup may no longer be a parent, or resumed.
    pub fn has_backup(&self, id: BackupId) -> bool {
        self.anything || self.backups.contains(&id)
    }

    /// Whether a pack counts as absent.
    pub fn has_pack(&self, id: BackupId, pack: PackNo) -> bool {
        if self.anything {
            return true;
        }
        let begin = self.packs.partition_point(|packs| packs.backup < id);
        let of_it = self.packs.get(begin..).unwrap_or_default().iter().take_while(|p| p.backup == id);
        of_it.into_iter().any(|packs| packs.names(id, pack))
    }
}

/// The numbers of what is announced, and when each was stored.
pub(crate) async fn list_announcements(store: &Store, paths: &ClusterPaths) -> Result<Vec<(u64, Timestamp)>> {
    let prefix = paths.sequence("announcements").map_err(|e| RepoError::Internal(e.to_string()))?;
    let mut listed = Vec::new();
    for entry in store.list_all(&prefix).await? {
        let n = entry.key.below(&prefix).filter(|n| n.len() == 12).and_then(|n| n.parse::<u64>().ok());
        listed.extend(n.map(|n| (n, entry.modified)));
    }
    listed.sort_unstable();
    Ok(listed)
}

impl Backups {
    /// Everything that is announced now. One listing, and a request for each.
    pub async fn announcements(&self) -> Result<Announcements> {
        self.read_all_announcements(list_announcements(self.store(), self.paths()).await?).await
    }

    /// Reads what a listing shows.
    pub(crate) async fn read_all_announcements(
        &self,
        listed: Vec<(u64, Timestamp)>,
    ) -> Result<Announcements> {
        let read = stream::iter(listed)
            .map(|(n, stored)| async move { (n, stored, self.read_announcements(n).await) });
        let mut read = read.buffered(AT_ONCE);
        let mut all = Announcements::default();
        while let Some((n, stored, result)) = read.next().await {
            match result {
                Ok(Some(announcement)) => all.read.push(NumberedAnnouncement { n, stored, announcement }),
                // Deleted since the listing: nothing of it is left to be feared.
                Ok(None) => {}
                Err(RepoError::Corrupt { key, what, .. }) => {
                    all.damaged.push(DamagedAnnouncement { n, key, what })
                }
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// What of each backup was found damaged or missing; nothing of sound ones. `uses`: of each backup the others whose blocks it
    /// uses. Reads the manifests of those for which that matters.
    pub async fn found_damaged(
        &self,
        uses: &BTreeMap<BackupId, Vec<BackupId>>,
        announced: &[NumberedAnnouncement],
    ) -> Result<BTreeMap<BackupId, FoundDamage>> {
        let (mut set, mut owners) = (Vec::new(), BTreeSet::new());
        for one in announced.iter().filter(|one| one.announcement.reason == AnnouncementReason::Damaged) {
            set.push(&one.announcement);
            owners.extend(one.announcement.packs.iter().map(|packs| packs.backup));
        }
        let set = AnnouncedSet::new(set);
        let touched = |id: &BackupId, parents: &[BackupId]| {
            owners.contains(id) || parents.iter().any(|parent| owners.contains(parent))
        };
        let mut found = BTreeMap::new();
        for (id, parents) in uses {
            let mut damage = FoundDamage { packs: 0, manifest: set.has_backup(*id) };
            if touched(id, parents) {
                damage.packs = match self.open(*id).await {
                    Ok(reader) => {
                        let manifest = reader.manifest();
                        let packs = manifest.packs.packs().iter().filter(|pack| {
                            let owner = manifest.backups.get(usize::from(pack.backup.0));
                            owner.is_some_and(|owner| set.has_pack(*owner, pack.pack))
                        });
                        u64::try_from(packs.count()).unwrap_or(u64::MAX)
                    }
                    // A reader of its packs gets the error; or an expire deleted it since.
                    Err(RepoError::Corrupt { .. } | RepoError::NotFound { .. }) => 0,
                    Err(error) => return Err(error),
                };
            }
            if damage != FoundDamage::default() {
                found.insert(*id, damage);
            }
        }
        Ok(found)
    }

    async fn read_announcements(&self, n: u64) -> Result<Option<Announcement>> {
        let key = self.paths().announcement(n);
        let Some(bytes) = found(self.store().get(&key).await)? else { return Ok(None) };
        let reader = ObjectReader::open(self.sealer(), &[ObjectKind::Announcement], &key, bytes);
        let reader = reader.map_err(|e| RepoError::corrupt(&key, e))?;
        Announcement::read(reader).map(Some).map_err(|e| RepoError::corrupt(&key, e))
    }

    /// Announces, under the next number, which is returned. At most about 60,000 ranges of packs in one.
    pub async fn announce(&self, announced: &Announcement) -> Result<u64> {
        let known = list_announcements(self.store(), self.paths()).await?;
        let mut n = known.last().map_or(0, |(last, _)| last + 1);
        loop {
            let key = self.paths().announcement(n);
            let object = announced.seal(self.sealer(), &key).map_err(|e| cannot_write(&key, &e))?;
            match self.store().claim(&object).await? {
                NumberClaim::Won => return Ok(n),
                NumberClaim::Lost => n += 1,
            }
        }
    }

    /// Takes an announcement back: what it named is deleted, or was spared. One that is not there is no error.
    pub async fn absolve(&self, n: u64) -> Result<()> {
        self.store().delete(&self.paths().announcement(n)).await
    }
}
