"""The part of Google Cloud Storage's JSON API that gcsfs, google-cloud-storage and tensorstore use.

On loopback, with objects in memory; `environment(port)` sends the three clients here, without credentials.
"""

import base64
import contextlib
import http.server
import itertools
import json
import re
import struct
import threading
import urllib.parse
import zlib

MD5_OF_NOTHING = "1B2M2Y8AsgTpgAmY7PhCfg=="


def environment(port: int) -> dict[str, str]:
    """Variables under which clients of gs:// ask this server, and nothing outside the machine."""
    here = f"127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": f"http://{here}",
        "TENSORSTORE_GCS_HTTP_URL": f"http://{here}",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks for the bucket's kind through gRPC
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_HOST": here,
        "GCE_METADATA_IP": here,
        "GCE_METADATA_ROOT": here,
    }


class Bucket(http.server.ThreadingHTTPServer):
    """Every name of a bucket is this one bucket. `objects`: name -> (generation, bytes); `log`: requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.uploads: dict[str, tuple[str, bytearray]] = {}
        self.log: list[tuple[str, str, int]] = []  # (method, object, bytes of the answer)
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def put(self, name: str, data: bytes) -> dict:
        with self.lock:
            self.objects[name] = (next(self.numbers), data)
        return self.resource(name)

    def resource(self, name: str) -> dict:
        generation, data = self.objects[name]
        return {
            "kind": "storage#object",
            "bucket": "bucket",
            "name": name,
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "md5Hash": MD5_OF_NOTHING,
            "crc32c": base64.b64encode(struct.pack(">I", zlib.crc32(data))).decode(),
            "mediaLink": f"http://127.0.0.1:{self.server_port}/download/storage/v1/b/bucket/o/"
            f"{urllib.parse.quote(name, safe='')}?generation={generation}&alt=media",
        }

    def listing(self, query: dict) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], []
        for name in sorted(self.objects):
            inside = name.startswith(prefix) and name >= query.get("startOffset", "")
            if not inside or name >= query.get("endOffset", "\U0010ffff"):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                prefixes.append(prefix + head + delimiter)
            else:
                items.append(self.resource(name))
        return {"kind": "storage#objects", "items": items, "prefixes": list(dict.fromkeys(prefixes))}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def log_message(self, *args):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):  # a client that has what it wants hangs up
            super().handle()

    def _answer(self, code: int, body=b"", **headers):
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json"} | headers
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.server.log.append((self.command, self.path, len(body)))

    def _missing(self):
        self._answer(404, {"error": {"code": 404, "message": "Not Found"}})

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _route(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self._body()
        bucket, server = self.server, self.server
        if url.path.startswith("/upload/"):
            return self._upload(query, body)
        if url.path.startswith("/batch/"):
            return self._batch(body)
        match = re.fullmatch(r"(?:/download)?/storage/v1/b/[^/]+(?:/o(?:/(.+))?)?/?", url.path)
        if not match:
            return self._missing()
        if not re.search(r"/b/[^/]+/o", url.path):
            return self._answer(200, {"kind": "storage#bucket", "name": "bucket", "id": "bucket"})
        if match[1] is None:
            return self._answer(200, bucket.listing(query))
        name, action, target = re.fullmatch(
            r"(.+?)(?:/(rewrite|move)To/(?:b/[^/]+/)?o/(.+))?", match[1]
        ).groups()
        name = urllib.parse.unquote(name)
        held = server.objects.get(name)
        if held is None:
            return self._missing()
        if target:
            resource = bucket.put(urllib.parse.unquote(target), held[1])
            if action == "move":
                with server.lock:
                    server.objects.pop(name, None)
                return self._answer(200, resource)
            return self._answer(200, {"done": True, "resource": resource})
        if self.command == "DELETE":
            with server.lock:
                server.objects.pop(name, None)
            return self._answer(204)
        if not self._matches(query, held[0]):
            return self._answer(304 if "ifGenerationNotMatch" in query else 412)
        if query.get("alt") != "media":
            return self._answer(200, bucket.resource(name))
        return self._media(*held)

    @staticmethod
    def _matches(query: dict, generation: int) -> bool:
        wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
        return wanted in (None, str(generation)) and unwanted != str(generation)

    def _media(self, generation: int, data: bytes):
        headers = {"x-goog-generation": str(generation), "x-goog-stored-content-length": str(len(data))}
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not span:
            return self._answer(200, data, **headers)
        if span[1]:
            first, last = int(span[1]), min(int(span[2] or len(data) - 1), len(data) - 1)
        else:
            first, last = max(0, len(data) - int(span[2])), len(data) - 1
        if first >= len(data):
            return self._answer(416, Content_Range=f"bytes */{len(data)}")
        headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._answer(206, data[first : last + 1], **headers)

    def _upload(self, query: dict, body: bytes):
        kind, name = query.get("uploadType"), query.get("name")
        if "upload_id" in query:
            return self._chunk(query["upload_id"], body)
        if kind == "multipart":
            boundary = re.search(r"boundary=[\"']?([^\"';]+)", self.headers["Content-Type"])[1].encode()
            described, data = body.split(b"--" + boundary)[1:3]
            name = json.loads(re.split(rb"\r?\n\r?\n", described, maxsplit=1)[1])["name"]
            body = re.split(rb"\r?\n\r?\n", data, maxsplit=1)[1]
            body = body[:-2] if body.endswith(b"\r\n") else body[:-1]
        if name is None:
            name = json.loads(body)["name"]
        held = self.server.objects.get(name, (0, b""))
        if not self._matches(query, held[0]):
            return self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        if kind == "resumable":
            number = f"upload-{next(self.server.numbers):020d}"
            self.server.uploads[number] = (name, bytearray())
            where = (
                f"http://127.0.0.1:{self.server.server_port}/upload/storage/v1/b/bucket/o?upload_id={number}"
            )
            return self._answer(200, Location=where)
        return self._answer(200, self.server.put(name, body))

    def _chunk(self, number: str, body: bytes):
        name, data = self.server.uploads[number]
        data += body
        total = self.headers["Content-Range"].rpartition("/")[2]
        if total == "*":
            return self._answer(308, Range=f"bytes=0-{len(data) - 1}")
        del self.server.uploads[number]
        return self._answer(200, self.server.put(name, bytes(data)))

    def _batch(self, body: bytes):
        parts = []
        for path in re.findall(r"DELETE /storage/v1/b/[^/]+/o/(\S+) HTTP", body.decode()):
            with self.server.lock:
                gone = self.server.objects.pop(urllib.parse.unquote(path), None)
            parts.append(f"--batch\r\n\r\nHTTP/1.1 {'204 No Content' if gone else '404 Not Found'}\r\n\r\n")
        self._answer(
            200, "".join([*parts, "--batch--"]).encode(), Content_Type="multipart/mixed; boundary=batch"
        )

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _route
