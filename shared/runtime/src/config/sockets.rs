//! Paths at which no socket can ever be used, whatever the file system looks like.

use std::path::Path;

/// What the kernel takes for the path of a socket, in bytes.
const LONGEST: usize = 107;

/// Directories in which every user may create files, everywhere.
const SHARED: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// Why no socket can have this path.
pub(super) fn too_long(path: &Path) -> Option<String> {
    let length = path.as_os_str().len();
    (length > LONGEST).then(|| {
        format!("is {length} bytes long, and a socket's path holds at most {LONGEST}\nHINT: Choose a shorter path.")
    })
}

/// Why the daemon would not listen at this path for `archive-push`.
pub fn unusable_push_socket(path: &Path) -> Option<String> {
    let shared = SHARED.iter().find(|shared| path.parent() == Some(Path::new(shared)));
    too_long(path).or_else(|| {
        shared.map(|shared| {
            format!(
                "must not be directly in {shared}, where every user could create a socket that answers \"stored\" in the daemon's \
                 place\nHINT: Choose a directory that only root or PostgreSQL's user can write to, such as {}.",
                super::SOCKET_DIRECTORY
            )
        })
    })
}
