"""Write, read and replace small videos whose frames can be told apart by their brightness."""

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


class Camera:
    """Stands in for OpenCV's capture of a camera or stream. Ctrl-C is pressed before a frame."""

    def __init__(self, count=-1, fps=25.0, interrupted_before=None):
        self.count, self.fps, self.number, self.is_open = count, fps, 0, True
        self.interrupted_before = interrupted_before

    def open(self, source):
        self.number = 0

    def read(self):
        self.number += 1
        if self.number == self.interrupted_before:
            raise KeyboardInterrupt
        return True, np.full((HEIGHT, WIDTH, 3), 20 * self.number, np.uint8)

    def get(self, key):
        return {cv2.CAP_PROP_FPS: self.fps, cv2.CAP_PROP_FRAME_COUNT: self.count}[key]

    def release(self):
        self.is_open = False
