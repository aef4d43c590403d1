import numpy as np

from tools.visualize_predictions import sheet


def test_each_image_is_in_the_middle_of_its_cell():
    images = [np.full((h, w, 3), i, np.uint8) for i, (h, w) in enumerate([(4, 6), (2, 10), (4, 4)])]
    drawing = sheet(images, columns=2)
    assert drawing.shape == (24, 36, 3)  # cells of 12 x 18
    expected = np.full((24, 36, 3), 255, np.uint8)
    expected[4:8, 6:12] = 0
    expected[5:7, 22:32] = 1
    expected[16:20, 7:11] = 2
    assert np.array_equal(drawing, expected)
    assert sheet(images[:1], columns=5).shape == (12, 14, 3)
