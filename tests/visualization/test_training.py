"""Reading metrics.json, also of runs that were killed and resumed, and the curves of it."""

import json

import numpy as np
import pytest

from yolact_d2.visualization.training import (
    moving_average,
    read_line,
    read_run,
    shown_metrics,
    training_figure,
)


def write(folder, *records, end=""):
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.json").write_text(text + end)
    return str(folder)


def points(curve):
    return list(zip(curve.iterations.tolist(), curve.values.tolist()))


def losses(*iterations, value=1.0):
    return [{"iteration": i, "total_loss": value + i} for i in iterations]


def test_curves_have_what_was_recorded(tmp_path):
    records = [{"iteration": 19, "lr": 0.1, "total_loss": 3}, {"iteration": 20, "segm/AP": 7.5}]
    folder = write(tmp_path / "run", *records)
    run = read_run(folder)
    assert run.num_unreadable == 0
    assert sorted(run.curves) == ["lr", "segm/AP", "total_loss"]
    assert points(run.curves["total_loss"]) == [(19, 3)]
    assert points(run.curves["segm/AP"]) == [(20, 7.5)]
    assert read_run(f"{folder}/metrics.json").curves.keys() == run.curves.keys()


def test_last_line_may_be_cut_off(tmp_path):
    folder = write(tmp_path / "run", *losses(19, 39), end='{"iteration": 59, "total_l')
    run = read_run(folder)
    assert points(run.curves["total_loss"]) == [(19, 20), (39, 40)]
    assert run.num_unreadable == 1


def test_line_of_the_resumed_run_goes_on_where_the_killed_one_ended(tmp_path):
    first = write(tmp_path / "run", *losses(19), end='{"iteration": 39, "tot')
    with open(f"{first}/metrics.json", "a") as file:
        file.write(json.dumps({"iteration": 39, "total_loss": 5.0}) + "\n")
    run = read_run(first)
    assert points(run.curves["total_loss"]) == [(19, 20), (39, 5)]
    assert run.num_unreadable == 0


def test_later_of_repeated_iterations_counts(tmp_path):
    # Killed at 79, resumed from the checkpoint at 40, and now at 59: 79 did not lead to the model.
    records = [*losses(19, 39, 59, 79), *losses(59, value=100)]
    run = read_run(write(tmp_path / "run", *records))
    assert points(run.curves["total_loss"]) == [(19, 20), (39, 40), (59, 159)]


def test_equal_iterations_are_one_record(tmp_path):
    # The last evaluation of a run has the iteration with which its continuation begins.
    records = [*losses(19), {"iteration": 20, "segm/AP": 5.0}, *losses(20), *losses(20, value=7)]
    run = read_run(write(tmp_path / "run", *records))
    assert points(run.curves["segm/AP"]) == [(20, 5.0)]
    assert points(run.curves["total_loss"]) == [(19, 20), (20, 27)]


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    records = [{"iteration": i, "bbox/AP": v} for i, v in enumerate([1.0, float("nan"), None, 4.0])]
    run = read_run(write(tmp_path / "run", *records))
    assert points(run.curves["bbox/AP"]) == [(0, 1.0), (3, 4.0)]


@pytest.mark.parametrize("text", ["", "\n\n", "no metrics\n", "[1, 2]\n", '{"lr": 1}\n'])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match="metrics.json has no line of metrics"):
        read_run(str(tmp_path))


def test_read_line():
    assert read_line('{"iteration": 3}\n') == {"iteration": 3}
    for text in ("", "{", '{"iteration": "3"}', "7", '{"a": 1}', '{"iteration": 3'):
        assert read_line(text) is None


def test_moving_average_by_hand():
    values = np.array([1.0, 2.0, 6.0, 3.0])
    assert moving_average(values, 3).tolist() == pytest.approx([1.5, 3.0, 11 / 3, 4.5])
    assert moving_average(values, 0).tolist() == moving_average(values, 1).tolist() == [1, 2, 6, 3]


def test_order_of_metrics(tmp_path):
    names = "lr time bbox/AP bbox/AP50 segm/AP val/segm/AP loss_mask loss_cls total_loss data_time"
    run = read_run(write(tmp_path / "run", {"iteration": 1, **dict.fromkeys(names.split(), 1.0)}))
    expected = "total_loss loss_cls loss_mask val/segm/AP segm/AP bbox/AP lr"
    assert shown_metrics([run]) == expected.split()


def test_figure_has_a_curve_of_each_run_in_each_panel(tmp_path):
    long = read_run(write(tmp_path / "a", *losses(*range(0, 200, 20))))
    short = read_run(write(tmp_path / "b", {"iteration": 9, "total_loss": 2.0, "lr": 0.1}))
    figure = training_figure({"long": long, "short": short})
    panels = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert sorted(panels) == ["lr", "total_loss"]
    drawn = [line.get_xydata().tolist() for line in panels["total_loss"].lines]
    assert [[9.0, 2.0]] in drawn
    assert [[float(i), 1.0 + i] for i in range(0, 200, 20)] in drawn
    # All panels have the iterations of all runs.
    assert {axis.get_xlim() for axis in panels.values()} == {(0.0, 1.03 * 180)}
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["long", "short"]
    figure.canvas.draw()


def test_nothing_to_show(tmp_path):
    run = read_run(write(tmp_path / "run", {"iteration": 1, "time": 2.0}))
    with pytest.raises(ValueError, match="neither losses nor"):
        training_figure({"run": run})


def test_a_line_of_other_bytes_is_left_out(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_bytes(b'{"iteration": 1, "total_loss": 2.0}\n\xff\xfe\n')
    run = read_run(str(path))
    assert run.num_unreadable == 1
