//! Objects: what every file in a repository but the descriptor and the other documents looks like (`FORMAT.md`).
//!
//! | module | owns |
//! |---|---|
//! | [`kind`] | what objects there are |
//! | [`sealer`] | keys, hashes, checks |
//! | [`frame`] | one frame, sealed and opened |
//! | [`header`] | the header of an object |
//! | [`writer`], [`reader`] | a whole object in memory |
//! | [`codec`] | compression contexts that are used again |
//! | `pieces` | the memory of an object that is being made |
//! | [`bytes`] | reading fixed fields |
//!
//! Every parser is total: any bytes give a value or an error, and no more is allocated than lengths that were checked.

pub mod bytes;
pub mod codec;
pub mod frame;
pub mod header;
pub mod kind;
mod pieces;
pub mod reader;
pub mod sealer;
pub mod writer;

pub use self::codec::{Codec, Level};
pub use self::frame::{
    FRAME_HEADER, FrameError, FrameHeader, FramePosition, MAX_FRAME, Packed, open_frame, pack,
    parse_frame_header, seal_frame,
};
pub use self::header::{FORMAT_VERSION, OBJECT_HEADER, ObjectHeader};
pub use self::kind::ObjectKind;
pub use self::reader::ObjectReader;
pub use self::sealer::{MasterKey, ObjectKeys, Salt, SealError, Sealer};
pub use self::writer::{FramePlace, Keeper, ObjectWriter, SealedObject};
pub use crate::ids::{ContentHash, RepositoryId};

/// The most plain bytes of content that go into one object that is created with a single request.
pub const MAX_CONTENT: usize = 32 << 20;

/// The most bytes of an object: its content where nothing compresses, and room for headers.
pub const MAX_OBJECT: u64 = (MAX_CONTENT as u64) + (1 << 20);

/// What is wrong with an object's bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// Fewer bytes than a header.
    #[error("it is shorter than a header")]
    Short,
    /// It is not one of ours.
    #[error("it does not begin as Walpoint's objects do")]
    Stranger,
    /// Of a newer format version.
    #[error("it is of format version {0}, newer than this program knows\nHINT: Use a newer Walpoint.")]
    Version(u16),
    /// Of another kind than expected, or of none that is known.
    #[error("it is an object of kind {0}, which does not belong under this name")]
    Kind(u16),
    /// A flag that version 1 does not know.
    #[error("its flags {0:#x} are not known")]
    Flags(u32),
    /// Encrypted where the repository is not, or the reverse.
    #[error("it is {} though the repository is {}", if *.repository { "not encrypted" } else { "encrypted" }, if *.repository { "encrypted" } else { "not" })]
    Encryption {
        /// Whether the repository is encrypted.
        repository: bool,
    },
    /// The header's check does not match.
    #[error("its header does not match its check{}", if *.encrypted { " (damaged, of another repository, or the key is wrong)" } else { "" })]
    Header {
        /// Whether a wrong key may be the reason.
        encrypted: bool,
    },
    /// Another length than its header says.
    #[error("it has {is} bytes, its header says {says}")]
    Length {
        /// What the header says.
        says: u64,
        /// What it has.
        is: u64,
    },
    /// More content than the reader asked for.
    #[error("it says it holds {says} bytes, more than the {limit} that can be here")]
    TooLong {
        /// What the header says.
        says: u64,
        /// What can be.
        limit: usize,
    },
    /// A frame is damaged.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The frames do not make the object that the header describes.
    #[error("{0}")]
    Structure(&'static str),
    /// The content is not what was stored.
    #[error("its content has the hash {is}, its header says {says}")]
    Content {
        /// What the header says.
        says: ContentHash,
        /// What was read.
        is: ContentHash,
    },
    /// The cryptographic library failed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
