//! GetContainerEvents: a listener as a stream of messages.

use std::pin::Pin;
use std::task::{Context, Poll};

use axil_proto::cri;
use tokio_stream::Stream;
use tonic::Status;

use crate::cri::convert::events;
use crate::cri::status::status;
use crate::engine::events::Listener;

/// A listener's news; ends with the status that says why.
pub(super) struct EventStream(pub(super) Listener);

impl Stream for EventStream {
    type Item = Result<cri::ContainerEventResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll(context).map(|news| {
            news.map(|news| {
                news.map(|news| events::to_wire(&news))
                    .map_err(|failure| status(&failure))
            })
        })
    }
}
