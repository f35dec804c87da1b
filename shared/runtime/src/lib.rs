//! What both agents run on: configuration, logs, shutdown, retries, progress.
//!
//! | module | owns |
//! |---|---|
//! | [`args`] | the options that every command takes, and which cluster and repositories they select |
//! | [`backoff`] | how long to wait before trying again, and when to give up |
//! | [`config`] | the TOML file |
//! | `config_file` | the option that names it, and its variable |
//! | [`document`](mod@document) | the JSON documents that commands print, and their schemas |
//! | [`exit`] | exit statuses, and how an error is told to a person |
//! | [`help`] | headings, examples and width of the help of every command |
//! | [`human`] | sizes, spans, counts and moments for people |
//! | [`logs`] | tracing to standard error, as text or JSON |
//! | [`operator`] | the person that runs a command |
//! | [`output`] | what commands print |
//! | [`memory`] | memory that is given back |
//! | [`owner`] | running as PostgreSQL's user |
//! | [`pages`] | shell completions and manual pages |
//! | [`progress`] | bars on a terminal |
//! | [`retention`] | the tables of the TOML file that say which backups stay |
//! | [`shutdown`] | signals and the service manager |
//! | [`sibling`] | commands that another program has |
//! | [`threads`] | the runtime, where the machine has threads for it |

pub mod args;
pub mod backoff;
pub mod config;
mod config_file;
pub mod document;
pub mod exit;
pub mod help;
pub mod human;
pub mod logs;
pub mod memory;
pub mod operator;
pub mod output;
pub mod owner;
pub mod pages;
pub mod progress;
pub mod retention;
pub mod shutdown;
pub mod sibling;
pub mod threads;
pub mod umask;
