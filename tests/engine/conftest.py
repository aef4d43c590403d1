import pytest

from yolact_d2 import model_zoo
from yolact_d2.data import COCODataset, use_coco_datasets
from yolact_d2.data.shapes import generate_shapes


@pytest.fixture(scope="session")
def seven_shapes(tmp_path_factory):
    """A dataset of seven images to train on."""
    root = tmp_path_factory.mktemp("shapes")
    generate_shapes(str(root), num_train=7, num_val=1)
    return COCODataset(str(root / "annotations/instances_train.json"), str(root / "train"))


@pytest.fixture
def training_cfg(shapes_cfg, seven_shapes):
    """A small config of the shapes model, to train on `seven_shapes`."""
    use_coco_datasets(shapes_cfg, seven_shapes, None)
    shapes_cfg.merge_from_list(
        "INPUT.IMAGE_SIZE 64 SOLVER.IMS_PER_BATCH 2 SOLVER.CHECKPOINT_PERIOD 100 "
        # A random subset of the positives, and batch norm that is trained.
        "MODEL.YOLACT.MAX_MASK_POSITIVES 3 MODEL.BACKBONE.FREEZE_BN_BELOW 0 "
        "DATALOADER.NUM_WORKERS 0".split()
    )
    return shapes_cfg


@pytest.fixture
def embedmask_training_cfg(seven_shapes):
    """A small config of the EmbedMask shapes model, to train on `seven_shapes`."""
    cfg = model_zoo.get_config("embedmask_shapes", opts=["MODEL.DEVICE", "cpu"])
    use_coco_datasets(cfg, seven_shapes, None)
    cfg.merge_from_list(
        "INPUT.MIN_SIZE_TRAIN (64,96) SOLVER.IMS_PER_BATCH 2 SOLVER.CHECKPOINT_PERIOD 100 "
        "DATALOADER.NUM_WORKERS 0".split()
    )
    return cfg
