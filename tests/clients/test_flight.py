"""The protocol below the drivers: plain Arrow Flight, with messages encoded by hand."""

import pyarrow.flight
import pytest

from records import action, command, query_record, read, statement


def test_a_statement_runs(client):
    info, tables = read(client, statement("select value as v from generate_series(1, 1000)"))
    assert info.schema.names == ["v"]
    assert sum(table.num_rows for table in tables) == 1000


def test_the_schema_of_a_statement(client):
    schema = client.get_schema(statement("select 1 as a, 'x' as b")).schema
    assert schema.names == ["a", "b"]


def test_catalogs_schemas_and_table_types(client):
    _, (catalogs,) = read(client, command("CommandGetCatalogs"))
    assert "aubade" in catalogs["catalog_name"].to_pylist()
    _, (schemas,) = read(client, command("CommandGetDbSchemas"))
    assert "public" in schemas["db_schema_name"].to_pylist()
    _, (kinds,) = read(client, command("CommandGetTableTypes"))
    assert kinds.num_rows > 0


def test_a_handshake_is_answered_though_nobody_must_log_in(client):
    client.authenticate_basic_token("anybody", "anything")


def test_actions_are_listed(client):
    kinds = {found.type for found in client.list_actions()}
    assert {"CreatePreparedStatement", "ClosePreparedStatement", "aubade.status", "aubade.query_record"} <= kinds


def test_the_status_of_the_cluster(client, cluster):
    status = action(client, "aubade.status")
    assert len(status["nodes"]) == len(cluster.nodes)
    assert {node["zone"] for node in status["nodes"]} == {"az1", "az2", "az3"}
    assert all(node["alive"] for node in status["nodes"])


def test_every_query_leaves_a_record(cluster, cursor, name):
    cursor.execute(f"create table {name} as select value as id from generate_series(1, 1000)")
    record = query_record(cluster.uri, f"select id from {name} where id <= 10")
    assert record["state"] == "finished"
    assert record["rows"] == 10
    assert record["segments_scanned"] == 1
    assert 0 < record["bytes_wire"]
    assert 0 < record["bytes_read"]


def test_a_filter_at_the_storage_nodes_saves_the_wire(cluster, cursor, name):
    cursor.execute(f"create table {name} as select value as id, concat('s', value) as s from generate_series(1, 200000)")
    everything = query_record(cluster.uri, f"select id, s from {name}")
    little = query_record(cluster.uri, f"select id, s from {name} where id % 1000 = 7")
    assert little["rows"] == 200
    assert little["bytes_wire"] * 50 < everything["bytes_wire"]


def test_an_unknown_record_is_refused(client):
    with pytest.raises(Exception, match="HANDLE_NOT_FOUND"):
        action(client, "aubade.query_record", b"01890000-0000-7000-8000-000000000000")


def test_an_unknown_ticket_is_refused(client):
    with pytest.raises(Exception):
        client.do_get(pyarrow.flight.Ticket(b"no such ticket")).read_all()


def test_an_unknown_action_is_refused(client):
    with pytest.raises(Exception):
        list(client.do_action(("aubade.nonsense", b"")))


def test_an_unknown_command_is_refused(client):
    with pytest.raises(Exception):
        client.get_flight_info(command("CommandNonsense"))
