//! Tasks: the phase machine, the table, and one file per verb.

pub mod control;
pub mod create;
pub mod delete;
pub mod exec;
pub mod exit;
pub mod kill;
pub mod phase;
pub mod process;
pub mod start;
pub mod table;
