//! B3, B8: tablespaces, a `pg_wal` elsewhere, configuration outside, odd names, files full of holes.

use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use walpoint_repo::backup::EntryContent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::dir::TestDir;
use walpoint_tests::oracle::{self, Contents};
use walpoint_tests::{store::Store, user};

use crate::bed::Bed;

/// B3: everything that a data directory reaches outside itself is in the backup, and what must not be is not.
#[test]
fn links_tablespaces_and_configuration_outside() {
    let dir = Arc::new(TestDir::new());
    let outside = dir.mkdir("etc");
    let odd = outside.join(std::ffi::OsString::from_vec(b"na\xFFme\nwith everything .conf".to_vec()));
    fs::write(&odd, "x").unwrap();
    fs::write(outside.join("app.conf"), "work_mem = '5MB'\n").unwrap();
    user::give_tree(&outside);
    let builder = Cluster::builder().in_dir(&dir).wal_dir(dir.join("wal")).segment_size_mb(1);
    let builder = builder.conf("include", outside.join("app.conf").display().to_string());
    let extra = format!("extra_paths = [{:?}]", outside.display().to_string());
    let bed = Bed::new(builder, Store::local(), |agent| agent.cluster_line(&extra));
    let space = bed.cluster.create_tablespace("first");
    bed.cluster.create_tablespace("second");
    bed.cluster.psql(
        "create table one (i int) tablespace first; insert into one select generate_series(1, 1000);
         create table two (i int) tablespace second; insert into two select generate_series(1, 1000);
         create temporary table gone (i int);",
    );
    // What another version left in the tablespace is none of this cluster's business.
    fs::create_dir(space.join("PG_12_201909212")).unwrap();
    fs::write(space.join("PG_12_201909212/file"), "old").unwrap();
    fs::write(bed.cluster.pgdata().join("base/pgsql_tmp123"), "temporary").unwrap();
    user::give_tree(bed.cluster.pgdata());

    let backup = bed.backup(&[]);
    let id = backup["backup"].as_str().unwrap();
    let entries = bed.repository().entries(id);
    assert!(matches!(&entries["pg_wal"].content, EntryContent::LinkedDirectory { target }
        if target == dir.join("wal").as_os_str().as_bytes()));
    let spaces = bed.cluster.tablespaces();
    assert_eq!(spaces.len(), 2);
    for (oid, place) in &spaces {
        let EntryContent::LinkedDirectory { target } = &entries[&format!("pg_tblspc/{oid}")].content else {
            panic!()
        };
        assert_eq!(target, place.as_os_str().as_bytes());
    }
    let odd_name = odd.file_name().unwrap().as_bytes();
    let extras: Vec<_> = entries.values().filter(|entry| entry.path.to_string().contains("extra")).collect();
    assert!(extras.iter().any(|entry| entry.path.path.as_bytes() == odd_name), "{extras:?}");
    for (path, entry) in &entries {
        assert!(!path.contains("PG_12") && !path.contains("pgsql_tmp"), "{path}");
        assert!(!path.starts_with("pg_wal/") && path != "postmaster.pid", "{path}");
        let meta = fs::symlink_metadata(bed.cluster.pgdata().join(path));
        if let (EntryContent::Directory | EntryContent::File(_), Ok(meta)) = (&entry.content, meta) {
            assert_eq!(u32::from(entry.attributes.mode), meta.mode() & 0o7777, "{path}");
            assert_eq!((entry.attributes.uid, entry.attributes.gid), (meta.uid(), meta.gid()), "{path}");
        }
    }
    let facts = bed.repository().open(id).manifest().summary.facts.clone();
    assert_eq!(facts.extra_paths[0].0, outside.as_os_str().as_bytes());
    assert!(facts.users.iter().any(|owner| owner.name == user::name()), "{:?}", facts.users);

    let source = Contents::of(&bed.cluster);
    let segment = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&segment);
    source.assert_equal(&Contents::of(&bed.recover(id)));
}

/// B3: configuration that no backup holds is pointed out, with the line that would change that.
#[test]
fn configuration_outside_is_offered() {
    let dir = Arc::new(TestDir::new());
    let outside = dir.mkdir("debian");
    fs::write(outside.join("extra.conf"), "work_mem = '5MB'\n").unwrap();
    user::give_tree(&outside);
    let builder = Cluster::builder().in_dir(&dir).conf("include", outside.join("extra.conf").display());
    let bed = Bed::local(builder);
    let output = bed.agent.run(&["backup"]).expect_success();
    let hint = format!("extra_paths = [{:?}]", outside.display().to_string());
    assert!(output.stderr.contains("extra.conf") && output.stderr.contains(&hint), "{}", output.stderr);
}

