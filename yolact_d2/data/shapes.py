"""Shapes: a small generated instance-segmentation data set in COCO format.

Each picture shows 2 to 5 circles, rectangles, triangles and stars, some over others, on a textured
background. Colour, fill and area say nothing about the class; only the outline does. Annotations
describe the visible part of each object. A picture depends on (seed, split, index) alone.

Points are (x, y). "Canvas" pixels are SUPERSAMPLING times finer than image pixels: scenes are laid
out on the canvas, which gives pictures their smooth edges and polygons their sub-pixel accuracy.
"""

import filecmp
import json
import logging
import os
import secrets
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from numpy.random import Generator

logger = logging.getLogger(__name__)

Window = tuple[slice, slice]  # y, x
Scene = tuple[np.ndarray, list[dict[str, Any]]]  # labels and objects, see _random_scene

SHAPE_CLASSES = ("circle", "rectangle", "triangle", "star")
SPLITS = ("train", "val")
DEFAULT_NUM_TRAIN, DEFAULT_NUM_VAL = 800, 100

IMAGE_SIDE = (128, 192)  # image pixels, both ends included
OBJECTS_PER_IMAGE = (2, 5)  # both ends included
OBJECT_SIZE = (0.15, 0.5)  # square root of the object's area / shorter image side
MAX_TILT = 20.0  # degrees
MAX_ASPECT = 2.0  # of rectangles, either way
PLACEMENT_TRIES = 40  # per object; an object that finds no place is left out
OVERLAP_CHANCE = 0.4  # how often an object is put right on the outline of an earlier one
BORDER_MARGIN = 0.5  # least distance of an object's centre from the border, in object sizes

MIN_VISIBLE_FRACTION = 0.7  # of the object's whole area
MIN_VISIBLE_AREA = 60.0  # image pixels
MIN_PART_AREA = 4.0  # image pixels, for each piece of an object that is cut in several
MIN_BOX_SIDE = 6.0  # image pixels

SUPERSAMPLING = 4  # canvas pixels per image pixel, along each axis
SIMPLIFY_TOLERANCE = 1.0  # canvas pixels
OUTLINE_SHIFT = 4  # fractional bits of the coordinates handed to cv2.fillPoly

FILLS = ("flat", "gradient", "stripes", "noise")
FILL_CONTRAST = (0.25, 0.5)  # share of black or white in a fill's second colour
COLOUR_CANDIDATES = 8  # an object's colour is the most distinct of this many random ones
BACKGROUND_GREY, BACKGROUND_TINT = (60, 195), 45.0  # grey levels; most deviation of a channel
BACKGROUND_CONTRAST = 40.0  # grey levels between the extremes of a background pattern


def _polar(angles: np.ndarray, radii: float | np.ndarray) -> np.ndarray:
    """Points (P, 2) at the given angles (radians) and distances from the origin."""
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _random_outline(rng: Generator, shape_class: str) -> np.ndarray:
    """A polygon (P, 2) of the class around the origin, upright but for a tilt, with area 1."""
    up = -np.pi / 2 + np.radians(rng.uniform(-MAX_TILT, MAX_TILT))
    if shape_class == "circle":
        points = _polar(np.linspace(0, 2 * np.pi, 64, endpoint=False), 1.0)
    elif shape_class == "rectangle":
        corner = np.arctan(np.exp(rng.uniform(-1, 1) * np.log(MAX_ASPECT)))  # of width / height
        points = _polar(up + np.array([corner, np.pi - corner, np.pi + corner, -corner]), 1.0)
    elif shape_class == "triangle":
        points = _polar(up + np.radians([0, 120, 240] + rng.uniform(-10, 10, size=3)), 1.0)
    else:
        radii = np.tile([1.0, rng.uniform(0.4, 0.48)], 5)
        points = _polar(up + np.arange(10) * np.pi / 5, radii)
    return points / np.sqrt(cv2.contourArea(points.astype(np.float32)))


def _window_around(outline: np.ndarray, canvas_shape: tuple[int, int]) -> Window:
    """Slices (y, x) of the canvas around an outline (P, 2), along the borders of image pixels."""
    low = np.floor((outline.min(axis=0) - 1) / SUPERSAMPLING).astype(int)
    high = np.ceil((outline.max(axis=0) + 2) / SUPERSAMPLING).astype(int)
    (x0, y0), (x1, y1) = np.maximum(low, 0) * SUPERSAMPLING, high * SUPERSAMPLING
    return slice(y0, min(y1, canvas_shape[0])), slice(x0, min(x1, canvas_shape[1]))


