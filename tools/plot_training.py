#!/usr/bin/env python3
"""Draw losses, learning rate and AP of one training run, or of several over each other."""

import argparse
import os

from yolact_d2.files import check_writable, save_figure
from yolact_d2.visualization.training import read_run, training_figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="OUTPUT_DIR, or its metrics.json")
    parser.add_argument("--output", required=True, help="the PNG file to write")
    args = parser.parse_args()

    runs = {}
    try:
        check_writable(args.output)
        for path in args.runs:
            run = runs[os.path.normpath(path)] = read_run(path)
            if run.num_unreadable:
                print(f"{path}: {run.num_unreadable} line(s) cut off, left out")
        save_figure(training_figure(runs), args.output)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{args.output}: {len(runs)} run(s)")


if __name__ == "__main__":
    main()
