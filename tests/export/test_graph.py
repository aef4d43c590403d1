"""The graphs that are exported compute what the models do."""

from unittest import mock

import pytest
import torch
from small_models import random_image, tiny_embedmask, tiny_yolact
from torch.nn import functional as F

from tools.export_model import match
from yolact_d2.export.graph import build_graph
from yolact_d2.modeling.yolact.masks import scale_boxes, soft_masks
from yolact_d2.modeling.yolact.nms import fast_nms
from yolact_runtime import Detections

SIZES = [(50, 70), (64, 64), (90, 40)]


def detections(model, images):
    with torch.no_grad():
        return [x["instances"] for x in model.eval()([{"image": image} for image in images])]


def run(graph, *inputs):
    with torch.no_grad():
        return dict(zip(graph.output_names, graph(*inputs)))


def as_uint8(image):
    return image.round().to(torch.uint8).permute(1, 2, 0)[None]


def assert_detections(outputs, expected, i=0):
    """Those of image `i`; near-equal scores may change places. Returns the pairs of indices."""
    num = len(expected)
    found = [outputs[name][i, :num].numpy() for name in ("boxes", "scores", "classes")]
    assert not outputs["scores"][i, num:].any()
    pairs = match(expected, Detections(*found, masks=None), int8=False)
    assert len(pairs) == num
    return pairs


@pytest.mark.parametrize("config", ["yolact_shapes", "yolact_plus_shapes"])
def test_uint8_graph_equals_the_model_at_every_size(config):
    model = tiny_yolact(config)
    masks, full = (build_graph(model, outputs, "uint8") for outputs in ("masks", "full"))
    for size in SIZES:
        image = random_image(*size).round()
        (expected,) = detections(model, [image])
        for graph in (masks, full):
            outputs = run(graph, as_uint8(image))
            of_model, of_graph = torch.tensor(assert_detections(outputs, expected)).t()
            if config == "yolact_plus_shapes":
                mask_scores = outputs["mask_scores"][0, of_graph]
                expected_scores = expected.mask_scores[of_model]
                torch.testing.assert_close(mask_scores, expected_scores, rtol=0, atol=1e-4)
            large = outputs["masks"]
            if graph is masks:
                assert large.shape == (1, 100, 16, 16)
                large = F.interpolate(large, size=size, mode="bilinear") > graph.mask_threshold
            different = large[0, of_graph] != expected.pred_masks[of_model]
            assert different.float().mean() < 1e-4


def test_grey_images():
    for means in ([100.0], [100.0, 90.0, 80.0]):
        model = tiny_yolact(
            INPUT__FORMAT="L", MODEL__PIXEL_MEAN=means, MODEL__PIXEL_STD=[50.0] * len(means)
        )
        image = random_image(50, 70)[:1].round()
        (expected,) = detections(model, [image])
        assert_detections(run(build_graph(model, "full", "uint8"), as_uint8(image)), expected)


def test_a_batch_equals_its_images_and_empty_ones_have_zeros():
    model = tiny_yolact()
    images = torch.stack([random_image(64, 64).round(), torch.zeros(3, 64, 64)])
    # The largest score of the second image: it has no candidates.
    empty = detections(model, images)[1].scores.max().item() + 1e-4
    model.test_anchor_score_thresh = empty
    expected = detections(model, list(images))
    assert len(expected[0]) > 10 and len(expected[1]) == 0
    graph = build_graph(model, "masks", "float")
    outputs = run(graph, images)
    for i in range(2):
        assert_detections(outputs, expected[i], i)
        assert all(x[i].isfinite().all() for x in outputs.values())


def test_score_threshold_and_number_of_detections():
    model = tiny_yolact(TEST__DETECTIONS_PER_IMAGE=20)
    image = random_image(64, 64).round()
    scores = detections(model, [image])[0].scores
    gap = int(scores[5:].diff().argmin()) + 5
    model.test_score_thresh = scores[gap : gap + 2].mean().item()
    (expected,) = detections(model, [image])
    assert len(expected) == gap + 1 < 20
    outputs = run(build_graph(model, "masks", "uint8"), as_uint8(image))
    assert outputs["scores"].shape == (1, 20)
    assert_detections(outputs, expected)


