"""EmbedMask's losses against plain loops."""

import math

import numpy as np
import torch

from yolact_d2.modeling.embedmask.losses import (
    counting_pixels,
    giou_loss,
    log_probability,
    lovasz_hinge,
    mask_losses,
    probability_logits,
)


def test_log_probability_equals_the_loop():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(5, 3, 4, generator=generator)
    q, m = torch.randn(2, 5, generator=generator), torch.rand(2, 5, generator=generator)
    result = log_probability(pixels, q, m)
    for n, row, column in np.ndindex(2, 3, 4):
        distance = sum(m[n, d] * (pixels[d, row, column] - q[n, d]) ** 2 for d in range(5))
        assert math.isclose(result[n, row, column], -distance, rel_tol=1e-5)


def test_logits_are_those_of_clamped_probabilities_and_finite():
    values = torch.tensor([-50.0, -20.0, -3.0, -0.6, -1e-4], requires_grad=True)
    logits = probability_logits(values)
    probabilities = values.detach().double().exp().clamp(min=1e-9)
    expected = probabilities.log() - (1 - probabilities).log()
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-6)
    extreme = torch.tensor([0.0, -1e-30, -torch.inf, -1e30], requires_grad=True)
    logits = probability_logits(extreme)
    logits.sum().backward()
    assert logits.isfinite().all() and extreme.grad.tolist() == [0, 0, 0, 0]


def lovasz_by_loop(logits, targets):
    errors = [1 - z * (1 if y else -1) for z, y in zip(logits, targets)]
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    total, before = 0.0, 0.0
    wrong = set()
    for i in order:
        wrong.add(i)
        kept = sum(y and j not in wrong for j, y in enumerate(targets))
        union = sum(y or j in wrong for j, y in enumerate(targets))
        total += max(errors[i], 0) * (1 - kept / union - before)
        before = 1 - kept / union
    return total


def test_lovasz_hinge_equals_the_loop():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 11, generator=generator) * 2
    targets = torch.rand(6, 11, generator=generator) < torch.arange(6)[:, None] / 5  # none to all
    expected = [lovasz_by_loop(*pair) for pair in zip(logits.tolist(), targets.tolist())]
    torch.testing.assert_close(lovasz_hinge(logits, targets), torch.tensor(expected))


def test_mask_losses_are_finite_where_a_background_pixel_meets_the_proposal():
    q = torch.zeros(1, 3, requires_grad=True)
    pixels = torch.zeros(3, 2, 2, requires_grad=True)
    for targets in (torch.zeros(1, 2, 2), torch.ones(1, 2, 2)):
        loss = mask_losses(pixels, q, torch.ones(1, 3), targets.bool())
        loss.sum().backward()
        assert loss.isfinite().all() and q.grad.isfinite().all() and pixels.grad.isfinite().all()


def test_giou_loss_equals_the_loop():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 5, (2, 20, 4))
    for x, y, loss in zip(a, b, giou_loss(torch.tensor(a), torch.tensor(b)).tolist()):

        def area(d):
            return (d[0] + d[2]) * (d[1] + d[3])

        both = area(np.minimum(x, y))
        union, enclosing = area(x) + area(y) - both, area(np.maximum(x, y)) + 1e-7
        giou = (both + 1) / (union + 1) - (enclosing - union) / enclosing
        assert math.isclose(loss, 1 - giou, rel_tol=1e-9)


def test_boxes_count_pixels():
    boxes = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.5, 2.0, 4.5, 9.0]])
    assert counting_pixels(boxes).tolist() == [[0, 0, 1, 1], [1.5, 2, 5.5, 10]]
