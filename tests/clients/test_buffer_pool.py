"""The buffer pool of the coordinator, as a user meets it."""

import contextlib
import threading
import time

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


def eventually(cursor, sql, expected):
    """Waits until a query gives these rows."""
    deadline = time.monotonic() + 30
    while (rows := ask(cursor, sql)) != expected:
        assert time.monotonic() < deadline, rows


@contextlib.contextmanager
def session(cluster):
    with adbc_driver_flightsql.dbapi.connect(cluster.uri, autocommit=True) as connection, connection.cursor() as cursor:
        yield cursor


def test_the_pool_fills_from_its_disk_after_a_kill(tmp_path):
    disk = ("--buffer-pool-disk", str(tmp_path / "pool"), "--buffer-pool-disk-size", "64MiB")
    cluster = Cluster(tmp_path, nodes=3, copies=3, serve_arguments=("--buffer-pool", "64MiB", *disk))
    try:
        with session(cluster) as cursor:
            for _ in range(4):
                values = "select value as a, value % 5 as b, 'row ' || value as c from generate_series(1, 100000)"
                exists = ask(cursor, "select count(*) from information_schema.tables where table_name = 't'")[0][0]
                cursor.execute(f"insert into t {values}" if exists else f"create table t as {values}")
            expected = ask(cursor, SQL)
        for pause in (0.0, 0.02, 0.1):
            with session(cluster) as cursor:
                cursor.execute("discard buffers")

            command = ("sql", "--url", cluster.uri, "-c", "cache table t")
            # It fails: the connection breaks.
            thread = threading.Thread(target=cluster.run, args=command, kwargs={"check": False})
            thread.start()
            time.sleep(pause)
            cluster.coordinator.kill()
            thread.join()
            cluster.start_coordinator()
            with session(cluster) as cursor:
                assert ask(cursor, SQL) == expected
                assert ask(cursor, "select value from system.metrics where name = 'buffer_pool_disk_damaged'") == [(0,)]
        with session(cluster) as cursor:
            cursor.execute("cache table t")
        cluster.coordinator.kill()
        cluster.start_coordinator()
        with session(cluster) as cursor:
            # Nobody asks for them.
            eventually(cursor, "select count(*) from system.buffer_pool where table_name = 't' and segments = 4", [(3,)])
            assert ask(cursor, "select value from system.metrics where name = 'buffer_pool_disk_misses'") == [(0,)]
            cursor.execute("create table u as select value as a, value * 7 % 1000003 as b from generate_series(1, 300000)")
            cursor.execute("cache table u (a)")
            for node in cluster.nodes:
                node.kill()
            assert ask(cursor, SQL.replace("% 3", "% 4")) != expected
            # That nodes are away says nothing against what is on the disk.
            held = "select value from system.metrics where name = 'buffer_pool_disk_bytes'"
            before = ask(cursor, held)
            with pytest.raises(Exception, match="SEGMENT_UNAVAILABLE|NODE_UNAVAILABLE"):
                cursor.execute("cache table u (b)")
            assert ask(cursor, held) == before
    finally:
        logs = cluster.logs()
        cluster.stop()
    assert "panicked" not in logs


@pytest.mark.parametrize("arguments, logged", [(("--memory-limit", "1000TiB"), True), (("--buffer-pool", "0"), False)])
def test_a_coordinator_without_a_pool_says_so(tmp_path, arguments, logged):
    cluster = Cluster(tmp_path, nodes=1, copies=1, serve_arguments=arguments)
    try:
        with session(cluster) as cursor:
            cursor.execute("create table t as select 1 as a")
            for sql in ("cache table t", "uncache table if exists t"):
                with pytest.raises(Exception, match=r"pool of this coordinator is off \(NOT_SUPPORTED\)\n.*--buffer-pool SIZE"):
                    cursor.execute(sql)
            # There are results of fragments to forget.
            cursor.execute("discard buffers")
            cursor.execute("discard all")
        # Nobody has to be told of what they asked for.
        assert ("the buffer pool is off" in cluster.logs()) == logged
    finally:
        cluster.stop()


def test_a_folder_that_will_not_do_is_refused_before_anything_changes(pooled, tmp_path):
    other = tmp_path / "other"
    other.mkdir()

    def serve(url, folder, *options, pool="64MiB"):
        arguments = ("--listen", "127.0.0.1:0", "--buffer-pool", pool, "--buffer-pool-disk", str(folder), *options)
        done = pooled.run("serve", "--cluster", url, *arguments, check=False)
        assert done.returncode != 0
        return done.stderr

    (tmp_path / "file").write_text("not a folder")
    assert "cannot be made" in serve(pooled.url, tmp_path / "file")
    assert "too small" in serve(pooled.url, tmp_path / "pool", "--buffer-pool-disk-size", "16")
    assert "no memory" in serve(pooled.url, tmp_path / "pool", pool="0")
    assert "too small" in serve(pooled.url, tmp_path / "pool", pool="1KiB")
    assert "more than the memory" in serve(pooled.url, tmp_path / "pool", "--fragment-cache", "1000TiB")
    assert "others may need that" in serve(pooled.url, tmp_path)
    second = Cluster(other, nodes=1, copies=1, serve_arguments=("--buffer-pool-disk", str(tmp_path / "pool")))
    try:
        assert "IN_USE" in serve(pooled.url, tmp_path / "pool")
        second.coordinator.kill()
        assert "WRONG_CLUSTER" in serve(pooled.url, tmp_path / "pool")
    finally:
        second.stop()
    # It is still the coordinator.
    with session(pooled) as cursor:
        cursor.execute("create table u as select 1 as a")
