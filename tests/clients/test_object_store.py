"""A cluster whose manifest is in an S3 bucket, and what a bucket can do to it."""

import itertools
import socket
import time

import adbc_driver_flightsql.dbapi
import pytest

from cluster import Cluster, eventually, run
from object_store import BUCKET, KEY_ID, ObjectStore, Refusal

URL = f"s3://{BUCKET}/some/prefix"
SLOW_DOWN = Refusal(503, "SlowDown")
# The work was done and its answer was lost.
LOST = Refusal(500, "InternalError", done=True)
# No command may keep its user waiting for longer, whatever the store does.
PATIENCE_SECONDS = 60.0


def ask(cluster, sql):
    with adbc_driver_flightsql.dbapi.connect(cluster.uri, autocommit=True) as connection:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()


@pytest.fixture
def store():
    store = ObjectStore()
    yield store
    store.stop()


@pytest.fixture
def aubade(store):
    """Runs one command with the variables of the store, or others, and returns what it wrote."""
    return lambda *arguments, **variables: run(
        *arguments, check=False, timeout=PATIENCE_SECONDS, env=store.environment(**variables)
    )


@pytest.fixture
def start(store, tmp_path):
    """Starts a cluster in the bucket, of three nodes with a copy each."""
    started = []

    def start(**options):
        cluster = Cluster(tmp_path, nodes=3, copies=3, url=URL, env=store.environment(**options))
        started.append(cluster)
        return cluster

    yield start
    for cluster in started:
        logs = cluster.logs()
        cluster.stop()
        assert "panicked" not in logs


def refused(done, *parts):
    """Expects that a command failed with all of `parts` in what it said."""
    assert done.returncode != 0, done.stdout
    for part in parts:
        assert part in done.stderr, done.stderr


