//! Metrics of pulls while they run. Layers that several pulls want count once.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Where a layer is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: &'static str,
}

/// Gauges of the layers that pulls at work need.
#[derive(Debug, Clone, Default)]
pub struct LayerGauges {
    layers: Family<StageLabel, Gauge>,
    expected: Gauge,
    fetched: Gauge,
}

impl LayerGauges {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        registry.register(
            "image_pull_layers",
            "Layers of the pulls at work by stage",
            gauges.layers.clone(),
        );
        registry.register_with_unit(
            "image_pull_expected",
            "Compressed size of the layers of the pulls at work",
            Unit::Bytes,
            gauges.expected.clone(),
        );
        registry.register_with_unit(
            "image_pull_fetched",
            "What of those layers has come",
            Unit::Bytes,
            gauges.fetched.clone(),
        );
        gauges
    }

    /// A layer entered or left a stage.
    pub fn stage(&self, stage: &'static str, entered: bool) {
        change(
            &self.layers.get_or_create(&StageLabel { stage }),
            1,
            entered,
        );
    }

    /// Bytes are expected, or no longer.
    pub fn expected(&self, bytes: u64, more: bool) {
        change(&self.expected, bytes, more);
    }

    /// Bytes have come, or do not count any more.
    pub fn fetched(&self, bytes: u64, more: bool) {
        change(&self.fetched, bytes, more);
    }
}

fn change(gauge: &Gauge, amount: u64, more: bool) {
    let amount = i64::try_from(amount).unwrap_or(i64::MAX);
    match more {
        true => gauge.inc_by(amount),
        false => gauge.dec_by(amount),
    };
}
