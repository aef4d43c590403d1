import subprocess
import sys

from small_models import YOLACT

from yolact_d2.benchmark import memory
from yolact_d2.benchmark.memory import Request, high_water, measure_peak_memory
from yolact_d2.benchmark.pictures import PictureSet
from yolact_d2.benchmark.specs import ModelSpec, parse_models
from yolact_d2.benchmark.training import TrainingSettings

MEGABYTE = 2**20


def request(**changes):
    fields = dict(
        spec=parse_models([YOLACT], device="cpu")[0],
        variant="float32",
        pictures=PictureSet("x", size=(60, 90), num_generated=2),
        batch_size=1,
        num_detections=5,
    )
    return Request(**{**fields, **changes})


def test_a_request_survives_the_way_to_the_process():
    pictures = PictureSet("input", files=("a.png", "b.png"))
    for sent in (request(), request(pictures=pictures, training=TrainingSettings(3, 7))):
        assert Request.from_json(sent.to_json()) == sent


def test_the_high_water_mark_stays():
    before = high_water()
    block = bytearray(b"x" * (100 * MEGABYTE))
    during = high_water()
    assert during - before > 90 * MEGABYTE
    del block
    assert high_water() >= during


def test_memory_of_the_parent_does_not_count():
    # In ru_maxrss Linux would count it.
    measure = [
        sys.executable,
        "-c",
        "from yolact_d2.benchmark.memory import high_water; print(high_water())",
    ]
    large = f"x = b'x' * {1500 * MEGABYTE}; import subprocess; subprocess.run({measure})"
    alone, of_large = (
        int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for command in (measure, [sys.executable, "-c", large])
    )
    assert abs(of_large - alone) < 200 * MEGABYTE


def test_pictures_are_held_only_while_they_are_needed(monkeypatch):
    held, most = [], []

    class Runner:
        device = memory.torch.device("cpu")

        def __init__(self, *args):
            pass

        def calibrate(self, pictures):
            assert len(list(pictures)) == 6

        def __call__(self, pictures):
            held.append(pictures)
            most.append(len(pictures))

    monkeypatch.setattr(memory, "Runner", Runner)
    pictures = PictureSet("x", size=(8, 8), num_generated=6)
    found = memory.work(request(pictures=pictures, batch_size=2))
    assert most == [2, 2, 2]
    assert found["gpu"] is None and 0 < found["before"] <= found["process"]


def test_a_process_that_fails():
    missing = ModelSpec("x", "nowhere.yaml")
    peak = measure_peak_memory(request(spec=missing))
    assert peak.process is None
    assert "nowhere.yaml" in peak.failure and "ended with 1" in peak.failure
