"""Decoding: every mode and format to RGB, damaged input to a reason, the square and its boxes."""

import io

import numpy as np
import pytest
from PIL import Image

from jsae.data import decode

RED, WHITE = (200, 30, 40), (255, 255, 255)


def encoded(image: Image.Image, suffix: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def solid(mode: str, colour, size=(6, 4)) -> Image.Image:
    return Image.new(mode, size, colour)


def palette(transparent: bool) -> bytes:
    image = solid("P", 0)
    image.putpalette([*RED, 0, 0, 0])
    return encoded(image, **({"transparency": 0} if transparent else {}))


@pytest.mark.parametrize(
    ("data", "expected", "off_by"),
    [
        (encoded(solid("RGB", RED)), RED, 0),
        (encoded(solid("RGB", RED), "JPEG", quality=95), RED, 3),
        (encoded(solid("RGB", RED), "WEBP", lossless=True), RED, 0),
        (encoded(solid("RGB", RED), "BMP"), RED, 0),
        (encoded(solid("RGB", RED), "TIFF"), RED, 0),
        (encoded(solid("L", 77)), (77,) * 3, 0),
        (encoded(solid("1", 1)), WHITE, 0),
        (encoded(solid("RGBA", (*RED, 255))), RED, 0),
        (encoded(solid("RGBA", (*RED, 0))), WHITE, 0),
        (encoded(solid("RGBA", (0, 0, 0, 128))), (127,) * 3, 1),
        (encoded(solid("LA", (10, 0))), WHITE, 0),
        (encoded(solid("RGB", RED), transparency=RED), WHITE, 0),
        (palette(False), RED, 0),
        (palette(True), WHITE, 0),
        (encoded(solid("CMYK", (0, 255, 255, 0)), "JPEG", quality=95), (255, 0, 0), 4),
        (encoded(solid("YCbCr", (128, 128, 128)), "JPEG"), (128,) * 3, 2),
        (encoded(solid("LAB", (255, 128, 128)), "TIFF"), WHITE, 3),
        (encoded(solid("I;16", 0x4D00)), (0x4D,) * 3, 0),
        (encoded(solid("I", 70000), "TIFF"), (0,) * 3, 0),
        (encoded(solid("F", 0.5), "TIFF"), (0,) * 3, 0),
        (encoded(solid("RGB", RED), "GIF", save_all=True, append_images=[solid("RGB", WHITE)]), RED, 0),
    ],
)
def test_modes_and_formats_become_rgb(data, expected, off_by):
    rgb = decode.decode_rgb(data)
    assert rgb.dtype == np.uint8 and rgb.shape == (4, 6, 3)
    assert np.abs(rgb.astype(int) - np.array(expected)[None, None, :]).max() <= off_by


def test_float_grey_is_stretched_over_its_finite_range():
    values = np.array([[-1.0, 0.0], [np.nan, 1.0]], np.float32)
    rgb = decode.decode_rgb(encoded(Image.fromarray(values), "TIFF"))
    assert rgb[:, :, 0].tolist() == [[0, 128], [0, 255]]


def test_orientation_tag_is_applied():
    image = solid("RGB", RED)
    image.putpixel((5, 0), (0, 0, 255))  # top right
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left: shown after a quarter turn to the right
    rgb = decode.decode_rgb(encoded(image, exif=exif))
    assert rgb.shape == (6, 4, 3)
    assert rgb[5, 3].tolist() == [0, 0, 255]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's, and all that it should cost
def test_a_damaged_orientation_tag_does_not_cost_the_image():
    data = encoded(solid("RGB", RED), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12broken")
    assert decode.decode_rgb(data).shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "the file starts with b'<html>"),
        (encoded(solid("RGB", RED, (64, 64)), "JPEG")[:400], "damaged or unsupported"),
        (encoded(Image.effect_noise((64, 64), 50))[:900], "damaged or unsupported"),
        (encoded(solid("RGB", RED, (64, 64)))[:40], "no known image format, or a damaged header"),
    ],
)
def test_damaged_files_have_a_reason(data, reason):
    with pytest.raises(decode.BadImage) as error:
        decode.decode_rgb(data)
    assert reason in str(error.value)


def test_an_image_beyond_the_pixel_limit_is_bad_not_fatal(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(decode.BadImage, match="exceeds limit"):
        decode.decode_rgb(encoded(solid("RGB", RED)))


def test_banner_is_cut_from_the_bottom():
    image = solid("RGB", RED, (5, 30))
    image.paste(WHITE, (0, 10, 5, 30))
    rgb = decode.decode_rgb(encoded(image), banner_px=20)
    assert rgb.shape == (10, 5, 3) and (rgb == np.array(RED)[None, None, :]).all()
    with pytest.raises(decode.BadImage, match="has 30 rows, the banner alone 30"):
        decode.decode_rgb(encoded(image), banner_px=30)


@pytest.mark.parametrize("fit", decode.FITS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 7), (8, 8), (40, 31), (100, 6), (3000, 2)])
def test_any_shape_fits_and_keeps_a_constant_colour(shape, fit):
    rgb = np.broadcast_to(np.array(RED, np.uint8), (*shape, 3))
    square = decode.fit_square(np.ascontiguousarray(rgb), 8, fit)
    assert square.shape == (8, 8, 3) and (square == np.array(RED)[None, None, :]).all()


