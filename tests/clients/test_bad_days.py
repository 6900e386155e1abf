"""Bad days as a user of the command line meets them: damaged and full disks, loads cut short, folders let in."""

import contextlib
import os
import shutil
import subprocess
import time

import adbc_driver_flightsql.dbapi
import pyarrow as pa
import pytest

from cluster import NO_CACHES, Cluster, eventually, run

# One segment, of which most is numbers that cannot be made small.
ROWS = 120_000
IDS = sorted(value * 7919 % 1_000_003 for value in range(1, ROWS + 1))
SUM = sum(IDS)
MAKE = f"create table big as select value * 7919 % 1000003 as id, repeat('y', 50) as s from generate_series(1, {ROWS})"
# Reads every column, so that damage is met wherever it is.
ALL = "select count(*), sum(id), sum(length(s)) from big"
ANSWER = (ROWS, SUM, ROWS * 50)


def ask(cluster, sql):
    with adbc_driver_flightsql.dbapi.connect(cluster.uri, autocommit=True) as connection:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()


def refused(cluster, sql, *parts):
    """Runs `sql`, expects an error with every one of `parts` in its text, and returns that text."""
    with pytest.raises(Exception) as caught:
        ask(cluster, sql)
    text = str(caught.value)
    for part in parts:
        assert part in text, text
    return text


def segments(cluster, index):
    """The segment files of one storage node."""
    return sorted((cluster.folder / f"node{index + 1}" / "segments").glob("*.parquet"))


def flip(path):
    """Changes one bit of a file, among the values of the first column."""
    with open(path, "r+b") as file:
        place = path.stat().st_size // 8
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def start(tmp_path):
    """Starts a cluster of three nodes with a copy each; checks at the end that nothing panicked."""
    with contextlib.ExitStack() as stack:

        def start(**options):
            defaults = {"nodes": 3, "copies": 3, "serve_arguments": NO_CACHES}
            cluster = Cluster(tmp_path / "cluster", **(defaults | options))

            def stop():
                logs = cluster.logs()
                cluster.stop()
                assert "panicked" not in logs

            stack.callback(stop)
            return cluster

        (tmp_path / "cluster").mkdir()
        yield start


@pytest.fixture
def loaded(start):
    cluster = start()
    ask(cluster, MAKE)
    return cluster


# Damage on the disks.


def flip_first_asked(cluster):
    """Flips a byte in the replica that the scan of `ALL` asks first; returns its node and path, and what it held."""
    for index, node in enumerate(cluster.nodes):
        (path,) = segments(cluster, index)
        good = path.read_bytes()
        flip(path)
        # Another filter each time: what a node keeps of an aggregate needs no segment.
        assert ask(cluster, f"{ALL} where id > {-1 - index}") == [ANSWER]
        if path.stem in node.log_tail():
            return node, path, good
        flip(path)
    raise AssertionError("no scan noticed a flipped byte")


def test_a_flipped_byte_is_logged_and_the_replica_replaced(loaded):
    node, path, good = flip_first_asked(loaded)
    assert "corrupt" in node.log_tail() and "corrupt" in loaded.coordinator.log_tail()
    eventually("the right bytes are back", lambda: path.exists() and path.read_bytes() == good)
    eventually("the status says so", lambda: loaded.status()["under_replicated"] == 0)
    quarantine = path.parents[1] / "quarantine"
    eventually("the damaged file is gone", lambda: not list(quarantine.iterdir()))
    for other in loaded.nodes:
        if other is not node:
            other.kill()
    assert ask(loaded, ALL) == [ANSWER]


def test_a_flipped_byte_shows_in_the_status_until_it_is_repaired(start):
    cluster = start(nodes=2, copies=2)
    ask(cluster, MAKE)
    (path,) = segments(cluster, 0)
    flip(path)
    cluster.nodes[1].kill()
    # The only other replica is away: nothing can answer, and nothing is forgotten.
    refused(cluster, ALL, "SEGMENT_UNAVAILABLE", path.stem, "corrupt")
    status = ["cluster", "status", "--cluster", cluster.url]
    eventually("the status shows it", lambda: "under-replicated  1" in cluster.run(*status).stdout)
    cluster.restart_node(1)
    eventually("a repair", lambda: "under-replicated  0" in cluster.run(*status).stdout)
    assert ask(cluster, ALL) == [ANSWER]


