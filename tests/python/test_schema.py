"""A schema-driven fuzzer against our own OpenAPI: no server error, no answer that the document does not describe."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from conftest import Api, Server

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# Of each operation; the same ones on every machine.
EXAMPLES = 6
SEED = 20261123
# Fewer requests than this would mean that most operations were never tried.
LEAST = 300
# They answer for as long as something happens inside, or speak WebSocket, or read the server's own file system, or go out to
# registries, or take an archive, which schemathesis cannot make.
STREAMS = r"/(logs/stream|exec/ws|exec/stream|terminal|files/watch|attach|images/import|images/pull|contexts)$|/ports/"


def fuzz(server: Server, api: Api, *more: str) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{api.base}/openapi.json"),
        *("--header", f"AGENTBOX-API-KEY:{api.key}"),
        *("--checks", CHECKS, "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", str(EXAMPLES), "--seed", str(SEED), "--generation-deterministic", "--no-shrink"),
        *("--request-timeout", "15", "--continue-on-failure"),
        *("--exclude-path-regex", STREAMS, "--no-color", "--warnings", "off"),
        *more,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=160, check=False, cwd=server.directory)
    assert ended.returncode == 0, ended.stdout[-12_000:] + ended.stderr[-2_000:]
    generated = re.search(r"(\d+) generated", ended.stdout)
    assert generated and int(generated[1]) >= LEAST, ended.stdout[-2_000:]
    print(f"{generated[1]} requests")


@pytest.fixture
def tenant(server: Server) -> Api:
    return server.tenant("fuzz", "tenant")


def test_a_tenant_can_provoke_no_server_error_and_no_undocumented_answer(server: Server, tenant: Api) -> None:
    fuzz(server, tenant)


def test_an_admin_neither(server: Server) -> None:
    fuzz(server, server.admin(), "--include-path-regex", "/admin/|/images")


def test_the_server_still_works_afterwards(server: Server, api: Api, pool: str) -> None:
    sandbox = api.claim(pool, startupTimeout="20s")
    assert api.run(sandbox, "echo fine")["stdout"] == "fine\n"
    api.release(sandbox)
    assert "panicked" not in server.log(), server.log()[-5_000:]
