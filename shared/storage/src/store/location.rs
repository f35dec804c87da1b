//! Where a URL leads.

use std::fmt;
use std::path::{Path, PathBuf};

use walpoint_base::mask::masked;

use crate::layout::Key;

/// Where a store is.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Location {
    Directory(PathBuf),
    S3(Bucket),
    Google(Bucket),
    Azure(Bucket),
}

/// Who keeps what is there. Prints as messages have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Directory,
    S3,
    Google,
    Azure,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "a directory",
            Self::S3 => "S3 (s3://)",
            Self::Google => "Google Cloud Storage (gs://)",
            Self::Azure => "Azure Blob Storage (az://)",
        })
    }
}

/// A bucket, which Azure calls a container, and a prefix in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// Without slashes at its ends; empty for the whole bucket.
    pub prefix: String,
}

/// Why a URL leads nowhere.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongUrl(String);

impl Location {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Directory(_) => Kind::Directory,
            Self::S3(_) => Kind::S3,
            Self::Google(_) => Kind::Google,
            Self::Azure(_) => Kind::Azure,
        }
    }

    pub(super) fn of(url: &str) -> Result<Self, WrongUrl> {
        if url.is_empty() {
            return Err(WrongUrl("is required: a directory, s3://…, gs://… or az://…".to_owned()));
        }
        if url.starts_with('/') {
            return Ok(Self::Directory(PathBuf::from(url)));
        }
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| WrongUrl(format!("{:?} is neither an absolute path nor a URL", masked(url))))?;
        if scheme == "file" {
            let path = Path::new(rest);
            return match path.is_absolute() {
                true => Ok(Self::Directory(path.to_owned())),
                false => Err(WrongUrl(format!(
                    "{:?} has no absolute path\nHINT: Write file:///directory.",
                    masked(url)
                ))),
            };
        }
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let (name, prefix) = (name.to_owned(), prefix.trim_matches('/').to_owned());
        if name.is_empty() || name.contains(['@', '?', '#', ':']) {
            return Err(WrongUrl(format!(
                "{:?} does not name a bucket\nHINT: Write {scheme}://bucket/prefix.",
                masked(url)
            )));
        }
        if !prefix.is_empty() && prefix.parse::<Key>().is_err() {
            return Err(WrongUrl(format!(
                "the prefix {:?} has other characters than 0-9 A-Z a-z . _ - /",
                masked(&prefix)
            )));
        }
        let bucket = Bucket { name, prefix };
        match scheme {
            "s3" => Ok(Self::S3(bucket)),
            "gs" => Ok(Self::Google(bucket)),
            "az" | "azure" => Ok(Self::Azure(bucket)),
            _ => Err(WrongUrl(format!(
                "{scheme}:// is no known kind of store\nHINT: Known are file, s3, gs and az."
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_a_wrong_url_is_not_shown() {
        for url in [
            "s3://key:hidden@bucket/p",
            "key:hidden@bucket",
            "s3://bucket?sig=hidden",
            "az://c/bucket?sig=hidden",
        ] {
            let error = Location::of(url).unwrap_err().to_string();
            assert!(
                error.contains("***") && error.contains("bucket") && !error.contains("hidden"),
                "{error}"
            );
        }
    }

    #[test]
    fn urls() {
        let bucket = |name: &str, prefix: &str| Bucket { name: name.to_owned(), prefix: prefix.to_owned() };
        for (url, location) in [
            ("/var/backup", Location::Directory("/var/backup".into())),
            ("file:///var/backup", Location::Directory("/var/backup".into())),
            ("s3://b/a/c/", Location::S3(bucket("b", "a/c"))),
            ("gs://b", Location::Google(bucket("b", ""))),
            ("az://c", Location::Azure(bucket("c", ""))),
            ("azure://c/d", Location::Azure(bucket("c", "d"))),
        ] {
            assert_eq!(Location::of(url), Ok(location));
        }
        for bad in
            ["", "relative", "file://relative", "ftp://x/y", "s3://", "s3:///x", "s3://u:p@b/x", "s3://b/a b"]
        {
            assert!(Location::of(bad).is_err(), "{bad}");
        }
    }
}
