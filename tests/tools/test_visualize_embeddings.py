"""What the figures of EmbedMask's embeddings show, and the program that draws them."""

import os

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from processes import REPO, assert_refused, run_here
from small_models import tiny_embedmask

from tools.visualize_embeddings import (
    MaskParts,
    detection_figure,
    embedding_sheet,
    principal_components,
    probabilities,
    record_mask_parts,
    to_colors,
)
from yolact_d2 import Predictor, load_config
from yolact_d2.modeling.embedmask.masks import paste_masks

CONFIG = REPO / "configs" / "embedmask_shapes.yaml"


def test_principal_components_are_those_of_the_singular_values():
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.1, 5.0, 1.0, 2.0, 0.5])[:, None, None]
    mixed = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    values = torch.einsum(
        "ij,jhw->ihw", mixed, scales * torch.randn(5, 6, 7, generator=generator).double() + 3
    )
    flat = values.flatten(1).numpy()
    flat = flat - flat.mean(axis=1, keepdims=True)
    u, s, vt = np.linalg.svd(flat, full_matrices=False)
    signs = np.sign(u[np.abs(u).argmax(axis=0), np.arange(5)])
    expected = (s * signs)[:, None] * vt
    np.testing.assert_allclose(principal_components(values).flatten(1), expected[:3], atol=1e-9)
    # Of one dimension there is one component.
    one = principal_components(values[:1])
    np.testing.assert_allclose(one[0].flatten(), flat[0], atol=1e-9)
    assert not one[1:].any()


def test_colors_reach_from_least_to_largest_but_for_extremes():
    components = torch.stack([torch.linspace(-1, 1, 101), torch.zeros(101), torch.ones(101)])
    components[0, 0], components[0, 100] = -1e6, 1e6
    colors = to_colors(components.view(3, 1, 101))
    ramp = (np.arange(101) - 2) / 96
    assert colors.shape == (1, 101, 3)
    np.testing.assert_allclose(colors[0, :, 0], ramp.clip(0, 1), atol=1e-6)
    assert not colors[0, :, 1:].any()


@pytest.fixture
def parts():
    """One detection of three dimensions, in an image whose last cells are cut."""
    pixels = torch.tensor([[0.0, 1.0, 2.0]] * 2)[None].repeat(3, 1, 1)
    instances = Instances((6, 10))
    instances.pred_boxes = Boxes([[1.0, 1.0, 5.0, 5.0]])
    instances.scores = torch.tensor([0.75])
    instances.pred_masks = torch.zeros(1, 6, 10, dtype=torch.bool)
    instances.pred_masks[0, 2, 3] = True
    q, m = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0.5, 1.0, 0.1]])
    return MaskParts(pixels, q, m, (8.0, 12.0), 0.53, instances)


def test_detection_figure_shows_probabilities_and_their_product(parts):
    image = np.full((6, 10, 3), 100, np.uint8)
    axes = detection_figure(image, parts, 0, "star").axes
    shown = {a.get_title(): np.asarray(a.images[0].get_array()) for a in axes if a.get_title()}
    x = np.array([0.0, 1.0, 2.0])
    by_position = np.exp(-0.5 * (x - 1) ** 2 - (x - 2) ** 2)
    by_others = np.exp(-0.1 * x**2)
    for row in range(2):
        np.testing.assert_allclose(shown["by position"][row], by_position, rtol=1e-6)
        np.testing.assert_allclose(shown["by the other dimensions"][row], by_others, rtol=1e-6)
        np.testing.assert_allclose(shown["product"][row], by_position * by_others, rtol=1e-6)
    changed = (shown["above 0.53 near the box"] != 100 / 255).any(axis=2)
    assert changed[2, 3] and changed.sum() == 1
    assert "star, score 0.75" in shown
    # The map goes on beyond the image, where the axes end.
    product = next(axis for axis in axes if axis.get_title() == "product")
    assert tuple(product.images[0].get_extent()) == (0, 12, 8, 0)
    assert product.get_xlim() == (0, 10) and product.get_ylim() == (6, 0)
    assert torch.equal(probabilities(parts, 0, slice(0, 0)), torch.ones(2, 3))


def test_sheet_shows_components_with_and_without_position(parts):
    parts = parts._replace(pixels=torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1)))
    axes = embedding_sheet(np.full((6, 10, 3), 100, np.uint8), parts).axes
    shown = {axis.get_title(): np.asarray(axis.images[0].get_array()) for axis in axes}
    for title, values in (
        ("all 5 dimensions", parts.pixels),
        ("the 3 dimensions without position", parts.pixels[2:]),
    ):
        np.testing.assert_array_equal(shown[title], to_colors(principal_components(values)))


def test_recorded_parts_make_the_masks_of_the_model():
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    cfg = load_config(str(CONFIG), ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64"])
    for classes in (None, [0, 2]):
        predictor = Predictor(cfg, confidence_threshold=0, classes=classes)
        predictor.model = tiny_embedmask(MODEL__EMBEDMASK__INIT_MARGIN=1.0).eval()
        parts = record_mask_parts(predictor, image)
        expected = predictor(image)
        assert torch.equal(parts.instances.pred_masks, expected.pred_masks)
        assert len(expected) > 10 and expected.pred_masks.any()
        masks = paste_masks(
            parts.pixels, parts.embeddings, parts.margins, expected.pred_boxes.tensor,
            (64, 96), (64, 96), parts.threshold,
        )  # fmt: skip
        assert torch.equal(masks, expected.pred_masks)
        assert parts.map_size == (64, 96)
    # 10 x 20 is resized to 64 x 128, 13 x 20 to 64 x 98: 98 pixels are 24.5 cells.
    assert record_mask_parts(predictor, image[:10, :20]).map_size == (10, 20)
    cut = record_mask_parts(predictor, image[:13, :20])
    assert cut.pixels.shape[1:] == (16, 25) and cut.map_size == (13, 20 * 100 / 98)


@pytest.mark.slow
def test_program_draws_embeddings_and_detections(tmp_path):
    torch.save({"model": tiny_embedmask().state_dict()}, tmp_path / "model.pth")
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "image.jpg"), image)

    def draw(config, *opts):
        return run_here(
            "tools/visualize_embeddings.py", "--config-file", config, "--input",
            tmp_path / "image.jpg", "--output", tmp_path / "out", "--confidence-threshold", "0",
            "--top-k", "2", "--opts", "MODEL.WEIGHTS", tmp_path / "model.pth", *opts,
        )  # fmt: skip

    done = draw(
        CONFIG, "MODEL.EMBEDMASK.CLASS_SCORE_THRESH_TEST", "0.0", "INPUT.MIN_SIZE_TEST", "64"
    )
    assert done.returncode == 0, done.stderr
    assert "the embeddings and 2 of 100 detections" in done.stdout
    names = sorted(os.listdir(tmp_path / "out"))
    assert names == ["image_detection_0.png", "image_detection_1.png", "image_embeddings.png"]
    for name, columns in zip(names, (1300, 1300, 780)):
        assert cv2.imread(str(tmp_path / "out" / name)).shape[1] == columns
    assert_refused(draw("yolact_shapes"), "a YOLACT has no embeddings")
