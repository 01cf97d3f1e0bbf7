"""What find_digits() promises: the digits of any picture come out in reading order, as MNIST's digits look."""

from pathlib import Path

import numpy as np
import pictures
import pytest
from conftest import assert_one_line, mutations, posix, python
from PIL import Image, ImageDraw
from scipy import ndimage

import evaluate_model
from load_data import InputError, find_digits, load_data, reading_order
from train_model import train_model


def drawing(ink=0, paper=255, size=(300, 400), at=(60, 90), height=200, pen=20, mode="L"):
    """Return a PIL picture of a 7 drawn with straight lines."""
    image = Image.new(mode, size, paper)
    x, y = at
    points = [(x, y), (x + height * 0.6, y), (x + height * 0.2, y + height)]
    ImageDraw.Draw(image).line(points, fill=ink, width=pen, joint="curve")
    return image


def page(*places, size=(1200, 900), pen=8):
    """Return a PIL picture of strokes, each a list of points about 100 pixels high, moved to its place."""
    shapes = {
        "1": [[(30, 0), (30, 100)]],
        "7": [[(0, 0), (60, 0), (20, 100)]],
        "5": [[(5, 10), (5, 50), (50, 55), (50, 95), (0, 100)], [(5, 0), (70, 0)]],  # its bar lies apart
        "far bar": [[(5, 34), (5, 60), (50, 65), (50, 105), (0, 110)], [(10, 0), (70, 0)]],  # a 5
        "broken 3": [[(0, 0), (90, 0), (60, 35)], [(60, 62), (95, 95), (0, 97)]],  # in two strokes wider than high
        "broken 7": [[(0, 30), (0, 0), (50, 0)], [(66, 0), (40, 100)]],  # its leg lies apart, and partly to the right
        "/": [[(40, 0), (0, 100)]],
        "-": [[(0, 50), (60, 50)]],
        ".": [[(0, 100), (5, 100)]],
    }
    image = Image.new("L", size, 255)
    for name, x, y in places:
        for stroke in shapes[name]:
            ImageDraw.Draw(image).line([(x + a, y + b) for a, b in stroke], fill=0, width=pen, joint="curve")
    return image


@pytest.fixture
def find(tmp_path):
    """Return a function that saves a picture, as PNG if not told otherwise, and finds its digits."""

    def save_and_find(image, name="a.png", **options):
        image.save(tmp_path / name, **options)
        return find_digits(tmp_path / name)

    return save_and_find


@pytest.fixture
def load(find):
    """Return a function like `find` for a picture of one digit, which it returns as (28, 28, 1)."""

    def find_one(*args, **options):
        (image,), (_,), (row,) = find(*args, **options)
        assert row == 0
        return image

    return find_one


def close(a, b):
    """Whether two prepared images show the same, but for a pixel's shift, rounding and compression."""
    blurred = [ndimage.gaussian_filter(image[..., 0], 1.0).ravel() for image in (a, b)]
    return np.corrcoef(*blurred)[0, 1] > 0.85


def assert_mnist_form(image):
    assert image.dtype == np.float32 and image.shape == (28, 28, 1)
    assert image.min() == 0 and 0.9 < image.max() <= 1
    rows, columns = np.nonzero(image[..., 0] > 0.2)
    assert 18 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 20, "the longer side fills the 20x20 box"
    # By hand, independent of SciPy: the mean place of the ink is the middle of the frame.
    place = (np.indices((28, 28)) * image[..., 0]).sum(axis=(1, 2)) / image.sum()
    assert np.abs(place - 14).max() <= 0.6, "centre of mass"


# One digit


def test_form_and_proportions(load):
    image = load(drawing())
    assert not close(image, image[:, ::-1]) and not close(image, 1 - image), "what the other tests rely on"
    assert_mnist_form(image)
    rows, columns = np.nonzero(image[..., 0] > 0.2)
    assert (np.ptp(columns) + 1) / (np.ptp(rows) + 1) == pytest.approx(0.64, abs=0.1), "aspect ratio kept"
    assert image[:14].sum() > image[14:].sum(), "a 7 has its bar on top: neither turned nor mirrored"
    assert len(np.unique(image)) > 20, "anti-aliased"


