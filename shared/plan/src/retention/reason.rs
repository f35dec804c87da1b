//! The sentences that explain a decision.

use std::fmt;

use jiff::{Span, Timestamp};
use walpoint_base::diagnostic::shown;
use walpoint_base::{LineageId, TimelineId};

/// A calendar period.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Period {
    /// A day of UTC.
    Day,
    /// A week from Monday to Sunday.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

/// Why a backup stays or goes. Prints as a sentence without a subject: "it" is the backup.
#[derive(Clone, Debug)]
pub enum RetentionReason {
    /// Nothing says that anything is dropped.
    NoPolicy,
    /// There is a policy, and no rule in it is about such backups.
    NoRule,
    /// One of the newest.
    Count(u32),
    /// Young enough.
    Age(Span),
    /// It lies in the recovery window.
    Window(Span),
    /// The recovery window of a timeline begins with it.
    WindowBegin(Span, TimelineId),
    /// The last one of its calendar period; how many are kept, and which one this is.
    Calendar(Period, u32, String),
    /// One of the newest that stay in any case.
    Minimum(u32),
    /// A hold: number, reason, who, until when.
    Hold(u64, String, String, Option<Timestamp>),
    /// A lineage that was split off behind it is recovered from it.
    Base(LineageId, Base),
    /// The newest one from which the newest timeline of its lineage can be recovered.
    Path(TimelineId),
    /// The newest one from which a timeline beside that can be recovered.
    PathBeside(TimelineId),
    /// The newest one from which a timeline can be recovered that has a history only.
    PathBegun(TimelineId),
    /// A rule keeps it of those that lead to a timeline beside the newest one.
    Beside(TimelineId, Box<RetentionReason>),
    /// A rule of its label keeps it.
    Label(String, Box<RetentionReason>),
    /// It was asked to be deleted by name: who asked, and when.
    Requested(String, Timestamp),
    /// No rule keeps it.
    Unwanted,
    /// It is older than anything may be.
    TooOld(Span),
}

/// Why a lineage is recovered from a backup of one that it was split off from.
#[derive(Clone, Copy, Debug)]
pub enum Base {
    /// It has none of its own.
    NoBackup,
    /// None of its own leads to a timeline in use.
    Path(TimelineId),
    /// None of its own is as old as its recovery window.
    Window(Span),
    /// A history cannot be read that says whether the backup leads to it.
    Unknown,
}

impl Base {
    /// Whether it is known that the lineage is recovered from the backup.
    pub fn is_known(&self) -> bool {
        !matches!(self, Self::Unknown)
    }
}

impl RetentionReason {
    /// Whether the backup is kept for all that came after it, and not only for itself. Beyond a recovery window, only the
    /// window's reasons are of this sort.
    pub(super) fn leads_onward(&self, windowed: bool) -> bool {
        match self {
            Self::Window(_) | Self::WindowBegin(..) | Self::NoPolicy | Self::Base(..) => true,
            Self::Path(_) | Self::PathBeside(_) | Self::PathBegun(_) => true,
            Self::Beside(_, reason) => reason.leads_onward(windowed),
            Self::Count(_) | Self::Age(_) | Self::Minimum(_) | Self::NoRule => !windowed,
            _ => false,
        }
    }
}

impl Period {
    fn setting(self) -> &'static str {
        match self {
            Self::Day => "daily",
            Self::Week => "weekly",
            Self::Month => "monthly",
            Self::Year => "yearly",
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
        })
    }
}

impl fmt::Display for RetentionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPolicy => write!(f, "no retention is configured"),
            Self::NoRule => write!(f, "no rule keeps it"),
            Self::Count(1) => write!(f, "it is the newest one (count = 1)"),
            Self::Count(n) => write!(f, "it is one of the newest {n} (count = {n})"),
            Self::Age(span) => write!(f, "it is not older than {span:#} (age)"),
            Self::Window(span) => write!(f, "it is in the recovery window of {span:#} (window)"),
            Self::WindowBegin(span, timeline) => {
                write!(f, "the recovery window of {span:#} begins with it on timeline {timeline} (window)")
            }
            Self::Calendar(period, n, which) => {
                write!(f, "it is the last one of {period} {which} ({} = {n})", period.setting())
            }
            Self::Minimum(1) => write!(f, "the last backup is never dropped (minimum = 1)"),
            Self::Minimum(n) => write!(f, "the newest {n} are never dropped (minimum = {n})"),
            Self::Hold(number, reason, who, until) => {
                let (reason, who) = (shown(reason), shown(who));
                write!(f, "hold {number} by {who} keeps it ")?;
                match until {
                    Some(until) => write!(f, "until {until}: {reason}"),
                    None => write!(f, "until it is removed: {reason}"),
                }
            }
            Self::Base(lineage, Base::NoBackup) => {
                write!(f, "lineage {lineage}, which was split off after it, has no backup of its own yet")
            }
            Self::Base(lineage, Base::Path(timeline)) => write!(
                f,
                "no backup of lineage {lineage}, which was split off after it, leads to timeline {timeline}"
            ),
            Self::Base(lineage, Base::Window(span)) => write!(
                f,
                "the recovery window of {span:#} of lineage {lineage}, which was split off after it, \
                 begins with it (window)"
            ),
            Self::Base(lineage, Base::Unknown) => write!(
                f,
                "it is unknown whether lineage {lineage}, which was split off, needs it: the history of the \
                 timeline on which it was split off is damaged or missing"
            ),
            Self::Path(timeline) => {
                write!(f, "it is the newest one that leads to timeline {timeline}, the newest")
            }
            Self::PathBeside(timeline) => write!(
                f,
                "it is the newest one that leads to timeline {timeline}, which was written beside a newer one"
            ),
            Self::PathBegun(timeline) => write!(
                f,
                "it is the newest one that leads to timeline {timeline}, of which only the history is archived so far"
            ),
            Self::Beside(timeline, reason) => {
                write!(f, "timeline {timeline}, which was written beside a newer one: {reason}")
            }
            Self::Label(label, reason) => write!(f, "label \"{}\": {reason}", shown(label)),
            Self::Requested(who, at) => write!(f, "{} requested its deletion at {at}", shown(who)),
            Self::Unwanted => write!(f, "no rule keeps it"),
            Self::TooOld(span) => write!(f, "it is older than {span:#} (max_age)"),
        }
    }
}
