//! The data directory as the source of a backup's files.
//!
//! | module | owns |
//! |---|---|
//! | [`copy`] | the threads between start and stop |
//! | [`reader`] | one of them: a file into every replica |
//! | [`holes`] | what of sparse files is not read |

pub(crate) mod copy;
mod holes;
pub(crate) mod reader;
