"""Queries, statements and prepared statements through the ADBC driver."""

import datetime
import decimal
import threading

import adbc_driver_flightsql.dbapi
import pyarrow as pa
import pytest


def test_a_constant_query_gives_its_row(rows):
    assert rows("select 1 as one, 'two' as two, 3.5 as three") == [(1, "two", 3.5)]


def test_every_common_type_comes_back_as_it_went_in(rows, cursor, name):
    cursor.execute(
        f"""create table {name} (b boolean, i smallint, n integer, l bigint, r real, d double,
            m decimal(12, 2), s varchar, t date, u timestamp, x bytea)"""
    )
    cursor.execute(
        f"""insert into {name} values
            (true, 1, 2, 3, 1.5, 2.5, 12.34, 'é', date '2024-02-29', timestamp '2024-02-29 12:30:00', x'00ff'),
            (null, null, null, null, null, null, null, null, null, null, null)"""
    )
    first, second = rows(f"select * from {name} order by i nulls last")
    assert first[:7] == (True, 1, 2, 3, 1.5, 2.5, decimal.Decimal("12.34"))
    assert first[7:9] == ("é", datetime.date(2024, 2, 29))
    assert first[9].replace(tzinfo=None) == datetime.datetime(2024, 2, 29, 12, 30)
    assert first[10] == b"\x00\xff"
    assert second == (None,) * 11


def test_a_whole_result_is_an_arrow_table(cursor):
    cursor.execute("select value as v, value * 2 as w from generate_series(1, 100000)")
    table = cursor.fetch_arrow_table()
    assert table.num_rows == 100_000
    assert table.column_names == ["v", "w"]
    assert sum(table["w"].to_pylist()) == 2 * 100_000 * 100_001 // 2


def test_a_result_can_be_read_batch_by_batch(cursor):
    cursor.execute("select value from generate_series(1, 100000)")
    reader = cursor.fetch_record_batch()
    assert sum(batch.num_rows for batch in reader) == 100_000


def test_an_empty_result_has_its_schema(cursor):
    cursor.execute("select 1 as a, 'x' as b where false")
    table = cursor.fetch_arrow_table()
    assert table.num_rows == 0
    assert table.column_names == ["a", "b"]


def test_rows_are_read_from_the_storage_nodes(rows, cursor, name):
    cursor.execute(f"create table {name} as select value as id, value % 7 as k from generate_series(1, 50000)")
    assert rows(f"select k, count(*) from {name} where id > 10 group by k order by k limit 2") == [(0, 7141), (1, 7141)]


def test_joins_subqueries_and_windows_work(rows, cursor, name):
    cursor.execute(f"create table {name} as select value as id from generate_series(1, 100)")
    sql = f"""
        with e as (select id, row_number() over (order by id desc) as n from {name} where id % 2 = 0)
        select e.id, e.n from e join {name} o on o.id = e.id
        where e.id in (select max(id) as m from {name}) or e.n = 50 order by e.id"""
    assert rows(sql) == [(2, 50), (100, 1)]


def test_parameters_are_bound(rows, cursor, name):
    cursor.execute(f"create table {name} as select value as id, concat('n', value) as s from generate_series(1, 100)")
    assert rows(f"select s from {name} where id = $1", (42,)) == [("n42",)]
    assert rows(f"select id from {name} where s = $1 and id < $2", ("n7", 50)) == [(7,)]


def test_question_marks_are_parameters_too(rows, cursor, name):
    cursor.execute(f"create table {name} as select value as id from generate_series(1, 10)")
    assert rows(f"select count(*) from {name} where id > ? and id <= ?", (3, 5)) == [(2,)]


def test_one_prepared_statement_runs_with_many_values(cursor, name):
    cursor.execute(f"create table {name} as select value as id from generate_series(1, 1000)")
    sql = f"select count(*) from {name} where id <= $1"
    cursor.adbc_prepare(sql)
    for limit in (0, 1, 500, 1000):
        cursor.execute(sql, (limit,))
        assert cursor.fetchall() == [(limit,)]


def test_prepare_tells_the_types_of_the_parameters(cursor, name):
    cursor.execute(f"create table {name} (id bigint, s varchar)")
    schema = cursor.adbc_prepare(f"select s from {name} where id = $1")
    assert schema is not None and len(schema) == 1
    assert schema.field(0).type == pa.int64()


def test_null_can_be_bound(rows, cursor, name):
    cursor.execute(f"create table {name} as select value as id from generate_series(1, 3)")
    assert rows(f"select count(*) from {name} where id = $1", (None,)) == [(0,)]


def test_executemany_inserts_every_row(rows, cursor, name):
    cursor.execute(f"create table {name} (id bigint, s varchar)")
    cursor.executemany(f"insert into {name} values ($1, $2)", [(1, "a"), (2, "b"), (3, None)])
    assert rows(f"select * from {name} order by id") == [(1, "a"), (2, "b"), (3, None)]


