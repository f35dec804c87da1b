//! Faults of the operating system: failing and delayed system calls, death at a system call, full and read-only disks.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::dir::TestDir;
use crate::process::{self, Background};
use crate::{user, wait};

/// A copy of `command` that runs under `strace` with these injections, as the servers' user. Each is what follows
/// `inject=` in strace's manual: `fsync:error=EIO`, `write:error=ENOSPC:when=2+`, `renameat2:signal=SIGKILL:when=1`,
/// `openat:delay_enter=200ms`. `paths` limits them to calls on these paths (none: all).
pub fn inject(command: &Command, injections: &[&str], paths: &[&Path]) -> Command {
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null"]);
    add(&mut traced, injections, paths);
    started_by(traced, command)
}

/// A copy of `command` that has so many bytes of address space: what it asks for beyond is refused.
pub fn limit_memory(command: &Command, bytes: u64) -> Command {
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--as={bytes}"));
    started_by(limited, command)
}

/// A copy of `command` in a PID namespace of its own, as in a container that shares the machine's name, as the servers' user.
/// Needs root.
pub fn in_pid_namespace(command: &Command) -> Command {
    let mut outer = Command::new("unshare");
    outer.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    as_the_servers_user(outer, command)
}

/// A copy of `command` that sees an empty directory in place of this one, as where a filesystem is not mounted; as the servers'
/// user. Needs root.
pub fn hiding(command: &Command, directory: &Path) -> Command {
    let mut outer = Command::new("unshare");
    outer
        .args(["--mount", "sh", "-c", "mount -t tmpfs none \"$1\" && shift && exec \"$@\"", "sh"])
        .arg(directory);
    as_the_servers_user(outer, command)
}

/// `outer command`, the command as the servers' user, with its environment and directory.
fn as_the_servers_user(mut outer: Command, command: &Command) -> Command {
    outer.args(["setpriv", "--clear-groups"]);
    outer.args([format!("--reuid={}", user::ids().uid), format!("--regid={}", user::ids().gid)]);
    outer.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        outer.current_dir(directory);
    }
    outer
}

/// `starter -- command`, as the servers' user, with the command's environment and directory.
fn started_by(mut starter: Command, command: &Command) -> Command {
    starter.arg("--").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => starter.env(name, value),
            None => starter.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        starter.current_dir(dir);
    }
    user::become_user(&mut starter);
    starter
}

/// Attaches to a running process and all its threads; the injections last until the guard is dropped.
#[track_caller]
pub fn attach(dir: &TestDir, pid: u32, injections: &[&str], paths: &[&Path]) -> Background {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null"]);
    add(&mut command, injections, paths);
    command.args(["-p", &pid.to_string()]);
    let mut tracer = Background::start(&mut command, &dir.join("strace.log"));
    wait::until_true(wait::SOON, "strace is attached", || {
        assert!(tracer.try_status().is_none(), "strace ended: {}", tracer.log());
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
    });
    tracer
}

fn add(command: &mut Command, injections: &[&str], paths: &[&Path]) {
    let calls: Vec<&str> = injections.iter().map(|i| i.split(':').next().unwrap_or(i)).collect();
    command.arg("-e").arg(format!("trace={}", calls.join(",")));
    for injection in injections {
        command.arg("-e").arg(format!("inject={injection}"));
    }
    for path in paths {
        command.arg("-P").arg(path);
    }
}

/// A filesystem of a few MiB in memory, mounted on a directory of its own. Needs root.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
    _dir: TestDir,
}

impl SmallDisk {
    /// Mounts an empty one, owned by the servers' user.
    #[track_caller]
    pub fn new(mb: u32) -> SmallDisk {
        let dir = TestDir::new();
        let path = dir.mkdir("disk");
        let ids = user::ids();
        let options = format!("size={mb}m,mode=0700,uid={},gid={}", ids.uid, ids.gid);
        mount(&["-t", "tmpfs", "-o", &options, "walpoint-test"], &path);
        SmallDisk { path, _dir: dir }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file `ballast` that leaves about this much free.
    pub fn fill(&self, leave: u64) {
        let stat = rustix::fs::statvfs(&self.path).expect("statvfs");
        let size = (stat.f_bavail * stat.f_frsize).saturating_sub(leave);
        std::fs::write(self.path.join("ballast"), vec![0; usize::try_from(size).expect("a small disk")])
            .expect("fill the disk");
    }

    /// Removes what `fill` wrote.
    pub fn free(&self) {
        std::fs::remove_file(self.path.join("ballast")).expect("remove the ballast");
    }

    /// Makes it read-only, or writable again.
    #[track_caller]
    pub fn set_read_only(&self, read_only: bool) {
        mount(&["-o", if read_only { "remount,ro" } else { "remount,rw" }], &self.path);
    }

    /// Unmounts it: the directory below is there, empty.
    #[track_caller]
    pub fn unmount(&self) {
        let mut command = Command::new("umount");
        process::run(command.arg("-l").arg(&self.path), Duration::from_secs(20)).expect_success();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.path).output());
    }
}

#[track_caller]
fn mount(arguments: &[&str], path: &Path) {
    process::run(Command::new("mount").args(arguments).arg(path), Duration::from_secs(20)).expect_success();
}

/// Random numbers of a test: the seed is printed, and `WALPOINT_SEED` repeats a run.
pub fn random() -> StdRng {
    let seed = std::env::var("WALPOINT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("WALPOINT_SEED={seed}");
    eprintln!("WALPOINT_SEED={seed}");
    StdRng::seed_from_u64(seed)
}
