"""Programs of ours as processes: started, waited for by the line that they print, stopped."""

import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

from click.testing import CliRunner

from receiver.cli.root import root

PATIENCE = 60  # seconds


class Program:
    """A running `receiver …`. Its lines are read by a thread, so that it never blocks on a full pipe."""

    def __init__(self, folder, words, environ=None, prefix=(), **more):
        env = {name: value for name, value in os.environ.items() if not name.startswith("RECEIVER_")}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "receiver", *map(str, words)],
            cwd=folder,
            env=env | {"PYTHONWARNINGS": "default"} | (environ or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )
        self.lines, self.errors = queue.Queue(), []
        self._threads = [threading.Thread(target=self._read, daemon=True), threading.Thread(target=self._read_errors, daemon=True)]
        for thread in self._threads:
            thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))

    def _read_errors(self):
        for line in self.process.stderr:
            self.errors.append(line.rstrip("\n"))

    def line(self, part=""):
        """The next line of its output that holds this."""
        while True:
            try:
                line = self.lines.get(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(f"no line with {part!r}; stderr: {self.errors}") from None
            if part in line:
                return line

    def stop(self, number=signal.SIGTERM):
        """Its exit code after a signal."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self):
        code = self.process.wait(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)
        self.process.stdout.close()
        self.process.stderr.close()
        return code


@contextmanager
def running(folder, *words, **more):
    program = Program(folder, words, **more)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.process.kill()
            program.wait()


def call(folder, *words, environ=None):
    """A command that ends by itself, in this process with the folder's configuration: (exit code, output, errors)."""
    gone = {name: None for name in os.environ if name.startswith("RECEIVER_")}
    named = ["--config", str(folder / "receiver.toml")] if (folder / "receiver.toml").exists() else []
    result = CliRunner().invoke(root, [*map(str, words), *named], env=gone | (environ or {}), catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr
