"""Augmentations against plain formulas, and the distributions of their random parameters."""

import colorsys
import itertools

import numpy as np
import pytest
from detectron2.data import transforms as T
from plain import base_cfg, bilinear

from yolact_d2 import model_zoo
from yolact_d2.data.augmentation import (
    ExpandTransform,
    FixedSizeCrop,
    PatchTransform,
    RandomExpand,
    RandomPatch,
    RandomPhotometric,
    Resize,
    ResizeScale,
    adjust_colors,
    build_augmentation,
)

ORDER = [RandomPhotometric, RandomExpand, RandomPatch, T.RandomFlip, Resize]
POINTS = [[0.0, 0.0], [3.5, 2.0], [-4.0, 90.0]]
BOXES = [[1.0, 2.0, 8.5, 9.0], [0.0, 0.0, 3.0, 4.0]]
NEUTRAL = {"brightness": 0, "contrast": 1, "saturation": 1, "hue": 0}


def _cfg(*opts):
    """All augmentations, at S = 192."""
    cfg = base_cfg()
    cfg.merge_from_list(
        ["INPUT.AUG.PHOTOMETRIC", True, "INPUT.AUG.EXPAND", True, "INPUT.AUG.CROP", True,
         "INPUT.RANDOM_FLIP", "horizontal", "INPUT.IMAGE_SIZE", 192, *opts]
    )  # fmt: skip
    return cfg


def _random_image(height, width):
    values = np.random.default_rng(0).integers(0, 256, size=(height, width, 3))
    return values.astype(np.float32)


def _assert_about(count, draws, probability, sigmas=4.5):
    """Whether `count` out of `draws` is close to its expectation."""
    deviation = np.sqrt(draws * probability * (1 - probability))
    assert abs(count - draws * probability) < sigmas * deviation


# Photometric augmentation


def _hsv_changed(image, saturation, hue):
    """Scale the saturation and shift the hue (degrees) of an RGB image pixel by pixel."""
    pixels = []
    for pixel in image.reshape(-1, 3) / 255.0:
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        pixels.append(colorsys.hsv_to_rgb((h + hue / 360) % 1.0, s * saturation, v))
    return 255 * np.array(pixels).reshape(image.shape)


