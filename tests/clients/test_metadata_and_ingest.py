"""What drivers ask of a database besides queries: its objects, schemas, and bulk loading."""

import decimal

import pyarrow as pa
import pytest


@pytest.fixture
def table(cursor, name):
    cursor.execute(f"create table {name} (id bigint not null, s varchar, m decimal(10, 2))")
    return name


def tables_of(catalogs, schema):
    """Names and column names of the tables of one schema, out of the nested reply."""
    for catalog in catalogs:
        for found in catalog["catalog_db_schemas"] or []:
            if found["db_schema_name"] == schema:
                return {
                    entry["table_name"]: [column["column_name"] for column in entry["table_columns"] or []]
                    for entry in found["db_schema_tables"] or []
                }
    return {}


def test_objects_down_to_catalogs(connection):
    catalogs = connection.adbc_get_objects(depth="catalogs").read_all().to_pylist()
    assert "aubade" in [catalog["catalog_name"] for catalog in catalogs]


def test_objects_down_to_schemas(connection):
    catalogs = connection.adbc_get_objects(depth="db_schemas").read_all().to_pylist()
    schemas = [schema["db_schema_name"] for catalog in catalogs for schema in catalog["catalog_db_schemas"]]
    assert "public" in schemas


def test_objects_down_to_tables(connection, table):
    catalogs = connection.adbc_get_objects(depth="tables").read_all().to_pylist()
    assert table in tables_of(catalogs, "public")


def test_objects_down_to_columns(connection, table):
    catalogs = connection.adbc_get_objects(depth="all").read_all().to_pylist()
    assert tables_of(catalogs, "public")[table] == ["id", "s", "m"]


def test_objects_can_be_filtered_by_name(connection, table):
    found = connection.adbc_get_objects(depth="tables", db_schema_filter="public", table_name_filter=table)
    assert list(tables_of(found.read_all().to_pylist(), "public")) == [table]


def test_objects_can_be_filtered_by_kind(connection, cursor, table):
    cursor.execute(f"create view v_{table} as select id from {table}")
    found = connection.adbc_get_objects(depth="tables", table_types_filter=["VIEW"]).read_all().to_pylist()
    names = tables_of(found, "public")
    assert f"v_{table}" in names and table not in names


def test_kinds_of_tables(connection):
    kinds = connection.adbc_get_table_types()
    assert any("TABLE" in kind for kind in kinds)
    assert any("VIEW" in kind for kind in kinds)


def test_the_schema_of_a_table(connection, table):
    schema = connection.adbc_get_table_schema(table)
    assert schema.names == ["id", "s", "m"]
    assert schema.field("id").type == pa.int64() and not schema.field("id").nullable
    assert schema.field("m").type == pa.decimal128(10, 2)


def test_the_schema_of_an_unknown_table_is_an_error(connection):
    with pytest.raises(Exception):
        connection.adbc_get_table_schema("no_such_table")


def test_the_server_says_who_it_is(connection):
    info = connection.adbc_get_info()
    assert "aubade" in str(info["vendor_name"]).lower()
    assert info["vendor_version"]


@pytest.fixture
def data():
    return pa.table(
        {
            "id": pa.array([1, 2, 3], pa.int64()),
            "s": pa.array(["a", None, "c"]),
            "m": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-2.25")], pa.decimal128(10, 2)),
        }
    )


def test_ingest_makes_a_table(cursor, rows, name, data):
    assert cursor.adbc_ingest(name, data, mode="create") == 3
    assert rows(f"select * from {name} order by id") == [
        (1, "a", decimal.Decimal("1.50")),
        (2, None, None),
        (3, "c", decimal.Decimal("-2.25")),
    ]


def test_ingest_does_not_make_a_table_twice(cursor, rows, name, data):
    cursor.adbc_ingest(name, data, mode="create")
    with pytest.raises(Exception, match="ALREADY_EXISTS|exists"):
        cursor.adbc_ingest(name, data, mode="create")
    assert rows(f"select count(*) from {name}") == [(3,)]


def test_ingest_appends(cursor, rows, name, data):
    cursor.adbc_ingest(name, data, mode="create")
    cursor.adbc_ingest(name, data, mode="append")
    assert rows(f"select count(*), sum(id) from {name}") == [(6, 12)]


def test_ingest_does_not_append_to_what_is_not_there(cursor, name, data):
    with pytest.raises(Exception, match="TABLE_NOT_FOUND|not found"):
        cursor.adbc_ingest(name, data, mode="append")


def test_ingest_replaces(cursor, rows, name, data):
    cursor.adbc_ingest(name, data, mode="create")
    cursor.adbc_ingest(name, pa.table({"other": [7]}), mode="replace")
    assert rows(f"select * from {name}") == [(7,)]


def test_ingest_makes_or_appends(cursor, rows, name, data):
    cursor.adbc_ingest(name, data, mode="create_append")
    cursor.adbc_ingest(name, data, mode="create_append")
    assert rows(f"select count(*) from {name}") == [(6,)]


def test_ingest_of_other_columns_is_refused_and_leaves_nothing(cursor, rows, name, data):
    cursor.adbc_ingest(name, data, mode="create")
    with pytest.raises(Exception):
        cursor.adbc_ingest(name, pa.table({"unknown": ["x"]}), mode="append")
    assert rows(f"select count(*) from {name}") == [(3,)]


def test_ingest_into_a_schema(cursor, rows, name, data):
    cursor.execute(f"create schema s_{name}")
    cursor.adbc_ingest(name, data, mode="create", db_schema_name=f"s_{name}")
    assert rows(f"select count(*) from s_{name}.{name}") == [(3,)]


def test_ingest_of_many_batches_is_one_load(cursor, rows, name):
    schema = pa.schema({"id": pa.int64(), "s": pa.string()})

    def batches():
        for start in range(0, 300_000, 10_000):
            ids = range(start, start + 10_000)
            yield pa.record_batch([pa.array(ids, pa.int64()), pa.array([f"s{i % 100}" for i in ids])], schema=schema)

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    assert cursor.adbc_ingest(name, reader, mode="create") == 300_000
    assert rows(f"select count(*), sum(id), count(distinct s) from {name}") == [(300_000, 44_999_850_000, 100)]


def test_a_load_that_breaks_off_leaves_nothing(cursor, rows, name):
    schema = pa.schema({"id": pa.int64()})

    def batches():
        yield pa.record_batch([pa.array(range(10_000), pa.int64())], schema=schema)
        raise RuntimeError("the source broke")

    with pytest.raises(Exception):
        cursor.adbc_ingest(name, pa.RecordBatchReader.from_batches(schema, batches()), mode="create")
    assert rows(f"select * from information_schema.tables where table_name = '{name}'") == []
