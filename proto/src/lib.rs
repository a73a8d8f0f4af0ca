//! Wire types of axil: the CRI, the shim protocol, and the vocabulary both sides share. Does no I/O.
#![forbid(unsafe_code)]

#[cfg(feature = "cri")]
pub mod cri;
pub mod ids;
pub mod keys;
#[cfg(feature = "shim")]
pub mod shim;
