//! What pods and containers use, on the wire. What the kernel does not count stays unset.

use axil_proto::cri;

use super::pod::metadata_to_wire;
use crate::domain::usage::{
    CgroupUsage, InterfaceUsage, LayerUsage, NetworkUsage, Stall, StallShare,
};
use crate::engine::stats::{ContainerStats, PodStats};
use crate::engine::views::ContainerView;

fn some(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

fn maybe(value: Option<u64>) -> Option<cri::UInt64Value> {
    value.map(|value| cri::UInt64Value { value })
}

/// A container's stats; `mountpoint` is where its writable layer is.
#[must_use]
pub fn container(stats: &ContainerStats, mountpoint: &str) -> cri::ContainerStats {
    let usage = stats.usage.as_deref();
    cri::ContainerStats {
        attributes: Some(attributes(&stats.view)),
        cpu: usage.and_then(cpu),
        memory: usage.and_then(memory),
        writable_layer: stats.layer.map(|layer| writable_layer(layer, mountpoint)),
        swap: usage.and_then(swap),
        io: usage.and_then(io),
    }
}

/// A pod's stats.
#[must_use]
pub fn pod(stats: &PodStats, mountpoint: &str) -> cri::PodSandboxStats {
    let spec = &stats.view.record.spec;
    let usage = stats.usage.as_deref();
    let read_at = usage.map_or_else(crate::ports::unix_nanos, |usage| usage.read_at);
    let ready = stats.view.record.phase.is_ready();
    // A ready pod without a container uses nothing: it has no cgroup yet.
    let nothing = CgroupUsage {
        read_at,
        cpu: Some(crate::domain::usage::CpuUsage {
            nano_cores: Some(0),
            ..Default::default()
        }),
        memory: Some(crate::domain::usage::MemoryUsage::default()),
        ..CgroupUsage::default()
    };
    let usage = usage.or_else(|| ready.then_some(&nothing));
    let process = cri::ProcessUsage {
        timestamp: read_at,
        process_count: some(stats.processes.unwrap_or(0)),
    };
    let containers = stats.containers.iter();
    cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: stats.view.id.to_string(),
            metadata: Some(metadata_to_wire(&spec.metadata)),
            labels: spec.labels.clone().into_iter().collect(),
            annotations: spec.annotations.clone().into_iter().collect(),
        }),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: usage.and_then(cpu),
            memory: usage.and_then(memory),
            network: stats.network.as_deref().map(network),
            process: ready.then_some(process),
            containers: containers.map(|one| container(one, mountpoint)).collect(),
            io: usage.and_then(io),
        }),
        windows: None,
    }
}

fn attributes(view: &ContainerView) -> cri::ContainerAttributes {
    let spec = &view.record.spec;
    cri::ContainerAttributes {
        id: view.id.to_string(),
        metadata: Some(cri::ContainerMetadata {
            name: spec.name.clone(),
            attempt: spec.attempt,
        }),
        labels: spec.labels.clone().into_iter().collect(),
        annotations: spec.annotations.clone().into_iter().collect(),
    }
}

fn writable_layer(layer: LayerUsage, mountpoint: &str) -> cri::FilesystemUsage {
    cri::FilesystemUsage {
        timestamp: layer.measured_at,
        fs_id: Some(cri::FilesystemIdentifier {
            mountpoint: mountpoint.to_owned(),
        }),
        used_bytes: some(layer.bytes),
        inodes_used: some(layer.inodes),
    }
}

fn cpu(usage: &CgroupUsage) -> Option<cri::CpuUsage> {
    let cpu = usage.cpu.as_ref()?;
    Some(cri::CpuUsage {
        timestamp: usage.read_at,
        usage_core_nano_seconds: some(cpu.total_ns),
        usage_nano_cores: maybe(cpu.nano_cores),
        psi: usage.stalls.cpu.map(stall),
    })
}

fn memory(usage: &CgroupUsage) -> Option<cri::MemoryUsage> {
    let memory = usage.memory.as_ref()?;
    Some(cri::MemoryUsage {
        timestamp: usage.read_at,
        working_set_bytes: some(memory.working_set()),
        available_bytes: maybe(memory.available()),
        usage_bytes: some(memory.usage),
        rss_bytes: some(memory.rss),
        page_faults: some(memory.faults),
        major_page_faults: some(memory.major_faults),
        psi: usage.stalls.memory.map(stall),
    })
}

