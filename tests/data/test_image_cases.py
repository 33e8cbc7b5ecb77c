"""Every kind of image file becomes RGB or is refused with a reason (the table is image_cases.py)."""

import numpy as np
import pytest
from PIL import Image

from jsae.data import decode
from tests.data import image_cases

# decode.py switches this warning of Pillow's off; pytest switches it on again for every test
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


@pytest.mark.parametrize(
    ("data", "colour", "off_by"),
    [case[1:] for case in image_cases.GOOD],
    ids=[case[0] for case in image_cases.GOOD],
)
def test_it_becomes_rgb(data, colour, off_by):
    rgb = decode.decode_rgb(data)
    assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3
    sample = rgb[:: max(1, rgb.shape[0] // 50), :: max(1, rgb.shape[1] // 50)].astype(int)
    assert np.abs(sample - np.array(colour)[None, None, :]).max() <= off_by
    if rgb.size < 10**6:
        for fit in decode.FITS:
            assert decode.fit_square(rgb, 7, fit).shape == (7, 7, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [case[1:] for case in image_cases.BAD],
    ids=[case[0] for case in image_cases.BAD],
)
def test_it_is_refused_with_a_reason(data, reason):
    with pytest.raises(decode.BadImage) as error:
        decode.decode_rgb(data)
    assert reason in str(error.value)


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_upright(orientation, suffix):
    rgb = decode.decode_rgb(image_cases.oriented(orientation, suffix)).astype(int)
    assert rgb.shape == (16, 32, 3)
    expected = np.full((16, 32, 3), image_cases.RED)
    expected[:8, :16] = image_cases.BLUE
    # the corners' blocks: WebP and JPEG blur what lies between
    for y, x in ((2, 2), (2, 29), (13, 2), (13, 29)):
        assert np.abs(rgb[y, x] - expected[y, x]).max() <= 12


def test_pillow_keeps_its_limit():
    assert Image.MAX_IMAGE_PIXELS == 89478485  # a bomb is refused at twice this size
