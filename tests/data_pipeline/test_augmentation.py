"""Each augmentation against plain formulas, and how often and how far the random ones reach."""

import colorsys
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from pycocotools import mask as mask_api

from yolact_d2 import add_yolact_config
from yolact_d2.data.augmentation import (
    ExpandTransform,
    LimitSize,
    PatchTransform,
    PhotometricTransform,
    RandomExpand,
    RandomFlip,
    RandomPatch,
    RandomPhotometric,
    build_augmentation,
    max_side,
    points_inside,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ORDER = [RandomPhotometric, RandomExpand, RandomPatch, RandomFlip, T.Resize]
POINTS = [[0.0, 0.0], [3.5, 2.0], [-4.0, 90.0]]
BOXES = [[1.0, 2.0, 8.5, 9.0], [0.0, 0.0, 3.0, 4.0]]


def _cfg():
    """With everything switched on, at S = 192."""
    cfg = get_cfg()
    add_yolact_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "Base-YOLACT.yaml"))
    aug = cfg.INPUT.AUG
    aug.PHOTOMETRIC = aug.EXPAND = aug.CROP = True
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.IMAGE_SIZE = 192
    return cfg


def _random_image(height, width, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3))
    return values.astype(np.float32)


def _random_mask(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 2, size=(height, width)).astype(np.uint8)


def _assert_about(count, draws, probability, sigmas=4.5):
    """Whether `count` out of `draws` is what the probability makes one expect."""
    deviation = np.sqrt(draws * probability * (1 - probability))
    assert abs(count - draws * probability) < sigmas * deviation


# Photometric distortion


def _hsv_changed(image, saturation, hue):
    """Factor of the saturation and shift of the hue (degrees), pixel by pixel; (H, W, 3) RGB."""
    pixels = []
    for pixel in image.reshape(-1, 3) / 255.0:
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        pixels.append(colorsys.hsv_to_rgb((h + hue / 360) % 1.0, s * saturation, v))
    return 255 * np.array(pixels).reshape(image.shape)


