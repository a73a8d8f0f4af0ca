//! `[streaming]`: where exec, attach and port-forward are served.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, seconds};

/// `[streaming]`; the table of keys says what each means.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamingConfig {
    /// Address of the listener.
    pub listen: String,
    /// Certificate chain, or empty.
    pub tls_cert: PathBuf,
    /// Its key, or empty.
    pub tls_key: PathBuf,
    /// Bound of silence.
    #[serde(deserialize_with = "seconds")]
    pub idle_timeout: Duration,
}

impl StreamingConfig {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// The key, its value and what is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, value: String, reason: &str| {
            Err(ConfigError::Value {
                key,
                value,
                reason: reason.to_owned(),
            })
        };
        if self.listen.parse::<SocketAddr>().is_err() {
            let value = self.listen.clone();
            return wrong("streaming.listen", value, "must be ADDRESS:PORT");
        }
        let (cert, key) = (&self.tls_cert, &self.tls_key);
        if cert.as_os_str().is_empty() != key.as_os_str().is_empty() {
            let value = key.display().to_string();
            let reason = "must be set exactly when streaming.tls_cert is";
            return wrong("streaming.tls_key", value, reason);
        }
        Ok(())
    }

    /// Certificate and key, when TLS is wanted.
    #[must_use]
    pub fn tls(&self) -> Option<(&Path, &Path)> {
        let wanted = !self.tls_cert.as_os_str().is_empty();
        wanted.then_some((self.tls_cert.as_path(), self.tls_key.as_path()))
    }
}
