//! What the OCI runtime says it can do: its `features` command (runtime specification, "Features Structure").

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use crate::domain::failure::{Class, Failure};
use crate::ports::Answer;

/// How long the command may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What of it is asked about. What a runtime does not tell it cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RuntimeFeatures {
    /// Mounts that are read-only with all below them (`rro`).
    pub recursive_read_only: bool,
    /// User namespaces and mounts with mapped ids.
    pub user_namespaces: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    mount_options: Vec<String>,
    linux: Linux,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Linux {
    namespaces: Vec<String>,
    mount_extensions: MountExtensions,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct MountExtensions {
    idmap: Switch,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Switch {
    enabled: Option<bool>,
}

/// Asks a runtime.
///
/// # Errors
/// It has no such command, does not answer in time, or answers something else.
pub async fn ask(runtime: &Path) -> Answer<RuntimeFeatures> {
    let what = format!("{} features", runtime.display());
    let output = Command::new(runtime)
        .arg("features")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, output).await.map_err(|_| {
        let message = format!("{what}: no answer within {PATIENCE:?}");
        Failure::new(Class::DeadlineExceeded, message)
    })?;
    let output = output.map_err(|error| Failure::io(&what, &error))?;
    if !output.status.success() {
        let message = format!("{what}: {}", output.status);
        return Err(Failure::new(Class::Unsupported, message));
    }
    read(&output.stdout).map_err(|error| Failure::internal(what, &error))
}

fn read(answer: &[u8]) -> serde_json::Result<RuntimeFeatures> {
    let document: Document = serde_json::from_slice(answer)?;
    let has = |list: &[String], name: &str| list.iter().any(|one| one == name);
    Ok(RuntimeFeatures {
        recursive_read_only: has(&document.mount_options, "rro"),
        user_namespaces: has(&document.linux.namespaces, "user")
            && document.linux.mount_extensions.idmap.enabled == Some(true),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_told_is_not_there() {
        let whole = br#"{"ociVersionMin":"1.0.0","mountOptions":["ro","rro"],
            "linux":{"namespaces":["user","net"],"mountExtensions":{"idmap":{"enabled":true}}}}"#;
        let all = RuntimeFeatures {
            recursive_read_only: true,
            user_namespaces: true,
        };
        assert_eq!(read(whole).unwrap(), all);
        for partial in [
            &br#"{}"#[..],
            br#"{"mountOptions":["ro"],"linux":{"namespaces":["user"]}}"#,
            br#"{"linux":{"namespaces":["net"],"mountExtensions":{"idmap":{"enabled":true}}}}"#,
            br#"{"linux":{"namespaces":["user"],"mountExtensions":{"idmap":{"enabled":null}}}}"#,
        ] {
            assert_eq!(read(partial).unwrap(), RuntimeFeatures::default());
        }
        assert!(read(b"unknown command").is_err());
    }
}
