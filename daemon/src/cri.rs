//! The CRI services: each method converts, calls the engine, and converts back.

mod chunks;
pub mod convert;
mod deadline;
mod image_service;
mod runtime_service;
mod status;
pub mod streaming;

pub use deadline::Deadline;
pub use image_service::ImageCalls;
pub use runtime_service::RuntimeCalls;
