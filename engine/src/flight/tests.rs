//! The service over a real listener, with arrow-flight's own client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int64Type, Schema};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    ActionCancelQueryRequest, Any, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetPrimaryKeys,
    CommandGetTables, CommandGetXdbcTypeInfo, CommandStatementIngest, CommandStatementQuery, ProstMessageExt, SqlInfo,
    TableDefinitionOptions, TableExistsOption, TableNotExistOption,
};
use arrow_flight::{Action, CancelFlightInfoRequest, FlightDescriptor, FlightInfo, Ticket};
use aubade_environment::{Environment, TaskGroup};
use aubade_proto::{Error, ErrorCode};
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::session_option::{
    GetSessionOptionsResult, OptionValue, SessionOptionValue, SetOptionFailure, SetSessionOptionsRequest,
    SetSessionOptionsResult,
};
use super::*;
use crate::engine::{Engine, EngineOptions};
use crate::query::QueryState;

type Client = FlightSqlServiceClient<Channel>;

/// Rows that no test reads to the end.
const ENDLESS: &str = "SELECT value, repeat('x', 100) AS text FROM generate_series(1, 100000000000)";

struct Server {
    engine: Engine,
    tasks: TaskGroup,
    address: SocketAddr,
}

impl Server {
    async fn start(options: FlightOptions) -> Self {
        let environment = Environment::system();
        let engine = Engine::open_in_memory(environment.clone(), EngineOptions::default()).await.unwrap();
        let listener = environment.network.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap();
        let tasks = TaskGroup::new();
        let (served, group) = (engine.clone(), tasks.clone());
        tasks.spawn_graceful(async move { serve_flight(served, listener, &group, options).await.unwrap() });
        Self { engine, tasks, address }
    }