def test_a_replica_that_vanished_while_its_node_was_down_is_replaced(loaded):
    loaded.nodes[0].stop()
    (path,) = segments(loaded, 0)
    path.unlink()
    loaded.restart_node(0)
    eventually("the replica is back", lambda: segments(loaded, 0) == [path], timeout=5)
    for node in loaded.nodes[1:]:
        node.kill()
    assert ask(loaded, ALL) == [ANSWER]


def lose_every_replica(cluster):
    """Deletes all files of the one segment of `big`, asks for it once, and returns its id."""
    (path,) = segments(cluster, 0)
    for index in range(3):
        segments(cluster, index)[0].unlink()
    refused(cluster, ALL, "SEGMENT_UNAVAILABLE", path.stem, "public.big")
    return path.stem


def test_without_any_replica_one_table_is_lost_and_the_others_are_not(loaded):
    segment = lose_every_replica(loaded)
    ask(loaded, "create table small as select 1 as a")
    refused(loaded, ALL, "SEGMENT_UNAVAILABLE", segment, "public.big")
    assert ask(loaded, "select sum(a) from small") == [(1,)]
    ask(loaded, "drop table big")
    ask(loaded, MAKE)
    assert ask(loaded, ALL) == [ANSWER]


def test_without_any_replica_the_nodes_that_held_it_stay_named(loaded):
    lose_every_replica(loaded)
    # Maintenance looks at the nodes every second, and nothing tells from outside that it has.
    end = time.monotonic() + 3
    while time.monotonic() < end:
        refused(loaded, ALL, "SEGMENT_UNAVAILABLE", "; node ")
    assert "0 sources" not in loaded.coordinator.log.read_text()


def test_damage_that_nobody_reads_is_found_and_repaired(loaded):
    (path,) = segments(loaded, 0)
    good = path.read_bytes()
    loaded.nodes[0].stop()
    flip(path)
    loaded.restart_node(0)
    eventually("the right bytes are back", lambda: path.exists() and path.read_bytes() == good)
    told = lambda node: node["scrub"] and node["scrub"]["damaged"] == 1 and node["quarantined"] == 0
    eventually("the status says so", lambda: any(map(told, loaded.status()["nodes"])))
    assert "corrupt" in loaded.nodes[0].log_tail()


def test_scrubbing_can_be_switched_off(start, tmp_path):
    cluster = start(nodes=1, copies=1)
    data, fresh = tmp_path / "other", ("--listen", "127.0.0.1:0", "--zone", "az1", "--cluster", cluster.url)
    done = cluster.run("storage-node", "--data", str(data), *fresh, "--scrub-rate", "fast", check=False, timeout=60)
    assert done.returncode != 0 and "--scrub-rate" in done.stderr
    cluster.nodes[0].stop()
    cluster.nodes[0] = cluster.start_node(0, "--scrub-rate", "0")
    cluster.nodes[0].wait_ready()
    eventually("it was asked", lambda: [node["quarantined"] for node in cluster.status()["nodes"]] == [0])
    assert [node["scrub"] for node in cluster.status()["nodes"]] == [None]
    text = cluster.run("cluster", "status", "--cluster", cluster.url).stdout
    assert "verified" in text and " off" in text


# Nodes that are gone for good.


def node_id(cluster, index):
    """The id of a storage node."""
    (found,) = (node["id"] for node in cluster.status()["nodes"] if node["address"] == cluster.nodes[index].address)
    return found


