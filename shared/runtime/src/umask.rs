//! The umask that a program was started with.

use rustix::fs::Mode;

/// Takes nothing away from the owner of what this program creates: a umask that does would keep the program itself out of the
/// directories that it makes. To be called before there are threads.
pub fn leave_the_owner_all() {
    let given = rustix::process::umask(Mode::RWXU | Mode::RWXG | Mode::RWXO);
    rustix::process::umask(given - Mode::RWXU);
}
