"""Weights and inputs of the reference measurements, made from names and seeds alone."""

import zlib

import numpy as np
import torch


def _tensor(name, shape):
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
    values = random.standard_normal(shape).astype(np.float32) if shape else np.float32(0)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "scale":
        return (1 + 0.1 * values).astype(np.float32)
    if leaf == "num_batches_tracked":
        return np.int64(0)
    if leaf == "running_var":
        return (1 + 0.2 * np.abs(values)).astype(np.float32)
    if leaf == "running_mean":
        return (0.1 * values).astype(np.float32)
    if len(shape) == 4:
        gain = 0.7 if "conv_offset_mask" in name else 1.0
        if shape[2] > 1 and "_layer." in name:  # heads answer to change, not to level
            values = values - values.mean((2, 3), keepdims=True)
        return (values * gain * np.sqrt(2.0 / np.prod(shape[1:]))).astype(np.float32)
    if leaf == "weight":  # the scale of a norm
        scale = 0.35 if ("bn3" in name or "conv2.1." in name) else 0.9
        return (scale * (1 + 0.1 * values)).astype(np.float32)
    return (0.05 * values).astype(np.float32)


def state_dict(shapes, gains=None):
    """An official-format state dict; `gains` are factors, or factors and offsets, by key."""
    tensors = {key: torch.as_tensor(_tensor(key, tuple(shape))) for key, shape in shapes.items()}
    for key, gain in (gains or {}).items():
        factor, offset = gain if isinstance(gain, list) else (gain, 0)
        tensors[key] = (tensors[key] * factor + torch.as_tensor(offset)).float()
    return tensors


def image(seed, height, width):
    """Coloured blobs over noise, (height, width, 3) uint8 BGR."""
    random = np.random.RandomState(seed)
    picture = random.randint(0, 60, (height, width, 3)).astype(np.float32)
    picture = picture + random.uniform(0, 120, 3)
    rows, columns = np.mgrid[0:height, 0:width]
    for _ in range(9):
        y, x = random.uniform(0, height), random.uniform(0, width)
        ry = random.uniform(height / 14, height / 3)
        rx = random.uniform(width / 14, width / 3)
        blob = ((rows - y) / ry) ** 2 + ((columns - x) / rx) ** 2 < 1
        noise = random.uniform(0, 255, 3) + random.standard_normal((int(blob.sum()), 3)) * 12
        picture[blob] = noise
    return np.clip(picture, 0, 255).astype(np.uint8)


def ground_truth(seed, size, n, num_classes):
    """`n` boxes (XYXY, pixels), their classes, and masks: the ellipses in the boxes."""
    random = np.random.RandomState(seed)
    rows, columns = np.mgrid[0:size, 0:size] + 0.5
    boxes, classes, masks = [], [], []
    for _ in range(n):
        w, h = random.uniform(14, size * 0.6), random.uniform(14, size * 0.6)
        x, y = random.uniform(0, size - w), random.uniform(0, size - h)
        boxes.append([x, y, x + w, y + h])
        classes.append(random.randint(0, num_classes))
        y_part = ((rows - y - h / 2) / (h / 2)) ** 2
        masks.append(y_part + ((columns - x - w / 2) / (w / 2)) ** 2 <= 1)
    return np.array(boxes, np.float32), np.array(classes), np.array(masks)


def bitten_ellipses(seed, height, width, n, num_classes=80):
    """`n` boxes (XYXY, pixels) of mixed sizes, their classes, and masks: ellipses with a bite."""
    random = np.random.RandomState(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    largest = np.log(0.8 * min(height, width))
    boxes, classes, masks = [], [], []
    for i in range(n):
        if i:
            w, h = np.exp(random.uniform(np.log(6), largest, 2))
        else:
            w, h = width * random.uniform(0.9, 0.97), height * random.uniform(0.3, 0.6)
        x, y = random.uniform(0, width - 1 - w), random.uniform(0, height - 1 - h)
        boxes.append([x, y, x + w, y + h])
        classes.append(random.randint(0, num_classes))
        y_part = ((rows - y - h / 2) / (h / 2)) ** 2
        mask = y_part + ((columns - x - w / 2) / (w / 2)) ** 2 <= 1
        radius = random.uniform(0.15, 0.3)
        bite_x, bite_y = x + w * random.uniform(0.3, 0.9), y + h * random.uniform(0.3, 0.9)
        y_part = ((rows - bite_y) / (h * radius)) ** 2
        masks.append(mask & (y_part + ((columns - bite_x) / (w * radius)) ** 2 > 1))
    return np.array(boxes, np.float32), np.array(classes, np.int64), np.array(masks)
