//! Whether and by what pods can get a network now.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::Serialize;

use super::{Network, Serving, blocking};
use crate::{
    chain::Chain,
    conf::PluginConf,
    error::{NetworkError, NotReady, chain_text},
    select::Selection,
};

/// The network that serves, for the verbose status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkDescription {
    /// By what pods get their network.
    pub kind: NetworkKind,
    /// The conflist's name, or the bridge of the built-in network.
    pub name: Option<String>,
    /// The conflist's file.
    pub file: Option<PathBuf>,
    /// The protocol version spoken with the plugins.
    pub cni_version: Option<String>,
    /// The conflist's plugins in order.
    pub plugins: Vec<PluginDescription>,
    /// Subnets of the built-in network.
    pub subnets: Vec<String>,
    /// Configuration files that are not valid and what is wrong with them.
    pub skipped: Vec<SkippedFile>,
}

/// By what pods get their network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkKind {
    /// By executed plugins.
    Conflist,
    /// By the built-in network.
    Builtin,
    /// Not at all.
    None,
}

/// One plugin of the conflist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PluginDescription {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its executable, when there is one.
    pub path: Option<PathBuf>,
}

/// A configuration file that is not valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SkippedFile {
    /// What is wrong, with the file and field.
    pub reason: String,
}

/// Versions spoken by plugin executables, asked once per state of the file.
#[derive(Debug, Default)]
pub(super) struct Probes {
    spoken: Mutex<BTreeMap<PathBuf, (State, Vec<String>)>>,
}

/// Inode, size and change time.
type State = (u64, u64, i64, i64);

impl Network {
    /// Whether a pod could get a network now: the configuration is valid, its plugins are there,
    /// speak its version and (since CNI 1.1) say so themselves; or the built-in network's bridge
    /// and table exist or could be made.
    ///
    /// # Errors
    /// The reason and a message for the node's condition.
    pub async fn status(&self) -> Result<(), NotReady> {
        let core = &self.core;
        let not_ready = |reason: &str, message: String| {
            Err(NotReady {
                reason: reason.to_owned(),
                message,
            })
        };
        match core.serving() {
            Err(error @ NetworkError::NoNetwork { .. }) => {
                not_ready("NetworkNotConfigured", chain_text(&error))
            }
            Err(error) => not_ready("NetworkConfigInvalid", chain_text(&error)),
            Ok(Serving::Conflist(selection)) => self.conflist_status(&selection).await,
            Ok(Serving::Builtin) => {
                let core = core.clone();
                match blocking(move || core.builtin.ready()).await {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error)) => not_ready("BuiltinNetworkNotReady", chain_text(&error)),
                    Err(error) => not_ready("BuiltinNetworkNotReady", chain_text(&error)),
                }
            }
        }
    }

    /// The network that serves and the files it comes from.
    pub fn describe(&self) -> NetworkDescription {
        let core = &self.core;
        let listing = core.selector.listing();
        let skipped = match &listing {
            Ok(listing) => listing
                .skipped
                .iter()
                .map(|error| chain_text(error))
                .collect(),
            Err(error) => vec![chain_text(error)],
        };
        let mut description = NetworkDescription {
            kind: NetworkKind::None,
            name: None,
            file: None,
            cni_version: None,
            plugins: Vec::new(),
            subnets: Vec::new(),
            skipped: skipped
                .into_iter()
                .map(|reason| SkippedFile { reason })
                .collect(),
        };
        match core.serving() {
            Ok(Serving::Conflist(Selection { path, list })) => {
                description.kind = NetworkKind::Conflist;
                description.name = Some(list.name);
                description.file = Some(path);
                description.cni_version = Some(list.version.to_string());
                let plugins = list.plugins.into_iter().map(|plugin| PluginDescription {
                    path: core.plugins.find(&plugin.kind).ok(),
                    kind: plugin.kind,
                });
                description.plugins = plugins.collect();
            }
            Ok(Serving::Builtin) => {
                let options = &core.options.builtin;
                description.kind = NetworkKind::Builtin;
                description.name = Some(options.bridge.clone());
                description.subnets = options.subnets.iter().map(ToString::to_string).collect();
            }
            // `skipped` says why.
            Err(_) => {}
        }
        description
    }

    async fn conflist_status(&self, selection: &Selection) -> Result<(), NotReady> {
        let chain = Chain {
            list: &selection.list,
            plugins: &self.core.plugins,
        };
        for plugin in &selection.list.plugins {
            self.plugin_speaks(&chain, plugin).await?;
        }
        chain.status().await.map_err(|error| NotReady {
            reason: "NetworkPluginNotReady".to_owned(),
            message: chain_text(&error),
        })
    }

    /// Whether the executable is there and speaks the list's version.
    async fn plugin_speaks(&self, chain: &Chain<'_>, plugin: &PluginConf) -> Result<(), NotReady> {
        let missing = |error| NotReady {
            reason: "NetworkPluginMissing".to_owned(),
            message: format!("network {}: {}", chain.list.name, chain_text(&error)),
        };
        let program = self.core.plugins.find(&plugin.kind).map_err(missing)?;
        let probes = &self.core.probes;
        let spoken = match probes.known(&program) {
            Some(spoken) => spoken,
            None => match chain.versions(plugin).await {
                Ok(spoken) => probes.note(&program, spoken),
                // ADD may work all the same, and its error would tell more.
                Err(error) => {
                    tracing::debug!(
                        error = chain_text(&error),
                        "plugin does not tell its versions"
                    );
                    return Ok(());
                }
            },
        };
        let wanted = chain.list.version.to_string();
        if spoken.is_empty() || spoken.contains(&wanted) {
            return Ok(());
        }
        let message = format!(
            "network {} has cniVersion {wanted}, plugin {} speaks {}",
            chain.list.name,
            program.display(),
            spoken.join(", ")
        );
        Err(NotReady {
            reason: "NetworkPluginVersion".to_owned(),
            message,
        })
    }
}

impl Probes {
    fn known(&self, program: &Path) -> Option<Vec<String>> {
        let probes = self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, spoken) = probes.get(program)?;
        (Some(*state) == state_of(program)).then(|| spoken.clone())
    }

    fn note(&self, program: &Path, spoken: Vec<String>) -> Vec<String> {
        let mut probes = self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = state_of(program) {
            probes.insert(program.to_owned(), (state, spoken.clone()));
        }
        spoken
    }
}

fn state_of(program: &Path) -> Option<State> {
    let meta = program.metadata().ok()?;
    Some((meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
}