fn swap(usage: &CgroupUsage) -> Option<cri::SwapUsage> {
    let swap = usage.memory.as_ref()?.swap?;
    Some(cri::SwapUsage {
        timestamp: usage.read_at,
        swap_available_bytes: maybe(swap.limit.map(|limit| limit.saturating_sub(swap.used))),
        swap_usage_bytes: some(swap.used),
    })
}

fn io(usage: &CgroupUsage) -> Option<cri::IoUsage> {
    Some(cri::IoUsage {
        timestamp: usage.read_at,
        psi: Some(stall(usage.stalls.io?)),
    })
}

fn stall(stall: Stall) -> cri::PsiStats {
    // The kernel counts microseconds; the interface says nanoseconds (PsiData).
    let share = |share: StallShare| cri::PsiData {
        total: share.total_us.saturating_mul(1000),
        avg10: share.avg10,
        avg60: share.avg60,
        avg300: share.avg300,
    };
    cri::PsiStats {
        full: Some(share(stall.full)),
        some: Some(share(stall.some)),
    }
}

fn network(usage: &NetworkUsage) -> cri::NetworkUsage {
    let interface = |one: &InterfaceUsage| cri::NetworkInterfaceUsage {
        name: one.name.clone(),
        rx_bytes: some(one.received.bytes),
        rx_errors: some(one.received.errors),
        tx_bytes: some(one.sent.bytes),
        tx_errors: some(one.sent.errors),
    };
    cri::NetworkUsage {
        timestamp: usage.read_at,
        default_interface: usage.default_interface().map(interface),
        interfaces: usage.interfaces.iter().map(interface).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::usage::{CpuUsage, MemoryUsage, Stalls, SwapUsage};

    #[test]
    fn what_the_kernel_does_not_count_stays_unset() {
        let mut usage = CgroupUsage {
            read_at: 7,
            cpu: Some(CpuUsage::default()),
            memory: Some(MemoryUsage::default()),
            ..CgroupUsage::default()
        };
        let unset = cpu(&usage).unwrap();
        assert_eq!((unset.usage_nano_cores, unset.psi), (None, None));
        assert_eq!(unset.usage_core_nano_seconds, some(0));
        assert_eq!(memory(&usage).unwrap().available_bytes, None);
        assert_eq!((swap(&usage), io(&usage)), (None, None));
        usage.cpu = None;
        usage.memory = None;
        assert_eq!((cpu(&usage), memory(&usage)), (None, None));
    }

    #[test]
    fn swap_and_pressure_are_told_where_they_are_counted() {
        let pressure = Stall {
            some: StallShare {
                total_us: 12,
                avg10: 1.5,
                ..StallShare::default()
            },
            full: StallShare::default(),
        };
        let usage = CgroupUsage {
            read_at: 7,
            memory: Some(MemoryUsage {
                swap: Some(SwapUsage {
                    used: 3,
                    limit: Some(10),
                    raw_limit: Some(10),
                }),
                ..MemoryUsage::default()
            }),
            stalls: Stalls {
                io: Some(pressure),
                ..Stalls::default()
            },
            ..CgroupUsage::default()
        };
        let swap = swap(&usage).unwrap();
        assert_eq!(
            (swap.swap_usage_bytes, swap.swap_available_bytes),
            (some(3), some(7))
        );
        let psi = io(&usage).unwrap().psi.unwrap();
        assert_eq!(psi.some.unwrap().total, 12_000);
        assert!((psi.some.unwrap().avg10 - 1.5).abs() < 1e-9);
    }

    #[test]
    fn every_interface_is_told_and_one_stands_for_the_pod() {
        let one = |name: &str, bytes| InterfaceUsage {
            name: name.to_owned(),
            received: crate::domain::usage::Traffic {
                bytes,
                ..Default::default()
            },
            ..InterfaceUsage::default()
        };
        let usage = NetworkUsage {
            read_at: 5,
            interfaces: vec![one("net1", 1), one("eth0", 2)],
        };
        let wire = network(&usage);
        assert_eq!(wire.default_interface.unwrap().rx_bytes, some(2));
        assert_eq!(wire.interfaces.len(), 2);
    }
}
