//! The composition root: builds every adapter once, recovers, serves, and drains on a signal.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axil_proto::cri::image_service_server::ImageServiceServer;
use axil_proto::cri::runtime_service_server::RuntimeServiceServer;
use axil_snapshotter::{Limits, StoreOptions, Worker};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

use crate::adapters::cgroups::CgroupTree;
use crate::adapters::durable::make_private_dir;
use crate::adapters::layers::LayerStore;
use crate::adapters::meter::KernelMeter;
use crate::adapters::namespaces::Pins;
use crate::adapters::network::CniNetwork;
use crate::adapters::pod_files::RunFiles;
use crate::adapters::records::RecordFiles;
use crate::adapters::remote::Registries;
use crate::adapters::rootfs::OverlayRootfs;
use crate::adapters::shim::{ShimOptions, ShimProcesses};
use crate::adapters::signatures::Signers;
use crate::config::{Config, LayerBounds};
use crate::control;
use crate::cri::streaming::{self, Streaming};
use crate::cri::{Deadline, ImageCalls, RuntimeCalls};
use crate::domain::container::oci::HostFacts;
use crate::engine::images::{Images, PullOptions};
use crate::engine::spawn::spawn;
use crate::engine::{Bounds, Engine, Ports, Shared};
use crate::host::apparmor;
use crate::metrics::{self, Metrics};
use crate::socket;

mod runtimes;

use runtimes::{Binaries, Features, handlers, user_namespaces};

/// Largest message taken or sent: the kubelet's own bound.
const MAX_MESSAGE: usize = 16 << 20;

/// Calls served at once on one connection; the kubelet uses a handful.
const MAX_STREAMS: u32 = 256;

/// How long calls may take to end after a signal; pods live on either way.
const DRAIN: Duration = Duration::from_secs(5);

/// How long writable layers are left alone between two measurements: what containerd's collector waits.
const MEASURE: Duration = Duration::from_secs(10);

/// How often CPU time is noted, so that a rate is known when somebody asks: as often as the kubelet asks.
const SAMPLE: Duration = Duration::from_secs(10);

/// How long the state directory's lock is waited for. A daemon that was killed may leave a child that has not done
/// its exec yet, and until then that child holds the lock too.
const CLAIM: Duration = Duration::from_secs(5);

/// How often the lock is tried meanwhile.
const CLAIM_RETRY: Duration = Duration::from_millis(20);

/// How often the built-in network's rules are looked at.
const NETWORK_CHECK: Duration = Duration::from_secs(5);

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// Something it needs at the start is not there or not possible; the message names it.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    make_private_dir(&config.root)?;
    make_private_dir(&config.state)?;
    let _sole = claim(&config.state).await?;

    let metrics = Arc::new(Metrics::default());
    let binaries = Binaries::find(&config)?;
    let features = binaries.features().await;
    let mut host = crate::host::facts();
    host.apparmor_default = apparmor::load_default(host.apparmor).await;
    let (engine, shared) = build(&config, &metrics, binaries, &features, host)?;
    engine.images.load().await.context("load images")?;
    let pods = engine.recover().await.context("recover pods")?;

    if !config.metrics.listen.is_empty() {
        let address: SocketAddr = config.metrics.listen.parse().context("metrics.listen")?;
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("metrics.listen: bind {address}"))?;
        spawn(
            "metrics",
            metrics::serve(listener, Arc::clone(&metrics), Arc::clone(&shared)),
        );
    }

    spawn("network watch", watch_network(engine.clone()));
    spawn("sample CPU time", sample_usage(engine.clone()));
    spawn(
        "measure writable layers",
        watch_containers(Arc::clone(&engine.images)),
    );
    // Root alone: it holds the state directory, and what is told there is for operators.
    let (control, _control_name) =
        socket::listen(&config.control_socket(), 0o600).context("control socket")?;
    spawn(
        "control",
        control::server::serve(control, Arc::clone(&engine.images)),
    );

    let path = config.socket().context("listen: not a unix:// path")?;
    if let Some(parent) = path.parent() {
        make_private_dir(parent)?;
    }
    let (listener, _listener_name) = socket::listen(&path, 0o660).context("listen")?;
    let info = serde_json::json!({
        "stateDir": config.state,
        "rootDir": config.root,
        "cgroupDriver": config.cgroups.driver,
        "cgroupParent": config.cgroups.names()?.own_dir(),
    });
    let streaming = stream(&config, &engine).await?;
    let runtime = RuntimeCalls::new(engine.clone(), Arc::clone(&metrics), streaming, info);
    let store = config.root.join("snapshots").display().to_string();
    let images = ImageCalls::new(engine, Arc::clone(&metrics), store);
    let runtime = RuntimeServiceServer::new(runtime)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let images = ImageServiceServer::new(images)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    tracing::info!(listen = %config.listen, pods, version = env!("CARGO_PKG_VERSION"), "serving");

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .layer(tower_layer::layer_fn(Deadline::new))
        .add_service(runtime)
        .add_service(images)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            let _closed = stopped.await;
        });
    let mut server = spawn("grpc", server);
    let signal = tokio::select! {
        ended = &mut server => {
            ended.context("the gRPC server")?.context("the gRPC server")?;
            return Ok(());
        }
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal, "stopping; pods keep running");
    // Order: streams that never end by themselves would hold up the end of the server.
    shared.events.close();
    let _closed = stop.send(());
    // What does not end by itself is cut: being killed at any instruction is an ordinary end.
    if tokio::time::timeout(DRAIN, &mut server).await.is_err() {
        tracing::info!("calls still at work are cut");
    }
    Ok(())
}

