"""Shapes: small generated instance segmentation datasets in COCO format.

Each image shows some circles, rectangles, triangles, stars and so on, which may overlap, on a
textured background. Only the outline tells the class: colour, fill and area do not. Annotations
describe the visible part of each object. An image depends on (seed, setting, split, index) alone.

Points are (x, y). Scenes are drawn on a canvas with SUPERSAMPLING times finer pixels, which gives
images smooth edges and polygons sub-pixel accuracy.
"""

import filecmp
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from numpy.random import Generator

Window = tuple[slice, slice]  # y, x
Object = dict[str, Any]  # "class", "window", "whole_area", and what _visible_part returns


@dataclass(frozen=True)
class Setting:
    """What the scenes of a dataset are like."""

    classes: tuple[str, ...]
    splits: tuple[str, ...]
    objects_per_image: tuple[int, int]  # both ends included
    object_size: tuple[float, float]  # square root of the object's area / shorter image side
    overlap_chance: float  # probability of placing an object on the outline of an earlier one
    min_visible_fraction: float  # of the object's whole area
    min_visible_area: float  # image pixels
    min_box_side: float  # image pixels


EASY = Setting(
    classes=("circle", "rectangle", "triangle", "star"),
    splits=("train", "val"),
    objects_per_image=(2, 5),
    object_size=(0.15, 0.5),
    overlap_chance=0.4,
    min_visible_fraction=0.7,
    min_visible_area=60.0,
    min_box_side=6.0,
)
HARD = Setting(
    classes=(*EASY.classes, "cross", "arrow", "crescent", "half disc"),
    splits=("train", "val", "test"),
    objects_per_image=(4, 12),
    object_size=(0.07, 0.4),
    overlap_chance=0.7,
    min_visible_fraction=0.4,
    min_visible_area=40.0,
    min_box_side=5.0,
)

IMAGE_SIDE = (128, 192)  # image pixels, both ends included
MAX_TILT = 20.0  # degrees
MAX_ASPECT = 2.0  # of rectangles, either way
PLACEMENT_TRIES = 40  # per object; an object that fits nowhere is left out
BORDER_MARGIN = 0.5  # smallest distance of an object's centre from the border, in object sizes
MIN_PART_AREA = 4.0  # image pixels, of each part of an object cut into several

SUPERSAMPLING = 4  # canvas pixels per image pixel, along each axis
SIMPLIFY_TOLERANCE = 1.0  # canvas pixels
OUTLINE_SHIFT = 4  # fractional bits of the coordinates passed to cv2.fillPoly

FILLS = ("flat", "gradient", "stripes", "noise")
FILL_CONTRAST = (0.25, 0.5)  # share of black or white in the second colour of a fill
COLOUR_CANDIDATES = 8  # an object gets the most distinct of this many random colours
BACKGROUND_GREY, BACKGROUND_TINT = (60, 195), 45.0  # range; largest deviation of a channel
BACKGROUND_CONTRAST = 40.0  # grey levels between the extremes of a background pattern

_ARC = np.linspace(0, np.pi, 33)
# Outlines (P, 2) of the other classes, of any size.
UPRIGHT_OUTLINES = {
    "cross": np.array(
        [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1)]
        + [(1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
    ),
    "arrow": np.array([(0, -3), (2.5, 0), (1, 0), (1, 3), (-1, 3), (-1, 0), (-2.5, 0)]),
    "crescent": np.concatenate(
        [
            np.stack([np.cos(_ARC), np.sin(_ARC)], axis=1),
            np.stack([-np.cos(_ARC), 0.35 * np.sin(_ARC)], axis=1)[1:-1],
        ]
    )
    - (0, 0.6),
    "half disc": np.stack([np.cos(_ARC), 0.42 - np.sin(_ARC)], axis=1),
}


def _random_outline(rng: Generator, shape_class: str) -> np.ndarray:
    """A polygon (P, 2) of area 1 around the origin, slightly tilted."""
    tilt = np.radians(rng.uniform(-MAX_TILT, MAX_TILT))
    if shape_class in UPRIGHT_OUTLINES:
        cos, sin = np.cos(tilt), np.sin(tilt)
        return _with_area_1(UPRIGHT_OUTLINES[shape_class] @ [[cos, sin], [-sin, cos]])
    up = -np.pi / 2 + tilt
    radii: float | np.ndarray = 1.0
    if shape_class == "circle":
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    elif shape_class == "rectangle":
        corner = np.arctan(np.exp(rng.uniform(-1, 1) * np.log(MAX_ASPECT)))  # of width / height
        angles = up + np.array([corner, np.pi - corner, np.pi + corner, -corner])
    elif shape_class == "triangle":
        angles = up + np.radians([0, 120, 240] + rng.uniform(-10, 10, size=3))
    else:
        radii = np.tile([1.0, rng.uniform(0.4, 0.48)], 5)
        angles = up + np.arange(10) * np.pi / 5
    return _with_area_1(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1))


