//! The image config: hostile JSON in, the few values that a container takes from it out. Labels of
//! reserved namespaces stop here; nothing here reaches a control decision as a string.
//!
//! Source: OCI image specification "Image Configuration"; nulls are tolerated as docker writes
//! them.

use std::collections::{BTreeMap, BTreeSet};

use axil_snapshotter::{Digest, ParseDigestError};
use serde::Deserialize;

use super::bounded::{List, MAX_ENTRIES, Map};
use super::manifest::{MAX_DOCUMENT_BYTES, Platform};
use super::reference::shown;
use crate::domain::failure::Class;

mod user;

pub use user::{Account, ImageUser, ParseImageUserError};

/// Namespaces of labels that are ours, the kubelet's or another runtime's: an image that carries
/// one tries to speak as the platform (CVE-2026-53488).
const RESERVED_LABELS: [&str; 6] = [
    "axil.",
    "io.axil.",
    "io.kubernetes.",
    "io.cri-",
    "io.containerd.",
    "containerd.io/",
];

/// Longest user, in bytes: two names and a colon (LOGIN_NAME_MAX).
const MAX_USER_BYTES: usize = 513;
/// Longest path, in bytes (PATH_MAX).
const MAX_PATH_BYTES: usize = 4096;
/// Longest stop signal, in bytes; "SIGRTMIN+15" is the longest there is.
const MAX_SIGNAL_BYTES: usize = 64;
/// Most bytes of environment, entrypoint and command together: what execve(2) takes with the usual stack.
const MAX_PROCESS_BYTES: usize = 2 << 20;
/// Most bytes of labels.
const MAX_LABEL_BYTES: usize = 1 << 20;

/// Whether a name of a label or annotation belongs to the platform.
pub(super) fn is_reserved(key: &str) -> bool {
    RESERVED_LABELS.iter().any(|prefix| key.starts_with(prefix))
}

/// What a container takes from its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// The architecture the config states, in Go's names; may be empty.
    pub architecture: String,
    /// The operating system the config states; may be empty.
    pub os: String,
    /// The variant of the architecture.
    pub variant: Option<String>,
    /// The digests of the uncompressed layers, the base first.
    pub diff_ids: Vec<Digest>,
    /// The user as written; see [`ImageUser::parse`].
    pub user: String,
    /// `NAME=value` entries.
    pub env: Vec<String>,
    /// The entrypoint.
    pub entrypoint: Vec<String>,
    /// The command, or the arguments of the entrypoint.
    pub cmd: Vec<String>,
    /// The working directory, empty for the root.
    pub working_dir: String,
    /// The signal that asks the container to stop, as written.
    pub stop_signal: Option<String>,
    /// The labels without those of reserved namespaces.
    pub labels: BTreeMap<String, String>,
    /// How many labels were dropped because their namespace is reserved.
    pub dropped_labels: usize,
    /// The paths the image declares as volumes.
    pub volumes: BTreeSet<String>,
}

impl ImageConfig {
    /// Parses a config that belongs to a manifest with `layers` layers.
    ///
    /// # Errors
    /// Names the field: not UTF-8 or JSON, more than [`MAX_DOCUMENT_BYTES`], a bad digest, a count of
    /// diff ids other than `layers`, a NUL in a string, a value longer than it can ever be used.
    pub fn parse(bytes: &[u8], layers: usize) -> Result<Self, ImageConfigError> {
        if bytes.len() > MAX_DOCUMENT_BYTES {
            return Err(ImageConfigError::TooLarge {
                found: bytes.len(),
                limit: MAX_DOCUMENT_BYTES,
            });
        }
        // The parser looks at the bytes of what it reads; what it skips is shown to people later.
        let text =
            std::str::from_utf8(bytes).map_err(|source| ImageConfigError::Utf8 { source })?;
        let raw: RawImage =
            serde_json::from_str(text).map_err(|source| ImageConfigError::Json { source })?;
        raw.check(layers)
    }

    /// Parses a config on its own, of an image that is stored.
    ///
    /// # Errors
    /// As [`ImageConfig::parse`].
    pub fn parse_any(bytes: &[u8]) -> Result<Self, ImageConfigError> {
        #[derive(Deserialize)]
        struct Counted {
            rootfs: CountedLayers,
        }
        #[derive(Deserialize)]
        struct CountedLayers {
            diff_ids: Vec<serde::de::IgnoredAny>,
        }
        let counted: Counted =
            serde_json::from_slice(bytes).map_err(|source| ImageConfigError::Json { source })?;
        Self::parse(bytes, counted.rootfs.diff_ids.len())
    }

