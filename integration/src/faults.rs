//! Stand-ins that fail, hang or talk nonsense: a CNI plugin, a shim and an OCI runtime, as small scripts.
//!
//! Each reads a mode file beside it when it runs, so that a test can change its mind while the node runs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// A script and the file that says what it does.
#[derive(Debug, Clone)]
pub struct StandIn {
    path: PathBuf,
}

impl StandIn {
    /// A CNI plugin; modes: `work`, `fail`, `hang`, `garbage`, `fail-del`, `slow-del`.
    ///
    /// In mode `work` it answers ADD with one address and touches nothing.
    ///
    /// # Errors
    /// When the script cannot be written.
    pub fn cni_plugin(dir: &Path, name: &str) -> Result<Self> {
        let body = r#"mode=$(cat "$0.mode")
echo "$CNI_COMMAND" >>"$0.calls"
[ "$CNI_COMMAND" = VERSION ] && {
  echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'; exit 0; }
config=$(cat)
case "$mode:$CNI_COMMAND" in
fail:ADD | fail-del:DEL)
  echo '{"cniVersion":"1.0.0","code":11,"msg":"the plugin was told to fail","details":"by the test"}'
  exit 1 ;;
hang:ADD) sleep 300 & wait ;;
slow-del:DEL) sleep 1 ;;
garbage:ADD) echo 'this is no JSON' ;;
*:ADD)
  echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"192.0.2.7/24","interface":0}]}' ;;
esac
"#;
        Self::write(dir, name, body)
    }

    /// A shim that fails (`fail`) or never answers (`hang`) when told to start.
    ///
    /// # Errors
    /// When the script cannot be written.
    pub fn shim(dir: &Path, name: &str) -> Result<Self> {
        let body = r#"mode=$(cat "$0.mode")
case "$mode" in
hang) sleep 300 & wait ;;
*) echo "the shim was told to fail" >&2; exit 1 ;;
esac
"#;
        Self::write(dir, name, body)
    }

    /// An OCI runtime that fails at one command (mode `create`, `start`, …), takes three seconds longer for
    /// one (mode `slow-create`, …), and else is `real`.
    ///
    /// # Errors
    /// When the script cannot be written.
    pub fn runtime(dir: &Path, name: &str, real: &Path) -> Result<Self> {
        let body = format!(
            r#"mode=$(cat "$0.mode")
for word in "$@"; do
  [ "$before" = --log ] && log=$word
  before=$word
  case "slow-$word" in "$mode") sleep 3 ;; esac
  case "$word" in
  "$mode")
    message="the runtime was told to fail at $mode"
    echo "$message" >&2
    printf '{{"level":"error","msg":"%s","time":"2026-01-01T00:00:00Z"}}\n' "$message" >>"$log"
    exit 1 ;;
  create|start|kill|delete|exec|state|run|features) break ;;
  esac
done
exec {} "$@"
"#,
            real.display()
        );
        Self::write(dir, name, &body)
    }

    fn write(dir: &Path, name: &str, body: &str) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let path = dir.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}"))
            .with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {} executable", path.display()))?;
        let stand_in = Self { path };
        stand_in.set("work")?;
        Ok(stand_in)
    }

    /// Changes what it does from now on.
    ///
    /// # Errors
    /// When the mode file cannot be written.
    pub fn set(&self, mode: &str) -> Result<()> {
        let file = self.beside("mode");
        fs::write(&file, mode).with_context(|| format!("write {}", file.display()))
    }

    /// The CNI commands it was called with so far.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.beside("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The script.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn beside(&self, what: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".");
        name.push(what);
        name.into()
    }
}
