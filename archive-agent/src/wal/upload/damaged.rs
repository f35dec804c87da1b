//! A segment that is damaged in `pg_wal` and was stored while it was sound: by the look-ahead, or before a crash. What is stored is
//! what recovery needs, so it is acknowledged, and nothing damaged is stored beside it.

use walpoint_base::socket::FileIdentity;
use walpoint_base::{SegmentName, WalFileName};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;

use super::admission::Candidate;
use super::{Source, Trouble, Uploader, trouble};
use crate::wal::dropped::has_own;
use crate::wal::target::{Target, TargetError};

/// Which of the repositories have this server's segment, sound, though it is damaged here.
pub(super) enum Sound {
    /// None, as far as it shows.
    Nowhere,
    /// All of them.
    Everywhere,
    /// Some: their names, and those of the others.
    Somewhere(Vec<String>, Vec<String>),
}

impl Sound {
    /// Looks for it in all repositories that the file is to be stored in. One that is away or does not answer is an error where
    /// another one has it: what it holds decides. What is there is read, as the file here may have been the last sound copy.
    pub(super) async fn of<'a>(
        file: &Source,
        candidates: impl Iterator<Item = &'a Candidate<'a>>,
    ) -> Result<Self, Trouble> {
        let (WalFileName::Segment(name), Some(wal)) = (file.name, file.path.parent()) else {
            return Ok(Self::Nowhere);
        };
        if !file.answers {
            return Ok(Self::Nowhere);
        }
        let (mut own, mut away, mut found) = (None, None, Vec::new());
        for one in candidates {
            let archive = match &one.admitted {
                Ok(admitted) => &admitted.archive,
                Err(error) => {
                    away.get_or_insert_with(|| trouble(one.target, error));
                    continue;
                }
            };
            let header = archive.header(name).await?.filter(|header| !header.damaged);
            if let Some(header) = &header
                && own.is_none()
                && has_own(one.target, archive, (&file.cluster, wal), name).await
            {
                own = Some(header.hash);
            }
            found.push((one.target, archive, header.map(|header| header.hash)));
        }
        if own.is_none() {
            return Ok(Self::Nowhere);
        }
        if let Some(away) = away {
            return Err(away);
        }
        let (has, lacks): (Vec<_>, Vec<_>) = found.into_iter().partition(|(.., hash)| *hash == own);
        for (target, archive, _) in &has {
            is_readable(target, archive, name).await.map_err(|error| trouble(target, &error))?;
        }
        let names =
            |of: Vec<(&Target, _, _)>| of.into_iter().map(|(target, ..)| target.name().to_owned()).collect();
        Ok(match lacks.is_empty() {
            true => Self::Everywhere,
            false => Self::Somewhere(names(has), names(lacks)),
        })
    }
}

/// That a sound copy has to be put where none is before PostgreSQL may remove its own.
fn copy_it(name: WalFileName, has: &[String], lacks: &[String]) -> Trouble {
    Trouble::lasting(format!(
        "\"{name}\" is damaged here, repository {} has it as it was before, and {} lacks it; HINT: copy it: restore-agent fetch {name} \
         /tmp/{name}, then archive-agent push /tmp/{name}",
        has.join(", "),
        lacks.join(", ")
    ))
}

impl Uploader {
    /// What is acknowledged of a segment that is damaged here and sound in repositories.
    pub(super) async fn is_sound(&self, file: &Source, sound: Sound) -> Result<FileIdentity, Trouble> {
        if let Sound::Somewhere(has, lacks) = sound {
            return Err(copy_it(file.name, &has, &lacks));
        }
        tracing::error!(
            file = %file.name,
            "it is damaged in {}, and was stored before that: what is stored is sound. HINT: look for failing storage",
            self.wal_directory().display()
        );
        self.look(file.name).await
    }
}

/// Reads a segment that was there already when its server offered it: the file here may be the only sound copy.
pub(super) async fn is_readable(
    target: &Target,
    archive: &WalArchive,
    name: SegmentName,
) -> Result<(), TargetError> {
    let file = WalFileName::Segment(name);
    let Some(reader) = archive.read(file).await? else { return Ok(()) };
    match reader.write_to(std::io::sink()).await {
        Ok(_) => Ok(()),
        Err(error @ RepoError::Corrupt { .. }) => {
            tracing::error!(
                %file,
                repository = target.name(),
                "what is stored of it is damaged, and in the way of the file in pg_wal. HINT: move that object away; the file is \
                 stored at PostgreSQL's next question"
            );
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}
