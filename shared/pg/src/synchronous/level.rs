//! How long a commit waits (`synchronous_commit`).

/// A value of `synchronous_commit`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CommitLevel {
    /// For nothing.
    Off,
    /// For the server's own disk.
    Local,
    /// Until standbys have written it.
    RemoteWrite,
    /// Until standbys have flushed it.
    On,
    /// Until standbys have applied it.
    RemoteApply,
}

impl CommitLevel {
    /// Reads a value; `None` if PostgreSQL knows none of that name.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "off" | "false" | "no" | "0" => Self::Off,
            "local" => Self::Local,
            "remote_write" => Self::RemoteWrite,
            "on" | "true" | "yes" | "1" => Self::On,
            "remote_apply" => Self::RemoteApply,
            _ => return None,
        })
    }

    /// Its name, as `SHOW` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Local => "local",
            Self::RemoteWrite => "remote_write",
            Self::On => "on",
            Self::RemoteApply => "remote_apply",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_value_is_read() {
        use CommitLevel::*;
        for level in [Off, Local, RemoteWrite, On, RemoteApply] {
            assert_eq!(CommitLevel::parse(level.name()), Some(level));
        }
        let read = ["FALSE", "no", "0", "True", "yes", "1", "Remote_Apply"].map(CommitLevel::parse);
        assert_eq!(read, [Off, Off, Off, On, On, On, RemoteApply].map(Some));
        assert_eq!(["", "remote", "t"].map(CommitLevel::parse), [None; 3]);
    }
}
