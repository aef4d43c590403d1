import colorsys

import numpy as np

from .predictor import Detections


def draw(image: np.ndarray, detections: Detections, class_names: list[str]) -> np.ndarray:
    """A copy of an image, (H, W, 3) uint8, BGR, with masks, boxes and, with OpenCV, labels."""
    drawn = image.copy()
    for i in reversed(range(len(detections.scores))):  # the best on top
        number = int(detections.classes[i])
        # Hues at steps of the golden ratio differ well.
        color = np.array(colorsys.hsv_to_rgb(number * 0.618 % 1, 0.9, 1)) * 255
        mask = detections.masks[i]
        drawn[mask] = 0.5 * drawn[mask] + 0.5 * color
        x1, y1, x2, y2 = (int(side) for side in detections.boxes[i].round())
        for thick in range(2):
            for y in (y1 + thick, y2 - 1 - thick):
                if 0 <= y < len(drawn):
                    drawn[y, max(x1, 0) : x2] = color
            for x in (x1 + thick, x2 - 1 - thick):
                if 0 <= x < drawn.shape[1]:
                    drawn[max(y1, 0) : y2, x] = color
        name = class_names[number] if class_names else f"class {number}"
        _write(drawn, f"{name} {detections.scores[i]:.2f}", (x1 + 3, y1 + 13))
    return drawn


def _write(image: np.ndarray, text: str, place: tuple[int, int]) -> None:
    try:
        import cv2
    except ImportError:
        return
    for color, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(
            image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, color, thickness, cv2.LINE_AA
        )
