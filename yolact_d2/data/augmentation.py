"""YOLACT's training augmentation, that of SSD (arXiv 1512.02325, section 3.6), for float images.

Memory: :class:`LimitSize` and :class:`RandomExpand` keep every image within L x L pixels, where L
is :func:`max_side`. A float image takes at most 79 MB for L = 2560, and a worker holds two or
three at a time. :class:`ResizeScale` makes images of up to its largest scale times S.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
from detectron2.config import configurable
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, PadTransform

AS_FLOAT = T.ColorTransform(partial(np.asarray, dtype=np.float32))
"""What the augmentations below need."""


def _from_config(cfg) -> dict[str, Any]:
    aug = cfg.INPUT.AUG
    return {
        "image_size": cfg.INPUT.IMAGE_SIZE,
        "image_format": cfg.INPUT.FORMAT,
        "photometric": aug.PHOTOMETRIC,
        "expand_max_ratio": aug.EXPAND_MAX_RATIO if aug.EXPAND else None,
        "expand_color": aug.EXPAND_COLOR,
        "crop_min_ratio": aug.CROP_MIN_RATIO if aug.CROP else None,
        "scale_jitter": aug.SCALE_JITTER,
        "flip": cfg.INPUT.RANDOM_FLIP,
    }


@configurable(from_config=_from_config)
def build_augmentation(
    *,
    image_size: int,
    image_format: str,
    photometric: bool = True,
    expand_max_ratio: float | None = 4.0,
    expand_color: Sequence[float] = (123.68, 116.78, 103.94),
    crop_min_ratio: float | None = 0.3,
    scale_jitter: Sequence[float] = (),
    flip: str = "horizontal",
) -> list[T.Augmentation | T.Transform]:
    """The paper's augmentation of 8-bit images, in its order.

    Args:
        image_size: S; images become S x S float32.
        image_format: "RGB", "BGR" or "L".
        photometric: apply :class:`RandomPhotometric`.
        expand_max_ratio, expand_color: of :class:`RandomExpand`. None: do not expand.
        crop_min_ratio: of :class:`RandomPatch`. None: do not crop.
        scale_jitter: smallest and largest scale of :class:`ResizeScale`; it and
            :class:`FixedSizeCrop`, padding with `expand_color`, then take the place of expansion,
            crop and final resize. Empty: they do not.
        flip: "none", "horizontal" or "vertical".
    """
    limit = max_side(image_size)
    augmentations = [LimitSize(limit), AS_FLOAT]
    if photometric:
        augmentations.append(RandomPhotometric(image_format))
    if scale_jitter:
        size, fill = (image_size, image_size), expand_fill(expand_color, image_format)
        augmentations += [ResizeScale(*scale_range(scale_jitter), *size), FixedSizeCrop(size, fill)]
    if expand_max_ratio is not None and not scale_jitter:
        fill = expand_fill(expand_color, image_format)
        augmentations.append(RandomExpand(fill, expand_max_ratio, max_side=limit))
    if crop_min_ratio is not None and not scale_jitter:
        augmentations.append(RandomPatch(crop_min_ratio))
    if flip not in ("none", "horizontal", "vertical"):
        raise ValueError(f"INPUT.RANDOM_FLIP is {flip!r}, not one of: none, horizontal, vertical")
    if flip != "none":
        augmentations.append(
            T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")
        )
    if not scale_jitter:
        augmentations.append(Resize((image_size, image_size)))
    return augmentations


def scale_range(scales: Sequence[float]) -> tuple[float, float]:
    """INPUT.AUG.SCALE_JITTER, checked."""
    if len(scales) != 2 or not 0 < scales[0] <= scales[1] < math.inf:
        raise ValueError(
            f"INPUT.AUG.SCALE_JITTER is {list(scales)}, not [] or the smallest and the largest "
            "scale, such as [0.1, 2.0]"
        )
    return scales[0], scales[1]


def expand_fill(color: Sequence[float], image_format: str) -> Sequence[float]:
    """INPUT.AUG.EXPAND_COLOR, or its grey value for images of INPUT.FORMAT "L"."""
    if image_format == "L" and len(color) == 3:
        return [float(np.dot(color, (0.299, 0.587, 0.114)))]  # as Pillow turns RGB to grey
    if len(color) != (1 if image_format == "L" else 3):
        raise ValueError(
            f"INPUT.AUG.EXPAND_COLOR is {list(color)}: the colour of images of INPUT.FORMAT "
            f"{image_format!r} has {'1 value or 3' if image_format == 'L' else '3 values'}"
        )
    return color


def max_side(image_size: int) -> int:
    """L, the longest side that an image may have during augmentation, in pixels. COCO's images, at
    most 640 pixels long, do not exceed it even when they are expanded 4 times."""
    return 4 * max(640, image_size)


class LimitSize(T.Augmentation):
    """Shrink an image with a side longer than `max_side` pixels to that."""

    def __init__(self, max_side: int):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        size = image.shape[:2]
        new_size = shrunk_size(size, self.max_side / max(size))
        return T.NoOpTransform() if new_size == size else BilinearTransform(*size, *new_size)


class BilinearTransform(T.ResizeTransform):
    """A bilinear resize without antialiasing, like the model's own. Detectron2's is antialiased for
    8-bit images, and slow for float images."""

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if interp is not None:  # of a mask
            return super().apply_image(img, interp)
        # A mirrored view is mirrored again after it, because OpenCV would copy it as a whole.
        mirror = tuple(slice(None, None, -1 if step < 0 else 1) for step in img.strides[:2])
        resized = cv2.resize(img[mirror], (self.new_w, self.new_h), interpolation=cv2.INTER_LINEAR)
        return resized.reshape(self.new_h, self.new_w, *img.shape[2:])[mirror]


class Resize(T.Resize):
    """Detectron2's resize to a fixed size, as :class:`BilinearTransform`."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return BilinearTransform(*image.shape[:2], *self.shape)