def test_a_cluster_in_a_bucket_works_and_outlives_its_coordinator(store, start):
    cluster = start()
    ask(cluster, "create table t as select value as id, 'x' as s from generate_series(1, 100000)")
    ask(cluster, "insert into t values (-1, 'y')")
    answer = (100_001, 100_000 * 100_001 // 2 - 1)
    assert ask(cluster, "select count(*), sum(id) from t") == [answer]

    cluster.coordinator.kill()
    cluster.start_coordinator()
    assert ask(cluster, "select count(*), sum(id) from t") == [answer]
    ask(cluster, "insert into t values (-2, 'z')")
    assert ask(cluster, "select min(id) from t") == [(-2,)]

    status = cluster.run("cluster", "status", "--cluster", URL).stdout
    assert "public.t" in status and "100,002" in status and "az3" in status


def test_the_manifest_is_only_ever_created_and_stays_below_its_prefix(store, start):
    cluster = start()
    ask(cluster, "create table t (a bigint)")
    assert "PUT!" not in {method for method, _ in store.requests}
    assert len(store.keys("some/prefix/m/")) >= 5
    assert store.keys() == store.keys("some/prefix/m/") + store.keys("some/prefix/c/"), "a probe cleans up"


def test_old_versions_are_collected_and_the_cluster_goes_on(store, start):
    cluster = start()
    ask(cluster, "create table t (a bigint)")
    with adbc_driver_flightsql.dbapi.connect(cluster.uri, autocommit=True) as connection:
        with connection.cursor() as cursor:
            for number in range(1, 1201):
                cursor.execute(f"create schema s{number}")
    # A coordinator collects once when it starts.
    cluster.coordinator.stop()
    cluster.start_coordinator()
    first = f"some/prefix/m/{2**64 - 1 - 1:020}"
    eventually("the first version is collected", lambda: first not in store.keys())
    kept = store.keys("some/prefix/m/")
    assert 1_000 < len(kept) < 1_150
    cluster.coordinator.stop()
    cluster.start_coordinator()
    assert ask(cluster, "select count(*) from information_schema.schemata where schema_name ~ '^s[0-9]+$'") == [(1200,)]
    ask(cluster, "insert into t values (1)")
    assert ask(cluster, "select sum(a) from t") == [(1,)]


def test_many_versions_are_found_again_by_small_pages(store, start):
    store.page_keys = 3
    cluster = start()
    ask(cluster, "create table t (a bigint)")
    with adbc_driver_flightsql.dbapi.connect(cluster.uri, autocommit=True) as connection:
        with connection.cursor() as cursor:
            for number in range(1, 41):
                cursor.execute(f"insert into t values ({number})")
    assert store.keys("some/prefix/c/"), "there are enough versions for a checkpoint"
    cluster.coordinator.stop()
    cluster.start_coordinator()
    assert ask(cluster, "select count(*), sum(a) from t") == [(40, 820)]


def test_an_old_coordinator_can_no_longer_write(store, start):
    cluster = start()
    ask(cluster, "create table t (a bigint)")
    old = cluster.coordinator
    cluster.start_coordinator()
    new, cluster.coordinator = cluster.coordinator, old
    try:
        with pytest.raises(Exception, match="STALE_EPOCH"):
            ask(cluster, "insert into t values (1)")
        old.stop()
    finally:
        cluster.coordinator = new
    assert ask(cluster, "select count(*) from t") == [(0,)]
    ask(cluster, "insert into t values (2)")
    assert ask(cluster, "select sum(a) from t") == [(2,)]


def test_two_clusters_share_a_bucket_and_not_a_prefix(aubade):
    assert aubade("cluster", "init", "--cluster", URL).returncode == 0
    refused(aubade("cluster", "init", "--cluster", URL), "CLUSTER_EXISTS", URL)
    assert aubade("cluster", "init", "--cluster", f"{URL}-2").returncode == 0
    refused(aubade("cluster", "status", "--cluster", f"{URL}-3"), "CLUSTER_NOT_FOUND", f"{URL}-3")


def test_a_bucket_that_overwrites_is_refused(store, aubade):
    store.ignores_conditions = True
    refused(aubade("cluster", "init", "--cluster", URL), "STORE_UNSAFE", URL, "If-None-Match")
    assert store.keys() == []


def test_a_bucket_that_begins_to_overwrite_gets_no_coordinator(store, aubade):
    aubade("cluster", "init", "--cluster", URL)
    before, store.ignores_conditions = store.keys(), True
    refused(aubade("serve", "--cluster", URL, "--listen", "127.0.0.1:0"), "STORE_UNSAFE", URL)
    assert store.keys() == before


def test_a_store_without_conditional_writes_is_refused(store, aubade):
    store.fault = lambda method, key: Refusal(501, "NotImplemented") if method == "PUT" else None
    refused(aubade("cluster", "init", "--cluster", URL), "STORE_UNSAFE", URL)


WRONG = {"AWS_ACCESS_KEY_ID": "AKIANOBODY", "AWS_SECRET_ACCESS_KEY": "no secret"}


@pytest.mark.parametrize("variable", WRONG)
def test_wrong_credentials_are_told_when_a_cluster_is_made(aubade, variable):
    refused(aubade("cluster", "init", "--cluster", URL, **{variable: WRONG[variable]}), "PERMISSION_DENIED", URL, "AWS_")


@pytest.mark.parametrize("variable", WRONG)
def test_wrong_credentials_are_told_when_a_cluster_is_opened(aubade, variable):
    refused(aubade("cluster", "status", "--cluster", URL, **{variable: WRONG[variable]}), "PERMISSION_DENIED", URL, "AWS_")


@pytest.mark.parametrize("command", ["init", "status"])
def test_a_bucket_that_does_not_exist_is_named(aubade, command):
    refused(aubade("cluster", command, "--cluster", "s3://no-such-bucket/prefix"), "s3://no-such-bucket", "NoSuchBucket")


def test_an_endpoint_without_a_scheme_is_told(store, aubade):
    endpoint = store.endpoint.removeprefix("http://")
    refused(aubade("cluster", "init", "--cluster", URL, AWS_ENDPOINT=endpoint), "INVALID_ARGUMENT", "AWS_ENDPOINT", endpoint)


def test_plain_http_that_nobody_allowed_is_told(aubade):
    refused(aubade("cluster", "init", "--cluster", URL, AWS_ALLOW_HTTP="false"), "INVALID_ARGUMENT", "AWS_ALLOW_HTTP")


@pytest.fixture
def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]


