"""Write and read small videos whose frames can be told apart by their brightness."""

import cv2
import numpy as np

WIDTH, HEIGHT = 64, 48


def write_video(path, count, codec="MJPG", fps=10):
    """Write `count` frames; frame i has the brightness 20 * i, modulo 240."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (WIDTH, HEIGHT))
    for i in range(count):
        writer.write(np.full((HEIGHT, WIDTH, 3), 20 * (i % 12), np.uint8))
    writer.release()
    return str(path)


def read_video(path):
    capture, frames = cv2.VideoCapture(str(path)), []
    while (frame := capture.read()[1]) is not None:
        frames.append(frame)
    return frames


def numbers(frames):
    """The numbers of frames, from their brightness."""
    return [round(frame.mean() / 20) for frame in frames]