    /// Returns the platform the config states.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform::new(&self.os, &self.architecture, self.variant.as_deref())
    }

    /// Refuses a config that states another operating system or architecture than `platform`.
    ///
    /// # Errors
    /// [`ImageConfigError::Platform`] names both.
    pub fn check_platform(&self, platform: &Platform) -> Result<(), ImageConfigError> {
        if platform.accepts_config(&self.platform()) {
            return Ok(());
        }
        Err(ImageConfigError::Platform {
            wanted: platform.to_string(),
            found: self.platform().to_string(),
        })
    }
}

#[derive(Deserialize)]
struct RawImage {
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    os: Option<String>,
    variant: Option<String>,
    config: Option<RawConfig>,
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: Option<String>,
    diff_ids: Option<List<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    user: Option<String>,
    env: Option<List<String>>,
    entrypoint: Option<List<String>>,
    cmd: Option<List<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    labels: Option<Map<Option<String>>>,
    volumes: Option<Map<serde::de::IgnoredAny>>,
}

impl RawImage {
    fn check(self, layers: usize) -> Result<ImageConfig, ImageConfigError> {
        let diff_ids = diff_ids(self.rootfs, layers)?;
        let raw = self.config.unwrap_or_default();
        let list = |field, list: Option<List<String>>| {
            let list = list.unwrap_or_default();
            within(field, "entries", list.count, MAX_ENTRIES).map(|()| list.kept)
        };
        let labels = raw.labels.unwrap_or_default();
        within("Labels", "entries", labels.count, MAX_ENTRIES)?;
        let volumes = raw.volumes.unwrap_or_default();
        within("Volumes", "entries", volumes.count, MAX_ENTRIES)?;
        let (labels, dropped_labels) = allowed_labels(labels.kept);
        let config = ImageConfig {
            architecture: self.architecture.unwrap_or_default(),
            os: self.os.unwrap_or_default(),
            variant: self.variant.filter(|text| !text.is_empty()),
            diff_ids,
            user: raw.user.unwrap_or_default(),
            env: list("Env", raw.env)?,
            entrypoint: list("Entrypoint", raw.entrypoint)?,
            cmd: list("Cmd", raw.cmd)?,
            working_dir: raw.working_dir.unwrap_or_default(),
            stop_signal: raw.stop_signal.filter(|text| !text.is_empty()),
            labels,
            dropped_labels,
            volumes: volumes.kept.into_keys().collect(),
        };
        config.refuse_nul()?;
        config.refuse_poison()?;
        Ok(config)
    }
}

impl ImageConfig {
    /// A NUL cuts a string in two for the kernel and for the reader of an error.
    fn refuse_nul(&self) -> Result<(), ImageConfigError> {
        let one = std::slice::from_ref::<String>;
        let volumes: Vec<String> = self.volumes.iter().cloned().collect();
        let stop_signal: Vec<String> = self.stop_signal.iter().cloned().collect();
        let fields: [(&'static str, &[String]); 7] = [
            ("User", one(&self.user)),
            ("Env", &self.env),
            ("Entrypoint", &self.entrypoint),
            ("Cmd", &self.cmd),
            ("WorkingDir", one(&self.working_dir)),
            ("StopSignal", &stop_signal),
            ("Volumes", &volumes),
        ];
        for (field, values) in fields {
            if let Some(value) = values.iter().find(|value| value.contains('\0')) {
                return Err(ImageConfigError::Nul {
                    field,
                    value: shown(value),
                });
            }
        }
        Ok(())
    }
}

impl ImageConfig {
    /// Values that no container could be made with, or that would spoil what lists them: the user of an image is
    /// in every list of images, which has to fit into one message.
    fn refuse_poison(&self) -> Result<(), ImageConfigError> {
        let stop_signal = self.stop_signal.as_deref().unwrap_or_default();
        within("User", "bytes", self.user.len(), MAX_USER_BYTES)?;
        within("StopSignal", "bytes", stop_signal.len(), MAX_SIGNAL_BYTES)?;
        within(
            "WorkingDir",
            "bytes",
            self.working_dir.len(),
            MAX_PATH_BYTES,
        )?;
        for (field, value) in [("User", self.user.as_str()), ("StopSignal", stop_signal)] {
            if value.contains(char::is_control) {
                return Err(ImageConfigError::Control {
                    field,
                    value: shown(value),
                });
            }
        }
        let longest = self.volumes.iter().map(String::len).max();
        within(
            "Volumes",
            "bytes in a path",
            longest.unwrap_or(0),
            MAX_PATH_BYTES,
        )?;
        let labels = self
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len());
        within("Labels", "bytes", labels.sum(), MAX_LABEL_BYTES)?;
        let process = [&self.env, &self.entrypoint, &self.cmd];
        let process = process.into_iter().flatten().map(|text| text.len() + 1);
        let field = "Env, Entrypoint and Cmd";
        within(field, "bytes", process.sum(), MAX_PROCESS_BYTES)
    }
}

