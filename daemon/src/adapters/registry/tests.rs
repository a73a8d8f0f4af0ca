//! The client against servers that lie, stall, break and redirect, and against a real registry.

mod auth;
mod blobs;
mod documents;
mod fixture;
mod parts;
mod real;
mod server;
mod tls;
