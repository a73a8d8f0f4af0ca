//! The table of metrics, and the endpoint that shows them in Prometheus' text format.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

mod pulls;

pub use pulls::LayerGauges;

use crate::engine::spawn::spawn;
use crate::engine::views::Views;

/// Connections to the endpoint served at once; more wait.
const CONNECTIONS: usize = 16;

/// How long one connection may live.
const CONNECTION: Duration = Duration::from_secs(30);

/// Method and result of a CRI call: both from fixed lists.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabels {
    method: &'static str,
    code: &'static str,
}

/// Method of a CRI call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MethodLabel {
    method: &'static str,
}

/// State of a pod or container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabel {
    state: &'static str,
}

/// Result of a pull.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    result: &'static str,
}

/// Kind of a streaming session.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    kind: &'static str,
}

/// Where an image was refused by the policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DoorLabel {
    door: &'static str,
}

/// Every metric of the daemon.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    calls: Family<CallLabels, Counter>,
    call_seconds: Family<MethodLabel, Histogram, fn() -> Histogram>,
    pods: Family<StateLabel, Gauge>,
    containers: Family<StateLabel, Gauge>,
    pulls: Family<ResultLabel, Counter>,
    pulls_in_flight: Gauge,
    pulled_bytes: Counter,
    listeners_cut: Counter,
    sessions: Family<KindLabel, Gauge>,
    tasks: Gauge,
    refusals: Family<DoorLabel, Counter>,
    layers: LayerGauges,
}

/// Counts a pull or session as in flight until it is dropped.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Buckets from 0.25 ms to about 65 s.
fn call_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 19))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("axil");
        let calls = Family::default();
        registry.register(
            "cri_calls",
            "CRI calls by method and gRPC code",
            calls.clone(),
        );
        let call_seconds = Family::new_with_constructor(call_histogram as fn() -> Histogram);
        registry.register_with_unit(
            "cri_call_duration",
            "Time of CRI calls by method",
            Unit::Seconds,
            call_seconds.clone(),
        );
        let pods = Family::default();
        registry.register("pods", "Pods by state", pods.clone());
        let containers = Family::default();
        registry.register("containers", "Containers by state", containers.clone());
        let pulls = Family::default();
        registry.register("image_pulls", "Image pulls by result", pulls.clone());
        let pulls_in_flight = Gauge::default();
        registry.register(
            "image_pulls_in_flight",
            "Image pulls at work now",
            pulls_in_flight.clone(),
        );
        let pulled_bytes = Counter::default();
        registry.register_with_unit(
            "image_pulled",
            "Compressed layer bytes received from registries",
            Unit::Bytes,
            pulled_bytes.clone(),
        );
        let listeners_cut = Counter::default();
        registry.register(
            "event_listeners_cut",
            "Clients of container events that did not read and were let go of",
            listeners_cut.clone(),
        );
        let sessions = Family::default();
        registry.register(
            "streaming_sessions",
            "Exec, attach and port-forward sessions open now, by kind",
            sessions.clone(),
        );
        let tasks = Gauge::default();
        registry.register("tasks", "Tasks of the daemon alive now", tasks.clone());
        let refusals = Family::default();
        registry.register(
            "image_refusals",
            "Images the policy refused, by door: pull, import or use",
            refusals.clone(),
        );
        let layers = LayerGauges::register(&mut registry);
        Self {
            registry,
            calls,
            call_seconds,
            pods,
            containers,
            pulls,
            pulls_in_flight,
            pulled_bytes,
            listeners_cut,
            sessions,
            tasks,
            refusals,
            layers,
        }
    }
}

impl Metrics {
    /// Counts a CRI call.
    pub fn called(&self, method: &'static str, code: &'static str, took: Duration) {
        self.calls.get_or_create(&CallLabels { method, code }).inc();
        self.call_seconds
            .get_or_create(&MethodLabel { method })
            .observe(took.as_secs_f64());
    }

    /// Counts a pull as in flight until the answer is dropped.
    #[must_use]
    pub fn pull_begins(&self) -> InFlight {
        self.pulls_in_flight.inc();
        InFlight(self.pulls_in_flight.clone())
    }

    /// Counts a pull that ended.
    pub fn pull_ended(&self, succeeded: bool, bytes: u64) {
        let result = if succeeded { "success" } else { "failure" };
        self.pulls.get_or_create(&ResultLabel { result }).inc();
        self.pulled_bytes.inc_by(bytes);
    }

    /// Counts a listener of events that was let go of.
    pub fn listener_cut(&self) {
        self.listeners_cut.inc();
    }

    /// The gauges of layers on their way.
    #[must_use]
    pub fn layers(&self) -> &LayerGauges {
        &self.layers
    }

    /// Counts a streaming session as open until the answer is dropped.
    #[must_use]
    pub fn session_begins(&self, kind: &'static str) -> InFlight {
        let gauge = self.sessions.get_or_create_owned(&KindLabel { kind });
        gauge.inc();
        InFlight(gauge)
    }

    /// Counts an image that the policy refused at a door.
    pub fn image_refused(&self, door: &'static str) {
        self.refusals.get_or_create(&DoorLabel { door }).inc();
    }

    /// Everything, in Prometheus' text format; states are counted from the views now.
    #[must_use]
    pub fn render(&self, views: &Views) -> String {
        for state in ["ready", "notready"] {
            let count = views
                .pods()
                .iter()
                .filter(|p| p.record.phase.is_ready() == (state == "ready"))
                .count();
            self.pods
                .get_or_create(&StateLabel { state })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let containers = views.containers();
        for state in ["created", "running", "exited"] {
            let in_state =
                |phase: &crate::domain::container::phase::ContainerPhase| match phase.name() {
                    "starting" => "created",
                    "removing" => "exited",
                    name => name,
                };
            let count = containers
                .iter()
                .filter(|c| in_state(&c.record.phase) == state)
                .count();
            self.containers
                .get_or_create(&StateLabel { state })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        if let Ok(reactor) = tokio::runtime::Handle::try_current() {
            let tasks = reactor.metrics().num_alive_tasks();
            self.tasks.set(i64::try_from(tasks).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        // Ignored: writing to a String does not fail.
        let _infallible = encode(&mut text, &self.registry);
        text
    }
}

/// Serves `/metrics` until the daemon ends.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    shared: Arc<crate::engine::Shared>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = %error, "accept a metrics connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (metrics, shared) = (Arc::clone(&metrics), Arc::clone(&shared));
        spawn("metrics connection", async move {
            let service = service_fn(|request| {
                let answer = answer(&request, &metrics, &shared.views);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION, connection).await {
                log_broken(peer, &error);
            }
            drop(place);
        });
    }
}

fn log_broken(peer: SocketAddr, error: &hyper::Error) {
    tracing::debug!(peer = %peer, error = %error, "a metrics connection broke");
}

fn answer<B>(request: &Request<B>, metrics: &Metrics, views: &Views) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method().as_str(), request.uri().path()) {
        ("GET", "/metrics") => (
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            metrics.render(views),
        ),
        ("GET", _) => (
            StatusCode::NOT_FOUND,
            "text/plain",
            "try /metrics\n".to_owned(),
        ),
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "GET only\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, kind);
    response
}
