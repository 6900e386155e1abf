//! Storage nodes over gRPC.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aubade_catalog::NodeEntry;
use aubade_environment::{Environment, Network};
use aubade_proto::convert::{
    ScanDecoder, decode_description, decode_node_info, decode_receipt, encode_description, encode_header,
    encode_scan_request,
};
use aubade_proto::wire::storage as wire;
use aubade_proto::wire::storage::storage_node_client::StorageNodeClient;
use aubade_proto::{
    CallHeader, Epoch, Error, ErrorCode, NodeInfo, PutReceipt, Result, ResultExt, ScanRequest, SegmentDescription,
    SegmentId,
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{ScanStream, StorageClient, StorageClients, cut_apart};
use crate::limits::{CONNECT_TIMEOUT, NODE_MESSAGE_BYTES_MAX, UPLOAD_CHUNK_BYTES};

/// Pings find a peer that stopped answering without closing its connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// About one batch: what a scan that nobody reads on may leave in memory.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Room for the windows of all calls that a node takes on one connection (200): with less, scans whose clients read
/// slowly would keep all other queries from receiving anything.
const CONNECTION_WINDOW_BYTES: u32 = 200 * STREAM_WINDOW_BYTES;
/// With the default of 16 KiB, the handling of frames is a good part of what a scan costs.
const FRAME_BYTES: u32 = 1 << 20;

/// Connects to nodes through the environment's network.
#[derive(Debug)]
pub(crate) struct GrpcClients {
    network: Arc<dyn Network>,
}

impl GrpcClients {
    pub(crate) fn new(environment: &Environment) -> Self {
        Self { network: Arc::clone(&environment.network) }
    }
}

impl StorageClients for GrpcClients {
    fn client(&self, node: &NodeEntry) -> Result<Arc<dyn StorageClient>> {
        let endpoint = Endpoint::from_shared(format!("http://{}", node.address))
            .context(ErrorCode::InvalidArgument, || {
                format!("storage node {} has the address {:?}", node.id, node.address)
            })?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES);
        let network = Arc::clone(&self.network);
        let address = node.address.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let (network, address) = (Arc::clone(&network), address.clone());
            async move { network.connect(&address).await.map(TokioIo::new) }
        });
        let channel = endpoint.connect_with_connector_lazy(connector);
        let client = StorageNodeClient::new(channel)
            .max_decoding_message_size(NODE_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(NODE_MESSAGE_BYTES_MAX);
        Ok(Arc::new(GrpcClient { client, peer: format!("storage node {} at {}", node.id, node.address) }))
    }
}

#[derive(Debug)]
struct GrpcClient {
    client: StorageNodeClient<Channel>,
    peer: String,
}

impl GrpcClient {
    fn error(&self, status: &tonic::Status) -> Error {
        Error::from_status(status, &self.peer)
    }

    /// A request that carries its deadline to the node and gives up here too.
    fn request<T>(message: T, timeout: Duration) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(timeout);
        request
    }
}

#[async_trait]
impl StorageClient for GrpcClient {
    async fn scan(&self, request: ScanRequest) -> Result<ScanStream> {
        let message = encode_scan_request(&request)?;
        let timeout = request.header.timeout;
        let reply =
            self.client.clone().scan(Self::request(message, timeout)).await.map_err(|status| self.error(&status))?;
        let peer = self.peer.clone();
        let mut decoder = ScanDecoder::new(Arc::clone(request.fragment.output_schema()))?;
        let events = reply.into_inner().map(move |message| match message {
            Ok(message) => decoder.decode(message),
            Err(status) => Err(Error::from_status(&status, &peer)),
        });
        Ok(events.try_filter_map(|event| std::future::ready(Ok(event))).boxed())
    }

    async fn info(&self, header: &CallHeader) -> Result<NodeInfo> {
        let message = wire::InfoRequest { header: Some(encode_header(header)) };
        let reply = self.client.clone().info(Self::request(message, header.timeout)).await;
        decode_node_info(&reply.map_err(|status| self.error(&status))?.into_inner())
    }

