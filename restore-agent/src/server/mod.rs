//! Servers that recover what was restored: the private one of a drill or an extraction, and the one that `restore --start` leaves
//! running.
//!
//! | module | owns |
//! |---|---|
//! | [`owner`], [`process`] | users of this machine; running programs as the user who owns a data directory |
//! | [`programs`] | PostgreSQL's programs of the right version |
//! | [`session`], [`instance`] | sessions on a server, and where its recovery is |
//! | [`end`] | whether recovery ended where it was planned to |
//! | [`log`] | what it logged last |
//! | [`group`] | ending what runs beside it |
//!
//! How a server is started, what its configuration is, and what is waited for is the business of those who start one.

pub(crate) mod end;
mod group;
mod instance;
mod log;
pub(crate) mod owner;
mod process;
mod programs;
pub(crate) mod session;

pub(crate) use self::end::Reached;
pub(crate) use self::group::ProcessGroup;
pub(crate) use self::instance::{Instance, Position};
pub(crate) use self::log::{last_errors, last_lines, lines_behind};
pub(crate) use self::process::ServerUser;
pub(crate) use self::programs::Programs;
pub(crate) use self::session::{LOGIN_TRIGGERS, Reachable};

use self::owner::Owner;

/// Who runs programs for root where the owner of the files is not known: a user without rights, `nobody` of most systems.
const UNPRIVILEGED: Owner = Owner { uid: 65534, gid: 65534 };

/// Who runs programs before anything is restored. `owner`: of the files that will be, if it is known.
pub(crate) fn user_before_restore(owner: Option<Owner>) -> ServerUser {
    let is_root = walpoint_base::user::effective() == 0;
    ServerUser::of(owner.filter(|owner| owner.uid != 0).or(is_root.then_some(UNPRIVILEGED)))
}
