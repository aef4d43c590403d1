"""Whole runs with a stand-in for the model: results, colours, cameras and interruptions."""

import os

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances

from yolact_d2.inference import ImageFiles, Video, annotate, open_output
from yolact_d2.inference.drawing import VideoArtist, draw_picture

HEIGHT, WIDTH = 48, 64
METADATA = Metadata(thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={7: 0, 1000: 1})


def square(x, score=0.9, shape_class=1):
    """An object of 20 x 20 pixels."""
    found = Instances((HEIGHT, WIDTH))
    found.pred_boxes = Boxes(torch.tensor([[x, 10.0, x + 20, 30]]))
    found.scores, found.pred_classes = torch.tensor([score]), torch.tensor([shape_class])
    found.pred_masks = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    found.pred_masks[0, 10:30, x : x + 20] = True
    return found


class StandIn:
    """Finds, in a frame of brightness 20 * i, a square at x = i."""

    metadata = METADATA

    def predict(self, images):
        return [square(round(image.mean() / 20)) for image in images]

    def draw(self, image, found):
        return draw_picture(image, found, METADATA)


def write_video(path, count=10):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for i in range(count):
        writer.write(np.full((HEIGHT, WIDTH, 3), 20 * i, np.uint8))
    writer.release()
    return str(path)


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_results_of_a_video(tmp_path, batch_size):
    video = Video(write_video(tmp_path / "a.avi"))
    done = annotate(StandIn(), video, None, batch_size=batch_size, keep_results=True)
    assert done.num_frames == 10 and done.seconds > 0
    assert [result["image_id"] for result in done.results] == list(range(10))
    for i, result in enumerate(done.results):
        assert result["bbox"] == [i, 10, 20, 20]
        assert (result["category_id"], result["category_name"]) == (1000, "dog")
        assert result["file_name"] == "a.avi"
        assert result["score"] == pytest.approx(0.9)
        mask = mask_util.decode(result["segmentation"])
        assert mask.shape == (HEIGHT, WIDTH) and mask.sum() == mask[10:30, i : i + 20].sum() == 400


def test_an_object_keeps_its_colour(tmp_path):
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    artist = VideoArtist(METADATA)
    # Away from the name in the middle and the outline.
    colours = [artist(image, square(x))[12:15, x + 3 : x + 17].mean(axis=(0, 1)) for x in range(9)]
    assert np.ptp(colours, axis=0).max() < 3
    assert abs(colours[0] - 128).max() > 10
    other = VideoArtist(METADATA)
    assert other(image, square(0)[:0]).shape == image.shape


def test_pictures_that_fail_do_not_stop_the_others(tmp_path):
    for name in ("1.png", "3.png"):
        cv2.imwrite(str(tmp_path / name), np.full((HEIGHT, WIDTH, 3), 40, np.uint8))
    (tmp_path / "2.png").write_text("no picture")
    pictures = ImageFiles([str(tmp_path / f"{i}.png") for i in (1, 2, 3)])
    output = open_output(pictures, str(tmp_path / "out"))
    done = annotate(StandIn(), pictures, output, batch_size=4, keep_results=True)
    assert done.num_frames == 2
    assert [result["image_id"] for result in done.results] == [1, 3]
    assert sorted(os.listdir(tmp_path / "out")) == ["1.png", "3.png"]
    assert [path for path, _ in pictures.failed] == [str(tmp_path / "2.png")]


class Interrupted(StandIn):
    """Ctrl-C comes while the sixth frame is drawn."""

    def predict(self, images):
        if round(images[0].mean() / 20) == 5:
            raise KeyboardInterrupt
        return super().predict(images)


def test_interrupted_video_leaves_nothing(tmp_path):
    video = Video(write_video(tmp_path / "a.avi"))
    output = open_output(video, str(tmp_path / "out" / "b.mp4"))
    with pytest.raises(KeyboardInterrupt):
        annotate(Interrupted(), video, output, batch_size=1)
    assert os.listdir(tmp_path / "out") == []


def test_interrupted_pictures_leave_those_that_are_done(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(8)]
    for i, path in enumerate(paths):
        cv2.imwrite(path, np.full((HEIGHT, WIDTH, 3), 20 * i, np.uint8))
    pictures = ImageFiles(paths)
    output = open_output(pictures, str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        annotate(Interrupted(), pictures, output, batch_size=1)
    assert sorted(os.listdir(tmp_path / "out")) == [f"{i}.png" for i in range(5)]


@pytest.fixture
def camera(tmp_path):
    """A camera that shows a video."""
    path, capture = write_video(tmp_path / "a.avi"), cv2.VideoCapture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cv2, "VideoCapture", lambda number: capture(path))
        return Video(0)


def test_interrupting_a_camera_is_its_end(camera, tmp_path):
    output = open_output(camera, str(tmp_path / "out"))
    done = annotate(Interrupted(), camera, output, batch_size=1)
    assert done.num_frames == 5 and not camera.failed
    assert os.listdir(tmp_path / "out") == ["camera_0.mp4"]
    assert len(list(Video(str(tmp_path / "out" / "camera_0.mp4")))) == 5


def test_closing_the_window_is_the_end(camera, monkeypatch):
    keys = iter([-1, -1, 27])
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "imshow", lambda title, drawing: shown.append(drawing))
    monkeypatch.setattr(cv2, "waitKey", lambda wait: next(keys))
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: shown.append(None))
    done = annotate(StandIn(), camera, open_output(camera, None), batch_size=1)
    assert done.num_frames == 2
    assert [drawing is None for drawing in shown] == [False] * 3 + [True]