def test_squash_averages_areas_and_crop_takes_the_centre():
    rgb = np.zeros((4, 8, 3), np.uint8)
    rgb[:, 2:6] = 100
    assert decode.fit_square(rgb, 2, "squash")[:, :, 0].tolist() == [[50, 50], [50, 50]]
    assert decode.fit_square(rgb, 2, "crop")[:, :, 0].tolist() == [[100, 100], [100, 100]]
    with pytest.raises(ValueError, match="fit='pad' is unknown; valid: squash, crop"):
        decode.fit_square(rgb, 2, "pad")


def test_boxes_follow_the_image():
    # the whole photo, 1-based and inclusive; xmin = 0 and a ymax in the banner are clamped
    assert decode.fit_box((0, 1, 60, 45), 40, 60, 20, "squash").tolist() == [0, 0, 20, 20]
    assert decode.fit_box((1, 1, 60, 40), 40, 60, 20, "squash").tolist() == [0, 0, 20, 20]
    assert decode.fit_box((31, 21, 60, 40), 40, 60, 20, "squash").tolist() == [10, 10, 20, 20]
    assert decode.fit_box((11, 1, 30, 20), 40, 60, 20, "crop").tolist() == [0, 0, 10, 10]
    # drawn and measured: the box of a white rectangle stays its box
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[8:24, 12:36] = 255
    for fit in decode.FITS:
        x0, y0, x1, y1 = decode.fit_box((13, 9, 36, 24), 40, 60, 20, fit).astype(int)
        square = decode.fit_square(rgb, 20, fit)
        assert square[y0:y1, x0:x1].min() == 255
        square[y0:y1, x0:x1] = 0
        assert square.max() == 0


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_sound_jpegs_have_the_bits_that_pillow_gives(subsampling, progressive):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    smooth = Image.fromarray(pixels).resize((320, 256))
    for size in ((1, 1), (7, 5), (16, 16), (33, 47), (100, 1), (255, 130)):
        for quality in (5, 75, 100):
            for mode in ("RGB", "L"):
                image = smooth.resize(size).convert(mode)
                data = encoded(
                    image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive
                )
                np.testing.assert_array_equal(decode.decode_rgb(data), by_pillow(data))
    data = encoded(smooth, "JPEG", keep_rgb=True, subsampling="4:4:4", progressive=progressive)
    np.testing.assert_array_equal(decode.decode_rgb(data), by_pillow(data))


def test_real_photos_have_the_bits_that_pillow_gives(samples_dir):
    for path in sorted(samples_dir.glob("*.jpg")):
        data = path.read_bytes()
        np.testing.assert_array_equal(decode.decode_rgb(data), by_pillow(data))


def test_no_photo_that_ends_early_is_taken_whatever_is_left_of_it(samples_dir):
    data = encoded(Image.open(samples_dir / "fgvc_01.jpg").resize((160, 120)), "JPEG", quality=80)
    decode.decode_rgb(data)
    for share in np.linspace(0.2, 0.98, 20):
        with pytest.raises(decode.BadImage, match="truncated or damaged"):
            decode.decode_rgb(data[: int(len(data) * share)] + b"\xff\xd9")


def test_a_kind_of_jpeg_that_only_pillow_reads_is_taken(monkeypatch):
    def unknown(*_, **__):
        raise ValueError("tjDecompressHeader3(): Could not determine subsampling level of JPEG image")

    monkeypatch.setattr(decode.second_look.simplejpeg, "decode_jpeg", unknown)
    data = encoded(solid("RGB", RED), "JPEG")
    np.testing.assert_array_equal(decode.decode_rgb(data), by_pillow(data))


def test_a_link_to_nowhere_is_a_bad_image_and_a_file_that_cannot_be_read_is_not(tmp_path):
    for name, target in (("gone.png", "nowhere.png"), ("itself.png", "itself.png")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(decode.BadImage, match=f"a link that leads nowhere: {target}"):
            decode.decode_rgb(decode.file_bytes(tmp_path / name))
    for path in (tmp_path / "no.png", tmp_path):
        with pytest.raises(OSError, match=path.name):
            decode.file_bytes(path)


def test_real_photo_loses_its_banner(samples_dir):
    data = (samples_dir / "fgvc_01.jpg").read_bytes()
    whole, cut = decode.decode_rgb(data), decode.decode_rgb(data, banner_px=12)
    np.testing.assert_array_equal(cut, whole[:-12])
