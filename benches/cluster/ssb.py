"""What a small buffer pool and pushing down are worth together, by the Star Schema Benchmark on a slow link.

The conditions are those of FlexPushdownDB (Yang et al., VLDB 2021): the buffer pool has room for a quarter of
the columns that queries read, coordinator and storage nodes are on either side of a link of 1 Gbit/s, and
newer rows are wanted more often. Each mode has a coordinator of its own over the same storage nodes, and is
asked the same list of queries: hybrid has the pool and pushes down what is not in it, pool asks for whole
columns instead, and pushdown has no pool. lfu is hybrid with a pool that does not weigh what it costs to be
without a column. all has room for all columns, and has them before it is asked: no policy of a pool can be
faster, so that it tells how much there is to gain at all. dims has all columns of the small tables, and next to
no room for more: what all takes less for a query than dims is what the columns of lineorder gain it, and from
that follows what the best choice of columns for the room of the others would gain, if it were known beforehand.

The tables are derived by SQL from those of TPC-H, not made by the generator of the Star Schema Benchmark
(O'Neil et al.), and are in the schema ssb. lineorder is lineitem joined with orders, with prices in cents,
discounts in per cent, dates as numbers (yyyymmdd), and a supply cost of 60 % of the part's price. Regions and
nations are those of TPC-H, and a city is the first nine letters of its nation with a digit from the key. A
category has the two digits of TPC-H's brand, and a brand is one of 40 in its category, by the key of the
part. lineorder is in order of its dates, and each month has segments of its own. In FlexPushdownDB all modes
leave out partitions by their dates, while `SET aubade.pushdown = off` leaves out none: so each year is a
table here, and a query names that of the year which it asks for.

Queries come in sets of all 13, in random order, and ask for rows of one year, which is drawn from a Zipf
distribution with the newest year first. As in FlexPushdownDB's generator, it takes the place of the
conditions on years, flights 2 to 4 group by month instead of year, and they have one more filter, on quantity
or discount. Its weighted mix has no flight 1; half of its queries keep few rows by one column, and the others
keep most rows and compute with two columns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import random
import re
import statistics
import sys
import time

from choice import most_gained
from common import Adbc, Coordinator, Flight, QuietCluster, heading, main, metric, parser, require
from engines import rows_of
from link import Link, LinkedCluster, make_link
from peers import MIB, load, same

HYBRID_TARGET, POLICY_TARGET = 2.2, 1.37
# As in FlexPushdownDB's generator, by the mix.
THETA = {"plain": 2.0, "weighted": 0.5}

# The newest is the hottest. Orders of TPC-H end in the summer of it: after July there are next to none.
YEARS = tuple(range(1998, 1991, -1))
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
LAST_MONTH = {1998: 7}
REGIONS = ("AFRICA", "AMERICA", "ASIA", "EUROPE", "MIDDLE EAST")
NATIONS = {
    "CHINA": "ASIA",
    "INDIA": "ASIA",
    "RUSSIA": "EUROPE",
    "UNITED KINGDOM": "EUROPE",
    "UNITED STATES": "AMERICA",
}

# By the prefixes of their columns.
TABLES = {
    "lo": [f"lineorder_{year}" for year in YEARS],
    "c": ["customer"],
    "s": ["supplier"],
    "p": ["part"],
    "d": ["dates"],
}
DATE_KEY = "CAST(to_char({}, '%Y%m%d') AS INT)"
CITY = "rpad(substr(n_name, 1, 9), 9, ' ') || CAST({} % 10 AS VARCHAR)"
DAYS = "generate_series(DATE '1992-01-01', DATE '1998-12-31', INTERVAL '1 day')"
DIMENSIONS = {
    "dates": f"""
        SELECT {DATE_KEY.format('day')} AS d_datekey, day AS d_date, to_char(day, '%A') AS d_dayofweek,
            to_char(day, '%B') AS d_month, CAST(date_part('year', day) AS INT) AS d_year,
            CAST(to_char(day, '%Y%m') AS INT) AS d_yearmonthnum, to_char(day, '%b%Y') AS d_yearmonth,
            CAST((date_part('doy', day) - 1) / 7 + 1 AS INT) AS d_weeknuminyear
        FROM (SELECT CAST(value AS DATE) AS day FROM {DAYS})""",
    "customer": f"""
        SELECT CAST(c_custkey AS INT) AS c_custkey, c_name, c_address, {CITY.format('c_custkey')} AS c_city,
            n_name AS c_nation, r_name AS c_region, c_phone, c_mktsegment
        FROM customer, nation, region WHERE c_nationkey = n_nationkey AND n_regionkey = r_regionkey""",
    "supplier": f"""
        SELECT CAST(s_suppkey AS INT) AS s_suppkey, s_name, s_address, {CITY.format('s_suppkey')} AS s_city,
            n_name AS s_nation, r_name AS s_region, s_phone
        FROM supplier, nation, region WHERE s_nationkey = n_nationkey AND n_regionkey = r_regionkey""",
    # From `Manufacturer#1` and `Brand#12`.
    "part": """
        SELECT CAST(p_partkey AS INT) AS p_partkey, p_name, 'MFGR#' || substr(p_mfgr, 14) AS p_mfgr,
            'MFGR#' || substr(p_brand, 7) AS p_category,
            'MFGR#' || substr(p_brand, 7) || lpad(CAST(p_partkey % 40 + 1 AS VARCHAR), 2, '0') AS p_brand1,
            p_type, p_size, p_container
        FROM part""",
}
LINEORDER = f"""
    SELECT l_orderkey AS lo_orderkey, l_linenumber AS lo_linenumber, CAST(o_custkey AS INT) AS lo_custkey,
        CAST(l_partkey AS INT) AS lo_partkey, CAST(l_suppkey AS INT) AS lo_suppkey,
        {DATE_KEY.format('o_orderdate')} AS lo_orderdate, o_orderpriority AS lo_orderpriority,
        o_shippriority AS lo_shippriority, CAST(l_quantity AS INT) AS lo_quantity,
        CAST(l_extendedprice * 100 AS INT) AS lo_extendedprice,
        CAST(o_totalprice * 100 AS INT) AS lo_ordtotalprice, CAST(l_discount * 100 AS INT) AS lo_discount,
        CAST(l_extendedprice * 100 * (1 - l_discount) AS INT) AS lo_revenue,
        CAST(l_extendedprice / l_quantity * 60 AS INT) AS lo_supplycost, CAST(l_tax * 100 AS INT) AS lo_tax,
        {DATE_KEY.format('l_commitdate')} AS lo_commitdate, l_shipmode AS lo_shipmode
    FROM lineitem, orders
    WHERE l_orderkey = o_orderkey AND o_orderdate >= DATE '{{first}}'
        AND o_orderdate < DATE '{{first}}' + INTERVAL '1 month'
    ORDER BY lo_orderdate"""

TO_DATES, TO_PARTS = "lo_orderdate = d_datekey", "lo_partkey = p_partkey"
TO_SUPPLIERS, TO_CUSTOMERS = "lo_suppkey = s_suppkey", "lo_custkey = c_custkey"
FLIGHTS = {
    1: f"""
        SELECT sum(lo_extendedprice * lo_discount) AS revenue
        FROM ssb.lineorder_{{year}} AS lineorder, ssb.dates
        WHERE {TO_DATES} AND lo_discount BETWEEN {{discount}} - 1 AND {{discount}} + 1
            AND {{rows}} AND {{condition}}""",
    2: f"""
        SELECT sum({{measure}}) AS revenue, d_yearmonthnum, p_brand1
        FROM ssb.lineorder_{{year}} AS lineorder, ssb.dates, ssb.part, ssb.supplier
        WHERE {TO_DATES} AND {TO_PARTS} AND {TO_SUPPLIERS} AND s_region = '{{region}}'
            AND {{rows}} AND {{condition}}
        GROUP BY d_yearmonthnum, p_brand1 ORDER BY d_yearmonthnum, p_brand1""",
    3: f"""
        SELECT {{groups}}, d_yearmonthnum, sum({{measure}}) AS revenue
        FROM ssb.customer, ssb.lineorder_{{year}} AS lineorder, ssb.supplier, ssb.dates
        WHERE {TO_CUSTOMERS} AND {TO_SUPPLIERS} AND {TO_DATES}
            AND {{rows}} AND {{condition}}
        GROUP BY {{groups}}, d_yearmonthnum ORDER BY d_yearmonthnum, revenue DESC""",
    4: f"""
        SELECT {{groups}}, sum({{measure}}) AS profit
        FROM ssb.dates, ssb.customer, ssb.supplier, ssb.part, ssb.lineorder_{{year}} AS lineorder
        WHERE {TO_CUSTOMERS} AND {TO_SUPPLIERS} AND {TO_PARTS} AND {TO_DATES}
            AND {{rows}} AND {{condition}}
        GROUP BY {{groups}} ORDER BY {{groups}}""",
}
BETWEEN_QUANTITIES = "lo_quantity BETWEEN {quantity} - 4 AND {quantity} + 5"
BETWEEN_DISCOUNTS = "lo_discount BETWEEN {discount} - 1 AND {discount} + 1"
OF_QUANTITY = "lo_quantity = {quantity}"
OTHER_DISCOUNTS = "(lo_discount < {discount} OR lo_discount > {discount} + 1)"
IN_REGION = "c_region = '{region}' AND s_region = '{region}'"
IN_CITIES = "c_city IN ('{city}', '{other_city}') AND s_city IN ('{city}', '{other_city}')"
OF_MAKERS = "(p_mfgr = 'MFGR#{maker}' OR p_mfgr = 'MFGR#{other_maker}')"
# Of each query its groups and its condition.
QUERIES = {
    "1.1": ("", "d_year = {year} AND lo_quantity < {quantity}"),
    "1.2": ("", f"d_yearmonthnum = {{year}}{{month:02}} AND {BETWEEN_QUANTITIES}"),
    "1.3": ("", f"d_weeknuminyear = {{week}} AND d_year = {{year}} AND {BETWEEN_QUANTITIES}"),
    "2.1": ("", "p_category = 'MFGR#{category}'"),
    "2.2": ("", "p_brand1 BETWEEN 'MFGR#{category}{brand}' AND 'MFGR#{category}{last_brand}'"),
    "2.3": ("", "p_brand1 = 'MFGR#{category}{brand}'"),
    "3.1": ("c_nation, s_nation", IN_REGION),
    "3.2": ("c_city, s_city", "c_nation = '{nation}' AND s_nation = '{nation}'"),
    "3.3": ("c_city, s_city", IN_CITIES),
    "3.4": ("c_city, s_city", f"{IN_CITIES} AND d_yearmonth = '{{month_name}}{{year}}'"),
    "4.1": ("d_yearmonthnum, c_nation", f"{IN_REGION} AND {OF_MAKERS}"),
    "4.2": ("d_yearmonthnum, s_nation, p_category", f"{IN_REGION} AND {OF_MAKERS}"),
    "4.3": (
        "d_yearmonthnum, s_city, p_brand1",
        "c_region = '{region_of_nation}' AND s_nation = '{nation}' AND p_category = 'MFGR#{category}'",
    ),
}


@dataclasses.dataclass(frozen=True)
class Query:
    """A query of the list."""

    name: str
    year: int
    sql: str

    @property
    def flight(self) -> int:
        """The number before the dot."""
        return int(self.name[0])


class Mode(Coordinator):
    """The coordinator of a mode, with a session."""

    def __init__(self, cluster, name, stack, options, pushdown):
        super().__init__(cluster, f"serve-{name}", stack, *options)
        self.pushes_down = pushdown != "off"
        self.session = Flight(self, stack)
        for setting in (f"aubade.pushdown = {pushdown}", "aubade.fragment_cache = off"):
            self.session.run(f"SET {setting}")


def arguments():
    options = parser(__doc__, runs=3)
    options.add_argument("--scale", type=float, default=1.0, help="TPC-H scale factor")
    options.add_argument("--rate", default="1gbit", help="of the link, as tc writes it; off: no link")
    options.add_argument("--pool", type=float, default=0.25, help="the buffer pool's part of the working set")
    options.add_argument("--theta", type=float, help="of the Zipf distribution (default: by the mix)")
    options.add_argument("--mix", choices=("plain", "weighted"), default="plain", help="of the queries")
    options.add_argument("--sets", type=int, default=5, help="sets of the 13 queries that are timed")
    options.add_argument("--warm-up", type=int, default=5, help="sets before these, which are not")
    options.add_argument("--seed", type=int, default=1, help="of the queries")
    options.add_argument("--nodes", type=int, default=6, help="storage nodes")
    options.add_argument("--copies", type=int, default=6, help="replicas of every segment")
    return options


def draw(name, generator, theta, mix):
    """A query with parameters of its own."""
    weights = [rank**-theta for rank in range(1, len(YEARS) + 1)]
    (year,) = generator.choices(YEARS, weights)
    month = generator.randint(1, LAST_MONTH.get(year, 12))
    city, other_city = (f"{generator.choice(list(NATIONS))[:9]:9}{generator.randrange(10)}" for _ in range(2))
    category, brand = 10 * generator.randint(1, 5) + generator.randint(1, 5), generator.randint(10, 30)
    nation = generator.choice(list(NATIONS))
    values = {
        "year": year,
        "month": month,
        "month_name": MONTHS[month - 1],
        # One in the second half of that month.
        "week": 30 * month // 7,
        "discount": generator.randint(3, 7),
        "quantity": generator.randint(15, 30),
        "region": generator.choice(REGIONS),
        "nation": nation,
        "region_of_nation": NATIONS[nation],
        "city": city,
        "other_city": other_city,
        "maker": generator.randint(1, 5),
        "other_maker": generator.randint(1, 5),
        "category": category,
        "brand": brand,
        "last_brand": brand + 7,
    }
    rows = f"lo_orderdate BETWEEN {year}0101 AND {year}1231"
    flight, measure = int(name[0]), "lo_revenue - lo_supplycost" if name[0] == "4" else "lo_revenue"
    keeps_few = generator.random() < 0.5
    if mix == "weighted":
        rows += f" AND {OF_QUANTITY if keeps_few else OTHER_DISCOUNTS}"
        measure = "lo_revenue" if keeps_few else "lo_extendedprice * lo_discount"
    elif flight > 1:
        rows += f" AND {BETWEEN_QUANTITIES if keeps_few else BETWEEN_DISCOUNTS}"
    groups, condition = QUERIES[name]
    texts = {"rows": rows.format(**values), "condition": condition.format(**values)}
    return Query(name, year, FLIGHTS[flight].format(measure=measure, groups=groups, **texts, **values))


def draw_sets(count, generator, theta, mix):
    """So many sets of all queries, each in an order of its own."""
    names = [name for name in QUERIES if mix == "plain" or name[0] != "1"]
    queries = []
    for _ in range(count):
        queries += [draw(name, generator, theta, mix) for name in generator.sample(names, len(names))]
    return queries


def derive(cluster):
    """Makes the tables of the Star Schema Benchmark from those of TPC-H."""
    with contextlib.ExitStack() as stack:
        session = Adbc(cluster, stack)
        session.run("CREATE SCHEMA ssb")
        for table, sql in DIMENSIONS.items():
            session.run(f"CREATE TABLE ssb.{table} AS {sql}")
        for year in YEARS:
            before = f"CREATE TABLE ssb.lineorder_{year} AS"
            for month in range(1, 13):
                session.run(f"{before} {LINEORDER.format(first=f'{year}-{month:02}-01')}")
                before = f"INSERT INTO ssb.lineorder_{year}"


def columns_in(texts, prefix):
    """The columns with a prefix that are named."""
    return set(re.findall(rf"\b{prefix}_[a-z0-9]+\b", texts))


def columns_of(queries):
    """The columns that the queries read, by table; those of lineorder for each year."""
    texts = " ".join(query.sql for query in queries)
    columns = {}
    for prefix, tables in TABLES.items():
        of_table = sorted(columns_in(texts, prefix))
        columns |= {table: of_table for table in tables if of_table}
    return columns


def is_small(table):
    """Whether it is none of those of each year."""
    return table not in TABLES["lo"]


def cache_tables(session, queries, small_only=False):
    """Loads all columns of tables that the queries read into the buffer pool."""
    for table, columns in columns_of(queries).items():
        if is_small(table) or not small_only:
            session.run(f"CACHE TABLE ssb.{table} ({', '.join(columns)})")


def working_set(cluster, queries):
    """Bytes that each column takes in a buffer pool which the queries read, by table."""
    with contextlib.ExitStack() as stack:
        # Its pool is of the size that is the default for this machine.
        session = Flight(Coordinator(cluster, "working-set", stack), stack)
        cache_tables(session, queries)
        columns = "SELECT table_name, column_name, bytes FROM system.buffer_pool WHERE schema_name = 'ssb'"
        found = {}
        for row in session.run(columns).to_pylist():
            found.setdefault(row["table_name"], {})[row["column_name"]] = row["bytes"]
        return found


def total_bytes(needed):
    """Of all columns of some tables."""
    return sum(sum(columns.values()) for columns in needed.values())


def small_bytes(needed):
    """Of all columns of the small tables."""
    return total_bytes({table: columns for table, columns in needed.items() if is_small(table)})


def modes(pool_bytes, needed):
    """What makes each mode: options of its coordinator, and how it pushes down."""
    pool = ("--buffer-pool", str(pool_bytes))
    return {
        # With room for what is estimated before it is loaded.
        "all": (("--buffer-pool", str(2 * total_bytes(needed))), "auto"),
        # With the room for what is estimated, beside which only the smallest segment of lineorder finds any.
        "dims": (("--buffer-pool", str(max(MIB, 3 * small_bytes(needed) // 2))), "auto"),
        "hybrid": (pool, "auto"),
        "pool": (pool, "off"),
        "pushdown": (("--buffer-pool", "0"), "auto"),
        "lfu": ((*pool, "--buffer-pool-policy", "lfu"), "auto"),
    }


def start_modes(cluster, pool_bytes, needed, queries, stack):
    """A coordinator with a session for each mode."""
    coordinators = {}
    for mode, (options, pushdown) in modes(pool_bytes, needed).items():
        coordinators[mode] = Mode(cluster, mode, stack, options, pushdown)
        if mode in ("all", "dims"):
            cache_tables(coordinators[mode].session, queries, small_only=mode == "dims")
    return coordinators


def link_bytes():
    """What has come over the link so far from the storage nodes."""
    return int(pathlib.Path(f"/sys/class/net/{Link.NEAR}/statistics/rx_bytes").read_text())


@dataclasses.dataclass
class Turn:
    """What a mode took for the list."""

    seconds: list[float]
    records: list[dict]
    tables: list
    link_bytes: int | None


def ask(coordinator, queries, has_link):
    """Asks all queries, one after the other, and then for their records."""
    session = coordinator.session
    before = link_bytes() if has_link else 0
    seconds, tables, ids = [], [], []
    for query in queries:
        started = time.perf_counter()
        tables.append(session.run(query.sql))
        seconds.append(time.perf_counter() - started)
        ids.append(session.query_id)
    coordinator.settle()
    sent = link_bytes() - before if has_link else None
    return Turn(seconds, [session.record_of(query_id) for query_id in ids], tables, sent)


def differences(queries, turns):
    """Names of the queries for which not all modes gave the same rows, and how many had any."""
    differing, with_rows = set(), 0
    for index, query in enumerate(queries):
        first, *others = (rows_of(turn.tables[index]) for turn in turns.values())
        with_rows += bool(first) and first != [[None]]
        if not all(same(first, rows) for rows in others):
            differing.add(query.name)
    return differing, with_rows


def measure(coordinators, warm_up, queries, runs, has_link):
    """Turns of all modes in each run, the first one moving on; and the queries whose results differ."""
    names = list(coordinators)

    def turns_of(names, queries):
        return {mode: ask(coordinators[mode], queries, has_link) for mode in names}

    differing, _ = differences(warm_up, turns_of(names, warm_up))
    rounds = []
    for run in range(runs):
        first = run % len(names)
        turns = turns_of(names[first:] + names[:first], queries)
        more, with_rows = differences(queries, turns)
        differing |= more
        rounds.append(turns)
        print(f"run {run + 1} of {runs} done", file=sys.stderr)
    return rounds, sorted(differing), with_rows


def figures(coordinator, turns, queries):
    """The figures of one mode, of all its turns."""
    records = [record for turn in turns for record in turn.records]

    def total(key):
        return sum(record[key] for record in records)

    def seconds_of(flight, turn):
        return sum(seconds for seconds, query in zip(turn.seconds, queries) if query.flight == flight)

    flights = sorted({query.flight for query in queries})
    sent = [turn.link_bytes for turn in turns]
    return {
        "pushes_down": coordinator.pushes_down,
        "seconds": [sum(turn.seconds) for turn in turns],
        "flight_seconds": {flight: [seconds_of(flight, turn) for turn in turns] for flight in flights},
        "query_seconds": [turn.seconds for turn in turns],
        "bytes_wire": total("bytes_wire") / len(turns),
        "bytes_link": None if None in sent else statistics.fmean(sent),
        "segments_scanned": total("segments_scanned"),
        "segments_pooled": total("segments_pooled"),
        "segments_fetched": total("segments_fetched"),
        "storage_cpu_seconds": total("storage_cpu_micros") / 1e6 / len(turns),
    }


def run(options, folder, stack):
    # A coordinator keeps the records of the last thousand queries.
    require(0 < options.sets * len(QUERIES) < 900, "--sets: at least 1, at most 69")
    require(options.warm_up > 0, "--warm-up: at least 1")
    link = None if options.rate == "off" else make_link(options.rate, stack)
    make = QuietCluster if link is None else functools.partial(LinkedCluster, link)
    cluster = make(folder, options.nodes, options.copies)
    stack.callback(cluster.stop)
    load(cluster, options.scale)
    derive(cluster)

    generator = random.Random(options.seed)
    theta = options.theta if options.theta is not None else THETA[options.mix]
    warm_up = draw_sets(options.warm_up, generator, theta, options.mix)
    queries = draw_sets(options.sets, generator, theta, options.mix)
    needed = working_set(cluster, warm_up + queries)
    pool_bytes = int(options.pool * total_bytes(needed))
    coordinators = start_modes(cluster, pool_bytes, needed, warm_up + queries, stack)
    if link:
        link.limit(options.rate)
    rounds, differing, with_rows = measure(coordinators, warm_up, queries, options.runs, bool(link))
    tables = [table for table in cluster.status()["tables"] if table["name"].startswith("ssb.")]
    return {
        "scale": options.scale,
        "rate": options.rate,
        "nodes": options.nodes,
        "copies": options.copies,
        "theta": theta,
        "mix": options.mix,
        "seed": options.seed,
        "working_set_bytes": total_bytes(needed),
        "needed_bytes": needed,
        "pool_bytes": pool_bytes,
        # What is left of it beside results of fragments.
        "columns_limit_bytes": metric(coordinators["hybrid"].session, "buffer_pool_limit_bytes"),
        "segments": sum(table["segments"] for table in tables),
        "warm_up": len(warm_up),
        "queries": [dataclasses.asdict(query) for query in queries],
        "queries_with_rows": with_rows,
        "modes": {
            mode: figures(coordinator, [turns[mode] for turns in rounds], queries)
            for mode, coordinator in coordinators.items()
        },
        "results_differ": differing,
    }


def best_seconds(result):
    """What the list would take with the best choice of columns for the room that the pool has, about: as if all
    segments of a year were alike."""
    of_query = {
        mode: [statistics.median(turns) for turns in zip(*result["modes"][mode]["query_seconds"])]
        for mode in ("all", "dims")
    }
    gains = {table: {} for table in TABLES["lo"]}
    for query, with_all, with_dims in zip(result["queries"], of_query["all"], of_query["dims"]):
        wanted = gains[f"lineorder_{query['year']}"]
        columns = frozenset(columns_in(query["sql"], "lo"))
        wanted[columns] = wanted.get(columns, 0.0) + with_dims - with_all
    needed = result["needed_bytes"]
    room = max(0, result["columns_limit_bytes"] - small_bytes(needed))
    tables = [(wanted, needed[table]) for table, wanted in gains.items() if wanted]
    gained = most_gained(tables, room) / sum(of_query["dims"])
    return (1 - gained) * statistics.median(result["modes"]["dims"]["seconds"])


def segment_shares(of_mode):
    """Of the segments scanned, those in the pool, those pushed down to, and those asked for whole columns."""
    scanned, pooled, fetched = (of_mode[f"segments_{what}"] for what in ("scanned", "pooled", "fetched"))
    whole = fetched if of_mode["pushes_down"] else scanned - pooled
    return [part / max(scanned, 1) for part in (pooled, scanned - pooled - whole, whole)]


def verdict(ratio, target):
    """A ratio beside its target."""
    return f"{ratio:.2f}x; target {target:g}x: {'reached' if ratio >= target else 'missed'}"


def report(result):
    """Prints one line per mode, then how they compare."""
    where = "on loopback" if result["rate"] == "off" else f"over a link of {result['rate']} each way"
    print(heading(result, f"Star Schema Benchmark from TPC-H scale {result['scale']:g} {where}"))
    nodes = f"{result['nodes']} storage nodes, {result['copies']} copies"
    print(f"{nodes}, {result['segments']} segments, pyarrow.flight client")
    queries = f"{result['warm_up']} queries to warm up, then {len(result['queries'])}, {result['mix']} mix"
    sizes = (f"{result[f'{what}_bytes'] / MIB:.1f} MiB" for what in ("working_set", "pool"))
    print(f"{queries}, theta {result['theta']:g}; working set {next(sizes)}, pool {next(sizes)}")
    print("queries MiB: what storage nodes sent for queries; link MiB: all that came, also to fill the pool;")
    print("pooled, pushed, whole: scanned segments in the pool, pushed down to, and asked for whole columns;")
    print("flights: seconds of their queries")
    print()
    flights = next(iter(result["modes"].values()))["flight_seconds"]
    head = f"{'mode':<9} {'seconds':>8} {'queries/s':>10} {'queries MiB':>12} {'link MiB':>9}"
    head += f" {'pooled':>8} {'pushed':>8} {'whole':>8}"
    print(head + "".join(f" {f'flight {flight}':>9}" for flight in flights))
    rates = {}
    for mode, of_mode in result["modes"].items():
        seconds = statistics.median(of_mode["seconds"])
        rates[mode] = len(result["queries"]) / seconds
        sent = "-" if of_mode["bytes_link"] is None else f"{of_mode['bytes_link'] / MIB:.1f}"
        line = f"{mode:<9} {seconds:>8.2f} {rates[mode]:>10.2f}"
        line += f" {of_mode['bytes_wire'] / MIB:>12.1f} {sent:>9}"
        line += "".join(f" {100 * share:>6.1f} %" for share in segment_shares(of_mode))
        by_flight = (statistics.median(seconds) for seconds in of_mode["flight_seconds"].values())
        print(line + "".join(f" {seconds:>9.3f}" for seconds in by_flight))
    print()
    better = max(("pool", "pushdown"), key=rates.get)
    verdict_of_hybrid = verdict(rates["hybrid"] / rates[better], HYBRID_TARGET)
    print(f"hybrid against {better}, the better of the two: {verdict_of_hybrid}")
    print(f"weighted (hybrid) against lfu: {verdict(rates['hybrid'] / rates['lfu'], POLICY_TARGET)}")
    best_rate = len(result["queries"]) / best_seconds(result)
    for what, rate in (("all columns in the pool", rates["all"]), ("the best choice for its room, about", best_rate)):
        print(f"with {what}: {', '.join(f'{rate / rates[mode]:.2f}x {mode}' for mode in (better, 'lfu'))}")
    years = [query["year"] for query in result["queries"]]
    shares = ", ".join(f"{year} {100 * years.count(year) / len(years):.0f} %" for year in YEARS)
    print(f"years asked for: {shares}; {result['queries_with_rows']} of {len(years)} queries have rows")
    differing = ", ".join(f"q{name}" for name in result["results_differ"])
    print(f"RESULTS DIFFER: {differing}" if differing else "results: the same in all modes")


if __name__ == "__main__":
    main(arguments(), run, report)