def _mask_polygons(mask: np.ndarray) -> list[np.ndarray] | None:
    """Polygons (P, 2) around a mask (bool, h x w) in its pixels; None if it has a hole."""
    # cv2 runs contours through pixel centres, half a pixel inside the mask. Setting every *corner*
    # of a mask pixel instead makes the integer points of the contour true pixel corners.
    corners = np.pad(mask.astype(np.uint8), ((0, 1), (0, 1)))
    corners = cv2.dilate(corners, np.ones((2, 2), np.uint8), anchor=(1, 1))
    contours, hierarchy = cv2.findContours(corners, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if (hierarchy[0, :, 3] >= 0).any():  # a contour inside another one is a hole
        return None
    return [cv2.approxPolyDP(c, SIMPLIFY_TOLERANCE, True).reshape(-1, 2) for c in contours]


def _describe_visible(
    labels: np.ndarray, number: int, window: Window, whole_area: float
) -> dict[str, Any] | None:
    """The "polygons", "bbox" and "area" (image pixels) of what labels (canvas) show of an object.

    window: where on the canvas the whole object lies; whole_area: canvas pixels.
    None if that is too little, or no set of polygons without holes.
    """
    mask = labels[window] == number
    area = np.count_nonzero(mask) / SUPERSAMPLING**2
    if area < max(MIN_VISIBLE_AREA, MIN_VISIBLE_FRACTION * whole_area / SUPERSAMPLING**2):
        return None
    polygons = _mask_polygons(mask)
    if polygons is None:
        return None
    origin = np.array([window[1].start, window[0].start])
    polygons = [(p + origin) / SUPERSAMPLING for p in polygons]
    points = np.concatenate(polygons)
    low, sides = points.min(axis=0), np.ptp(points, axis=0)
    smallest_part = min(cv2.contourArea(p.astype(np.float32)) for p in polygons)
    if smallest_part < MIN_PART_AREA or sides.min() < MIN_BOX_SIDE:
        return None
    return {"polygons": polygons, "bbox": [*low.tolist(), *sides.tolist()], "area": area}


def _try_to_place(
    labels: np.ndarray, objects: list[dict[str, Any]], outline: np.ndarray, shape_class: int
) -> Scene | None:
    """Lay an outline (P, 2; canvas pixels) over a scene.

    Returns the new (labels, objects), or None where an object would then not be fit to annotate.
    """
    number, window = len(objects) + 1, _window_around(outline, labels.shape)
    covered = labels.copy()
    fixed_point = np.round(outline * 2**OUTLINE_SHIFT).astype(np.int32)
    cv2.fillPoly(covered, [fixed_point], number, shift=OUTLINE_SHIFT)
    changed = {number, *np.unique(labels[window][covered[window] == number]).tolist()} - {0}
    whole_area = cv2.contourArea(outline.astype(np.float32))
    objects = [*objects, {"class": shape_class, "window": window, "whole_area": whole_area}]
    for k in changed:
        known = objects[k - 1]
        visible = _describe_visible(covered, k, known["window"], known["whole_area"])
        if visible is None:
            return None
        objects[k - 1] = {**known, **visible}
    return covered, objects


def _random_scene(rng: Generator, height: int, width: int) -> Scene:
    """Labels (uint8 canvas; 0 is background, k the k-th object) and the objects, bottom first."""
    labels = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    objects = []
    for _ in range(rng.integers(*OBJECTS_PER_IMAGE, endpoint=True)):
        # The class stays the same over all tries, so that no class is favoured for fitting well.
        shape_class = int(rng.integers(len(SHAPE_CLASSES)))
        for _ in range(PLACEMENT_TRIES):
            size = min(height, width) * np.exp(rng.uniform(*np.log(OBJECT_SIZE)))
            low, high = BORDER_MARGIN * size, np.array([width, height]) - BORDER_MARGIN * size
            centre = rng.uniform(low, high)
            if objects and rng.random() < OVERLAP_CHANCE:
                neighbour = objects[rng.integers(len(objects))]
                centre = np.clip(rng.choice(np.concatenate(neighbour["polygons"])), low, high)
            outline = centre + size * _random_outline(rng, SHAPE_CLASSES[shape_class])
            placed = _try_to_place(labels, objects, outline * SUPERSAMPLING, shape_class)
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
    """Soft-edged stripes, a map (height, width) in 0..1; period: about so many image pixels."""
    turns = _ramp(rng, height, width) * np.hypot(height, width) / period + rng.random()
    return 0.5 + 0.5 * np.clip(2 * np.sin(2 * np.pi * turns), -1, 1)


def _noise(rng: Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Smooth noise, a map (height, width) in 0..1; cell: distance of its nodes, image pixels."""
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


def _paint(rng: Generator, labels: np.ndarray, objects: list[dict[str, Any]]) -> np.ndarray:
    """The picture (uint8 BGR, image pixels) of a scene."""
    height, width = (side // SUPERSAMPLING for side in labels.shape)
    tints = rng.uniform(-BACKGROUND_TINT, BACKGROUND_TINT, size=(2, 3))
    colours = rng.uniform(*BACKGROUND_GREY) + tints  # (N, 3), those in use so far
    background = _random_background(rng, height, width, colours)
    picture = background.copy()
    for number, thing in enumerate(objects, start=1):
        mask = (labels[thing["window"]] == number).astype(np.float64)
        h, w = (side // SUPERSAMPLING for side in mask.shape)
        y, x = (side.start // SUPERSAMPLING for side in thing["window"])
        cover = cv2.resize(mask, (w, h), interpolation=cv2.INTER_AREA)[..., None]
        colours = np.concatenate([colours, [_distinct_colour(rng, colours)]])
        # Visible parts are disjoint on the canvas, so the covers of a pixel add up to at most 1.
        change = _random_fill(rng, h, w, colours[-1]) - background[y : y + h, x : x + w]
        picture[y : y + h, x : x + w] += cover * change
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def _write_split(folder: Path, split: str, num_images: int, seed: int) -> dict[str, Any]:
    """Write the pictures of a split into `folder`; returns its COCO dict."""
    images, annotations = [], []
    for index in range(num_images):
        image_id, name = index + 1, f"{index:06d}.png"
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        height, width = rng.integers(*IMAGE_SIDE, size=2, endpoint=True).tolist()
        labels, objects = _random_scene(rng, height, width)
        if not cv2.imwrite(str(folder / name), _paint(rng, labels, objects)):
            raise OSError(f"cannot write {folder / name}")
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        annotations += [
            {
                "id": len(annotations) + i,
                "image_id": image_id,
                "category_id": thing["class"] + 1,
                "segmentation": [polygon.ravel().tolist() for polygon in thing["polygons"]],
                "bbox": thing["bbox"],
                "area": thing["area"],
                "iscrowd": 0,
            }
            for i, thing in enumerate(objects, start=1)
        ]
    categories = [{"id": i, "name": name} for i, name in enumerate(SHAPE_CLASSES, start=1)]
    info = {"description": f"generated shapes, {split} split, seed {seed}"}
    return {
        "info": info,
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _move_folder(source: Path, target: Path) -> None:
    """Move a finished folder into place, unless its equal is there already."""
    try:
        os.rename(source, target)
    except OSError:
        if not target.is_dir():
            raise
        names = sorted(os.listdir(source))
        equal, _, _ = filecmp.cmpfiles(source, target, names, shallow=False)
        if not equal == names == sorted(os.listdir(target)):
            raise FileExistsError(f"{target} holds other files; remove it to generate anew")


def _json_path(root: str, split: str) -> Path:
    return Path(root) / "annotations" / f"instances_{split}.json"


def generate_shapes(
    root: str,
    num_train: int = DEFAULT_NUM_TRAIN,
    num_val: int = DEFAULT_NUM_VAL,
    seed: int = 0,
) -> None:
    """Write the data set under `root`: train/, val/ and annotations/instances_{train,val}.json.

    Files get their names only when complete, a split's annotations last, so several processes may
    do this at once. Raises FileExistsError where `root` holds different pictures.
    """
    root = Path(root)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, num_images in zip(SPLITS, (num_train, num_val)):
        temporary = root / f".{split}-{secrets.token_hex(8)}"
        (temporary / split).mkdir(parents=True)
        try:
            coco = _write_split(temporary / split, split, num_images, seed)
            (temporary / "coco.json").write_text(json.dumps(coco))
            _move_folder(temporary / split, root / split)
            os.replace(temporary / "coco.json", _json_path(root, split))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _load_shapes(root: str, split: str, name: str) -> list[dict[str, Any]]:
    """The detectron2 dicts of a split; generates the data set first if it is not there."""
    if not _json_path(root, split).is_file():
        logger.info(
            "Generating the shapes data set, %d train and %d val images, in %s",
            DEFAULT_NUM_TRAIN,
            DEFAULT_NUM_VAL,
            root,
        )
        generate_shapes(root, DEFAULT_NUM_TRAIN, DEFAULT_NUM_VAL)
    return load_coco_json(str(_json_path(root, split)), str(Path(root) / split), name)


def register_shapes(root: str, prefix: str = "shapes") -> None:
    """Register {prefix}_train and {prefix}_val with detectron2; neither reads nor writes files."""
    for split in SPLITS:
        name = f"{prefix}_{split}"
        DatasetCatalog.register(name, partial(_load_shapes, root, split, name))
        MetadataCatalog.get(name).set(
            json_file=str(_json_path(root, split)),
            image_root=str(Path(root) / split),
            evaluator_type="coco",
            thing_classes=list(SHAPE_CLASSES),
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(SHAPE_CLASSES))},
        )
