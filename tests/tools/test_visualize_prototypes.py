import http.server
import os
import pickle
import threading

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from processes import REPO, assert_refused, run_tool, run_tools
from strange_files import Call

from yolact_d2 import load_config

CONFIG = REPO / "configs" / "yolact_shapes.yaml"
SMALL = ["INPUT.IMAGE_SIZE", "64", "MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST", "0.0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picture and the weights of an untrained model."""
    folder = tmp_path_factory.mktemp("prototypes")
    torch.manual_seed(0)
    model = build_model(load_config(str(CONFIG), ["MODEL.DEVICE", "cpu"]))
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    cv2.imwrite(str(folder / "picture.jpg"), image)
    return folder


def arguments(folder, *more, config=CONFIG, image="picture.jpg", weights="model.pth", out="out"):
    return (
        "--config-file", config, "--input", folder / image, "--output", folder / out,
        "--confidence-threshold", "0", *more,
        "--opts", *SMALL, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", folder / weights,
    )  # fmt: skip


def test_pictures_of_prototypes_and_detections(folder):
    done = run_tool("visualize_prototypes", *arguments(folder, "--top-k", "2", out="best"))
    assert done.returncode == 0, done.stderr
    assert "the prototypes and 2 of 100 detections" in done.stdout
    names = ["picture_detection_0.png", "picture_detection_1.png", "picture_prototypes.png"]
    assert sorted(os.listdir(folder / "best")) == names

    chosen, none = run_tools(
        "visualize_prototypes",
        arguments(folder, "--detections", "4", "0", "--steps", "3", out="chosen"),
        arguments(folder, "--confidence-threshold", "1.1", out="none"),
    )
    assert chosen.returncode == none.returncode == 0, chosen.stderr + none.stderr
    names[1] = "picture_detection_4.png"
    assert sorted(os.listdir(folder / "chosen")) == names
    sheets = [cv2.imread(str(folder / out / names[2])) for out in ("best", "chosen")]
    assert np.array_equal(*sheets) and sheets[0].shape[1] > 900
    # Six steps and the sum are wider than three and the sum.
    figures = [cv2.imread(str(folder / out / names[0])) for out in ("best", "chosen")]
    assert [figure.shape[1] for figure in figures] == [1460, 860]
    assert "0 of 0 detections with a score of 1.1 or more" in none.stdout
    assert os.listdir(folder / "none") == ["picture_prototypes.png"]


def test_bad_input_is_refused(folder):
    (folder / "text.jpg").write_text("no picture")
    (folder / "cut.jpg").write_bytes((folder / "picture.jpg").read_bytes()[:700])
    (folder / "config.yaml").write_text("NO_SUCH_KEY: 1")
    missing, text, cut, config, weights, unwritable, absent = run_tools(
        "visualize_prototypes",
        arguments(folder, image="missing.jpg"),
        arguments(folder, image="text.jpg"),
        arguments(folder, image="cut.jpg"),
        arguments(folder, config=folder / "config.yaml"),
        arguments(folder, weights="missing.pth"),
        arguments(folder, out="text.jpg/out"),
        arguments(folder, "--detections", "0", "100"),
    )
    assert_refused(missing, folder / "missing.jpg")
    assert_refused(text, folder / "text.jpg")
    assert_refused(cut, "truncated")
    assert_refused(config, "NO_SUCH_KEY")
    assert_refused(weights, folder / "missing.pth")
    assert_refused(unwritable, folder / "text.jpg")
    assert_refused(absent, "there is no [100]; the picture has 100")
    assert not os.path.exists(folder / "out") or not os.listdir(folder / "out")


def test_downloaded_pickle_runs_nothing(folder, tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    content = pickle.dumps({"model": Call(os.mkdir, str(mark)), "__author__": "x"})

    class Web(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/some.pkl"
        done = run_tool(
            "visualize_prototypes", "--config-file", CONFIG, "--input", folder / "picture.jpg",
            "--output", tmp_path / "out", "--opts", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", url,
        )  # fmt: skip
        server.shutdown()
    assert_refused(done, "some.pkl", "it asks for posix.mkdir")
    assert not mark.exists()
