"""The buffer pool of the coordinator, as a user meets it."""

import adbc_driver_flightsql.dbapi
import pytest

from cluster import Cluster
from records import query_record

SQL = "select b, count(*), sum(a) from t where a % 3 = 1 group by b order by b"


@pytest.fixture
def pooled(tmp_path):
    cluster = Cluster(tmp_path, nodes=3, copies=3, serve_arguments=("--buffer-pool", "64MiB"))
    yield cluster
    logs = cluster.logs()
    cluster.stop()
    assert "panicked" not in logs


@pytest.fixture
def cursor(pooled):
    with adbc_driver_flightsql.dbapi.connect(pooled.uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("create table t as select value as a, value % 5 as b from generate_series(1, 300000)")
        yield cursor


def ask(cursor, sql):
    cursor.execute(sql)
    return cursor.fetchall()


def test_a_cached_table_needs_no_storage_node(pooled, cursor):
    expected = ask(cursor, SQL)
    cursor.execute("cache table t")
    record = query_record(pooled.uri, SQL.replace("% 3", "% 4"))
    assert record["segments_pooled"] == record["segments_scanned"] > 0
    assert record["bytes_wire"] == 0
    for node in pooled.nodes:
        node.kill()
    assert ask(cursor, SQL) == expected
    columns = ask(cursor, "select column_name, pinned, bytes > 0 from system.buffer_pool where table_name = 't' order by 1")
    assert columns == [("a", True, True), ("b", True, True)]
    cursor.execute("uncache table t")
    with pytest.raises(Exception, match="SEGMENT_UNAVAILABLE"):
        ask(cursor, SQL.replace("% 3", "% 7"))


def test_what_does_not_fit_is_refused(pooled, cursor):
    cursor.execute("create table large as select value as a from generate_series(1, 10000000)")
    with pytest.raises(Exception, match=r"LIMIT_EXCEEDED\)\n.*--buffer-pool"):
        cursor.execute("cache table large")
    done = pooled.run("serve", "--cluster", pooled.url, "--listen", "127.0.0.1:0", "--buffer-pool", "1000TiB", check=False)
    assert done.returncode != 0
    assert "--buffer-pool" in done.stderr and "memory" in done.stderr
