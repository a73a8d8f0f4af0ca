//! Writes registry host files in containerd's `certs.d` layout, so that any registry name can be served
//! from loopback.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// A `certs.d` directory.
#[derive(Debug, Clone)]
pub struct HostsDir {
    path: PathBuf,
}

impl HostsDir {
    /// Creates the directory.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves the registry `name` (`registry.k8s.io`, `docker.io`, …) from `url`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn mirror(&self, name: &str, url: &str) -> Result<()> {
        self.write(
            name,
            &format!("server = \"https://{name}\"\n\n[host.\"{url}\"]\n"),
            "",
        )
    }

    /// Trusts a certificate authority for the registry at `url`, named `name`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn trust(&self, name: &str, url: &str, authority: &Path) -> Result<()> {
        let line = format!("ca = \"{}\"\n", authority.display());
        self.write(
            name,
            &format!("server = \"{url}\"\n\n[host.\"{url}\"]\n"),
            &line,
        )
    }

    /// Writes the file of the registry `name` as it is given.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put(&self, name: &str, text: &str) -> Result<()> {
        let dir = self.path.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let file = dir.join("hosts.toml");
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))
    }

    fn write(&self, name: &str, head: &str, tail: &str) -> Result<()> {
        let text = format!("{head}capabilities = [\"pull\", \"resolve\"]\n{tail}");
        self.put(name, &text)
    }
}
