//! Runs the plugins of a conflist for one verb: ADD and CHECK in order, DEL in opposite order
//! and past errors, STATUS and GC on all. What one plugin run is, is in `invoke`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use crate::{
    conf::{Conflist, PluginConf, Version},
    error::NetworkError,
    invoke::{self, Invocation, InvokeError},
    pod::INTERFACE,
    result::CniResult,
};

/// What tells a plugin which attachment it works on.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    pub(crate) container_id: String,
    /// Empty when the namespace is gone, as DEL allows.
    pub(crate) netns: String,
    pub(crate) args: String,
    /// Values by capability; a plugin gets those it declares.
    pub(crate) capabilities: Map<String, Value>,
}

/// Where plugins are and how long they may run.
#[derive(Debug, Clone)]
pub(crate) struct Plugins {
    pub(crate) bin_dirs: Vec<PathBuf>,
    pub(crate) timeout: Duration,
}

impl Plugins {
    /// The executable of a plugin type; types are checked to be plain names.
    pub(crate) fn find(&self, kind: &str) -> Result<PathBuf, InvokeError> {
        let candidates = self.bin_dirs.iter().map(|dir| dir.join(kind));
        candidates
            .into_iter()
            .find(|path| is_executable(path))
            .ok_or_else(|| InvokeError::Missing {
                name: kind.to_owned(),
                dirs: self.bin_dirs.clone(),
            })
    }

    /// `CNI_PATH`.
    fn path(&self) -> String {
        let dirs = self.bin_dirs.iter().map(|dir| dir.to_string_lossy());
        dirs.collect::<Vec<_>>().join(":")
    }
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// One conflist and the means to run it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chain<'a> {
    pub(crate) list: &'a Conflist,
    pub(crate) plugins: &'a Plugins,
}

