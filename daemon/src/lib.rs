//! axild: the CRI daemon. `cri` converts, `engine` acts, `domain` decides, `adapters` reach outside.
#![forbid(unsafe_code)]

pub mod adapters;
pub mod app;
pub mod commands;
pub mod config;
pub mod control;
pub mod cri;
pub mod domain;
pub mod engine;
pub mod fuzzing;
pub mod host;
pub mod metrics;
pub mod pieces;
pub mod ports;
pub mod socket;
pub mod telemetry;
