//! [`Network`]: which network serves a pod, and the order of record, work and undo around it.
//! Readiness and description are in `network::readiness`.

mod conflist;
mod readiness;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::sync::RwLock;

use conflist::of_record;
pub use readiness::{NetworkDescription, NetworkKind, PluginDescription, SkippedFile};

use crate::{
    builtin::{Builtin, BuiltinError},
    cache::{AttachmentRecord, Cache, Via},
    chain::{Chain, Plugins},
    conf::Version,
    error::NetworkError,
    lanes::{Lanes, Turn},
    netns::{self, NetnsError},
    options::NetworkOptions,
    pod::{PodAddresses, PodNetwork, check_id},
    result::CniResult,
    select::{Selection, Selector},
};

/// Gives pods a network and takes it back. Cheap to clone; all clones are one.
///
/// Futures may be dropped at any time: the record that is written first lets the next `up` or
/// `down` of the pod undo what was begun.
#[derive(Debug, Clone)]
pub struct Network {
    core: Arc<Core>,
}

#[derive(Debug)]
struct Core {
    options: NetworkOptions,
    plugins: Plugins,
    selector: Selector,
    cache: Cache,
    builtin: Builtin,
    lanes: Lanes,
    /// Held shared by ADD and alone by GC, which must not see half an attachment.
    garbage: RwLock<()>,
    probes: readiness::Probes,
}

/// What [`Network::collect_garbage`] did.
#[derive(Debug, Default)]
pub struct Collected {
    /// Pods that were released.
    pub released: Vec<String>,
    /// What failed; the pods concerned stay in [`Network::attached`].
    pub errors: Vec<NetworkError>,
}

/// Which network serves now.
enum Serving {
    Conflist(Selection),
    Builtin,
}

impl Network {
    /// Checks the options, makes the directories and reads the records of earlier processes.
    /// Nothing in the kernel is touched.
    ///
    /// # Errors
    /// `InvalidArgument` for an unusable option, `Internal` for an unusable directory.
    pub fn new(options: NetworkOptions) -> Result<Network, NetworkError> {
        options.check()?;
        let cache = Cache::open(&options.cache_dir).map_err(NetworkError::Record)?;
        let ports = cache
            .all()
            .into_iter()
            .filter_map(|record| match record.via {
                Via::Builtin { ports } => Some((record.pod, ports)),
                Via::Conflist { .. } | Via::Unreadable { .. } => None,
            });
        let ports: BTreeMap<_, _> = ports.collect();
        let builtin = Builtin::open(&options.builtin, &options.state_dir, ports)
            .map_err(builtin_failed(|| "start".into()))?;
        let plugins = Plugins {
            bin_dirs: options.bin_dirs.clone(),
            timeout: options.plugin_timeout,
        };
        let selector = Selector::new(&options.conf_dir);
        let core = Core {
            options,
            plugins,
            selector,
            cache,
            builtin,
            lanes: Lanes::default(),
            garbage: RwLock::default(),
            probes: readiness::Probes::default(),
        };
        Ok(Network {
            core: Arc::new(core),
        })
    }

    /// Gives a pod its network: loopback, then the conflist's ADD or the built-in network.
    /// A pod that has it already gets the same answer again, without timings.
    ///
    /// # Errors
    /// By class of [`NetworkError::class`]; what was done is undone. When that fails too, the
    /// error is [`NetworkError::UndoIncomplete`] and the pod stays in [`Network::attached`].
    pub async fn up(&self, pod: &PodNetwork) -> Result<PodAddresses, NetworkError> {
        pod.check()?;
        let core = &self.core;
        let turn = core.lanes.enter(&pod.id).await;
        if let Some(record) = core.cache.get(&pod.id) {
            if let Some(result) = &record.result {
                return again(pod, &record, result);
            }
            // An attempt was cut off; nothing of it may stay.
            if let Some(error) = core
                .tear_down(&pod.id, Some(pod), &turn)
                .await
                .into_iter()
                .next()
            {
                return Err(error);
            }
        }
        let began = Instant::now();
        let netns = pod.netns.clone();
        blocking(move || netns::loopback_up(&netns))
            .await?
            .map_err(netns_failed(&pod.id))?;
        let timings = vec![("loopback".to_owned(), began.elapsed())];
        match core.serving()? {
            Serving::Conflist(selection) => core.conflist_up(pod, selection, timings, &turn).await,
            Serving::Builtin => {
                let (core, pod) = (core.clone(), pod.clone());
                // The turn goes along: the work ends even when this future is dropped.
                blocking(move || core.builtin_up(&pod, timings, turn)).await?
            }
        }
    }

