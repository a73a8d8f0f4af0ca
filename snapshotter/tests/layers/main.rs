//! Layers and snapshots on a real file system: what hostile archives can do, what an image looks
//! like when it is mounted, what survives interruptions. Pure rules are tested beside their code.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "what the tests share may fail and say why as the tests themselves do"
)]

mod archive;
mod bombs;
mod compare;
mod confined;
mod contract;
mod differential;
mod fsck;
mod full_disk;
mod garbage;
mod hostile;
mod merge;
mod mounts;
mod packages;
mod recovery;
mod tools;
mod transfer;
mod world;
