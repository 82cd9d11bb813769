"""A local web server that can be as unreliable as real ones, and small archives for it to serve."""

import contextlib
import io
import tarfile
import threading
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
        self.length = True  # says Content-Length


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
            if wanted and web.ranges and self.headers.get("If-Range") == web.version:
                begin = int(wanted.removeprefix("bytes=").rstrip("-"))
                if begin >= len(content):
                    return self.send_error(416)
            self.send_response(206 if begin else 200)
            self.send_header("Content-Type", web.kind)
            if web.length:
                self.send_header("Content-Length", str(len(content) - begin))
            if begin:
                self.send_header(
                    "Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}"
                )
            if web.version:
                self.send_header("ETag", web.version)
            self.end_headers()
            self.wfile.write(content[begin:][: web.most])

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