def shrunk_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """(height, width) times `factor` if that is below 1, but at least 1 pixel each."""
    if factor >= 1:
        return size
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


class RandomPhotometric(T.Augmentation):
    """Apply :func:`adjust_colors` with SSD's random changes, each with probability 1/2."""

    def __init__(self, image_format: str):
        super().__init__()
        if image_format not in ("RGB", "BGR", "L"):
            raise ValueError(
                f"INPUT.FORMAT is {image_format!r}, but photometric augmentation supports only "
                "RGB, BGR and L: set INPUT.AUG.PHOTOMETRIC to False"
            )
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        def maybe(low: float, high: float, otherwise: float) -> float:
            return np.random.uniform(low, high) if np.random.rand() < 0.5 else otherwise

        changes: dict[str, Any] = {
            "brightness": maybe(-32.0, 32.0, otherwise=0.0),
            "contrast": maybe(0.5, 1.5, otherwise=1.0),
            "saturation": maybe(0.5, 1.5, otherwise=1.0),
            "hue": maybe(-18.0, 18.0, otherwise=0.0),
        }
        return T.ColorTransform(partial(adjust_colors, image_format=self.image_format, **changes))


def adjust_colors(
    image: np.ndarray,
    image_format: str,
    brightness: float = 0.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    hue: float = 0.0,
) -> np.ndarray:
    """Change brightness, then contrast, saturation and hue, without clipping. Grey images have no
    saturation and no hue.

    The authors apply contrast last half of the time. The result is the same, because contrast
    scales the value in HSV and nothing else.

    Args:
        image: (H, W, C) float32 in 0..255.
        image_format: "RGB", "BGR" or "L".
        brightness: added to every channel.
        contrast: factor of every channel.
        saturation: factor of the saturation in HSV.
        hue: added to the hue in HSV, in degrees.

    Returns:
        a new array like `image`.
    """
    image = image + np.float32(brightness)
    image *= np.float32(contrast)
    if image_format == "L" or (saturation == 1.0 and hue == 0.0):
        return image
    rgb = image_format == "RGB"
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV if rgb else cv2.COLOR_BGR2HSV)
    hsv[..., 0] += np.float32(hue % 360)  # OpenCV takes 360 degrees and more, but none below 0
    hsv[..., 1] *= np.float32(saturation)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB if rgb else cv2.COLOR_HSV2BGR)


