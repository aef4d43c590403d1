"""Pictures on disk, never half-written: under another name first, then renamed."""

import os

from matplotlib.figure import Figure


def save_figure(figure: Figure, path: str, dpi: int = 100) -> None:
    """Write a figure as a PNG file.

    Raises:
        OSError: if the file cannot be written.
    """
    partial = f"{path}.partial"
    try:
        figure.savefig(partial, format="png", dpi=dpi)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