def test_a_node_with_a_new_disk_takes_the_place_of_the_old_one_at_its_address(loaded):
    old, address = node_id(loaded, 0), loaded.nodes[0].address
    (path,) = segments(loaded, 0)
    good = path.read_bytes()
    loaded.nodes[0].kill()
    shutil.rmtree(path.parents[1])
    refused_node = loaded.start_node(0, "--listen", address)
    assert refused_node.process.wait(60) != 0
    assert "IN_USE" in refused_node.log_tail() and f"remove-node --cluster URL {old}" in refused_node.log_tail()
    loaded.run("cluster", "remove-node", "--cluster", loaded.url, old)
    loaded.nodes[0] = loaded.start_node(0, "--listen", address)
    loaded.nodes[0].wait_ready()
    eventually("the replica is back", lambda: path.exists() and path.read_bytes() == good)
    eventually("the status says so", lambda: loaded.status()["under_replicated"] == 0)
    assert node_id(loaded, 0) != old and len(loaded.status()["nodes"]) == 3
    # The coordinator is the same as before, and still the writer.
    ask(loaded, "insert into big values (0, '')")
    for node in loaded.nodes[1:]:
        node.kill()
    assert ask(loaded, "select count(*), sum(id) from big") == [(ROWS + 1, SUM)]


def test_a_node_is_not_removed_while_it_answers_or_is_needed(start):
    cluster = start(nodes=2, copies=2)
    ask(cluster, MAKE)
    first, second = node_id(cluster, 0), node_id(cluster, 1)

    def remove(node, *options):
        return cluster.run("cluster", "remove-node", "--cluster", cluster.url, node, *options, check=False, timeout=60)

    done = remove(first)
    assert done.returncode != 0 and "IN_USE" in done.stderr and cluster.nodes[0].address in done.stderr
    for node in cluster.nodes:
        node.kill()
    done = remove(first)
    assert done.returncode != 0 and "TOO_FEW_REPLICAS" in done.stderr and "public.big" in done.stderr
    done = remove("00000000-0000-0000-0000-000000000000")
    assert done.returncode != 0 and "NODE_NOT_FOUND" in done.stderr
    assert remove("nobody").returncode != 0
    done = remove(first, "--force")
    assert done.returncode == 0 and first in done.stdout and "public.big" in done.stderr
    eventually("the coordinator knows", lambda: len(cluster.status()["nodes"]) == 1)
    # Both come back with what they had: nothing was lost.
    for index in (0, 1):
        cluster.restart_node(index)
    eventually("both have a replica again", lambda: cluster.status()["under_replicated"] == 0)
    assert {first, second} == {node["id"] for node in cluster.status()["nodes"]}
    assert ask(cluster, ALL) == [ANSWER]


def test_logs_in_a_file_name_the_causes_and_have_no_colours(loaded):
    loaded.nodes[0].kill()
    assert ask(loaded, ALL) == [ANSWER]
    loaded.coordinator.kill()
    loaded.start_coordinator()
    log = loaded.coordinator.log_tail()
    assert "does not answer" in log and "Connection refused" in log
    assert "\x1b" not in loaded.logs()


# Loads and scans that are cut short.

# More segments than the coordinator holds back, so that some have reached the nodes before the load is complete.
LOAD_BATCHES = 48
BATCH_ROWS = 131_072


def load(cluster, at_batch, action):
    """Loads a table `cut` and runs `action` when the batch of that number is asked for."""
    schema = pa.schema({"a": pa.int8()})
    batch = pa.record_batch([pa.array(bytes(BATCH_ROWS), pa.int8())], schema=schema)

    def batches():
        for number in range(LOAD_BATCHES):
            if number == at_batch:
                action()
            yield batch

    with adbc_driver_flightsql.dbapi.connect(cluster.uri, autocommit=True) as connection:
        with connection.cursor() as cursor:
            return cursor.adbc_ingest("cut", pa.RecordBatchReader.from_batches(schema, batches()), mode="create")


def has_segments(cluster, *nodes):
    return all(segments(cluster, index) for index in nodes)


