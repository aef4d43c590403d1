"""What the figures of masks show, by the arrays and titles of their axes."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from tools.visualize_prototypes import (
    MaskParts,
    detection_figure,
    prototype_sheet,
)
from yolact_d2.inference.panels import save_figure
from yolact_d2.modeling.yolact.masks import soft_masks

IMAGE = np.full((10, 20, 3), 100, np.uint8)


@pytest.fixture
def parts():
    """One detection of four prototypes on a grid of 4 x 4; the third is the strongest."""
    torch.manual_seed(0)
    prototypes = torch.rand(4, 4, 4)
    coefficients = torch.tensor([[0.1, -0.2, 1.0, -0.6]])
    instances = Instances((10, 20))
    instances.pred_boxes = Boxes([[5.0, 2.5, 10.0, 7.5]])
    instances.scores = torch.tensor([0.75])
    instances.pred_classes = torch.tensor([1])
    instances.pred_masks = torch.zeros(1, 10, 20, dtype=torch.bool)
    instances.pred_masks[0, 4, 6] = True
    return MaskParts(prototypes, coefficients, torch.tensor([[1.0, 1.0, 2.0, 3.0]]), instances)


def images_by_title(figure):
    return {
        axis.get_title(): axis.images[0].get_array()
        for axis in figure.axes
        if axis.get_title() and axis.images
    }


def test_sheet_shows_every_prototype():
    for num in (1, 2, 5, 16, 32):
        torch.manual_seed(0)
        prototypes = torch.rand(num, 4, 6)
        figure = prototype_sheet(IMAGE, prototypes)
        shown = images_by_title(figure)
        assert len(shown) == num + 1
        for i in range(num):
            title = next(t for t in shown if t.startswith(f"{i} "))
            assert np.array_equal(shown[title], prototypes[i].numpy())
        # Prototypes cover the whole image, whatever their size is.
        extents = {tuple(axis.images[0].get_extent()) for axis in figure.axes if axis.images}
        assert extents == {(-0.5, 19.5, 9.5, -0.5), (0, 20, 10, 0)}


def test_detection_figure_shows_terms_sums_and_crop(parts):
    figure = detection_figure(IMAGE, parts, 0, "star", num_steps=2)
    shown = images_by_title(figure)
    prototypes, coefficients = parts.prototypes, parts.coefficients[0]
    strongest = coefficients[2] * prototypes[2]
    np.testing.assert_allclose(shown["+1.00 x prototype 2"], strongest)
    np.testing.assert_allclose(shown["-0.60 x prototype 3"], -0.6 * prototypes[3], rtol=1e-6)
    total = (coefficients[:, None, None] * prototypes).sum(dim=0)
    np.testing.assert_allclose(shown["sum of all"], total, rtol=1e-5, atol=1e-6)
    after = {title: values for title, values in shown.items() if title.startswith("after ")}
    assert len(after) == 4  # two steps, all, and the crop
    first = next(values for title, values in after.items() if title.startswith("after 1:"))
    np.testing.assert_allclose(first, strongest.sigmoid())
    np.testing.assert_allclose(after["after all 4"], total.sigmoid(), rtol=1e-5)
    np.testing.assert_allclose(shown["before the crop"], total.sigmoid(), rtol=1e-5)
    cropped = soft_masks(prototypes, parts.coefficients, parts.boxes)[0]
    np.testing.assert_allclose(shown["after the crop"], cropped, rtol=1e-5)
    assert 0 < (cropped == 0).sum() < 16
    drawing = shown["above 0.5, in the image"]
    changed = (drawing != 100 / 255).any(axis=2)
    assert changed[4, 6] and changed.sum() == 1
    assert "star, score 0.75" in shown


def test_bars_show_coefficients_and_their_signs(parts):
    figure = detection_figure(IMAGE, parts, 0, "star", num_steps=2)
    axis = next(axis for axis in figure.axes if axis.containers)
    bars = axis.containers[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([0.1, -0.2, 1.0, -0.6])
    colors = [bar.get_facecolor() for bar in bars]
    assert colors[0] == colors[1] and len(set(colors)) == 3
    assert [text.get_text() for text in axis.texts] == ["", "", "1", "2"]


def test_detection_outside_the_image_is_an_error(parts):
    outside = parts._replace(boxes=torch.tensor([[9.0, 1.0, 12.0, 3.0]]))
    with pytest.raises(ValueError, match="detection 0 is outside"):
        detection_figure(IMAGE, outside, 0, "star")


def test_steps_are_limited_to_the_number_of_prototypes(parts, tmp_path):
    figure = detection_figure(IMAGE, parts, 0, "star", num_steps=6)
    assert sum(" x prototype " in title for title in images_by_title(figure)) == 4
    save_figure(figure, str(tmp_path / "figure"))
    width, height = figure.get_size_inches() * 100
    with Image.open(tmp_path / "figure") as image:
        assert image.format == "PNG" and image.size == (int(width), int(height))
