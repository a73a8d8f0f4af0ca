//! Compiles `api/*.proto` with a pure-Rust compiler, so that no `protoc` is needed on the machine.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

const CRI: &[&str] = &["cri.proto"];
const SHIM: &[&str] = &[
    "axil_shim.proto",
    "bootstrap.proto",
    "events.proto",
    "events_service.proto",
    "runc_options.proto",
    "sandbox.proto",
    "task.proto",
    "task_types.proto",
    "types.proto",
];

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=api");
    if std::env::var_os("CARGO_FEATURE_CRI").is_some() {
        let files = protox::compile(CRI, ["api"]).context("compile the CRI messages")?;
        tonic_prost_build::configure()
            .build_client(std::env::var_os("CARGO_FEATURE_CRI_CLIENT").is_some())
            .build_transport(false)
            // Credentials must never reach a log through `{:?}`; `cri.rs` prints them redacted.
            .skip_debug([".runtime.v1.AuthConfig"])
            .compile_fds(files)
            .context("generate the CRI services")?;
    }
    if std::env::var_os("CARGO_FEATURE_SHIM").is_some() {
        let files = protox::compile(SHIM, ["api"]).context("compile the shim messages")?;
        prost_build::Config::new()
            .service_generator(Box::new(TtrpcServices))
            .compile_fds(files)
            .context("generate the shim services")?;
    }
    Ok(())
}

/// Writes a ttrpc client and a server trait for each service, over prost messages.
struct TtrpcServices;

impl prost_build::ServiceGenerator for TtrpcServices {
    fn generate(&mut self, service: prost_build::Service, out: &mut String) {
        let name = &service.name;
        let full = format!("{}.{}", service.package, service.proto_name);
        let snake = service.name.to_lowercase();
        let mut methods = String::new();
        let mut routes = String::new();
        let mut calls = String::new();
        for method in &service.methods {
            let (rust, wire) = (&method.name, &method.proto_name);
            let (input, output) = (&method.input_type, &method.output_type);
            let _ = write!(
                methods,
                "    /// Serves `{wire}`; UNIMPLEMENTED unless overridden.
    async fn {rust}(&self, _request: {input}) -> ::ttrpc::Result<{output}> {{
        Err(crate::shim::rpc::unimplemented(\"{full}/{wire}\"))
    }}
"
            );
            let _ = write!(
                routes,
                "    let served = ::std::sync::Arc::clone(&service);
    routes.add(\"{wire}\", move |request: {input}| {{
        let served = ::std::sync::Arc::clone(&served);
        ::std::boxed::Box::pin(async move {{ served.{rust}(request).await }})
    }});
"
            );
            let _ = write!(
                calls,
                "    /// Calls `{wire}`; a zero `timeout` waits without a bound.
    pub async fn {rust}(
        &self,
        request: &{input},
        timeout: ::std::time::Duration,
    ) -> ::ttrpc::Result<{output}> {{
        crate::shim::rpc::call(&self.client, \"{full}\", \"{wire}\", request, timeout).await
    }}
"
            );
        }
        let _ = write!(
            out,
            "
/// Server side of `{full}`.
#[::async_trait::async_trait]
pub trait {name}: Send + Sync + 'static {{
{methods}}}

/// Routes of `{full}`, for `ttrpc::asynchronous::Server::register_service`.
pub fn serve_{snake}<S: {name}>(
    service: ::std::sync::Arc<S>,
) -> ::std::collections::HashMap<String, ::ttrpc::asynchronous::Service> {{
    let mut routes = crate::shim::rpc::Routes::new(\"{full}\");
{routes}    routes.into_services()
}}

/// Client side of `{full}`.
#[derive(Clone)]
pub struct {name}Client {{
    client: ::ttrpc::asynchronous::Client,
}}

impl ::std::fmt::Debug for {name}Client {{
    fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {{
        f.write_str(\"{name}Client\")
    }}
}}

impl {name}Client {{
    /// Speaks over an open connection; clones share it.
    pub fn new(client: ::ttrpc::asynchronous::Client) -> Self {{
        Self {{ client }}
    }}

{calls}}}
"
        );
    }
}