def transparent(shade):
    """Return a 7 of one shade on no paper at all."""
    image = Image.new("LA", (300, 400), (shade, 0))
    image.putalpha(drawing(255, 0))
    return image


def hidden():
    """Return a 7 on transparent paper whose pixels hold noise all the same, which nobody sees."""
    pixels = np.array(transparent(0))
    noise = np.random.default_rng(0).integers(0, 256, pixels.shape[:2])
    pixels[..., 0] = np.where(pixels[..., 1], 0, noise)
    return Image.fromarray(pixels, "LA")


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


def lit_corner():
    """Return a thin 7 on a page of which most lies in a sharp shadow: what is bright is rare, but no ink."""
    y, x = np.mgrid[:400, :300]
    light = np.where(x / 300 + y / 400 < 0.8, 1, 0.25)
    return Image.fromarray(np.uint8(np.asarray(drawing(60, 230, pen=4)) * light))


LOOKS = {
    "white": drawing(255, 0),
    "low contrast": drawing(40, 120),
    "red": drawing((200, 30, 30), (255, 255, 240), mode="RGB"),
    "yellow": drawing((250, 240, 60), (20, 30, 120), mode="RGB"),
    "moved": drawing(at=(100, 180)),
    "cropped": drawing(at=(14, 14), size=(150, 230)),
    "wide": drawing(size=(1500, 900), at=(30, 40)),
    "large": drawing(size=(3000, 4000), at=(600, 900), height=2000, pen=200),
    "1-bit": drawing().convert("1"),
    "palette": drawing().convert("P"),
    "alpha": drawing().convert("LA"),
    "16-bit": Image.fromarray(np.asarray(drawing()).astype(np.uint16) * 257),
    "10-bit": Image.fromarray(np.asarray(drawing()).astype(np.uint16) * 4),
    **{f"transparent {shade}": transparent(shade) for shade in (0, 255, 120)},
    "transparent noise": hidden(),
    "ruled": with_bars(drawing(pen=16), 120, *(np.s_[y : y + 2] for y in (60, 160, 260, 360))),
    "bar at the border": drawing(at=(0, 90), pen=5),
    "broad brush": drawing(pen=58),
    "beside a desk": with_bars(drawing(60, 230), 70, np.s_[:, 270:]),
    "a corner in the light": lit_corner(),
}


@pytest.mark.parametrize("image", LOOKS.values(), ids=LOOKS)
def test_the_look_of_a_picture_makes_no_difference(image, load):
    assert close(load(image), load(drawing()))


@pytest.mark.parametrize(
    "name, image, options",
    [
        *((f"a.{ending}", drawing(), {}) for ending in ("jpg", "bmp", "gif", "webp", "tiff")),
        ("a.jpg", drawing().convert("CMYK"), {}),
        ("a.jpg", photo(), {"quality": 60}),
        # Of an animation the first frame is read.
        ("a.gif", drawing(), {"save_all": True, "append_images": [drawing(at=(20, 20), height=40)]}),
    ],
)
def test_nor_does_the_kind_of_file(name, image, options, load):
    assert close(load(image, name, **options), load(drawing()))


def test_thin_lines_become_as_thick_as_mnists(load):
    width = lambda image: image.sum() / 32  # the 7's lines are about 32 pixels long
    thin, thick = width(load(drawing(pen=1))), width(load(drawing(pen=20)))
    assert 1.5 < thin < 3 and 1.5 < thick < 3


def test_a_broad_0_that_fills_the_picture_keeps_its_hole(load):
    """There is nearly as much ink as paper, and the hole is what must not be taken for ink."""
    image = Image.new("L", (200, 200), 255)
    ImageDraw.Draw(image).ellipse((10, 5, 190, 195), outline=0, width=38)
    assert load(image)[11:17, 11:17].max() < 0.1


def test_tiny_picture(load):
    assert_mnist_form(load(drawing(size=(8, 8), at=(1, 1), height=5, pen=1)))


# Several digits

ROWS = [("7", 100, 100), ("5", 300, 120), ("1", 500, 90), ("5", 150, 500), ("7", 420, 480)]


