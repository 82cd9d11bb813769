"""A local web server that can be as unreliable as real ones, and small archives for it to serve."""

import contextlib
import io
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web:
    """Files by path, and how the server misbehaves."""

    def __init__(self):
        self.files, self.asked = {}, []
        self.most = None  # bytes of one answer after which the line is cut
        self.ranges = True  # understands Range
        self.version = '"1"'  # ETag; None: the server gives none
        self.codes = []  # status codes of the next answers, instead of the file
        self.kind = "application/octet-stream"
        self.redirects = {}  # path -> address
        self.length = True  # says Content-Length; or a text: says that
        self.silence = 0  # seconds of silence instead of an end, when `most` has been sent
        self.drip = None  # bytes every hundredth of a second
        self.packed = None  # Content-Encoding


def handler(web):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_GET(self):
            web.asked.append((self.path, self.headers.get("Range")))
            if web.codes:
                return self.send_error(web.codes.pop(0))
            if self.path in web.redirects:
                self.send_response(302)
                self.send_header("Location", web.redirects[self.path])
                return self.end_headers()
            if self.path not in web.files:
                return self.send_error(404)
            content, begin = web.files[self.path], 0
            wanted = self.headers.get("Range")
            same = self.headers.get("If-Range", web.version) == web.version
            if wanted and web.ranges and same:
                begin = int(wanted.removeprefix("bytes=").rstrip("-"))
                if begin >= len(content):
                    return self.send_error(416)
            self.send_response(206 if begin else 200)
            self.send_header("Content-Type", web.kind)
            if web.length:
                told = len(content) - begin if web.length is True else web.length
                self.send_header("Content-Length", str(told))
            if web.packed:
                self.send_header("Content-Encoding", web.packed)
            if begin:
                self.send_header(
                    "Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}"
                )
            if web.version:
                self.send_header("ETag", web.version)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.send(content[begin:][: web.most])

        def send(self, content):
            for k in range(0, len(content), web.drip or len(content)):
                self.wfile.write(content[k : k + (web.drip or len(content))])
                time.sleep(0.01 if web.drip else 0)
            if web.most and len(content) == web.most:
                time.sleep(web.silence)

    return Handler


@contextlib.contextmanager
def serving():
    """(address, Web) of a running server."""
    web = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(web))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", web
    finally:
        server.shutdown()
        server.server_close()


def tar_bytes(files, kind="gz", more=()):
    """A tar file of name -> bytes, and of further TarInfo objects."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{kind}") as tar:
        for member in more:
            tar.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def zip_bytes(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return data.getvalue()


def special(name, kind, to=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member
