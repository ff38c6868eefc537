"""Streams through the port proxy, to a program that runs inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import websocket

from conftest import Api, wait_for

PROGRAM = Path(__file__).parent / "inside" / "serve.py"
PORT = 8765


@pytest.fixture
def served(api: Api, sandbox: str) -> Iterator[str]:
    """A sandbox in which the program serves; the path of its port."""
    query = {"path": "/tmp/serve.py"}
    api("PUT", f"/sandboxes/{sandbox}/files", params=query, data=PROGRAM.read_bytes(), expect=201)
    assert api.run(sandbox, f"(python3 /tmp/serve.py {PORT} >/tmp/log 2>&1 &)")["exitCode"] == 0
    path = f"/sandboxes/{sandbox}/ports/{PORT}"
    wait_for("the program to serve", lambda: api("GET", f"{path}/nothing").status_code == 404)
    yield path


def test_a_websocket_reaches_a_program_inside(api: Api, served: str) -> None:
    address = f"{api.base.replace('http', 'ws')}/v1{served}/echo"
    socket = websocket.create_connection(address, header={"AGENTBOX-API-KEY": api.key}, timeout=20)
    for message in ["hello", "grüße", "x" * 300, "y" * 100_000]:
        socket.send(message)
        assert socket.recv() == message
    socket.send_binary(bytes(range(256)))
    assert socket.recv() == bytes(range(256))
    socket.send_close(4000, b"enough")
    code, frame = socket.recv_data(control_frame=True)
    assert (code, frame) == (websocket.ABNF.OPCODE_CLOSE, (4000).to_bytes(2, "big") + b"enough")
    socket.close()


def test_a_websocket_without_a_key_is_refused(api: Api, served: str) -> None:
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        websocket.create_connection(f"{api.base.replace('http', 'ws')}/v1{served}/echo", timeout=20)
    assert refused.value.status_code == 401


def test_server_sent_events_arrive_as_they_are_sent(api: Api, sandbox: str, served: str) -> None:
    with api("GET", f"{served}/events", expect=200, stream=True) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        lines = answer.iter_lines(chunk_size=1)
        # Nothing more is sent before the file is there, so this came by itself.
        assert [next(lines) for _ in range(3)] == [b"event: hello", b"data: first", b""]
        assert api.run(sandbox, "touch /tmp/go-on")["exitCode"] == 0
        rest = list(lines)
    assert rest == [b"id: 0", b"data: more", b"", b"id: 1", b"data: more", b"", b"id: 2", b"data: more", b""]
