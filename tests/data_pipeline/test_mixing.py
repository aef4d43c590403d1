"""Copy-paste and mosaics against loops over pixels and objects; the stream of mixed examples."""

import copy
import itertools
import logging
import os

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from plain import bilinear

from yolact_d2.data import (
    COCODataset,
    UnreadableImage,
    YOLACTDatasetMapper,
    build_train_loader,
    use_coco_datasets,
)
from yolact_d2.data.loader import RepeatableDataset, training_dicts
from yolact_d2.data.mixing import MixedDataset, copy_paste, mosaic
from yolact_d2.data.shapes import generate_shapes

SIDE = 12
NUM_IMAGES = 7


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    generate_shapes(str(root), num_train=NUM_IMAGES, num_val=1)
    return root


def use(cfg, folder):
    json_file = folder / "annotations/instances_train.json"
    use_coco_datasets(cfg, COCODataset(str(json_file), str(folder / "train")), None)


@pytest.fixture
def cfg(shapes_cfg, shapes):
    use(shapes_cfg, shapes)
    shapes_cfg.merge_from_list(
        ["INPUT.IMAGE_SIZE", 64, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0]
    )
    return shapes_cfg


def examples_of(cfg, num, start=0):
    """The examples of `num` batches."""
    loader = build_train_loader(cfg)
    loader.start_at(start)
    return list(itertools.chain(*itertools.islice(loader, num)))


def random_example(rng, num_objects=4, side=SIDE):
    """Noise under overlapping rectangles with holes; boxes are a little larger than the masks."""
    masks = np.zeros((num_objects, side, side), bool)
    boxes = np.zeros((num_objects, 4))
    for mask, box in zip(masks, boxes):
        (x1, y1), (w, h) = rng.integers(0, side - 7, size=2), rng.integers(1, 8, size=2)
        mask[y1 : y1 + h, x1 : x1 + w] = rng.random((h, w)) < 0.95
        box[:] = x1 - 0.25, y1 - 0.25, x1 + w + 0.25, y1 + h + 0.25
    instances = Instances((side, side), gt_boxes=Boxes(boxes), gt_masks=BitMasks(masks))
    instances.gt_classes = torch.from_numpy(rng.integers(0, 9, size=num_objects))
    instances.gt_iscrowd = torch.from_numpy(rng.random(num_objects) < 0.3)
    image = torch.from_numpy(rng.uniform(-50, 300, size=(3, side, side)).astype(np.float32))
    return {"image": image, "instances": instances, "file_name": f"{rng.random()}.jpg"}


def assert_unchanged(examples, before):
    for example, old in zip(examples, before):
        assert torch.equal(example["image"], old["image"])
        for key, value in example["instances"].get_fields().items():
            expected = old["instances"].get(key)
            assert torch.equal(*(getattr(x, "tensor", x) for x in (value, expected)))


def tight_box(mask):
    rows, columns = mask.nonzero().unbind(dim=1)
    if len(rows) == 0:
        return [0, 0, 0, 0]
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_copy_paste_equals_a_loop_over_pixels():
    num_changed = num_gone = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        target, source = random_example(rng, seed % 7), random_example(rng, (seed + 3) % 7)
        below, above = target["instances"], source["instances"]
        chosen = torch.from_numpy(rng.random(len(above)) < 0.6)
        before = copy.deepcopy((target, source))
        result = copy_paste(target, source, chosen)
        assert_unchanged((target, source), before)

        pasted = [i for i in range(len(above)) if chosen[i] and not above.gt_iscrowd[i]]
        image, masks = target["image"].clone(), below.gt_masks.tensor.clone()
        for y, x in itertools.product(range(SIDE), range(SIDE)):
            if any(above.gt_masks.tensor[i, y, x] for i in pasted):
                image[:, y, x] = source["image"][:, y, x]
                masks[:, y, x] = False
        boxes = below.gt_boxes.tensor.tolist()
        for i, mask in enumerate(masks):
            if not torch.equal(mask, below.gt_masks.tensor[i]):
                boxes[i] = tight_box(mask)
                num_changed += 1
                num_gone += not mask.any()
        boxes += [above.gt_boxes.tensor[i].tolist() for i in pasted]

        got = result["instances"]
        assert result["file_name"] == target["file_name"] and torch.equal(result["image"], image)
        assert torch.equal(got.gt_masks.tensor, torch.cat([masks, above.gt_masks.tensor[pasted]]))
        assert torch.equal(got.gt_boxes.tensor, torch.tensor(boxes).reshape(-1, 4))
        for key in ("gt_classes", "gt_iscrowd"):
            assert torch.equal(got.get(key), torch.cat([below.get(key), above.get(key)[pasted]]))
    assert num_changed > 10 and num_gone > 0


