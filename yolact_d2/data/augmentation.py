"""YOLACT's training augmentation, after SSD's (arXiv 1512.02325, section 3.6), for float images.

With :class:`LimitSize` before, no side of an image is longer than :func:`max_side` L at any step,
so no float array is larger than L x L x 3: 79 MB where the model's input is 640 or less. Two or
three of them are held at a time.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, HFlipTransform, PadTransform


def build_augmentation(cfg) -> list[T.Augmentation]:
    """The augmentations that ``cfg.INPUT`` switches on, in the order of the paper."""
    aug, augmentations = cfg.INPUT.AUG, []
    if aug.PHOTOMETRIC:
        augmentations.append(RandomPhotometric(cfg.INPUT.FORMAT))
    if aug.EXPAND:
        augmentations.append(
            RandomExpand(aug.EXPAND_COLOR, aug.EXPAND_MAX_RATIO, max_side=max_side(cfg))
        )
    if aug.CROP:
        augmentations.append(RandomPatch(aug.CROP_MIN_RATIO))
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("none", "horizontal", "vertical"):
        raise ValueError(f"INPUT.RANDOM_FLIP is {flip!r}, not one of: none, horizontal, vertical")
    if flip != "none":
        augmentations.append(
            RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")
        )
    augmentations.append(T.Resize((cfg.INPUT.IMAGE_SIZE, cfg.INPUT.IMAGE_SIZE)))
    return augmentations


def max_side(cfg) -> int:
    """L, the largest side of an image while it is augmented, in pixels. COCO's images, of at most
    640, do not reach it when they are expanded 4 times."""
    return 4 * max(640, cfg.INPUT.IMAGE_SIZE)


class ReduceTransform(T.ResizeTransform):
    """A resize of images that is bilinear without antialiasing, for 8 bits too."""

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if interp is not None:  # of a mask
            return super().apply_image(img, interp)
        reduced = cv2.resize(img, (self.new_w, self.new_h), interpolation=cv2.INTER_LINEAR)
        return reduced.reshape(self.new_h, self.new_w, *img.shape[2:])


class LimitSize(T.Augmentation):
    """Reduce an image, one of 8 bits, with a side above `max_side` to it."""

    def __init__(self, max_side: int):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        size = image.shape[:2]
        reduced = reduced_size(size, self.max_side / max(size))
        return T.NoOpTransform() if reduced == size else ReduceTransform(*size, *reduced)


def reduced_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """(height, width) times a factor, if that is less than 1, each 1 or more."""
    if factor >= 1:
        return size
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


class PhotometricTransform(T.Transform):
    """Shift of brightness, then contrast, saturation and hue, without clipping.

    Contrast could as well come last, as it does half of the time in the authors' code: it scales
    the value (HSV) and nothing else, so the result is the same.
    """

    def __init__(
        self,
        image_format: str,
        brightness: float = 0.0,
        contrast: float = 1.0,
        saturation: float = 1.0,
        hue: float = 0.0,
    ):
        """
        Args:
            image_format: "RGB" or "BGR".
            brightness: added to every channel, in 0..255 units.
            contrast: factor of every channel.
            saturation: factor of the saturation (HSV).
            hue: added to the hue (HSV), in degrees.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """
        Args:
            img: (H, W, 3) float32 in 0..255.
        """
        img = (img + np.float32(self.brightness)) * np.float32(self.contrast)
        if self.saturation == 1.0 and self.hue == 0.0:
            return img
        rgb = self.image_format == "RGB"
        hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV if rgb else cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0] + self.hue) % 360
        hsv[..., 1] *= self.saturation
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB if rgb else cv2.COLOR_HSV2BGR)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation


class RandomPhotometric(T.Augmentation):
    """Each of :class:`PhotometricTransform`'s changes with probability one half."""

    def __init__(
        self,
        image_format: str,
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 18.0,
    ):
        """
        Args:
            image_format: "RGB" or "BGR".
            brightness: largest shift, in 0..255 units.
            contrast, saturation: ranges of the factors.
            hue: largest shift, in degrees.
        """
        super().__init__()
        if image_format not in ("RGB", "BGR"):
            raise ValueError(
                f"INPUT.FORMAT is {image_format!r}, and photometric augmentation knows RGB and BGR "
                "only: set INPUT.AUG.PHOTOMETRIC to False"
            )
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> PhotometricTransform:
        def maybe(low: float, high: float, otherwise: float) -> float:
            return np.random.uniform(low, high) if np.random.rand() < 0.5 else otherwise

        return PhotometricTransform(
            self.image_format,
            brightness=maybe(-self.brightness, self.brightness, 0.0),
            contrast=maybe(*self.contrast, 1.0),
            saturation=maybe(*self.saturation, 1.0),
            hue=maybe(-self.hue, self.hue, 0.0),
        )


