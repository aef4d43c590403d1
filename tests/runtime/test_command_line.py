import sys

import pytest

from yolact_runtime.__main__ import main


@pytest.mark.parametrize(
    "options, message",
    [
        (["--output", "drawn.gif"], "drawn.gif ends neither in .png nor in .jpg"),
        (["--output", "missing/drawn.png"], "missing/drawn.png: there is no such folder"),
        (["--confidence-threshold", "30"], "30.0, not in 0..1"),
        (["--threads", "-1"], "-1, less than 0"),
        ([], "none.onnx"),
    ],
)
def test_wrong_options_are_named_before_the_model_is_loaded(options, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["yolact_runtime", "none.onnx", "none.png", *options])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err
