"""Class names that matplotlib's own font has no characters for."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from detectron2.data.catalog import Metadata
from detectron2.utils.visualizer import Visualizer
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from yolact_d2.inference import labels

NAMES = ("cat", "猫", "a$b$", "قطة", "ไก่", 7)


@pytest.fixture
def use_fonts(monkeypatch):
    """A function that makes some font files those of the system."""

    def use(*paths):
        labels.drawable_names.cache_clear()
        monkeypatch.setattr(labels, "FONTS", ["sans-serif"])
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(p) for p in paths])

    yield use
    labels.drawable_names.cache_clear()
    labels.text_coverage.cache_clear()


@pytest.fixture
def font(tmp_path):
    """A font of one character, which is a black square."""
    pen = TTGlyphPen(None)
    for move, point in zip("mlll", [(0, 0), (0, 900), (900, 900), (900, 0)]):
        (pen.moveTo if move == "m" else pen.lineTo)(point)
    pen.closePath()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord("猫"): "cat"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (900, 0), "cat": (900, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=0)
    builder.setupNameTable({"familyName": "One Cat", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "cat.ttf")
    return tmp_path / "cat.ttf"


def draw(number):
    """A drawing of one class name, whose label is white."""
    metadata = labels.with_drawable_names(Metadata(thing_classes=list(NAMES)))
    visualizer = Visualizer(np.zeros((60, 200, 3), np.uint8), metadata)
    visualizer.draw_text(metadata.thing_classes[number], (100, 20), font_size=20, color="w")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, about missing characters
        return labels.get_image(visualizer.output)


def test_names_without_a_font_become_numbers_and_that_is_said_once(use_fonts, caplog):
    use_fonts()
    drawings = [draw(i) for i in range(len(NAMES))]
    assert labels.drawable_names(NAMES) == ("cat", "1", "a$b$", "قطة", "4", "7")
    assert all((drawing > 200).sum() > 50 for drawing in drawings)
    (record,) = caplog.records
    assert "class names 猫, ไก่: drawings show the numbers" in record.getMessage()
    assert labels.with_drawable_names(Metadata()).get("thing_classes") is None


def test_a_font_of_the_system_is_used(use_fonts, font, tmp_path, caplog):
    (tmp_path / "bad.ttf").write_text("no font")
    (tmp_path / "LastResort.otf").write_bytes(font.read_bytes())
    use_fonts(tmp_path / "LastResort.otf")
    assert labels.drawable_names(NAMES)[1] == "1"
    use_fonts(tmp_path / "bad.ttf", font)
    assert labels.drawable_names(NAMES)[:2] == ("cat", "猫")
    assert labels.FONTS == ["sans-serif", "One Cat"]
    white = (draw(1) > 250).all(axis=2)
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    assert white[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert 15 < len(rows) < 40 and 15 < len(columns) < 40
    square = labels.text_coverage("猫", 20)[:, 2:-2] == 1
    rows, columns = np.flatnonzero(square.any(axis=1)), np.flatnonzero(square.any(axis=0))
    assert square[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert 15 < len(rows) < 40 and 15 < len(columns) < 40


def test_words_of_a_label_have_one_height_and_are_not_formulas():
    for size in range(5, 30):
        words = [labels.text_coverage(word, size) for word in ("$a$", "Åg", "93%")]
        assert {len(word) for word in words} == {round(1.4 * size * 100 / 72)}
        for word in words:  # complete: no pixel at the border is covered
            assert word.max() > 0.5 and 0 == word[0].max() == word[-1].max()
            assert 0 == word[:, 0].max() == word[:, -1].max()
    assert labels.text_coverage("$a$", 9).sum() > 2 * labels.text_coverage("a", 9).sum()


def test_importing_the_package_does_not_import_matplotlib():
    code = "import sys, yolact_d2; assert not {'matplotlib', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
