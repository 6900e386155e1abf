//! The binary, as a new user runs it: child processes on loopback, killed without warning.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

const AUBADE: &str = env!("CARGO_BIN_EXE_aubade");

fn aubade(arguments: &[&str]) -> Output {
    Command::new(AUBADE).args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn succeeds(arguments: &[&str]) -> String {
    let output = aubade(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "aubade {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs it, expects failure, and gives what it printed on standard error.
#[track_caller]
fn fails(arguments: &[&str], mentions: &[&str]) -> String {
    let output = aubade(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "aubade {arguments:?} succeeded: {}", String::from_utf8_lossy(&output.stdout));
    for mention in mentions {
        assert!(stderr.contains(mention), "aubade {arguments:?} should say {mention:?}: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

/// A server process; killed when dropped.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    #[track_caller]
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(AUBADE);
        let mut child = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next().expect("the server says where it listens").unwrap();
        let url = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("{line}")).to_owned();
        Self { child, url }
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Processes {
    dir: TempDir,
    cluster: String,
    nodes: Vec<Server>,
    coordinator: Server,
}

impl Processes {
    fn start(nodes: usize, copies: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cluster = format!("file://{}", dir.path().join("cluster").display());
        succeeds(&["cluster", "init", "--cluster", &cluster, "--copies", copies]);
        let nodes = (0..nodes).map(|index| start_node(dir.path(), &cluster, index)).collect();
        let coordinator = Server::start(&["serve", "--cluster", &cluster, "--listen", "127.0.0.1:0"]);
        Self { dir, cluster, nodes, coordinator }
    }

    fn sql(&self, sql: &str) -> String {
        succeeds(&["sql", "--url", &self.coordinator.url, "--format", "csv", "-c", sql])
    }
}

fn start_node(dir: &Path, cluster: &str, index: usize) -> Server {
    let data = dir.join(format!("node{index}")).display().to_string();
    let zone = format!("az{}", index % 3 + 1);
    Server::start(&["storage-node", "--cluster", cluster, "--data", &data, "--zone", &zone, "--listen", "127.0.0.1:0"])
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().last().unwrap_or_default()
}

#[test]
fn separate_processes_load_query_survive_sigkill_and_come_back_with_their_ids() {
    let mut cluster = Processes::start(6, "6");
    let url = cluster.coordinator.url.clone();
    succeeds(&["tpch", "load", "--scale", "0.01", "--url", &url]);
    let out = succeeds(&["tpch", "run", "--url", &url, "--queries", "1,6", "--scale", "0.01", "--verify"]);
    assert!(out.contains("q6") || out.contains(" 6 "), "{out}");
    let sum = cluster.sql("SELECT sum(l_quantity), count(l_comment) FROM lineitem");

    cluster.nodes[0].kill();
    cluster.nodes[3].kill();
    assert_eq!(cluster.sql("SELECT sum(l_quantity), count(l_comment) FROM lineitem"), sum);
    cluster.sql("CREATE TABLE copy AS SELECT * FROM orders");

    let status = succeeds(&["cluster", "status", "--url", &url]);
    let ids = |status: &str| status.lines().filter(|line| line.contains("az1")).count();
    assert_eq!(ids(&status), 2, "{status}");
    cluster.nodes[0] = start_node(cluster.dir.path(), &cluster.cluster, 0);
    let status = succeeds(&["cluster", "status", "--cluster", &cluster.cluster]);
    assert_eq!(ids(&status), 2, "a restarted node keeps its id: {status}");
}

#[test]
fn a_coordinator_killed_during_a_load_leaves_all_or_nothing() {
    let mut cluster = Processes::start(3, "3");
    let url = cluster.coordinator.url.clone();
    let mut load = Command::new(AUBADE)
        .args(["tpch", "load", "--scale", "0.1", "--url", &url])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Some segment files exist, so the load is under way.
    let has_segments = |dir: &Path| {
        let entries = std::fs::read_dir(dir.join("node0").join("segments"));
        entries.is_ok_and(|mut entries| entries.next().is_some())
    };
    while !has_segments(cluster.dir.path()) && load.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    cluster.coordinator.kill();
    assert!(load.wait().is_ok());
    cluster.coordinator = Server::start(&["serve", "--cluster", &cluster.cluster, "--listen", "127.0.0.1:0"]);
    let tables = cluster.sql("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'");
    for (table, rows) in [("region", 5), ("nation", 25), ("supplier", 1000), ("customer", 15_000), ("part", 20_000)] {
        if tables.lines().any(|line| line == table) {
            let counted = cluster.sql(&format!("SELECT count(*) FROM (SELECT * FROM {table})"));
            assert_eq!(last_line(&counted), rows.to_string(), "{table} is whole");
        }
    }
}

#[test]
fn embedded_sql_needs_no_server_and_keeps_tables_in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    let csv = dir.path().join("points.csv");
    std::fs::write(&csv, "x,y\n1,2\n3,4\n").unwrap();
    let csv = csv.display().to_string();
    let out = succeeds(&["sql", "--format", "csv", "-c", &format!("SELECT sum(x * y) FROM '{csv}'")]);
    assert_eq!(last_line(&out), "14");
    succeeds(&["load", "points", &csv, "--data-dir", &data]);
    let out = succeeds(&["sql", "--data-dir", &data, "--format", "csv", "-c", "SELECT count(*) FROM points"]);
    assert_eq!(last_line(&out), "2");
}

#[test]
fn a_broken_file_is_named_and_nothing_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    let parquet = dir.path().join("good.parquet").display().to_string();
    succeeds(&["sql", "-c", &format!("COPY (SELECT value AS n FROM generate_series(1, 100000)) TO '{parquet}'")]);
    let bytes = std::fs::read(&parquet).unwrap();
    let truncated = dir.path().join("truncated.parquet");
    std::fs::write(&truncated, &bytes[..bytes.len() / 2]).unwrap();
    let truncated = truncated.display().to_string();
    fails(&["load", "t", &parquet, &truncated, "--data-dir", &data], &["truncated.parquet"]);
    let csv = dir.path().join("bad.csv");
    std::fs::write(&csv, "a,b\n1,2\n3\n").unwrap();
    fails(&["load", "t", &csv.display().to_string(), "--data-dir", &data], &["bad.csv"]);
    let out = fails(&["sql", "--data-dir", &data, "-c", "SELECT * FROM t"], &["not found"]);
    assert!(out.contains("TABLE_NOT_FOUND"), "{out}");
}

#[test]
fn errors_of_sql_name_the_thing_and_what_to_do() {
    let setup = "CREATE TABLE lineitem (l_orderkey BIGINT); INSERT INTO lineitem VALUES (0)";
    let check = |sql: &str, mentions: &[&str]| {
        fails(&["sql", "-c", &format!("{setup}; {sql}")], mentions);
    };
    check("SELEC 1", &["SQL_SYNTAX"]);
    check("SELECT * FROM lineitm", &["TABLE_NOT_FOUND", "lineitem"]);
    check("SELECT l_ordrkey FROM lineitem", &["COLUMN_NOT_FOUND", "l_orderkey"]);
    check("SELECT l_orderkey + INTERVAL '1 day' FROM lineitem", &["SQL_PLAN"]);
    check("SELECT 1 / l_orderkey FROM lineitem", &["DIVISION_BY_ZERO"]);
    check("CREATE TABLE lineitem (a INT)", &["ALREADY_EXISTS", "lineitem"]);
    check("UPDATE lineitem SET l_orderkey = 1", &["NOT_SUPPORTED", "UPDATE"]);
    check("BEGIN", &["NOT_SUPPORTED"]);
}

#[test]
fn the_plan_cache_has_the_size_and_the_age_that_were_asked_for() {
    let kept = |options: &[&str]| {
        let twice = ["-c", "SELECT 1 AS a; SELECT 1 AS a", "-c", "SELECT count(*) FROM system.plan_cache"];
        let out = succeeds(&[&["sql", "--format", "csv"], options, &twice].concat());
        last_line(&out).to_owned()
    };
    assert_eq!(kept(&[]), "1");
    assert_eq!(kept(&["--plan-cache-entries", "1", "--plan-cache-age", "60"]), "1");
    assert_eq!(kept(&["--plan-cache-entries", "0"]), "0");
    let (age, entries) = ("--plan-cache-age", "--plan-cache-entries");
    fails(&["sql", age, "0", "-c", "SELECT 1"], &["INVALID_ARGUMENT", "of no use", "--plan-cache-entries 0"]);
    fails(&["sql", entries, "100000", "-c", "SELECT 1"], &["INVALID_ARGUMENT", "100000", "up to 16384"]);
    fails(&["sql", entries, "many", "-c", "SELECT 1"], &["many", entries]);
    // Those of a coordinator are its own.
    fails(&["sql", "--url", "grpc://127.0.0.1:1", entries, "1", "-c", "SELECT 1"], &[entries, "--url"]);
    let dir = tempfile::tempdir().unwrap();
    let cluster = format!("file://{}", dir.path().join("cluster").display());
    succeeds(&["cluster", "init", "--cluster", &cluster, "--copies", "1"]);
    let serve = ["serve", "--cluster", &cluster, "--listen", "127.0.0.1:0"];
    fails(&[&serve[..], &[age, "40000000"]].concat(), &["INVALID_ARGUMENT", "40000000", "a year"]);
    let server = Server::start(&[&serve[..], &[entries, "0"]].concat());
    let shown = ["-c", "SELECT 1 AS a; SELECT count(*) FROM system.plan_cache"];
    let out = succeeds(&[&["sql", "--url", &server.url, "--format", "csv"], &shown[..]].concat());
    assert_eq!(last_line(&out), "0");
}

#[test]
fn unsafe_quorums_and_clusters_that_exist_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = format!("file://{}", dir.path().display());
    let unsafe_triple = ["--copies", "6", "--write-quorum", "3", "--read-quorum", "4"];
    fails(
        &[&["cluster", "init", "--cluster", &cluster][..], &unsafe_triple].concat(),
        &["QUORUM_UNSAFE", "two writers"],
    );
    succeeds(&["cluster", "init", "--cluster", &cluster, "--copies", "1"]);
    fails(&["cluster", "init", "--cluster", &cluster], &["CLUSTER_EXISTS"]);
    fails(&["cluster", "status", "--cluster", "file:///nowhere/at/all"], &["CLUSTER_NOT_FOUND"]);
    fails(&["cluster", "init", "--cluster", "ftp://host/x"], &["file://", "s3://"]);
}

/// The cells of the row of a status that names an address.
#[track_caller]
fn cells(status: &str, address: &str) -> Vec<String> {
    let row = status.lines().find(|line| line.contains(address)).unwrap_or_else(|| panic!("{address}: {status}"));
    row.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_node_whose_disk_was_replaced_comes_back_at_its_address_once_the_old_one_is_removed() {
    let mut cluster = Processes::start(3, "3");
    cluster.sql("CREATE TABLE t AS SELECT value AS n FROM generate_series(1, 1000)");
    let address = cluster.nodes[0].url.strip_prefix("grpc://").unwrap().to_owned();
    let status = || succeeds(&["cluster", "status", "--cluster", &cluster.cluster]);
    let old = cells(&status(), &address)[0].clone();
    let remove = ["cluster", "remove-node", "--cluster", &cluster.cluster, &old];
    fails(&remove, &["IN_USE", &old, "still answers", &address, "--force"]);

    cluster.nodes[0].kill();
    std::fs::remove_dir_all(cluster.dir.path().join("node0")).unwrap();
    let data = cluster.dir.path().join("node0").display().to_string();
    let node = ["storage-node", "--cluster", &cluster.cluster, "--data", &data, "--zone", "az1", "--listen", &address];
    fails(&node, &["IN_USE", &old, &format!("remove-node --cluster URL {old}")]);
    let told = succeeds(&remove);
    assert!(told.contains(&old) && told.contains("start 1 more storage node"), "{told}");
    fails(&remove, &["NODE_NOT_FOUND", &old]);

    let _node = Server::start(&node);
    let repaired = || status().lines().any(|line| line.starts_with("under-replicated") && line.ends_with(" 0"));
    let mut looks = 0;
    while !repaired() {
        looks += 1;
        assert!(looks < 200, "{}", status());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    // The copies that were there all along go: the new node answers alone.
    for node in &mut cluster.nodes[1..] {
        let _ = node.child.kill();
        let _ = node.child.wait();
    }
    let sum = succeeds(&["sql", "--url", &cluster.coordinator.url, "--format", "csv", "-c", "SELECT sum(n) FROM t"]);
    assert_eq!(last_line(&sum), "500500");
}

#[test]
fn the_last_replicas_are_given_up_only_by_force_and_come_back_with_their_node() {
    let mut cluster = Processes::start(2, "1");
    cluster.sql("CREATE TABLE t AS SELECT value AS n FROM generate_series(1, 1000)");
    let status = succeeds(&["cluster", "status", "--cluster", &cluster.cluster]);
    let row = |index: usize| cells(&status, cluster.nodes[index].url.strip_prefix("grpc://").unwrap());
    // Id, zone, address, alive, replicas.
    let holder = (0..2).find(|index| row(*index)[4] == "1").unwrap();
    let id = row(holder)[0].clone();
    cluster.nodes[holder].kill();
    let remove = ["cluster", "remove-node", "--cluster", &cluster.cluster, &id];
    fails(&remove, &["TOO_FEW_REPLICAS", "public.t", "none of 1 segment", "--force"]);
    let output = aubade(&[&remove[..], &["--force"]].concat());
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("1 segment of public.t"));
    let query = ["sql", "--url", &cluster.coordinator.url, "--format", "csv", "-c", "SELECT sum(n) FROM t"];
    // The coordinator sees within a second that the node is gone.
    fails(&query, &["SEGMENT_UNAVAILABLE", &id]);
    let _node = start_node(cluster.dir.path(), &cluster.cluster, holder);
    let mut tries = 0;
    while !aubade(&query).status.success() {
        tries += 1;
        assert!(tries < 100, "the node came back with the only replica");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn logs_that_go_to_a_file_have_no_colours_and_name_causes() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = format!("file://{}", dir.path().display());
    succeeds(&["cluster", "init", "--cluster", &cluster, "--copies", "1"]);
    let status = ["cluster", "status", "--cluster", &cluster];
    let node = start_node(dir.path(), &cluster, 0);
    let output = Command::new(AUBADE).args(status).env("RUST_LOG", "trace").env_remove("NO_COLOR").output().unwrap();
    let logs = String::from_utf8(output.stderr).unwrap();
    assert!(logs.contains("TRACE") && !logs.contains('\u{1b}'), "{logs}");
    drop(node);
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let mut serve = Command::new(AUBADE)
        .args(["serve", "--cluster", &cluster, "--listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    let ready = BufReader::new(serve.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    serve.kill().unwrap();
    serve.wait().unwrap();
    assert!(ready.starts_with("listening on"), "{ready}");
    let logs = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(logs.contains("does not answer") && logs.contains("Connection refused"), "{logs}");
}

#[test]
fn a_taken_port_and_foreign_or_busy_folders_are_refused() {
    let cluster = Processes::start(1, "1");
    let address = cluster.nodes[0].url.strip_prefix("grpc://").unwrap().to_owned();
    let dir = cluster.dir.path();
    let fresh = dir.join("fresh").display().to_string();
    let node = |cluster: &str, data: &str, listen: &str, mentions: &[&str]| {
        fails(&["storage-node", "--cluster", cluster, "--data", data, "--zone", "az1", "--listen", listen], mentions);
    };
    node(&cluster.cluster, &fresh, &address, &["IN_USE", &address]);
    let busy = dir.join("node0").display().to_string();
    node(&cluster.cluster, &busy, "127.0.0.1:0", &["IN_USE", &busy]);
    let other = format!("file://{}", dir.join("other").display());
    succeeds(&["cluster", "init", "--cluster", &other, "--copies", "1"]);
    let mut cluster = cluster;
    cluster.nodes[0].kill();
    node(&other, &busy, "127.0.0.1:0", &["WRONG_CLUSTER", &busy]);
    fails(&["sql", "--url", "grpc://127.0.0.1:1", "-c", "SELECT 1"], &["127.0.0.1:1"]);
}
