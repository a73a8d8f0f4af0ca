//! How far pulls are: what of each layer came, what of it is unpacked, and what is waited for. Nothing is decided
//! by it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use axil_snapshotter::{ChainId, Digest};
use serde::{Deserialize, Serialize};

use super::lock;
use crate::metrics::LayerGauges;
use crate::ports::images::Layers;

/// Where a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerStage {
    /// Its turn has not come.
    Waiting,
    /// It is fetched, and unpacked as it comes.
    Fetching,
    /// All of it came; the rest is unpacked.
    Unpacking,
    /// It is unpacked and waits for the others.
    Unpacked,
    /// It is in the store.
    Stored,
}

impl LayerStage {
    const ALL: [Self; 5] = [
        Self::Waiting,
        Self::Fetching,
        Self::Unpacking,
        Self::Unpacked,
        Self::Stored,
    ];

    /// Its name, as metrics and the operator see it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Fetching => "fetching",
            Self::Unpacking => "unpacking",
            Self::Unpacked => "unpacked",
            Self::Stored => "stored",
        }
    }
}

/// A pull at work, as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullView {
    /// Tells it from others while the daemon runs.
    pub id: u64,
    /// What is pulled.
    pub image: String,
    /// Seconds since 1970 when it began.
    pub began: u64,
    /// The step it is at.
    pub step: String,
    /// Its layers, lowest first; empty until the manifest is known.
    pub layers: Vec<LayerView>,
}

/// A layer of such a pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerView {
    /// Digest of the compressed bytes.
    pub digest: String,
    /// How many there are.
    pub total: u64,
    /// How many are here, of this and of earlier tries.
    pub fetched: u64,
    /// Bytes of the archive that were unpacked.
    pub unpacked: u64,
    /// Where it is.
    pub stage: LayerStage,
}

/// Every pull at work.
#[derive(Debug, Default)]
pub struct Progress {
    pulls: Mutex<Pulls>,
    /// A layer several pulls want is one here.
    layers: Mutex<BTreeMap<(ChainId, Digest), Weak<LayerProgress>>>,
}

#[derive(Debug, Default)]
struct Pulls {
    last: u64,
    open: BTreeMap<u64, Arc<PullProgress>>,
}

#[derive(Debug)]
struct PullProgress {
    image: String,
    began: SystemTime,
    at: Mutex<At>,
}

#[derive(Debug, Default)]
struct At {
    step: &'static str,
    layers: Vec<Arc<LayerProgress>>,
}

/// A pull's place in the list; dropping it takes it out.
#[derive(Debug)]
pub(super) struct PullEntry {
    progress: Arc<Progress>,
    id: u64,
    pull: Arc<PullProgress>,
}

impl Drop for PullEntry {
    fn drop(&mut self) {
        lock(&self.progress.pulls).open.remove(&self.id);
    }
}

impl PullEntry {
    /// The step the pull is at now.
    pub(super) fn step(&self, step: &'static str) {
        lock(&self.pull.at).step = step;
    }

    /// The layers the pull needs, lowest first.
    pub(super) fn layers(&self, layers: Vec<Arc<LayerProgress>>) {
        lock(&self.pull.at).layers = layers;
    }
}

impl Progress {
    /// Lists a pull.
    pub(super) fn begin(self: &Arc<Self>, image: String) -> PullEntry {
        let pull = Arc::new(PullProgress {
            image,
            began: SystemTime::now(),
            at: Mutex::default(),
        });
        let mut pulls = lock(&self.pulls);
        pulls.last += 1;
        let id = pulls.last;
        pulls.open.insert(id, Arc::clone(&pull));
        drop(pulls);
        PullEntry {
            progress: Arc::clone(self),
            id,
            pull,
        }
    }

