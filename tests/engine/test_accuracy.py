"""A short run must learn: a broken loss, matcher or mapper does not."""

import pytest
import torch

from yolact_d2.data import COCODataset, use_coco_datasets
from yolact_d2.data.shapes import generate_shapes
from yolact_d2.engine import Trainer


@pytest.mark.slow
def test_a_short_run_learns_the_masks_of_four_images(shapes_cfg, tmp_path):
    generate_shapes(str(tmp_path), num_train=4, num_val=0)
    dataset = COCODataset(
        str(tmp_path / "annotations/instances_train.json"), str(tmp_path / "train")
    )
    use_coco_datasets(shapes_cfg, dataset, dataset)
    shapes_cfg.merge_from_list(
        "MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.WIDTH_PER_GROUP 16 "
        "MODEL.RESNETS.STEM_OUT_CHANNELS 32 MODEL.FPN.OUT_CHANNELS 32 "
        "MODEL.YOLACT.HEAD_CONV_DIM 32 MODEL.YOLACT.PROTONET.CONV_DIM 32 "
        "MODEL.BACKBONE.FREEZE_BN_BELOW 0 INPUT.AUG.CROP False INPUT.AUG.PHOTOMETRIC False "
        "MODEL.ANCHOR_GENERATOR.SIZES [[8,12],[16,24],[33,48],[48,67],[67,84]] "
        "INPUT.IMAGE_SIZE 96 DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 4 "
        "SOLVER.OPTIMIZER AdamW SOLVER.BASE_LR 0.004 SOLVER.WEIGHT_DECAY_NORM 0.0 "
        f"SOLVER.MAX_ITER 150 SOLVER.WARMUP_ITERS 20 OUTPUT_DIR {tmp_path}".split()
    )
    torch.manual_seed(0)
    trainer = Trainer(shapes_cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    mask_ap, _ = trainer.storage.latest()["segm/AP"]
    assert mask_ap > 50  # Measured: 56 to 65 with five seeds. SGD gives 22 to 61.
