//! What axild needs beyond containerd's services.

use std::sync::Arc;

use async_trait::async_trait;
use axil_proto::shim::axil::{
    AttachRequest, AttachResponse, ReopenLogRequest, ReopenLogResponse, Shim,
};

use crate::pod::Pod;

/// Serves the logs and the output of a pod.
#[derive(Debug)]
pub struct ShimService(pub Arc<Pod>);

#[async_trait]
impl Shim for ShimService {
    async fn reopen_log(&self, request: ReopenLogRequest) -> ttrpc::Result<ReopenLogResponse> {
        self.0.reopen_log(&request.id).await?;
        Ok(ReopenLogResponse {})
    }

    async fn attach(&self, request: AttachRequest) -> ttrpc::Result<AttachResponse> {
        let AttachRequest { id, stdout, stderr } = request;
        self.0.attach(&id, &stdout, &stderr).await?;
        Ok(AttachResponse {})
    }
}
