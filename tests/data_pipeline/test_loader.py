"""Loaders: the example at each position of the stream, and images that cannot be read."""

import itertools
import json
import logging
import os
import random

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler
from torch.utils.data import Dataset

from yolact_d2.data import COCODataset, build_test_loader, build_train_loader, use_coco_datasets
from yolact_d2.data.images import UnreadableImage
from yolact_d2.data.loader import NumberedSampler, RepeatableDataset
from yolact_d2.data.shapes import generate_shapes

NUM_IMAGES = 7


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    generate_shapes(str(root), num_train=NUM_IMAGES, num_val=3)
    return root


def coco(folder, split):
    return COCODataset(str(folder / f"annotations/instances_{split}.json"), str(folder / split))


@pytest.fixture
def cfg(shapes_cfg, shapes):
    use_coco_datasets(shapes_cfg, coco(shapes, "train"), coco(shapes, "val"))
    shapes_cfg.merge_from_list(
        ["INPUT.IMAGE_SIZE", 64, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0]
    )
    return shapes_cfg


def batches(cfg, num, start=0):
    loader = build_train_loader(cfg)
    loader.start_at(start)
    return list(itertools.islice(loader, num))


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(itertools.chain(*a), itertools.chain(*b)):
        assert x.keys() == y.keys()
        assert x["file_name"] == y["file_name"]
        assert torch.equal(x["image"], y["image"])
        assert torch.equal(x["instances"].gt_boxes.tensor, y["instances"].gt_boxes.tensor)
        assert torch.equal(x["instances"].gt_masks.tensor, y["instances"].gt_masks.tensor)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_that_starts_later_gives_the_rest(cfg, num_workers):
    whole = batches(cfg, 9)
    cfg.DATALOADER.NUM_WORKERS = num_workers
    np.random.rand(5), torch.rand(5), random.random()  # which must not matter
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True  # neither must this
    assert_same(batches(cfg, 4, start=5), whole[5:])


def test_image_that_comes_again_is_augmented_differently(cfg):
    seen = {}
    for x in itertools.chain(*batches(cfg, 2 * NUM_IMAGES)):
        seen.setdefault(x["file_name"], []).append(x["image"])
    for images in seen.values():
        assert len(images) == 4
        for a, b in itertools.combinations(images, 2):
            assert not torch.equal(a, b)


