"""A small S3 server in this process, for the tests: one bucket in memory, and the bad days that a real one has.

moto knows `If-None-Match` too, but looks and writes in two steps, so that two writers at once can both win.
"""

from __future__ import annotations

import hashlib
import hmac
import http.server
import os
import re
import threading
import urllib.parse
from typing import Callable
from xml.etree import ElementTree
from xml.sax.saxutils import escape

REGION = "eu-central-1"
KEY_ID = "AKIAEXAMPLE"
SECRET = "not/a+secret"
BUCKET = "bucket"
MODIFIED = ("Thu, 01 Jan 2026 00:00:00 GMT", "2026-01-01T00:00:00.000Z")


class Refusal(Exception):
    """An answer other than success; with `done`, it comes although the work was done."""

    def __init__(self, status: int, code: str, done: bool = False):
        super().__init__(code)
        self.status, self.code, self.done = status, code, done


# What goes wrong with a request, told its method and key; or nothing.
Fault = Callable[[str, str], Refusal | None]


class ObjectStore:
    """Serves one bucket on a port that the system picks, from its making until `stop`."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.page_keys = 1000
        self.ignores_conditions = False
        self.secret = SECRET
        self.fault: Fault = lambda method, key: None
        # Method and key of every request; "PUT!" is a PUT that could have overwritten.
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        handler = type("BoundHandler", (_Handler,), {"store": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """The URL for AWS_ENDPOINT."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def environment(self, **changes: str) -> dict[str, str]:
        """The variables that a user would set; nothing of the machine's own AWS settings is left."""
        settings = {
            "AWS_ENDPOINT": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": REGION,
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return kept | settings | changes

    def keys(self, prefix: str = "") -> list[str]:
        """The names below a prefix."""
        with self.lock:
            return sorted(key for key in self.objects if key.startswith(prefix))

    def stop(self) -> None:
        """Stops serving; connections that are open stay until their client goes."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(5)

    def answer(self, method: str, key: str, query: dict[str, str], headers, body: bytes) -> tuple[int, dict, bytes]:
        """Does what one request asks for, all of it under the lock: a conditional write is one step."""
        with self.lock:
            conditional = "If-None-Match" in headers or "If-Match" in headers
            self.requests.append((method if method != "PUT" or conditional else "PUT!", key))
            fault = self.fault(method, key)
            if fault and not fault.done:
                raise fault.with_traceback(None)
            done = self._do(method, key, query, headers, body)
            if fault:
                raise fault.with_traceback(None)
            return done

    def _do(self, method: str, key: str, query: dict[str, str], headers, body: bytes) -> tuple[int, dict, bytes]:
        match method:
            case "GET" if not key:
                return 200, {}, self._list(query)
            case "GET" | "HEAD":
                if key not in self.objects:
                    raise Refusal(404, "NoSuchKey")
                return 200, {"ETag": etag(self.objects[key]), "Last-Modified": MODIFIED[0]}, self.objects[key]
            case "PUT":
                self._check_conditions(key, headers)
                self.objects[key] = body
                return 200, {"ETag": etag(body)}, b""
            case "DELETE":
                self.objects.pop(key, None)
                return 204, {}, b""
            case "POST" if "delete" in query:
                keys = [found.text for found in ElementTree.fromstring(body).iter() if found.tag.endswith("Key")]
                for found in keys:
                    self.objects.pop(found, None)
                deleted = "".join(f"<Deleted><Key>{escape(found)}</Key></Deleted>" for found in keys)
                return 200, {}, f"<DeleteResult>{deleted}</DeleteResult>".encode()
        raise Refusal(501, "NotImplemented")

    def _check_conditions(self, key: str, headers) -> None:
        if self.ignores_conditions:
            return
        found = self.objects.get(key)
        if headers.get("If-None-Match") == "*" and found is not None:
            raise Refusal(412, "PreconditionFailed")
        if "If-Match" in headers and (found is None or headers["If-Match"] != etag(found)):
            raise Refusal(412, "PreconditionFailed")

    def _list(self, query: dict[str, str]) -> bytes:
        after = query.get("continuation-token") or query.get("start-after", "")
        found = sorted(key for key in self.objects if key.startswith(query.get("prefix", "")) and key > after)
        page = found[: min(self.page_keys, int(query.get("max-keys", 1000)))]
        more = len(found) > len(page)
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{MODIFIED[1]}</LastModified>"
            f"<ETag>{escape(etag(self.objects[key]))}</ETag><Size>{len(self.objects[key])}</Size></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        truncated = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        return f"<ListBucketResult><Name>{BUCKET}</Name>{truncated}{contents}{token}</ListBucketResult>".encode()

    def check_signature(self, method: str, path: str, query: dict[str, str], headers, body: bytes) -> None:
        """AWS Signature Version 4, as its specification tells the receiver to check it."""
        pattern = r"AWS4-HMAC-SHA256 Credential=([^/]+)/(.+), ?SignedHeaders=(.+), ?Signature=(\w+)"
        parts = re.fullmatch(pattern, headers.get("Authorization", ""))
        if not parts:
            raise Refusal(403, "AccessDenied")
        key_id, scope, signed, signature = parts.groups()
        if key_id != KEY_ID:
            raise Refusal(403, "InvalidAccessKeyId")
        if headers["x-amz-content-sha256"] not in ("UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest()):
            raise Refusal(400, "XAmzContentSHA256Mismatch")
        quote = lambda text: urllib.parse.quote(text, safe="-_.~")  # noqa: E731
        canonical_query = "&".join(f"{quote(name)}={quote(value)}" for name, value in sorted(query.items()))
        canonical_headers = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in signed.split(";"))
        request = [method, path, canonical_query, canonical_headers, signed, headers["x-amz-content-sha256"]]
        digest = hashlib.sha256("\n".join(request).encode()).hexdigest()
        secret = b"AWS4" + self.secret.encode()
        for part in scope.split("/"):
            secret = hmac.digest(secret, part.encode(), "sha256")
        text = f"AWS4-HMAC-SHA256\n{headers['x-amz-date']}\n{scope}\n{digest}"
        if hmac.digest(secret, text.encode(), "sha256").hex() != signature:
            raise Refusal(403, "SignatureDoesNotMatch")


def etag(body: bytes) -> str:
    """As S3 makes it of an object that came in one piece."""
    return f'"{hashlib.md5(body).hexdigest()}"'


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """A client that was killed is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    store: ObjectStore

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, _, query_text = self.path.partition("?")
        query = dict(urllib.parse.parse_qsl(query_text, keep_blank_values=True))
        try:
            self.store.check_signature(self.command, path, query, self.headers, body)
            _, bucket, *key = urllib.parse.unquote(path).split("/", 2)
            if bucket != BUCKET:
                raise Refusal(404, "NoSuchBucket")
            status, headers, answer = self.store.answer(self.command, "".join(key), query, self.headers, body)
        except Refusal as refusal:
            status, headers = refusal.status, {"Content-Type": "application/xml"}
            answer = f"<Error><Code>{refusal.code}</Code><Message>{refusal.code}</Message></Error>".encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def log_message(self, format, *arguments):
        """Tests look at `requests` instead."""