class ExpandTransform(PadTransform):
    """Pad an image with a colour; :class:`PadTransform` uses one value for all channels."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        sides = self.y0, self.y1, self.x0, self.x1
        padded = cv2.copyMakeBorder(img, *sides, cv2.BORDER_CONSTANT, value=self.pad_value)
        return padded.reshape(*padded.shape[:2], *img.shape[2:])


class RandomExpand(T.Augmentation):
    """With a given probability, put the image at a random place on a larger canvas."""

    def __init__(
        self,
        fill: Sequence[float],
        max_ratio: float = 4.0,
        prob: float = 0.5,
        max_side: float = math.inf,
    ):
        """
        Args:
            fill: colour of the canvas.
            max_ratio: largest side of the canvas, as a multiple of the image's.
            prob: probability of expanding.
            max_side: longest side of the canvas, in pixels. Where it would be longer, canvas and
                image are shrunk together.
        """
        super().__init__()
        if max_ratio < 1:
            raise ValueError(f"INPUT.AUG.EXPAND_MAX_RATIO is {max_ratio}, less than 1")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        if np.random.rand() >= self.prob:
            return T.NoOpTransform()
        size = image.shape[:2]
        ratio = np.random.uniform(1, self.max_ratio)
        height, width = shrunk_size(size, self.max_side / (max(size) * ratio))
        extra_x, extra_y = (
            min(int(side * ratio), self.max_side) - side for side in (width, height)
        )
        x0, y0 = np.random.randint(extra_x + 1), np.random.randint(extra_y + 1)
        expand = ExpandTransform(
            x0, y0, extra_x - x0, extra_y - y0, width, height, pad_value=tuple(self.fill)
        )
        if (height, width) == size:
            return expand
        return T.TransformList([BilinearTransform(*size, height, width), expand])


class PatchTransform(CropTransform):
    """Crop without clipping polygons, which rasterising does; :class:`CropTransform` clips them
    with shapely."""

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        return [self.apply_coords(polygon) for polygon in polygons]


class RandomCrop(T.RandomCrop):
    """Detectron2's crop, as :class:`PatchTransform`."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        crop = super().get_transform(image)
        return PatchTransform(crop.x0, crop.y0, crop.w, crop.h, crop.orig_w, crop.orig_h)


class RandomPatch(T.Augmentation):
    """Crop to a random patch that contains the centre of at least one object.

    The image stays whole one time in six, and when 50 random patches contain none. SSD chooses
    among six options, four of which demand an overlap that the authors' code does not enforce.
    """

    def __init__(self, min_ratio: float = 0.3):
        """
        Args:
            min_ratio: smallest height and width of the patch, as a fraction of the image's.
        """
        super().__init__()
        self._init(locals())

    def get_transform(
        self, image: np.ndarray, boxes: np.ndarray, is_crowd: np.ndarray
    ) -> T.Transform:
        """
        Args:
            image: (H, W, C)
            boxes: (N, 4) XYXY.
            is_crowd: (N,) bool, True for boxes of crowd regions, which do not count as objects.
        """
        centers = box_centers(boxes[~is_crowd])
        if len(centers) == 0 or np.random.rand() < 1 / 6:
            return T.NoOpTransform()
        height, width = image.shape[:2]
        for _ in range(50):
            w = np.random.uniform(self.min_ratio * width, width)
            h = np.random.uniform(self.min_ratio * height, height)
            if not 0.5 <= h / w <= 2:
                continue
            x0, y0 = int(np.random.uniform(0, width - w)), int(np.random.uniform(0, height - h))
            w, h = max(int(w), 1), max(int(h), 1)
            if points_inside(centers - (x0, y0), (h, w)).any():
                return PatchTransform(x0, y0, w, h, width, height)
        return T.NoOpTransform()


class ResizeScale(T.ResizeScale):
    """Detectron2's resize to a random scale, where 1 fits the image into the target, but never to
    a side of 0 pixels."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = super().get_transform(image)
        return BilinearTransform(resize.h, resize.w, max(resize.new_h, 1), max(resize.new_w, 1))


class FixedSizeCrop(T.FixedSizeCrop):
    """Detectron2's random crop, or padding at the right and the bottom, to a fixed size, as
    :class:`PatchTransform` and :class:`ExpandTransform`."""

    def __init__(self, crop_size: tuple[int, int], fill: Sequence[float]):
        """
        Args:
            crop_size: (height, width).
            fill: colour of the padding.
        """
        super().__init__(crop_size)
        self.fill = tuple(fill)

    def get_transform(self, image: np.ndarray) -> T.TransformList:
        crop, pad = super().get_transform(image).transforms
        patch = PatchTransform(crop.x0, crop.y0, crop.w, crop.h, crop.orig_w, crop.orig_h)
        sides = pad.x0, pad.y0, pad.x1, pad.y1
        return T.TransformList(
            [patch, ExpandTransform(*sides, pad.orig_w, pad.orig_h, pad_value=self.fill)]
        )


def box_centers(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) XYXY -> (N, 2) x and y."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def points_inside(points: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Which points (N, 2) lie inside an image of (height, width); (N,) bool."""
    return np.all((points > 0) & (points < image_size[::-1]), axis=1)
