//! A server whose clock jumps: a library that is loaded before it adds the seconds that a file says.

use std::path::PathBuf;
use std::process::Command;

use crate::cluster::Cluster;
use crate::{process, user, wait};

const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>

int gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
    static int (*real)(struct timeval *, void *);
    char text[32] = {0};
    int file, result;

    if (!real)
        real = (int (*)(struct timeval *, void *)) dlsym(RTLD_NEXT, "gettimeofday");
    result = real(tv, tz);
    file = open(CLOCK, O_RDONLY | O_CLOEXEC);
    if (file >= 0)
    {
        if (read(file, text, sizeof text - 1) > 0)
            tv->tv_sec += atol(text);
        close(file);
    }
    return result;
}
"#;

/// The clock of one server.
#[derive(Debug)]
pub struct Clock {
    file: PathBuf,
}

impl Clock {
    /// Of a server that is not running yet.
    #[track_caller]
    pub fn of(cluster: &mut Cluster) -> Clock {
        let dir = cluster.dir();
        let (file, source, library) =
            (dir.write("clock", "0"), dir.write("clock.c", LIBRARY), dir.path().join("clock.so"));
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1"]).arg(format!("-DCLOCK=\"{}\"", file.display()));
        compiler.arg("-o").arg(&library).arg(&source).arg("-ldl");
        process::run(&mut compiler, wait::SOON).expect_success();
        [&file, &library].into_iter().for_each(|path| user::give(path));
        cluster.preload(library);
        Clock { file }
    }

    /// Lets it be so many seconds ahead of the machine's.
    #[track_caller]
    pub fn ahead(&self, seconds: i64) {
        std::fs::write(&self.file, seconds.to_string()).expect("write the clock");
    }
}
