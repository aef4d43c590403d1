#!/usr/bin/env python3
"""Convert a checkpoint of the authors' YOLACT to this project's names, or back.

The direction follows from the file. There is no need to convert before loading: MODEL.WEIGHTS takes
either.
"""

import argparse
import os

import torch

from yolact_d2.checkpoint import CheckpointMismatch, from_official, read_state_dict, to_official
from yolact_d2.checkpoint.fit import describe
from yolact_d2.checkpoint.names import is_official, unknown_keys
from yolact_d2.files import atomic_write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", help="a .pth file, official or of this project")
    parser.add_argument("output", help="the .pth file to write")
    args = parser.parse_args()

    if not os.path.isfile(args.input):
        parser.error(f"there is no file {args.input}")
    try:
        state_dict = read_state_dict(args.input)
    except CheckpointMismatch as error:
        parser.error(str(error))
    unknown = unknown_keys(state_dict)
    if unknown:
        parser.error(
            f"{args.input} is {describe(state_dict)}; it has tensors that are neither official nor "
            f"this project's, such as {', '.join(unknown[:3])}"
        )
    if is_official(state_dict):
        converted = {"model": from_official(state_dict), "__author__": "yolact_d2"}
    else:
        converted = to_official(state_dict)

    with atomic_write(args.output) as partial:
        torch.save(converted, partial)
    print(f"{args.output}: {describe(state_dict)}")


if __name__ == "__main__":
    main()
