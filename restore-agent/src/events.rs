//! The command `events`: what happened, read from archived WAL. It reads only, needs no server, and lists while it reads.
//!
//! | module | owns |
//! |---|---|
//! | [`source`] | the lineage and the timeline whose WAL is read, in all repositories |
//! | [`listing`] | the sink: which events are shown, and in which order |
//! | [`shown`] | an event as far as it is shown |
//! | [`document`] | what is printed as JSON |
//! | [`text`] | the same for a person |
//!
//! What always holds: WAL that could not be read is listed as a gap, where it lies. Memory is bounded: of each open transaction there are
//! counts by relation, of each one that is kept for `--largest` the relations with the most rows.

mod document;
mod listing;
mod shown;
mod source;
#[cfg(test)]
mod tests;
mod text;

use clap::Args;
use jiff::Timestamp;
use walpoint_base::target::parse_time;
use walpoint_base::{LineageId, PgTimestamp, TargetTimeline};
use walpoint_repo::scan::{self, Moments};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::help;
use walpoint_storage::store::StoreSettings;

use self::listing::{Listing, Wanted};
use self::shown::StopOptions;
use self::source::Source;

const EXAMPLES: &[(&str, &str)] = &[
    ("List what happened since the newest backup", "restore-agent events"),
    (
        "List what happened around an accident",
        "restore-agent events --from \"2026-11-21 10:00:00+01\" --to \"2026-11-21 10:20:00+01\"",
    ),
    ("Find the transactions that changed the most rows", "restore-agent events --largest 10"),
];

/// Options of `events`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct EventsArgs {
    /// List from this time on, written as for --target-time [default: from where the newest backup before --to starts].
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// List up to this time, written as for --target-time [default: to the end of the archive].
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Follow the path to this timeline: latest, or a number.
    #[arg(long, value_name = "TIMELINE", default_value = "latest")]
    target_timeline: TargetTimeline,
    /// Read the WAL of this lineage [default: the newest one]. "restore-agent list" shows them.
    #[arg(long, value_name = "LINEAGE")]
    lineage: Option<LineageId>,
    /// List only the N transactions that changed the most rows, the largest first, and gaps.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    largest: Option<u16>,
}

impl EventsArgs {
    fn moments(&self, now: Timestamp) -> Result<Moments, Failure> {
        let parse = |option: &str, text: &Option<String>| -> Result<Option<PgTimestamp>, Failure> {
            let parsed = text.as_deref().map(|text| parse_time(text, now)).transpose();
            parsed.map_err(|error| Failure::usage(anyhow::anyhow!("--{option}: {error}")))
        };
        let moments = Moments { from: parse("from", &self.from)?, to: parse("to", &self.to)? };
        if let (Some(from), Some(to)) = (moments.from, moments.to)
            && from > to
        {
            let what = format!("--from ({from}) is later than --to ({to})");
            return Err(Failure::usage(anyhow::anyhow!(what)));
        }
        Ok(moments)
    }

    /// What leads a plan to the WAL that was read.
    fn stop_options(&self) -> StopOptions {
        let mut options = Vec::new();
        if let Some(lineage) = self.lineage {
            options.extend(["--lineage".to_owned(), lineage.to_string()]);
        }
        if let TargetTimeline::Id(timeline) = self.target_timeline {
            options.extend(["--target-timeline".to_owned(), timeline.to_string()]);
        }
        StopOptions(options)
    }
}

/// Runs the command. Gaps are part of the answer; that a repository cannot be read is a failure.
pub(crate) async fn run(common: &CommonArgs, args: &EventsArgs) -> Result<(), Failure> {
    let moments = args.moments(Timestamp::now())?;
    let selection: Selection<StoreSettings> = common.select_to_read()?;
    let mut source = Source::open(&selection, args.lineage, args.target_timeline).await?;
    let timeline = source.timeline;
    let range = scan::segments_between(source.lineage()?, timeline, moments).await?;
    let wanted = Wanted { moments, largest: args.largest.map(usize::from), json: common.json };
    let mut listing = Listing::new(wanted, args.stop_options());
    listing.begin(&source, &range)?;
    let archive = source.lineage()?.archive().clone();
    scan::read(&archive, &range, listing).await?.finish()
}
