//! What a failed request means: one classification for every kind of store.

use std::error::Error as _;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};

use super::evidence::Unproven;
use crate::error::{RepoError, Source};
use crate::layout::Key;

/// Why one attempt at one request failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// No such object.
    NotFound,
    /// No such bucket, container or directory: says nothing about an object.
    NoStore,
    /// A create found something under the name, or a 409 says it may have.
    Exists,
    /// 401, 403, or credentials that cannot be had or have expired.
    Denied,
    /// Network, timeout, 5xx, throttling: may work later. A create may have landed all the same.
    Transient,
    /// A create was answered with a success that nothing shows to be the store's: only looking at the object tells.
    Unproven,
    /// The request is wrong for this store; trying again will not help.
    Rejected,
    /// The object is longer than anything this crate writes.
    TooLong,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, source: impl Into<Source>) -> Self {
        Self { kind, source: source.into() }
    }

    pub(crate) fn timeout(seconds: f64) -> Self {
        Self::new(FailureKind::Transient, format!("no answer in {seconds:.0} s"))
    }

    /// As an error about an object.
    pub(crate) fn about(self, key: &Key, store: &str) -> RepoError {
        match self.kind {
            FailureKind::NotFound => RepoError::NotFound { key: key.clone(), store: store.to_owned() },
            FailureKind::TooLong => RepoError::corrupt(key, self.source),
            _ => self.during(key.to_string(), store),
        }
    }

    /// As an error about an operation.
    pub(crate) fn during(self, what: String, store: &str) -> RepoError {
        let (store, source) = (store.to_owned(), self.source);
        match self.kind {
            FailureKind::Denied => RepoError::Denied { what, store, source },
            FailureKind::Transient | FailureKind::Unproven => RepoError::Unavailable { what, store, source },
            FailureKind::NoStore => RepoError::NoRepository { store, what: source.to_string(), remedy: None },
            FailureKind::NotFound | FailureKind::Exists | FailureKind::Rejected | FailureKind::TooLong => {
                RepoError::Rejected { what, store, source }
            }
        }
    }
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Self {
        Self { kind: classify(&error), source: error.into() }
    }
}

fn classify(error: &object_store::Error) -> FailureKind {
    use object_store::Error;
    match error {
        // Every 404 comes back as this; only the answer's text tells a missing bucket from a missing object. A HEAD
        // has no text, which is one reason why absence counts only together with a descriptor that was read.
        Error::NotFound { .. } if names_missing_bucket(&error.to_string()) => FailureKind::NoStore,
        Error::NotFound { .. } => FailureKind::NotFound,
        Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. } => {
            FailureKind::Exists
        }
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => FailureKind::Denied,
        Error::Generic { .. } => classify_generic(error),
        Error::JoinError { .. } => FailureKind::Transient,
        _ => FailureKind::Rejected,
    }
}

/// Everything without a variant of its own: the library keeps the status only in its text.
fn classify_generic(error: &object_store::Error) -> FailureKind {
    let mut source = error.source();
    let mut text = error.to_string();
    while let Some(cause) = source {
        if let Some(http) = cause.downcast_ref::<HttpError>() {
            return match http.kind() {
                _ if http.source().is_some_and(|source| source.is::<Unproven>()) => FailureKind::Unproven,
                HttpErrorKind::Unknown if text.contains("URL scheme is not allowed") => FailureKind::Rejected,
                _ => FailureKind::Transient,
            };
        }
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    if ["ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"]
        .iter()
        .any(|c| text.contains(c))
    {
        return FailureKind::Denied;
    }
    // What a bulk delete says of a single key: S3 by name, Azure by status, of which 409 is a policy or a hold and 412 a lease.
    if ["AccessDenied", "ObjectLocked", "401", "403", "409", "412"]
        .iter()
        .any(|code| text.contains(&format!("(code: {code})")))
    {
        return FailureKind::Denied;
    }
    match status(&text) {
        Some(408 | 429) => FailureKind::Transient,
        Some(400) if ["RequestTimeout", "RequestTimeTooSkewed"].iter().any(|c| text.contains(c)) => {
            FailureKind::Transient
        }
        Some(501) => FailureKind::Rejected,
        Some(status) if status < 500 => FailureKind::Rejected,
        // Servers' errors, bodies that are not what the protocol says, and whatever else: a later attempt decides.
        _ => FailureKind::Transient,
    }
}

/// The status in "Server returned non-2xx status code: 503 Service Unavailable: …".
fn status(text: &str) -> Option<u16> {
    let digits = text.split_once("status code: ")?.1.get(..3)?;
    digits.parse().ok()
}

fn names_missing_bucket(text: &str) -> bool {
    ["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist", "AccountNotFound"]
        .iter()
        .any(|code| text.contains(code))
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind;
        let kind = match error.kind() {
            // ENOTDIR: a directory of the name is a file, so nothing is under the name.
            ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory => FailureKind::NotFound,
            ErrorKind::AlreadyExists => FailureKind::Exists,
            ErrorKind::PermissionDenied => FailureKind::Denied,
            ErrorKind::ReadOnlyFilesystem | ErrorKind::InvalidFilename | ErrorKind::FileTooLarge => {
                FailureKind::Rejected
            }
            // A full disk, an I/O error, a network filesystem that went away: somebody may put that right.
            _ => FailureKind::Transient,
        };
        Self { kind, source: error.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> FailureKind {
        classify(&object_store::Error::Generic { store: "S3", source: text.into() })
    }

    #[test]
    fn statuses() {
        let status = |n: u16| format!("Server returned non-2xx status code: {n} Whatever: <Code>X</Code>");
        for (number, kind) in [
            (400, FailureKind::Rejected),
            (408, FailureKind::Transient),
            (429, FailureKind::Transient),
            (500, FailureKind::Transient),
            (501, FailureKind::Rejected),
            (503, FailureKind::Transient),
        ] {
            assert_eq!(generic(&status(number)), kind, "{number}");
        }
        assert_eq!(generic("status code: 400 Bad Request: <Code>ExpiredToken</Code>"), FailureKind::Denied);
        assert_eq!(generic("something else"), FailureKind::Transient);
        let of_a_key =
            |code: &str| generic(&format!("DeleteObjects request failed for key x: no (code: {code})"));
        for code in ["AccessDenied", "401", "403", "409", "412"] {
            assert_eq!(of_a_key(code), FailureKind::Denied, "{code}");
        }
        assert_eq!(of_a_key("503"), FailureKind::Transient);
        assert_eq!(of_a_key("InternalError"), FailureKind::Transient);
    }

    #[test]
    fn a_full_disk_has_answered() {
        let told = |kind| Failure::from(io::Error::from(kind)).during("a/b".to_owned(), "/repo").to_string();
        assert_eq!(told(io::ErrorKind::StorageFull), "could not write a/b to /repo");
        assert_eq!(told(io::ErrorKind::QuotaExceeded), "could not write a/b to /repo");
        assert_eq!(told(io::ErrorKind::TimedOut), "/repo did not answer for a/b");
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_object() {
        let not_found = |body: &str| object_store::Error::NotFound { path: "x".into(), source: body.into() };
        assert_eq!(classify(&not_found("<Code>NoSuchBucket</Code>")), FailureKind::NoStore);
        assert_eq!(classify(&not_found("<Code>NoSuchKey</Code>")), FailureKind::NotFound);
    }
}
