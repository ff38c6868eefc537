"""What happens when there is no more disk: to one sandbox, and to the whole server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Api, Server, wait_for

MIB = 1024 * 1024


def test_who_writes_more_than_its_disk_limit_fails_and_the_others_go_on(api: Api, sandbox: str) -> None:
    greedy = api("POST", "/sandboxes", json={"image": "host", "disk": "16Mi"}, expect=201).json()["sandbox"]["sandboxId"]
    # No file alone can be larger than the limit. The end may come while the program still runs.
    command = "for n in 1 2 3 4; do head -c 10M /dev/zero > /home/user/$n; done; sleep 10"
    api("POST", f"/sandboxes/{greedy}/exec", json={"command": command})

    def failed() -> dict[str, str] | None:
        shown = api("GET", f"/sandboxes/{greedy}", expect=200).json()["sandbox"]
        return shown if shown["status"] == "Failed" else None

    shown = wait_for("it to fail", failed)
    assert shown["failureReason"] == "DiskLimitExceeded"
    assert str(16 * MIB) in shown["failureMessage"]
    assert api.run(sandbox, "echo unharmed")["stdout"] == "unharmed\n"


@pytest.fixture
def cramped() -> Iterator[Server]:
    """A server whose data is on a file system of its own, of 64 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    directory = Path(tempfile.mkdtemp(prefix="sandbank-small-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=0755", "tmpfs", str(directory)], check=True)
    server = Server(directory)
    try:
        server.start()
        yield server
        server.empty()
    finally:
        server.stop()
        subprocess.run(["umount", "-l", str(directory)], check=True)
        shutil.rmtree(directory, ignore_errors=True)


def fill(file: Path) -> None:
    """Takes all the room there is."""
    with file.open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(MIB))
        except OSError:
            pass
        try:
            while True:
                ballast.write(bytes(512))
        except OSError:
            pass


def test_a_full_disk_refuses_creations_loses_nothing_and_passes(cramped: Server) -> None:
    api = cramped.tenant("red", "ada")
    kept = api("POST", "/sandboxes", json={"image": "host"}, expect=201).json()["sandbox"]["sandboxId"]
    assert api.run(kept, "echo precious > /home/user/note")["exitCode"] == 0
    ballast = cramped.directory / "ballast"
    fill(ballast)
    try:
        answers = [api("POST", "/sandboxes", json={"image": "host"}) for _ in range(20)]
        made = [answer.json()["sandbox"]["sandboxId"] for answer in answers if answer.status_code == 201]
        # A little room is left in the files that exist already, so the first ones may still be made.
        refused = [answer for answer in answers if answer.status_code != 201]
        assert refused, "a full disk takes everything"
        for answer in refused:
            # The database says 503; where it has room in files that exist already, the driver says that the machine has none: 429.
            assert answer.status_code in (429, 503) and "disk" in answer.text, answer.text
        assert api.run(kept, "cat /home/user/note")["stdout"] == "precious\n"
    finally:
        ballast.unlink()

    again = api("POST", "/sandboxes", json={"image": "host"}, expect=201).json()["sandbox"]["sandboxId"]
    assert api.run(again, "echo works")["stdout"] == "works\n"
    held = {item["sandboxId"] for item in api("GET", "/sandboxes?status=Running&limit=100", expect=200).json()["items"]}
    assert held == {kept, again, *made}
    assert api.run(kept, "cat /home/user/note")["stdout"] == "precious\n"
    assert "panicked" not in cramped.log(), cramped.log()[-5_000:]
