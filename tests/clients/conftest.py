"""One cluster for all tests; each test gets its own connection and its own table names."""

import itertools
import sys

import adbc_driver_flightsql.dbapi
import pytest

from cluster import Cluster
from records import connect


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    logs = cluster.logs()
    codes = cluster.stop()
    if any(codes):
        print(logs, file=sys.stderr)
    assert codes == [0] * len(codes), "every process ends with 0 when it is asked to stop"
    assert "panicked" not in logs


@pytest.fixture
def connection(cluster):
    with adbc_driver_flightsql.dbapi.connect(cluster.uri, autocommit=True) as connection:
        yield connection


@pytest.fixture
def cursor(connection):
    with connection.cursor() as cursor:
        yield cursor


@pytest.fixture
def client(cluster):
    with connect(cluster.uri) as client:
        yield client


_numbers = itertools.count(1)


@pytest.fixture
def name():
    """A table name that no other test uses."""
    return f"t{next(_numbers)}"


@pytest.fixture
def rows(cursor):
    """Runs a query and returns its rows."""

    def run(sql, parameters=None):
        cursor.execute(sql, parameters)
        return cursor.fetchall()

    return run
