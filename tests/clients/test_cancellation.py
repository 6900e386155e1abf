"""A client that gives up, in any of the ways a client has, stops the work of the whole cluster."""

import threading
import time

import adbc_driver_flightsql.dbapi
import pytest

# Hours of work on any machine; no test waits for its end.
ENDLESS = "select sum(value) from generate_series(1, 100000000000000)"


@pytest.fixture
def big(cursor, name):
    cursor.execute(f"create table {name} as select value as id, repeat('x', 100) as s from generate_series(1, 1000000)")
    return name


def test_cancel_ends_a_running_query_at_once(cluster, connection):
    with connection.cursor() as cursor:
        timer = threading.Timer(1.0, cursor.adbc_cancel)
        started = time.monotonic()
        timer.start()
        with pytest.raises(Exception, match="(?i)cancel"):
            cursor.execute(ENDLESS)
            cursor.fetchall()
        assert time.monotonic() - started < 15
    assert cluster.wait_idle()


def test_a_dropped_reader_stops_the_scan(cluster, connection, big):
    with connection.cursor() as cursor:
        cursor.execute(f"select a.id, a.s from {big} a, {big} b")
        reader = cursor.fetch_record_batch()
        assert reader.read_next_batch().num_rows > 0
        reader.close()
    assert cluster.wait_idle()


def test_a_closed_connection_stops_its_query(cluster):
    connection = adbc_driver_flightsql.dbapi.connect(cluster.uri, autocommit=True)
    cursor = connection.cursor()
    cursor.execute("select a.value from generate_series(1, 1000000) a, generate_series(1, 1000000) b")
    reader = cursor.fetch_record_batch()
    assert reader.read_next_batch().num_rows > 0
    reader.close()
    cursor.close()
    connection.close()
    assert cluster.wait_idle()


def test_the_connection_works_after_a_cancel(connection):
    with connection.cursor() as cursor:
        threading.Timer(0.5, cursor.adbc_cancel).start()
        with pytest.raises(Exception, match="(?i)cancel"):
            cursor.execute(ENDLESS)
            cursor.fetchall()
    with connection.cursor() as cursor:
        cursor.execute("select 1")
        assert cursor.fetchall() == [(1,)]


def test_a_slow_reader_holds_the_scan_back(cluster, connection, big):
    with connection.cursor() as cursor:
        cursor.execute(f"select a.id, a.s from {big} a, generate_series(1, 1000) b")
        reader = cursor.fetch_record_batch()
        reader.read_next_batch()
        # Buffers fill; then nobody computes rows that nobody reads.
        assert cluster.wait_idle()
        assert cluster.coordinator.peak_memory_bytes() < 2 * 1024**3
        reader.close()
