"""The main job, as a program written by a stranger would do it: over plain HTTP."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import requests
import websocket

from conftest import ROOT, Api, Server, wait_for

APP = ROOT / "crates" / "server" / "tests" / "fixtures" / "app"


def put(api: Api, sandbox: str, path: str, content: bytes, **query: str) -> None:
    api("PUT", f"/sandboxes/{sandbox}/files", params={"path": path, **query}, data=content, expect=201)


def get(api: Api, sandbox: str, path: str) -> bytes:
    return api("GET", f"/sandboxes/{sandbox}/files", params={"path": path}, expect=200).content


def test_a_program_of_several_files_runs_with_input_output_and_a_child(api: Api, sandbox: str) -> None:
    for file in sorted(APP.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            put(api, sandbox, f"/home/user/app/{file.relative_to(APP)}", file.read_bytes(), user="user")
    ran = api.run(sandbox, "cd ~/app && EXIT_WITH=3 python3 main.py", user="user")
    assert (ran["exitCode"], ran["stdout"]) == (3, "counted 10 words, 7 different\n")
    assert ran["stderr"] == "a line on standard error\n"
    report = json.loads(get(api, sandbox, "/home/user/app/out/report.json"))
    assert report["words"] == {"der": 2, "sand": 3, "rinnt": 1, "und": 1, "bleibt": 1, "ünïcödé": 1, "砂": 1}
    assert report["child"] == "FROM THE PARENT"
    assert report["uid"] == 1000


def test_output_streams_while_the_program_runs(api: Api, sandbox: str) -> None:
    body = {"command": ["sh", "-c", "echo first; sleep 0.3; printf '\\377' >&2; exit 4"]}
    events = []
    with api("POST", f"/sandboxes/{sandbox}/exec/stream", json=body, expect=200, stream=True) as answer:
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        for line in answer.iter_lines():
            events.append((json.loads(line), time.monotonic()))
    kinds = [event["type"] for event, _ in events]
    assert (kinds[0], kinds[-1]) == ("started", "exited")
    assert events[-1][0]["exitCode"] == 4
    first = next(at for event, at in events if event["type"] == "stdout" and event["data"] == "first\n")
    assert first < events[-1][1], "the first line came before the end"
    assert {"type": "stderr", "data": "/w==", "encoding": "base64"} in [event for event, _ in events]


def test_a_socket_carries_input_output_and_a_terminal(api: Api, sandbox: str) -> None:
    address = f"{api.base.replace('http', 'ws')}/v1/sandboxes/{sandbox}/exec/ws"
    socket = websocket.create_connection(address, header={"AGENTBOX-API-KEY": api.key}, timeout=20)
    socket.send(json.dumps({"command": ["cat"], "stdin": True}))
    assert json.loads(socket.recv())["type"] == "started"
    socket.send_binary(b"\x00bytes\xff")
    assert socket.recv() == b"\x01\x00bytes\xff"
    socket.send(json.dumps({"type": "eof"}))
    ended = json.loads(socket.recv())
    assert (ended["type"], ended["exitCode"]) == ("exited", 0)
    socket.close()
    token = api("POST", f"/sandboxes/{sandbox}/exec-token", expect=200).json()["token"]
    terminal = f"{api.base.replace('http', 'ws')}/v1/sandboxes/{sandbox}/terminal?token={token}&cols=100&rows=30"
    socket = websocket.create_connection(terminal, timeout=20)
    socket.send_binary(b"stty size; exit 5\n")
    seen = b""
    while b"30 100" not in seen:
        seen += socket.recv() or b""
    socket.close()


def test_files_are_listed_moved_and_removed(api: Api, sandbox: str) -> None:
    files = f"/sandboxes/{sandbox}/files"
    content = bytes(range(256)) * 20_000
    put(api, sandbox, "/srv/data/big.bin", content, mode="0640")
    assert get(api, sandbox, "/srv/data/big.bin") == content
    part = api("GET", files, params={"path": "/srv/data/big.bin", "offset": "255", "length": "3"}, expect=200)
    assert part.content == b"\xff\x00\x01"
    stat = api("GET", f"{files}/stat", params={"path": "/srv/data/big.bin"}, expect=200).json()["file"]
    assert (stat["size"], stat["mode"], stat["type"]) == (len(content), "0640", "file")
    api("POST", f"{files}/move", json={"from": "/srv/data/big.bin", "to": "/srv/data/moved"}, expect=200)
    names = [item["name"] for item in api("GET", f"{files}/list", params={"path": "/srv/data"}, expect=200).json()["items"]]
    assert names == ["moved"]
    api("DELETE", files, params={"path": "/srv/data", "recursive": "true"}, expect=204)
    api("GET", files, params={"path": "/srv/data/moved"}, expect=404)


def test_a_port_inside_answers_through_the_server(api: Api, sandbox: str) -> None:
    start = "cd /tmp && echo hello from inside > page && (python3 -m http.server 8000 --bind 127.0.0.1 >/dev/null 2>&1 &)"
    assert api.run(sandbox, start)["exitCode"] == 0

    def answered() -> requests.Response | None:
        answer = api("GET", f"/sandboxes/{sandbox}/ports/8000/page")
        return answer if answer.status_code == 200 else None

    assert wait_for("the port to answer", answered).text == "hello from inside\n"


def test_pause_resume_and_renew(api: Api, sandbox: str) -> None:
    paused = api("POST", f"/sandboxes/{sandbox}/pause", expect=200).json()["sandbox"]
    assert paused["state"] == "paused"
    assert api("POST", f"/sandboxes/{sandbox}/exec", json={"command": "true"}).status_code in (400, 409)
    api("POST", f"/sandboxes/{sandbox}/resume", expect=200)
    assert api.run(sandbox, "echo awake")["stdout"] == "awake\n"
    renewed = api("POST", f"/sandboxes/{sandbox}/renew", json={"timeout": "1h"}, expect=200).json()["sandbox"]
    assert renewed["expiresAt"]


def test_a_lease_that_ends_ends_the_sandbox(api: Api, pool: str) -> None:
    sandbox = api.claim(pool, timeout="300ms")
    wait_for("it to end", lambda: api("GET", f"/sandboxes/{sandbox}").json()["sandbox"]["status"] == "Released")
    assert api("POST", f"/sandboxes/{sandbox}/exec", json={"command": "true"}).status_code in (400, 404, 409)


def test_two_never_get_the_same_sandbox(api: Api, pool: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        claimed = list(threads.map(lambda _: api.claim(pool, startupTimeout="20s"), range(12)))
    assert len(set(claimed)) == 12
    for sandbox in claimed:
        api.release(sandbox)


def test_another_tenants_sandbox_looks_missing(server: Server, api: Api, sandbox: str) -> None:
    eve = server.tenant("blue", "eve")
    missing = eve("GET", "/sandboxes/019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071")
    for method, path, body in [
        ("GET", f"/sandboxes/{sandbox}", None),
        ("DELETE", f"/sandboxes/{sandbox}", None),
        ("POST", f"/sandboxes/{sandbox}/exec", {"command": "true"}),
        ("POST", f"/sandboxes/{sandbox}/pause", {}),
        ("GET", f"/sandboxes/{sandbox}/files?path=/etc/passwd", None),
    ]:
        answer = eve(method, path, json=body)
        assert answer.status_code == missing.status_code == 404, f"{method} {path}: {answer.status_code}"
    assert eve("GET", "/sandboxes").json()["total"] == 0


def test_metrics_and_health(server: Server, api: Api) -> None:
    health = requests.get(f"{api.base}/health", timeout=10).json()
    assert health["status"] == "ok" and "linux" in health["drivers"]
    page = requests.get(f"{api.base}/metrics", timeout=10, headers={"AGENTBOX-API-KEY": server.admin().key}).text
    assert "sandbank" in page
    document = requests.get(f"{api.base}/openapi.json", timeout=10).json()
    assert document["openapi"].startswith("3.")