def test_several_digits_come_in_reading_order_each_with_its_box(find):
    images, boxes, rows = find(page(*ROWS[::-1]))
    assert images.dtype == np.float32 and images.shape == (5, 28, 28, 1)
    assert rows.tolist() == [0, 0, 0, 1, 1]
    for image, box, (name, x, y) in zip(images, boxes, ROWS):
        assert_mnist_form(image)
        (alone,), (own,), _ = find(page((name, x, y)))
        assert close(image, alone)
        assert np.abs(box - own).max() <= 2 and abs(box[1] - y) < 8 and abs(box[3] - y - 100) < 8
        assert box.dtype.kind == "i" and x - 8 < box[0] < box[2] < x + 75


def test_boxes_are_in_pixels_of_the_whole_upright_picture(find):
    """Of a large photograph that a telephone has saved lying on its side."""
    upright = page(*ROWS).resize((2400, 1800))
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to the right to show"
    (seven, *_), boxes, rows = find(upright.rotate(90, expand=True), "a.jpg", exif=exif)
    (same_seven, *_), same_boxes, same_rows = find(page(*ROWS))
    assert np.abs(boxes - 2 * same_boxes).max() <= 8 and rows.tolist() == same_rows.tolist()
    assert close(seven, same_seven)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_pixels_are_taken_as_a_file_is(mode, find):
    image = page(*ROWS, size=(900, 700))
    for got, expected in zip(find_digits(np.asarray(image.convert(mode))), find(image), strict=True):
        assert np.array_equal(got, expected)


def test_a_slanted_row_is_one_row(find):
    slanted = [(name, 100 + 150 * i, y + 20 * i) for name, y in (("7", 100), ("1", 400)) for i in range(6)]
    _, boxes, rows = find(page(*slanted))
    assert rows.tolist() == [0] * 6 + [1] * 6
    assert (np.diff(boxes[:6, 0]) > 0).all() and (np.diff(boxes[6:, 0]) > 0).all()


def test_a_row_in_a_deep_shadow_is_found_as_the_one_in_the_light(find):
    pixels = np.asarray(page(*ROWS)).clip(40, 230) * np.repeat([[1], [0.35]], 450, axis=0)
    _, boxes, _ = find(Image.fromarray(pixels.astype(np.uint8)))
    assert boxes == pytest.approx(find(page(*ROWS))[1], abs=3)


def test_rows_are_told_apart_in_whatever_order_the_boxes_come():
    boxes = np.array([(40, 200, 60, 280), (0, 10, 20, 80), (90, 190, 120, 270), (30, 0, 60, 90)])
    order, rows = reading_order(boxes)
    assert order.tolist() == [1, 3, 0, 2] and rows.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "digits, box",
    [
        (ROWS, (1000, 780, 1040, 900)),
        (ROWS, (1000, 780, 1040, 897)),
        (ROWS[:1], (200, 700, 900, 708)),
        (ROWS, (100, 320, 900, 328)),
        (ROWS, (600, 300, 780, 356)),
    ],
    ids=["strip at the border", "strip 2 pixels from it", "line", "line between rows", "flat frame"],
)
def test_what_else_lies_on_a_page_is_no_digit(digits, box, find):
    image = page(*digits)
    ImageDraw.Draw(image).rectangle(box, outline=0, width=8)
    found, alone = find(image)[1], find(page(*digits))[1]
    assert found.shape == alone.shape and np.abs(found - alone).max() <= 2


def test_strokes_a_pixel_apart_stay_apart():
    """The rim around one of them doesn't cover another, whose label would be lost."""
    alone = np.full((3, 40, 40), 255, np.uint8)
    for picture, x, top in zip(alone, (10, 12, 14), (12, 10, 12)):
        picture[top : top + 8, x] = 0
    for image, picture in zip(find_digits(alone.min(axis=0))[0], alone, strict=True):
        assert np.array_equal(image, find_digits(picture)[0][0])