def test_a_load_completes_when_a_node_is_killed_in_the_middle(start):
    cluster = start()

    def kill():
        eventually("segments on their way", lambda: has_segments(cluster, 0, 1, 2))
        cluster.nodes[0].kill()

    assert load(cluster, LOAD_BATCHES - 5, kill) == LOAD_BATCHES * BATCH_ROWS
    assert ask(cluster, "select count(a) from cut") == [(LOAD_BATCHES * BATCH_ROWS,)]
    assert cluster.status()["under_replicated"] > 0
    cluster.restart_node(0)
    eventually("repair", lambda: cluster.status()["under_replicated"] == 0)
    # The replicas that the node lost while it was away must answer alone.
    for node in cluster.nodes[1:]:
        node.kill()
    assert ask(cluster, "select count(a) from cut") == [(LOAD_BATCHES * BATCH_ROWS,)]


def test_a_load_without_its_quorum_leaves_nothing(start):
    cluster = start()

    def kill():
        eventually("segments on their way", lambda: has_segments(cluster, 0, 1, 2))
        for node in cluster.nodes[:2]:
            node.kill()

    with pytest.raises(Exception, match="QUORUM_UNAVAILABLE"):
        load(cluster, LOAD_BATCHES - 5, kill)
    refused(cluster, "select * from cut", "TABLE_NOT_FOUND")
    # What was on its way when the node was told to delete it waits for the collection of orphans.
    eventually("the living node has deleted its part", lambda: not segments(cluster, 2), timeout=100)
    for index in (0, 1):
        assert segments(cluster, index), "what a dead node holds is an orphan"
        cluster.restart_node(index)
    # Orphans are looked for when a coordinator starts, and every minute.
    cluster.coordinator.stop()
    cluster.start_coordinator()
    eventually("orphans are collected", lambda: not segments(cluster, 0) + segments(cluster, 1))


def test_a_coordinator_killed_in_the_middle_of_a_load_leaves_orphans_that_are_collected(start):
    cluster = start()
    ask(cluster, "create table kept as select 1 as a")
    kept = segments(cluster, 0)

    def kill():
        eventually("segments on their way", lambda: len(segments(cluster, 0)) > 1)
        cluster.coordinator.kill()

    with pytest.raises(Exception):
        load(cluster, LOAD_BATCHES - 5, kill)
    assert len(segments(cluster, 0)) > 1
    cluster.start_coordinator()
    refused(cluster, "select * from cut", "TABLE_NOT_FOUND")
    for index in range(3):
        names = {path.name for path in kept}
        eventually("orphans are collected", lambda: {path.name for path in segments(cluster, index)} == names)
    assert ask(cluster, "select a from kept") == [(1,)]


def test_a_scan_goes_on_exactly_where_killed_nodes_left_it(loaded):
    with adbc_driver_flightsql.dbapi.connect(loaded.uri, autocommit=True) as connection, connection.cursor() as cursor:
        # As many rows as no buffer on the way can hold.
        cursor.execute("select id, s, repeat(s, 10) as wide from big")
        reader = cursor.fetch_record_batch()
        ids = reader.read_next_batch().column(0).to_pylist()
        for node in loaded.nodes[:2]:
            node.kill()
        for batch in reader:
            ids.extend(batch.column(0).to_pylist())
    assert sorted(ids) == IDS


# Disks without room.


def mounts():
    """Whether this process may mount a file system of its own."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@pytest.fixture
def small_disk():
    """Puts small file systems under folders, and takes them away at the end."""
    mounted = []

    def mount(folder):
        folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "aubade-test", str(folder)], check=True)
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


needs_mounts = pytest.mark.skipif(not mounts(), reason="needs the right to mount a tmpfs")


def fill(folder):
    """Uses up all room of the file system under a folder, and returns the file that does."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    return filler


@needs_mounts
def test_one_full_disk_does_not_stop_writes_and_is_repaired_when_there_is_room(small_disk, start, tmp_path):
    small_disk(tmp_path / "cluster" / "node1")
    cluster = start()
    filler = fill(tmp_path / "cluster" / "node1")
    ask(cluster, MAKE)
    assert ask(cluster, ALL) == [ANSWER]
    assert cluster.status()["under_replicated"] == 1
    assert "panicked" not in cluster.logs()
    filler.unlink()
    eventually("repair", lambda: cluster.status()["under_replicated"] == 0)
    for node in cluster.nodes[1:]:
        node.kill()
    assert ask(cluster, ALL) == [ANSWER]


