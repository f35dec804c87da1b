//! Settings without which recovery would not get to its end ([`required_settings`]): what the server had when it was backed up, which
//! its `pg_control` says, and what was raised after that, which WAL says. The restore sets them where the restored configuration has less.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use walpoint_pg::control::ControlFile;
use walpoint_plan::restore::{RequiredSettings, SegmentDecoder};
use walpoint_repo::planning::required_settings;
use walpoint_runtime::args::CommonArgs;

use super::elsewhere;
use crate::decoder::WalDecoder;
use crate::plan::Planned;
use crate::settings;

/// What WAL requires of a recovery under a plan.
pub(super) async fn read(common: &CommonArgs, planned: &Planned) -> anyhow::Result<RequiredSettings> {
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(WalDecoder);
    let (plan, from) = (&planned.plan, planned.plan.backup.id.start());
    elsewhere::ask_copies(common, planned, async |copies: &_| {
        required_settings(copies, plan, from, &decoder).await
    })
    .await
}

/// What the server had that a `pg_control` is from: recovery compares with it before it reads any WAL.
pub(super) fn of_control(path: &Path) -> anyhow::Result<RequiredSettings> {
    let context = || format!("\"{}\" could not be read", path.display());
    let control = ControlFile::parse(&std::fs::read(path).with_context(context)?).with_context(context)?;
    let value = |setting: i32| u32::try_from(setting).unwrap_or_default();
    let had = control.settings;
    Ok(RequiredSettings {
        max_connections: value(had.max_connections),
        max_worker_processes: value(had.max_worker_processes),
        max_wal_senders: value(had.max_wal_senders),
        max_prepared_transactions: value(had.max_prepared_transactions),
        max_locks_per_transaction: value(had.max_locks_per_transaction),
    })
}

/// Those that a configuration has lower, with the value that they need.
pub(super) fn raised(required: &RequiredSettings, configuration: &str) -> Vec<(String, String)> {
    let all = required.all().into_iter();
    let lower =
        all.filter(|(name, needed, default)| settings::number(configuration, name, *default) < *needed);
    lower.map(|(name, needed, _)| (name.to_owned(), needed.to_string())).collect()
}

/// What a person should know of them.
pub(super) fn note(raised: &[(String, String)]) -> Option<String> {
    let names: Vec<String> = raised.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    (!names.is_empty()).then(|| {
        format!(
            "set in postgresql.auto.conf, because the server used these values at or after the backup and \
             recovery does not continue with lower ones: {}",
            names.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_configuration_has_lower_is_raised() {
        let required = RequiredSettings {
            max_connections: 150,
            max_worker_processes: 8,
            max_wal_senders: 12,
            max_prepared_transactions: 5,
            max_locks_per_transaction: 64,
        };
        let files = "max_connections = 20\nmax_wal_senders = 12\nmax_connections = '120' # more";
        let expected = [("max_connections", "150"), ("max_prepared_transactions", "5")];
        assert_eq!(raised(&required, files), expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
        assert_eq!(raised(&RequiredSettings::default(), files), []);
    }
}