@pytest.mark.parametrize(
    "shapes, boxes",
    [
        ([("broken 7", 600, 400)], [(596, 396, 670, 500)]),
        ([("broken 3", 600, 400)], [(600, 396, 698, 501)]),
        ([("far bar", 600, 400)], [(600, 396, 670, 514)]),
        ([("/", 600, 400), ("/", 640, 400)], [(596, 400, 644, 500), (636, 400, 684, 500)]),
        ([("7", 600, 400), ("7", 610, 540)], [(600, 396, 664, 500), (610, 536, 674, 640)]),
    ],
    ids=[
        "strokes side by side",
        "one above the other",
        "a bar farther off",
        "a digit leans over the next",
        "a row close below",
    ],
)
def test_strokes_of_one_digit_are_joined_and_digits_are_not(shapes, boxes, find):
    assert find(page(*shapes))[1] == pytest.approx(np.array(boxes), abs=5)


def test_a_digit_at_the_border_is_whole_if_only_a_part_of_it_touches(find):
    (image,), _, _ = find(page(("5", 0, 100)))
    (inside,), _, _ = find(page(("5", 300, 100)))
    assert close(image, inside)


def test_specks_dashes_and_columns_of_dots_are_no_digits(find):
    column = [(".", 1000, y) for y in (120, 145, 170)]
    _, boxes, _ = find(page(*ROWS, (".", 250, 140), ("-", 620, 100), (".", 900, 700), *column))
    assert len(boxes) == 5


# Nothing to find


@pytest.mark.parametrize("side", [1, 28, 300])
def test_a_page_without_ink_is_refused(find, side):
    noise = np.random.default_rng(0).normal(0, 5, (side, side))
    pages = [np.full((side, side), 255), np.zeros((side, side)), 180 + noise, np.zeros((side, side, 4))]
    if side > 28:  # at 28 pixels a gradient could be a broad stroke, and a line a 1
        y, x = np.mgrid[:side, :side] / side
        lines = np.full((side, side), 230)
        lines[20 :: side // 10] = 150
        pages += [120 + 80 * x, 120 + 80 * (x + y > 0.9), lines, np.minimum(lines, lines.T)]
    for pixels in pages:
        with pytest.raises(InputError, match="a.png: no digit found in it; digits must be"):
            find(Image.fromarray(pixels.astype(np.uint8)))


def test_files_that_are_no_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    drawing().save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:300])
    Path("text.png").write_text("hello")
    Path("empty.png").touch()
    Path("photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    unreadable = ("cut.png", "text.png", "empty.png", "photo.heic")
    messages = dict.fromkeys(unreadable, "not a picture .*; export it as JPEG")
    messages |= {"none.png": "no such file", "folder": "is a folder; name the pictures in it"}
    for name, message in messages.items():
        with pytest.raises(InputError, match=f"^{name}: {message}"):
            find_digits(name)


def test_a_picture_that_is_a_program_is_not_run(tmp_path, monkeypatch):
    """Pillow has Ghostscript run PostScript, whatever the file's name."""
    ran, path = [], tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n%%EndComments\nshowpage\n%%EOF\n")
    result = Image.new("RGB", (90, 90)).im
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **options: ran.append(args) or result)
    Image.open(path).load()
    assert ran, "it would run"
    ran.clear()
    with pytest.raises(InputError, match="a.png: not a picture .*a program"):
        find_digits(path)
    assert not ran


@pytest.mark.parametrize(
    "name, options, largest, larger",
    [
        ("a.png", {}, (5000, 4000), (5001, 4000)),
        ("a.jpg", {"progressive": True}, (5000, 4000), (5001, 4000)),
        ("a.jpg", {}, (30_000, 4000), (60_000, 1999)),
    ],
    ids=["png", "progressive", "jpg"],
)
def test_what_would_take_too_much_memory_is_refused(name, options, largest, larger, tmp_path):
    """A JPEG that isn't progressive can be decoded at a reduced size, unless it is too narrow for that."""
    for size, words in ((largest, "no digit found"), (larger, "too many megapixels")):
        Image.new("L", size).save(tmp_path / name, **options)
        with pytest.raises(InputError, match=f"{name}: .*{words}"):
            find_digits(tmp_path / name)


# Each in a process of its own, started from a small one: Linux counts what a child shares with a large one.
LARGEST = """
import resource, subprocess, sys
code = "import sys; from load_data import find_digits; find_digits(sys.argv[1])"
subprocess.run([sys.executable, "-c", code, sys.argv[1]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10))
"""


