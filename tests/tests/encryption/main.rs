//! Encryption end to end, on real servers and stores: what is promised for a repository holds for an encrypted one too, and
//! without its key nothing is written, served or believed.

mod archive;
mod damage;
mod init;
mod restore;
mod secret;
mod slots;
mod vectors;