def _colours():
    """Random colours, then grey, black, white and the pure ones; (1, N, 3)."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * 255.0
    greys = np.full((2, 3), [[17.0], [200.0]])
    pixels = np.concatenate([_random_image(1, 60)[0], corners, greys])
    return pixels[None].astype(np.float32)


def test_brightness_and_contrast_are_exact_and_unclipped():
    image = _random_image(5, 7)
    transform = PhotometricTransform("RGB", brightness=-31.5, contrast=1.25)
    result = transform.apply_image(image)
    assert result.dtype == np.float32
    # Factors and sums of 1/8 are exact in float32.
    np.testing.assert_array_equal(result, (image.astype(np.float64) - 31.5) * 1.25)
    assert result.min() < 0 and result.max() > 255


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize(
    "saturation, hue", [(0.5, 0.0), (1.5, 0.0), (1.0, 18.0), (1.0, -18.0), (0.7, 11.5), (1.3, -7)]
)
def test_saturation_and_hue_follow_colorsys(image_format, saturation, hue):
    rgb = _colours()
    order = slice(None) if image_format == "RGB" else slice(None, None, -1)
    transform = PhotometricTransform(image_format, saturation=saturation, hue=hue)
    result = transform.apply_image(np.ascontiguousarray(rgb[..., order]))[..., order]
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, _hsv_changed(rgb, saturation, hue), atol=0.02)


@pytest.mark.parametrize("hue, expected", [(18, 8), (-18, 332), (10, 0), (370, 0), (-351, 359)])
def test_hue_wraps(hue, expected):
    """350 degrees, shifted."""
    start, end = (255 * np.array(colorsys.hsv_to_rgb(h / 360, 0.6, 0.8)) for h in (350, expected))
    image = np.full((1, 1, 3), start, np.float32)
    result = PhotometricTransform("RGB", hue=hue).apply_image(image)
    np.testing.assert_allclose(result[0, 0], end, atol=0.01)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_hue_turns_the_right_way(image_format):
    red, green, blue = np.eye(3)[:: 1 if image_format == "RGB" else -1] * 255
    image = np.float32([[red, green, blue]])
    result = PhotometricTransform(image_format, hue=120).apply_image(image)
    np.testing.assert_allclose(result, [[green, blue, red]], atol=0.01)


def test_place_of_contrast_among_saturation_and_hue_makes_no_difference():
    image = _colours()
    transform = PhotometricTransform("RGB", brightness=10, contrast=0.6, saturation=1.4, hue=15)
    expected = 0.6 * _hsv_changed(image + 10, 1.4, 15)
    np.testing.assert_allclose(transform.apply_image(image), expected, atol=0.02)


def test_nothing_drawn_is_the_identity():
    image = _random_image(5, 7)
    result = PhotometricTransform("BGR").apply_image(image)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize(
    "change", [{}, {"brightness": 9}, {"contrast": 0.5}, {"saturation": 0.5}, {"hue": 18}]
)
def test_photometric_leaves_its_input_alone(change):
    image = _random_image(5, 7)
    before = image.copy()
    result = PhotometricTransform("RGB", **change).apply_image(image)
    result += 1
    np.testing.assert_array_equal(image, before)


def test_photometric_moves_nothing():
    transform = PhotometricTransform("RGB", 30, 1.4, 0.6, 15)
    np.testing.assert_array_equal(transform.apply_coords(np.array(POINTS)), POINTS)
    np.testing.assert_array_equal(transform.apply_box(np.array(BOXES)), BOXES)
    np.testing.assert_array_equal(transform.apply_polygons([np.array(POINTS)]), [POINTS])
    mask = _random_mask(6, 8)
    np.testing.assert_array_equal(transform.apply_segmentation(mask.copy()), mask)


def test_random_photometric_frequencies_and_ranges():
    draws, image = 3000, np.zeros((2, 2, 3), np.float32)
    augmentation = RandomPhotometric("RGB")
    np.random.seed(0)
    drawn = [augmentation.get_transform(image) for _ in range(draws)]
    names, neutral = ("brightness", "contrast", "saturation", "hue"), (0, 1, 1, 0)
    values = np.array([[getattr(t, name) for name in names] for t in drawn])
    changed = values != neutral
    for i in range(4):
        _assert_about(changed[:, i].sum(), draws, 1 / 2)
        for j in range(i):  # one coin for each
            _assert_about((changed[:, i] & changed[:, j]).sum(), draws, 1 / 4)
    for column, low, high in zip(values.T, (-32, 0.5, 0.5, -18), (32, 1.5, 1.5, 18)):
        assert low <= column.min() < low + 0.01 * (high - low)
        assert high >= column.max() > high - 0.01 * (high - low)
        _assert_about((column < (low + high) / 2).sum(), draws, 1 / 4)
    assert {t.image_format for t in drawn} == {"RGB"}


def test_random_photometric_ranges_can_be_set():
    augmentation = RandomPhotometric(
        "BGR", brightness=1, contrast=(2, 3), saturation=(4, 5), hue=0.5
    )
    np.random.seed(0)
    for _ in range(100):
        t = augmentation.get_transform(np.zeros((2, 2, 3), np.float32))
        assert abs(t.brightness) <= 1 and abs(t.hue) <= 0.5 and t.image_format == "BGR"
        assert t.contrast == 1 or 2 <= t.contrast <= 3
        assert t.saturation == 1 or 4 <= t.saturation <= 5


@pytest.mark.parametrize("image_format", ["L", "YUV-BT.601"])
def test_photometric_refuses_other_formats(image_format):
    with pytest.raises(ValueError, match="INPUT.FORMAT") as error:
        RandomPhotometric(image_format)
    assert repr(image_format) in str(error.value)
    assert "INPUT.AUG.PHOTOMETRIC" in str(error.value)


# Expansion


def test_expand_image():
    image = _random_image(4, 6)
    fill = (1.5, 20.0, 255.0)
    before = image.copy()
    result = ExpandTransform(2, 3, 5, 1, 6, 4, pad_value=fill).apply_image(image)
    expected = np.array([[fill] * (2 + 6 + 5)] * (3 + 4 + 1))
    for y, x in np.ndindex(4, 6):
        expected[3 + y, 2 + x] = image[y, x]
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(image, before)


def test_expand_shifts_annotations():
    transform = ExpandTransform(2, 3, 5, 1, 6, 4, pad_value=(9.0, 9.0, 9.0))
    np.testing.assert_array_equal(transform.apply_box(np.array(BOXES)), np.add(BOXES, [2, 3, 2, 3]))
    np.testing.assert_array_equal(
        transform.apply_polygons([np.array(POINTS)]), [np.add(POINTS, [2, 3])]
    )


def test_expand_pads_masks_with_zero():
    mask = _random_mask(4, 6)
    decoded = mask_api.decode(mask_api.encode(np.asfortranarray(mask)))
    transform = ExpandTransform(2, 3, 5, 1, 6, 4, pad_value=(9.0, 9.0, 9.0))
    result = transform.apply_segmentation(decoded)
    expected = np.zeros((8, 13), np.uint8)
    expected[3:7, 2:8] = mask
    assert result.dtype == mask.dtype
    np.testing.assert_array_equal(result, expected)


def test_random_expand_frequency_canvas_and_place():
    draws, (height, width) = 2000, (60, 90)
    augmentation = RandomExpand((1.0, 2.0, 3.0))
    np.random.seed(0)
    drawn = [augmentation.get_transform(np.empty((height, width, 3))) for _ in range(draws)]
    expansions = [t for t in drawn if isinstance(t, ExpandTransform)]
    assert all(isinstance(t, (ExpandTransform, T.NoOpTransform)) for t in drawn)
    _assert_about(len(expansions), draws, 1 / 2)

    assert {t.pad_value for t in expansions} == {(1.0, 2.0, 3.0)}
    sides = np.array([(t.x0, t.y0, t.x1, t.y1) for t in expansions])
    assert sides.min() >= 0
    ratios = 1 + (sides[:, :2] + sides[:, 2:]) / (width, height)
    assert ratios.min() < 1.05 and 3.95 < ratios.max() <= 4
    assert (np.abs(ratios[:, 0] - ratios[:, 1]) < 1 / min(height, width)).all()
    _assert_about((ratios[:, 0] < 2.5).sum(), len(expansions), 1 / 2)

    big = ratios[:, 0] > 2
    places = sides[big, :2] / (sides[big, :2] + sides[big, 2:])
    assert places.min() < 0.02 and places.max() > 0.98
    left, top = (places < 0.5).T
    _assert_about(left.sum(), len(places), 1 / 2)
    _assert_about(top.sum(), len(places), 1 / 2)
    _assert_about((left & top).sum(), len(places), 1 / 4)


def test_random_expand_probability_and_ratio_can_be_set():
    image = np.empty((40, 50, 3), np.float32)
    np.random.seed(0)
    never, always = RandomExpand((0.0,) * 3, prob=0.0), RandomExpand((0.0,) * 3, 2.0, prob=1.0)
    for _ in range(50):
        assert isinstance(never.get_transform(image), T.NoOpTransform)
        height, width = always.get_transform(image).apply_image(image).shape[:2]
        assert 40 <= height <= 80 and 50 <= width <= 100


def test_expansion_by_one_changes_nothing():
    image = _random_image(7, 9)
    transform = RandomExpand((0.0,) * 3, max_ratio=1.0, prob=1.0).get_transform(image)
    np.testing.assert_array_equal(transform.apply_image(image), image)
    np.testing.assert_array_equal(transform.apply_box(np.array(BOXES)), BOXES)


# Crop


def test_points_inside():
    height, width, tiny = 6, 10, 1e-9
    inside = [(5, 3), (tiny, 3), (5, tiny), (width - tiny, 3), (5, height - tiny), (9, 5)]
    outside = [(0, 3), (5, 0), (width, 3), (5, height), (5, 9), (-1, 3), (5, -1), (11, 3)]
    result = points_inside(np.array(inside + outside, np.float64), (height, width))
    np.testing.assert_array_equal(result, [True] * len(inside) + [False] * len(outside))
    assert points_inside(np.zeros((0, 2)), (height, width)).shape == (0,)


def test_patch_crops_image_boxes_and_masks():
    image, mask = _random_image(12, 15), _random_mask(12, 15)
    transform = PatchTransform(3, 2, 7, 8, 15, 12)
    np.testing.assert_array_equal(transform.apply_image(image), image[2:10, 3:10])
    np.testing.assert_array_equal(transform.apply_segmentation(mask), mask[2:10, 3:10])
    boxes = transform.apply_box(np.array(BOXES))
    np.testing.assert_array_equal(boxes, np.subtract(BOXES, [3, 2, 3, 2]))


def _rasterised(polygon, height, width):
    return mask_api.decode(mask_api.frPyObjects([polygon.ravel()], height, width)[0])


def test_polygons_cut_by_a_patch_rasterise_like_the_cut_mask():
    rng = np.random.default_rng(0)
    height, width, (x0, y0, w, h) = 120, 150, (40, 30, 60, 50)
    transform = PatchTransform(x0, y0, w, h, width, height)
    cut = 0
    for _ in range(60):
        angles = np.sort(rng.uniform(0, 2 * np.pi, size=rng.integers(3, 10)))
        radii = rng.uniform(8, 50, size=len(angles))
        centre = rng.uniform([x0, y0], [x0 + w, y0 + h])
        polygon = centre + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
        whole = _rasterised(polygon, height, width)
        expected = whole[y0 : y0 + h, x0 : x0 + w]
        [moved] = transform.apply_polygons([polygon.copy()])
        result = _rasterised(moved, h, w)
        border = cv2.dilate(expected, np.ones((3, 3))) != cv2.erode(expected, np.ones((3, 3)))
        assert (result == expected)[~border].all()
        assert (result != expected).sum() <= 0.1 * border.sum()
        cut += 0 < expected.sum() < whole.sum()
    assert cut > 30


def _patches(size, boxes, is_crowd, draws, **kwargs):
    """(x0, y0, w, h) of the patches drawn, and how often the image stayed as it was."""
    augmentation, image = RandomPatch(**kwargs), np.empty((*size, 3), np.float32)
    boxes, is_crowd = np.array(boxes, np.float64).reshape(-1, 4), np.array(is_crowd, bool)
    drawn = [augmentation.get_transform(image, boxes, is_crowd) for _ in range(draws)]
    patches = [t for t in drawn if isinstance(t, PatchTransform)]
    assert all(isinstance(t, (PatchTransform, T.NoOpTransform)) for t in drawn)
    assert all((t.orig_h, t.orig_w) == size for t in patches)
    rects = np.array([(t.x0, t.y0, t.w, t.h) for t in patches]).reshape(-1, 4)
    return rects, draws - len(patches)


def _box_around(x, y, side=20):
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2]


def _holds(rects, x, y):
    """Which of the patches (N, 4) have a point strictly inside."""
    x0, y0, w, h = rects.T
    return (x0 < x) & (x < x0 + w) & (y0 < y) & (y < y0 + h)


@pytest.mark.parametrize("size", [(900, 1300), (1300, 900), (1000, 1000)])
def test_random_patch_sides_aspect_and_place(size):
    draws, (height, width) = 2000, size
    # A grid so dense that every patch holds a centre, so that all patches are equally likely.
    grid = [_box_around(x, y) for x in range(20, width, 60) for y in range(20, height, 60)]
    np.random.seed(0)
    rects, unchanged = _patches(size, grid, [False] * len(grid), draws)
    _assert_about(unchanged, draws, 1 / 6)
    x0, y0, w, h = rects.T
    assert (x0 >= 0).all() and (y0 >= 0).all()
    assert (x0 + w <= width).all() and (y0 + h <= height).all()
    assert ((h + 1) / w >= 0.5).all() and (h / (w + 1) <= 2).all()
    for side, whole in ((w, width), (h, height)):
        assert 0.3 * whole - 1 < side.min() < 0.35 * whole
        assert side.max() > 0.95 * whole
    assert (h / w).min() < 0.55 and (h / w).max() > 1.8

    # The law of the sides, by plain rejection.
    rng = np.random.default_rng(1)
    all_w, all_h = rng.uniform(0.3, 1, size=(2, 100000)) * [[width], [height]]
    fits = (all_h / all_w >= 0.5) & (all_h / all_w <= 2)
    for side, law, whole in ((w, all_w[fits], width), (h, all_h[fits], height)):
        _assert_about((side < 0.65 * whole).sum(), len(rects), (law < 0.65 * whole).mean())
    left = x0[w < 0.8 * width] / (width - w[w < 0.8 * width])
    top = y0[h < 0.8 * height] / (height - h[h < 0.8 * height])
    _assert_about((left < 0.5).sum(), len(left), 1 / 2)
    _assert_about((top < 0.5).sum(), len(top), 1 / 2)


def test_random_patch_keeps_an_object_that_is_no_crowd():
    objects, crowd = [(300, 200), (700, 450)], (550, 250)
    boxes = [_box_around(*objects[0]), _box_around(*crowd, side=300), _box_around(*objects[1])]
    np.random.seed(0)
    rects, _ = _patches((600, 1000), boxes, [False, True, False], 400)
    first, second = (_holds(rects, *centre) for centre in objects)
    assert (first | second).all()
    assert 10 < (first & ~second).sum() and 10 < (second & ~first).sum()
    assert 10 < (~_holds(rects, *crowd)).sum()


def test_random_patch_does_not_count_crowds():
    """One object in a corner, where few patches hold its centre, and a crowd where most do."""
    boxes = [_box_around(500, 300, side=400), _box_around(150, 120)]
    np.random.seed(0)
    rects, _ = _patches((600, 1000), boxes, [True, False], 200)
    assert _holds(rects, 150, 120).all() and len(rects) > 100


def test_random_patch_gives_up_after_50_trials():
    draws, side, point = 400, 1000, 30
    rng = np.random.default_rng(1)
    w, h, x, y = rng.uniform(0, 1, size=(4, 1000000))
    w, h = (0.3 + 0.7 * w) * side, (0.3 + 0.7 * h) * side
    x, y = x * (side - w), y * (side - h)
    hit = ((h / w >= 0.5) & (h / w <= 2) & (x < point) & (y < point)).mean()
    np.random.seed(0)
    boxes = [_box_around(point, point)]
    rects, _ = _patches((side, side), boxes, [False], draws, keep_prob=0.0)
    _assert_about(len(rects), draws, 1 - (1 - hit) ** 50)


@pytest.mark.parametrize("boxes, is_crowd", [([], []), ([_box_around(50, 50)], [True])])
def test_without_objects_the_image_stays_as_it_is(boxes, is_crowd):
    np.random.seed(0)
    _, unchanged = _patches((100, 100), boxes, is_crowd, 50)
    assert unchanged == 50


def test_an_object_that_no_patch_can_hold_leaves_the_image_as_it_is():
    np.random.seed(0)
    _, unchanged = _patches((100, 100), [_box_around(0, 50)], [False], 20, keep_prob=0.0)
    assert unchanged == 20


def test_patch_of_a_tiny_image():
    np.random.seed(0)
    rects, _ = _patches((1, 2), [[0, 0, 1, 1]], [False], 50)
    assert len(rects) > 0 and (rects[:, 2:] >= 1).all()


# The whole


def test_order():
    assert [type(a) for a in build_augmentation(_cfg())] == ORDER


def test_recipe_of_the_paper():
    cfg = get_cfg()
    add_yolact_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "yolact_R_101_FPN_550.yaml"))
    assert cfg.INPUT.MIN_BOX_SIZE == 4
    augmentations = build_augmentation(cfg)
    assert [type(a) for a in augmentations] == ORDER
    photometric, expand, crop, flip, resize = augmentations
    assert photometric.image_format == "RGB"
    assert list(expand.fill) == [123.68, 116.78, 103.94] and expand.max_ratio == 4
    assert crop.min_ratio == 0.3
    assert flip.horizontal and flip.prob == 0.5
    assert resize.shape == (550, 550)


@pytest.mark.parametrize(
    "key, value, removed",
    [
        ("INPUT.AUG.PHOTOMETRIC", False, RandomPhotometric),
        ("INPUT.AUG.EXPAND", False, RandomExpand),
        ("INPUT.AUG.CROP", False, RandomPatch),
        ("INPUT.RANDOM_FLIP", "none", RandomFlip),
    ],
)
def test_each_switch_removes_its_own_augmentation(key, value, removed):
    cfg = _cfg()
    cfg.merge_from_list([key, value])
    assert [type(a) for a in build_augmentation(cfg)] == [a for a in ORDER if a is not removed]


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
def test_flip(direction):
    cfg = _cfg()
    cfg.INPUT.RANDOM_FLIP = direction
    image = _random_image(5, 7)
    mirrored = image[:, ::-1] if direction == "horizontal" else image[::-1]
    augmentation = build_augmentation(cfg)[ORDER.index(RandomFlip)]
    np.random.seed(0)
    draws = 400
    results = [augmentation.get_transform(image).apply_image(image) for _ in range(draws)]
    flipped = [np.array_equal(result, mirrored) for result in results]
    _assert_about(sum(flipped), draws, 1 / 2)
    assert all(f or np.array_equal(result, image) for f, result in zip(flipped, results))


def test_values_come_from_the_config():
    cfg = _cfg()
    cfg.INPUT.FORMAT = "BGR"
    cfg.INPUT.AUG.EXPAND_COLOR = [1.0, 20.0, 300.0]
    cfg.INPUT.AUG.EXPAND_MAX_RATIO = 1.5
    cfg.INPUT.AUG.CROP_MIN_RATIO = 0.8
    cfg.INPUT.IMAGE_SIZE = 64
    photometric, expand, crop, _, resize = build_augmentation(cfg)
    image = np.zeros((200, 300, 3), np.float32)
    assert photometric.get_transform(image).image_format == "BGR"
    np.random.seed(0)
    ratios, colours = [], set()
    for _ in range(50):
        canvas = expand.get_transform(image).apply_image(image)
        ratios.append(len(canvas) / len(image))
        colours.update(map(tuple, canvas[[0, -1], [0, -1]].tolist()))
        box, is_crowd = np.array([[100.0, 50.0, 200.0, 150.0]]), np.array([False])
        patch = crop.get_transform(image, box, is_crowd).apply_image(image)
        assert len(patch) >= 159 and patch.shape[1] >= 239
    assert 1.35 < max(ratios) <= 1.5
    assert colours == {(0, 0, 0), (1, 20, 300)}
    assert resize.get_transform(image).apply_image(image).shape == (64, 64, 3)


def _bilinear_weights(size, new_size):
    """(new_size, size): half-pixel centres, borders repeated, two neighbours whatever the scale."""
    weights = np.zeros((new_size, size))
    for i in range(new_size):
        centre = max((i + 0.5) * size / new_size - 0.5, 0.0)
        low = int(centre)
        weights[i, low] += 1 - (centre - low)
        weights[i, min(low + 1, size - 1)] += centre - low
    return weights


@pytest.mark.parametrize("size", [(50, 70), (400, 333), (192, 192), (700, 20), (1, 1)])
def test_resize_is_half_pixel_bilinear_without_antialias(size):
    image = _random_image(*size) - 20
    resize = build_augmentation(_cfg())[-1]
    result = resize.get_transform(image).apply_image(image)
    rows, columns = (_bilinear_weights(side, 192) for side in size)
    expected = np.einsum("yi,ijc,xj->yxc", rows, image, columns, optimize=True)
    assert result.dtype == np.float32
    # In float32, places far from the origin are only known to 1e-5 pixels or so.
    np.testing.assert_allclose(result, expected, atol=0.02)


def test_resize_scales_annotations():
    transform = build_augmentation(_cfg())[-1].get_transform(np.empty((96, 384, 3), np.float32))
    boxes = transform.apply_box(np.array(BOXES))
    np.testing.assert_allclose(boxes, np.multiply(BOXES, [0.5, 2, 0.5, 2]))
    mask = _random_mask(96, 384).repeat(2, axis=1)[:, :384]
    expected = mask[:, ::2].repeat(2, axis=0)
    np.testing.assert_array_equal(transform.apply_segmentation(mask), expected)


def test_darknet_expands_with_the_mean_too():
    cfg = get_cfg()
    add_yolact_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "yolact_darknet53_FPN_550.yaml"))
    np.testing.assert_allclose(build_augmentation(cfg)[1].fill, [123.68, 116.78, 103.94])


def test_unknown_flip_is_named():
    cfg = _cfg()
    cfg.INPUT.RANDOM_FLIP = "both"
    with pytest.raises(ValueError, match="INPUT.RANDOM_FLIP is 'both'"):
        build_augmentation(cfg)


def test_canvas_smaller_than_the_image_is_named():
    cfg = _cfg()
    cfg.INPUT.AUG.EXPAND_MAX_RATIO = 0.5
    with pytest.raises(ValueError, match="INPUT.AUG.EXPAND_MAX_RATIO is 0.5"):
        build_augmentation(cfg)


# Images that are too large


def _coordinates(height, width):
    """An image whose first two channels say where in it a pixel's centre is; the third is 0."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([x, y, 0 * x], axis=2).astype(np.float32)


