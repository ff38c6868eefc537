"""A real server for the tests, and a small client for it that uses nothing but `requests`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import requests

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 30.0

CONFIG = """
listen = "127.0.0.1:0"
[default_quota]
sandboxes = 40
memory_mib = 16384
[limits]
startup_timeout = "2s"
waiting_claims_max = 8
[linux]
disk_watch_period = "200ms"
# Names that no image has are not looked for in the world.
[images]
pull = "never"
"""

T = TypeVar("T")


def wait_for(what: str, seen: Callable[[], T | None]) -> T:
    """Waits until `seen` gives something that is true."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        value = seen()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {WAIT_SECONDS:.0f} s in vain for: {what}")
        time.sleep(0.02)


def binary() -> Path:
    """The program under test: SANDBANK_BIN, else what cargo built last."""
    chosen = os.environ.get("SANDBANK_BIN")
    candidates = [Path(chosen)] if chosen else [ROOT / "target" / kind / "sandbank" for kind in ("release", "debug")]
    built = [path for path in candidates if path.is_file()]
    if not built:
        pytest.fail(f"no binary at {' or '.join(map(str, candidates))}: build it with `cargo build -p sandbank-server`")
    return max(built, key=lambda path: path.stat().st_mtime)


@dataclass
class Api:
    """The native API with one key."""

    base: str
    key: str
    session: requests.Session = field(default_factory=requests.Session)

    def __call__(self, method: str, path: str, *, expect: int | None = None, **options: Any) -> requests.Response:
        headers = {"AGENTBOX-API-KEY": self.key, **options.pop("headers", {})}
        options.setdefault("timeout", 30)
        answer = self.session.request(method, f"{self.base}/v1{path}", headers=headers, **options)
        if expect is not None:
            assert answer.status_code == expect, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer

    def claim(self, pool: str, **more: Any) -> str:
        body = {"poolName": pool, **more}
        return str(self("POST", "/sandboxes", json=body, expect=201).json()["sandbox"]["sandboxId"])

    def release(self, sandbox: str) -> None:
        self("DELETE", f"/sandboxes/{sandbox}", expect=202)

    def run(self, sandbox: str, command: str, **more: Any) -> dict[str, Any]:
        answer = self("POST", f"/sandboxes/{sandbox}/exec", json={"command": command, **more}, expect=200)
        return dict(answer.json())


class Server:
    """A server process with a data directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.config = directory / "sandbank.toml"
        self.config.write_text(CONFIG, encoding="utf-8")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SANDBANK_")}
        command = [str(binary()), "serve", "--config", str(self.config), "--data-dir", str(self.data)]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for("the server to serve", self._notice)

    def _notice(self) -> dict[str, Any] | None:
        assert self.process is not None
        assert self.process.poll() is None, f"the server ended:\n{self.log()}"
        try:
            notice = json.loads((self.data / "server.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return notice if notice["pid"] == self.process.pid else None

    def log(self) -> str:
        return (self.directory / "log").read_text(encoding="utf-8", errors="replace")

    def admin(self) -> Api:
        notice = self._notice()
        assert notice is not None
        return Api(notice["url"], (self.data / "admin.key").read_text(encoding="utf-8").strip())

    def tenant(self, team: str, user: str) -> Api:
        """A fresh tenant, or a fresh key of one that exists."""
        answer = self.admin()("POST", "/admin/api-keys", json={"team": team, "user": user}, expect=201)
        return Api(self.admin().base, answer.json()["apiKey"])

    def empty(self) -> None:
        """Deletes all pools and gives every sandbox back, of every tenant."""
        api = self.admin()
        for tenant in api("GET", "/admin/tenants", expect=200).json()["items"]:
            headers = {"X-Impersonate-Team": tenant["team"], "X-Impersonate-User": tenant["user"]}
            for pool in api("GET", "/sandboxpools?limit=1000", headers=headers).json().get("items", []):
                api("DELETE", f"/sandboxpools/{pool['name']}", headers=headers)
            for sandbox in api("GET", "/sandboxes?warm=true&limit=100", headers=headers).json().get("items", []):
                api("DELETE", f"/sandboxes/{sandbox['sandboxId']}", headers=headers)
        wait_for("all sandboxes to be gone from disk", lambda: not any((self.data / "sandboxes").iterdir()))

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(timeout=15) == 0, self.log()
        finally:
            self.process.kill()
            self.process = None
        noted = json.loads((self.data / "cgroups.json").read_text(encoding="utf-8"))
        left = [str(group) for directory in noted for group in Path(directory).glob("*/")]
        assert not left, f"cgroups were left behind: {left}"
        # It keeps the directories for its next start, and a test has none. Their parents may be shared.
        for directory in map(Path, noted):
            if directory.is_dir():
                directory.rmdir()
            with contextlib.suppress(OSError):
                directory.parent.rmdir()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    if os.geteuid() != 0:
        pytest.skip("sandboxes with all limits need root")
    directory = Path(tempfile.mkdtemp(prefix="sandbank-python-"))
    server = Server(directory)
    try:
        server.start()
        yield server
        server.empty()
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def api(server: Server) -> Api:
    """A tenant of its own, with the key that its owner would have."""
    return server.tenant("red", "ada")


@pytest.fixture(scope="session")
def pool(api: Api) -> str:
    """A pool that keeps two sandboxes warm."""
    body = {"name": "work", "image": "host", "replicas": 2, "replicaMode": "Warm", "memory": "256Mi"}
    api("POST", "/sandboxpools", json=body, expect=201)
    wait_for("a warm sandbox", lambda: api("GET", "/sandboxpools/work").json()["template"]["status"]["idleReplicas"] >= 1)
    return "work"


@pytest.fixture
def sandbox(api: Api, pool: str) -> Iterator[str]:
    sandbox = api.claim(pool)
    yield sandbox
    # One that the test has given back, or that has expired, is gone already.
    assert api("DELETE", f"/sandboxes/{sandbox}").status_code in (202, 404)
