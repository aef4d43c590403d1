"""EmbedMask's losses of boxes and masks: pure functions of tensors."""

import math

import torch
from torch import Tensor

# The authors clamp probabilities to 1e-9..1. Ours stay below 1 by the precision of float32, which
# keeps the logit finite where a pixel meets the embedding of a proposal exactly.
_MIN_LOG_PROBABILITY = math.log(1e-9)
_MAX_LOG_PROBABILITY = -6e-8


def log_probability(pixels: Tensor, embeddings: Tensor, margins: Tensor) -> Tensor:
    """The logarithm of the probability that pixels belong to proposals: a Gaussian of the distance
    between their embeddings (arXiv 1912.01954, equation 4), with a width for each dimension.

    Args:
        pixels: (D, ...) p.
        embeddings: (K, D) q.
        margins: (K, D) m.

    Returns:
        (K, ...) -sum of m (p - q)^2 over the dimensions.
    """
    flat = pixels.flatten(1)
    squares = (flat - embeddings[:, :, None]).square()
    return -(margins[:, None] @ squares).view(-1, *pixels.shape[1:])


def probability_logits(log_probabilities: Tensor) -> Tensor:
    """ln P - ln(1 - P) of ln P, finite for every P."""
    clamped = log_probabilities.clamp(_MIN_LOG_PROBABILITY, _MAX_LOG_PROBABILITY)
    return clamped - (-clamped.expm1()).log()


def lovasz_hinge(logits: Tensor, targets: Tensor) -> Tensor:
    """Lovasz hinge, a surrogate of 1 - IoU (arXiv 1705.08790).

    Args:
        logits: (K, P) of the pixels of K masks.
        targets: (K, P) bool.

    Returns:
        (K,)
    """
    errors = 1 - torch.where(targets, logits, -logits)
    errors, order = errors.sort(dim=1, descending=True)
    sorted_targets = targets.gather(1, order).to(logits.dtype)
    num = sorted_targets.sum(dim=1, keepdim=True)
    intersection = num - sorted_targets.cumsum(dim=1)
    union = num + (1 - sorted_targets).cumsum(dim=1)
    jaccard = 1 - intersection / union
    weights = jaccard.diff(dim=1, prepend=torch.zeros_like(num))
    return (errors.relu() * weights).sum(dim=1)


def mask_losses(pixels: Tensor, embeddings: Tensor, margins: Tensor, targets: Tensor) -> Tensor:
    """The Lovasz hinge of each object.

    Args:
        pixels, embeddings, margins: see :func:`log_probability`.
        targets: (K, h, w) bool.

    Returns:
        (K,)
    """
    logits = probability_logits(log_probability(pixels, embeddings, margins))
    return lovasz_hinge(logits.flatten(1), targets.flatten(1))


def giou_loss(distances: Tensor, targets: Tensor) -> Tensor:
    """1 - generalised IoU (arXiv 1902.09630) of boxes around common points, with 1 added to
    intersection and union, as in the authors' code.

    Args:
        distances, targets: (K, 4) to the left, top, right and bottom, in strides.

    Returns:
        (K,)
    """

    def area(x: Tensor) -> Tensor:
        return (x[:, 0] + x[:, 2]) * (x[:, 1] + x[:, 3])

    intersection = area(torch.minimum(distances, targets))
    union = area(distances) + area(targets) - intersection
    enclosing = area(torch.maximum(distances, targets)) + 1e-7
    return 1 - (intersection + 1) / (union + 1) + (enclosing - union) / enclosing


def counting_pixels(boxes: Tensor) -> Tensor:
    """Boxes (K, 4) XYXY -> boxes with the sides x2 - x1 + 1, by which the authors' IoU counts
    pixels."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] + 1], dim=1)