def test_all_generators_of_another_mapper_are_seeded(cfg, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", pytest.fail)  # the model may use it

    def mapper(record):
        draws = np.random.rand(), random.random(), torch.rand(()).item()
        return {"name": record["file_name"], "draws": draws}

    first, again = (next(iter(build_train_loader(cfg, mapper=mapper))) for _ in range(2))
    assert first == again and first[0]["name"].endswith(".png")
    assert all(a != b for a, b in zip(first[0]["draws"], first[1]["draws"]))


def changed_json(folder, tmp_path, change):
    """The training data with changed annotations."""
    data = coco(folder, "train")
    content = json.loads(open(data.json_file).read())
    content["annotations"] = [{**a, **change(a)} for a in content["annotations"]]
    (tmp_path / "changed.json").write_text(json.dumps(content))
    return COCODataset(str(tmp_path / "changed.json"), data.image_root)


def test_data_without_objects_to_train_on_is_refused(cfg, shapes, tmp_path):
    # The last ones are relative to the image, which has 160 x 120 pixels or so.
    polygon = [[0.1, 0.1, 0.6, 0.1, 0.6, 0.6, 0.1, 0.6]]
    for change, message in (
        (lambda a: {"bbox": [*a["bbox"][:2], 0, 5]}, "has no objects to train on"),
        (lambda a: {"iscrowd": 1}, "all .* annotations are crowd regions"),
        (
            lambda a: {"bbox": [0.1, 0.1, 0.5, 0.5], "segmentation": polygon},
            "every object is at most .*4 pixels.*Are the coordinates in pixels",
        ),
    ):
        use_coco_datasets(cfg, changed_json(shapes, tmp_path, change), None)
        with pytest.raises(ValueError, match=message):
            build_train_loader(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.EMBEDMASK.NUM_CLASSES = "EmbedMask", 4
    with pytest.raises(ValueError, match="at most 1 pixel wide or high. Are the coordinates"):
        build_train_loader(cfg)


def test_images_without_usable_annotations_are_left_out(cfg, shapes, tmp_path):
    def change(annotation):
        return {"bbox": [5, 5, 0, 0]} if annotation["image_id"] == 3 else {}

    use_coco_datasets(cfg, changed_json(shapes, tmp_path, change), None)
    assert all(x["image_id"] != 3 for x in itertools.chain(*batches(cfg, 7)))
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    empty = [x for x in itertools.chain(*batches(cfg, 7)) if x["image_id"] == 3]
    assert empty and all(len(x["instances"]) == 0 for x in empty)


def test_seed(cfg):
    first = batches(cfg, 1)[0][0]["image"]
    cfg.SEED = 2
    assert not torch.equal(batches(cfg, 1)[0][0]["image"], first)
    cfg.SEED = -1  # each run differs
    assert not torch.equal(batches(cfg, 1)[0][0]["image"], batches(cfg, 1)[0][0]["image"])


def test_random_state_of_the_program_is_restored(cfg):
    loader = build_train_loader(cfg)
    np.random.seed(3), random.seed(3), torch.manual_seed(3)
    expected = np.random.rand(), random.random(), torch.rand(())
    np.random.seed(3), random.seed(3), torch.manual_seed(3)
    loader._loader.dataset.dataset[0, 0]
    assert (np.random.rand(), random.random(), torch.rand(())) == expected


def test_positions_are_those_of_all_processes_together(monkeypatch):
    monkeypatch.setattr("yolact_d2.data.loader.comm.get_world_size", lambda: 3)
    for rank, first_batch in itertools.product([0, 1, 2], [0, 4]):
        monkeypatch.setattr("yolact_d2.data.loader.comm.get_rank", lambda rank=rank: rank)
        sampler = NumberedSampler(TrainingSampler(99, shuffle=False, seed=0), batch_size=2)
        sampler.first_batch = first_batch
        first = first_batch * 2 * 3 + rank
        expected = [(position, position) for position in (first, first + 3, first + 6)]
        assert list(itertools.islice(sampler, 3)) == expected


class Damaged(Dataset):
    """Examples of which some cannot be read."""

    def __init__(self, size, damaged):
        self.size, self.damaged = size, damaged

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.damaged:
            raise UnreadableImage(f"{index}.jpg is truncated")
        return {"index": index}


def test_unreadable_image_is_always_replaced_by_the_same():
    dataset = RepeatableDataset(Damaged(6, {1, 2, 3}), seed=0)
    for position in range(20):
        example = dataset[position, 1]
        assert example["index"] in (0, 4, 5)
        assert example["unreadable"][0] == "1.jpg is truncated"
        assert dataset[position, 1] == example
    assert len({dataset[position, 1]["index"] for position in range(20)}) == 3
    assert dataset[0, 4] == {"index": 4, "unreadable": []}


def test_unreadable_images_only():
    with pytest.raises(UnreadableImage, match="10 images in a row.*2.jpg is truncated"):
        RepeatableDataset(Damaged(3, {0, 1, 2}), seed=0)[0, 2]


@pytest.fixture
def damaged(tmp_path):
    """The same shapes, with one truncated image in each split."""
    generate_shapes(str(tmp_path), num_train=NUM_IMAGES, num_val=3)
    for split in ("train", "val"):
        path = tmp_path / split / "000001.png"
        path.write_bytes(path.read_bytes()[:-200])
    return tmp_path


def test_unreadable_images_are_left_out_of_training(cfg, damaged, caplog):
    use_coco_datasets(cfg, coco(damaged, "train"), None)
    with caplog.at_level(logging.WARNING):
        got = batches(cfg, 2 * NUM_IMAGES)
    names = [os.path.basename(x["file_name"]) for x in itertools.chain(*got)]
    assert len(names) == 4 * NUM_IMAGES and "000001.png" not in names
    (record,) = [r for r in caplog.records if "left out of training" in r.getMessage()]
    assert str(damaged / "train" / "000001.png") in record.getMessage()
    assert "(1 so far)" in record.getMessage()
    assert all("unreadable" not in x for x in itertools.chain(*got))


def test_unreadable_images_are_left_out_of_evaluation(cfg, damaged, caplog):
    use_coco_datasets(cfg, None, coco(damaged, "val"))
    cfg.DATALOADER.NUM_WORKERS = 1
    loader = build_test_loader(cfg, "custom_val")
    assert len(loader) == 3
    with caplog.at_level(logging.WARNING):
        names = [os.path.basename(x["file_name"]) for batch in loader for x in batch]
    assert names == ["000000.png", "000002.png"]
    (record,) = [r for r in caplog.records if "could not be read" in r.getMessage()]
    assert record.getMessage().startswith("1 images could not be read")
    assert str(damaged / "val" / "000001.png") in record.getMessage()


def test_evaluation_ends_if_no_image_can_be_read(cfg, damaged):
    for path in (damaged / "val").iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    use_coco_datasets(cfg, None, coco(damaged, "val"))
    with pytest.raises(UnreadableImage, match="none of 3 images .*000000.png .*000002.png"):
        list(build_test_loader(cfg, "custom_val"))