    /// Takes a pod's network back, by the configuration and result its ADD had. A pod that has
    /// none is no error, and neither is a namespace that is gone.
    ///
    /// # Errors
    /// Everything that failed; the rest is done, and the next call does what is left.
    pub async fn down(&self, pod: &PodNetwork) -> Result<(), Vec<NetworkError>> {
        check_id(&pod.id).map_err(|error| vec![error])?;
        let turn = self.core.lanes.enter(&pod.id).await;
        let errors = self.core.tear_down(&pod.id, Some(pod), &turn).await;
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    /// Whether a pod's network is as it was made: CNI CHECK, or a look at link and addresses.
    ///
    /// # Errors
    /// [`NetworkError::Damaged`] with what differs, or the plugin's error.
    pub async fn check(&self, id: &str) -> Result<(), NetworkError> {
        let core = &self.core;
        let _turn = core.lanes.enter(id).await;
        let damaged = |reason: &str| NetworkError::Damaged {
            pod: id.to_owned(),
            reason: reason.to_owned(),
        };
        let record = core
            .cache
            .get(id)
            .ok_or_else(|| damaged("is not attached"))?;
        let result = record
            .result
            .clone()
            .ok_or_else(|| damaged("is half attached"))?;
        match &record.via {
            Via::Conflist { .. } => {
                let (list, attachment) = of_record(&record, &record.netns)?;
                let result = parse_result(&list.name, result, list.version)?;
                let chain = Chain {
                    list: &list,
                    plugins: &core.plugins,
                };
                chain.check(&attachment, &result).await
            }
            Via::Builtin { .. } => {
                let (core, pod) = (core.clone(), id.to_owned());
                let looked = blocking(move || core.builtin.check(&pod, &record.netns)).await?;
                let fault = looked.map_err(builtin_failed(|| format!("pod {id}")))?;
                fault.map_or(Ok(()), |reason| Err(damaged(&reason)))
            }
            Via::Unreadable { reason } => Err(damaged(reason)),
        }
    }

    /// The pods with a record: attached, half attached or half released.
    pub fn attached(&self) -> Vec<String> {
        self.core.cache.pods()
    }

    /// Releases every pod not in `keep` that has a record, a lease or a link on the bridge, then
    /// runs CNI GC where the conflist has it. `keep` names every pod that exists or is being made;
    /// pods that are being worked on are kept too.
    pub async fn collect_garbage(&self, keep: &BTreeSet<String>) -> Collected {
        let core = &self.core;
        let mut collected = Collected::default();
        let mut known: BTreeSet<_> = core.cache.pods().into_iter().collect();
        let owners = {
            let core = core.clone();
            blocking(move || core.builtin.owners()).await
        };
        match owners {
            Ok(Ok(owners)) => known.extend(owners),
            Ok(Err(source)) => collected
                .errors
                .push(builtin_failed(|| "garbage".into())(source)),
            Err(error) => collected.errors.push(error),
        }
        let busy = core.lanes.busy();
        for pod in known.difference(keep).filter(|pod| !busy.contains(*pod)) {
            let turn = core.lanes.enter(pod).await;
            let errors = core.tear_down(pod, None, &turn).await;
            if errors.is_empty() {
                collected.released.push(pod.clone());
            }
            collected.errors.extend(errors);
        }
        match core.serving() {
            Ok(Serving::Conflist(selection)) => {
                let _alone = core.garbage.write().await;
                let keep = keep.iter().cloned().chain(core.cache.pods()).collect();
                let chain = Chain {
                    list: &selection.list,
                    plugins: &core.plugins,
                };
                collected.errors.extend(chain.collect_garbage(&keep).await);
            }
            Ok(Serving::Builtin) => {}
            // That no network serves is for `status` to tell.
            Err(error) => tracing::debug!(%error, "no network to collect garbage of"),
        }
        collected
    }

    /// Repairs the built-in network when somebody removed its bridge, rules or elements; cheap
    /// when nothing is missing. Does nothing while no pod uses it. Returns whether it repaired.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn restore(&self) -> Result<bool, NetworkError> {
        let core = self.core.clone();
        let used = |record: &AttachmentRecord| matches!(record.via, Via::Builtin { .. });
        if !core.cache.all().iter().any(used) {
            return Ok(false);
        }
        blocking(move || core.builtin.restore())
            .await?
            .map_err(builtin_failed(|| "restore".into()))
    }
}

impl Core {
    /// The conflist when there is one; a directory with broken files only serves nobody, for
    /// pods must not silently land in another network than the operator's.
    fn serving(&self) -> Result<Serving, NetworkError> {
        let listing = self
            .selector
            .listing()
            .map_err(|error| NetworkError::Conf(Arc::new(error)))?;
        if let Some(selection) = &listing.chosen {
            return Ok(Serving::Conflist(selection.clone()));
        }
        if let Some(fault) = listing.skipped.first() {
            return Err(NetworkError::Conf(fault.clone()));
        }
        if self.options.builtin.enabled {
            return Ok(Serving::Builtin);
        }
        Err(NetworkError::NoNetwork {
            conf_dir: self.options.conf_dir.clone(),
        })
    }

