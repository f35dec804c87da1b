//! A segment that is damaged in `pg_wal` and was stored while it was sound: by the look-ahead, or before a crash. What is stored is
//! what recovery needs, so it is acknowledged, and nothing damaged is stored beside it, or while it is not known whether one that it goes to
//! has it. If one that it does not go to is known to have it, it has to be copied from there. One that merely may have it holds nothing up:
//! readers take its sound copy before a damaged one.

use std::time::Duration;

use walpoint_base::socket::FileIdentity;
use walpoint_base::{Diagnostic, SegmentName, WalFileName};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;
use walpoint_storage::error::Remedy;

use super::admission::CandidateRepository;
use super::remember::remember_sound;
use super::{UploadError, UploadSource, Uploader, upload_error};
use crate::wal::check::CheckError;
use crate::wal::damaged_copy;
use crate::wal::ownership::has_own;
use crate::wal::target::{TargetError, WalTarget, in_the_way};

/// How long a repository may take to say what it has of a segment, and whose that is, if it is not to be stored there.
const TIME_LIMIT: Duration = Duration::from_secs(15);

/// Which of the repositories have this server's segment, sound, though it is damaged here.
#[derive(Debug)]
pub(super) enum Sound {
    /// None, and all were looked at.
    Nowhere,
    /// Those that it goes to do not lack it, or one that it does not go to may have it; for which reason each of these may. Nothing is stored
    /// elsewhere, and where it goes to, that waits for none of them.
    NotHere(Vec<String>),
    /// All that it goes to, but for these, which hold it as it was accepted although damaged.
    Everywhere(Vec<String>),
    /// Some: their names, and those of the others, which have nothing of it.
    Somewhere(Vec<String>, Vec<String>),
    /// It may be in one that it goes to and that is away; why that is not known.
    Unknown(UploadError),
    /// A segment of that name is in these of those that it goes to, and nothing shows that it is this server's.
    Unshown(Vec<String>),
}

impl Sound {
    /// Why it may be sound all the same, where it is not known to be.
    pub(super) fn doubts(&self) -> Vec<String> {
        match self {
            Self::Unknown(away) => {
                vec![format!("it may be sound in an unreachable repository: {}", away.text)]
            }
            Self::NotHere(may) => {
                may.iter().map(|why| format!("it may be sound in another repository: {why}")).collect()
            }
            Self::Nowhere | Self::Everywhere(_) | Self::Somewhere(..) | Self::Unshown(_) => Vec::new(),
        }
    }
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
    /// Looks for a segment that is damaged here in the repositories that it goes to, and if none of them is known to have this server's, in
    /// all others of its cluster. One that it goes to and that is away or does not answer is an error where another one has it: what it
    /// holds decides. What is there is read, as the file here may have been the last sound copy.
    pub(super) async fn sound<'a>(
        &self,
        file: &UploadSource,
        candidates: impl Iterator<Item = &'a CandidateRepository<'a>>,
    ) -> Result<Sound, UploadError> {
        let WalFileName::Segment(name) = file.name else { return Ok(Sound::Nowhere) };
        if !file.answers && !file.by_hand {
            return Ok(Sound::Nowhere);
        }
        let (mut looked, mut own) = (Vec::new(), None);
        for CandidateRepository { target, admitted, .. } in candidates {
            let target = *target;
            let found = match admitted {
                Ok(admitted) => {
                    let archive = admitted.archive.clone();
                    let copy = copy(&archive, name).await;
                    let copy = copy.map_err(|error| upload_error(target, &error.into()))?;
                    if own.is_none()
                        && let Copy::Sound = copy
                        && is_own(file, (target, &archive), name).await?
                    {
                        own = Some((target, archive.clone()));
                    }
                    Ok((archive, copy))
                }
                Err(error) => Err(upload_error(target, error)),
            };
            looked.push(Looked { target, goes_to: true, found });
        }
        if own.is_none() {
            let goes_to: Vec<&str> = looked.iter().map(|one| one.target.name()).collect();
            let others: Vec<&WalTarget> =
                self.targets.iter().filter(|target| !goes_to.contains(&target.name())).collect();
            for target in others {
                let found = match look_in(file, target, name).await {
                    Ok((archive, copy, true)) => {
                        own.get_or_insert_with(|| (target, archive.clone()));
                        Ok((archive, copy))
                    }
                    found => found.map(|(archive, copy, _)| (archive, copy)),
                };
                looked.push(Looked { target, goes_to: false, found });
            }
        }
        match own {
            Some((target, archive)) => beside_own(looked, (target, &archive), name).await,
            None => Ok(without_own(looked, file.by_hand)),
        }
    }
}

