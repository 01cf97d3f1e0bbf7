"""The digits of any picture come out in reading order, as MNIST's digits look: the ways there, step by step."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, found_in, page
from PIL import Image
from scipy import ndimage

from evaluate_model import choose_strokes, find_boxes, find_digits, find_strokes, ink_is_dark, join_strokes
from evaluate_model import load_picture, reading_order, ruled_lines
from load_data import InputError


def drawing(ink=0, paper=255, size=(300, 400), at=(60, 90), height=200, pen=20, mode="L"):
    """Return a PIL picture of a 7."""
    return page(("7", *at), size=size, pen=pen, scale=height / 100, mode=mode, ink=ink, paper=paper)


def find(image, name="a.png", **options):
    """Save a picture, as PNG if not told otherwise, and find its digits."""
    with tempfile.TemporaryDirectory() as folder:
        image.save(Path(folder, name), **options)
        return found_in(Path(folder, name))


def load(*args, **options):
    """Return the only digit found in a picture, (28, 28, 1)."""
    (image,), (_,), (row,) = find(*args, **options)
    assert row == 0
    return image


def likeness(found, expected):
    """Return the correlation of two images (28, 28, 1), blurred a little, after the best shift by at most a pixel."""
    found, expected = (ndimage.gaussian_filter(image[..., 0], 1.0) for image in (found, expected))
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return max(np.corrcoef(np.roll(found, shift, (0, 1)).ravel(), expected.ravel())[0, 1] for shift in shifts)


def close(a, b):
    """Whether two prepared images show the same, but for a pixel's shift, rounding and compression."""
    return likeness(a, b) > 0.95


def assert_mnist_form(image):
    assert image.dtype == np.float32 and image.shape == (28, 28, 1)
    assert image.min() == 0 and 0.9 < image.max() <= 1
    rows, columns = np.nonzero(image[..., 0] > 0.2)
    assert 18 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 20, "the longer side fills the 20x20 box"
    # By hand, independent of SciPy: the mean place of the ink is the middle of the frame.
    place = (np.indices((28, 28)) * image[..., 0]).sum(axis=(1, 2)) / image.sum()
    assert np.abs(place - 14).max() <= 0.6, "centre of mass"


TEN = np.asarray(Image.open(ROOT / "tests" / "ten_digits.png"))  # MNIST's test images 3, 2, 1, 18, 4, 8, 11, 0, 61, 7


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("scale, least", [(1, 0.99), (6, 0.95)])  # measured: at least 0.995, and 0.973
@pytest.mark.parametrize("digit", range(10))
def test_mnists_own_digits_come_back(digit, scale, least, invert):
    """Pixel by pixel, but for the thickening and cleaning that photographs need."""
    image = TEN[:, 28 * digit : 28 * digit + 28, np.newaxis]
    canvas = Image.new("L", (70 * scale, 60 * scale))
    enlarged = Image.fromarray(image[..., 0]).resize((28 * scale, 28 * scale), Image.Resampling.BICUBIC)
    canvas.paste(enlarged, (31 * scale, 9 * scale))
    pixels = np.asarray(canvas)
    (found,), _, _ = find_digits(255 - pixels if invert else pixels)
    assert likeness(found, image / 255) >= least
    assert np.abs(found - image / 255).mean() < 0.1


def test_form_and_proportions():
    image = load(drawing())
    assert not close(image, image[:, ::-1]) and not close(image, 1 - image), "what the other tests rely on"
    for picture in (image, load(drawing(size=(8, 8), at=(1, 1), height=5, pen=1))):
        assert_mnist_form(picture)
    rows, columns = np.nonzero(image[..., 0] > 0.2)
    assert (np.ptp(columns) + 1) / (np.ptp(rows) + 1) == pytest.approx(0.64, abs=0.1), "aspect ratio kept"
    assert image[:14].sum() > image[14:].sum(), "a 7 has its bar on top: neither turned nor mirrored"
    assert len(np.unique(image)) > 20, "anti-aliased"


def with_bars(image, shade, *bars):
    """Return the picture with dark bars in it, each a slice of its pixels."""
    pixels = np.array(image)
    for bar in bars:
        pixels[bar] = np.minimum(pixels[bar], shade)
    return Image.fromarray(pixels)


def photo():
    """Return a 7 in uneven light, with noise and a speck."""
    y, x = np.mgrid[:400, :300]
    light = 0.5 + 0.4 * x / 300 - 0.2 * (y > 220)  # a gradient, and the edge of a shadow across the digit
    pixels = np.asarray(drawing(60, 230)) * light + np.random.default_rng(0).normal(0, 4, light.shape)
    pixels[20:23, 20:23] = 0
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


