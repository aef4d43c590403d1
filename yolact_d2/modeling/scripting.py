"""What Detectron2's ``scripting_with_instances`` makes of the models of this project."""

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn


class SingleImageDetector(nn.Module):
    """A model whose input and outputs are tensors, to be traced."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found = self.model([{"image": image}])[0]["instances"]
        return found.pred_boxes.tensor, found.scores, found.pred_classes, found.pred_masks


class ScriptableDetector(nn.Module):
    """A trace of a model, with the inputs and outputs of a scripted model of Detectron2.

    The models use what TorchScript's compiler does not know. A trace of them holds for images of
    any size. It has no `mask_scores`, which are not among Detectron2's fields.
    """

    def __init__(self, model: DenseDetector):
        """
        Args:
            model: in evaluation mode.
        """
        super().__init__()
        example = torch.zeros(len(model.pixel_mean), 64, 96, device=model.device)
        with torch.no_grad():
            self.traced = torch.jit.trace(SingleImageDetector(model), example, check_trace=False)

    def forward(self, batched_inputs: list[dict[str, Tensor]]) -> list[Instances]:
        """
        Args:
            batched_inputs: dicts with "image", (3, H, W) in 0..255.

        Returns:
            the detections of each image, in pixels of "image".
        """
        results: list[Instances] = []
        for x in batched_inputs:
            image = x["image"]
            boxes, scores, classes, masks = self.traced(image)
            found = Instances((image.shape[1], image.shape[2]))
            found.pred_boxes = Boxes(boxes)
            found.scores = scores
            found.pred_classes = classes
            found.pred_masks = masks
            results.append(found)
        return results