/// Whether the sound segment of a repository is this server's. Where what decides cannot be read, it is not known, and asked again.
async fn is_own(
    file: &UploadSource,
    (target, archive): (&WalTarget, &WalArchive),
    name: SegmentName,
) -> Result<bool, UploadError> {
    let Some(wal) = file.path.parent().filter(|_| file.answers) else { return Ok(false) };
    let own = async {
        Ok(has_own(target, archive, (&file.cluster, wal), name).await?
            || damaged_copy::is_own((target, archive), &file.cluster, wal, name).await?)
    };
    let own: Result<bool, RepoError> = own.await;
    own.map_err(|error| UploadError { permanent: false, ..upload_error(target, &error.into()) })
}

/// What a repository has that the file does not go to, and whether that is this server's.
async fn look_in(
    file: &UploadSource,
    target: &WalTarget,
    name: SegmentName,
) -> Result<(WalArchive, Copy, bool), UploadError> {
    let look = async {
        let open = async {
            target.answers()?;
            let archive = target.archive_at(&file.cluster, name.timeline).await?;
            let copy = copy(&archive, name).await?;
            Ok::<_, TargetError>((archive, copy))
        };
        let (archive, copy) = open.await.map_err(|error| upload_error(target, &error))?;
        let own = matches!(copy, Copy::Sound) && is_own(file, (target, &archive), name).await?;
        Ok((archive, copy, own))
    };
    match tokio::time::timeout(TIME_LIMIT, look).await {
        Ok(found) => found,
        Err(_) => Err(UploadError {
            text: format!("repository {}: no answer within {} s", target.name(), TIME_LIMIT.as_secs()),
            permanent: false,
        }),
    }
}

/// What follows where one of them has this server's.
async fn beside_own(
    looked: Vec<Looked<'_>>,
    (own, owns): (&WalTarget, &WalArchive),
    name: SegmentName,
) -> Result<Sound, UploadError> {
    let file = WalFileName::Segment(name);
    let (mut has, mut lacks, mut damaged) = (vec![own.name().to_owned()], Vec::new(), Vec::new());
    let mut here = false;
    for Looked { target, found, .. } in looked.into_iter().filter(|one| one.goes_to) {
        let (archive, copy) = found?;
        match copy {
            Copy::Sound => {
                if target.name() != own.name() {
                    is_same((own, owns), (target, &archive), name).await?;
                    has.push(target.name().to_owned());
                }
                is_readable(target, &archive, file).await.map_err(|error| upload_error(target, &error))?;
                here = true;
            }
            Copy::Damaged => damaged.push(target.name().to_owned()),
            Copy::None => lacks.push(target.name().to_owned()),
        }
    }
    Ok(match (lacks.is_empty(), here) {
        (false, _) => Sound::Somewhere(has, lacks),
        (true, true) => Sound::Everywhere(damaged),
        (true, false) => Sound::NotHere(vec![format!("repository {} has it", own.name())]),
    })
}

/// Makes sure that a repository has the segment that is this server's in another one. Where that is not known, the one that is the reason is
/// named.
async fn is_same(
    (own, owns): (&WalTarget, &WalArchive),
    (target, archive): (&WalTarget, &WalArchive),
    name: SegmentName,
) -> Result<(), UploadError> {
    let why = match archive.same_segment(owns, name).await {
        Ok(Some(true)) => return Ok(()),
        Ok(Some(false)) => {
            return Err(UploadError::permanent(format!(
                "\"{name}\" is damaged here, repository {} has it as it was before, and repository {} has other content under \
                 that name: two servers have archived there\nHINT: \"archive-agent status\" shows more.",
                own.name(),
                target.name()
            )));
        }
        Ok(None) => {
            // One of them is damaged behind its header, or was moved away.
            for (target, archive) in [(target, archive), (own, owns)] {
                let read = is_readable(target, archive, WalFileName::Segment(name)).await;
                read.map_err(|error| upload_error(target, &error))?;
            }
            "one of them changed meanwhile".to_owned()
        }
        Err(error) => UploadError::from(error).text,
    };
    let text = format!(
        "\"{name}\" in repository {} could not be compared with that in repository {}: {why}",
        target.name(),
        own.name()
    );
    Err(UploadError { text, permanent: false })
}

