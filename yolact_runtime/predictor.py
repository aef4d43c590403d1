import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .backends import open_model
from .images import resize_antialiased, resize_bilinear, to_channels
from .masks import paste_masks


class Detections(NamedTuple):
    """The N objects found in an image, the best first."""

    boxes: np.ndarray
    """(N, 4) float32 XYXY, in pixels."""
    scores: np.ndarray
    """(N,) float32 in 0..1."""
    classes: np.ndarray
    """(N,) int64, indices of :attr:`Predictor.class_names`."""
    masks: np.ndarray
    """(N, height, width) bool."""
    mask_scores: np.ndarray | None = None
    """(N,) float32, of YOLACT++."""


class Predictor:
    """Finds objects in images with an exported model.

    Attributes:
        class_names: of the classes, empty if unknown.
        category_ids: of the dataset, one for each class, empty if unknown.
        run: from the inputs to the outputs of the file, by name.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 0, bf16: bool = False):
        """
        Args:
            path, threads, bf16: see :func:`open_model`. The file has the outputs "masks" or "full".

        Raises:
            FileNotFoundError, ImportError, ValueError: naming the file and what is wrong.
        """
        path = os.fspath(path)
        self.run, metadata = open_model(path, threads, bf16)
        if "outputs" not in metadata:
            raise ValueError(f"{path!r} was not exported by yolact_d2: it has no metadata")
        if metadata["outputs"] not in ("masks", "full"):
            raise ValueError(
                f"{path!r} has the outputs {metadata['outputs']!r}: export 'masks' or 'full'"
            )
        try:
            self._takes_uint8 = metadata["image"] == "uint8"
            self._channels: str = metadata["channels"]
            self._keep_aspect_ratio: bool = json.loads(metadata["keep_aspect_ratio"])
            self._input_size: Sequence[int] = json.loads(metadata["input_size"])
            self._pixel_mean: Sequence[float] = json.loads(metadata["pixel_mean"])
            self._mask_threshold: float = json.loads(metadata["mask_threshold"])
            self.class_names: list[str] = json.loads(metadata["class_names"])
            self.category_ids: list[Any] = json.loads(metadata["category_ids"])
        except KeyError as error:
            raise ValueError(f"{path!r} lacks {error} in its metadata: export it again") from error

    def __call__(self, image: np.ndarray, score_threshold: float = 0.0) -> Detections:
        """
        Args:
            image: (H, W, 3) uint8, BGR, or (H, W) or (H, W, 1) uint8, grey.
            score_threshold: detections with a lower score are dropped.

        Raises:
            ValueError: if it is no such image.
        """
        inputs, resized = self.prepare(image)
        size = image.shape[:2]
        outputs = {name: values[0] for name, values in self.run(inputs).items()}
        scores = outputs["scores"]
        # Zeros stand for missing detections.
        found = (scores > 0) & (scores >= score_threshold)
        outputs = {name: values[found] for name, values in outputs.items()}
        scale = np.array([size[1] / resized[1], size[0] / resized[0]] * 2, np.float32)
        limits = np.array([size[1], size[0]] * 2, np.float32)
        return Detections(
            np.minimum(outputs["boxes"] * scale, limits),
            outputs["scores"],
            outputs["classes"],
            self.paste(outputs["masks"], size, resized),
            outputs.get("mask_scores"),
        )

    def prepare(self, image: np.ndarray) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
        """What the file takes for an image.

        Returns:
            the inputs by name; (height, width) that the image has in "image", in pixels.
        """
        array = to_channels(image, self._channels)
        size = array.shape[:2]
        if self._takes_uint8:
            return {"image": array[None]}, size
        height, width = self._input_size
        resize = resize_bilinear
        if self._keep_aspect_ratio:  # as Detectron2's ResizeShortestEdge
            scale = min(height / size[0], width / size[1])
            height, width = (max(1, int(side * scale + 0.5)) for side in size)
            resize = resize_antialiased
        resized = resize(array.astype(np.float32), (height, width))
        padded = np.empty((*self._input_size, array.shape[2]), np.float32)
        padded[:] = self._pixel_mean[: array.shape[2]]
        padded[:height, :width] = resized
        inputs = {"image": padded.transpose(2, 0, 1)[None].copy()}
        if self._keep_aspect_ratio:
            inputs["image_size"] = np.array([height, width], np.int64)
        return inputs, (height, width)

    def paste(self, masks: np.ndarray, size: Sequence[int], resized: Sequence[int]) -> np.ndarray:
        """The masks of a file, (N, h, w), in pixels of the image, (N, height, width) bool.

        Args:
            size, resized: (height, width) of the image, and of it in the input "image", in pixels.
        """
        whole, threshold = resized if self._takes_uint8 else self._input_size, self._mask_threshold
        if masks.dtype == bool:
            if tuple(whole) == tuple(size):
                return masks
            masks, threshold = masks.astype(np.float32), 0.5
        # The size that the whole input, with its padding, has in the image.
        target = [-(-w * s // r) for w, s, r in zip(whole, size, resized)]
        return paste_masks(masks, size, target, threshold)