/// B3: of configuration that is a link out of the data directory a backup holds nothing but the link.
#[test]
fn configuration_behind_a_link_is_offered() {
    let dir = Arc::new(TestDir::new());
    let outside = dir.mkdir("etc").canonicalize().unwrap();
    let bed = Bed::local(Cluster::builder().in_dir(&dir));
    let (file, link) = (outside.join("pg_hba.conf"), bed.cluster.pgdata().join("pg_hba.conf"));
    fs::rename(&link, &file).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    user::give_tree(&outside);
    let output = bed.agent.run(&["backup"]).expect_success();
    let hint = format!("extra_paths = [{:?}]", outside.display().to_string());
    let found = format!("a backup does not hold {}", file.display());
    assert!(output.stderr.contains(&found) && output.stderr.contains(&hint), "{}", output.stderr);
}

/// B8: a sparse file of a terabyte costs neither space nor time, and comes back as it is.
#[test]
fn a_sparse_file_of_a_terabyte() {
    use std::os::unix::fs::FileExt;
    let bed = Bed::local(Cluster::builder());
    let path = bed.cluster.pgdata().join("sparse");
    let file = fs::File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"in the middle", (1 << 39) + 77).unwrap();
    file.write_all_at(b"end", (1 << 40) - 3).unwrap();
    user::give(&path);
    let backup = bed.backup(&[]);
    assert!(backup["read_bytes"].as_u64().unwrap() < 1 << 30, "{backup}");
    assert!(backup["file_bytes"].as_u64().unwrap() > 1 << 40, "{backup}");
    let target = bed.repository().unpack(backup["backup"].as_str().unwrap(), &bed.cluster);
    let copy = fs::File::open(target.join("sparse")).unwrap();
    assert_eq!(copy.metadata().unwrap().len(), 1 << 40);
    let (mut middle, mut end) = ([0; 13], [0; 3]);
    copy.read_exact_at(&mut middle, (1 << 39) + 77).unwrap();
    copy.read_exact_at(&mut end, (1 << 40) - 3).unwrap();
    assert_eq!((&middle, &end), (b"in the middle", b"end"));
}

/// B8: many small files bundle into few objects.
#[test]
fn many_small_files_bundle() {
    let bed = Bed::local(Cluster::builder().major(16));
    let many = bed.cluster.pgdata().join("many");
    fs::create_dir(&many).unwrap();
    for n in 0..20_000u32 {
        fs::write(many.join(format!("file {n}")), n.to_le_bytes()).unwrap();
    }
    user::give_tree(&many);
    let backup = bed.backup(&[]);
    let id = backup["backup"].as_str().unwrap();
    let packs = bed.store.back_door().list(&format!("clusters/main/data/{id}"));
    assert!(packs.len() < 10, "{} packs", packs.len());
    let target = bed.repository().unpack(id, &bed.cluster);
    for n in [0u32, 1, 777, 19_999] {
        assert_eq!(fs::read(target.join(format!("many/file {n}"))).unwrap(), n.to_le_bytes());
    }
}

/// What a backup holds of a cluster at rest is what lies there, and its pages are right.
#[test]
fn files_are_copied_byte_for_byte() {
    let mut bed = Bed::local(Cluster::builder());
    bed.cluster.psql("create table t as select i, md5(i::text) from generate_series(1, 50000) i; checkpoint");
    let backup = bed.backup(&[]);
    let id = backup["backup"].as_str().unwrap();
    let target = bed.repository().unpack(id, &bed.cluster);
    let (mut compared, mut different) = (0, Vec::new());
    for (path, entry) in bed.repository().entries(id) {
        if matches!(entry.content, EntryContent::File(_)) {
            compared += 1;
            if fs::read(target.join(&path)).unwrap() != fs::read(bed.cluster.pgdata().join(&path)).unwrap() {
                different.push(path);
            }
        }
    }
    // Whatever a server at rest still writes: pg_control, commit status, statistics.
    different.retain(|path| path.starts_with("base/"));
    assert!(compared > 900 && different.len() < 5, "{compared} files, {different:?}");
    bed.cluster.stop(Shutdown::Fast);
    fs::remove_file(target.join("backup_label")).unwrap();
    user::give_tree(&target);
    // pg_checksums wants a cluster that was shut down; the copy was not, but its pages are checked all the same.
    let control = fs::read(bed.cluster.pgdata().join("global/pg_control")).unwrap();
    fs::write(target.join("global/pg_control"), control).unwrap();
    oracle::checksums(17, &target);
}
