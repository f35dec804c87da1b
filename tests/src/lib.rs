//! Real clusters, real stores, faults, crashes and oracles; one test file per promise.
//!
//! `tests/setup/setup.sh` installs what this needs, `make test` calls it and builds the programs under test. Nothing is
//! skipped silently: what is missing fails with the reason, and tests that need root ([`needs_root!`]) are counted when
//! there is none. When the tests run as root, servers and programs run as the system user `walpoint-test`.
//!
//! ```no_run
//! use walpoint_tests::{agent::Agent, cluster::Cluster, store::Store};
//!
//! let store = Store::s3();
//! let mut cluster = Cluster::builder().major(17).segment_size_mb(1).init();
//! let agent = Agent::with(&cluster, &store);
//! agent.archive_from(&cluster);
//! agent.init(&[]).expect_success();
//! let daemon = agent.daemon();
//! cluster.start();
//! let segment = cluster.switch_wal();
//! cluster.wait_archived(&segment);
//! agent.push(format!("pg_wal/{segment}")).expect_success();
//! assert!(store.back_door().list("clusters").iter().any(|key| key.ends_with(&segment)));
//! assert_eq!(daemon.stop(), 0);
//! ```
//!
//! # What is here
//!
//! | module | what it gives |
//! |---|---|
//! | [`cluster`] | `Cluster::builder().major(17).segment_size_mb(16).checksums(true).tcp().conf(k, v).archive_command(c).initdb(arg).wal_dir(p).in_dir(&dir)` then `.init()` or `.start()`. `start`, `try_start`, `launch`, `stop(Shutdown::Fast)`, `crash` (kill -9 of all), `wait_for_end`, `set`, `reload`, `conninfo`, `pgdata`, `wal_dir`, `log`, `pid`; `Cluster::start_restored(&dir, major, pgdata)`, `Cluster::adopt` |
//! | [`sql`] | on a cluster: `psql`, `try_psql`, `psql_in`, `session`, `wait_for(sql, answer)`, `tool("pg_waldump")` |
//! | [`standby`] | on a cluster: `standby`, `streaming_standby`, `follow(&primary)`, `wait_replayed(&primary)`, `promote`, `base_backup(args)`, `create_tablespace`, `tablespaces` |
//! | [`wal_position`] | on a cluster: `lsn`, `system_id`, `timeline`, `current_segment`, `switch_wal`, `fill_wal_mb`, `wait_archived`, `wait_done`, `archive_failures`, `segments` |
//! | [`session`] | `run`, `send`, `answer`, `try_answer`: an open psql |
//! | [`store`] | `Store::{local, local_at, s3, rclone, all_good}`; `url`, `config`, `env`, `root`, `port`, `bucket`, `set_credentials(Credentials::reader())`; `back_door()` with `list`, `get`, `put`, `delete`, `flip_bit`, `truncate`, `store` |
//! | [`seaweed`], [`s3_admin`] | the shared S3 server, its identities, buckets that can vanish; signed requests: versioning, object lock |
//! | [`proxy`] | `Proxy::to(port)`, `Proxy::between(ports)`, `set(Fault::…)`, `heal`, `cut`, `connections` |
//! | [`clock`] | `Clock::of(&mut cluster)`, `ahead(3600)`: a server whose clock jumps |
//! | [`http_faults`] | `HttpProxy::to(port)`, `set(vec![FaultRule::new("PUT", "/wal/", 503, "SlowDown").times(3)])`, `shift_clock`, `requests` |
//! | [`agent`] | `Agent::with(&cluster, &store)` or `Agent::new(&cluster).repository(n, &s).repository_via(n, &s, &proxy)`; `cluster_line`, `repository_line`, `env`; `run(args)`, `restore(args)`, `init(args)`, `push(path)`, `fetch(name, path)`, `command(program, args)`, `daemon()`, `launch()`, `archive_from(&cluster)`, `archive_command()`, `restore_command()`; `Daemon::{log, stop, kill, memory}` |
//! | [`archived`] | `Archived::start(builder, store)`, `start_encrypted`: a running cluster, its daemon and repository; `backup()`, `settle()`, `restore(name, args)`, `restore_and_start`, `back_door`; on a restored cluster `wait_paused`, `wait_promoted` |
//! | [`faults`] | `inject(&command, &["fsync:error=EIO"], &paths)`, `attach(&dir, pid, …)`, `limit_memory(&command, bytes)`, `SmallDisk::new(mb)`, `random()` with a printed seed |
//! | [`waldata`] | `mixed(major, segment_mb)`, `promotion(major)`, `overwritten_contrecord(major, Lost::InACrash)` give a `WalData` (`segments()`, `archive`, `pg_wal`, `waldump_file`); `workload(&cluster)`, `workload_large` |
//! | [`rows`] | `Ledger::create`, `append` gives a `Mark` (xid, LSNs and times around the commit), `highest` |
//! | [`oracle`] | `Contents::of(&cluster).assert_equal(&other)`, `amcheck`, `checksums` |
//! | [`histories`] | random histories of several servers on one archive, compared with a row oracle of their own: `run(seed)`, `run_chapters(seed, major, &[Chapter::Pitr, …])` |
//! | [`containers`], [`compose`] | `Engine::empty()`: images and containers of the test's own, `build`, `image_of`, `up(&compose, service)`, `run`, `exec`; `Compose::read(docker/compose.yaml)` |
//! | [`process`] | `run(&mut command, limit)` gives an `Output` (`expect_success`, `expect_status`), `Background` (`wait`, `wait_watched` with the peak of its memory), `descendants`, `alive` |
//! | [`schema`] | what a program prints with `--json` against `docs/schema`; `process::run` does it for every command |
//! | [`typed`] | the command lines of a page (`lines`), and a `Shell` that types them |
//! | [`testbed`], [`dir`], [`user`], [`ports`], [`wait`], [`not_run`] | where things are, temporary directories, the servers' user, leased ports, waiting |
//!
//! # In the environment
//!
//! `WALPOINT_TESTBED` (where the servers are), `WALPOINT_TMP` (short path for temporary directories; else
//! `/dev/shm` when it is large, else `/tmp`), `WALPOINT_KEEP=1` (keep
//! them), `WALPOINT_SEED` (repeat a random run), `WALPOINT_SOAK=1` (set by `make soak`; its tests are `#[ignore]`d otherwise),
//! `WALPOINT_HISTORIES` (how many random histories a test runs), `WALPOINT_PROGRAMS` (a directory of other programs to test).

pub mod agent;
pub mod archived;
pub mod builder;
pub mod clock;
pub mod cluster;
pub mod commands;
pub mod compose;
pub mod containers;
pub mod dir;
pub mod faults;
pub mod histories;
pub mod http_faults;
pub mod not_run;
pub mod oracle;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod rows;
pub mod s3_admin;
pub mod schema;
pub mod seaweed;
pub mod session;
pub mod sql;
pub mod standby;
pub mod store;
pub mod testbed;
pub mod typed;
pub mod user;
pub mod wait;
pub mod wal_position;
pub mod waldata;
