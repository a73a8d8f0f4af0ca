//! `[runtime]`: the shim, the OCI runtime, and further runtime handlers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;
use crate::domain::runtime_handler::{AnnotationPatterns, HandlerSnapshotter, check_name};

/// `[runtime]`; the table of keys says what each means.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Shim binary, or empty.
    pub shim: PathBuf,
    /// OCI runtime binary of the default handler, or empty.
    pub binary: PathBuf,
    /// Annotations its runtime is told.
    pub allowed_annotations: Vec<String>,
    /// Further handlers by name.
    #[serde(default)]
    pub handlers: BTreeMap<String, HandlerConfig>,
}

/// `[runtime.handlers.<name>]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandlerConfig {
    /// OCI runtime binary.
    pub binary: PathBuf,
    /// Annotations the runtime is told.
    #[serde(default)]
    pub allowed_annotations: Vec<String>,
    /// How its root file systems are made; none is `images.snapshotter`.
    #[serde(default)]
    pub snapshotter: Option<String>,
}

impl RuntimeConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        annotations("runtime.allowed_annotations", &self.allowed_annotations)?;
        for (name, handler) in &self.handlers {
            let key = format!("runtime.handlers.{name}");
            check_name(name).map_err(|why| wrong(key.clone(), name, why))?;
            if !handler.binary.is_absolute() {
                let value = handler.binary.display().to_string();
                return Err(wrong(
                    format!("{key}.binary"),
                    value,
                    "must be an absolute path",
                ));
            }
            handler.annotations(name)?;
            handler.snapshotter(name)?;
        }
        Ok(())
    }

    /// Annotations of the default handler.
    ///
    /// # Errors
    /// A pattern is none.
    pub fn annotations(&self) -> Result<AnnotationPatterns, ConfigError> {
        annotations("runtime.allowed_annotations", &self.allowed_annotations)
    }
}

impl HandlerConfig {
    /// Annotations of the handler of this name.
    ///
    /// # Errors
    /// A pattern is none.
    pub fn annotations(&self, name: &str) -> Result<AnnotationPatterns, ConfigError> {
        let key = format!("runtime.handlers.{name}.allowed_annotations");
        annotations(&key, &self.allowed_annotations)
    }
}

impl HandlerConfig {
    /// How root file systems of the handler of this name are made, if not as all.
    ///
    /// # Errors
    /// There is no such snapshotter.
    pub fn snapshotter(&self, name: &str) -> Result<Option<HandlerSnapshotter>, ConfigError> {
        let named = |text: &String| {
            let key = format!("runtime.handlers.{name}.snapshotter");
            HandlerSnapshotter::named(text).map_err(|why| wrong(key, text, why))
        };
        self.snapshotter.as_ref().map(named).transpose()
    }
}

fn annotations(key: &str, texts: &[String]) -> Result<AnnotationPatterns, ConfigError> {
    AnnotationPatterns::parse(texts).map_err(|(pattern, why)| wrong(key, pattern, why))
}

fn wrong(key: impl Into<String>, value: impl Into<String>, reason: &str) -> ConfigError {
    ConfigError::HandlerValue {
        key: key.into(),
        value: value.into(),
        reason: reason.to_owned(),
    }
}
