//! Which programs the daemon runs, and the runtime handlers made of them.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use axil_proto::keys;

use crate::adapters::namespaces::trial_user_namespace;
use crate::adapters::rootfs::choice;
use crate::adapters::runtime_features::{self, RuntimeFeatures};
use crate::config::Config;
use crate::domain::container::oci::HostFacts;
use crate::domain::pod::cgroup::CgroupDriver;
use crate::domain::runtime_handler::AnnotationPatterns;
use crate::engine::handlers::{Handler, Handlers};
use crate::ports::OciRuntime;

/// What OCI runtimes can do, by binary.
pub(super) type Features = BTreeMap<PathBuf, RuntimeFeatures>;

/// The programs the daemon runs.
pub(super) struct Binaries {
    pub(super) shim: PathBuf,
    /// OCI runtimes by handler; the default one's has the empty name.
    pub(super) runtimes: BTreeMap<String, PathBuf>,
    /// The sandbox process of pods with a shared PID namespace: always the bundled runtime's binary,
    /// which is static and knows how to be one, whatever runtime runs the containers.
    pub(super) sandbox: PathBuf,
}

impl Binaries {
    pub(super) fn find(config: &Config) -> anyhow::Result<Self> {
        let beside = std::env::current_exe().context("find axild's own path")?;
        let sandbox = beside.with_file_name(keys::RUNTIME_BINARY);
        let find = |key: &str, given: &Path, name: &str| {
            let path = if given.as_os_str().is_empty() {
                beside.with_file_name(name)
            } else {
                given.to_owned()
            };
            anyhow::ensure!(
                path.is_file(),
                "configuration key {key}: {} is no file",
                path.display()
            );
            Ok(path)
        };
        let given = &config.runtime;
        let default = find("runtime.binary", &given.binary, keys::RUNTIME_BINARY)?;
        let mut runtimes = BTreeMap::from([(String::new(), default)]);
        for (name, handler) in &given.handlers {
            let key = format!("runtime.handlers.{name}.binary");
            runtimes.insert(name.clone(), find(&key, &handler.binary, "")?);
        }
        Ok(Self {
            shim: find("runtime.shim", &given.shim, keys::SHIM_BINARY)?,
            runtimes,
            sandbox,
        })
    }

    /// What each OCI runtime says of itself; one that says nothing is taken to have the least.
    pub(super) async fn features(&self) -> Features {
        let mut features = Features::new();
        for binary in self.runtimes.values() {
            if features.contains_key(binary) {
                continue;
            }
            let told = runtime_features::ask(binary).await;
            let told = told.unwrap_or_else(|failure| {
                tracing::warn!(error = %failure, "an OCI runtime does not tell its features");
                RuntimeFeatures::default()
            });
            features.insert(binary.clone(), told);
        }
        features
    }
}

/// Every runtime handler; the binary of the default one has the empty name.
pub(super) fn handlers(
    config: &Config,
    runtimes: &BTreeMap<String, PathBuf>,
    host: &HostFacts,
    features: &Features,
    store: &axil_snapshotter::Store,
) -> anyhow::Result<Handlers> {
    let systemd_cgroup = config.cgroups.names()?.driver() == CgroupDriver::Systemd;
    let handler = |name: &str, root: PathBuf, annotations: AnnotationPatterns| {
        let binary = runtimes.get(name).context("a handler without a binary")?;
        let told = features.get(binary).copied().unwrap_or_default();
        let mut host = host.clone();
        host.recursive_read_only &= told.recursive_read_only;
        if !told.user_namespaces {
            let lack = format!(
                "{} has no user namespaces with id-mapped mounts",
                binary.display()
            );
            host.no_user_namespaces.get_or_insert(lack);
        }
        let runtime = OciRuntime {
            binary: binary.clone(),
            root,
            systemd_cgroup,
        };
        anyhow::Ok(Handler {
            runtime,
            host,
            annotations,
            snapshotter: None,
        })
    };
    let annotations = config.runtime.annotations()?;
    let default = handler("", config.state.join("runtime"), annotations)?;
    let roots = config.state.join("runtimes");
    let mut named = BTreeMap::new();
    for (name, given) in &config.runtime.handlers {
        let mut handler = handler(name, roots.join(name), given.annotations(name)?)?;
        handler.snapshotter = given.snapshotter(name)?;
        let tried = store.try_snapshotter(choice(handler.snapshotter));
        tried.with_context(|| format!("configuration key runtime.handlers.{name}.snapshotter"))?;
        named.insert(name.clone(), handler);
    }
    Ok(Handlers::new(default, named))
}

/// Why no pod can have a user namespace, if none can, and whether mounts of the store can have mapped ids.
pub(super) fn user_namespaces(store: &axil_snapshotter::Store) -> (Option<String>, bool) {
    let namespace = match trial_user_namespace() {
        Ok(namespace) => namespace,
        Err(failure) => {
            let why = failure.to_string();
            tracing::info!(reason = why, "pods cannot have user namespaces");
            return (Some(why), false);
        }
    };
    match store.can_map_ids(namespace.as_fd()) {
        Ok(()) => (None, true),
        Err(reason) => {
            tracing::info!(
                reason,
                "ids of images cannot be mapped; pods with a user namespace get copies"
            );
            (None, false)
        }
    }
}
