"""``-H @FILE`` of ``fetch`` reads a pipe to its end, as curl does; Ctrl-C ends the wait for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from support.command_line import finish, run_here, start

from otel_connector.testing import FaultServer, respond


def test_headers_are_read_from_a_process_substitution(server: FaultServer, tmp_path: Path) -> None:
    """A shell gives the name of a pipe, such as /dev/fd/63, for ``<(command)``."""
    server.script("/x", respond(body=b"1"))
    (tmp_path / "urls").write_text(server.url("/x"))
    reader, writer = os.pipe()
    os.write(writer, b"X-Api-Key: s1\nA: b\n")
    os.close(writer)
    assert run_here(tmp_path, "fetch", "urls", "-H", f"@/dev/fd/{reader}").code == 0
    os.close(reader)
    assert (server.requests[0].headers["X-Api-Key"], server.requests[0].headers["A"]) == ("s1", "b")


def test_ctrl_c_ends_the_wait_for_a_pipe_that_is_never_closed(tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("http://127.0.0.1:1/")
    os.mkfifo(tmp_path / "pipe")
    with start(tmp_path, "fetch", "urls", "-H", "@pipe") as process:
        writer = os.open(tmp_path / "pipe", os.O_WRONLY)  # returns when the command has opened it
        process.send_signal(signal.SIGINT)
        done = finish(process)
        os.close(writer)
    assert (done.code, done.out) == (130, "")
    assert not (tmp_path / "logs.csv").exists()