def _assert_points_follow(transform, size):
    """That coordinates, boxes and masks go where a transform takes the pixels of an image."""
    height, width = size
    moved = transform.apply_image(_coordinates(height, width))
    # At the border values are not linear, outside they are the fill.
    inner = (moved[..., :2] > (3, 3)) & (moved[..., :2] < (width - 3, height - 3))
    rows, columns = np.nonzero(inner.all(axis=2) & (moved[..., 2] == 0))
    assert len(rows) > 0
    points = moved[rows, columns, :2].astype(np.float64)
    np.testing.assert_allclose(
        transform.apply_coords(points.copy()), np.stack([columns, rows], axis=1) + 0.5, atol=0.01
    )
    box = np.array([[width * 0.2, height * 0.3, width * 0.9, height * 0.8]])
    [corners] = transform.apply_polygons([box.reshape(2, 2).copy()])
    np.testing.assert_allclose(transform.apply_box(box.copy())[0], corners.ravel())
    mask = np.zeros(size, np.uint8)
    x0, y0, x1, y1 = box.round().astype(int)[0]
    mask[y0:y1, x0:x1] = 1
    found = np.argwhere(transform.apply_segmentation(mask))
    tight = np.array([found.min(axis=0)[::-1], found.max(axis=0)[::-1] + 1])
    expected = transform.apply_coords(np.array([[x0, y0], [x1, y1]], np.float64))
    assert np.abs(tight - expected).max() < 1


