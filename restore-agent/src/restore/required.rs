//! Settings without which recovery would not get to its end ([`required_settings`]): what was raised on the server after the backup. The
//! restore sets them where the restored configuration has less.

use std::sync::Arc;

use walpoint_plan::restore::{RequiredSettings, SegmentDecoder};
use walpoint_repo::planning::required_settings;
use walpoint_repo::wal::WalCopies;
use walpoint_runtime::args::CommonArgs;
use walpoint_storage::RepoError;

use super::elsewhere;
use crate::decoder::WalDecoder;
use crate::plan::Planned;
use crate::settings;

/// What recovery under a plan requires. What is damaged in the plan's repository is read from another one.
pub(super) async fn read(common: &CommonArgs, planned: &Planned) -> anyhow::Result<RequiredSettings> {
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(WalDecoder);
    let (plan, from) = (&planned.plan, planned.plan.backup.id.start());
    let only = WalCopies::new(planned.repository.wal_to_read(&planned.lineage).await?, []);
    match required_settings(&only, plan, from, &decoder).await {
        Err(RepoError::Corrupt { .. }) => {
            let copies = elsewhere::copies(common, planned).await?;
            let required = required_settings(&copies, plan, from, &decoder).await;
            elsewhere::warn_of_damage(&copies);
            required.map_err(|error| elsewhere::nowhere_sound(&copies, error))
        }
        required => Ok(required?),
    }
}

/// Those that the configuration files have lower, of which the later ones count, with the value that they need.
pub(super) fn raised(required: &RequiredSettings, files: &[String]) -> Vec<(String, String)> {
    let all = required.all().into_iter();
    let lower = all.filter(|(name, needed, default)| settings::number(files, name, *default) < *needed);
    lower.map(|(name, needed, _)| (name.to_owned(), needed.to_string())).collect()
}

/// What a person should know of them.
pub(super) fn note(raised: &[(String, String)]) -> Option<String> {
    let names: Vec<String> = raised.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    (!names.is_empty()).then(|| {
        format!(
            "set in postgresql.auto.conf, because the server was set so after the backup, and recovery would not get past that with \
             less: {}",
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
        let files = ["max_connections = 20\nmax_wal_senders = 12", "max_connections = '120' # more"];
        let files = files.map(str::to_owned);
        let expected = [("max_connections", "150"), ("max_prepared_transactions", "5")];
        assert_eq!(raised(&required, &files), expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
        assert_eq!(raised(&RequiredSettings::default(), &files), []);
    }
}