/// Begins to serve exec, attach and port-forward.
async fn stream(config: &Config, engine: &Engine) -> anyhow::Result<Arc<Streaming>> {
    let tls = match config.streaming.tls() {
        Some((certificate, key)) => Some(streaming::server_config(certificate, key)?),
        None => None,
    };
    let address: SocketAddr = config
        .streaming
        .listen
        .parse()
        .context("streaming.listen")?;
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("streaming.listen: bind {address}"))?;
    let address = listener.local_addr().context("streaming.listen")?;
    let idle = config.streaming.idle_timeout;
    let streaming = Arc::new(Streaming::new(address, tls.is_some(), idle));
    spawn(
        "streaming",
        Arc::clone(&streaming).serve(listener, tls, engine.clone()),
    );
    tracing::debug!(%address, "streaming");
    Ok(streaming)
}

/// Measures the writable layers of containers from time to time, one after the other.
async fn watch_containers(images: Arc<Images>) {
    loop {
        if let Err(failure) = images.measure_containers().await {
            tracing::warn!(error = %failure, "writable layers could not be measured");
        }
        tokio::time::sleep(MEASURE).await;
    }
}

/// Notes the CPU time of pods and containers from time to time.
async fn sample_usage(engine: Engine) {
    loop {
        engine.sample_usage().await;
        tokio::time::sleep(SAMPLE).await;
    }
}

/// Makes the built-in network's rules again when somebody flushed them (CVE-2025-54388's class).
async fn watch_network(engine: Engine) {
    loop {
        tokio::time::sleep(NETWORK_CHECK).await;
        if let Err(failure) = engine.network().restore().await {
            tracing::error!(error = %failure, "the pod network could not be restored");
        }
    }
}

/// Takes the state directory for this process alone, for as long as the answer lives.
async fn claim(state: &Path) -> anyhow::Result<fs::File> {
    let path = state.join("lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    let end = tokio::time::Instant::now() + CLAIM;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if tokio::time::Instant::now() < end => {
                tokio::time::sleep(CLAIM_RETRY).await;
            }
            Err(fs::TryLockError::WouldBlock) => {
                let state = state.display();
                anyhow::bail!("state {state}: another axild uses it, still after {CLAIM:?}");
            }
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", path.display()));
            }
        }
    }
}

/// Builds every adapter and the engine over them.
fn build(
    config: &Config,
    metrics: &Arc<Metrics>,
    binaries: Binaries,
    features: &Features,
    mut host: HostFacts,
) -> anyhow::Result<(Engine, Arc<Shared>)> {
    let store = open_store(config)?;
    let records = Arc::new(RecordFiles::open(&config.root)?);
    let sockets = config.state.join("s");
    make_private_dir(&sockets)?;
    let shims = ShimProcesses::new(ShimOptions {
        shim: binaries.shim,
        sockets,
    });
    let (no_user_namespaces, maps_ids) = user_namespaces(&store);
    host.no_user_namespaces = no_user_namespaces;
    let handlers = handlers(config, &binaries.runtimes, &host, features, &store)?;
    let ports = Ports {
        records: Arc::clone(&records) as _,
        namespaces: Arc::new(Pins::new(&config.state)),
        network: Arc::new(CniNetwork::open(network_options(config)?)?),
        files: Arc::new(RunFiles::open(&config.state)?),
        rootfs: Arc::new(OverlayRootfs::new(Arc::clone(&store), maps_ids)),
        shims: Arc::new(shims),
        cgroups: Arc::new(CgroupTree::open(config.cgroups.names()?)?),
        meter: Arc::new(KernelMeter::open(&config.root.join("snapshots"))?),
    };
    let shared = Arc::new(Shared {
        ports,
        views: crate::engine::views::Views::default(),
        events: crate::engine::events::Events::default(),
        host,
        handlers,
        sandbox_binary: binaries.sandbox,
        cdi_spec_dirs: config.cdi.spec_dirs.clone(),
        metrics: Arc::clone(metrics),
        bounds: Bounds::default(),
        pod_cidr: std::sync::Mutex::default(),
        index: std::sync::Mutex::default(),
    });
    let images = images_over(config, store, records, metrics)?;
    Ok((Engine::new(Arc::clone(&shared), Arc::new(images)), shared))
}