def _colours():
    """Random colours, grey, black, white and the pure colours; (1, N, 3)."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * 255.0
    greys = np.full((2, 3), [[17.0], [200.0]])
    pixels = np.concatenate([_random_image(1, 60)[0], corners, greys])
    return pixels[None].astype(np.float32)


def test_brightness_and_contrast_are_exact_and_unclipped():
    image = _random_image(5, 7)
    result = adjust_colors(image, "RGB", brightness=-31.5, contrast=1.25)
    assert result.dtype == np.float32
    # Factors and sums of 1/8 are exact in float32.
    np.testing.assert_array_equal(result, (image.astype(np.float64) - 31.5) * 1.25)
    assert result.min() < 0 and result.max() > 255
    np.testing.assert_array_equal(adjust_colors(image, "BGR"), image)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_saturation_and_hue_follow_colorsys_and_contrast_scales_them(image_format):
    rgb = _colours()
    order = slice(None) if image_format == "RGB" else slice(None, None, -1)
    image = np.ascontiguousarray(rgb[..., order])
    changes = [(0.5, 0.0), (1.5, 0.0), (1.0, 18.0), (1.0, -18.0), (0.7, 11.5), (1.3, -7),
               (1.0, 120), (1.0, 370), (1.0, -351)]  # fmt: skip
    for saturation, hue in changes:
        change = {"saturation": saturation, "hue": hue}
        result = adjust_colors(image, image_format, **change)[..., order]
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, _hsv_changed(rgb, saturation, hue), atol=0.02)
        result = adjust_colors(image, image_format, brightness=10, contrast=0.6, **change)
        expected = 0.6 * _hsv_changed(rgb + 10, saturation, hue)
        np.testing.assert_allclose(result[..., order], expected, atol=0.02)


def test_random_photometric_distribution():
    draws, image = 3000, np.zeros((2, 2, 3), np.float32)
    np.random.seed(0)
    transforms = [RandomPhotometric("BGR").get_transform(image) for _ in range(draws)]
    drawn = [t.op.keywords for t in transforms]
    assert {keywords["image_format"] for keywords in drawn} == {"BGR"}
    values = np.array([[keywords[name] for name in NEUTRAL] for keywords in drawn])
    changed = values != [*NEUTRAL.values()]
    for i in range(4):
        _assert_about(changed[:, i].sum(), draws, 1 / 2)
        for j in range(i):  # independent of each other
            _assert_about((changed[:, i] & changed[:, j]).sum(), draws, 1 / 4)
    for column, low, high in zip(values.T, (-32, 0.5, 0.5, -18), (32, 1.5, 1.5, 18)):
        assert low <= column.min() < low + 0.01 * (high - low)
        assert high >= column.max() > high - 0.01 * (high - low)
        _assert_about((column < (low + high) / 2).sum(), draws, 1 / 4)
    image = _random_image(5, 7)
    expected = adjust_colors(image, **drawn[0])
    np.testing.assert_array_equal(transforms[0].apply_image(image), expected)
    np.testing.assert_array_equal(transforms[0].apply_box(np.array(BOXES)), BOXES)


# Expansion


def test_expand_pads_the_image_with_a_colour_and_masks_with_zero():
    image, fill = _random_image(4, 6), (1.5, 20.0, 255.0)
    mask = (image[..., 0] > 127).astype(np.uint8)
    transform = ExpandTransform(2, 3, 5, 1, 6, 4, pad_value=fill)
    for channels in (3, 1):
        result = transform.apply_image(image[..., :channels])
        expected = np.array([[fill[:channels]] * (2 + 6 + 5)] * (3 + 4 + 1))
        expected[3:7, 2:8] = image[..., :channels]
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, expected)
    result = transform.apply_segmentation(mask)
    assert result.dtype == mask.dtype
    np.testing.assert_array_equal(result, np.pad(mask, ((3, 1), (2, 5))))
    np.testing.assert_array_equal(transform.apply_box(np.array(BOXES)), np.add(BOXES, [2, 3, 2, 3]))
    [moved] = transform.apply_polygons([np.array(POINTS)])
    np.testing.assert_array_equal(moved, np.add(POINTS, [2, 3]))


def test_random_expand_distribution():
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


# Crop


def _patches(size, boxes, draws, is_crowd=None):
    """(x0, y0, w, h) of the patches drawn, and how often the image stayed whole."""
    image, boxes = np.empty((*size, 3), np.float32), np.array(boxes, np.float64).reshape(-1, 4)
    is_crowd = np.zeros(len(boxes), bool) if is_crowd is None else np.array(is_crowd)
    np.random.seed(0)
    drawn = [RandomPatch().get_transform(image, boxes, is_crowd) for _ in range(draws)]
    patches = [t for t in drawn if isinstance(t, PatchTransform)]
    assert all(isinstance(t, (PatchTransform, T.NoOpTransform)) for t in drawn)
    assert all((t.orig_h, t.orig_w) == size for t in patches)
    rects = np.array([(t.x0, t.y0, t.w, t.h) for t in patches]).reshape(-1, 4)
    return rects, draws - len(patches)


def _box_around(x, y, side=20):
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2]


def _contain(rects, x, y):
    """Which patches (N, 4) contain a point strictly."""
    x0, y0, w, h = rects.T
    return (x0 < x) & (x < x0 + w) & (y0 < y) & (y < y0 + h)


@pytest.mark.parametrize("size", [(900, 1300), (1000, 1000)])
def test_random_patch_distribution(size):
    draws, (height, width) = 2000, size
    # A grid so dense that every patch contains a centre, so that all patches are equally likely.
    grid = [_box_around(x, y) for x in range(20, width, 60) for y in range(20, height, 60)]
    rects, unchanged = _patches(size, grid, draws)
    _assert_about(unchanged, draws, 1 / 6)
    x0, y0, w, h = rects.T
    assert (x0 >= 0).all() and (y0 >= 0).all()
    assert (x0 + w <= width).all() and (y0 + h <= height).all()
    assert ((h + 1) / w >= 0.5).all() and (h / (w + 1) <= 2).all()
    for side, whole in ((w, width), (h, height)):
        assert 0.3 * whole - 1 < side.min() < 0.35 * whole
        assert side.max() > 0.95 * whole
    assert (h / w).min() < 0.55 and (h / w).max() > 1.8

    # The distribution of the sides, by plain rejection.
    rng = np.random.default_rng(1)
    all_w, all_h = rng.uniform(0.3, 1, size=(2, 100000)) * [[width], [height]]
    fits = (all_h / all_w >= 0.5) & (all_h / all_w <= 2)
    for side, expected, whole in ((w, all_w[fits], width), (h, all_h[fits], height)):
        _assert_about((side < 0.65 * whole).sum(), len(rects), (expected < 0.65 * whole).mean())
    left = x0[w < 0.8 * width] / (width - w[w < 0.8 * width])
    top = y0[h < 0.8 * height] / (height - h[h < 0.8 * height])
    _assert_about((left < 0.5).sum(), len(left), 1 / 2)
    _assert_about((top < 0.5).sum(), len(top), 1 / 2)


def test_random_patch_keeps_an_object_and_ignores_crowds():
    objects, crowd = [(300, 200), (700, 450)], (550, 250)
    boxes = [_box_around(*objects[0]), _box_around(*crowd, side=300), _box_around(*objects[1])]
    rects, _ = _patches((600, 1000), boxes, 400, [False, True, False])
    first, second = (_contain(rects, *centre) for centre in objects)
    assert (first | second).all()
    assert 10 < (first & ~second).sum() and 10 < (second & ~first).sum()
    assert 10 < (~_contain(rects, *crowd)).sum()
    # Few patches contain the object in the corner, most contain the crowd.
    boxes = [_box_around(500, 300, side=400), _box_around(150, 120)]
    rects, _ = _patches((600, 1000), boxes, 200, [True, False])
    assert _contain(rects, 150, 120).all() and len(rects) > 100


def test_random_patch_gives_up_after_50_trials():
    draws, side, point = 2000, 1000, 30
    rng = np.random.default_rng(1)
    w, h, x, y = rng.uniform(0, 1, size=(4, 300000))
    w, h = (0.3 + 0.7 * w) * side, (0.3 + 0.7 * h) * side
    x, y = x * (side - w), y * (side - h)
    hit = ((h / w >= 0.5) & (h / w <= 2) & (x < point) & (y < point)).mean()
    rects, _ = _patches((side, side), [_box_around(point, point)], draws)
    _assert_about(len(rects), draws, 5 / 6 * (1 - (1 - hit) ** 50))


def test_random_patch_keeps_images_whole_without_an_object_in_reach():
    for boxes, crowd in (
        ([], []),
        ([_box_around(50, 50)], [True]),
        ([_box_around(0, 50)], [False]),
    ):
        _, unchanged = _patches((100, 100), boxes, 50, np.array(crowd, bool))
        assert unchanged == 50
    rects, _ = _patches((1, 2), [[0, 0, 1, 1]], 50)
    assert len(rects) > 0 and (rects[:, 2:] >= 1).all()


# Large-scale jitter


def test_jitter_replaces_expansion_crop_and_resize():
    jitter = ["INPUT.AUG.SCALE_JITTER", [0.1, 2.0]]
    for color, image_format, fill in (
        ([1.0, 20.0, 300.0], "BGR", (1.0, 20.0, 300.0)),
        ([7.0], "L", (7.0,)),
    ):
        colors = ["INPUT.AUG.EXPAND_COLOR", color, "INPUT.FORMAT", image_format]
        augmentations = build_augmentation(_cfg(*jitter, *colors))[2:]
        assert [type(a) for a in augmentations] == [
            RandomPhotometric, ResizeScale, FixedSizeCrop, T.RandomFlip
        ]  # fmt: skip
        _, resize, crop, _ = augmentations
        assert (resize.min_scale, resize.max_scale) == (0.1, 2.0)
        assert (resize.target_height, resize.target_width) == crop.crop_size == (192, 192)
        assert crop.fill == fill and crop.pad


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (200, 130), (3, 200)])
def test_jitter_resizes_then_crops_or_pads(size):
    side, fill = 64, (1.0, 20.0, 250.0)
    _, _, resize, crop = build_augmentation(
        _cfg("INPUT.AUG.SCALE_JITTER", [0.3, 2.0], "INPUT.AUG.EXPAND_COLOR", list(fill),
             "INPUT.IMAGE_SIZE", side, "INPUT.AUG.PHOTOMETRIC", False, "INPUT.RANDOM_FLIP", "none")
    )  # fmt: skip
    image, (height, width) = _random_image(*size), size
    mask = (image[..., 0] > 100).astype(np.uint8)
    scales, num_cropped, num_padded = [], 0, 0
    for seed in range(20):
        np.random.seed(seed)
        first = resize.get_transform(image)
        resized = first.apply_image(image)
        scale = max(first.new_h, first.new_w) / side
        scales.append(scale)
        expected = [max(round(x / max(size) * side * scale), 1) for x in size]
        assert np.abs(np.subtract([first.new_h, first.new_w], expected)).max() <= 1
        np.testing.assert_allclose(
            resized[..., 1], bilinear(image[..., 1], first.new_h, first.new_w), atol=0.02
        )
        second = crop.get_transform(resized)
        both = T.TransformList([first, second])
        result, moved_mask = second.apply_image(resized), both.apply_segmentation(mask)
        assert result.dtype == np.float32 and moved_mask.dtype == np.uint8
        assert result.shape == (side, side, 3) and moved_mask.shape == (side, side)

        x0, y0 = second.transforms[0].x0, second.transforms[0].y0
        assert 0 <= x0 <= max(first.new_w - side, 0) and 0 <= y0 <= max(first.new_h - side, 0)
        small_mask = first.apply_segmentation(mask)
        for y, x in itertools.product(range(0, side, 3), range(0, side, 3)):
            if y + y0 < first.new_h and x + x0 < first.new_w:
                np.testing.assert_array_equal(result[y, x], resized[y + y0, x + x0])
                assert moved_mask[y, x] == small_mask[y + y0, x + x0]
            else:
                np.testing.assert_array_equal(result[y, x], fill)
                assert moved_mask[y, x] == 0
        factors = np.array([first.new_w / width, first.new_h / height] * 2)
        np.testing.assert_allclose(
            both.apply_box(np.array(BOXES)), BOXES * factors - [x0, y0, x0, y0]
        )
        [polygon] = both.apply_polygons([np.array(POINTS)])
        np.testing.assert_allclose(polygon, POINTS * factors[:2] - [x0, y0])
        num_cropped += max(first.new_h, first.new_w) > side
        num_padded += min(first.new_h, first.new_w) < side
    assert min(scales) < 0.5 and max(scales) > 1.7 and num_cropped > 5 and num_padded > 5


@pytest.mark.parametrize(
    "value", [[1.0], [0.0, 1.0], [2.0, 0.1], [-1.0, 1.0], [0.1, 1.0, 2.0], [0.5, float("inf")]]
)
def test_invalid_jitter_is_named(value):
    with pytest.raises(ValueError, match=r"INPUT.AUG.SCALE_JITTER is \["):
        build_augmentation(_cfg("INPUT.AUG.SCALE_JITTER", value))


# Resize and config


def test_recipe_of_the_paper():
    cfg = model_zoo.get_config("yolact_R_101_FPN_550")
    assert cfg.INPUT.MIN_BOX_SIZE == 4
    limit, _, *augmentations = build_augmentation(cfg)
    assert [type(a) for a in augmentations] == ORDER
    photometric, expand, crop, flip, resize = augmentations
    assert photometric.image_format == "RGB"
    assert list(expand.fill) == [123.68, 116.78, 103.94] and expand.max_ratio == 4
    assert crop.min_ratio == 0.3
    assert flip.horizontal and flip.prob == 0.5
    assert resize.shape == (550, 550)
    darknet = build_augmentation(model_zoo.get_config("yolact_darknet53_FPN_550"))
    np.testing.assert_allclose(darknet[3].fill, [123.68, 116.78, 103.94])
    # COCO's images, of at most 640 pixels, are never shrunk.
    assert limit.max_side == expand.max_side == 640 * expand.max_ratio == 2560
    assert build_augmentation(model_zoo.get_config("yolact_R_101_FPN_700"))[3].max_side == 2800


def test_each_switch_removes_its_augmentation():
    switches = ["INPUT.AUG.PHOTOMETRIC", "INPUT.AUG.EXPAND", "INPUT.AUG.CROP", "INPUT.RANDOM_FLIP"]
    for i, key in enumerate(switches):
        augmentations = build_augmentation(_cfg(key, "none" if "FLIP" in key else False))[2:]
        assert [type(a) for a in augmentations] == ORDER[:i] + ORDER[i + 1 :]


def test_values_come_from_the_config():
    cfg = _cfg(
        "INPUT.FORMAT", "BGR", "INPUT.AUG.EXPAND_COLOR", [1.0, 20.0, 300.0],
        "INPUT.AUG.EXPAND_MAX_RATIO", 1.5, "INPUT.AUG.CROP_MIN_RATIO", 0.8,
        "INPUT.RANDOM_FLIP", "vertical", "INPUT.IMAGE_SIZE", 64,
    )  # fmt: skip
    _, _, photometric, expand, crop, flip, resize = build_augmentation(cfg)
    assert photometric.image_format == "BGR"
    assert (expand.fill, expand.max_ratio) == ([1.0, 20.0, 300.0], 1.5)
    assert crop.min_ratio == 0.8 and resize.shape == (64, 64)
    assert flip.vertical and not flip.horizontal
    image = np.zeros((200, 300, 3), np.float32)
    box, is_crowd = np.array([[100.0, 50.0, 200.0, 150.0]]), np.array([False])
    np.random.seed(0)
    for _ in range(50):
        patch = crop.get_transform(image, box, is_crowd).apply_image(image)
        assert len(patch) >= 159 and patch.shape[1] >= 239


@pytest.mark.parametrize(
    "key, value",
    [("INPUT.FORMAT", "HSV"), ("INPUT.RANDOM_FLIP", "both"), ("INPUT.AUG.EXPAND_MAX_RATIO", 0.5)],
)
def test_invalid_values_are_named(key, value):
    with pytest.raises(ValueError, match=f"{key} is {value!r}"):
        build_augmentation(_cfg(key, value))


def test_grey_images_have_brightness_contrast_and_a_grey_canvas():
    image = _random_image(4, 5)[:, :, :1]
    changed = adjust_colors(image, "L", brightness=20, contrast=0.5, saturation=1.5, hue=9)
    np.testing.assert_allclose(changed, (image + 20) * 0.5)
    for color, grey in (([100.0, 50.0, 200.0], 82.05), ([7.0], 7.0)):
        expand = build_augmentation(_cfg("INPUT.FORMAT", "L", "INPUT.AUG.EXPAND_COLOR", color))[3]
        np.random.seed(1)
        transforms = [expand.get_transform(image) for _ in range(20)]
        padded = next(x for x in (t.apply_image(image) for t in transforms) if x.size > image.size)
        assert padded.shape[2] == 1 and np.isclose(padded, grey).sum() >= padded.size - image.size
    for image_format, color in (("L", [1.0, 2.0]), ("RGB", [1.0])):
        with pytest.raises(ValueError, match="INPUT.AUG.EXPAND_COLOR is"):
            build_augmentation(_cfg("INPUT.FORMAT", image_format, "INPUT.AUG.EXPAND_COLOR", color))


def test_resize_is_half_pixel_bilinear_without_antialias():
    resize = build_augmentation(_cfg("INPUT.IMAGE_SIZE", 48))[-1]
    for size in ((12, 70), (100, 83), (48, 48), (175, 5), (1, 1)):
        image = _random_image(*size) - 20
        expected = np.stack([bilinear(image[..., c], 48, 48) for c in range(3)], axis=2)
        for mirror in (np.s_[:], np.s_[:, ::-1], np.s_[::-1]):
            result = resize.get_transform(image).apply_image(image[mirror])
            assert result.dtype == np.float32
            # In float32, places far from the origin are only known to 1e-5 pixels or so.
            np.testing.assert_allclose(result, expected[mirror], atol=0.02)
