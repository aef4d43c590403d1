"""The tutorial notebook runs from its first cell to its last, with few iterations."""

import json
import os

import numpy as np
import pytest
from processes import REPO, run_programs

pytestmark = pytest.mark.slow

# What the cells leave behind, for the test.
_REPORT = """
json.dump(
    {
        "results": results,
        "files": files,
        "losses": [x["total_loss"] for x in metrics],
        "scores": [expected.scores.tolist(), found.scores.tolist()],
        "classes": [expected.pred_classes.tolist(), found.classes.tolist()],
        "boxes": [expected.pred_boxes.tensor.tolist(), found.boxes.tolist()],
        "same_masks": bool((expected.pred_masks.numpy() == found.masks).mean() > 0.999),
        "drawn": [
            bool((cv2.resize(cv2.imread(file), (240, 240)) != panel).any())
            for file, panel in zip(files, panels)
        ],
    },
    open("report.json", "w"),
)
"""


def test_notebook_runs(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs pip install 'yolact_d2[onnx]'")
    cells = json.loads((REPO / "demo" / "yolact_d2_tutorial.ipynb").read_text())["cells"]
    sources = [
        "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code" and "install" not in cell["metadata"].get("tags", [])
    ]
    program = "\n".join(sources).replace("ITERATIONS = 500", "ITERATIONS = 3")
    program = program.replace("num_train=400, num_val=50", "num_train=6, num_val=4")
    program = program.replace("confidence_threshold=0.3", "confidence_threshold=0.0")
    for changed in ("ITERATIONS = 3", "num_val=4", "confidence_threshold=0.0"):
        assert changed in program
    path = tmp_path / "tutorial.py"
    path.write_text(f"import os\nos.chdir({str(tmp_path)!r})\n{program}\n{_REPORT}")

    (done,) = run_programs([path])
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    for task in "bbox", "segm":
        assert 0 <= report["results"][task]["AP"] <= report["results"][task]["AP50"] <= 100
    assert np.isfinite(report["losses"]).all() and os.path.isfile(tmp_path / "shapes.onnx")
    np.testing.assert_allclose(*report["scores"], atol=2e-3)
    assert len(report["classes"][0]) > 0 and report["classes"][0] == report["classes"][1]
    np.testing.assert_allclose(*report["boxes"], atol=0.1)
    assert report["same_masks"] and all(report["drawn"])
