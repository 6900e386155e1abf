//! The gRPC service: messages in, calls of the node, messages out.

use std::sync::Arc;

use aubade_proto::convert::{
    ScanEncoder, decode_description, decode_header, decode_scan_request, encode_description, encode_node_info,
    encode_receipt, required,
};
use aubade_proto::wire::storage as wire;
use aubade_proto::wire::storage::storage_node_server::StorageNode as Service;
use aubade_proto::{Error, ErrorCode, Result, ScanEvent, SegmentId};
use datafusion::execution::TaskContext;
use datafusion::prelude::SessionContext;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::limits::RANGES_MAX;
use crate::node::StorageNode;

type Reply<T> = Result<Response<T>, Status>;
type ReplyStream<T> = BoxStream<'static, Result<T, Status>>;

/// A [`StorageNode`] as tonic sees it.
pub(crate) struct StorageService {
    node: StorageNode,
    /// The functions that fragments may name.
    functions: Arc<TaskContext>,
}

impl StorageService {
    pub(crate) fn new(node: StorageNode) -> Self {
        Self { node, functions: SessionContext::new().task_ctx() }
    }
}

fn encode_events(
    mut encoder: ScanEncoder,
    events: BoxStream<'static, Result<ScanEvent>>,
) -> ReplyStream<wire::ScanReply> {
    let replies = events.map(move |event| event.and_then(|event| encoder.encode(&event)));
    let replies = replies.map_ok(|replies| stream::iter(replies.into_iter().map(Ok::<_, Error>)));
    replies.try_flatten().map_err(|error| error.to_status()).boxed()
}

#[tonic::async_trait]
impl Service for StorageService {
    type ScanStream = ReplyStream<wire::ScanReply>;
    type GetSegmentStream = ReplyStream<wire::GetSegmentReply>;

    async fn info(&self, request: Request<wire::InfoRequest>) -> Reply<wire::InfoReply> {
        let header = decode_header(request.get_ref().header.as_ref())?;
        self.node.check_cluster(&header)?;
        Ok(Response::new(encode_node_info(&self.node.info())))
    }

    async fn scan(&self, request: Request<wire::ScanRequest>) -> Reply<Self::ScanStream> {
        let request = decode_scan_request(request.get_ref(), &self.functions)?;
        let encoder = ScanEncoder::new(request.fragment.output_schema())?.plain(request.plain_columns);
        let events = self.node.scan(request).await?;
        Ok(Response::new(encode_events(encoder, events)))
    }

    async fn put_segment(&self, request: Request<Streaming<wire::PutSegmentRequest>>) -> Reply<wire::PutSegmentReply> {
        let mut messages = request.into_inner();
        let first = required(messages.message().await?, "the first message")?;
        let header = decode_header(first.header.as_ref())?;
        let description = decode_description(required(first.description.as_ref(), "description")?)?;
        let rest = messages.map(|message| match message {
            Ok(message) => Ok(message.data),
            Err(status) => Err(Error::from_status(&status, "the writer")),
        });
        let data = stream::once(async move { Ok(first.data) }).chain(rest).boxed();
        let receipt = self.node.put_segment(&header, &description, data).await?;
        Ok(Response::new(encode_receipt(&receipt)))
    }

    async fn get_segment(&self, request: Request<wire::GetSegmentRequest>) -> Reply<Self::GetSegmentStream> {
        let request = request.into_inner();
        let header = decode_header(request.header.as_ref())?;
        let id = SegmentId::from_wire(&request.segment_id, "segment_id")?;
        let ranges: Vec<_> = request.ranges.iter().map(|range| range.start..range.end).collect();
        if ranges.len() > RANGES_MAX {
            let text = format!("{} ranges of a segment at once; at most {RANGES_MAX} are allowed", ranges.len());
            return Err(Error::new(ErrorCode::LimitExceeded, text).into());
        }
        let (description, chunks) = self.node.get_segment(&header, id, &ranges).await?;
        let first =
            wire::GetSegmentReply { description: Some(encode_description(&description)), data: bytes::Bytes::new() };
        let rest = chunks.map_ok(|data| wire::GetSegmentReply { description: None, data });
        let rest = rest.map_err(|error| error.to_status());
        Ok(Response::new(stream::once(async move { Ok(first) }).chain(rest).boxed()))
    }

    async fn replicate_segment(&self, request: Request<wire::ReplicateSegmentRequest>) -> Reply<wire::PutSegmentReply> {
        let request = request.into_inner();
        let header = decode_header(request.header.as_ref())?;
        let description = decode_description(required(request.description.as_ref(), "description")?)?;
        let receipt = self.node.replicate_segment(&header, &description, &request.sources).await?;
        Ok(Response::new(encode_receipt(&receipt)))
    }

    async fn list_segments(&self, request: Request<wire::ListSegmentsRequest>) -> Reply<wire::ListSegmentsReply> {
        let request = request.into_inner();
        let header = decode_header(request.header.as_ref())?;
        let after = match request.after.is_empty() {
            true => None,
            false => Some(SegmentId::from_wire(&request.after, "after")?),
        };
        let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
        let (segments, more) = self.node.list_segments(&header, after, limit).await?;
        let segments = segments.iter().map(encode_description).collect();
        Ok(Response::new(wire::ListSegmentsReply { segments, more }))
    }

    async fn delete_segments(&self, request: Request<wire::DeleteSegmentsRequest>) -> Reply<wire::DeleteSegmentsReply> {
        let request = request.into_inner();
        let header = decode_header(request.header.as_ref())?;
        let ids = request.segment_ids.iter().map(|id| SegmentId::from_wire(id, "segment_ids"));
        let ids = ids.collect::<Result<Vec<_>>>()?;
        let deleted = self.node.delete_segments(&header, &ids).await?;
        Ok(Response::new(wire::DeleteSegmentsReply { deleted }))
    }

    async fn seal(&self, request: Request<wire::SealRequest>) -> Reply<wire::SealReply> {
        let header = decode_header(request.get_ref().header.as_ref())?;
        let epoch = self.node.seal(&header).await?.0;
        Ok(Response::new(wire::SealReply { epoch }))
    }
}