def test_an_insert_says_how_many_rows(cursor, name):
    cursor.execute(f"create table {name} (id bigint)")
    cursor.adbc_statement.set_sql_query(f"insert into {name} select * from generate_series(1, 17)")
    assert cursor.adbc_statement.execute_update() == 17


def test_ddl_and_views(rows, cursor, name):
    cursor.execute(f"create schema s_{name}")
    cursor.execute(f"create table s_{name}.t (id bigint)")
    cursor.execute(f"insert into s_{name}.t values (1), (2)")
    cursor.execute(f"create view v_{name} as select sum(id) as total from s_{name}.t")
    assert rows(f"select * from v_{name}") == [(3,)]
    cursor.execute(f"drop view v_{name}")
    cursor.execute(f"drop table s_{name}.t")
    assert rows(f"select * from information_schema.tables where table_schema = 's_{name}'") == []


def test_show_and_describe(rows, cursor, name):
    cursor.execute(f"create table {name} (id bigint not null, s varchar)")
    assert any(name in row for row in rows("show tables"))
    assert [row[0] for row in rows(f"describe {name}")] == ["id", "s"]


def test_explain_says_what_is_pushed_down(rows, cursor, name):
    cursor.execute(f"create table {name} as select value as id, value as k from generate_series(1, 1000)")
    text = "\n".join(str(row) for row in rows(f"explain select k from {name} where id < 10"))
    assert "StorageScanExec" in text
    assert "id" in text and name in text


def test_explain_analyze_counts_what_the_storage_nodes_did(rows, cursor, name):
    cursor.execute(f"create table {name} as select value as id from generate_series(1, 1000)")
    text = "\n".join(str(row) for row in rows(f"explain analyze select id from {name} where id < 10"))
    assert "StorageScanExec" in text
    assert "bytes_read" in text and "bytes_wire" in text


def test_settings_last_as_long_as_the_connection(rows):
    rows("set datafusion.execution.batch_size = 1024")
    assert rows("show datafusion.execution.batch_size")[0][-1] == "1024"


def test_settings_of_one_connection_are_not_seen_by_another(cluster, rows):
    rows("set datafusion.execution.batch_size = 1024")
    with adbc_driver_flightsql.dbapi.connect(cluster.uri, autocommit=True) as other, other.cursor() as cursor:
        cursor.execute("show datafusion.execution.batch_size")
        assert cursor.fetchall()[0][-1] != "1024"


def test_what_one_connection_writes_another_reads(cluster, cursor, name):
    cursor.execute(f"create table {name} as select 1 as id")
    with adbc_driver_flightsql.dbapi.connect(cluster.uri, autocommit=True) as other, other.cursor() as reader:
        reader.execute(f"select id from {name}")
        assert reader.fetchall() == [(1,)]


def test_many_connections_at_once_get_their_own_answers(cluster, cursor, name):
    cursor.execute(f"create table {name} as select value as id from generate_series(1, 20000)")
    answers = {}

    def ask(number):
        with adbc_driver_flightsql.dbapi.connect(cluster.uri, autocommit=True) as own, own.cursor() as reader:
            reader.execute(f"select count(*) from {name} where id <= $1", (number,))
            answers[number] = reader.fetchone()[0]

    threads = [threading.Thread(target=ask, args=(number * 1000,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {number * 1000: number * 1000 for number in range(12)}


def test_a_value_wider_than_the_usual_message_limit_comes_through(rows):
    (row,) = rows("select repeat('x', 5 * 1024 * 1024) as wide")
    assert len(row[0]) == 5 * 1024 * 1024


def test_a_result_above_the_clients_message_limit_says_so(cluster):
    options = {"adbc.flight.sql.client_option.with_max_msg_size": str(1024 * 1024)}
    with adbc_driver_flightsql.dbapi.connect(cluster.uri, db_kwargs=options, autocommit=True) as small:
        with small.cursor() as cursor, pytest.raises(Exception, match="(?i)larger than max|limit"):
            cursor.execute("select repeat('x', 5 * 1024 * 1024) as wide")
            cursor.fetchall()
        with small.cursor() as cursor:
            cursor.execute("select 1")
            assert cursor.fetchall() == [(1,)]


def test_many_narrow_rows_come_through_a_small_message_limit(cluster):
    options = {"adbc.flight.sql.client_option.with_max_msg_size": str(4 * 1024 * 1024)}
    with adbc_driver_flightsql.dbapi.connect(cluster.uri, db_kwargs=options, autocommit=True) as small:
        with small.cursor() as cursor:
            cursor.execute("select value, repeat('x', 1000) as s from generate_series(1, 20000)")
            assert cursor.fetch_arrow_table().num_rows == 20_000


def test_polars_reads_a_query(connection, cursor, name):
    polars = pytest.importorskip("polars")
    cursor.execute(f"create table {name} as select value as id from generate_series(1, 10)")
    frame = polars.read_database(f"select id from {name} where id > 5 order by id", connection)
    assert frame["id"].to_list() == [6, 7, 8, 9, 10]