fn within(
    field: &'static str,
    unit: &'static str,
    found: usize,
    limit: usize,
) -> Result<(), ImageConfigError> {
    if found <= limit {
        return Ok(());
    }
    Err(ImageConfigError::TooMuch {
        field,
        unit,
        found,
        limit,
    })
}

fn diff_ids(rootfs: Option<RawRootfs>, layers: usize) -> Result<Vec<Digest>, ImageConfigError> {
    let (kind, texts) = rootfs.map_or((None, None), |rootfs| (rootfs.kind, rootfs.diff_ids));
    if let Some(kind) = kind.filter(|kind| kind != "layers") {
        return Err(ImageConfigError::RootfsType { kind: shown(&kind) });
    }
    let texts = texts.unwrap_or_default();
    if texts.count != layers || texts.kept.len() != layers {
        return Err(ImageConfigError::DiffIdCount {
            diff_ids: texts.count,
            layers,
        });
    }
    let parse = |(index, text): (usize, &String)| {
        text.parse()
            .map_err(|source| ImageConfigError::DiffId { index, source })
    };
    texts.kept.iter().enumerate().map(parse).collect()
}

fn allowed_labels(labels: BTreeMap<String, Option<String>>) -> (BTreeMap<String, String>, usize) {
    let total = labels.len();
    let allowed: BTreeMap<_, _> = labels
        .into_iter()
        .filter(|(key, _)| !is_reserved(key))
        .map(|(key, value)| (key, value.unwrap_or_default()))
        .collect();
    let dropped = total - allowed.len();
    (allowed, dropped)
}

/// Why an image config is not taken. Values of the document are cut and escaped.
#[derive(Debug, thiserror::Error)]
pub enum ImageConfigError {
    /// It is longer than the limit.
    #[error("image config has {found} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// It is not UTF-8.
    #[error("image config is not UTF-8: {source}")]
    Utf8 {
        /// Where.
        source: std::str::Utf8Error,
    },
    /// It is not JSON, or a field has the wrong type or occurs twice.
    #[error("image config is not valid: {source}")]
    Json {
        /// The parser's error, with line and column.
        source: serde_json::Error,
    },
    /// The root file system is not made of layers.
    #[error("image config, field \"rootfs.type\": \"{kind}\" is not \"layers\"")]
    RootfsType {
        /// The refused type.
        kind: String,
    },
    /// There are more or fewer diff ids than layers.
    #[error("image config, field \"rootfs.diff_ids\": {diff_ids} entries for {layers} layers")]
    DiffIdCount {
        /// Diff ids found.
        diff_ids: usize,
        /// Layers of the manifest.
        layers: usize,
    },
    /// A diff id is not a digest.
    #[error("image config, field \"rootfs.diff_ids[{index}]\": {source}")]
    DiffId {
        /// The position in the list.
        index: usize,
        /// What is wrong with it.
        source: ParseDigestError,
    },
    /// A string has a NUL.
    #[error("image config, field \"config.{field}\": \"{value}\" has a NUL character")]
    Nul {
        /// The field.
        field: &'static str,
        /// The refused value.
        value: String,
    },
    /// A string that people are shown has a control character.
    #[error("image config, field \"config.{field}\": \"{value}\" has a control character")]
    Control {
        /// The field.
        field: &'static str,
        /// The refused value.
        value: String,
    },
    /// A value is longer than it can be used.
    #[error("image config, field \"config.{field}\": {found} {unit}, the limit is {limit}")]
    TooMuch {
        /// The field.
        field: &'static str,
        /// What is counted.
        unit: &'static str,
        /// How much there is.
        found: usize,
        /// How much may be.
        limit: usize,
    },
    /// The config is for another kind of machine.
    #[error("no matching platform: the image is for {found}, this machine is {wanted}")]
    Platform {
        /// The platform of the machine.
        wanted: String,
        /// The platform of the config.
        found: String,
    },
}

impl ImageConfigError {
    /// Returns the class of the error.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::TooLarge { .. } | Self::TooMuch { .. } => Class::Exhausted,
            Self::RootfsType { .. } => Class::Unsupported,
            Self::Platform { .. } => Class::NotFound,
            Self::Json { .. }
            | Self::DiffIdCount { .. }
            | Self::DiffId { .. }
            | Self::Utf8 { .. }
            | Self::Control { .. }
            | Self::Nul { .. } => Class::InvalidArgument,
        }
    }
}

#[cfg(test)]
mod tests;
