import logging
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

from ..checkpoint import YOLACTCheckpointer, check_weights_exist
from .classes import class_metadata


class Predictor:
    """Finds objects in images that are read by OpenCV.

    Like Detectron2's `DefaultPredictor`, but it also takes batches, knows the class names that are
    stored in the config, and refuses weights that do not fit the model.

    Attributes:
        model: the YOLACT, in evaluation mode. It may be replaced by a copy from
            :func:`optimize_for_inference`.
        metadata: class names and category ids, see :func:`class_metadata`.
    """

    def __init__(self, cfg: CfgNode, *, confidence_threshold: float = 0.5, top_k: int = 0):
        """
        Args:
            cfg: a config of this project; the weights are loaded from MODEL.WEIGHTS.
            confidence_threshold: detections with a lower score are dropped.
            top_k: keep this many detections of an image, the best; 0 for
                TEST.DETECTIONS_PER_IMAGE.

        Raises:
            ValueError: naming the key, file or argument that is wrong.
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
        cfg.defrost()
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
            the predictions of :class:`YOLACT` in the resolution of the image, on the CPU.
        """
        return self.predict([image])[0]

    @torch.no_grad()
    def predict(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Like :meth:`__call__`, for a batch of images, which may differ in size."""
        outputs = self.model([{"image": self._to_tensor(image)} for image in images])
        return [output["instances"].to("cpu") for output in outputs]

    def draw(self, image: np.ndarray, instances: Instances) -> np.ndarray:
        """A copy of an image, (H, W, 3) uint8, BGR, with its predictions drawn on it."""
        drawing = Visualizer(image[:, :, ::-1], self.metadata).draw_instance_predictions(instances)
        return cv2.cvtColor(drawing.get_image(), cv2.COLOR_RGB2BGR)

    def _to_tensor(self, image: np.ndarray) -> torch.Tensor:
        """(3, H, W) in the channel order of the model."""
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image must have the shape (H, W, 3), got {image.shape}")
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
