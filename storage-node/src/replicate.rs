//! Pulling a segment from another storage node.

use std::sync::Arc;

use aubade_environment::{Deadline, Environment};
use aubade_proto::convert::{decode_description, encode_header, required};
use aubade_proto::wire::storage::storage_node_client::StorageNodeClient;
use aubade_proto::wire::storage::{GetSegmentReply, GetSegmentRequest};
use aubade_proto::{CallHeader, Error, ErrorCode, Result, ResultExt, SegmentDescription};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use crate::limits::{CONNECT_TIMEOUT, CONNECTION_WINDOW_BYTES, DECODE_BYTES_MAX, STREAM_WINDOW_BYTES};

/// The stored bytes of the segment at `source` (host:port), once it has said that it holds the one
/// described.
pub(crate) async fn open(
    env: &Environment,
    header: &CallHeader,
    deadline: Deadline,
    description: &SegmentDescription,
    source: &str,
) -> Result<BoxStream<'static, Result<Bytes>>> {
    let channel = connect(env, source).await?;
    let mut client = StorageNodeClient::new(channel).max_decoding_message_size(DECODE_BYTES_MAX);
    let timeout = deadline.remaining(env.clock.as_ref());
    let header = CallHeader { timeout, ..header.clone() };
    let mut request = Request::new(GetSegmentRequest {
        header: Some(encode_header(&header)),
        segment_id: description.segment_id.to_wire(),
        ranges: Vec::new(),
    });
    request.set_timeout(timeout);
    let peer: Arc<str> = Arc::from(source);
    let failed = |status: Status| Error::from_status(&status, source);
    let mut replies = client.get_segment(request).await.map_err(failed)?.into_inner();
    let first = replies.message().await.map_err(failed)?;
    let first = required(first, "the first message of a segment")?;
    let held = decode_description(required(first.description.as_ref(), "description")?)?;
    if held.segment_id != description.segment_id || held.sha256 != description.sha256 {
        let text = format!("{source} holds another content for segment {}", description.segment_id);
        return Err(Error::new(ErrorCode::SegmentCorrupt, text));
    }
    let rest = replies.map(move |reply: Result<GetSegmentReply, Status>| match reply {
        Ok(reply) => Ok(reply.data),
        Err(status) => Err(Error::from_status(&status, &peer)),
    });
    Ok(stream::once(async move { Ok(first.data) }).chain(rest).boxed())
}

async fn connect(env: &Environment, source: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{source}"))
        .context(ErrorCode::InvalidMessage, || format!("{source} is no address of a storage node"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let (network, address) = (Arc::clone(&env.network), source.to_owned());
    let connector = tower::service_fn(move |_: Uri| {
        let (network, address) = (Arc::clone(&network), address.clone());
        async move { network.connect(&address).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| {
        Error::new(ErrorCode::NodeUnavailable, format!("storage node {source} does not answer")).source(error)
    })
}
