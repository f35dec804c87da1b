//! Users of this machine: what they are called, and the commands that a person types about them.

use std::path::Path;

/// The number of the user whose rights this process has.
pub fn effective() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// What `/etc/passwd` calls a user. Those that only a directory service knows, and those of containers, have no name there.
pub fn name(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    named(&passwd, uid)
}

fn named(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(uid.as_str()))?;
    line.split(':').next().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// A user for a message: the name, or else the number.
pub fn shown(uid: u32) -> String {
    name(uid).unwrap_or_else(|| format!("uid {uid}"))
}

/// The command line that runs another one, given as a shell takes it, as that user.
pub fn run_as(uid: u32, command: &str) -> String {
    match name(uid) {
        Some(name) if effective() == 0 => format!("runuser -u {name} -- {command}"),
        Some(name) => format!("sudo -u {name} {command}"),
        None => format!("sudo -u '#{uid}' {command}"),
    }
}

/// The command line that gives a directory and all that is in it to a user.
pub fn give_all(directory: &Path, uid: u32, gid: u32) -> String {
    format!("chown -R {} {}", owner(uid, gid), quoted(directory))
}

/// The command line that gives a file to a user.
pub fn give(file: &Path, uid: u32, gid: u32) -> String {
    format!("chown {} {}", owner(uid, gid), quoted(file))
}

/// A user and a group as `chown` takes them: the user's own group where the user has a name.
fn owner(uid: u32, gid: u32) -> String {
    name(uid).map_or_else(|| format!("{uid}:{gid}"), |name| format!("{name}:"))
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    match path.chars().all(plain) {
        true => path,
        false => format!("'{}'", path.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_can_be_typed() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npostgres:x:26:26::/var/lib/pgsql:/bin/bash\n";
        assert_eq!(named(passwd, 26).as_deref(), Some("postgres"));
        assert_eq!(named(passwd, 6), None);
        assert_eq!(give_all(Path::new("/a b/c"), 4_000_000, 7), "chown -R 4000000:7 '/a b/c'");
        assert_eq!(give(Path::new("/a b/c"), 4_000_000, 7), "chown 4000000:7 '/a b/c'");
        assert_eq!(run_as(4_000_000, "id -u"), "sudo -u '#4000000' id -u");
    }
}
