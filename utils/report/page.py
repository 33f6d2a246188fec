"""The page of runs: one HTML file that needs nothing else, and a server that shows it while a run goes on.

What models and users have written reaches the page as data only: JSON in which no `<` stands, put into the document as
text nodes. The page's policy (CSP) runs one script and one style, known by their hashes, and loads nothing.
"""

import base64
import contextlib
import hashlib
import html
import json
import re
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from utils.report.page_data import page_data

HERE = Path(__file__).parent
SCRIPTS = ("page_basics.js", "page_charts.js", "page_sections.js", "page_samples.js", "page.js")  # in this order
SECONDS = 3  # between two looks of a watching page
POLICY = ("default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src {connect}; "
          "base-uri 'none'; form-action 'none'")


def page(shown: dict[str, Any], watch_seconds: int = 0) -> str:
    """The page of what `page_data` returns. With `watch_seconds` it asks its server for news that often."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = "".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    policy = POLICY.format(script=fingerprint(script), style=fingerprint(style),
                           connect="'self'" if watch_seconds else "'none'")
    parts = {"title": html.escape(", ".join(run["name"] for run in shown["runs"])), "policy": policy, "style": style,
             "script": script, "data": embedded(shown | {"watch_seconds": watch_seconds})}
    template = (HERE / "page.html").read_text(encoding="utf-8")
    return re.sub("@(title|policy|style|script|data)@", lambda found: parts[found[1]], template)  # in one pass


def fingerprint(text: str) -> str:
    """Of an inline script or style, as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def embedded(value: Any) -> str:
    """JSON for the inside of a <script> element, which nothing in it can end."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII: lone surrogates too
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def write_page(output_dirs: Sequence[Path], path: Path) -> None:
    path.write_text(page(page_data(output_dirs)), encoding="utf-8")


def stamp(output_dirs: Sequence[Path]) -> str:
    """Changes with the runs' files."""
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for folder in output_dirs
              for name in ("metrics.jsonl", "samples.jsonl", "args.json", "environment.json")
              if (path := folder / name).is_file()]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]


class Handler(BaseHTTPRequestHandler):
    """`/` is the page, `/data.json?seen=STAMP` what it shows, without content where the files are those of STAMP."""

    def __init__(self, output_dirs: Sequence[Path], *given: Any):
        self.output_dirs = output_dirs
        super().__init__(*given)

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            return self.answer(HTTPStatus.FORBIDDEN, "text/plain", "not a name of this server")  # DNS rebinding
        path, _, query = self.path.partition("?")
        if path not in ("/", "/data.json"):
            return self.answer(HTTPStatus.NOT_FOUND, "text/plain", "there is nothing here")
        now = stamp(self.output_dirs)
        if path == "/data.json" and query == f"seen={now}":
            return self.answer(HTTPStatus.NO_CONTENT, "application/json", "")
        try:
            shown = page_data(self.output_dirs) | {"stamp": now}
        except (OSError, ValueError) as error:  # a broken file; the next look may find it whole
            return self.answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", str(error))
        if path == "/":
            return self.answer(HTTPStatus.OK, "text/html", page(shown, SECONDS))
        self.answer(HTTPStatus.OK, "application/json", embedded(shown | {"watch_seconds": SECONDS}))

    def answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode(errors="backslashreplace")
        self.send_response(status)
        for name, value in (("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body))),
                            ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"),
                            ("X-Frame-Options", "DENY"), ("Referrer-Policy", "no-referrer")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page asks every few seconds."""


def server(output_dirs: Sequence[Path], port: int) -> ThreadingHTTPServer:
    """Seen on this machine only; port 0 is a free one."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, output_dirs))


def watch(output_dirs: Sequence[Path], port: int) -> None:
    """Serves the page until Ctrl-C."""
    with server(output_dirs, port) as serving:
        print(f"http://127.0.0.1:{serving.server_address[1]} shows the runs as they go on; Ctrl-C ends", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            serving.serve_forever()