    /// Runs on a worker thread, holding the pod's turn.
    fn builtin_up(
        &self,
        pod: &PodNetwork,
        mut timings: Vec<(String, Duration)>,
        _turn: Turn,
    ) -> Result<PodAddresses, NetworkError> {
        if pod.bandwidth.is_some() {
            tracing::warn!(
                pod.id = pod.id,
                "the built-in network does not limit bandwidth"
            );
        }
        let failed = || builtin_failed(|| format!("pod {}", pod.id));
        let began = Instant::now();
        let plan = self
            .builtin
            .reserve(&pod.id, &pod.host_ports())
            .map_err(failed())?;
        let via = Via::Builtin {
            ports: plan.ports.clone(),
        };
        let mut record = AttachmentRecord::new(&pod.id, &pod.netns, via);
        let attached = || {
            self.cache
                .put(record.clone())
                .map_err(NetworkError::Record)?;
            timings.push(("reserve".to_owned(), began.elapsed()));
            let raw = self
                .builtin
                .attach(&plan, &pod.netns, &mut timings)
                .map_err(failed())?;
            let began = Instant::now();
            let result = parse_result("built-in", raw, Version::V1_1_0)?;
            record.result = Some(result.raw.clone());
            self.cache.put(record).map_err(NetworkError::Record)?;
            timings.push(("record".to_owned(), began.elapsed()));
            addresses("built-in", &result, timings)
        };
        attached().map_err(|cause| undone(&pod.id, cause, self.builtin_down(&pod.id)))
    }

    /// Undoes whatever is recorded of a pod, and forgets the record when all of it worked.
    /// The caller has the pod's turn.
    async fn tear_down(
        self: &Arc<Self>,
        id: &str,
        pod: Option<&PodNetwork>,
        turn: &Turn,
    ) -> Vec<NetworkError> {
        let record = self.cache.get(id);
        let mut errors = match record {
            Some(record) if matches!(record.via, Via::Conflist { .. }) => {
                return self.conflist_down(record).await;
            }
            // What the pod had is not known, so all that DEL of the present conflist knows.
            Some(AttachmentRecord {
                via: Via::Unreadable { reason },
                ..
            }) => {
                tracing::warn!(pod.id = id, reason, "attachment record is damaged");
                self.present_conflist_down(id, pod).await
            }
            Some(_) | None => Vec::new(),
        };
        let (core, id, turn) = (self.clone(), id.to_owned(), turn.clone());
        let down = move || {
            let _until_done = turn;
            core.builtin_down(&id)
        };
        match blocking(down).await {
            Ok(failed) => errors.extend(failed),
            Err(error) => errors.push(error),
        }
        errors
    }

    fn builtin_down(&self, id: &str) -> Vec<NetworkError> {
        let failed = self.builtin.detach(id).into_iter();
        let mut errors: Vec<_> = failed
            .map(|source| builtin_failed(|| format!("pod {id}"))(source))
            .collect();
        if errors.is_empty() {
            errors.extend(self.cache.remove(id).map_err(NetworkError::Record).err());
        }
        errors
    }
}

/// The answer to a second `up`.
fn again(
    pod: &PodNetwork,
    record: &AttachmentRecord,
    result: &Value,
) -> Result<PodAddresses, NetworkError> {
    if pod.netns != record.netns {
        return Err(NetworkError::Pod {
            field: "netns",
            value: pod.netns.display().to_string(),
            reason: format!("the pod is attached by {} already", record.netns.display()),
        });
    }
    let name = match &record.via {
        Via::Conflist { list, .. } => list["name"].as_str().unwrap_or_default(),
        Via::Builtin { .. } | Via::Unreadable { .. } => "built-in",
    };
    let result = parse_result(name, result.clone(), Version::V1_1_0)?;
    addresses(name, &result, Vec::new())
}

fn addresses(
    network: &str,
    result: &CniResult,
    timings: Vec<(String, Duration)>,
) -> Result<PodAddresses, NetworkError> {
    let failed = |source| NetworkError::Result {
        network: network.to_owned(),
        source,
    };
    Ok(PodAddresses {
        ips: result.pod_ips().map_err(failed)?,
        interfaces: result.interfaces(),
        raw: result.raw.clone(),
        timings,
    })
}

fn parse_result(network: &str, raw: Value, version: Version) -> Result<CniResult, NetworkError> {
    CniResult::parse(raw, version).map_err(|source| NetworkError::Result {
        network: network.to_owned(),
        source,
    })
}

fn undone(pod: &str, cause: NetworkError, left: Vec<NetworkError>) -> NetworkError {
    if left.is_empty() {
        return cause;
    }
    NetworkError::UndoIncomplete {
        pod: pod.to_owned(),
        cause: Box::new(cause),
        left,
    }
}

fn builtin_failed(subject: impl FnOnce() -> String) -> impl FnOnce(BuiltinError) -> NetworkError {
    move |source| NetworkError::Builtin {
        subject: subject(),
        source,
    }
}

fn netns_failed(pod: &str) -> impl FnOnce(NetnsError) -> NetworkError {
    let pod = pod.to_owned();
    move |source| NetworkError::Netns { pod, source }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NetworkError> {
    let worker = tokio::task::spawn_blocking(work);
    worker
        .await
        .map_err(|source| NetworkError::Worker { source })
}