fn open_store(config: &Config) -> anyhow::Result<Arc<axil_snapshotter::Store>> {
    let worker = Worker::this_program().with_stall(config.images.unpack_timeout);
    let snapshotter: Result<axil_snapshotter::Choice, String> = config.images.snapshotter.parse();
    let options = StoreOptions {
        worker: Some(worker),
        snapshotter: snapshotter.map_err(anyhow::Error::msg)?,
    };
    let store = axil_snapshotter::Store::open_with(&config.root, options)
        .with_context(|| format!("open the store in {}", config.root.display()))?;
    let (snapshotter, reason) = store.snapshotter();
    tracing::info!(snapshotter, reason, "root file systems of containers");
    for damaged in store.damaged() {
        tracing::error!(damaged = ?damaged, "a damaged record in the store");
    }
    Ok(Arc::new(store))
}

fn images_over(
    config: &Config,
    store: Arc<axil_snapshotter::Store>,
    records: Arc<RecordFiles>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Images> {
    Ok(Images::new(
        records,
        Arc::new(LayerStore::new(store, layer_limits(&config.images.layer))),
        Arc::new(Registries::open(&config.images)),
        Arc::new(Signers::load(&config.images.policy)?),
        Arc::clone(metrics),
        PullOptions {
            downloads: config.images.max_concurrent_downloads,
            linger: config.images.abandoned_pull_timeout,
            policy: config.images.policy.policy()?,
        },
        config.images.pinned_patterns()?,
    ))
}

/// The images of a daemon that does not run, for a command. The store's lock keeps a daemon from starting
/// meanwhile.
///
/// # Errors
/// There is no store, or another process has it.
pub async fn open_images(config: &Config) -> anyhow::Result<Arc<Images>> {
    let root = config.root.display();
    anyhow::ensure!(config.root.is_dir(), "there is no store in {root}");
    let store = open_store(config)?;
    let records = Arc::new(RecordFiles::open(&config.root)?);
    let images = Arc::new(images_over(config, store, records, &Arc::default())?);
    images.load().await.context("load images")?;
    Ok(images)
}

fn layer_limits(bounds: &LayerBounds) -> Limits {
    Limits {
        unpacked_bytes: bounds.unpacked_bytes,
        entries: bounds.entries,
        path_depth: bounds.path_depth,
        pax_bytes: bounds.header_bytes,
        sparse_segments: bounds.sparse_segments,
        remembered_bytes: usize::try_from(bounds.remembered_bytes).unwrap_or(usize::MAX),
        skeleton_bytes: bounds.skeleton_bytes,
        zstd_window: bounds.zstd_window,
        // The kernel's own.
        ..Limits::default()
    }
}

fn network_options(config: &Config) -> anyhow::Result<axil_cni::NetworkOptions> {
    let mut subnets = Vec::new();
    for text in &config.network.subnets {
        let subnet = text.parse();
        subnets
            .push(subnet.with_context(|| format!("configuration key network.subnets: {text:?}"))?);
    }
    Ok(axil_cni::NetworkOptions {
        conf_dir: config.cni.conf_dir.clone(),
        bin_dirs: config.cni.bin_dirs.clone(),
        cache_dir: config.root.join("cni"),
        state_dir: config.root.join("network"),
        plugin_timeout: config.cni.plugin_timeout,
        builtin: axil_cni::BuiltinOptions {
            enabled: config.network.enabled,
            bridge: config.network.bridge.clone(),
            // Two daemons on one machine have bridges of their own, so their rules must be apart as well.
            table: config.network.bridge.clone(),
            subnets,
            mtu: Some(config.network.mtu).filter(|&mtu| mtu > 0),
        },
    })
}
