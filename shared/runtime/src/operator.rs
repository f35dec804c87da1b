//! The person that runs a command, as records have it.

use walpoint_base::diagnostic::shown;

/// Who runs this: the user's name, behind `sudo` too, and the machine's.
pub fn user() -> String {
    let name = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    let name = name.filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    shown(&format!("{name}@{}", rustix::system::uname().nodename().to_string_lossy()))
}
