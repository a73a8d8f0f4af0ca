//! System calls and constants that neither rustix nor nix offers safely. No policy.

pub mod descriptor;
pub mod signal;
