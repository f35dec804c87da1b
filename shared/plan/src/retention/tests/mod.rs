//! Tables and properties of retention.

mod properties;
mod tables;
mod world;
