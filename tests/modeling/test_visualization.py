"""What the models put into Detectron2's event storage in training."""

import torch
from detectron2.utils.events import EventStorage
from small_models import tiny_embedmask, tiny_yolact, training_input

BOXES = [[4, 6, 30, 40], [40, 20, 90, 60]]


def test_anchors_in_the_class_loss_are_counted():
    yolact = tiny_yolact(MODEL__YOLACT__NEGATIVE_POSITIVE_RATIO=2)
    embedmask = tiny_embedmask()
    inputs = [training_input(BOXES), training_input([])]
    for model in yolact, embedmask:
        with EventStorage() as storage:
            model.train()(inputs)
        counts = {key: value for key, (value, _) in storage.latest().items()}
        positives, negatives = counts["num_pos_anchors"], counts["num_neg_anchors"]
        assert positives > 0
        if model is yolact:
            assert negatives == 2 * positives
        else:  # all locations of a 64 x 96 image are in the focal loss
            assert positives + negatives == sum(64 * 96 // 4**i for i in (3, 4, 5))


def test_a_training_image_is_drawn_every_vis_period():
    for model in tiny_yolact(VIS_PERIOD=2), tiny_embedmask(VIS_PERIOD=2):
        inputs = [training_input(BOXES), training_input([], 40, 30)]
        inputs[0].update(height=640, width=960)  # of the file
        drawn = []
        with EventStorage() as storage:
            for _ in range(4):
                model.train()(inputs)
                drawn.append(len(storage._vis_data))
                storage.step()
        assert drawn == [1, 1, 2, 2]
        _, drawing, iteration = storage._vis_data[1]
        assert iteration == 2 and drawing.shape == (3, 2 * 64, 96)
        image = inputs[0]["image"].int()
        image = image.flip(0) if model.input_format == "BGR" else image
        is_same = (torch.as_tensor(drawing[:, :64]) - image).abs().amax(dim=0) <= 1
        assert is_same[50:, :30].all() and not is_same[25:55, 45:85].any()  # outside, inside
