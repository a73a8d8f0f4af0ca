//! An image: what names it, what describes it, and what is kept of it.

mod bounded;
pub mod config;
pub mod layout;
pub mod manifest;
pub mod media;
pub mod pinned;
pub mod policy;
pub mod reference;
pub mod signature;
pub mod stored;
