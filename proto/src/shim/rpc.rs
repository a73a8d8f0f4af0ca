//! Carries prost messages over the ttrpc crate: what the generated clients and servers share.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use prost::Message;
use ttrpc::asynchronous::{Client, MethodHandler, Service, TtrpcContext};
use ttrpc::proto::{Code, Request, Response};

/// The answer to a method that a service does not have.
#[must_use]
pub fn unimplemented(method: &str) -> ttrpc::Error {
    status(Code::UNIMPLEMENTED, format!("{method} is not implemented"))
}

/// An error that travels to the caller with `code` and `message`.
#[must_use]
pub fn status(code: Code, message: impl Into<String>) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message.into()))
}

/// Sends one request and decodes its answer. A zero `timeout` waits without a bound.
///
/// # Errors
/// The status the server answered, or a transport error (`Others`, `Socket`, `RemoteClosed`).
pub async fn call<Q: Message, A: Message + Default>(
    client: &Client,
    service: &str,
    method: &str,
    request: &Q,
    timeout: Duration,
) -> ttrpc::Result<A> {
    let mut wire = Request::new();
    wire.service = service.to_owned();
    wire.method = method.to_owned();
    wire.timeout_nano = i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX);
    wire.payload = request.encode_to_vec();
    let answer = client.request(wire).await?;
    A::decode(answer.payload.as_slice())
        .map_err(|error| ttrpc::Error::Others(format!("decode the answer of {method}: {error}")))
}

type Answer<A> = Pin<Box<dyn Future<Output = ttrpc::Result<A>> + Send>>;

/// The methods of one service, by wire name.
pub struct Routes {
    service: &'static str,
    methods: HashMap<String, Box<dyn MethodHandler + Send + Sync>>,
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

impl Routes {
    /// No methods yet; `service` is the full protobuf name.
    #[must_use]
    pub fn new(service: &'static str) -> Self {
        Self {
            service,
            methods: HashMap::new(),
        }
    }

    /// Serves `method` by `handle`.
    pub fn add<Q, A, F>(&mut self, method: &'static str, handle: F)
    where
        Q: Message + Default + 'static,
        A: Message + 'static,
        F: Fn(Q) -> Answer<A> + Send + Sync + 'static,
    {
        let route = Route {
            handle: Box::new(handle),
        };
        self.methods.insert(method.to_owned(), Box::new(route));
    }

    /// The form the ttrpc server registers.
    #[must_use]
    pub fn into_services(self) -> HashMap<String, Service> {
        let service = Service {
            methods: self.methods,
            streams: HashMap::new(),
        };
        HashMap::from([(self.service.to_owned(), service)])
    }
}

struct Route<Q, A> {
    handle: Box<dyn Fn(Q) -> Answer<A> + Send + Sync>,
}

#[async_trait]
impl<Q, A> MethodHandler for Route<Q, A>
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    async fn handler(&self, _context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let mut response = Response::new();
        let status = match Q::decode(request.payload.as_slice()) {
            Err(error) => ttrpc::get_status(
                Code::INVALID_ARGUMENT,
                format!("decode the request: {error}"),
            ),
            Ok(message) => match (self.handle)(message).await {
                Ok(answer) => {
                    response.payload = answer.encode_to_vec();
                    ttrpc::get_status(Code::OK, "")
                }
                Err(ttrpc::Error::RpcStatus(status)) => status,
                Err(error) => ttrpc::get_status(Code::UNKNOWN, error.to_string()),
            },
        };
        response.set_status(status);
        Ok(response)
    }
}
