//! Where the content of one reference comes from: the servers to ask and the credentials, fixed for
//! one pull.

use std::fmt;
use std::sync::Arc;

use super::credentials::Credentials;
use super::hosts::HostConfig;
use super::origin::Target;
use super::transport::{Client, HostClients};
use crate::domain::image::reference::Reference;

/// The source of a reference's content. Cheap to clone.
#[derive(Clone)]
pub struct Source {
    parts: Arc<Parts>,
    /// Hosts that had no answer to the first question: they are asked last.
    failed: Arc<[usize]>,
    /// Mirrors are left out.
    upstream_only: bool,
}

struct Parts {
    reference: Reference,
    credentials: Option<Credentials>,
    hosts: Vec<Host>,
}

/// One server with its clients.
pub(super) struct Host {
    pub(super) config: HostConfig,
    pub(super) clients: HostClients,
}

impl Host {
    /// Returns the client for a request that this host caused.
    pub(super) fn client_for(&self, target: &Target) -> &Client {
        if target.origin == self.config.origin {
            &self.clients.own
        } else {
            &self.clients.elsewhere
        }
    }
}

impl Source {
    pub(super) fn new(
        reference: Reference,
        credentials: Option<Credentials>,
        hosts: Vec<Host>,
    ) -> Self {
        // The last one is the registry itself.
        debug_assert!(!hosts.is_empty());
        Self {
            parts: Arc::new(Parts {
                reference,
                credentials,
                hosts,
            }),
            failed: Arc::default(),
            upstream_only: false,
        }
    }

    /// Returns the reference the source was made for.
    #[must_use]
    pub fn reference(&self) -> &Reference {
        &self.parts.reference
    }

    pub(super) fn repository(&self) -> &str {
        self.parts.reference.repository()
    }

    pub(super) fn host(&self, index: usize) -> &Host {
        &self.parts.hosts[index]
    }

    /// Returns the same source with these hosts asked last. A mirror that was not asked, because it
    /// may serve content and not say what a tag means, keeps its place.
    pub(super) fn after_failures(&self, failed: Vec<usize>) -> Self {
        Self {
            parts: Arc::clone(&self.parts),
            failed: failed.into(),
            upstream_only: false,
        }
    }

    /// Returns the same source without its mirrors, for content that a mirror served with another
    /// digest.
    #[must_use]
    pub fn upstream_only(&self) -> Self {
        Self {
            parts: Arc::clone(&self.parts),
            failed: Arc::default(),
            upstream_only: true,
        }
    }

    /// Returns the hosts that fulfil `usable`, in the order to ask them.
    pub(super) fn order(&self, usable: impl Fn(&HostConfig) -> bool) -> Vec<usize> {
        let last = self.parts.hosts.len() - 1;
        let all = match self.upstream_only {
            true => last..=last,
            false => 0..=last,
        };
        let (failed, fresh): (Vec<_>, Vec<_>) = all
            .filter(|index| usable(&self.parts.hosts[*index].config))
            .partition(|index| self.failed.contains(index));
        fresh.into_iter().chain(failed).collect()
    }

    /// Returns the credentials that `host` may see.
    pub(super) fn credentials_for(&self, host: &Host) -> Option<&Credentials> {
        self.parts
            .credentials
            .as_ref()
            .filter(|_| host.config.trusted)
    }

    /// Returns the texts that must not appear in an error.
    pub(super) fn secrets(&self) -> Vec<String> {
        let credentials = self.parts.credentials.as_ref();
        credentials.map(Credentials::secrets).unwrap_or_default()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.parts.hosts.iter();
        f.debug_struct("Source")
            .field("reference", &self.parts.reference.to_string())
            .field("credentials", &self.parts.credentials)
            .field(
                "hosts",
                &hosts
                    .map(|host| host.config.origin.to_string())
                    .collect::<Vec<_>>(),
            )
            .field("failed", &self.failed)
            .finish()
    }
}
