"""Run programs as a user does."""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

REPO = Path(__file__).resolve().parents[1]

# Each program runs in a process forked from this one, which has imported what takes seconds. SIGINT
# is ignored where the tests run in the background of a shell.
_FORK = """
import json, os, runpy, signal, sys, traceback
import detectron2.engine, matplotlib.figure, yolact_d2

for number, args in enumerate(json.load(sys.stdin)):
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for fd, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT), fd)
        sys.argv, code = args, 0
        try:
            runpy.run_path(args[0], run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with open(f"{number}.code", "w") as file:
        file.write(str(code))
"""


def run_programs(*commands, **env):
    """Run Python programs one after the other, each a list of its path and its arguments.

    Args:
        env: environment variables.
    """
    commands = [[str(word) for word in command] for command in commands]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-c", _FORK],
            input=json.dumps(commands),
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            text=True,
            check=True,
        )
        read = [
            [Path(folder, f"{i}.{kind}").read_text() for kind in ("code", "out", "err")]
            for i in range(len(commands))
        ]
    return [
        subprocess.CompletedProcess(command, int(code), out, err)
        for command, (code, out, err) in zip(commands, read)
    ]


def run_here(program, *args):
    """Run a program of the repository, such as "tools/convert_weights.py", in this process, which
    is faster; the result is that of `subprocess.run` with captured text."""
    argv = [str(REPO / program), *map(str, args)]
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def assert_refused(done, *messages):
    """Check that a program ended with status 2 and a message, without a traceback."""
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr and "Traceback" not in done.stderr
    for message in messages:
        assert str(message) in done.stderr