def test_mosaic_with_its_center_in_the_middle_averages_2_x_2_pixels():
    rng, half = np.random.default_rng(0), SIDE // 2
    examples = [random_example(rng, n) for n in (3, 0, 1, 4)]
    before = copy.deepcopy(examples)
    result = mosaic(examples, (half, half))
    assert_unchanged(examples, before)
    instances, first = result["instances"], 0
    for i, x in enumerate(examples):
        row, column = (i // 2) * half, (i % 2) * half
        own = instances[first : first + len(x["instances"])]
        masks = torch.zeros_like(own.gt_masks.tensor)
        for y, c in itertools.product(range(half), range(half)):
            cell = ..., slice(2 * y, 2 * y + 2), slice(2 * c, 2 * c + 2)
            torch.testing.assert_close(
                result["image"][:, row + y, column + c], x["image"][cell].mean(dim=(1, 2))
            )
            counts = x["instances"].gt_masks.tensor[cell].sum(dim=(1, 2))
            masks[:, row + y, column + c] = counts > 2
        assert torch.equal(own.gt_masks.tensor, masks)
        boxes = x["instances"].gt_boxes.tensor / 2 + torch.tensor([column, row] * 2)
        torch.testing.assert_close(own.gt_boxes.tensor, boxes)
        assert torch.equal(own.gt_classes, x["instances"].gt_classes)
        assert torch.equal(own.gt_iscrowd, x["instances"].gt_iscrowd)
        first += len(own)
    assert first == len(instances) == 8
    assert result["file_name"] == examples[0]["file_name"]


def test_mosaic_resizes_each_image_to_its_quadrant():
    for seed, (x, y) in enumerate([(3, 9), (5, 4), (8, 7), (1, 11)]):
        examples = [random_example(np.random.default_rng(seed), 2) for _ in range(4)]
        result = mosaic(examples, (x, y))
        image, masks = result["image"].numpy(), result["instances"].gt_masks.tensor.numpy()
        for i, (example, (x0, y0, x1, y1)) in enumerate(
            zip(examples, [(0, 0, x, y), (x, 0, SIDE, y), (0, y, x, SIDE), (x, y, SIDE, SIDE)])
        ):
            size, part = (y1 - y0, x1 - x0), (slice(y0, y1), slice(x0, x1))
            for channel, got in zip(example["image"].numpy(), image):
                np.testing.assert_allclose(got[part], bilinear(channel, *size), atol=0.01)
            own = example["instances"]
            for mask, got in zip(own.gt_masks.tensor.numpy(), masks[2 * i : 2 * i + 2]):
                soft = bilinear(mask.astype(float), *size)
                is_clear = np.abs(soft - 0.5) > 1e-4  # rounding decides about the others
                np.testing.assert_array_equal(got[part][is_clear], (soft > 0.5)[is_clear])
                assert got.sum() == got[part].sum()
            factors = np.tile([size[1] / SIDE, size[0] / SIDE], 2)
            np.testing.assert_allclose(
                result["instances"].gt_boxes.tensor[2 * i : 2 * i + 2],
                own.gt_boxes.tensor.numpy() * factors + (x0, y0, x0, y0),
                atol=1e-4,
            )


class Recorder(torch.utils.data.Dataset):
    """Mapped images; remembers what it returned, with a number for each object."""

    def __init__(self, cfg):
        self.dicts, self.mapper, self.returned = training_dicts(cfg), YOLACTDatasetMapper(cfg), []

    def __len__(self):
        return len(self.dicts)

    def __getitem__(self, index):
        example = self.mapper(self.dicts[index])
        first = 1000 * len(self.returned)
        instances = example["instances"]
        instances.number = torch.arange(first, first + len(instances))
        self.returned.append((index, copy.deepcopy(example)))
        return example


@pytest.fixture
def recorder(cfg):
    cfg.INPUT.MIN_BOX_SIZE = 12
    return Recorder(cfg)


def test_pasted_pixels_are_the_sources_and_all_others_stay(recorder):
    plain = RepeatableDataset(recorder, seed=1)
    mixed = RepeatableDataset(MixedDataset(recorder, copy_paste_prob=1.0, min_box_size=12), seed=1)
    num_pasted = num_offered = num_changed = num_dropped = 0
    for seed in range(20):
        alone = plain[seed, seed % NUM_IMAGES]
        recorder.returned.clear()
        got = mixed[seed, seed % NUM_IMAGES]
        (index, target), (other, source) = recorder.returned
        assert index == seed % NUM_IMAGES != other
        # The augmentation is that of the same position without mixing.
        assert torch.equal(target["image"], alone["image"])

        objects = got["instances"]
        is_pasted = objects.number >= 1000
        pasted, below = objects[is_pasted], objects[~is_pasted]
        covered = pasted.gt_masks.tensor.any(dim=0)
        for mask in pasted.gt_masks.tensor:
            assert torch.equal(got["image"][:, mask], source["image"][:, mask])
        assert torch.equal(got["image"][:, ~covered], target["image"][:, ~covered])
        numbers = pasted.number - 1000
        assert torch.equal(pasted.gt_masks.tensor, source["instances"].gt_masks.tensor[numbers])
        assert torch.equal(pasted.gt_boxes.tensor, source["instances"].gt_boxes.tensor[numbers])
        num_pasted, num_offered = num_pasted + len(pasted), num_offered + len(source["instances"])

        kept = []
        for i, (mask, box) in enumerate(
            zip(target["instances"].gt_masks.tensor, target["instances"].gt_boxes.tensor)
        ):
            left = mask & ~covered
            if not torch.equal(left, mask):
                box = torch.tensor(tight_box(left), dtype=torch.float32)
                num_changed += 1
            if left.any() and (box[2:] - box[:2] > 12).all():
                assert torch.equal(below.gt_masks.tensor[len(kept)], left)
                assert torch.equal(below.gt_boxes.tensor[len(kept)], box)
                kept.append(i)
        assert below.number.tolist() == kept
        num_dropped += len(target["instances"]) - len(kept)
    assert 0.3 < num_pasted / num_offered < 0.7
    assert num_changed > 10 and num_dropped > 0


def test_mosaic_of_the_dataset_has_the_image_at_the_upper_left(recorder, monkeypatch):
    centers, side = [], 64

    def recording_mosaic(examples, center):
        centers.append(center)
        return mosaic(examples, center)

    monkeypatch.setattr("yolact_d2.data.mixing.mosaic", recording_mosaic)
    plain = RepeatableDataset(recorder, seed=1)
    mixed = RepeatableDataset(MixedDataset(recorder, mosaic_prob=1.0, min_box_size=12), seed=1)
    num_dropped = 0
    for position in range(20):
        alone = plain[position, 2]
        recorder.returned.clear()
        got = mixed[position, 2]
        assert recorder.returned[0][0] == 2 not in [index for index, _ in recorder.returned[1:]]
        assert torch.equal(recorder.returned[0][1]["image"], alone["image"])
        expected = mosaic([x for _, x in recorder.returned], centers[-1])
        assert torch.equal(got["image"], expected["image"])
        objects = expected["instances"]
        sizes = objects.gt_boxes.tensor[:, 2:] - objects.gt_boxes.tensor[:, :2]
        kept = (sizes > 12).all(dim=1) & objects.gt_masks.tensor.any(dim=2).any(dim=1)
        assert torch.equal(got["instances"].number, objects.number[kept])
        assert torch.equal(got["instances"].gt_masks.tensor, objects.gt_masks.tensor[kept])
        num_dropped += (~kept).sum()
    assert num_dropped > 0
    values = np.array(centers)
    assert side // 4 <= values.min() < 20 and 44 < values.max() <= 3 * side // 4


def test_probabilities_and_the_choice_of_others():
    class Tiny(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            used.append(index)
            return random_example(np.random.default_rng(index), 1)

    draws, counts, others = 400, {1: 0, 2: 0, 4: 0, 5: 0}, set()
    dataset = RepeatableDataset(MixedDataset(Tiny(), copy_paste_prob=0.25, mosaic_prob=0.5), seed=0)
    for position in range(draws):
        used = []
        dataset[position, position % 3]
        counts[len(used)] += 1
        others.update((used[0], other) for other in used[1:])
    for num, probability in ((1, 3 / 8), (2, 1 / 8), (4, 3 / 8), (5, 1 / 8)):
        deviation = (draws * probability * (1 - probability)) ** 0.5
        assert abs(counts[num] - draws * probability) < 4 * deviation
    assert others == set(itertools.permutations(range(3), 2))


class Examples(torch.utils.data.Dataset):
    """Random examples, of which some cannot be read."""

    def __init__(self, size, unreadable=()):
        self.size, self.unreadable = size, unreadable

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.unreadable:
            raise UnreadableImage(f"{index}.jpg is truncated")
        return {**random_example(np.random.default_rng(index)), "index": index}


def test_masks_without_a_pixel_left_are_dropped():
    example = Examples(1)[0]
    example["instances"] = example["instances"][:2]
    masks = torch.stack([torch.eye(SIDE, dtype=torch.bool), torch.ones(SIDE, SIDE) > 0])
    example["instances"].gt_masks = BitMasks(masks)  # half of a 2 x 2 cell is no pixel of a mosaic
    mixed = RepeatableDataset(MixedDataset([example], mosaic_prob=1.0), seed=0)
    found = [mixed[position, 0]["instances"] for position in range(20)]
    assert min(map(len, found)) < 8 and all(x.gt_masks.nonempty().all() for x in found)


def test_a_single_image_is_mixed_with_itself():
    example = MixedDataset(Examples(1), copy_paste_prob=1.0, mosaic_prob=1.0)[0]
    assert example["image"].shape == (3, SIDE, SIDE) and example["unreadable"] == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_mixed_stream_depends_on_seed_and_position_only(cfg, num_workers):
    plain = examples_of(cfg, 8)
    cfg.merge_from_list(["INPUT.AUG.COPY_PASTE_PROB", 0.5, "INPUT.AUG.MOSAIC_PROB", 0.5])
    whole = examples_of(cfg, 8)
    same = [torch.equal(a["image"], b["image"]) for a, b in zip(plain, whole)]
    assert 0 < sum(same) < 12  # those that are not mixed, about a quarter of 16
    cfg.DATALOADER.NUM_WORKERS = num_workers
    rest = examples_of(cfg, 5, start=3)
    assert len(rest) == 10
    for a, b in zip(rest, whole[6:]):
        assert a.keys() == b.keys() and a["file_name"] == b["file_name"]
        assert_unchanged([a], [b])


def test_unreadable_images_are_not_mixed_in_but_named(cfg, tmp_path, caplog):
    generate_shapes(str(tmp_path), num_train=4, num_val=1)
    path = tmp_path / "train" / "000001.png"
    path.write_bytes(path.read_bytes()[:-200])
    use(cfg, tmp_path)
    cfg.INPUT.AUG.MOSAIC_PROB = cfg.INPUT.AUG.COPY_PASTE_PROB = 1.0
    with caplog.at_level(logging.WARNING):
        got = examples_of(cfg, 4)
    assert len(got) == 8 and all("unreadable" not in x for x in got)
    assert all(os.path.basename(x["file_name"]) != path.name for x in got)
    (record,) = [r for r in caplog.records if "left out of training" in r.getMessage()]
    assert str(path) in record.getMessage()


def test_another_image_that_cannot_be_read_is_replaced_alone():
    dataset = RepeatableDataset(MixedDataset(Examples(5, {1, 3}), mosaic_prob=1.0), seed=0)
    named = []
    for position in range(10):
        example = dataset[position, 0]
        assert example["index"] == 0
        named += example["unreadable"]
        example = dataset[position, 1]
        assert example["index"] in (0, 2, 4) and example["unreadable"][0] == "1.jpg is truncated"
    assert {*named} == {"1.jpg is truncated", "3.jpg is truncated"}


def test_mixing_is_yolacts_and_off_by_default(cfg):
    def is_mixed():
        return isinstance(build_train_loader(cfg)._loader.dataset.dataset._dataset, MixedDataset)

    assert not is_mixed()
    cfg.INPUT.AUG.MOSAIC_PROB = 0.5
    assert is_mixed()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.EMBEDMASK.NUM_CLASSES = "EmbedMask", 4
    assert not is_mixed()


def test_probabilities_outside_0_to_1_are_named(cfg):
    for key in ("COPY_PASTE_PROB", "MOSAIC_PROB"):
        for value in (-0.1, 1.5, float("nan")):
            changed = cfg.clone()
            changed.INPUT.AUG[key] = value
            with pytest.raises(ValueError, match=f"INPUT.AUG.{key} is {value}"):
                build_train_loader(changed)
