//! The comparison of Walpoint with other tools, side by side on one machine.
//!
//! A *row* is one kind of work on one kind of store (`archive-s3`). A *tool* is a program with its settings, described
//! in `tools.toml`: commands, files and environment, so that any other tool takes part by a few lines. A run
//! measures every tool of a row in turn, round after round, so that whatever else the machine does meets all of
//! them alike; the first round warms up and is not counted.
//!
//! Every measurement is made by a process of its own ([`drive`]) that does what PostgreSQL does and under which all
//! processes of the tool live, so their CPU time and memory are known exactly, whatever they detach. The store, the
//! server and the measuring itself are not part of it.
//!
//! | module | owns |
//! |---|---|
//! | [`tools`], [`template`] | the configuration file |
//! | [`data`] | the cluster and its WAL that everything is measured on |
//! | [`drive`] | the load drivers: one process for each measurement |
//! | [`processes`] | the processes below one: CPU time, peak memory |
//! | [`place`], [`weed`], [`sink`] | stores, what they hold and how often they were asked |
//! | [`far`] | a store that answers late |
//! | [`long_archive`] | an archive of 100,000 segments for `plan` |
//! | [`bed`] | a tool set up on a store |
//! | [`rows`] | what is measured |
//! | [`run`] | the rounds |
//! | [`reference`](mod@reference) | what the processor could do: the same work in memory |
//! | [`machine`] | what it runs on, and who else uses it |
//! | [`measured`], [`stats`] | what came out |
//! | [`figures`], [`results`] | targets, and `RESULTS.md` |
//! | [`keeping`] | the second table: rows in which we are compared with ourselves or a computed bound |
//!
//! A run that is killed leaves its working directory, which the next one clears, and servers, which end with their
//! directory or by `--keep`'s opposite: nothing outside that directory is written.

pub mod bed;
pub mod data;
pub mod drive;
pub mod far;
pub mod figures;
pub mod keeping;
pub mod long_archive;
pub mod machine;
pub mod measured;
pub mod place;
pub mod processes;
pub mod reference;
pub mod results;
pub mod rows;
pub mod run;
pub mod sink;
pub mod stats;
pub mod template;
pub mod tools;
pub mod weed;
pub mod work;