def test_coefficients_and_raw_outputs_make_the_same_detections():
    model = tiny_yolact()
    image = random_image(64, 64).round()
    expected = run(build_graph(model, "masks", "uint8"), as_uint8(image))
    outputs = run(build_graph(model, "coefficients", "uint8"), as_uint8(image))
    prototypes, boxes = outputs["prototypes"][0], outputs["boxes"][0] / 64
    masks = soft_masks(prototypes, outputs["coefficients"][0], scale_boxes(boxes, (16, 16)))
    found = outputs["scores"][0] > 0
    assert found.sum() > 20
    torch.testing.assert_close(masks[found], expected["masks"][0, found], rtol=0, atol=1e-5)

    raw = run(build_graph(model, "raw", "uint8"), as_uint8(image))
    found = fast_nms(
        raw["boxes"][0], raw["scores"][0],
        score_thresh=0.0, iou_thresh=model.test_nms_thresh, topk=200, max_detections=100,
    )  # fmt: skip
    torch.testing.assert_close(found.scores[:20], expected["scores"][0, :20])
    torch.testing.assert_close(raw["boxes"][0, found.indices[:20]], expected["boxes"][0, :20])


def with_padding(model, image, size):
    padded = model.pixel_mean.expand(3, *size).clone()
    padded[:, : image.shape[1], : image.shape[2]] = image
    return padded[None], torch.tensor(image.shape[1:])


def test_embedmask_graph_equals_the_model():
    """The model pads the second and third image to the same sizes."""
    for size, image_size in (((64, 96), (64, 96)), ((64, 96), (64, 70)), ((128, 64), (99, 37))):
        model = tiny_embedmask(MODEL__EMBEDMASK__INIT_MARGIN=1.0)
        image = random_image(*image_size)
        (expected,) = detections(model, [image])
        assert len(expected) > 20 and expected.pred_masks.any()
        for outputs in ("masks", "full"):
            graph = build_graph(model, outputs, "float", size)
            found = run(graph, *with_padding(model, image, size))
            pairs = assert_detections(found, expected)
            masks = found["masks"]
            if outputs == "masks":
                masks = F.interpolate(masks, size=size, mode="bilinear") > graph.mask_threshold
            masks = masks[0, :, : image_size[0], : image_size[1]]
            for i, j in pairs:  # rounding changes a pixel at the threshold now and then
                assert (masks[j] != expected.pred_masks[i]).float().mean() < 1e-3
    model.test_class_score_thresh = 0.9999
    graph = build_graph(model, "masks", "float", size)
    assert not run(graph, *with_padding(model, image, size))["scores"].any()


def test_embedmasks_padding_has_no_detections():
    """More than the model would pad: a box of a location there would end at the border."""
    model = tiny_embedmask()
    graph = build_graph(model, "masks", "float", (128, 128))
    padded = with_padding(model, random_image(64, 30), (128, 128))
    chosen = {}

    def detect(locations, *inputs):
        *found, location = type(graph).detect(graph, locations, *inputs)
        chosen["points"] = torch.cat(locations)[location]
        return *found, location

    with mock.patch.object(graph, "detect", detect):
        found = run(graph, *padded)
    is_found = found["scores"][0] > 0
    assert is_found.sum() > 20
    assert (chosen["points"][is_found] < torch.tensor([32, 64])).all()
    assert (found["boxes"][0] <= torch.tensor([29, 63, 29, 63])).all()


def test_what_cannot_be_exported_is_named():
    yolact, embedmask = tiny_yolact(), tiny_embedmask()
    other_nms = tiny_yolact(MODEL__YOLACT__NMS="batched_nms")
    assert build_graph(other_nms, "raw", "float").output_names[:2] == ["boxes", "scores"]
    for arguments, message in (
        ((yolact, "mask", "uint8"), "outputs is 'mask', not one of: masks, coeff"),
        ((yolact, "masks", "int8"), "image is 'int8', not one of: uint8, float"),
        ((yolact, "masks", "uint8", (64, 64)), "size is EmbedMask's"),
        ((embedmask, "raw", "float", (64, 64)), 'outputs "masks" or "full"'),
        ((embedmask, "masks", "uint8", (64, 64)), 'image "float"'),
        ((embedmask, "masks", "float"), "size is None"),
        ((embedmask, "masks", "float", (64, 65)), "multiples of 32"),
        ((other_nms, "masks", "float"), "only fast_nms"),
    ):
        with pytest.raises(ValueError, match=message):
            build_graph(*arguments)
    with pytest.raises(TypeError, match="got Linear"):
        build_graph(torch.nn.Linear(1, 1), "masks", "uint8")
