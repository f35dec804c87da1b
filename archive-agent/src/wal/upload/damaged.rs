//! A segment that is damaged in `pg_wal` and was stored while it was sound: by the look-ahead, or before a crash. What is stored is
//! what recovery needs, so it is acknowledged, and nothing damaged is stored beside it, or while it is not known of a repository whether it has
//! it.

use std::time::Duration;

use walpoint_base::socket::FileIdentity;
use walpoint_base::{SegmentName, WalFileName};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;
use walpoint_storage::error::Remedy;

use super::admission::CandidateRepository;
use super::{UploadError, UploadSource, Uploader, upload_error};
use crate::wal::damaged_copy;
use crate::wal::ownership::has_own;
use crate::wal::target::{TargetError, WalTarget, in_the_way};

/// How long a repository may take to say what it has of a segment, if it is not to be stored there.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Which of the repositories have this server's segment, sound, though it is damaged here.
pub(super) enum Sound {
    /// None, and all were looked at.
    Nowhere,
    /// One that is not known to lack it may have it, and none of those that it goes to lacks it: nothing is stored elsewhere.
    NotHere,
    /// All that it goes to, but for these, which hold it as it was accepted although damaged.
    Everywhere(Vec<String>),
    /// Some: their names, and those of the others, which have nothing of it.
    Somewhere(Vec<String>, Vec<String>),
    /// It may be in one that is away; why that is not known.
    Unknown(UploadError),
    /// A segment of that name is in these, and nothing shows that it is this server's.
    Unshown(Vec<String>),
}

/// What a repository has of a segment.
enum Copy {
    Sound,
    Damaged,
    None,
}

/// A repository that was looked at.
struct Looked<'a> {
    target: &'a WalTarget,
    /// Whether the file is to be stored there.
    goes_to: bool,
    found: Result<(WalArchive, Copy), UploadError>,
}

async fn copy(archive: &WalArchive, name: SegmentName) -> Result<Copy, RepoError> {
    Ok(match archive.header(name).await? {
        Some(header) if header.damaged => Copy::Damaged,
        Some(_) => Copy::Sound,
        None => Copy::None,
    })
}

impl Uploader {
    /// Looks for a segment that is damaged here in all repositories of its cluster, those that it does not go to included. One that is away
    /// or does not answer is an error where the file goes to it and another one has it: what it holds decides. What is there is read,
    /// as the file here may have been the last sound copy.
    pub(super) async fn sound<'a>(
        &self,
        file: &UploadSource,
        candidates: impl Iterator<Item = &'a CandidateRepository<'a>>,
    ) -> Result<Sound, UploadError> {
        let (WalFileName::Segment(name), Some(wal)) = (file.name, file.path.parent()) else {
            return Ok(Sound::Nowhere);
        };
        if !file.answers && !file.by_hand {
            return Ok(Sound::Nowhere);
        }
        let mut looked = Vec::new();
        for one in candidates {
            let found = match &one.admitted {
                Ok(admitted) => Ok((admitted.archive.clone(), copy(&admitted.archive, name).await?)),
                Err(error) => Err(upload_error(one.target, error)),
            };
            looked.push(Looked { target: one.target, goes_to: true, found });
        }
        for target in &self.targets {
            if !looked.iter().any(|one| one.target.name() == target.name()) {
                looked.push(Looked { target, goes_to: false, found: self.look_in(file, target, name).await });
            }
        }
        let mut own = None;
        for Looked { target, found, .. } in &looked {
            if let Ok((archive, Copy::Sound)) = found
                && own.is_none()
                && file.answers
                && (has_own(target, archive, (&file.cluster, wal), name).await
                    || damaged_copy::is_own(archive, &file.cluster, wal, name).await)
            {
                own = Some(archive.clone());
            }
        }
        match own {
            Some(own) => beside_own(looked, &own, name).await,
            None => Ok(without_own(looked, file.by_hand)),
        }
    }

    /// What a repository has that the file does not go to.
    async fn look_in(
        &self,
        file: &UploadSource,
        target: &WalTarget,
        name: SegmentName,
    ) -> Result<(WalArchive, Copy), UploadError> {
        let look = async {
            target.answers()?;
            let archive = target.archive_at(&file.cluster, name.timeline).await?;
            let copy = copy(&archive, name).await?;
            Ok::<_, TargetError>((archive, copy))
        };
        match tokio::time::timeout(TIME_LIMIT, look).await {
            Ok(found) => found.map_err(|error| upload_error(target, &error)),
            Err(_) => Err(UploadError {
                text: format!("repository {}: no answer within {} s", target.name(), TIME_LIMIT.as_secs()),
                permanent: false,
            }),
        }
    }
}