/// What follows where none is known to have this server's. What one that it does not go to may have holds nothing up.
fn without_own(looked: Vec<Looked<'_>>, by_hand: bool) -> Sound {
    let (mut sound, mut lacks, mut away, mut others) = (Vec::new(), false, None, Vec::new());
    for Looked { target, goes_to, found } in looked {
        match (found, goes_to) {
            (Ok((_, Copy::Sound)), true) => sound.push(target.name().to_owned()),
            (Ok((_, Copy::None)), true) => lacks = true,
            (Err(error), true) => drop(away.get_or_insert(error)),
            (Ok((_, Copy::Sound)), false) => others.push(format!(
                "repository {} has one of that name, and nothing shows whether it is this server's",
                target.name()
            )),
            (Err(error), false) => others.push(error.text),
            (Ok((_, Copy::Damaged)), true) | (Ok((_, Copy::Damaged | Copy::None)), false) => {}
        }
    }
    match away {
        Some(away) if lacks => Sound::Unknown(away),
        _ if by_hand && !sound.is_empty() => Sound::Unshown(sound),
        None if others.is_empty() && (lacks || sound.is_empty()) => Sound::Nowhere,
        _ => Sound::NotHere(others),
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
    /// What is acknowledged instead of a segment that is not stored as it is, and remembered: `damage` is what is wrong with it, and why
    /// nothing is.
    pub(super) async fn sound_instead<'a>(
        &self,
        file: &UploadSource,
        damage: CheckError,
        candidates: impl Iterator<Item = &'a CandidateRepository<'a>> + Clone,
    ) -> Result<FileIdentity, UploadError> {
        let sound = self.sound(file, candidates.clone()).await?;
        let doubts = sound.doubts();
        let identity = match sound {
            Sound::Unknown(_) | Sound::NotHere(_) => None,
            sound => self.is_sound(file, sound).await?,
        };
        let Some(identity) = identity else {
            let texts = std::iter::once(damage.to_string()).chain(doubts);
            return Err(UploadError::permanent(Diagnostic::gather("", texts)));
        };
        remember_sound(file, candidates).await?;
        Ok(identity)
    }

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
        let doubts = sound.doubts();
        let damaged = match sound {
            Sound::Nowhere => return Ok(None),
            Sound::NotHere(_) => {
                doubts.iter().for_each(|doubt| tracing::warn!(file = %name, "{doubt}"));
                return Ok(None);
            }
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
        let own = (&uploader.targets()[1], &far.archive);
        let beside = || beside_own(vec![looked(&main, 0), looked(&far, 1)], own, name);
        assert!(matches!(beside().await, Ok(Sound::Everywhere(damaged)) if damaged.is_empty()));
        std::fs::remove_file(main.stored(NAME)).unwrap();
        let gone = is_readable(target, &main.archive, WalFileName::Segment(name)).await.unwrap_err();
        assert!(gone.is_transient() && gone.to_string().contains(NAME), "{gone}");
        let error = beside().await.unwrap_err();
        assert!(!error.permanent && error.text.starts_with("repository main: "), "{}", error.text);
        let own = beside_own(vec![looked(&main, 0)], (target, &main.archive), name).await;
        assert!(matches!(own, Err(UploadError { permanent: false, .. })));
        main.put(NAME, 1).await;
        std::fs::remove_file(far.stored(NAME)).unwrap();
        let error = beside().await.unwrap_err();
        assert!(error.text.starts_with("repository far: "), "it is the one that changed: {}", error.text);
    }

    /// Promise 1: a repository that a segment does not go to holds nothing up, whatever it may have.
    #[tokio::test]
    async fn what_a_repository_may_have_that_a_segment_does_not_go_to_holds_nothing_up() {
        let (main, far, uploader, _) = two().await;
        let looked = |n: usize, goes_to, found| Looked { target: &uploader.targets()[n], goes_to, found };
        let lacks = || looked(0, true, Ok((main.archive.clone(), Copy::None)));
        let away = || UploadError { text: "repository far: it is away".to_owned(), permanent: false };
        let other = |goes_to, copy: Option<Copy>| {
            looked(1, goes_to, copy.map(|copy| (far.archive.clone(), copy)).ok_or_else(away))
        };
        for by_hand in [false, true] {
            for copy in [None, Some(Copy::Sound)] {
                let sound = without_own(vec![lacks(), other(false, copy)], by_hand);
                assert!(matches!(&sound, Sound::NotHere(_)), "{sound:?}");
                assert!(sound.doubts()[0].contains("repository far"), "{sound:?}");
            }
            for copy in [Copy::None, Copy::Damaged] {
                let sound = without_own(vec![lacks(), other(false, Some(copy))], by_hand);
                assert!(matches!(sound, Sound::Nowhere), "{sound:?}");
            }
            let sound = without_own(vec![lacks(), other(true, None)], by_hand);
            assert!(matches!(&sound, Sound::Unknown(away) if away.text.contains("far")), "{sound:?}");
        }
        let sound_there = || other(true, Some(Copy::Sound));
        let unshown = |looked| {
            let sound = without_own(looked, true);
            assert!(matches!(&sound, Sound::Unshown(names) if names == &["far"]), "{sound:?}");
        };
        unshown(vec![lacks(), sound_there()]);
        // What is not known to be another server's is no conflict either.
        unshown(vec![sound_there()]);
    }
}
