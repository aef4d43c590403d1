import logging
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from detectron2.structures import Instances

from ..checkpoint import YOLACTCheckpointer, check_weights_exist
from ..config import model_node
from .classes import class_metadata, find_classes
from .inputs import AnyImage, to_bgr, to_model_input


def drawing_threshold(cfg: CfgNode, option: float | None, default: float) -> float:
    """The least score of the objects that a program draws: its option, else the config's
    SCORE_THRESH_TEST if that is above 0, else the program's default.

    Raises:
        ValueError: if the config is not of a model of this project.
    """
    configured = cfg.MODEL[model_node(cfg)].SCORE_THRESH_TEST
    return (configured or default) if option is None else option


class Predictor:
    """Finds objects in images.

    Like Detectron2's `DefaultPredictor`, but it also takes batches, knows the class names that are
    stored in the config, and refuses weights that do not fit the model.

    Attributes:
        model: the YOLACT or EmbedMask, in evaluation mode. It may be replaced by a copy from
            :func:`optimize_for_inference`.
        metadata: class names and category ids, see :func:`class_metadata`.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        confidence_threshold: float | None = None,
        top_k: int = 0,
        classes: Sequence[str | int] | None = None,
    ):
        """
        Args:
            cfg: a config of this project; the weights are loaded from MODEL.WEIGHTS.
            confidence_threshold: detections with a lower score are dropped; None for
                the config's SCORE_THRESH_TEST.
            top_k: keep this many detections of an image, the best; 0 for
                TEST.DETECTIONS_PER_IMAGE.
            classes: keep only detections of these classes, see :func:`find_classes`.

        Raises:
            ValueError: naming the key, file or argument that is wrong.
        """
        node = model_node(cfg)
        if confidence_threshold is None:
            confidence_threshold = cfg.MODEL[node].SCORE_THRESH_TEST
        if not 0 <= confidence_threshold <= 1:
            raise ValueError(f"the confidence threshold is {confidence_threshold}, not in 0..1")
        if top_k < 0:
            raise ValueError(f"top-k is {top_k}, less than 0")
        check_weights_exist(cfg.MODEL.WEIGHTS)
        if not cfg.MODEL.WEIGHTS:
            logging.getLogger(__name__).warning("MODEL.WEIGHTS is empty: the model is untrained.")
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL[node].SCORE_THRESH_TEST = float(confidence_threshold)
        self.metadata = class_metadata(cfg)
        self._top_k = top_k
        self._classes: torch.Tensor | None = None
        if classes is not None:
            numbers = find_classes(classes, self.metadata, cfg.MODEL[node].NUM_CLASSES)
            self._classes, top_k = torch.tensor(numbers), max(top_k, cfg.TEST.DETECTIONS_PER_IMAGE)
        if top_k > 0:
            cfg.TEST.DETECTIONS_PER_IMAGE = top_k
        self.input_format = cfg.INPUT.FORMAT
        # YOLACT, for which MIN_SIZE_TEST is 0, resizes images itself.
        self._resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.model = build_model(cfg).eval()
        YOLACTCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)

    def __call__(self, image: AnyImage) -> Instances:
        """
        Args:
            image: see :func:`to_bgr`.

        Returns:
            the predictions of the model in the resolution of the image, on the CPU.

        Raises:
            ValueError: naming the file, or the type, shape and dtype, if it is no such image.
        """
        return self.predict([image])[0]

    @torch.no_grad()
    def predict(self, images: Iterable[AnyImage]) -> list[Instances]:
        """Like :meth:`__call__`, for a batch of images, which may differ in size."""
        is_single = isinstance(images, str) or getattr(images, "ndim", 4) < 4
        if is_single or not isinstance(images, Iterable):
            raise ValueError(
                f"predict takes a list of images, not a {type(images).__name__}: for one image "
                "call the predictor itself"
            )
        inputs = [self._to_input(image) for image in images]
        outputs = self.model(inputs) if inputs else []
        found = [output["instances"].to("cpu") for output in outputs]
        return [instances[self.kept(instances.pred_classes)] for instances in found]

    def _to_input(self, image: AnyImage) -> dict[str, Any]:
        """What the model takes, as Detectron2's `DefaultPredictor` makes it."""
        array = to_model_input(image, self.input_format)
        height, width = array.shape[:2]
        array = self._resize.get_transform(array).apply_image(array)
        tensor = torch.from_numpy(np.array(array, order="C")).permute(2, 0, 1)
        return {"image": tensor, "height": height, "width": width}

    def kept(self, classes: torch.Tensor) -> torch.Tensor | slice:
        """The index of the detections that the arguments `classes` and `top_k` keep.

        Args:
            classes: (N,) of the detections of an image, the best first.
        """
        if self._classes is None:  # the model has kept the best
            return slice(None)
        numbers = torch.isin(classes.cpu(), self._classes).nonzero()[:, 0]
        return numbers[: self._top_k or None]

    def draw(self, image: AnyImage, instances: Instances) -> np.ndarray:
        """A copy of an image, (H, W, 3) uint8, BGR, with its predictions drawn on it."""
        # Here, because they import matplotlib.
        from detectron2.utils.visualizer import Visualizer

        from .labels import get_image, with_drawable_names

        rgb = to_bgr(image, self.input_format)[:, :, ::-1]
        visualizer = Visualizer(rgb, with_drawable_names(self.metadata))
        drawing = visualizer.draw_instance_predictions(instances)
        return cv2.cvtColor(get_image(drawing), cv2.COLOR_RGB2BGR)