impl Chain<'_> {
    /// Runs ADD of each plugin with its predecessor's result; returns the last result.
    pub(crate) async fn add(
        &self,
        attachment: &Attachment,
        timings: &mut Vec<(String, Duration)>,
    ) -> Result<CniResult, NetworkError> {
        let mut previous: Option<CniResult> = None;
        for plugin in &self.list.plugins {
            let began = Instant::now();
            let before = previous
                .as_ref()
                .map(|result| result.to_version(self.list.version));
            let answer = self
                .run("ADD", plugin, Some(attachment), before.as_ref(), None)
                .await;
            timings.push((plugin.kind.clone(), began.elapsed()));
            let result = CniResult::parse(answer?, self.list.version);
            previous = Some(
                result.map_err(|source| self.failed("ADD", plugin)(InvokeError::Result(source)))?,
            );
        }
        // Conflists have at least one plugin, so there is a result.
        Ok(previous.expect("checked in Conflist::parse"))
    }

    /// Runs CHECK of each plugin against the result of ADD; a list that turned it off, or
    /// speaks a version without it, passes.
    pub(crate) async fn check(
        &self,
        attachment: &Attachment,
        result: &CniResult,
    ) -> Result<(), NetworkError> {
        if self.list.disable_check || self.list.version < Version::V0_4_0 {
            return Ok(());
        }
        let before = result.to_version(self.list.version);
        for plugin in &self.list.plugins {
            self.run("CHECK", plugin, Some(attachment), Some(&before), None)
                .await?;
        }
        Ok(())
    }

    /// Runs DEL of every plugin, last first, and collects what fails, so that one broken plugin
    /// does not keep another's address for ever.
    pub(crate) async fn delete(
        &self,
        attachment: &Attachment,
        result: Option<&CniResult>,
    ) -> Vec<NetworkError> {
        let before = result.filter(|_| self.list.version >= Version::V0_4_0);
        let before = before.map(|result| result.to_version(self.list.version));
        let mut errors = Vec::new();
        for plugin in self.list.plugins.iter().rev() {
            let done = self
                .run("DEL", plugin, Some(attachment), before.as_ref(), None)
                .await;
            errors.extend(done.err());
        }
        errors
    }

    /// Runs STATUS of each plugin; lists before 1.1 have none and are always ready.
    pub(crate) async fn status(&self) -> Result<(), NetworkError> {
        if self.list.version < Version::V1_1_0 {
            return Ok(());
        }
        for plugin in &self.list.plugins {
            self.run("STATUS", plugin, None, None, None).await?;
        }
        Ok(())
    }

    /// Runs GC of every plugin with the attachments that are to stay, past errors.
    pub(crate) async fn collect_garbage(&self, keep: &BTreeSet<String>) -> Vec<NetworkError> {
        if self.list.disable_gc || self.list.version < Version::V1_1_0 {
            return Vec::new();
        }
        let valid = keep
            .iter()
            .map(|id| json!({"containerID": id, "ifname": INTERFACE}));
        let valid: Value = valid.collect();
        let mut errors = Vec::new();
        for plugin in &self.list.plugins {
            errors.extend(self.run("GC", plugin, None, None, Some(&valid)).await.err());
        }
        errors
    }

    /// The versions a plugin says it speaks.
    pub(crate) async fn versions(&self, plugin: &PluginConf) -> Result<Vec<String>, NetworkError> {
        let answer = self.run("VERSION", plugin, None, None, None).await?;
        let spoken = answer["supportedVersions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        Ok(spoken
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .take(64)
            .collect())
    }

    async fn run(
        &self,
        command: &'static str,
        plugin: &PluginConf,
        attachment: Option<&Attachment>,
        previous: Option<&Value>,
        valid_attachments: Option<&Value>,
    ) -> Result<Value, NetworkError> {
        let failed = self.failed(command, plugin);
        let program = match self.plugins.find(&plugin.kind) {
            Ok(program) => program,
            Err(missing) => return Err(failed(missing)),
        };
        let mut environment = vec![
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_PATH", self.plugins.path()),
        ];
        if let Some(attachment) = attachment {
            environment.extend([
                ("CNI_CONTAINERID", attachment.container_id.clone()),
                ("CNI_NETNS", attachment.netns.clone()),
                ("CNI_IFNAME", INTERFACE.to_owned()),
                ("CNI_ARGS", attachment.args.clone()),
            ]);
        }
        let mut conf = self.conf(plugin, attachment, previous);
        if let Some(valid) = valid_attachments {
            conf.insert("cni.dev/valid-attachments".into(), valid.clone());
        }
        let stdin = Value::Object(conf).to_string().into_bytes();
        let timeout = self.plugins.timeout;
        invoke::run(Invocation {
            program: &program,
            environment,
            stdin,
            timeout,
        })
        .await
        .map_err(failed)
    }

    /// The plugin's configuration as it reads it.
    fn conf(
        &self,
        plugin: &PluginConf,
        attachment: Option<&Attachment>,
        previous: Option<&Value>,
    ) -> Map<String, Value> {
        let mut conf = plugin.raw.clone();
        conf.insert("name".into(), self.list.name.clone().into());
        conf.insert("cniVersion".into(), self.list.version.to_string().into());
        // These are the runtime's to set.
        conf.remove("prevResult");
        conf.remove("runtimeConfig");
        if let Some(attachment) = attachment {
            let declared = attachment.capabilities.iter();
            let declared = declared.filter(|(name, _)| plugin.capabilities.contains(*name));
            let runtime: Map<_, _> = declared
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            if !runtime.is_empty() {
                conf.insert("runtimeConfig".into(), Value::Object(runtime));
            }
        }
        if let Some(previous) = previous {
            conf.insert("prevResult".into(), previous.clone());
        }
        conf
    }

    fn failed(
        &self,
        command: &'static str,
        plugin: &PluginConf,
    ) -> impl FnOnce(InvokeError) -> NetworkError + use<> {
        let (plugin, network) = (plugin.kind.clone(), self.list.name.clone());
        move |source| NetworkError::Plugin {
            plugin,
            command,
            network,
            source: Box::new(source),
        }
    }
}

#[cfg(test)]
mod tests;