    /// The progress of a layer, the same for every pull that wants it.
    pub(super) fn layer(
        &self,
        chain: &ChainId,
        digest: &Digest,
        total: u64,
        gauges: &LayerGauges,
    ) -> Arc<LayerProgress> {
        let key = (chain.clone(), digest.clone());
        let mut layers = lock(&self.layers);
        layers.retain(|_, layer| layer.strong_count() > 0);
        if let Some(layer) = layers.get(&key).and_then(Weak::upgrade) {
            return layer;
        }
        let layer = Arc::new(LayerProgress::new(
            chain.clone(),
            digest.clone(),
            total,
            gauges.clone(),
        ));
        layers.insert(key, Arc::downgrade(&layer));
        layer
    }

    /// Every pull now, the one that began first first.
    #[must_use]
    pub fn view(&self, store: &dyn Layers) -> Vec<PullView> {
        let open: Vec<(u64, Arc<PullProgress>)> = {
            let pulls = lock(&self.pulls);
            let pairs = pulls.open.iter();
            pairs.map(|(id, pull)| (*id, Arc::clone(pull))).collect()
        };
        let view = |(id, pull): (u64, Arc<PullProgress>)| {
            let at = lock(&pull.at);
            let began = pull.began.duration_since(UNIX_EPOCH).unwrap_or_default();
            PullView {
                id,
                image: pull.image.clone(),
                began: began.as_secs(),
                step: at.step.to_owned(),
                layers: at.layers.iter().map(|layer| layer.view(store)).collect(),
            }
        };
        open.into_iter().map(view).collect()
    }
}

/// How far one layer is.
#[derive(Debug)]
pub(super) struct LayerProgress {
    chain: ChainId,
    digest: Digest,
    total: u64,
    fetched: AtomicU64,
    /// Index into `LayerStage::ALL`.
    stage: AtomicU8,
    gauges: LayerGauges,
}

impl LayerProgress {
    fn new(chain: ChainId, digest: Digest, total: u64, gauges: LayerGauges) -> Self {
        gauges.expected(total, true);
        gauges.stage(LayerStage::Waiting.name(), true);
        Self {
            chain,
            digest,
            total,
            fetched: AtomicU64::new(0),
            stage: AtomicU8::new(0),
            gauges,
        }
    }

    fn stage(&self) -> LayerStage {
        let stage = usize::from(self.stage.load(Ordering::Relaxed));
        LayerStage::ALL
            .get(stage)
            .copied()
            .unwrap_or(LayerStage::Waiting)
    }

    /// The layer is at this stage now.
    pub(super) fn enter(&self, stage: LayerStage) {
        let next = LayerStage::ALL.iter().position(|known| *known == stage);
        let next = next.and_then(|next| u8::try_from(next).ok()).unwrap_or(0);
        let before = usize::from(self.stage.swap(next, Ordering::Relaxed));
        if let Some(before) = LayerStage::ALL.get(before) {
            self.gauges.stage(before.name(), false);
        }
        self.gauges.stage(stage.name(), true);
    }

    /// So many of its bytes are here, whenever they came.
    pub(super) fn begins_at(&self, offset: u64) {
        let before = self.fetched.swap(offset, Ordering::Relaxed);
        self.gauges.fetched(before, false);
        self.gauges.fetched(offset, true);
        self.enter(LayerStage::Fetching);
    }

    /// So many more are.
    pub(super) fn received(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
        self.gauges.fetched(bytes, true);
    }

    fn view(&self, store: &dyn Layers) -> LayerView {
        let stage = self.stage();
        let in_store = stage == LayerStage::Stored;
        LayerView {
            digest: self.digest.to_string(),
            total: self.total,
            fetched: match in_store {
                true => self.total,
                false => self.fetched.load(Ordering::Relaxed).min(self.total),
            },
            unpacked: store.unpacked_bytes(&self.chain, &self.digest),
            stage,
        }
    }
}

impl Drop for LayerProgress {
    fn drop(&mut self) {
        self.gauges.expected(self.total, false);
        self.gauges.fetched(*self.fetched.get_mut(), false);
        self.gauges.stage(self.stage().name(), false);
    }
}
