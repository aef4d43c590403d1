import logging
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances

from ..checkpoint import YOLACTCheckpointer, check_weights_exist
from .classes import class_metadata
from .drawing import draw_picture


class Predictor:
    """A model with its weights, which finds objects in pictures as OpenCV reads them.

    It is Detectron2's `DefaultPredictor` for several pictures at once, with the names of the
    classes that the config stores, and with what can be known to be wrong said before work starts.

    Attributes:
        model: the YOLACT, in evaluation mode. A copy by :func:`optimize_for_inference` may replace
            it.
        metadata: `thing_classes` and `thing_dataset_id_to_contiguous_id`, as far as known.
    """

    def __init__(self, cfg: CfgNode, *, confidence_threshold: float = 0.5, top_k: int = 0):
        """
        Args:
            cfg: a config of this project; MODEL.WEIGHTS says which weights to load.
            confidence_threshold: detections with a lower score are dropped.
            top_k: at most so many detections of a picture, the best; 0 for
                TEST.DETECTIONS_PER_IMAGE.

        Raises:
            ValueError: naming the key or file that is wrong.
        """
        name = cfg.MODEL.META_ARCHITECTURE
        if name != "YOLACT":
            raise ValueError(f"MODEL.META_ARCHITECTURE is {name}, not YOLACT")
        if not 0 <= confidence_threshold <= 1:
            raise ValueError(f"the confidence threshold is {confidence_threshold}, not in 0..1")
        if top_k < 0:
            raise ValueError(f"top-k is {top_k}, less than 0")
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}, not one of: RGB, BGR")
        check_weights_exist(cfg.MODEL.WEIGHTS)
        if not cfg.MODEL.WEIGHTS:
            logging.getLogger(__name__).warning("MODEL.WEIGHTS is empty: the model is untrained.")
        cfg = cfg.clone()
        cfg.MODEL.YOLACT.SCORE_THRESH_TEST = float(confidence_threshold)
        if top_k > 0:
            cfg.TEST.DETECTIONS_PER_IMAGE = top_k
        self.metadata = class_metadata(cfg)
        self.input_format = cfg.INPUT.FORMAT
        self.model = build_model(cfg).eval()
        YOLACTCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)

    def __call__(self, image: np.ndarray) -> Instances:
        """
        Args:
            image: (H, W, 3) uint8, BGR.

        Returns:
            what :class:`YOLACT` finds in it, in its resolution, on the CPU.
        """
        return self.predict([image])[0]

    @torch.no_grad()
    def predict(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """As :meth:`__call__`, of several images, which may differ in size, in one batch."""
        outputs = self.model([{"image": self._tensor(image)} for image in images])
        return [output["instances"].to("cpu") for output in outputs]

    def draw(self, image: np.ndarray, instances: Instances) -> np.ndarray:
        """A copy of an image (H, W, 3), BGR, with masks, boxes, names and scores on it."""
        return draw_picture(image, instances, self.metadata)

    def _tensor(self, image: np.ndarray) -> torch.Tensor:
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image must have the shape (H, W, 3), got {image.shape}")
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
