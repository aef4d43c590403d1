"""Models of grey images (INPUT.FORMAT "L"), from training to drawings."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from yolact_d2 import Predictor
from yolact_d2.data import YOLACTDatasetMapper, read_image
from yolact_d2.data.shapes import generate_shapes, register_shapes


@pytest.mark.parametrize("mean, std", [([117.4], [57.4]), ([123.7, 116.8, 103.9], [58.4] * 3)])
def test_grey_model_trains_and_predicts(shapes_cfg, tmp_path, mean, std):
    cfg = shapes_cfg
    cfg.INPUT.FORMAT, cfg.INPUT.IMAGE_SIZE = "L", 64
    cfg.INPUT.AUG.EXPAND = True
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = mean, std
    cfg.MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST = 0.0
    generate_shapes(str(tmp_path / "shapes"), num_train=8, num_val=1)
    register_shapes(str(tmp_path / "shapes"), prefix="some_shapes")
    records = DatasetCatalog.get("some_shapes_train")
    mapper = YOLACTDatasetMapper(cfg)
    assert len(mapper.augmentations.augs) == 7
    torch.manual_seed(0)
    model = build_model(cfg)
    assert model.backbone.bottom_up.stem.conv1.in_channels == len(mean)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    np.random.seed(0)
    for step in range(2):
        batch = [mapper(record) for record in records[4 * step : 4 * step + 4]]
        assert {tuple(x["image"].shape) for x in batch} == {(1, 64, 64)}
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)

    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    predictor, path = Predictor(cfg, top_k=2), records[0]["file_name"]
    with torch.no_grad():  # as the evaluation does
        expected = predictor.model([YOLACTDatasetMapper(cfg, is_train=False)(records[0])])[0][
            "instances"
        ]
    for image in (path, read_image(path, "BGR"), read_image(path, "L")):
        found = predictor(image)
        assert torch.equal(found.scores, expected.scores) and len(found) == 2
        assert torch.equal(found.pred_masks, expected.pred_masks)
        assert predictor.draw(image, found).shape == (*found.image_size, 3)
