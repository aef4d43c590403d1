#!/usr/bin/env python3
"""Convert a checkpoint of the authors' YOLACT or EmbedMask code to this project's names, or back.

The direction depends on the names in the file. Conversion is not needed for loading: MODEL.WEIGHTS
accepts both.
"""

import argparse
import os
import sys

import torch

from yolact_d2.checkpoint import from_official, read_state_dict, to_official
from yolact_d2.checkpoint.fit import describe, has_background
from yolact_d2.checkpoint.names import (
    is_embedmask,
    is_official,
    unknown_keys,
    without_prefix,
)
from yolact_d2.files import atomic_write, check_writable


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", help="a .pth file of the authors' code or of this project")
    parser.add_argument("output", help="the .pth file to write")
    args = parser.parse_args()
    if not os.path.isfile(args.input):
        parser.error(f"there is no file {args.input}")
    try:
        state_dict = without_prefix(read_state_dict(args.input))
        check_writable(args.output)
        if not args.output.endswith(".pth"):
            raise ValueError(f"{args.output}: the output is a .pth file")
    except ValueError as error:
        parser.error(str(error))
    unknown = unknown_keys(state_dict)
    if unknown:
        parser.error(
            f"{args.input} is {describe(state_dict)}, with unknown tensors, such as "
            f"{', '.join(unknown[:3])}"
        )
    theirs = is_official(state_dict)
    if not (theirs or is_embedmask(state_dict) or has_background(state_dict)):
        parser.error(f"{args.input} is {describe(state_dict)}: the authors' code has no such model")
    if theirs:
        converted = {"model": from_official(state_dict), "__author__": "yolact_d2"}
    else:
        converted = to_official(state_dict)
    with atomic_write(args.output) as partial:
        torch.save(converted, partial)
    print(f"{args.output}: {describe(state_dict)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