    async fn put_segment(
        &self,
        header: &CallHeader,
        description: &SegmentDescription,
        data: Bytes,
    ) -> Result<PutReceipt> {
        let first = wire::PutSegmentRequest {
            header: Some(encode_header(header)),
            description: Some(encode_description(description)),
            data: Bytes::new(),
        };
        let starts = (0..data.len()).step_by(UPLOAD_CHUNK_BYTES);
        let chunks = starts.map(move |start| {
            let end = data.len().min(start + UPLOAD_CHUNK_BYTES);
            wire::PutSegmentRequest { header: None, description: None, data: data.slice(start..end) }
        });
        let messages = stream::iter(std::iter::once(first).chain(chunks));
        let reply = self.client.clone().put_segment(Self::request(messages, header.timeout)).await;
        decode_receipt(&reply.map_err(|status| self.error(&status))?.into_inner())
    }

    async fn read_ranges(&self, header: &CallHeader, id: SegmentId, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let message = wire::GetSegmentRequest {
            header: Some(encode_header(header)),
            segment_id: id.to_wire(),
            ranges: ranges.iter().map(|range| wire::ByteRange { start: range.start, end: range.end }).collect(),
        };
        let reply = self.client.clone().get_segment(Self::request(message, header.timeout)).await;
        let mut replies = reply.map_err(|status| self.error(&status))?.into_inner();
        let wanted: u64 = ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum();
        let mut bytes = BytesMut::new();
        while let Some(reply) = replies.message().await.map_err(|status| self.error(&status))? {
            bytes.extend_from_slice(&reply.data);
            if bytes.len() as u64 > wanted {
                let text = format!("{} sent more bytes than it was asked for", self.peer);
                return Err(Error::new(ErrorCode::InvalidMessage, text));
            }
        }
        cut_apart(ranges, bytes.freeze())
    }

    async fn replicate_segment(
        &self,
        header: &CallHeader,
        description: &SegmentDescription,
        sources: &[String],
    ) -> Result<PutReceipt> {
        let message = wire::ReplicateSegmentRequest {
            header: Some(encode_header(header)),
            description: Some(encode_description(description)),
            sources: sources.to_vec(),
        };
        let reply = self.client.clone().replicate_segment(Self::request(message, header.timeout)).await;
        decode_receipt(&reply.map_err(|status| self.error(&status))?.into_inner())
    }

    async fn list_segments(
        &self,
        header: &CallHeader,
        after: Option<SegmentId>,
        limit: usize,
    ) -> Result<(Vec<SegmentDescription>, bool)> {
        let message = wire::ListSegmentsRequest {
            header: Some(encode_header(header)),
            after: after.map(SegmentId::to_wire).unwrap_or_default(),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
        };
        let reply = self.client.clone().list_segments(Self::request(message, header.timeout)).await;
        let reply = reply.map_err(|status| self.error(&status))?.into_inner();
        let segments = reply.segments.iter().map(decode_description).collect::<Result<_>>()?;
        Ok((segments, reply.more))
    }

    async fn delete_segments(&self, header: &CallHeader, ids: &[SegmentId]) -> Result<u64> {
        let message = wire::DeleteSegmentsRequest {
            header: Some(encode_header(header)),
            segment_ids: ids.iter().map(|id| id.to_wire()).collect(),
        };
        let reply = self.client.clone().delete_segments(Self::request(message, header.timeout)).await;
        Ok(reply.map_err(|status| self.error(&status))?.into_inner().deleted)
    }

    async fn seal(&self, header: &CallHeader) -> Result<Epoch> {
        let message = wire::SealRequest { header: Some(encode_header(header)) };
        let reply = self.client.clone().seal(Self::request(message, header.timeout)).await;
        Ok(Epoch(reply.map_err(|status| self.error(&status))?.into_inner().epoch))
    }
}
