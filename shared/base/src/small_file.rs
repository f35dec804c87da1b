//! Small files that settings name: secrets and certificates. They are read again and again, and may lie on a filesystem that hangs.
//!
//! A read that hangs cannot be cancelled, and keeps its thread. What always holds: no more than one thread is in a file; who asks for
//! a file that is being read waits for that, and no longer than the limit. A file that was mounted anew is another one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::mounts;

/// How long a file may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A file by path and mount, and how much of it is read.
type Wanted = (PathBuf, Option<u64>, u64);

/// What is being read.
static UNDER_WAY: Mutex<BTreeMap<Wanted, Arc<Reading>>> = Mutex::new(BTreeMap::new());

struct Reading {
    begun: Instant,
    /// Whether it is not a regular file, but a terminal or a pipe: that waits for a person or a program.
    waits: AtomicBool,
    outcome: Mutex<Option<io::Result<Zeroizing<Vec<u8>>>>>,
    ended: Condvar,
}

/// The first `most` bytes of a file. Blocks up to 10 seconds where it lies on a filesystem that hangs.
///
/// # Errors
///
/// That of the filesystem, or [`ErrorKind::TimedOut`] if there is no answer.
pub fn read(path: &Path, most: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    read_by(LIMIT, path, most, read_here)
}

fn read_here(path: &Path, most: u64, reading: &Reading) -> io::Result<Zeroizing<Vec<u8>>> {
    reading.waits.store(!fs::metadata(path)?.is_file(), Ordering::Relaxed);
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    if let Ok(real) = fs::canonicalize(path) {
        mounts::leads_to(path, real);
    }
    Ok(bytes)
}

fn read_by(
    limit: Duration,
    path: &Path,
    most: u64,
    work: impl FnOnce(&Path, u64, &Reading) -> io::Result<Zeroizing<Vec<u8>>> + Send + 'static,
) -> io::Result<Zeroizing<Vec<u8>>> {
    let wanted = (path.to_owned(), mounts::of(path), most);
    let mut all = lock(&UNDER_WAY);
    let reading = match all.get(&wanted) {
        Some(reading) => Arc::clone(reading),
        None => {
            let reading = Arc::new(Reading {
                begun: Instant::now(),
                waits: AtomicBool::new(false),
                outcome: Mutex::new(None),
                ended: Condvar::new(),
            });
            let (here, own) = (Arc::clone(&reading), wanted.clone());
            let work = move || {
                let outcome = work(&own.0, own.2, &here);
                // First: who asks from now on reads anew.
                lock(&UNDER_WAY).remove(&own);
                *lock(&here.outcome) = Some(outcome);
                here.ended.notify_all();
            };
            thread::Builder::new().name("small file".to_owned()).spawn(work)?;
            all.insert(wanted, Arc::clone(&reading));
            reading
        }
    };
    drop(all);
    reading.wait(limit)
}

impl Reading {
    fn wait(&self, limit: Duration) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut outcome = lock(&self.outcome);
        loop {
            match &*outcome {
                Some(Ok(bytes)) => return Ok(bytes.clone()),
                Some(Err(error)) => return Err(again(error)),
                None => {}
            }
            if self.waits.load(Ordering::Relaxed) {
                outcome = self.ended.wait(outcome).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let left = limit.saturating_sub(self.begun.elapsed());
            if left.is_zero() {
                let what = format!("no answer within {} s: its filesystem hangs", limit.as_secs());
                return Err(io::Error::new(ErrorKind::TimedOut, what));
            }
            outcome = self.ended.wait_timeout(outcome, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The same error for another one who asked.
fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_file_that_hangs_takes_one_thread_and_is_named() {
        let (path, limit) = (Path::new("/hangs/secret"), Duration::from_millis(50));
        let begun = Arc::new(AtomicUsize::new(0));
        let (release, held) = mpsc::channel::<()>();
        let counted = Arc::clone(&begun);
        let hangs = move |_: &Path, _: u64, _: &Reading| {
            counted.fetch_add(1, Ordering::Relaxed);
            held.recv().ok();
            Ok(Zeroizing::new(b"old".to_vec()))
        };
        assert_eq!(read_by(limit, path, 9, hangs).unwrap_err().kind(), ErrorKind::TimedOut);
        let since = Instant::now();
        for _ in 0..100 {
            let counted = Arc::clone(&begun);
            let another = move |_: &Path, _: u64, _: &Reading| {
                counted.fetch_add(1, Ordering::Relaxed);
                Ok(Zeroizing::new(Vec::new()))
            };
            let error = read_by(limit, path, 9, another).unwrap_err();
            assert!(error.to_string().contains("its filesystem hangs"), "{error}");
        }
        assert!(since.elapsed() < limit * 50, "it is answered at once");
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        drop(release);
        let new = || read_by(limit, path, 9, |_, _, _| Ok(Zeroizing::new(b"new".to_vec())));
        while !new().is_ok_and(|bytes| *bytes == b"new") {
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_waits_for_a_person_is_waited_for() {
        let (path, limit) = (Path::new("/waits/terminal"), Duration::from_millis(50));
        let typed = move |_: &Path, _: u64, reading: &Reading| {
            reading.waits.store(true, Ordering::Relaxed);
            thread::sleep(limit * 4);
            Ok(Zeroizing::new(b"typed".to_vec()))
        };
        assert_eq!(*read_by(limit, path, 9, typed).unwrap(), b"typed");
    }

    #[test]
    fn no_more_is_read_than_wanted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        crate::durable::replace(file.path(), b"0123456789", 0o600).unwrap();
        assert_eq!(*read(file.path(), 4).unwrap(), b"0123");
        assert_eq!(*read(file.path(), 40).unwrap(), b"0123456789");
        let error = read(Path::new("/nonexistent/secret"), 4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}
