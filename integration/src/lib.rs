//! The harness of axil's system tests: real binaries, real sockets, real registries, in namespaces of their own.
//!
//! A test opens a [`lab::Lab`], starts a [`node::Node`] in it, speaks CRI to it, and closes the lab, which
//! removes everything and compares the machine with what it was ([`leakcheck`]).
#![forbid(unsafe_code)]

pub mod binaries;
pub mod build;
pub mod children;
pub mod cri;
pub mod cutter;
pub mod engines;
pub mod eventually;
pub mod faults;
pub mod gated;
pub mod guard;
pub mod hostile;
pub mod hostile_image;
pub mod hosts;
pub mod http;
pub mod image_bench;
pub mod images;
pub mod isolate;
pub mod kernel;
pub mod kubelet_load;
pub mod lab;
pub mod leakcheck;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod packages;
pub mod registry;
pub mod runtime_bench;
pub mod say;
pub mod shelf;
pub mod signing;
pub mod streaming;
pub mod tls_front;
pub mod token;
pub mod vm;
