import subprocess
import sys

from small_models import YOLACT

from yolact_d2.benchmark import memory
from yolact_d2.benchmark.memory import Request, measure_peak_memory
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


def test_high_water_mark_of_a_new_process():
    # In ru_maxrss Linux would count the memory of the process that starts it.
    code = (
        "from yolact_d2.benchmark.memory import high_water\n"
        "before = high_water()\n"
        f"block = b'x' * {300 * MEGABYTE}\n"
        "del block\n"
        "print(before, high_water())"
    )
    command = [sys.executable, "-c", code]
    start = f"x = b'x' * {1500 * MEGABYTE}; import subprocess; subprocess.run({command})"
    done = subprocess.run([sys.executable, "-c", start], stdout=subprocess.PIPE, check=True)
    before, after = (int(number) / MEGABYTE for number in done.stdout.split())
    assert before < 1400
    assert 200 < after - before < 310


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