@posix
@pytest.mark.slow
@pytest.mark.parametrize("name, size", [("a.png", (5000, 4000)), ("a.jpg", (12_000, 9000))])
def test_the_largest_pictures_stay_below_1_gib(name, size, tmp_path):
    """A PNG of 20 and a JPEG of 108 megapixels, as telephones take them."""
    page(*ROWS).convert("RGB").resize(size).save(tmp_path / name)
    done = python("-c", LARGEST, name, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert 100 < int(done.stdout) < 1024


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.bmp", "a.webp", "a.tiff"])
def test_fuzzed_pictures_raise_input_error_or_give_images(tmp_path, name):
    """100 damaged copies of each format. Found: nothing that passed the function's own error."""
    drawing(size=(60, 80), at=(12, 18), height=40, pen=4).save(tmp_path / name)
    for damaged in mutations((tmp_path / name).read_bytes(), 100, seed=0):
        (tmp_path / name).write_bytes(damaged)
        try:
            images, boxes, rows = find_digits(tmp_path / name)
        except InputError:
            continue
        assert images.dtype == np.float32 and images.shape == (len(boxes), 28, 28, 1) and len(rows) == len(boxes)
        assert np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1


# How many are read right


@pytest.fixture(scope="session")
def mnist_network(mnist, tmp_path_factory):
    """The network after two epochs on the real MNIST, and the test images."""
    path = tmp_path_factory.mktemp("mnist") / "mnist.h5"
    train_model(mnist, epochs=2, model=path)
    _, _, X_test, y_test = load_data(mnist)
    network, _ = evaluate_model.load_model(model=path)
    return network, X_test, y_test


@pytest.mark.slow
def test_hundreds_of_pictures_as_people_make_them(mnist_network):
    """The figures for each kind, of the default 10 epochs: `python tests/pictures.py`."""
    counts = pictures.measure(*mnist_network, per_kind=8)
    groups = [(pictures.DRAWN, 0.96), (pictures.PAPER, 0.92), (pictures.PAGES, 0.7), (pictures.BLANK, 0.85)]
    for kinds, least in groups:
        right, usual, n = np.sum([counts[kind] for kind in kinds], axis=0)
        assert right / n >= least, counts
        assert usual / n < 0.8, "the usual way is no better"


@pytest.mark.slow
@pytest.mark.parametrize("invert", [False, True])
def test_mnist_itself_survives_the_round_trip(mnist_network, tmp_path, invert):
    network, X_test, y_test = mnist_network
    X, truth = X_test[::10], y_test[::10].argmax(axis=1)
    right = (network.predict(X, verbose=0).argmax(axis=1) == truth).sum()
    right_back = 0
    for pixels, label in zip(np.rint(255 * X[..., 0]).astype(np.uint8), truth):
        Image.fromarray(255 - pixels if invert else pixels).save(tmp_path / "a.png")
        right_back += pictures.read(network, tmp_path / "a.png") == str(label)
    assert right_back >= 0.98 * right


def test_photographs_in_a_folder_are_counted(tmp_path, digits_model, end_of):
    drawing().save(tmp_path / "mine_7.png")
    page(*ROWS).save(tmp_path / "page_12345.png")
    Image.new("L", (300, 300), 255).save(tmp_path / "blank_3.png")
    (tmp_path / "README.md").write_text("no picture")
    end = end_of(pictures, "--photos", tmp_path, "--model", digits_model[0])
    assert end.code == 0
    lines = end.out.splitlines()
    assert lines[0] == "WRONG  blank_3.png: no digit found" and lines[1].split()[1] == "mine_7.png:"
    assert lines[2].startswith("WRONG  page_12345.png: ") and lines[4] == "several digits: 0 of 1 read right"
    assert lines[3].startswith("one digit: ") and " of 2 read right, the usual way " in lines[3]


@pytest.mark.parametrize(
    "args, words", [(("--photos", "none"), "none: no such folder"), (("--model", "none.h5"), "none.h5: no such model")]
)
def test_what_the_count_lacks_is_one_line(args, words, digits_model, end_of):
    assert_one_line(end_of(pictures, "--model", digits_model[0], *args).code, f"error: {words}")
