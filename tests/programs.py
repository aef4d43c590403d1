"""Run programs in this process, which is faster than starting them."""

import contextlib
import io
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

REPO = Path(__file__).resolve().parents[1]


def run_here(program, *args):
    """Run a program of the repository, such as "tools/convert_weights.py"; its result is that of
    `subprocess.run` with captured text."""
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
