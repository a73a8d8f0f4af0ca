//! Runtime handlers: which OCI runtime serves a pod, and what its containers can have with it.

use std::collections::BTreeMap;

use crate::domain::container::oci::HostFacts;
use crate::domain::failure::Failure;
use crate::domain::pod::spec::PodSpec;
use crate::domain::runtime_handler::{AnnotationPatterns, DEFAULT_HANDLER, HandlerSnapshotter};
use crate::ports::OciRuntime;

/// A runtime handler.
#[derive(Debug, Clone)]
pub struct Handler {
    /// The OCI runtime.
    pub runtime: OciRuntime,
    /// What this machine can do through that runtime.
    pub host: HostFacts,
    /// Annotations the runtime is told.
    pub annotations: AnnotationPatterns,
    /// How root file systems are made; none is the store's way.
    pub snapshotter: Option<HandlerSnapshotter>,
}

/// Every handler by name.
#[derive(Debug)]
pub struct Handlers {
    default: Handler,
    named: BTreeMap<String, Handler>,
}

impl Handlers {
    /// The default one and those of the configuration.
    #[must_use]
    pub fn new(default: Handler, named: BTreeMap<String, Handler>) -> Self {
        Self { default, named }
    }

    /// The handler of a new pod. The empty name is the default one.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is not configured.
    pub fn find(&self, name: &str) -> Result<&Handler, Failure> {
        self.get(name).ok_or_else(|| {
            let known = self.all().skip(1);
            let known: Vec<_> = known.map(|(name, _)| format!("{name:?}")).collect();
            let why = format!("is not configured; there is {}", known.join(", "));
            Failure::invalid("runtime_handler", name, &why)
        })
    }

    /// The handler that ran a pod.
    ///
    /// # Errors
    /// `FailedPrecondition` when it was taken out of the configuration since.
    pub fn of(&self, pod: &PodSpec) -> Result<&Handler, Failure> {
        let name = &pod.runtime_handler;
        self.get(name).ok_or_else(|| {
            let message = format!("runtime handler {name:?} of the pod is not configured any more");
            Failure::precondition(message)
        })
    }

    /// Every name a pod can give, with its handler; the empty name first.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Handler)> {
        let named = self
            .named
            .iter()
            .map(|(name, handler)| (name.as_str(), handler));
        let default = ["", DEFAULT_HANDLER].map(|name| (name, &self.default));
        default.into_iter().chain(named)
    }

    fn get(&self, name: &str) -> Option<&Handler> {
        if name.is_empty() || name == DEFAULT_HANDLER {
            return Some(&self.default);
        }
        self.named.get(name)
    }
}
