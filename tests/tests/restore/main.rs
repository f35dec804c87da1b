//! Plan and restore on real clusters: R1 to R7 and R9 of the behaviours, F7, and promises 7 and 8: a plan before a touch,
//! and an unfinished restore that cannot start.

mod behind;
mod branches;
mod choices;
mod clocks;
mod created;
mod damaged_plan;
mod damaged_wal;
mod diverged;
mod forks;
mod hostile;
mod incomplete;
mod interrupted;
mod kinds;
mod latest;
mod links;
mod memory;
mod outage;
mod owners;
mod places;
mod planted;
mod refusals;
mod remade;
mod repair;
mod replace;
mod rewound;
mod running;
mod settings;
mod skipped;
mod stand_in;
mod swapped;
mod tail;
mod targets;
mod together;
mod tree;
mod unarchived;