@needs_mounts
def test_full_disks_refuse_writes_and_still_answer(small_disk, start, tmp_path):
    folders = [tmp_path / "cluster" / f"node{number}" for number in (1, 2, 3)]
    for folder in folders:
        small_disk(folder)
    cluster = start()
    ask(cluster, MAKE)
    fillers = [fill(folder) for folder in folders]
    refused(cluster, "insert into big values (0, 'z')", "DISK_FULL", "free room")
    assert ask(cluster, ALL) == [ANSWER]
    assert [len(segments(cluster, index)) for index in range(3)] == [1, 1, 1]
    # A full node must come back all the same, and with a new coordinator.
    cluster.nodes[0].kill()
    cluster.restart_node(0)
    cluster.coordinator.kill()
    cluster.start_coordinator()
    assert ask(cluster, ALL) == [ANSWER]
    for filler in fillers:
        filler.unlink()
    ask(cluster, "insert into big values (0, 'z')")
    assert ask(cluster, "select count(*) from big") == [(ROWS + 1,)]


@needs_mounts
def test_a_full_disk_under_the_manifest_refuses_the_commit(small_disk, start, tmp_path):
    small_disk(tmp_path / "cluster" / "cluster")
    cluster = start()
    ask(cluster, "create table t (a bigint)")
    filler = fill(tmp_path / "cluster" / "cluster")
    refused(cluster, "insert into t values (1)", "DISK_FULL", "free room")
    assert ask(cluster, "select count(*) from t") == [(0,)]
    filler.unlink()
    ask(cluster, "insert into t values (2)")
    assert ask(cluster, "select sum(a) from t") == [(2,)]


# Folders of the server that SQL may use.


@pytest.fixture
def shared(start, tmp_path):
    """A cluster whose coordinator lets SQL use the folder `open`, which is beside `secret`."""
    for name in ("open", "secret"):
        (tmp_path / name).mkdir()
    (tmp_path / "secret" / "secret.csv").write_text("word\nhidden\n")
    (tmp_path / "open" / "in.csv").write_text("a,b\n1,x\n2,y\n")
    cluster = start(nodes=1, copies=1, serve_arguments=(*NO_CACHES, "--allow-local-files", str(tmp_path / "open")))
    cluster.open, cluster.secret = tmp_path / "open", tmp_path / "secret"
    return cluster


def external(name, path):
    return f"create external table {name} stored as csv location '{path}' options ('format.has_header' 'true')"


def test_files_of_the_open_folder_are_read_and_written(shared):
    assert ask(shared, f"select sum(a) from '{shared.open}/in.csv'") == [(3,)]
    ask(shared, f"copy (select * from '{shared.open}/in.csv') to '{shared.open}/new/out.parquet'")
    assert ask(shared, f"select count(*) from '{shared.open}/new/out.parquet'") == [(2,)]
    ask(shared, f"create table t as select * from '{shared.open}/new/out.parquet'")
    assert ask(shared, "select sum(a) from t") == [(3,)]


def test_an_external_table_of_the_open_folder_is_read(shared):
    ask(shared, external("e", f"{shared.open}/in.csv"))
    assert ask(shared, "select b from e where a = 2") == [("y",)]
    shared.coordinator.kill()
    shared.start_coordinator()
    assert ask(shared, "select count(*) from e") == [(2,)]
    ask(shared, "drop table e")
    assert (shared.open / "in.csv").exists()


def outside(shared):
    """Paths that lead to the secret file, or would make one beside it, in every way that there is."""
    (shared.open / "link").symlink_to(shared.secret)
    (shared.open / "secret.csv").symlink_to(shared.secret / "secret.csv")
    (shared.open / "below").mkdir()
    return [
        f"{shared.secret}/secret.csv",
        f"{shared.open}/../secret/secret.csv",
        f"{shared.open}/below/../../secret/secret.csv",
        f"{shared.open}/link/secret.csv",
        f"{shared.open}/secret.csv",
        f"file://{shared.secret}/secret.csv",
        f"file://{shared.open}/../secret/secret.csv",
        f"file://{shared.open}/%2e%2e/secret/secret.csv",
        f"file://{shared.open}%2f..%2fsecret/secret.csv",
        f"{shared.open}-not/../secret/secret.csv",
        f"{shared.open.parent}/s*/secret.csv",
        f"{shared.secret}/",
        "/etc/passwd",
        "../secret/secret.csv",
        "s3://bucket/secret.csv",
        "http://127.0.0.1:1/secret.csv",
    ]


