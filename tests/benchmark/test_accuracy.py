import pytest
from small_models import RETINANET, YOLACT

from yolact_d2.benchmark.accuracy import check_dataset
from yolact_d2.benchmark.specs import parse_models
from yolact_d2.data.shapes import generate_shapes, register_shapes


def spec_of(text):
    return parse_models([text], device="cpu")[0]


@pytest.fixture(scope="module", autouse=True)
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    generate_shapes(str(root), num_train=1, num_val=1)
    register_shapes(str(root), prefix="benchmark_shapes")


def test_a_dataset_that_suits():
    check_dataset("benchmark_shapes_val", spec_of(YOLACT))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("nowhere", YOLACT, "'nowhere' is not registered; known are .*coco_2017_val"),
        ("pascal_sbd_val", YOLACT, "'pascal_sbd_val' cannot be read: .*DETECTRON2_DATASETS"),
        ("benchmark_shapes_val", RETINANET, "has 4 categories, retinanet has 80"),
    ],
)
def test_datasets_that_do_not_suit(name, text, message):
    with pytest.raises(ValueError, match=message):
        check_dataset(name, spec_of(text))
