//! What can happen to servers that share an archive. A history is a random sequence of these chapters; each leaves a
//! primary that archives and takes clients.

mod copies;
mod failover;
mod one_server;
mod recovery;

use rand::Rng;

use super::world::{Outcome, World};

/// A standby's way to its WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// From the primary, and from the archive.
    Stream,
    /// Only from the archive: a crash of the primary loses what it had not archived.
    Archive,
}

/// A chapter of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chapter {
    /// Clients work.
    Load,
    /// A base backup.
    Backup,
    /// The server dies and starts again.
    CrashRestart,
    /// A second daemon for the same data directory.
    TwoDaemons,
    /// A tablespace: outside the data directory, or inside where a standby may have to replay it.
    Tablespace,
    /// The primary dies, a standby takes over.
    Failover(Follow, Prepared),
    /// The primary crashes and starts again with a transaction prepared; in the same segment the standby takes over.
    FailoverAfterCrash,
    /// The same twice: the second standby followed the first.
    Cascade(Prepared),
    /// The primary dies, its place takes what is restored to an earlier moment.
    Pitr,
    /// The same, to a moment before the newest fork, on the path that recovery follows by default.
    PitrBeforeFork,
    /// A copy is restored beside the primary, promoted, and thrown away.
    CopyBeside,
    /// The same, to the latest moment, after a tablespace was created that the backup does not have.
    CopyBesideTablespace,
    /// A snapshot of the storage starts with the primary's own configuration: on the same timeline, or promoted.
    SnapshotSameConfiguration {
        /// Whether it is promoted.
        promoted: bool,
    },
    /// The primary dies; two snapshots of its storage are promoted and both archive.
    TwinsPromoted,
    /// A copy with the primary's settings but no `archive_command` is promoted beside it; then the primary fails over.
    SilentCopy,
    /// A copy is promoted without archiving and works; then it takes the primary's place and archives.
    LateArchiver,
    /// After a failover the old primary is rewound and follows; then the new one dies.
    Rewind,
}

/// Whether a prepared transaction is open when a chapter's crash comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// One is.
    Open,
    /// As the load left it.
    AsItComes,
}

impl Chapter {
    /// A random one.
    pub fn random(rng: &mut impl Rng) -> Chapter {
        let follow = if rng.random_bool(0.5) { Follow::Stream } else { Follow::Archive };
        let prepared = if rng.random_bool(0.5) { Prepared::Open } else { Prepared::AsItComes };
        match rng.random_range(0..100) {
            0..6 => Chapter::Load,
            6..14 => Chapter::Backup,
            14..18 => Chapter::CrashRestart,
            18..22 => Chapter::TwoDaemons,
            22..28 => Chapter::Tablespace,
            28..37 => Chapter::Failover(follow, prepared),
            37..40 => Chapter::FailoverAfterCrash,
            40..46 => Chapter::Cascade(prepared),
            46..58 => Chapter::Pitr,
            58..68 => Chapter::PitrBeforeFork,
            68..74 => Chapter::CopyBeside,
            74..80 => Chapter::CopyBesideTablespace,
            80..85 => Chapter::SnapshotSameConfiguration { promoted: rng.random_bool(0.5) },
            85..91 => Chapter::TwinsPromoted,
            91..94 => Chapter::SilentCopy,
            94..97 => Chapter::LateArchiver,
            _ => Chapter::Rewind,
        }
    }

    /// Lets it happen.
    pub fn play(self, world: &mut World) -> Outcome<()> {
        world.note(format!("-- {self:?}"));
        let steps = world.rng.random_range(2..7);
        world.load(steps);
        match self {
            Chapter::Load => Ok(()),
            Chapter::Backup => world.backup(),
            Chapter::CrashRestart => world.crash_restart(),
            Chapter::TwoDaemons => world.two_daemons(),
            Chapter::Tablespace => world.tablespace(true),
            Chapter::Failover(follow, prepared) => {
                world.open_prepared(prepared);
                world.failover(follow)
            }
            Chapter::FailoverAfterCrash => {
                world.drain()?;
                world.open_prepared(Prepared::Open);
                world.crash_restart()?;
                world.failover(Follow::Stream)
            }
            Chapter::Cascade(prepared) => {
                world.open_prepared(prepared);
                world.cascade()
            }
            Chapter::Pitr => world.pitr(false),
            Chapter::PitrBeforeFork => world.pitr(true),
            Chapter::CopyBeside => world.copy_beside(),
            Chapter::CopyBesideTablespace => {
                world.tablespace(false)?;
                world.copy_beside()
            }
            Chapter::SnapshotSameConfiguration { promoted } => world.snapshot_same_configuration(promoted),
            Chapter::TwinsPromoted => world.twins(),
            Chapter::SilentCopy => world.silent_copy(),
            Chapter::LateArchiver => world.late_archiver(),
            Chapter::Rewind => world.rewind(),
        }?;
        let steps = world.rng.random_range(1..5);
        world.load(steps);
        world.drain()
    }
}
