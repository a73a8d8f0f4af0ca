//! The metrics of pods and containers: one table of names, helps, labels and where each value comes from.
//!
//! The names and labels are those cAdvisor gave the kubelet's `/metrics/cadvisor`, so that dashboards and alerts
//! go on working. Values are whole numbers on the wire: seconds are cut, never rounded up.

mod table;

use axil_proto::cri;

use crate::domain::usage::{CgroupUsage, DeviceNumber, InterfaceUsage};
use crate::engine::pod_metrics::{ContainerMeasures, NodeMeasures, PodMeasures};
use table::{Kind, METRICS, Metric, Source};

/// Labels every metric has, sorted: those of cAdvisor.
const BASE_LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// What stands for the container of a metric of the whole pod.
const POD: &str = "POD";

/// The metrics there are; the same for the life of the daemon.
#[must_use]
pub fn descriptors() -> Vec<cri::MetricDescriptor> {
    let descriptor = |metric: &Metric| cri::MetricDescriptor {
        name: metric.name.to_owned(),
        help: metric.help.to_owned(),
        label_keys: label_keys(metric).into_iter().map(str::to_owned).collect(),
    };
    METRICS.iter().map(descriptor).collect()
}

fn label_keys(metric: &Metric) -> Vec<&'static str> {
    let mut keys = BASE_LABELS.to_vec();
    keys.extend(metric.labels);
    keys.sort_unstable();
    keys
}

/// What a container's metrics are made of.
struct Subject<'a> {
    usage: &'a CgroupUsage,
    container: &'a ContainerMeasures,
    node: &'a NodeMeasures,
}

impl Subject<'_> {
    /// The name of a block device, or its numbers where it has none (any more).
    fn device(&self, device: DeviceNumber) -> String {
        let named = self.node.devices.get(&device).cloned();
        named.unwrap_or_else(|| format!("{}:{}", device.major, device.minor))
    }
}

/// Values of a metric with what its own labels are, in the table's order.
type Values = Vec<(Vec<String>, u64)>;

/// One pod's metrics.
#[must_use]
pub fn pod(measures: &PodMeasures, node: &NodeMeasures, now: i64) -> cri::PodSandboxMetrics {
    let base = labels_of_pod(measures);
    let mut metrics = Vec::new();
    for interface in measures.network.iter().flat_map(|n| &n.interfaces) {
        for metric in &METRICS {
            if let Source::Interface(value) = metric.source {
                let values = vec![(vec![interface.name.clone()], value(interface))];
                metrics.extend(samples(metric, &base, values, now));
            }
        }
    }
    let containers = measures.containers.iter();
    cri::PodSandboxMetrics {
        pod_sandbox_id: measures.view.id.to_string(),
        metrics,
        container_metrics: containers
            .filter_map(|one| container(one, measures, node, now))
            .collect(),
    }
}

fn container(
    measures: &ContainerMeasures,
    pod: &PodMeasures,
    node: &NodeMeasures,
    now: i64,
) -> Option<cri::ContainerMetrics> {
    let view = &measures.stats.view;
    let subject = Subject {
        usage: measures.stats.usage.as_deref()?,
        container: measures,
        node,
    };
    let spec = &view.record.spec;
    let asked = &spec.image.user_specified_image;
    let image = if asked.is_empty() {
        &spec.image.image
    } else {
        asked
    };
    let metadata = &pod.view.record.spec.metadata;
    let base = [
        &spec.name,
        &measures.cgroup,
        image,
        &view.id.to_string(),
        &metadata.namespace,
        &metadata.name,
    ]
    .map(Clone::clone);
    let mut metrics = Vec::new();
    for metric in &METRICS {
        if let Source::Container(values) = metric.source {
            metrics.extend(samples(metric, &base, values(&subject, now), now));
        }
    }
    Some(cri::ContainerMetrics {
        container_id: view.id.to_string(),
        metrics,
    })
}

fn labels_of_pod(measures: &PodMeasures) -> [String; BASE_LABELS.len()] {
    let metadata = &measures.view.record.spec.metadata;
    [
        POD.to_owned(),
        measures.cgroup.clone(),
        String::new(),
        measures.view.id.to_string(),
        metadata.namespace.clone(),
        metadata.name.clone(),
    ]
}

/// Values as samples whose label values are in the order of the descriptor's keys.
fn samples(
    metric: &Metric,
    base: &[String; BASE_LABELS.len()],
    values: Values,
    now: i64,
) -> impl Iterator<Item = cri::Metric> {
    let keys = label_keys(metric);
    let (name, labels, kind) = (metric.name, metric.labels, metric.kind);
    let base = base.clone();
    values.into_iter().map(move |(own, value)| {
        let value_of = |key: &&str| {
            let own_value = labels.iter().position(|label| label == key);
            let base_value = BASE_LABELS.iter().position(|label| label == key);
            let own_value = own_value.and_then(|at| own.get(at));
            let value = own_value.or_else(|| base_value.and_then(|at| base.get(at)));
            value.cloned().unwrap_or_default()
        };
        cri::Metric {
            name: name.to_owned(),
            timestamp: now,
            metric_type: match kind {
                Kind::Counter => cri::MetricType::Counter,
                Kind::Gauge => cri::MetricType::Gauge,
            } as i32,
            label_values: keys.iter().map(value_of).collect(),
            value: Some(cri::UInt64Value { value }),
        }
    })
}

#[cfg(test)]
mod tests;