def test_nothing_outside_the_open_folder_is_read(shared):
    for path in outside(shared):
        for sql in (f"select * from '{path}'", external("e", path), f"create table t as select * from '{path}'"):
            assert "hidden" not in refused(shared, sql, "PERMISSION_DENIED"), sql
    assert ask(shared, "select table_name from information_schema.tables where table_schema = 'public'") == []


def test_links_in_a_listing_are_not_followed(shared):
    outside(shared)
    assert ask(shared, f"select sum(a), max(b) from '{shared.open}/'") == [(3, "y")]
    assert ask(shared, f"select sum(a), max(b) from '{shared.open}/*.csv'") == [(3, "y")]
    refused(shared, f"select * from '{shared.open}/*/secret.csv'", "FILE_UNREADABLE")


def test_nothing_outside_the_open_folder_is_written(shared):
    for path in outside(shared):
        for target in (path, path.replace("secret.csv", "made.csv")):
            if target == f"{shared.open}/made.csv":
                continue
            for statement in ("copy", "explain analyze copy"):
                refused(shared, f"{statement} (select 1 as word) to '{target}' stored as csv", "PERMISSION_DENIED")
    (shared.open / "gone.csv").symlink_to(shared.secret / "gone.csv")
    refused(shared, f"copy (select 1 as word) to '{shared.open}/gone.csv' stored as csv", "PERMISSION_DENIED")
    assert [path.read_text() for path in shared.secret.iterdir()] == ["word\nhidden\n"]


def test_a_refusal_names_the_path_and_the_open_folder(shared):
    path = f"{shared.secret}/secret.csv"
    text = refused(shared, f"select * from '{path}'", "PERMISSION_DENIED", path, str(shared.open), "--allow-local-files")
    missing = f"{shared.secret}/missing.csv"
    assert refused(shared, f"select * from '{missing}'") == text.replace(path, missing), "it does not tell what exists"


def test_an_open_folder_that_is_missing_is_told_before_anything_else(start, tmp_path):
    cluster = start(nodes=1, copies=1)
    epoch = cluster.status()["epoch"]
    missing = str(tmp_path / "nothing")
    arguments = ["--cluster", cluster.url, "--listen", "127.0.0.1:0", "--allow-local-files", missing]
    done = cluster.run("serve", *arguments, check=False, timeout=60)
    assert done.returncode != 0 and "INVALID_ARGUMENT" in done.stderr and missing in done.stderr
    assert cluster.status()["epoch"] == epoch, "the coordinator that runs keeps the cluster"


# Started wrongly.


def test_a_storage_node_of_no_cluster_says_how_to_make_one(tmp_path):
    arguments = ["--cluster", f"file://{tmp_path}/nothing", "--data", f"{tmp_path}/data", "--zone", "az1"]
    done = run("storage-node", *arguments, "--listen", "127.0.0.1:0", check=False, timeout=60)
    assert done.returncode != 0 and "CLUSTER_NOT_FOUND" in done.stderr and "cluster init" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_storage_node_whose_port_is_taken_leaves_no_folder(start, tmp_path):
    cluster = start(nodes=1, copies=1)
    address = cluster.nodes[0].address
    arguments = ["--cluster", cluster.url, "--data", f"{tmp_path}/data", "--zone", "az1", "--listen", address]
    done = cluster.run("storage-node", *arguments, check=False, timeout=60)
    assert done.returncode != 0 and "IN_USE" in done.stderr and address in done.stderr
    assert not (tmp_path / "data").exists()
    assert len(cluster.status()["nodes"]) == 1
