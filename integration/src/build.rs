//! Builders of pod and container configurations, with the defaults a kubelet would send.

use axil_proto::cri::{
    Capability, ContainerConfig, ContainerMetadata, DnsConfig, ImageSpec, Int64Value, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol, SecurityProfile,
    security_profile::ProfileType,
};

/// A pod configuration under construction.
#[derive(Debug, Clone)]
pub struct PodBuilder {
    config: PodSandboxConfig,
}

impl PodBuilder {
    /// A pod named `name` in the namespace `default`, with its own network, process and IPC namespaces.
    #[must_use]
    pub fn new(name: &str, log_directory: &str) -> Self {
        let metadata = PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        };
        let namespaces = NamespaceOption {
            network: NamespaceMode::Pod.into(),
            pid: NamespaceMode::Container.into(),
            ipc: NamespaceMode::Pod.into(),
            ..NamespaceOption::default()
        };
        let security = LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces),
            seccomp: Some(runtime_default()),
            ..LinuxSandboxSecurityContext::default()
        };
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.to_owned(),
            log_directory: log_directory.to_owned(),
            dns_config: Some(DnsConfig {
                servers: vec!["192.0.2.53".to_owned()],
                searches: vec!["example.test".to_owned()],
                options: vec!["ndots:5".to_owned()],
            }),
            labels: [
                ("io.kubernetes.pod.name".to_owned(), name.to_owned()),
                ("io.kubernetes.pod.uid".to_owned(), format!("uid-{name}")),
            ]
            .into(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(security),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        Self { config }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.config.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.config
            .annotations
            .insert(key.to_owned(), value.to_owned());
        self
    }

    /// Maps a port of the node to a TCP port of the pod.
    #[must_use]
    pub fn host_port(mut self, host_port: i32, container_port: i32) -> Self {
        self.config.port_mappings.push(PortMapping {
            protocol: Protocol::Tcp.into(),
            container_port,
            host_port,
            host_ip: String::new(),
        });
        self
    }

    /// Sets a sysctl.
    #[must_use]
    pub fn sysctl(mut self, key: &str, value: &str) -> Self {
        self.linux()
            .sysctls
            .insert(key.to_owned(), value.to_owned());
        self
    }

    /// Shares one process namespace among the pod's containers.
    #[must_use]
    pub fn shared_pids(mut self) -> Self {
        self.namespaces().pid = NamespaceMode::Pod.into();
        self
    }

    /// Uses the node's network.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.namespaces().network = NamespaceMode::Node.into();
        self
    }

    /// Sets the cgroup parent, as the kubelet does for each pod.
    #[must_use]
    pub fn cgroup_parent(mut self, parent: &str) -> Self {
        self.linux().cgroup_parent = parent.to_owned();
        self
    }

    /// Changes anything else.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut PodSandboxConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// The configuration.
    #[must_use]
    pub fn build(&self) -> PodSandboxConfig {
        self.config.clone()
    }

    fn linux(&mut self) -> &mut LinuxPodSandboxConfig {
        self.config.linux.get_or_insert_default()
    }

    fn namespaces(&mut self) -> &mut NamespaceOption {
        self.linux()
            .security_context
            .get_or_insert_default()
            .namespace_options
            .get_or_insert_default()
    }
}

/// A container configuration under construction.
#[derive(Debug, Clone)]
pub struct ContainerBuilder {
    config: ContainerConfig,
}

impl ContainerBuilder {
    /// A container named `name` from `image`, logging to `<name>.log`.
    #[must_use]
    pub fn new(name: &str, image: &str) -> Self {
        let namespaces = NamespaceOption {
            network: NamespaceMode::Pod.into(),
            pid: NamespaceMode::Container.into(),
            ipc: NamespaceMode::Pod.into(),
            ..NamespaceOption::default()
        };
        let security = LinuxContainerSecurityContext {
            namespace_options: Some(namespaces),
            seccomp: Some(runtime_default()),
            ..LinuxContainerSecurityContext::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: image.to_owned(),
                user_specified_image: image.to_owned(),
                ..ImageSpec::default()
            }),
            log_path: format!("{name}.log"),
            labels: [("io.kubernetes.container.name".to_owned(), name.to_owned())].into(),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources::default()),
                security_context: Some(security),
            }),
            ..ContainerConfig::default()
        };
        Self { config }
    }

    /// Runs a shell script instead of what the image says.
    #[must_use]
    pub fn shell(self, script: &str) -> Self {
        self.command(&["/bin/sh", "-c", script])
    }

    /// Runs a command instead of what the image says.
    #[must_use]
    pub fn command(mut self, command: &[&str]) -> Self {
        self.config.command = command.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.config.envs.push(KeyValue {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
        });
        self
    }

    /// Runs as a user id.
    #[must_use]
    pub fn uid(mut self, uid: i64) -> Self {
        self.security().run_as_user = Some(Int64Value { value: uid });
        self
    }

    /// Runs as a user of the image's `/etc/passwd`.
    #[must_use]
    pub fn user(mut self, name: &str) -> Self {
        name.clone_into(&mut self.security().run_as_username);
        self
    }

    /// Adds and drops capabilities, named without `CAP_`.
    #[must_use]
    pub fn capabilities(mut self, add: &[&str], drop: &[&str]) -> Self {
        let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect();
        self.security().capabilities = Some(Capability {
            add_capabilities: words(add),
            drop_capabilities: words(drop),
            add_ambient_capabilities: Vec::new(),
        });
        self
    }

    /// Mounts a directory or file of the node.
    #[must_use]
    pub fn mount(mut self, host_path: &str, container_path: &str, readonly: bool) -> Self {
        self.config.mounts.push(Mount {
            container_path: container_path.to_owned(),
            host_path: host_path.to_owned(),
            readonly,
            ..Mount::default()
        });
        self
    }

    /// Mounts an image, or a part of it.
    #[must_use]
    pub fn image_volume(mut self, image: &str, sub_path: &str, container_path: &str) -> Self {
        self.config.mounts.push(Mount {
            container_path: container_path.to_owned(),
            image: Some(ImageSpec {
                image: image.to_owned(),
                ..ImageSpec::default()
            }),
            image_sub_path: sub_path.to_owned(),
            readonly: true,
            ..Mount::default()
        });
        self
    }

    /// Changes the resource limits.
    #[must_use]
    pub fn limits(mut self, change: impl FnOnce(&mut LinuxContainerResources)) -> Self {
        change(self.linux().resources.get_or_insert_default());
        self
    }

    /// Changes the security context.
    #[must_use]
    pub fn secured(mut self, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        change(self.security());
        self
    }

    /// Sets the attempt, which the kubelet raises with every restart.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.config.metadata.get_or_insert_default().attempt = attempt;
        self
    }

    /// Changes anything else.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut ContainerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// The configuration.
    #[must_use]
    pub fn build(&self) -> ContainerConfig {
        self.config.clone()
    }

    fn linux(&mut self) -> &mut LinuxContainerConfig {
        self.config.linux.get_or_insert_default()
    }

    fn security(&mut self) -> &mut LinuxContainerSecurityContext {
        self.linux().security_context.get_or_insert_default()
    }
}

fn runtime_default() -> SecurityProfile {
    SecurityProfile {
        profile_type: ProfileType::RuntimeDefault.into(),
        localhost_ref: String::new(),
    }
}