LOOKS = {
    "white": drawing(255, 0),
    "low contrast": drawing(40, 120),
    "red": drawing((200, 30, 30), (255, 255, 240), mode="RGB"),
    "yellow": drawing((250, 240, 60), (20, 30, 120), mode="RGB"),
    "cropped": drawing(at=(14, 14), size=(150, 230)),
    "wide": drawing(size=(1500, 900), at=(30, 40)),
    "large": drawing(size=(3000, 4000), at=(600, 900), height=2000, pen=200),
    "palette": drawing().convert("P"),
    "black on nothing": drawing("black", (0, 0, 0, 0), mode="RGBA"),
    "white on nothing": drawing("white", (255, 255, 255, 0), mode="RGBA").convert("LA"),
    "ruled": with_bars(drawing(pen=16), 120, *(np.s_[y : y + 2] for y in (60, 160, 260, 360))),
    "beside a desk": with_bars(drawing(60, 230), 70, np.s_[:, 270:]),
}


@pytest.mark.parametrize("image", LOOKS.values(), ids=LOOKS)
def test_the_look_of_a_picture_makes_no_difference(image):
    assert close(load(image), load(drawing()))


def test_nor_does_a_broad_brush():
    """Its strokes stay broader than those of MNIST: measured, 0.885."""
    assert likeness(load(drawing(pen=58)), load(drawing())) > 0.87


def test_nor_do_the_kind_of_file_and_its_compression():
    for ending in ("jpg", "bmp", "gif", "webp", "tiff"):
        assert close(load(drawing(), f"a.{ending}"), load(drawing())), ending
    assert close(load(photo(), "a.jpg", quality=60), load(drawing()))


def test_thin_lines_become_as_thick_as_mnists():
    width = lambda image: image.sum() / 32  # the 7's lines are about 32 pixels long
    thin, thick = width(load(drawing(pen=1))), width(load(drawing(pen=20)))
    assert 1.2 < thin < 3 and 1.5 < thick < 3, "a pen of 1 of 200 pixels is a tenth of one of MNIST's"


# Several digits

ROWS = [("7", 100, 100), ("5", 300, 120), ("1", 500, 90), ("5", 150, 500), ("7", 420, 480)]


def test_several_digits_come_in_reading_order_each_with_its_box():
    images, boxes, rows = find(page(*ROWS[::-1]))
    assert images.dtype == np.float32 and images.shape == (5, 28, 28, 1)
    assert rows.tolist() == [0, 0, 0, 1, 1]
    for image, box, (name, x, y) in zip(images, boxes, ROWS):
        assert_mnist_form(image)
        (alone,), (own,), _ = find(page((name, x, y)))
        assert close(image, alone)
        assert np.abs(box - own).max() <= 2 and abs(box[1] - y) < 8 and abs(box[3] - y - 100) < 8
        assert box.dtype.kind == "i" and x - 8 < box[0] < box[2] < x + 75


def test_a_photograph_that_lies_on_its_side_is_turned():
    """Telephones save them so, with a note."""
    upright = page(*ROWS).resize((2000, 1500))
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to the right to show"
    (seven, *_), boxes, rows = find(upright.rotate(90, expand=True), "a.jpg", exif=exif)
    (same_seven, *_), same_boxes, same_rows = find(page(*ROWS))
    assert np.abs(boxes - same_boxes).max() <= 4 and rows.tolist() == same_rows.tolist()
    assert close(seven, same_seven)


def test_pixels_may_be_grey_or_coloured():
    image = page(*ROWS, size=(900, 700))
    for mode in ("L", "RGB"):
        for got, expected in zip(find_digits(np.asarray(image.convert(mode))), find(image), strict=True):
            assert np.array_equal(got, expected)


def test_a_row_in_a_deep_shadow_is_found_as_the_one_in_the_light():
    pixels = np.asarray(page(*ROWS)).clip(40, 230) * np.repeat([[1], [0.35]], 375, axis=0)
    _, boxes, _ = find(Image.fromarray(pixels.astype(np.uint8)))
    assert boxes == pytest.approx(find(page(*ROWS))[1], abs=3)


def test_rows_are_told_apart_by_half_a_digits_height_in_whatever_order_the_boxes_come():
    boxes = np.array([(40, 200, 60, 280), (0, 10, 20, 80), (90, 190, 120, 270), (30, 0, 60, 90)])
    order, rows = reading_order(boxes)
    assert order.tolist() == [1, 3, 0, 2] and rows.tolist() == [0, 0, 1, 1]
    for lower, expected in ((45, [0] * 6), (55, [0, 1, 2, 3, 4, 5])):  # the first is a slanted row
        _, rows = reading_order(np.array([(50 * i, lower * i, 50 * i + 50, lower * i + 100) for i in range(6)]))
        assert rows.tolist() == expected


