//! What a document asks of this host: judged before any side effect, where the text alone could not tell.

use std::path::Path;

use super::error::ProcessError;
use super::{joins, program, time_namespace};
use crate::plan::{NamespaceKind, Plan, ProcessPlan};

/// The checks that need the host, still before any side effect.
pub(super) fn check_host(plan: &Plan) -> Result<(), ProcessError> {
    check_labels(&plan.process)?;
    if program::is_label(&plan.mount_label) && !has_selinux() {
        return Err(ProcessError::Host {
            field: "linux.mountLabel".to_owned(),
            value: plan.mount_label.clone(),
            reason: "needs SELinux, which this kernel does not run".to_owned(),
        });
    }
    time_namespace::check(&plan.time_offsets)?;
    for kind in [NamespaceKind::User, NamespaceKind::Time] {
        let file = format!("/proc/self/ns/{}", kind.proc_name());
        if plan.namespaces.separates(kind) && !Path::new(&file).exists() {
            return Err(ProcessError::Host {
                field: "linux.namespaces".to_owned(),
                value: kind.name().to_owned(),
                reason: "is a kind of namespace this kernel does not have".to_owned(),
            });
        }
    }
    let host_network = plan
        .namespaces
        .joined(NamespaceKind::Network)
        .filter(|path| joins::is_own(path, NamespaceKind::Network));
    if let (Some(path), Some(device)) = (host_network, plan.net_devices.first()) {
        return Err(ProcessError::Host {
            field: format!("linux.netDevices[{:?}]", device.name),
            value: device.new_name.clone(),
            reason: format!(
                "is there already: {} is the host's network namespace",
                path.display()
            ),
        });
    }
    if let (Some(path), Some((name, _))) = (
        host_network,
        plan.sysctls
            .iter()
            .find(|(name, _)| name.starts_with("net/")),
    ) {
        return Err(ProcessError::Host {
            field: "linux.sysctl".to_owned(),
            value: name.clone(),
            reason: format!(
                "would change the host: {} is its network namespace",
                path.display()
            ),
        });
    }
    if let Some(path) = plan
        .namespaces
        .joined(NamespaceKind::Mount)
        .filter(|path| joins::is_own(path, NamespaceKind::Mount))
    {
        return Err(ProcessError::Host {
            field: "linux.namespaces.path".to_owned(),
            value: path.display().to_string(),
            reason: "is the host's own mount namespace".to_owned(),
        });
    }
    Ok(())
}

/// Refuses labels for security modules that are not there: the container would run without them.
pub(super) fn check_labels(process: &ProcessPlan) -> Result<(), ProcessError> {
    let refuse = |field: &str, value: &str, module: &str| ProcessError::Host {
        field: field.to_owned(),
        value: value.to_owned(),
        reason: format!("needs {module}, which this kernel does not run"),
    };
    if program::is_label(&process.apparmor_profile) && !has_apparmor() {
        return Err(refuse(
            "process.apparmorProfile",
            &process.apparmor_profile,
            "AppArmor",
        ));
    }
    if program::is_label(&process.selinux_label) && !has_selinux() {
        return Err(refuse(
            "process.selinuxLabel",
            &process.selinux_label,
            "SELinux",
        ));
    }
    Ok(())
}

/// Whether AppArmor is active.
pub(crate) fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.starts_with(b"Y"))
}

/// Whether SELinux is active.
pub(crate) fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}
