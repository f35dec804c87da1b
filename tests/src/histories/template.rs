//! New clusters by copying: `initdb` runs once for each installed server.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::dir::TestDir;
use crate::{process, testbed, user};

/// A cluster that is not started, with segments of 1 MB.
pub fn cluster(dir: &Arc<TestDir>, major: u32) -> Cluster {
    let templates = testbed::root().join("templates");
    fs::create_dir_all(&templates).expect("a directory for templates");
    let server = fs::metadata(testbed::pg_program(major, "postgres")).expect("the server's program");
    let template = templates.join(format!("pg{major}-{:x}-{:x}", server.len(), server.mtime()));
    let lock = fs::File::create(templates.join(".lock")).expect("the lock of the templates");
    lock.lock().expect("lock");
    if !template.exists() {
        make(major, &template);
    }
    drop(lock);
    let pgdata = crate::builder::free_name(dir, "data");
    copy(&template, &pgdata);
    user::give_tree(&pgdata);
    Cluster::adopt(Arc::clone(dir), major, pgdata, None)
}

/// A copy that was interrupted has another name.
fn make(major: u32, template: &Path) {
    let made = Cluster::builder()
        .major(major)
        .segment_size_mb(1)
        .conf("autovacuum", "off")
        .conf("min_wal_size", "2MB")
        .conf("max_wal_size", "6MB")
        .conf("wal_keep_size", "64MB")
        .conf("wal_retrieve_retry_interval", "100ms")
        .conf("checkpoint_completion_target", "0")
        .conf("allow_in_place_tablespaces", "on")
        .conf("wal_log_hints", "on")
        .init();
    let part = template.with_extension("part");
    drop(fs::remove_dir_all(&part));
    copy(made.pgdata(), &part);
    fs::rename(&part, template).expect("put the template in place");
}

fn copy(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    process::run(command.arg("-a").arg(from).arg(to), Duration::from_secs(60)).expect_success();
}
