"""YOLACT R-50 at 550 px with the modern recipe."""

from detectron2.config import LazyCall as L

from yolact_d2.modeling import ComposedCriterion, DecoupledHead, DistanceTransform

from .yolact import model

model.head = L(DecoupledHead)(
    in_channels="${..backbone.out_channels}",
    conv_dim=160,
    num_convs=2,
    num_anchors=1,
    num_classes="${..num_classes}",
    num_prototypes=32,
    has_background=False,
    prior_prob=0.00001,
)
model.anchor_generator.sizes = [[32], [64], [128], [256], [512]]
model.anchor_generator.aspect_ratios = [[1.0]] * 5
model.box2box_transform = L(DistanceTransform)()
# Task-aligned assignment, binary cross entropy and GIoU are its defaults.
model.criterion = L(ComposedCriterion)(
    box2box_transform="${..box2box_transform}",
    num_classes="${..num_classes}",
    use_dice=True,
    loss_weights=model.criterion.loss_weights,
)
