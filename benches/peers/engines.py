"""One engine in a process of its own: reads SQL as JSON lines, writes times and results as JSON lines.

Usage: engines.py aubade URI [SETTING ...] | datafusion FOLDER | datafusion-memory FOLDER | duckdb FOLDER |
duckdb-tables FOLDER
"""

import datetime
import decimal
import json
import os
import pathlib
import re
import sys
import time

TABLES = ("customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier")


class Aubade:
    """A cluster, through the ADBC driver, as a user would ask it."""

    def __init__(self, uri, *statements):
        import adbc_driver_flightsql.dbapi

        self.connection = adbc_driver_flightsql.dbapi.connect(uri, autocommit=True)
        for statement in statements:
            self.run(statement)

    def run(self, sql):
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetch_arrow_table()

    def peak_memory_bytes(self):
        # The harness looks at the cluster's own processes; this one is only a client.
        return 0


class DataFusion:
    """DataFusion in this process, over Parquet files, with its default settings."""

    def __init__(self, folder):
        import datafusion
        import pyarrow

        self.pyarrow = pyarrow
        self.session = datafusion.SessionContext()
        for table in TABLES:
            self.session.register_parquet(table, f"{folder}/{table}.parquet")

    def run(self, sql):
        frame = self.session.sql(sql)
        batches = frame.collect()
        return self.pyarrow.Table.from_batches(batches, schema=batches[0].schema if batches else frame.schema())

    def peak_memory_bytes(self):
        return own_peak_memory_bytes()


class DataFusionInMemory(DataFusion):
    """The same over tables as Arrow in memory, in as many partitions as there are CPUs."""

    def __init__(self, folder):
        import datafusion
        import pyarrow
        import pyarrow.parquet

        self.pyarrow = pyarrow
        self.session = datafusion.SessionContext()
        cpus = os.cpu_count()
        for table in TABLES:
            batches = pyarrow.parquet.read_table(f"{folder}/{table}.parquet").to_batches(max_chunksize=8192)
            each = -(-len(batches) // cpus)
            partitions = [batches[first : first + each] for first in range(0, len(batches), each)]
            self.session.register_record_batches(table, partitions)


class DuckDB:
    """DuckDB in this process, over Parquet files, with its default settings."""

    def __init__(self, folder):
        import duckdb

        self.connection = duckdb.connect()
        for table in TABLES:
            self.connection.execute(f"create view {table} as select * from read_parquet('{folder}/{table}.parquet')")

    def run(self, sql):
        return self.connection.sql(sql).to_arrow_table()

    def peak_memory_bytes(self):
        return own_peak_memory_bytes()


class DuckDBTables(DuckDB):
    """DuckDB over tables of its own, in memory."""

    def __init__(self, folder):
        import duckdb

        self.connection = duckdb.connect()
        for table in TABLES:
            self.connection.execute(f"create table {table} as select * from read_parquet('{folder}/{table}.parquet')")


def own_peak_memory_bytes():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024


def plain(value):
    """A value that JSON has, numbers of every type as floats."""
    if isinstance(value, (int, float, decimal.Decimal)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()[:10]
    return value


def rows_of(table):
    columns = [column.to_pylist() for column in table.columns]
    return [[plain(value) for value in row] for row in zip(*columns)]


def main():
    kind, *where = sys.argv[1:]
    kinds = {
        "aubade": Aubade,
        "datafusion": DataFusion,
        "datafusion-memory": DataFusionInMemory,
        "duckdb": DuckDB,
        "duckdb-tables": DuckDBTables,
    }
    engine = kinds[kind](*where)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        reply = {}
        try:
            started = time.perf_counter()
            table = engine.run(request["sql"])
            reply["seconds"] = time.perf_counter() - started
            reply["row_count"] = table.num_rows
            if request.get("rows"):
                reply["rows"] = rows_of(table)
        except Exception as error:
            reply["error"] = str(error)
        reply["peak_memory_bytes"] = engine.peak_memory_bytes()
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
