//! Logs: one subscriber for the process, on standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::LogConfig;

/// Sets the subscriber up; `RUST_LOG` overrides the configured level.
///
/// # Errors
/// The level is no filter, or a subscriber is there already.
pub fn init(config: &LogConfig) -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(text)?,
        _ => EnvFilter::try_new(&config.level)
            .map_err(|error| anyhow::anyhow!("configuration key log.level: {error}"))?,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if config.format == "json" {
        subscriber.json().finish().try_init()?;
    } else {
        subscriber.with_ansi(false).finish().try_init()?;
    }
    Ok(())
}