@pytest.mark.parametrize(
    "size, limit, expected",
    [
        ((300, 400), 400, None),
        ((400, 300), 399, (399, 299)),
        ((300, 1000), 100, (30, 100)),
        ((900, 120), 90, (90, 12)),
        ((10, 4000), 100, (1, 100)),
        ((1, 1), 1, None),
    ],
)
def test_large_images_are_reduced(size, limit, expected):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    transform = LimitSize(limit).get_transform(image)
    result = transform.apply_image(image)
    if expected is None:
        assert result is image
        return
    assert result.dtype == np.uint8 and result.shape == (*expected, 3)
    rows, columns = (_bilinear_weights(*sides) for sides in zip(size, expected))
    plain = np.einsum("yi,ijc,xj->yxc", rows, image, columns, optimize=True)
    assert np.abs(result - plain).max() < 1
    assert transform.apply_image(image[..., :1]).shape == (*expected, 1)
    np.testing.assert_array_equal(transform.apply_image(image[..., ::-1]), result[..., ::-1])
    if min(expected) > 10:
        _assert_points_follow(transform, size)


@pytest.mark.parametrize("size", [(150, 200), (300, 120), (10, 390), (1, 1)])
def test_canvas_has_a_limit(size):
    limit = 400
    augmentation = RandomExpand((7.0, 8.0, 9.0), prob=1.0, max_side=limit)
    image = np.full((*size, 3), 200, np.float32)
    ratios, reduced = [], 0
    for seed in range(40):
        np.random.seed(seed)
        _, ratio = np.random.rand(), np.random.uniform(1, 4)
        np.random.seed(seed)
        transform = augmentation.get_transform(image)
        canvas = transform.apply_image(image)
        assert canvas.dtype == np.float32 and max(canvas.shape[:2]) <= limit
        if max(size) * ratio <= limit:
            assert isinstance(transform, ExpandTransform)
            assert canvas.shape[:2] == tuple(int(side * ratio) for side in size)
            continue
        reduced += 1
        assert max(canvas.shape[:2]) > limit - 4
        # As much of the canvas is the image as if there were no limit.
        ratios.append((canvas == 200).all(axis=2).mean() * ratio**2)
        if min(size) > 100:
            _assert_points_follow(transform, size)
    assert (reduced > 10) == (size != (1, 1))
    if min(size) > 100:
        np.testing.assert_allclose(ratios, 1, atol=0.05)


def test_limit_draws_no_other_random_numbers():
    image = np.zeros((640, 480, 3), np.float32)
    limited, unlimited = RandomExpand((0.0,) * 3, max_side=2560), RandomExpand((0.0,) * 3)
    for seed in range(30):
        drawn = []
        for augmentation in (limited, unlimited):
            np.random.seed(seed)
            transform = augmentation.get_transform(image)
            drawn.append((type(transform), vars(transform), np.random.rand()))
        assert drawn[0] == drawn[1]


def test_coco_is_never_reduced():
    for name in ("yolact_R_101_FPN_400", "yolact_R_101_FPN_550", "yolact_R_101_FPN_700"):
        cfg = get_cfg()
        add_yolact_config(cfg)
        cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
        assert max_side(cfg) == (2800 if "700" in name else 2560)
        assert build_augmentation(cfg)[1].max_side == max_side(cfg)
        assert max_side(cfg) >= 640 * cfg.INPUT.AUG.EXPAND_MAX_RATIO
