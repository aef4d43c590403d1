"""Training and evaluation in two processes, compared with one process."""

import json

import pytest
import torch
from detectron2.data import build_detection_test_loader
from detectron2.engine import create_ddp_model
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from plain import CONFIGS, assert_equal
from ranks import assert_success, run_children, run_ranks
from small_models import tiny_embedmask

from yolact_d2 import load_config
from yolact_d2.data.shapes import generate_shapes, register_shapes
from yolact_d2.evaluation import MaskScoreCOCOEvaluator

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SIZE = 64
BOXES = [[6, 8, 38, 42], [20, 30, 60, 58]]
OTHER_BOXES = [[4, 4, 60, 60]]

SMALL = (
    "MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.WIDTH_PER_GROUP 8 "
    "MODEL.RESNETS.STEM_OUT_CHANNELS 16 MODEL.RESNETS.RES2_OUT_CHANNELS 32 "
    "MODEL.FPN.OUT_CHANNELS 16 MODEL.YOLACT.HEAD_CONV_DIM 16 MODEL.YOLACT.PROTONET.CONV_DIM 16 "
    f"INPUT.IMAGE_SIZE {SIZE} MODEL.YOLACT.MAX_MASK_POSITIVES 0 SOLVER.IMS_PER_BATCH 4"
).split()


def small_config(name="yolact_shapes", *opts):
    return load_config(str(CONFIGS / f"{name}.yaml"), [*SMALL, *opts])


def small_model(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def example(seed, boxes):
    """Noise, with random classes, and masks that are random within the boxes."""
    generator = torch.Generator().manual_seed(seed)
    gt = Instances((SIZE, SIZE))
    gt.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    gt.gt_classes = torch.randint(4, (len(boxes),), generator=generator)
    masks = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = torch.rand(y2 - y1, x2 - x1, generator=generator) > 0.3
    gt.gt_masks = BitMasks(masks)
    image = torch.randint(256, (3, SIZE, SIZE), generator=generator).float()
    return {"image": image, "instances": gt}


CASES = ["as many positives", "fewer positives", "no objects", "skipped before"]


def halves(case):
    """The batches of the two processes, by how those of the second differ."""
    first, second = [example(0, BOXES), example(1, BOXES)], [example(2, BOXES), example(3, BOXES)]
    if case == "no objects":
        second = [{**x, "instances": x["instances"][:0]} for x in second]
    elif case != "as many positives":
        second = [example(2, OTHER_BOXES), example(3, OTHER_BOXES)]
    return first, second


def total(losses):
    return sum(losses.values())


def step(model, forward, *batches):
    """One step of SGD on the mean of the losses. Returns the gradients and the new state."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for batch in batches:
        (total(forward(batch)) / len(batches)).backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    optimizer.step()
    return gradients, model.state_dict()


def step_of_two(folder, build):
    results = {}
    for case in CASES:
        model = build()
        parallel = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
        if case == "skipped before":
            parallel(halves("fewer positives")[1 - comm.get_rank()])
        results[case] = step(model, parallel, halves(case)[comm.get_rank()])
    torch.save(results, folder / f"{comm.get_rank()}.pth")


def steps_of_one(folder, build):
    in_turn, at_once = {}, {}
    for case in CASES:
        first, second = halves(case)
        model = build()
        in_turn[case] = step(model, model, first, second)
        model = build()
        at_once[case] = step(model, model, first + second)
    torch.save([in_turn, at_once], folder / "one.pth")


def take_steps(folder, build):
    """Results of both ranks, and of one process that sees the halves in turn, or all at once."""
    assert_success(run_ranks(folder, step_of_two, folder, build))
    assert_success(run_children(folder, steps_of_one, (folder, build)))
    ranks = [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]
    return ranks, *torch.load(folder / "one.pth", weights_only=True)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    return take_steps(tmp_path_factory.mktemp("steps"), lambda: small_model(small_config()))


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_take_the_step_of_the_mean_of_their_losses(steps, case):
    (first, second), in_turn, _ = steps
    assert_equal(first[case][1], second[case][1])
    before = small_model(small_config()).state_dict()
    gradients, after = first[case]
    changed = [key for key, gradient in gradients.items() if gradient.any()]
    assert len(changed) > len(gradients) / 2
    assert not any(torch.equal(before[key], after[key]) for key in changed)
    assert_equal(first[case], in_turn[case])


def largest_difference(got, expected):
    """Of gradients, relative to the largest value in the same tensor."""
    return max(
        ((got[key] - expected[key]).abs().max() / expected[key].abs().max().clamp(min=1e-9)).item()
        for key in expected
    )


def test_two_processes_equal_one_with_all_images_if_both_have_as_many_positives(steps):
    (first, _), _, at_once = steps
    case = "as many positives"
    assert largest_difference(first[case][0], at_once[case][0]) < 1e-5  # float32
    # Otherwise not, because each process divides by the number of its own positives.
    case = "fewer positives"
    assert largest_difference(first[case][0], at_once[case][0]) > 0.1


def test_embedmask_in_two_processes_equals_one_with_all_images(tmp_path):
    """However many positives each has, because both divide by the mean number."""
    (first, second), _, at_once = take_steps(tmp_path, tiny_embedmask)
    for case in CASES:
        assert_equal(first[case], second[case])
        assert largest_difference(first[case][0], at_once[case][0]) < 1e-5  # float32
        assert sum(gradient.any() for gradient in first[case][0].values()) > 20


def evaluate(datasets, folder):
    register_shapes(str(datasets), "few")
    cfg = small_config(
        "yolact_plus_shapes", "MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST", 0.0,
        "MODEL.YOLACT.MASK_IOU.CONV_DIMS", [8], "DATALOADER.NUM_WORKERS", 0,
    )  # fmt: skip
    loader = build_detection_test_loader(cfg, "few_val")
    folder.mkdir(exist_ok=True)
    evaluator = MaskScoreCOCOEvaluator("few_val", output_dir=str(folder))
    results = inference_on_dataset(small_model(cfg), loader, evaluator)
    (folder / f"results of {comm.get_rank()}.json").write_text(json.dumps(results))


def test_two_processes_evaluate_as_one(tmp_path):
    generate_shapes(str(tmp_path / "data"), num_train=0, num_val=5)
    two, one = tmp_path / "two", tmp_path / "one"
    assert_success(run_ranks(tmp_path, evaluate, tmp_path / "data", two))
    assert_success(run_children(tmp_path, evaluate, (tmp_path / "data", one)))
    for task in ("bbox", "segm"):
        path = f"{task}/coco_instances_results.json"
        got, expected = (json.loads((folder / path).read_text()) for folder in (two, one))
        assert {result["image_id"] for result in expected} == set(range(1, 6))
        assert len(got) == len(expected) and sorted(got, key=order) == sorted(expected, key=order)
    results = (one / "results of 0.json").read_text()
    assert (two / "results of 0.json").read_text() == results
    assert json.loads(results)["bbox"]["AP"] > 0
    assert (two / "results of 1.json").read_text() == "{}"


def order(result):
    return result["image_id"], -result["score"], result["bbox"]
