"""Predictions drawn on the frames of a video."""

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.video_visualizer import VideoVisualizer, _DetectedInstance

from .labels import drawable_names, text_coverage


class VideoDrawer:
    """Draws like Detectron2's `VideoVisualizer`, which is too slow to keep up with the model.

    Objects keep the colours that `VideoVisualizer` chooses; masks keep their holes.
    """

    def __init__(self, metadata: Metadata):
        """
        Args:
            metadata: without `thing_classes`, labels show the numbers of classes, from 0.
        """
        self._names = drawable_names(tuple(metadata.get("thing_classes") or ()))
        self._tracker = VideoVisualizer(metadata)

    def __call__(self, image: np.ndarray, instances: Instances) -> np.ndarray:
        """A copy of the next frame, (H, W, 3) uint8, BGR, with its predictions drawn on it.

        Args:
            instances: on the CPU, in the resolution of the frame.
        """
        drawing, colors = image.copy(), self._colors(instances)
        masks = instances.pred_masks.numpy().view(np.uint8)
        areas = np.array([cv2.countNonZero(mask) for mask in masks])
        shown = [i for i in np.argsort(-areas) if areas[i]]  # the smallest on top
        for i in shown:
            draw_mask(drawing, masks[i], colors[i])
        for i in shown:  # above all masks
            number = int(instances.pred_classes[i])
            name = self._names[number] if self._names else str(number)
            draw_label(drawing, (name, f"{instances.scores[i] * 100:.0f}%"), masks[i], colors[i])
        return drawing

    def _colors(self, instances: Instances) -> list[np.ndarray]:
        """The colours of objects, (3,), BGR in 0..255."""
        if not len(instances):
            return []
        boxes = instances.pred_boxes.tensor.numpy()
        sizes = boxes[:, 2:] - boxes[:, :2]
        detected = [
            # The tracker's IoU is pycocotools', of XYWH.
            _DetectedInstance(int(number), np.append(box[:2], size), None, color=None, ttl=8)
            for number, box, size in zip(instances.pred_classes, boxes, sizes)
        ]
        return [np.array(color)[::-1] * 255 for color in self._tracker._assign_colors(detected)]


def draw_mask(drawing: np.ndarray, mask: np.ndarray, color: np.ndarray) -> None:
    """Tint a mask by half and draw its outlines.

    Args:
        drawing: (H, W, 3) uint8, changed in place.
        mask: (H, W) uint8, 0 or 1, not empty.
        color: (3,), in the order of the drawing, in 0..255.
    """
    x, y, width, height = cv2.boundingRect(mask)
    inside = np.s_[y : y + height, x : x + width]
    window = drawing[inside]
    tinted = cv2.addWeighted(window, 0.5, np.full_like(window, color), 0.5, 0)
    cv2.copyTo(tinted, mask[inside], window)
    contours, _ = cv2.findContours(
        mask[inside], cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y)
    )
    thickness = max(int(_font_size(mask.shape)) // 15, 1)
    cv2.drawContours(drawing, contours, -1, color.tolist(), thickness, cv2.LINE_AA)


def draw_label(
    drawing: np.ndarray, words: Sequence[str], mask: np.ndarray, color: np.ndarray
) -> None:
    """Write words in the middle of a mask, or below it if it is small, on a dark background.

    Args:
        drawing, mask, color: see :func:`draw_mask`.
        words: each is rendered once for all frames.
    """
    x, y, width, height = cv2.boundingRect(mask)
    window = mask[y : y + height, x : x + width]
    size = np.clip((height / np.sqrt(mask.size) - 0.02) / 0.08 + 1, 1.2, 2) / 2
    points = round(size * _font_size(mask.shape))
    coverage = np.hstack([text_coverage(word, points) for word in words])
    coverage = coverage[: mask.shape[0], : mask.shape[1], None]
    rows, columns = coverage.shape[:2]
    if width * height < 1000 or height < 40:
        left, top = (x + width, y) if y + height >= len(mask) - 5 else (x, y + height)
    else:
        left, top = x + _median(window.sum(axis=0)) - columns // 2, y + _median(window.sum(axis=1))
    left, top = np.clip((left, top), 0, (mask.shape[1] - columns, mask.shape[0] - rows))
    area = drawing[top : top + rows, left : left + columns]
    light = (255 + color * (255 / max(color.max(), 1))) / 2
    area[:] = 0.2 * area * (1 - coverage) + light * coverage


def _font_size(shape: Sequence[int]) -> float:
    """Of Detectron2's drawings of the size (H, W), in points at 100 per inch."""
    return max(np.sqrt(shape[0] * shape[1]) // 90, 10)


def _median(counts: np.ndarray) -> int:
    """The median of the numbers 0, 1, ..., each of which occurs as often as `counts` says."""
    return int(np.searchsorted(counts.cumsum(), counts.sum() / 2))