def _with_area_1(outline: np.ndarray) -> np.ndarray:
    return outline / np.sqrt(cv2.contourArea(outline.astype(np.float32)))


def _window_around(outline: np.ndarray, canvas_shape: tuple[int, int]) -> Window:
    """The part of the canvas around an outline (P, 2), aligned to image pixels."""
    low = np.floor((outline.min(axis=0) - 1) / SUPERSAMPLING).astype(int)
    high = np.ceil((outline.max(axis=0) + 2) / SUPERSAMPLING).astype(int)
    (x0, y0), (x1, y1) = np.maximum(low, 0) * SUPERSAMPLING, high * SUPERSAMPLING
    return slice(y0, min(y1, canvas_shape[0])), slice(x0, min(x1, canvas_shape[1]))


def _mask_polygons(mask: np.ndarray) -> list[np.ndarray] | None:
    """Polygons (P, 2) around a mask (bool, h x w) in its pixels; None if it has a hole."""
    # cv2 draws contours through pixel centres, half a pixel inside the mask. In an image of the
    # *corners* of mask pixels, the contour runs through true pixel corners.
    padded = np.pad(mask.astype(np.uint8), ((0, 1), (0, 1)))
    corners = cv2.dilate(padded, np.ones((2, 2), np.uint8), anchor=(1, 1))
    contours, hierarchy = cv2.findContours(corners, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if (hierarchy[0, :, 3] >= 0).any():  # a contour with a parent is a hole
        return None
    return [cv2.approxPolyDP(c, SIMPLIFY_TOLERANCE, True).reshape(-1, 2) for c in contours]


def _visible_part(
    labels: np.ndarray, number: int, known: Object, setting: Setting
) -> dict[str, Any] | None:
    """The "polygons", "bbox" and "area" (image pixels) of the object's part that `labels` show.

    None if the part is too small, or has a hole.
    """
    window = known["window"]
    mask = labels[window] == number
    area = np.count_nonzero(mask) / SUPERSAMPLING**2
    if area < max(setting.min_visible_area, setting.min_visible_fraction * known["whole_area"]):
        return None
    polygons = _mask_polygons(mask)
    if polygons is None:
        return None
    origin = np.array([window[1].start, window[0].start])
    polygons = [(p + origin) / SUPERSAMPLING for p in polygons]
    points = np.concatenate(polygons)
    low, sides = points.min(axis=0), np.ptp(points, axis=0)
    smallest_part = min(cv2.contourArea(p.astype(np.float32)) for p in polygons)
    if smallest_part < MIN_PART_AREA or sides.min() < setting.min_box_side:
        return None
    return {"polygons": polygons, "bbox": [*low.tolist(), *sides.tolist()], "area": area}


def _try_to_place(
    labels: np.ndarray,
    objects: list[Object],
    outline: np.ndarray,
    shape_class: int,
    setting: Setting,
) -> tuple[np.ndarray, list[Object]] | None:
    """Put an object with this outline (P, 2; canvas pixels) on top of a scene.

    Returns the new (labels, objects), or None if too little of an object would stay visible.
    """
    number, window = len(objects) + 1, _window_around(outline, labels.shape)
    covered = labels.copy()
    fixed_point = np.round(outline * 2**OUTLINE_SHIFT).astype(np.int32)
    cv2.fillPoly(covered, [fixed_point], number, shift=OUTLINE_SHIFT)
    changed = {number, *np.unique(labels[window][covered[window] == number]).tolist()} - {0}
    whole_area = cv2.contourArea(outline.astype(np.float32)) / SUPERSAMPLING**2
    objects = [*objects, {"class": shape_class, "window": window, "whole_area": whole_area}]
    for k in changed:
        visible = _visible_part(covered, k, objects[k - 1], setting)
        if visible is None:
            return None
        objects[k - 1] = {**objects[k - 1], **visible}
    return covered, objects


def _random_scene(
    rng: Generator, height: int, width: int, setting: Setting
) -> tuple[np.ndarray, list[Object]]:
    """Labels (uint8 canvas; 0 is background, k the k-th object) and the objects, bottom first."""
    labels = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    objects: list[Object] = []
    for _ in range(rng.integers(*setting.objects_per_image, endpoint=True)):
        # All tries use the same class. Otherwise classes that fit more easily would be favoured.
        shape_class = int(rng.integers(len(setting.classes)))
        for _ in range(PLACEMENT_TRIES):
            size = min(height, width) * np.exp(rng.uniform(*np.log(setting.object_size)))
            low, high = BORDER_MARGIN * size, np.array([width, height]) - BORDER_MARGIN * size
            centre = rng.uniform(low, high)
            if objects and rng.random() < setting.overlap_chance:
                neighbour = objects[rng.integers(len(objects))]
                centre = np.clip(rng.choice(np.concatenate(neighbour["polygons"])), low, high)
            outline = SUPERSAMPLING * (
                centre + size * _random_outline(rng, setting.classes[shape_class])
            )
            placed = _try_to_place(labels, objects, outline, shape_class, setting)
            if placed is not None:
                labels, objects = placed
                break
    return labels, objects


def _distinct_colour(rng: Generator, taken: np.ndarray) -> np.ndarray:
    """A BGR colour (3,) in 0..255 far, in CIE Lab, from the colours already taken (N, 3)."""
    candidates = rng.uniform(0, 255, size=(COLOUR_CANDIDATES, 3))
    colours = np.concatenate([candidates, taken]).clip(0, 255).astype(np.float32) / 255
    lab = cv2.cvtColor(colours[None], cv2.COLOR_BGR2Lab)[0]
    gaps = np.linalg.norm(lab[:COLOUR_CANDIDATES, None] - lab[COLOUR_CANDIDATES:], axis=2)
    return candidates[gaps.min(axis=1).argmax()]


def _ramp(rng: Generator, height: int, width: int) -> np.ndarray:
    """A map (height, width) that rises from 0 to 1 in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.add.outer(np.sin(angle) * np.arange(height), np.cos(angle) * np.arange(width))
    return (ramp - ramp.min()) / np.ptp(ramp)


def _stripes(rng: Generator, height: int, width: int, period: float) -> np.ndarray:
    """Soft-edged stripes (height, width) in 0..1; period: roughly, in image pixels."""
    turns = _ramp(rng, height, width) * np.hypot(height, width) / period + rng.random()
    return 0.5 + 0.5 * np.clip(2 * np.sin(2 * np.pi * turns), -1, 1)


def _noise(rng: Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Smooth noise (height, width) in 0..1; cell: distance of its nodes, image pixels."""
    nodes = rng.random((height // cell + 2, width // cell + 2))
    return np.clip(cv2.resize(nodes, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def _random_fill(rng: Generator, height: int, width: int, colour: np.ndarray) -> np.ndarray:
    """A fill (height, width, 3) in 0..255 between `colour` and a lighter or darker shade of it."""
    kind = FILLS[rng.integers(len(FILLS))]
    shade = colour + rng.uniform(*FILL_CONTRAST) * (rng.choice([0.0, 255.0]) - colour)
    pattern = np.zeros((height, width))
    if kind == "gradient":
        pattern = _ramp(rng, height, width)
    elif kind == "stripes":
        pattern = _stripes(rng, height, width, period=rng.uniform(4, 10))
    elif kind == "noise":
        pattern = _noise(rng, height, width, cell=2)
    return colour + pattern[..., None] * (shade - colour)


def _random_background(rng: Generator, height: int, width: int, ends: np.ndarray) -> np.ndarray:
    """A ramp between two colours (2, 3) under noise and stripes or checks; (height, width, 3)."""
    pattern = _stripes(rng, height, width, period=rng.uniform(8, 40))
    if rng.random() < 0.5:  # two crossing sets of stripes make checks
        pattern = np.abs(pattern - _stripes(rng, height, width, period=rng.uniform(8, 40)))
    pattern = rng.uniform(0, 1) * (pattern - 0.5) + _noise(rng, height, width, cell=16) - 0.5
    ramp = ends[0] + _ramp(rng, height, width)[..., None] * (ends[1] - ends[0])
    return ramp + BACKGROUND_CONTRAST * pattern[..., None]


def _paint(rng: Generator, labels: np.ndarray, objects: list[Object]) -> np.ndarray:
    """The image of a scene, (H, W, 3) uint8, BGR."""
    height, width = (side // SUPERSAMPLING for side in labels.shape)
    tints = rng.uniform(-BACKGROUND_TINT, BACKGROUND_TINT, size=(2, 3))
    colours = rng.uniform(*BACKGROUND_GREY) + tints  # (N, 3), those used so far
    background = _random_background(rng, height, width, colours)
    image = background.copy()
    for number, thing in enumerate(objects, start=1):
        mask = (labels[thing["window"]] == number).astype(np.float64)
        h, w = (side // SUPERSAMPLING for side in mask.shape)
        y, x = (side.start // SUPERSAMPLING for side in thing["window"])
        cover = cv2.resize(mask, (w, h), interpolation=cv2.INTER_AREA)[..., None]
        colours = np.concatenate([colours, [_distinct_colour(rng, colours)]])
        # Visible parts are disjoint on the canvas, so the covers of a pixel add up to at most 1.
        change = _random_fill(rng, h, w, colours[-1]) - background[y : y + h, x : x + w]
        image[y : y + h, x : x + w] += cover * change
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _write_split(
    folder: Path, split: str, num_images: int, seed: int, setting: Setting
) -> dict[str, Any]:
    """Write the images of a split into `folder`, and return its COCO dict."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num_images):
        image_id, name = index + 1, f"{index:06d}.png"
        rng = np.random.default_rng([seed, setting.splits.index(split), index])
        height, width = rng.integers(*IMAGE_SIDE, size=2, endpoint=True).tolist()
        labels, objects = _random_scene(rng, height, width, setting)
        if not cv2.imwrite(str(folder / name), _paint(rng, labels, objects)):
            raise OSError(f"cannot write {folder / name}")
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for thing in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": thing["class"] + 1,
                    "segmentation": [polygon.ravel().tolist() for polygon in thing["polygons"]],
                    "bbox": thing["bbox"],
                    "area": thing["area"],
                    "iscrowd": 0,
                }
            )
    return {
        "info": {"description": f"generated shapes, {split} split, seed {seed}"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(setting.classes, start=1)],
    }


def _json_path(root: str | Path, split: str) -> Path:
    return Path(root) / "annotations" / f"instances_{split}.json"


def generate_shapes(
    root: str,
    num_train: int = 800,
    num_val: int = 100,
    seed: int = 0,
    *,
    num_test: int = 200,
    setting: Setting = EASY,
) -> None:
    """Write the dataset: `root`/{train,val} and `root`/annotations/instances_{train,val}.json.

    Several processes may do this at once: images and annotations appear when a split is complete.

    Args:
        num_test: number of images of the split "test", which only some settings have.

    Raises:
        FileExistsError: if `root` has other images.
    """
    _json_path(root, "").parent.mkdir(parents=True, exist_ok=True)
    for split, num_images in zip(setting.splits, (num_train, num_val, num_test)):
        target = Path(root) / split
        with tempfile.TemporaryDirectory(prefix=f".{split}-", dir=root) as temporary:
            images, json_file = Path(temporary) / split, Path(temporary) / "coco.json"
            images.mkdir()
            coco = _write_split(images, split, num_images, seed, setting)
            json_file.write_text(json.dumps(coco))
            try:
                os.rename(images, target)
            except OSError as error:  # the same images may exist already
                changes = filecmp.dircmp(images, target)
                if changes.left_only or changes.right_only or changes.diff_files:
                    raise FileExistsError(f"{target} has other files; remove it first") from error
            os.replace(json_file, _json_path(root, split))


def _load_shapes(root: str, split: str, name: str, setting: Setting) -> list[dict[str, Any]]:
    """The dataset dicts of a split. The dataset is generated if it does not exist."""
    if not _json_path(root, split).is_file():
        logging.getLogger(__name__).info(f"Generating the shapes dataset in {root}")
        generate_shapes(root, setting=setting)
    return load_coco_json(str(_json_path(root, split)), str(Path(root) / split), name)


def register_shapes(root: str, prefix: str = "shapes", setting: Setting = EASY) -> None:
    """Register {prefix}_train, {prefix}_val and so on, without reading or writing any file."""
    for split in setting.splits:
        name = f"{prefix}_{split}"
        DatasetCatalog.register(name, partial(_load_shapes, root, split, name, setting))
        MetadataCatalog.get(name).set(
            json_file=str(_json_path(root, split)),
            image_root=str(Path(root) / split),
            evaluator_type="coco",
            thing_classes=list(setting.classes),
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(setting.classes))},
        )
