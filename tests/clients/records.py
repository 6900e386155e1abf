"""Plain Arrow Flight, with Flight SQL's messages encoded by hand: what no driver shows."""

import json

import pyarrow.flight

SQL_PACKAGE = "type.googleapis.com/arrow.flight.protocol.sql."


def field(number, data):
    """A length-delimited protobuf field."""
    length, size = b"", len(data)
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


def command(kind, **fields):
    """A Flight SQL command as a descriptor: google.protobuf.Any around a message of string fields."""
    body = b"".join(field(number, text.encode()) for number, text in fields.values())
    wrapped = field(1, (SQL_PACKAGE + kind).encode()) + field(2, body)
    return pyarrow.flight.FlightDescriptor.for_command(wrapped)


def statement(sql):
    """The descriptor of a query."""
    return command("CommandStatementQuery", query=(1, sql))


def read(client, descriptor):
    """What GetFlightInfo says, and the tables that its endpoints give."""
    info = client.get_flight_info(descriptor)
    tables = [client.do_get(endpoint.ticket).read_all() for endpoint in info.endpoints]
    return info, tables


def connect(uri, **options):
    """A Flight client of a server at grpc://HOST:PORT."""
    return pyarrow.flight.connect(uri.replace("grpc://", "grpc+tcp://"), **options)


class HeaderRecorder(pyarrow.flight.ClientMiddlewareFactory):
    """Keeps the response headers of every call."""

    def __init__(self):
        super().__init__()
        self.headers = {}

    def start_call(self, info):
        return _Recording(self.headers)


class _Recording(pyarrow.flight.ClientMiddleware):
    def __init__(self, headers):
        super().__init__()
        self.seen = headers

    def received_headers(self, headers):
        for key, values in headers.items():
            self.seen[key.lower()] = values[0]


def action(client, kind, body=b""):
    """The JSON that an action answers with."""
    (result,) = client.do_action((kind, body))
    return json.loads(result.body.to_pybytes())


def query_record(uri, sql):
    """Runs `sql` and returns the record that the coordinator kept of it."""
    recorder = HeaderRecorder()
    with connect(uri, middleware=[recorder]) as client:
        read(client, statement(sql))
        return action(client, "aubade.query_record", recorder.headers["x-aubade-query-id"].encode())