@pytest.mark.parametrize("command", ["init", "status"])
def test_an_endpoint_where_nobody_listens_is_told(aubade, closed_port, command):
    endpoint = f"http://127.0.0.1:{closed_port}"
    done = aubade("cluster", command, "--cluster", URL, AWS_ENDPOINT=endpoint)
    refused(done, "STORE_UNAVAILABLE", URL, endpoint)
    causes = [line.strip() for line in done.stderr.splitlines() if "caused by: " in line]
    assert done.stderr.count("Connection refused") == 1 and len(causes) == len(set(causes)), done.stderr


def test_an_endpoint_that_never_answers_is_told(aubade):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        done = aubade("cluster", "status", "--cluster", URL, AWS_ENDPOINT=endpoint, AWS_TIMEOUT="1s")
    refused(done, "STORE_UNAVAILABLE", URL)
    assert time.monotonic() - started < 20


def test_a_probe_that_made_nothing_leaves_nothing_to_clean(aubade, closed_port):
    done = aubade("cluster", "init", "--cluster", URL, AWS_ENDPOINT=f"http://127.0.0.1:{closed_port}")
    assert "stays behind" not in done.stderr


def at_first(*refusals):
    """The first request of each kind for each object gets the next of `refusals`; the second one works."""
    seen, answers = set(), itertools.cycle(refusals)

    def fault(method, key):
        if (method, key) in seen:
            return None
        seen.add((method, key))
        return next(answers)

    return fault


FAILURES = pytest.mark.parametrize(
    "refusals", [(SLOW_DOWN,), (LOST,), (SLOW_DOWN, LOST)], ids=["503", "lost replies", "both"]
)


@FAILURES
def test_a_cluster_starts_on_a_store_that_fails_now_and_then(store, start, refusals):
    store.fault = at_first(*refusals)
    cluster = start()
    ask(cluster, "create table t (a bigint)")
    ask(cluster, "insert into t values (1)")
    cluster.coordinator.kill()
    cluster.start_coordinator()
    assert ask(cluster, "select count(*), sum(a) from t") == [(1, 1)]


def test_a_node_that_starts_rides_out_a_store_that_is_away_for_some_seconds(store, start):
    cluster = start()
    cluster.nodes[0].stop()
    began = time.monotonic()
    store.fault = lambda method, key: SLOW_DOWN if time.monotonic() - began < 6 else None
    cluster.restart_node(0)
    ask(cluster, "create table t as select 1 as a")
    assert ask(cluster, "select a from t") == [(1,)]


@FAILURES
def test_a_running_cluster_rides_out_a_store_that_fails_now_and_then(store, start, refusals):
    cluster = start()
    ask(cluster, "create table t (a bigint)")
    store.fault = at_first(*refusals)
    for number in range(10):
        ask(cluster, f"insert into t values ({number})")
    cluster.nodes[0].kill()
    cluster.restart_node(0)
    assert ask(cluster, "select count(*), sum(a) from t") == [(10, 45)], "every insert happened once"


def test_a_bucket_that_refuses_writes_shows_nothing_of_them(store, start):
    cluster = start()
    ask(cluster, "create table t (a bigint)")
    store.fault = lambda method, key: Refusal(403, "AccessDenied") if method == "PUT" else None
    with pytest.raises(Exception, match="PERMISSION_DENIED"):
        ask(cluster, "insert into t values (1)")
    assert ask(cluster, "select count(*) from t") == [(0,)]
    store.fault = lambda method, key: None
    ask(cluster, "insert into t values (2)")
    assert ask(cluster, "select sum(a) from t") == [(2,)]


def test_queries_go_on_while_the_bucket_is_away(store, start):
    cluster = start()
    ask(cluster, "create table t as select value as a from generate_series(1, 1000)")
    store.fault = lambda method, key: SLOW_DOWN
    for _ in range(3):
        assert ask(cluster, "select sum(a) from t") == [(500_500,)]
    store.fault = lambda method, key: None
    ask(cluster, "insert into t values (1)")
    assert ask(cluster, "select sum(a) from t") == [(500_501,)]


def test_secrets_are_not_shown(store, aubade):
    for done in (
        aubade("cluster", "init", "--cluster", f"s3://{KEY_ID}:hunter2@{BUCKET}/x"),
        aubade("cluster", "status", "--cluster", URL, AWS_SECRET_ACCESS_KEY="hunter2", RUST_LOG="trace"),
    ):
        assert done.returncode != 0
        assert "hunter2" not in done.stdout + done.stderr
