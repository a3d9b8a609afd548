"""A program of ours on a terminal of its own."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time

BOUND = 60  # seconds


class Terminal:
    """A program on a terminal of 160 × 45: wide enough for a whole error code behind a duration of any length."""

    def __init__(self, folder, *words):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 45, 160, 0, 0))
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("RECEIVER_") and name not in ("NO_COLOR", "COLUMNS", "LINES")
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "receiver", *words],
            cwd=folder,
            env=env | {"TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self.text = ""
        self._is_over = False

    def read_until(self, condition, bound=BOUND):
        end = time.monotonic() + bound
        while not condition(self.text):
            readable, _, _ = select.select([self._master], [], [], 0.05)
            assert time.monotonic() < end, self.text
            if readable:
                self.text += self._read()
                assert not self._is_over or condition(self.text), self.text

    def _read(self):
        try:
            return os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # the program has ended and closed its side
            self._is_over = True
            return ""

    def type(self, text):
        os.write(self._master, text.encode())

    def close(self):
        self.process.kill()
        self.process.wait(BOUND)
        os.close(self._master)