/// What follows where one of them has this server's.
async fn beside_own(
    looked: Vec<Looked<'_>>,
    own: &WalArchive,
    name: SegmentName,
) -> Result<Sound, UploadError> {
    let file = WalFileName::Segment(name);
    let (mut has, mut lacks, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
    for Looked { target, goes_to, found } in looked {
        let (archive, copy) = match found {
            Ok(found) => found,
            Err(away) if goes_to => return Err(away),
            Err(_) => continue,
        };
        let named = || target.name().to_owned();
        let same = match copy {
            Copy::Sound if archive.repository().id() == own.repository().id() => Some(true),
            Copy::Sound => archive.same_segment(own, name).await?,
            Copy::Damaged | Copy::None => None,
        };
        match copy {
            Copy::Sound if same == Some(true) => {
                if goes_to || lacks.is_empty() {
                    is_readable(target, &archive, file)
                        .await
                        .map_err(|error| upload_error(target, &error))?;
                }
                has.push((goes_to, named()));
            }
            Copy::Sound if goes_to && same == Some(false) => {
                return Err(UploadError::permanent(format!(
                    "\"{name}\" is damaged here, repository {} has it as it was before, and repository {} has other content \
                     under that name: two servers have archived there\nHINT: \"archive-agent status\" shows more.",
                    own.repository().name(),
                    target.name()
                )));
            }
            Copy::Sound if goes_to => {
                // It is damaged behind its header, or one of the two was moved away.
                let read = is_readable(target, &archive, file).await;
                let error = read.err().unwrap_or(TargetError::Vanished { name: file });
                return Err(upload_error(target, &error));
            }
            Copy::Sound => {}
            Copy::Damaged if goes_to => damaged.push(named()),
            Copy::None if goes_to => lacks.push(named()),
            Copy::Damaged | Copy::None => {}
        }
    }
    let here = has.iter().any(|(goes_to, _)| *goes_to);
    let has = has.into_iter().map(|(_, name)| name).collect();
    Ok(match (lacks.is_empty(), here) {
        (false, _) => Sound::Somewhere(has, lacks),
        (true, true) => Sound::Everywhere(damaged),
        (true, false) => Sound::NotHere,
    })
}

/// What follows where none is known to have this server's.
fn without_own(looked: Vec<Looked<'_>>, by_hand: bool) -> Sound {
    let (mut sound, mut lacks, mut away) = (Vec::new(), false, None);
    for Looked { target, goes_to, found } in looked {
        match found {
            Ok((_, Copy::Sound)) => sound.push(target.name().to_owned()),
            Ok((_, Copy::None)) => lacks |= goes_to,
            Ok((_, Copy::Damaged)) => {}
            Err(error) => drop(away.get_or_insert(error)),
        }
    }
    match away {
        Some(away) if lacks => Sound::Unknown(away),
        None if sound.is_empty() => Sound::Nowhere,
        _ if lacks && by_hand => Sound::Unshown(sound),
        None if lacks => Sound::Nowhere,
        _ => Sound::NotHere,
    }
}

/// That a sound copy has to be put where none is before PostgreSQL may remove its own.
fn copy_it(name: WalFileName, has: &[String], lacks: &[String]) -> UploadError {
    UploadError::permanent(format!(
        "\"{name}\" is damaged here, repository {} has it as it was before, and {} lacks it\nHINT: Copy it: \"restore-agent \
         fetch {name} /tmp/{name}\", then \"archive-agent push /tmp/{name}\".",
        has.join(", "),
        lacks.join(", ")
    ))
}

impl Uploader {
    /// What is acknowledged of a segment that is damaged here and sound in repositories; `None` if it is to be stored as it is.
    pub(super) async fn is_sound(
        &self,
        file: &UploadSource,
        sound: Sound,
    ) -> Result<Option<FileIdentity>, UploadError> {
        let name = file.name;
        let way_on = || {
            format!(
                "\nHINT: Try again when it answers. To continue without the file, run \"archive-agent push --skip {}\", or \
                 take that repository out of the configuration.",
                file.path.display()
            )
        };
        let damaged = match sound {
            Sound::Nowhere | Sound::NotHere => return Ok(None),
            Sound::Somewhere(has, lacks) => return Err(copy_it(name, &has, &lacks)),
            Sound::Unknown(away) => {
                return Err(UploadError {
                    text: format!(
                        "\"{name}\" is damaged here, and nothing damaged is stored while a repository \
                         cannot be reached that may hold it undamaged: {}{}",
                        away.text,
                        way_on()
                    ),
                    permanent: away.permanent,
                });
            }
            Sound::Unshown(has) => {
                return Err(UploadError::permanent(format!(
                    "\"{name}\" is damaged here, repository {} has one of that name that is sound, and nothing shows whether \
                     it is this server's, so nothing damaged is stored\nHINT: If it is, run \"restore-agent fetch {name} \
                     /tmp/{name}\", then \"archive-agent push /tmp/{name}\". To continue without the file, run \
                     \"archive-agent push --skip {}\".",
                    has.join(", "),
                    file.path.display()
                )));
            }
            Sound::Everywhere(damaged) => damaged,
        };
        tracing::error!(
            file = %name,
            "it is damaged in {}, and was stored before that: what is stored is sound\nHINT: Check the \
             storage for failures.",
            self.wal_directory().display()
        );
        if !damaged.is_empty() {
            tracing::error!(
                file = %name,
                "repository {} holds it as it was accepted although damaged, and keeps it so: recovery from there cannot pass \
                 it\nHINT: Take a new backup.",
                damaged.join(", ")
            );
        }
        self.look(name).await.map(Some)
    }
}

/// Reads a file that was there already when it was offered, wherever that lies: it may be the only sound copy. If it is gone by now, it has
/// to be offered once more.
pub(super) async fn is_readable(
    target: &WalTarget,
    archive: &WalArchive,
    file: WalFileName,
) -> Result<(), TargetError> {
    let read = async {
        let Some(reader) = archive.read(file).await? else { return Ok(false) };
        reader.write_to(std::io::sink()).await.map(|_| true)
    };
    match read.await {
        Ok(true) => Ok(()),
        Ok(false) => Err(TargetError::Vanished { name: file }),
        Err(error @ RepoError::Corrupt { .. }) => {
            tracing::error!(
                %file,
                repository = target.name(),
                "the stored object is damaged, and the file cannot be stored in its place\nHINT: {}",
                walpoint_words::hint(&Remedy::MoveAway)
            );
            Err(in_the_way(error).into())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use walpoint_storage::object::OBJECT_HEADER;

    use super::*;
    use crate::wal::blocked;
    use crate::wal::fixtures::{Bed, two};

    const NAME: &str = "000000010000000000000005";

    /// Promise 1: what a create finds under a name shows the object's header only.
    #[tokio::test]
    async fn damage_anywhere_behind_the_header_of_an_object_is_named_and_remembered() {
        let (_main, far, uploader, _) = two().await;
        let (target, file) = (&uploader.targets()[1], WalFileName::Segment(NAME.parse().unwrap()));
        far.put(NAME, 1).await;
        let path = far.stored(NAME);
        let sound = std::fs::read(&path).unwrap();
        is_readable(target, &far.archive, file).await.unwrap();
        for at in [OBJECT_HEADER, sound.len() / 2, sound.len() - 1] {
            let mut damaged = sound.clone();
            damaged[at] ^= 1;
            walpoint_base::durable::replace(&path, &damaged, 0o600).unwrap();
            let error = is_readable(target, &far.archive, file).await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains(NAME) && text.contains("Move that object away."), "{at}: {text}");
            target.blocked.add(file, &error);
            let left = blocked::left(&uploader, target, &far.archive).await.unwrap();
            assert!(left.is_some_and(|left| left.to_string().contains("1 file cannot be stored")), "{at}");
            walpoint_base::durable::replace(&path, &sound, 0o600).unwrap();
            assert!(blocked::left(&uploader, target, &far.archive).await.unwrap().is_none(), "{at}");
        }
    }

    /// Promise 1: a person moves the damaged object away as the message says, while the file is offered again.
    #[tokio::test]
    async fn what_vanished_before_it_was_read_is_not_acknowledged() {
        let (main, far, uploader, _) = two().await;
        let (target, name) = (&uploader.targets()[0], NAME.parse().unwrap());
        main.put(NAME, 1).await;
        far.put(NAME, 1).await;
        let looked = |bed: &Bed, n: usize| Looked {
            target: &uploader.targets()[n],
            goes_to: true,
            found: Ok((bed.archive.clone(), Copy::Sound)),
        };
        let beside = || beside_own(vec![looked(&main, 0), looked(&far, 1)], &far.archive, name);
        assert!(matches!(beside().await, Ok(Sound::Everywhere(damaged)) if damaged.is_empty()));
        std::fs::remove_file(main.stored(NAME)).unwrap();
        let gone = is_readable(target, &main.archive, WalFileName::Segment(name)).await.unwrap_err();
        assert!(gone.is_transient() && gone.to_string().contains(NAME), "{gone}");
        assert!(matches!(beside().await, Err(UploadError { permanent: false, .. })));
        let own = beside_own(vec![looked(&main, 0)], &main.archive, name).await;
        assert!(matches!(own, Err(UploadError { permanent: false, .. })));
    }
}
