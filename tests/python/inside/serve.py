"""Runs inside a sandbox: a WebSocket echo and a stream of server-sent events, from the standard library alone (RFC 6455)."""

from __future__ import annotations

import base64
import hashlib
import http.server
import sys
import time
from pathlib import Path

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/echo":
            self.echo()
        elif self.path == "/events":
            self.events()
        else:
            self.send_error(404)

    def events(self) -> None:
        """One event at once; the others when the file that the test makes is there."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        self.wfile.write(b"event: hello\ndata: first\n\n")
        while not Path("/tmp/go-on").exists():
            time.sleep(0.01)
        for number in range(3):
            self.wfile.write(b"id: %d\ndata: more\n\n" % number)

    def echo(self) -> None:
        """Answers every message with the same, until it is told to close."""
        digest = hashlib.sha1(self.headers["sec-websocket-key"].encode() + MAGIC).digest()
        self.send_response(101)
        self.send_header("upgrade", "websocket")
        self.send_header("connection", "upgrade")
        self.send_header("sec-websocket-accept", base64.b64encode(digest).decode())
        self.end_headers()
        self.close_connection = True
        while True:
            first, length = self.rfile.read(2)
            size = length & 0x7F
            if size >= 126:
                size = int.from_bytes(self.rfile.read(2 if size == 126 else 8), "big")
            mask = self.rfile.read(4)
            body = bytes(byte ^ mask[index % 4] for index, byte in enumerate(self.rfile.read(size)))
            if size < 126:
                header = bytes([first, size])
            elif size < 65536:
                header = bytes([first, 126]) + size.to_bytes(2, "big")
            else:
                header = bytes([first, 127]) + size.to_bytes(8, "big")
            self.wfile.write(header + body)
            if first & 0x0F == 8:
                return


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
