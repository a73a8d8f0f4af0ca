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
    /// The host to ask first: the one that answered the first question.
    first: usize,
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
            first: 0,
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

    /// Returns the same source, to be asked at the host `index` first.
    pub(super) fn starting_at(&self, index: usize) -> Self {
        Self {
            parts: Arc::clone(&self.parts),
            first: index,
            upstream_only: false,
        }
    }

    /// Returns the same source without its mirrors, for content that a mirror served with another
    /// digest.
    #[must_use]
    pub fn upstream_only(&self) -> Self {
        Self {
            parts: Arc::clone(&self.parts),
            first: self.parts.hosts.len() - 1,
            upstream_only: true,
        }
    }

    /// Returns the hosts that fulfil `usable`, in the order to ask them.
    pub(super) fn order(&self, usable: impl Fn(&HostConfig) -> bool) -> Vec<usize> {
        let all = match self.upstream_only {
            true => 0..0,
            false => 0..self.parts.hosts.len(),
        };
        let rest = all.filter(|index| *index != self.first);
        std::iter::once(self.first)
            .chain(rest)
            .filter(|index| usable(&self.parts.hosts[*index].config))
            .collect()
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
            .field("first", &self.first)
            .finish()
    }
}