    async fn client(&self) -> Client {
        FlightSqlServiceClient::new(self.channel().await)
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    async fn stop(self) {
        self.tasks.shutdown().await;
        self.engine.shutdown().await;
    }
}

fn options() -> FlightOptions {
    FlightOptions { shutdown_grace: Duration::from_millis(200), ..FlightOptions::default() }
}

async fn server_and_client() -> (Server, Client) {
    let server = Server::start(options()).await;
    let client = server.client().await;
    (server, client)
}

fn ticket(info: &FlightInfo) -> Ticket {
    info.endpoint[0].ticket.clone().unwrap()
}

async fn open(client: &mut Client, sql: &str) -> Result<FlightRecordBatchStream, Error> {
    let info = client.execute(sql.to_owned(), None).await.map_err(error_of)?;
    client.do_get(ticket(&info)).await.map_err(error_of)
}

async fn query(client: &mut Client, sql: &str) -> Result<Vec<RecordBatch>, Error> {
    open(client, sql).await?.try_collect().await.map_err(error_of)
}

async fn read(client: &mut Client, info: FlightInfo) -> RecordBatch {
    let declared = info.clone().try_decode_schema().unwrap();
    let stream = client.do_get(ticket(&info)).await.unwrap();
    let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    let schema = Arc::new(declared);
    assert!(batches.iter().all(|batch| batch.schema() == schema));
    arrow::compute::concat_batches(&schema, &batches).unwrap()
}

async fn number(client: &mut Client, sql: &str) -> i64 {
    let batches = query(client, sql).await.unwrap();
    batches[0].column(0).as_primitive::<Int64Type>().value(0)
}

fn error_of(error: FlightError) -> Error {
    match error {
        FlightError::Tonic(status) => Error::from_status(&status, "server"),
        other => panic!("not a status: {other:?}"),
    }
}

fn rows_of(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

fn two_columns(numbers: impl IntoIterator<Item = i64>) -> RecordBatch {
    let numbers: Vec<i64> = numbers.into_iter().collect();
    let texts: Vec<String> = numbers.iter().map(|number| format!("text {number}")).collect();
    let columns: Vec<(&str, ArrayRef)> =
        vec![("a", Arc::new(Int64Array::from(numbers))), ("b", Arc::new(StringArray::from(texts)))];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn ingest(table: &str, missing: TableNotExistOption, existing: TableExistsOption) -> CommandStatementIngest {
    let mut options = TableDefinitionOptions::default();
    options.set_if_not_exist(missing);
    options.set_if_exists(existing);
    CommandStatementIngest {
        table_definition_options: Some(options),
        table: table.to_owned(),
        ..CommandStatementIngest::default()
    }
}

async fn act(client: &mut Client, name: &str, body: impl Into<bytes::Bytes>) -> Result<bytes::Bytes, Status> {
    let results = client.do_action(Action::new(name, body.into())).await;
    match results {
        Ok(mut results) => Ok(results.message().await?.unwrap().body),
        Err(FlightError::Tonic(status)) => Err(*status),
        Err(other) => panic!("not a status: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_gives_rows_an_id_and_a_record() {
    let (server, mut client) = server_and_client().await;
    let stream = open(&mut client, "SELECT 1 + 1 AS two").await.unwrap();
    let id = stream.headers().get(QUERY_ID_HEADER).unwrap().to_str().unwrap().to_owned();
    let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    assert_eq!(batches[0].column(0).as_primitive::<Int64Type>().values(), &[2]);
    let record = act(&mut client, QUERY_RECORD_ACTION, id.clone()).await.unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    assert_eq!((record["query_id"].as_str(), record["rows"].as_u64()), (Some(id.as_str()), Some(1)));
    let status = act(&mut client, STATUS_ACTION, "").await.unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["copies"].as_u64(), Some(1));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_with_effects_runs_at_do_get_and_once() {
    let (server, mut client) = server_and_client().await;
    let info = client.execute("CREATE TABLE t (a BIGINT)".to_owned(), None).await.unwrap();
    assert_eq!(query(&mut client, "SELECT * FROM t").await.unwrap_err().code(), ErrorCode::TableNotFound);
    client.do_get(ticket(&info)).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(rows_of(&query(&mut client, "SELECT * FROM t").await.unwrap()), 0);
    let again = client.do_get(ticket(&info)).await.unwrap_err();
    assert_eq!(error_of(again).code(), ErrorCode::HandleNotFound);
    assert_eq!(client.execute_update("INSERT INTO t VALUES (1), (2)".to_owned(), None).await.unwrap(), 2);
    assert_eq!(number(&mut client, "SELECT sum(a) FROM t").await, 3);
    let info = client.execute("EXPLAIN ANALYZE INSERT INTO t VALUES (4)".to_owned(), None).await.unwrap();
    assert_eq!(number(&mut client, "SELECT sum(a) FROM t").await, 3);
    client.do_get(ticket(&info)).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(number(&mut client, "SELECT sum(a) FROM t").await, 7);
    assert_eq!(error_of(client.do_get(ticket(&info)).await.unwrap_err()).code(), ErrorCode::HandleNotFound);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_ticket_may_be_read_again() {
    let (server, mut client) = server_and_client().await;
    let info = client.execute("SELECT 5 AS five".to_owned(), None).await.unwrap();
    for _ in 0..2 {
        let batch = read(&mut client, info.clone()).await;
        assert_eq!(batch.column(0).as_primitive::<Int64Type>().values(), &[5]);
    }
    server.stop().await;
}

/// Waits until the newest query is in a state.
async fn wait_for(server: &Server, state: QueryState) {
    let clock = &server.engine.environment().clock;
    for _ in 0..200 {
        if server.engine.queries().recent().first().is_some_and(|record| record.state == state) {
            return;
        }
        clock.sleep(Duration::from_millis(25)).await;
    }
    panic!("not {state:?}: {:?}", server.engine.queries().recent().first());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_starts_with_its_ticket() {
    let (server, mut client) = server_and_client().await;
    let info = client.execute("SELECT 5 AS five".to_owned(), None).await.unwrap();
    wait_for(&server, QueryState::Running).await;
    let started = server.engine.queries().recent()[0].query_id.to_string();
    let stream = client.do_get(ticket(&info)).await.unwrap();
    assert_eq!(stream.headers().get(QUERY_ID_HEADER).unwrap().to_str().unwrap(), started);
    assert_eq!(rows_of(&stream.try_collect::<Vec<_>>().await.unwrap()), 1);
    assert_eq!(server.engine.queries().recent().len(), 1);
    // Read again, it runs again.
    assert_eq!(read(&mut client, info).await.num_rows(), 1);
    assert_eq!(server.engine.queries().recent().len(), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_nobody_reads_ends_and_its_ticket_stays() {
    let server = Server::start(FlightOptions { early_wait: Duration::from_millis(50), ..options() }).await;
    let mut client = server.client().await;
    let info = client.execute(ENDLESS.to_owned(), None).await.unwrap();
    wait_for(&server, QueryState::Cancelled).await;
    assert!(client.do_get(ticket(&info)).await.unwrap().next().await.unwrap().is_ok());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_columns_only_or_cancels_leaves_nothing_running() {
    let (server, mut client) = server_and_client().await;
    let command = CommandStatementQuery { query: ENDLESS.to_owned(), transaction_id: None };
    let mut low = FlightServiceClient::new(server.channel().await);
    low.get_schema(FlightDescriptor::new_cmd(command.as_any().encode_to_vec())).await.unwrap();
    let prepared = client.prepare(ENDLESS.to_owned(), None).await.unwrap();
    assert!(server.engine.queries().recent().is_empty());
    prepared.close().await.unwrap();
    let info = client.execute(ENDLESS.to_owned(), None).await.unwrap();
    wait_for(&server, QueryState::Running).await;
    act(&mut client, "CancelFlightInfo", CancelFlightInfoRequest::new(info).encode_to_vec()).await.unwrap();
    wait_for(&server, QueryState::Cancelled).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_query_runs_with_the_parameters_bound_last() {
    let (server, mut client) = server_and_client().await;
    let mut prepared = client.prepare("SELECT $1 + 1 AS next".to_owned(), None).await.unwrap();
    assert_eq!(prepared.parameter_schema().unwrap().fields().len(), 1);
    for value in [1_i64, 41] {
        let parameters: Vec<(&str, ArrayRef)> = vec![("$1", Arc::new(Int64Array::from(vec![value])))];
        prepared.set_parameters(RecordBatch::try_from_iter(parameters).unwrap()).unwrap();
        let info = prepared.execute().await.unwrap();
        let batches: Vec<RecordBatch> = client.do_get(ticket(&info)).await.unwrap().try_collect().await.unwrap();
        assert_eq!(batches[0].column(0).as_primitive::<Int64Type>().values(), &[value + 1]);
    }
    prepared.close().await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_query_runs_for_every_row_of_parameters() {
    let (server, mut client) = server_and_client().await;
    let mut prepared = client.prepare("SELECT $1 * 10 AS ten".to_owned(), None).await.unwrap();
    let parameters: Vec<(&str, ArrayRef)> = vec![("$1", Arc::new(Int64Array::from(vec![1, 2, 3])))];
    prepared.set_parameters(RecordBatch::try_from_iter(parameters).unwrap()).unwrap();
    let info = prepared.execute().await.unwrap();
    let batches: Vec<RecordBatch> = client.do_get(ticket(&info)).await.unwrap().try_collect().await.unwrap();
    let values: Vec<i64> =
        batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
    assert_eq!(values, [10, 20, 30]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_that_change_the_result_type_leave_the_schema_open() {
    let (server, mut client) = server_and_client().await;
    let mut prepared = client.prepare("SELECT $1 AS same".to_owned(), None).await.unwrap();
    for values in [Arc::new(Int64Array::from(vec![1])) as ArrayRef, Arc::new(StringArray::from(vec!["x"]))] {
        let data_type = values.data_type().clone();
        prepared.set_parameters(RecordBatch::try_from_iter([("$1", values)]).unwrap()).unwrap();
        let info = prepared.execute().await.unwrap();
        assert!(info.schema.is_empty());
        let batches: Vec<RecordBatch> = client.do_get(ticket(&info)).await.unwrap().try_collect().await.unwrap();
        assert_eq!(batches[0].schema().field(0).data_type(), &data_type);
    }
    server.stop().await;
}

/// The columns of a result that its stream names, with `?` at those that may be null.
fn columns_of(batch: &RecordBatch) -> Vec<String> {
    let schema = batch.schema();
    let mark = |nullable: bool| if nullable { "?" } else { "" };
    schema.fields().iter().map(|field| format!("{}{}", field.name(), mark(field.is_nullable()))).collect()
}

fn names_of(batch: &RecordBatch) -> Vec<String> {
    batch.schema().fields().iter().map(|field| field.name().clone()).collect()
}

async fn get(client: &mut Client, ticket: Ticket) -> RecordBatch {
    let stream = client.do_get(ticket).await.unwrap();
    let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap()
}

fn integers(batch: &RecordBatch) -> Vec<Option<i64>> {
    batch.columns().iter().flat_map(|column| column.as_primitive::<Int64Type>()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_query_has_the_columns_that_its_table_has_now() {
    let (server, mut client) = server_and_client().await;
    let mut other = server.client().await;
    query(&mut other, "CREATE TABLE p AS SELECT 100 AS price, 7 AS cost").await.unwrap();
    let mut prepared = client.prepare("SELECT * FROM p".to_owned(), None).await.unwrap();
    let info = prepared.execute().await.unwrap();
    let by_handle = Ticket::new(info.flight_descriptor.clone().unwrap().cmd);
    let batch = read(&mut client, info.clone()).await;
    assert_eq!((names_of(&batch), integers(&batch)), (vec!["price".into(), "cost".into()], vec![Some(100), Some(7)]));
    for (select, names, values) in [
        ("7 AS cost, 100 AS price", ["cost", "price"].as_slice(), [7, 100].as_slice()),
        ("1 AS cost, 2 AS price, 3 AS more", &["cost", "price", "more"], &[1, 2, 3]),
    ] {
        query(&mut other, "DROP TABLE p").await.unwrap();
        // Before the statement can be asked what it is now.
        let error = error_of(client.do_get(by_handle.clone()).await.unwrap_err());
        assert_eq!(error.code(), ErrorCode::TableNotFound);
        query(&mut other, &format!("CREATE TABLE p AS SELECT {select}")).await.unwrap();
        let expected: Vec<_> = values.iter().copied().map(Some).collect();
        for old in [ticket(&info), by_handle.clone()] {
            let batch = get(&mut client, old).await;
            assert_eq!(
                (names_of(&batch), integers(&batch)),
                (names.iter().map(|&n| n.into()).collect(), expected.clone())
            );
        }
        let info = prepared.execute().await.unwrap();
        let batch = read(&mut client, info).await;
        assert_eq!((names_of(&batch), integers(&batch)), (names.iter().map(|&n| n.into()).collect(), expected));
    }
    prepared.close().await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_query_of_a_changed_table_tells_its_types_or_its_error() {
    let (server, mut client) = server_and_client().await;
    query(&mut client, "CREATE TABLE p AS SELECT 1 AS a").await.unwrap();
    let mut prepared = client.prepare("SELECT a FROM p".to_owned(), None).await.unwrap();
    let info = prepared.execute().await.unwrap();
    query(&mut client, "CREATE OR REPLACE TABLE p AS SELECT 'x' AS a").await.unwrap();
    let mut low = FlightServiceClient::new(server.channel().await);
    let descriptor = info.flight_descriptor.unwrap();
    let told = low.get_schema(descriptor.clone()).await.unwrap().into_inner();
    let told = Schema::try_from(&told).unwrap();
    let info = prepared.execute().await.unwrap();
    assert_eq!(info.clone().try_decode_schema().unwrap(), told);
    assert_eq!(read(&mut client, info).await.schema().as_ref(), &told);
    assert_ne!(told.field(0).data_type(), &DataType::Int64);
    for (change, code) in [
        ("CREATE OR REPLACE TABLE p AS SELECT 1 AS b", ErrorCode::ColumnNotFound),
        ("DROP TABLE p", ErrorCode::TableNotFound),
    ] {
        query(&mut client, change).await.unwrap();
        assert_eq!(error_of(prepared.execute().await.unwrap_err()).code(), code, "{change}");
        let status = low.get_schema(descriptor.clone()).await.unwrap_err();
        assert_eq!(Error::from_status(&status, "server").code(), code, "{change}");
    }
    query(&mut client, "CREATE TABLE p AS SELECT 5 AS a").await.unwrap();
    let info = prepared.execute().await.unwrap();
    assert_eq!(integers(&read(&mut client, info).await), [Some(5)]);
    prepared.close().await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_too_change_the_columns_of_a_prepared_query() {
    let (server, mut client) = server_and_client().await;
    let mut prepared = client.prepare("SELECT 1.5 AS x".to_owned(), None).await.unwrap();
    for as_decimal in ["true", "false"] {
        let set = format!("SET datafusion.sql_parser.parse_float_as_decimal = {as_decimal}");
        query(&mut client, &set).await.unwrap();
        let info = prepared.execute().await.unwrap();
        let is_float = read(&mut client, info).await.schema().field(0).data_type() == &DataType::Float64;
        assert_eq!(is_float, as_decimal == "false");
    }
    prepared.close().await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_column_is_called_never_null_that_may_be_by_now() {
    let (server, mut client) = server_and_client().await;
    query(&mut client, "CREATE TABLE p AS SELECT value AS id FROM generate_series(1, 2)").await.unwrap();
    query(&mut client, "CREATE VIEW pv AS SELECT count(*) AS n FROM p").await.unwrap();
    let sql = "SELECT n FROM pv";
    let mut prepared = client.prepare(sql.to_owned(), None).await.unwrap();
    let infos = [prepared.execute().await.unwrap(), client.execute(sql.to_owned(), None).await.unwrap()];
    for info in &infos {
        assert_eq!(columns_of(&read(&mut client, info.clone()).await), ["n"]);
    }
    query(&mut client, "CREATE OR REPLACE VIEW pv AS SELECT CASE WHEN id > 1 THEN id END AS n FROM p ORDER BY id")
        .await
        .unwrap();
    for info in &infos {
        let batch = get(&mut client, ticket(info)).await;
        assert_eq!((columns_of(&batch), integers(&batch)), (vec!["n?".into()], vec![None, Some(2)]));
    }
    let info = prepared.execute().await.unwrap();
    assert_eq!(columns_of(&read(&mut client, info.clone()).await), ["n?"]);
    // What was told may be more than is needed.
    query(&mut client, "CREATE OR REPLACE VIEW pv AS SELECT count(*) AS n FROM p").await.unwrap();
    assert_eq!(columns_of(&read(&mut client, info).await), ["n?"]);
    prepared.close().await.unwrap();
    server.stop().await;
}

/// The physical plan says of the first three that they may be null, and the client was told otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_elsewhere_leaves_the_columns_as_they_were_told() {
    let (server, mut client) = server_and_client().await;
    query(&mut client, "CREATE TABLE t (a BIGINT NOT NULL, b BIGINT)").await.unwrap();
    query(&mut client, "INSERT INTO t VALUES (1, NULL)").await.unwrap();
    for (number, sql) in [
        "SELECT coalesce(b, 0) AS x FROM t",
        "SELECT (SELECT count(*) FROM t u WHERE u.b = t.a) AS x FROM t",
        "SELECT DISTINCT ON (b) a AS x FROM t ORDER BY b, a",
        "SELECT $1 + coalesce(b, 0) AS x FROM t",
    ]
    .into_iter()
    .enumerate()
    {
        let mut prepared = client.prepare(sql.to_owned(), None).await.unwrap();
        if sql.contains("$1") {
            let parameters: Vec<(&str, ArrayRef)> = vec![("$1", Arc::new(Int64Array::from(vec![1, 2])))];
            prepared.set_parameters(RecordBatch::try_from_iter(parameters).unwrap()).unwrap();
        }
        let info = prepared.execute().await.unwrap();
        read(&mut client, info.clone()).await;
        query(&mut client, &format!("CREATE TABLE other_{number} (a BIGINT)")).await.unwrap();
        read(&mut client, info).await;
        let info = prepared.execute().await.unwrap();
        read(&mut client, info).await;
        prepared.close().await.unwrap();
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_began_before_a_change_has_the_columns_of_before() {
    let (server, mut client) = server_and_client().await;
    query(&mut client, "CREATE TABLE p AS SELECT 100 AS price, 7 AS cost").await.unwrap();
    let info = client.execute("SELECT * FROM p".to_owned(), None).await.unwrap();
    wait_for(&server, QueryState::Running).await;
    query(&mut client, "CREATE OR REPLACE TABLE p AS SELECT 7 AS cost, 100 AS price").await.unwrap();
    for names in [["price", "cost"], ["cost", "price"]] {
        let batch = get(&mut client, ticket(&info)).await;
        assert_eq!(names_of(&batch), names);
        assert_eq!(batch.column_by_name("price").unwrap().as_primitive::<Int64Type>().value(0), 100);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_null_among_several_rows_of_parameters_may_be_null_in_the_result() {
    let (server, mut client) = server_and_client().await;
    let mut prepared = client.prepare("SELECT $1 AS same".to_owned(), None).await.unwrap();
    let parameters: Vec<(&str, ArrayRef)> = vec![("$1", Arc::new(Int64Array::from(vec![Some(1), None])))];
    prepared.set_parameters(RecordBatch::try_from_iter(parameters).unwrap()).unwrap();
    let info = prepared.execute().await.unwrap();
    let batch = get(&mut client, ticket(&info)).await;
    assert_eq!((columns_of(&batch), integers(&batch)), (vec!["same?".into()], vec![Some(1), None]));
    prepared.close().await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_insert_writes_every_row_of_parameters() {
    let (server, mut client) = server_and_client().await;
    query(&mut client, "CREATE TABLE t (a BIGINT, b TEXT)").await.unwrap();
    let mut prepared = client.prepare("INSERT INTO t VALUES ($1, $2)".to_owned(), None).await.unwrap();
    prepared.set_parameters(two_columns(0..100)).unwrap();
    let before = server.engine.snapshot().await.unwrap().version;
    assert_eq!(prepared.execute_update().await.unwrap(), 100);
    let after = server.engine.snapshot().await.unwrap().version;
    assert_eq!(after.0 - before.0, 1, "one commit");
    assert_eq!(number(&mut client, "SELECT sum(a) FROM t WHERE b LIKE 'text %'").await, 4950);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_or_unknown_prepared_statement_is_named() {
    let (server, mut client) = server_and_client().await;
    let prepared = client.prepare("SELECT 1".to_owned(), None).await.unwrap();
    let mut low = FlightServiceClient::new(server.channel().await);
    let command = arrow_flight::sql::CommandPreparedStatementQuery { prepared_statement_handle: "nonsense".into() };
    let status = low.get_flight_info(FlightDescriptor::new_cmd(command.as_any().encode_to_vec())).await.unwrap_err();
    assert_eq!(Error::from_status(&status, "server").code(), ErrorCode::HandleNotFound);
    prepared.close().await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_creates_appends_replaces_or_fails_as_told() {
    use TableExistsOption::{Append, Fail as FailIfExists, Replace};
    use TableNotExistOption::{Create, Fail as FailIfMissing};
    let (server, mut client) = server_and_client().await;
    let mut upload = async |missing, existing, rows: std::ops::Range<i64>| {
        let batches = stream::iter([Ok(two_columns(rows.clone())), Ok(two_columns(rows))]);
        client.execute_ingest(ingest("t", missing, existing), batches).await.map_err(error_of)
    };
    assert_eq!(upload(FailIfMissing, Append, 0..1).await.unwrap_err().code(), ErrorCode::TableNotFound);
    assert_eq!(upload(FailIfMissing, Replace, 0..1).await.unwrap_err().code(), ErrorCode::TableNotFound);
    assert_eq!(upload(Create, FailIfExists, 0..10).await.unwrap(), 20);
    assert_eq!(upload(Create, FailIfExists, 0..10).await.unwrap_err().code(), ErrorCode::AlreadyExists);
    assert_eq!(upload(Create, Append, 10..20).await.unwrap(), 20);
    assert_eq!(upload(FailIfMissing, FailIfExists, 0..1).await.unwrap_err().code(), ErrorCode::InvalidArgument);
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 40);
    let batches = stream::iter([Ok(two_columns(0..3))]);
    assert_eq!(client.execute_ingest(ingest("t", Create, Replace), batches).await.unwrap(), 3);
    assert_eq!(number(&mut client, "SELECT count(*) FROM t").await, 3);
    let temporary = CommandStatementIngest { temporary: true, ..ingest("u", Create, Append) };
    let refused = client.execute_ingest(temporary, stream::iter([Ok(two_columns(0..3))])).await.unwrap_err();
    assert_eq!(error_of(refused).code(), ErrorCode::NotSupported);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_broken_off_leaves_nothing() {
    let (server, mut client) = server_and_client().await;
    let command = ingest("t", TableNotExistOption::Create, TableExistsOption::Append);
    let batches = stream::iter([Ok(two_columns(0..1000))]).chain(stream::pending());
    let clock = Arc::clone(&server.engine.environment().clock);
    tokio::select! {
        result = client.execute_ingest(command, batches) => panic!("the upload ended: {result:?}"),
        () = clock.sleep(Duration::from_millis(300)) => {}
    }
    clock.sleep(Duration::from_millis(200)).await;
    let mut client = server.client().await;
    assert_eq!(query(&mut client, "SELECT * FROM t").await.unwrap_err().code(), ErrorCode::TableNotFound);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn catalogs_schemas_tables_and_types_are_listed() {
    let (server, mut client) = server_and_client().await;
    query(&mut client, "CREATE TABLE t (a BIGINT, b TEXT)").await.unwrap();
    query(&mut client, "CREATE VIEW v AS SELECT a FROM t").await.unwrap();
    let info = client.get_catalogs().await.unwrap();
    assert_eq!(read(&mut client, info).await.column(0).as_string::<i32>().value(0), "aubade");
    let info = client.get_db_schemas(CommandGetDbSchemas::default()).await.unwrap();
    assert_eq!(read(&mut client, info).await.column(1).as_string::<i32>().value(0), "public");
    let info = client.get_table_types().await.unwrap();
    assert_eq!(read(&mut client, info).await.num_rows(), 3);
    let command = CommandGetTables { include_schema: true, ..CommandGetTables::default() };
    let info = client.get_tables(command).await.unwrap();
    let tables = read(&mut client, info).await;
    let names: Vec<_> = tables.column(2).as_string::<i32>().iter().flatten().collect();
    assert_eq!(names, ["t", "v"]);
    let fields = |row: usize| {
        let bytes = bytes::Bytes::copy_from_slice(tables.column(4).as_binary::<i32>().value(row));
        Schema::try_from(arrow_flight::IpcMessage(bytes)).unwrap().fields().len()
    };
    assert_eq!((fields(0), fields(1)), (2, 1));
    let command = CommandGetTables { table_types: vec!["VIEW".to_owned()], ..CommandGetTables::default() };
    let info = client.get_tables(command).await.unwrap();
    assert_eq!(read(&mut client, info).await.num_rows(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_types_and_server_info_have_the_schemas_that_are_declared() {
    let (server, mut client) = server_and_client().await;
    let info = client.get_sql_info(vec![SqlInfo::FlightSqlServerName]).await.unwrap();
    assert_eq!(read(&mut client, info).await.num_rows(), 1);
    let info = client.get_sql_info(vec![]).await.unwrap();
    assert!(read(&mut client, info).await.num_rows() > 40);
    let info = client.get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: None }).await.unwrap();
    assert!(read(&mut client, info).await.num_rows() > 10);
    let table = CommandGetPrimaryKeys { table: "t".to_owned(), ..CommandGetPrimaryKeys::default() };
    let info = client.get_primary_keys(table).await.unwrap();
    assert_eq!(read(&mut client, info).await.num_columns(), 6);
    let table = CommandGetExportedKeys { table: "t".to_owned(), ..CommandGetExportedKeys::default() };
    let info = client.get_exported_keys(table).await.unwrap();
    assert_eq!(read(&mut client, info).await.num_columns(), 13);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_keep_their_code_and_hint() {
    let (server, mut client) = server_and_client().await;
    query(&mut client, "CREATE TABLE lineitem (quantity BIGINT)").await.unwrap();
    for (sql, code) in [
        ("SELEC 1", ErrorCode::SqlSyntax),
        ("SELECT * FROM lineitm", ErrorCode::TableNotFound),
        ("SELECT quantiti FROM lineitem", ErrorCode::ColumnNotFound),
        ("CREATE TABLE lineitem (a INT)", ErrorCode::AlreadyExists),
        ("SELECT 1 / (value - 1) FROM generate_series(1, 3)", ErrorCode::DivisionByZero),
    ] {
        assert_eq!(query(&mut client, sql).await.unwrap_err().code(), code, "{sql}");
    }
    let error = client.begin_transaction().await.unwrap_err();
    assert_eq!(error_of(error).code(), ErrorCode::NotSupported);
    assert_eq!(act(&mut client, "Nonsense", "").await.unwrap_err().code(), Code::Unimplemented);
    let mut low = FlightServiceClient::new(server.channel().await);
    let status = low.get_flight_info(FlightDescriptor::new_path(vec!["a".to_owned()])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_stream_cancels_its_query() {
    let (server, mut client) = server_and_client().await;
    let mut stream = open(&mut client, ENDLESS).await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    drop(stream);
    wait_for(&server, QueryState::Cancelled).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_call_can_cancel_a_running_query() {
    let (server, mut client) = server_and_client().await;
    for old in [false, true] {
        let info = client.execute(ENDLESS.to_owned(), None).await.unwrap();
        let mut stream = client.do_get(ticket(&info)).await.unwrap();
        assert!(stream.next().await.unwrap().is_ok());
        if old {
            let request = ActionCancelQueryRequest { info: info.encode_to_vec().into() };
            act(&mut client, "CancelQuery", request.as_any().encode_to_vec()).await.unwrap();
        } else {
            let request = CancelFlightInfoRequest::new(info);
            act(&mut client, "CancelFlightInfo", request.encode_to_vec()).await.unwrap();
        }
        let error = stream.try_for_each(|_| std::future::ready(Ok(()))).await.unwrap_err();
        assert_eq!(error_of(error).code(), ErrorCode::Cancelled);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_of_a_call_ends_its_stream() {
    let (server, mut client) = server_and_client().await;
    let info = client.execute(ENDLESS.to_owned(), None).await.unwrap();
    let mut request = Request::new(ticket(&info));
    request.set_timeout(Duration::from_millis(400));
    let stream = client.do_get(request).await.unwrap();
    let error = stream.try_for_each(|_| std::future::ready(Ok(()))).await.unwrap_err();
    assert_eq!(error_of(error).code(), ErrorCode::DeadlineExceeded);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_result_comes_in_messages_that_a_default_client_takes() {
    let (server, mut client) = server_and_client().await;
    let sql = "SELECT value, repeat('x', 500) AS text FROM generate_series(1, 50000) ORDER BY value";
    assert_eq!(rows_of(&query(&mut client, sql).await.unwrap()), 50_000);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_above_the_message_limit_is_refused_with_its_size() {
    let (server, mut client) = server_and_client().await;
    client.set_header(MESSAGE_LIMIT_HEADER, "65536");
    let error = query(&mut client, "SELECT repeat('x', 200000) AS wide").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::LimitExceeded);
    assert!(error.message().contains("65536") && error.hint_text().is_some(), "{error:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_belong_to_the_connection() {
    let (server, mut client) = server_and_client().await;
    let show = "SHOW datafusion.execution.batch_size";
    query(&mut client, "SET datafusion.execution.batch_size = 1234").await.unwrap();
    let value = query(&mut client, show).await.unwrap();
    assert!(arrow::util::pretty::pretty_format_batches(&value).unwrap().to_string().contains("1234"));
    let other = query(&mut server.client().await, show).await.unwrap();
    assert!(!arrow::util::pretty::pretty_format_batches(&other).unwrap().to_string().contains("1234"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_session_is_shared_by_connections_and_a_cookie_names_one() {
    let (server, mut first) = server_and_client().await;
    let mut second = server.client().await;
    first.set_header(SESSION_HEADER, "mine");
    second.set_header(SESSION_HEADER, "mine");
    query(&mut first, "PREPARE p AS SELECT 7 AS seven").await.unwrap();
    assert_eq!(number(&mut second, "EXECUTE p").await, 7);

    let mut low = FlightServiceClient::new(server.channel().await);
    let command = CommandStatementQuery { query: "SELECT 1".to_owned(), transaction_id: None };
    let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
    let response = low.get_flight_info(descriptor.clone()).await.unwrap();
    let cookie = response.metadata().get("set-cookie").unwrap().to_str().unwrap();
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let mut request = Request::new(descriptor.clone());
    request.metadata_mut().insert("cookie", cookie.parse().unwrap());
    FlightServiceClient::new(server.channel().await).get_flight_info(request).await.unwrap();
    let mut request = Request::new(descriptor);
    request.metadata_mut().insert("cookie", "arrow_flight_session_id=gone".parse().unwrap());
    let status = low.get_flight_info(request).await.unwrap_err();
    assert_eq!(Error::from_status(&status, "server").code(), ErrorCode::HandleNotFound);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_options_are_set_and_listed() {
    let (server, mut client) = server_and_client().await;
    let text = |value: &str| SessionOptionValue { option_value: Some(OptionValue::Text(value.to_owned())) };
    let request = SetSessionOptionsRequest {
        session_options: [
            (
                "datafusion.execution.batch_size".to_owned(),
                SessionOptionValue { option_value: Some(OptionValue::Whole(77)) },
            ),
            ("no.such.option".to_owned(), text("1")),
            ("bad name'; --".to_owned(), text("1")),
        ]
        .into(),
    };
    let result = act(&mut client, "SetSessionOptions", request.encode_to_vec()).await.unwrap();
    let result = SetSessionOptionsResult::decode(result).unwrap();
    assert_eq!(result.errors.len(), 2);
    assert_eq!(result.errors["no.such.option"].value, i32::from(SetOptionFailure::InvalidName));
    let options = act(&mut client, "GetSessionOptions", "").await.unwrap();
    let options = GetSessionOptionsResult::decode(options).unwrap().session_options;
    assert_eq!(options["datafusion.execution.batch_size"], text("77"));
    assert_eq!(options["schema"], text("public"));
    act(&mut client, "CloseSession", "").await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_can_be_asked_for_alone() {
    let server = Server::start(options()).await;
    let mut low = FlightServiceClient::new(server.channel().await);
    let command = CommandStatementQuery { query: "SELECT 1 AS one, 'x' AS text".to_owned(), transaction_id: None };
    for (command, columns) in [(command.as_any(), 2), (CommandGetTables::default().as_any(), 4)] {
        let command: Any = command;
        let result = low.get_schema(FlightDescriptor::new_cmd(command.encode_to_vec())).await.unwrap().into_inner();
        let schema = Schema::try_from(&result).unwrap();
        assert_eq!(schema.fields().len(), columns);
        assert!(schema.fields().iter().all(|field| field.data_type() != &DataType::Null));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anybody_may_log_in_and_ask_for_the_health() {
    let (server, mut client) = server_and_client().await;
    client.handshake("somebody", "anything").await.unwrap();
    assert!(client.token().is_some());
    assert_eq!(number(&mut client, "SELECT 1").await, 1);
    let mut health = tonic_health::pb::health_client::HealthClient::new(server.channel().await);
    let service = "arrow.flight.protocol.FlightService".to_owned();
    let answer = health.check(tonic_health::pb::HealthCheckRequest { service }).await.unwrap().into_inner();
    assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_service_ends_running_streams_after_its_grace() {
    let server = Server::start(options()).await;
    let mut client = server.client().await;
    let mut stream = open(&mut client, ENDLESS).await.unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    let tasks = server.tasks.clone();
    let (_, ended) = tokio::join!(tasks.shutdown(), stream.try_for_each(|_| std::future::ready(Ok(()))));
    assert_eq!(error_of(ended.unwrap_err()).code(), ErrorCode::ShuttingDown);
    server.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_open_results_are_refused_as_busy() {
    let server = Server::start(FlightOptions { running_max: 1, ..options() }).await;
    let mut client = server.client().await;
    let mut held = open(&mut client, ENDLESS).await.unwrap();
    assert!(held.next().await.unwrap().is_ok());
    assert_eq!(query(&mut client, "SELECT 1").await.unwrap_err().code(), ErrorCode::Busy);
    server.stop().await;
}