def test_a_large_picture_is_reduced_by_means_so_that_thin_strokes_stay(tmp_path):
    """A stroke of one pixel in four thousand would vanish if pixels were skipped."""
    drawing(size=(4000, 3000), at=(1200, 700), height=1400, pen=1).save(tmp_path / "a.png")
    pixels = load_picture(tmp_path / "a.png")
    assert pixels.shape == (750, 1000, 4)
    rows = (pixels[175:525, :, 0] < 250).any(axis=1)
    assert rows.mean() > 0.95


# The steps


def test_ink_differs_most_though_the_papers_pixels_are_more():
    brightness = np.tile([-0.01, -0.01, 0.02], (300, 100))
    brightness[140:150, 50:200] = -1
    assert ink_is_dark(brightness) and not ink_is_dark(-brightness)


def test_strokes_are_numbered_and_weak_or_small_ones_are_not():
    ink = np.zeros((200, 200), np.float32)
    for number, strength in enumerate((1, 0.8, 0.4)):
        ink[20:80, 20 + 50 * number : 30 + 50 * number] = strength
    ink[150:153, 20:23] = 1  # a speck
    ink[150:158, 70:73] = 1  # a bit more
    strokes, numbers, boxes = find_strokes(ink)
    assert boxes.tolist() == [[20, 20, 30, 80], [70, 20, 80, 80], [70, 150, 73, 158]]
    assert numbers.tolist() == [strokes[50, 25], strokes[50, 75], strokes[155, 71]] and strokes[0, 0] == 0
    assert [(strokes == number).sum() for number in numbers] == [60 * 10, 60 * 10, 8 * 3]
    assert len(find_strokes(0.2 * ink)[1]) == 3 and len(find_strokes(0.1 * ink)[1]) == 0, "what a white page holds"


def test_two_or_more_lines_from_the_border_are_a_ruled_pages():
    mask = np.zeros((300, 300), bool)
    mask[100:102, :] = True
    assert not ruled_lines(mask).any(), "one may be a digit's bar"
    mask[200:202, :] = True
    mask[150, 100:200] = True  # not from the border
    mask[50, :45] = mask[50, -45:] = True  # too short
    found = ruled_lines(mask)
    assert found[100:102].all() and found[200:202].all() and not found[140:160].any() and not found[40:60].any()


def test_dots_hardly_count_for_the_usual_size_of_a_digit():
    strokes = np.zeros((300, 300), int)
    strokes[50:150, 50:100] = 1
    for number in range(2, 8):
        strokes[200:210, 30 * number : 30 * number + 10] = number
    numbers, boxes, size = choose_strokes(strokes, np.arange(1, 8), find_boxes(strokes))
    assert numbers.tolist() == [1, 2, 3, 4, 5, 6, 7] and len(boxes) == 7 and 60 < size <= 100


def test_what_the_border_cuts_is_left_out_unless_most_of_a_digit_is_seen():
    boxes = [(100, 100, 160, 200), (0, 100, 40, 200), (200, 100, 260, 250), (290, 100, 300, 200), (180, 0, 190, 250)]
    strokes = np.zeros((250, 300), int)
    for number, (left, top, right, bottom) in enumerate(boxes, start=1):
        strokes[top:bottom, left:right] = number
    numbers, kept, size = choose_strokes(strokes, np.arange(1, 6), np.array(boxes))
    assert size == 100 and numbers.tolist() == [1, 3]
    assert kept.tolist() == [[100, 100, 160, 200], [200, 100, 260, 250]]


def test_strokes_are_joined_by_their_boxes_and_dashes_dropped():
    """Left, top, right, bottom; a digit is 100 high. Each is the case next to one that differs by its outcome."""
    body = (10, 30, 60, 130)
    for other, expected in [
        ((20, 10, 70, 18), {(10, 10, 70, 130): [3, 8]}),  # a bar close above
        ((20, 0, 70, 5), {body: [3]}),  # too far above, and a dash alone
        ((50, 0, 120, 18), {body: [3]}),  # hardly above it
        ((10, 135, 60, 235), {body: [3], (10, 135, 60, 235): [8]}),  # as high as a digit itself: the next row
        ((62, 30, 110, 130), {body: [3], (62, 30, 110, 130): [8]}),  # beside it
        ((62, 85, 110, 130), {body: [3], (62, 85, 110, 130): [8]}),  # a small one
        ((100, 0, 260, 35), {body: [3]}),  # a thick dash
        ((100, 90, 110, 120), {body: [3]}),  # a dot
    ]:
        digits, boxes = join_strokes(np.array([3, 8]), np.array([body, other]), 100.0)
        assert {tuple(box): numbers.tolist() for box, numbers in zip(boxes, digits, strict=True)} == expected


