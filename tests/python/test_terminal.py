"""`sandbank exec -it` on a terminal, as a person uses it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest

from conftest import WAIT_SECONDS, Api, Server, binary


class Terminal:
    """A terminal with a program on it."""

    def __init__(self, command: list[str], environment: dict[str, str], rows: int, cols: int) -> None:
        self.master, slave = pty.openpty()
        self.slave = slave
        self.resize(rows, cols)
        self.before = termios.tcgetattr(slave)
        self.seen = b""

        def own_the_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, preexec_fn=own_the_terminal
        )

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def expect(self, text: bytes) -> None:
        """Waits until the screen has shown it; what came before is forgotten."""
        deadline = time.monotonic() + WAIT_SECONDS
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"waited in vain for {text!r}; shown was {self.seen!r}"
            self.seen += os.read(self.master, 4096)
        self.seen = self.seen.split(text, 1)[1]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(server: Server, api: Api, sandbox: str) -> Iterator[Terminal]:
    environment = {**os.environ, "SANDBANK_URL": api.base, "SANDBANK_KEY": api.key}
    command = [str(binary()), "exec", "-it", sandbox, "--", "sh"]
    terminal = Terminal(command, environment, rows=33, cols=101)
    yield terminal
    terminal.close()


def test_a_shell_on_a_terminal_is_resized_interrupted_and_gives_its_code_and_the_terminal_back(terminal: Terminal) -> None:
    # What is typed is put together inside, so that its echo is not taken for the answer.
    terminal.type(b"echo siz''e: $(stty size)\n")
    terminal.expect(b"size: 33 101")
    assert termios.tcgetattr(terminal.slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG) == 0, "it is raw meanwhile"

    terminal.type(b"trap 'echo resiz''ed: $(stty size)' WINCH; echo read''y\n")
    terminal.expect(b"ready")
    terminal.resize(50, 120)
    # dash runs a trap when its read returns, at the latest with the next line.
    terminal.type(b"\n")
    terminal.type(b"until stty size | grep -qx '50 120'; do sleep 0.05; done; echo it fit''s\n")
    terminal.expect(b"it fits")

    terminal.type(b"echo sleep''ing; sleep 60; echo went o''n $?\n")
    terminal.expect(b"sleeping")
    terminal.type(b"\x03")
    terminal.type(b"echo after: $?\n")
    terminal.expect(b"after: 130")

    terminal.type(b"exit 7\n")
    assert terminal.process.wait(timeout=WAIT_SECONDS) == 7
    assert termios.tcgetattr(terminal.slave) == terminal.before, "the terminal is as it was"


def test_the_terminal_is_given_back_when_the_sandbox_goes_away(terminal: Terminal, api: Api, sandbox: str) -> None:
    terminal.type(b"echo read''y\n")
    terminal.expect(b"ready")
    api.release(sandbox)
    assert terminal.process.wait(timeout=WAIT_SECONDS) not in (0, -signal.SIGKILL)
    assert termios.tcgetattr(terminal.slave) == terminal.before
