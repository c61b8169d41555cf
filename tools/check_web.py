"""Run the golden test of exported web packages in a headless Chromium, with the real LiteRT.js.

A nightly check: it needs a browser and the npm package. The last result is in docs/apps.md.

    npm install --prefix /srv/web @litertjs/core@2.5.3
    python tools/check_web.py --chromium /usr/bin/chromium --modules /srv/web/node_modules
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

from edge.apps.bundle import ExportOptions  # noqa: E402
from edge.apps.export import export  # noqa: E402
from tests import apps_artifacts  # noqa: E402

KINDS = ("classifier", "detector", "segmenter", "keywords", "two_inputs", "nasty", "ssd")
# Shows each test in a frame and posts what it says.
_PAGE = """<!doctype html><script type="module">
for (const kind of KINDS) {
  const frame = document.createElement('iframe');
  frame.src = `/${kind}/test/golden.html`;
  document.body.append(frame);
  let text = 'running';
  for (let i = 0; i < 600 && text === 'running'; i++) {
    await new Promise((done) => setTimeout(done, 100));
    text = frame.contentDocument?.getElementById('result')?.textContent ?? 'running';
  }
  await fetch('/result', { method: 'POST', body: `${kind}: ${text}` });
  frame.remove();
}
await fetch('/result', { method: 'POST', body: 'done' });
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the packages; what is posted goes to a queue."""

    results: queue.Queue[str] = queue.Queue()

    def do_POST(self) -> None:
        """Take a result."""
        self.results.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _prepare(folder: Path, modules: Path) -> None:
    for kind in KINDS:
        # LiteRT.js takes no int8 tensors.
        stored = {"stored": "float32"} if kind in ("classifier", "nasty") else {}
        artifact = getattr(apps_artifacts, kind)(folder / "artifacts", **stored)
        export(artifact, folder / kind, ExportOptions(platform="web"))
        (folder / kind / "node_modules").symlink_to(modules)
    (folder / "index.html").write_text(_PAGE.replace("KINDS", str(list(KINDS))))


def _browse(chromium: str, address: str, profile: Path) -> list[str]:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
    browser = subprocess.Popen(
        [chromium, *flags, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    found = []
    try:
        while (text := Handler.results.get(timeout=120)) != "done":
            found.append(text)
    except queue.Empty:
        found.append("the browser did not finish")
    finally:
        os.killpg(browser.pid, signal.SIGTERM)
        browser.wait(timeout=30)
    return found


def main() -> int:
    """Run the tests; return 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="chromium")
    parser.add_argument("--modules", type=Path, required=True, help="node_modules with @litertjs/core")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekit-web-", ignore_cleanup_errors=True) as text:
        folder = Path(text)
        _prepare(folder, options.modules.resolve())
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=text)) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            found = _browse(options.chromium, f"http://127.0.0.1:{server.server_address[1]}/", folder / "profile")
            server.shutdown()
    sys.stdout.write("".join(f"{line}\n" for line in found))
    return 0 if found == [f"{kind}: passed" for kind in KINDS] else 1


if __name__ == "__main__":
    sys.exit(main())