class ExpandTransform(PadTransform):
    """Pad with one value a channel, which :class:`PadTransform` cannot."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        height, width = img.shape[:2]
        canvas = np.empty(
            (self.y0 + height + self.y1, self.x0 + width + self.x1, *img.shape[2:]), img.dtype
        )
        canvas[:] = self.pad_value
        canvas[self.y0 : self.y0 + height, self.x0 : self.x0 + width] = img
        return canvas


class RandomExpand(T.Augmentation):
    """With some probability, put the image at a random place of a larger canvas."""

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
            prob: how often.
            max_side: of the canvas, in pixels. If it would be larger, the image is reduced.
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
        height, width = reduced_size(size, self.max_side / (max(size) * ratio))
        extra_x, extra_y = (
            min(int(side * ratio), self.max_side) - side for side in (width, height)
        )
        x0, y0 = np.random.randint(extra_x + 1), np.random.randint(extra_y + 1)
        expand = ExpandTransform(
            x0, y0, extra_x - x0, extra_y - y0, width, height, pad_value=tuple(self.fill)
        )
        if (height, width) == size:
            return expand
        return T.TransformList([ReduceTransform(*size, height, width), expand])


class PatchTransform(CropTransform):
    """A crop that leaves the clipping of polygons to whoever rasterises them, so that shapely,
    which :class:`CropTransform` asks for, is not needed."""

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        return [self.apply_coords(polygon) for polygon in polygons]


class RandomPatch(T.Augmentation):
    """Crop to a random patch that keeps the centre of at least one object.

    One time in six, and when no patch is found, the image stays as it is. (SSD chooses among six
    options; the overlap that four of them ask for is not enforced in the authors' code.)
    """

    def __init__(
        self,
        min_ratio: float = 0.3,
        aspect_ratios: tuple[float, float] = (0.5, 2.0),
        keep_prob: float = 1 / 6,
        trials: int = 50,
    ):
        """
        Args:
            min_ratio: smallest side of the patch, as a fraction of the image's.
            aspect_ratios: range of height / width.
            keep_prob: how often the image stays as it is.
            trials: how many patches are tried.
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
            is_crowd: (N,) bool, boxes that do not count as objects.
        """
        centers = box_centers(boxes[~is_crowd])
        if len(centers) == 0 or np.random.rand() < self.keep_prob:
            return T.NoOpTransform()
        height, width = image.shape[:2]
        low, high = self.aspect_ratios
        for _ in range(self.trials):
            w = np.random.uniform(self.min_ratio * width, width)
            h = np.random.uniform(self.min_ratio * height, height)
            if not low <= h / w <= high:
                continue
            x0, y0 = int(np.random.uniform(0, width - w)), int(np.random.uniform(0, height - h))
            w, h = max(int(w), 1), max(int(h), 1)
            if points_inside(centers - (x0, y0), (h, w)).any():
                return PatchTransform(x0, y0, w, h, width, height)
        return T.NoOpTransform()


class MirrorTransform(HFlipTransform):
    """A flip whose strides are positive. PyTorch, by which Detectron2 resizes, takes no others, and
    np.ascontiguousarray does not help where there is a single column."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return super().apply_image(img).copy()


class RandomFlip(T.RandomFlip):
    """Detectron2's, for images one pixel wide, too."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        transform = super().get_transform(image)
        if isinstance(transform, HFlipTransform):
            return MirrorTransform(transform.width)
        return transform


def box_centers(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) XYXY -> (N, 2) x and y."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def points_inside(points: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Which of the points (N, 2) lie inside an image of (height, width).

    Returns:
        (N,) bool
    """
    return ((points > 0) & (points < image_size[::-1])).all(axis=1)