# Frames, lines and the border

CASES = {  # what is drawn beside 2 sevens and a 5 on a canvas of 600x300, and at which height the border cuts it
    "plain": (None, 300),
    "free box": ((20, 20, 580, 280), 300),
    "free line": ((0, 260, 600, 262), 300),
    "vertical line": ((420, 0, 422, 300), 300),
    "cropped": (None, 195),
    "small digits in a large frame": ((3, 5, 596, 296), 300),
}


@pytest.mark.parametrize("box, bottom", CASES.values(), ids=CASES)
def test_frames_lines_and_the_border_cost_no_digit(box, bottom):
    image = page(("7", 100, 100), ("5", 300, 100), ("7", 480, 105), size=(600, 300), frame=box)
    images, found, _ = find(image.crop((0, 0, 600, bottom)))
    assert found[:, 0] == pytest.approx([100, 300, 480], abs=8) and found[:, 1] == pytest.approx([97, 97, 102], abs=8)


def test_a_0_with_a_speck_in_it_is_no_frame_but_what_holds_a_small_digit_is():
    framed = page(("7", 280, 100), size=(600, 300), frame=(20, 10, 580, 290))
    assert find(framed)[1][:, 0] == pytest.approx([280], abs=8)
    speck = (125, 145, 134, 154)
    assert len(find(page(("0", 100, 100), ("7", 300, 100), size=(600, 300), frame=speck))[0]) == 2


def test_an_image_holds_no_ink_of_the_next_digit_though_it_reaches_into_its_box():
    (first, _), _, _ = find(page(("/", 600, 400), ("/", 640, 400), pen=12))
    (alone,), _, _ = find(page(("/", 600, 400), pen=12))
    assert np.array_equal(first, alone)


def test_a_digit_that_the_border_cuts_alone_is_read():
    (image,), _, _ = find(page(("5", 0, 100), size=(400, 300)))
    (inside,), _, _ = find(page(("5", 150, 100), size=(400, 300)))
    assert close(image, inside)


# Nothing to find


@pytest.mark.parametrize("side", [1, 28, 300])
def test_a_page_without_ink_is_refused(side):
    noise = np.random.default_rng(0).normal(0, 5, (side, side))
    pages = [np.full((side, side), 255), np.zeros((side, side)), 180 + noise, np.zeros((side, side, 4))]
    if side > 28:  # at 28 pixels a gradient could be a broad stroke, and a line a 1
        y, x = np.mgrid[:side, :side] / side
        lines = np.full((side, side), 230)
        lines[20 :: side // 10] = 150
        pages += [120 + 80 * x, 120 + 80 * (x + y > 0.9), lines, np.minimum(lines, lines.T)]
    for pixels in pages:
        with pytest.raises(InputError, match="^no digit found in it"):
            find(Image.fromarray(pixels.astype(np.uint8)))


def test_files_that_are_no_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    drawing().save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:300])
    Path("text.png").write_text("hello")
    Path("photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    Image.fromarray(np.asarray(drawing()).astype(np.uint16) * 257).save("deep.png")  # 16 bits a pixel
    messages = dict.fromkeys(("cut.png", "text.png", "photo.heic", "deep.png"), "not a picture .*; export it as JPEG")
    messages |= {"none.png": "no such file", "folder": "is a folder; name the pictures in it"}
    for name, message in messages.items():
        with pytest.raises(InputError, match=f"^{message}"):
            load_picture(name)


def test_a_picture_that_is_a_program_is_not_run(tmp_path, monkeypatch):
    """Pillow has Ghostscript run PostScript, whatever the file's name."""
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n%%EndComments\nshowpage\n%%EOF\n")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **options: pytest.fail("it was run"))
    with pytest.raises(InputError, match="not a picture"):
        load_picture(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_what_would_take_too_much_memory_is_refused(name, tmp_path):
    Image.new("L", (10_000, 5000)).save(tmp_path / name)
    assert load_picture(tmp_path / name).shape == (500, 1000, 4)
    Image.new("L", (10_001, 5000)).save(tmp_path / name)
    with pytest.raises(InputError, match="more than 50 megapixels"):
        load_picture(tmp_path / name)
