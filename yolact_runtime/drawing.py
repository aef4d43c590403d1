import colorsys
from collections.abc import Sequence

import numpy as np

from .images import opencv, to_channels
from .predictor import Detections


def draw(image: np.ndarray, detections: Detections, class_names: Sequence[str]) -> np.ndarray:
    """An image with masks, boxes and labels, (H, W, 3) uint8, BGR.

    Args:
        image: as :class:`Predictor` takes it.
        class_names: empty if unknown.

    Raises:
        ImportError: if OpenCV is missing.
    """
    cv2 = opencv()
    drawn = to_channels(image, "BGR").copy()
    for i in reversed(range(len(detections.scores))):  # the best on top
        number = int(detections.classes[i])
        # Hues at steps of the golden ratio differ well.
        color = np.array(colorsys.hsv_to_rgb(number * 0.618 % 1, 0.9, 1)) * 255
        mask = detections.masks[i]
        drawn[mask] = 0.5 * drawn[mask] + 0.5 * color
        x1, y1, x2, y2 = (int(side) for side in detections.boxes[i].round())
        cv2.rectangle(drawn, (x1, y1), (x2 - 1, y2 - 1), color.tolist(), 2)
        name = class_names[number] if class_names else f"class {number}"
        label = f"{name} {detections.scores[i]:.2f}"
        for ink, thickness in ((0, 3), (255, 1)):
            font, place = cv2.FONT_HERSHEY_SIMPLEX, (x1 + 3, y1 + 13)
            cv2.putText(drawn, label, place, font, 0.4, [ink] * 3, thickness, cv2.LINE_AA)
    return drawn
