"""What load_image() promises: a user's own picture, whatever its form, comes out as MNIST's digits look."""

import keras
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pictures import PAINT, PHOTO, measure
from scipy import ndimage
from test_strangers import mutations

import evaluate_model
from load_data import InputError, load_data, load_image, run
from train_model import train_model


def drawing(ink=0, paper=255, size=(300, 400), at=(60, 90), height=200, pen=20, mode="L"):
    """Return a PIL picture of a 7 drawn with straight lines."""
    image = Image.new(mode, size, paper)
    x, y = at
    points = [(x, y), (x + height * 0.6, y), (x + height * 0.2, y + height)]
    ImageDraw.Draw(image).line(points, fill=ink, width=pen, joint="curve")
    return image


@pytest.fixture
def load(tmp_path):
    """Return a function that saves a picture, as PNG if not told otherwise, and loads it again."""

    def save_and_load(image, name="a.png", **options):
        image.save(tmp_path / name, **options)
        return load_image(tmp_path / name)

    return save_and_load


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


def test_form_and_proportions(load):
    image = load(drawing())
    assert not close(image, image[:, ::-1]) and not close(image, 1 - image), "what the other tests rely on"
    assert_mnist_form(image)
    rows, columns = np.nonzero(image[..., 0] > 0.2)
    assert (np.ptp(columns) + 1) / (np.ptp(rows) + 1) == pytest.approx(0.64, abs=0.1), "aspect ratio kept"
    assert image[:14].sum() > image[14:].sum(), "a 7 has its bar on top: neither turned nor mirrored"
    assert len(np.unique(image)) > 20, "anti-aliased"


@pytest.mark.parametrize(
    "other",
    [
        drawing(255, 0),
        drawing(40, 120),
        drawing((200, 30, 30), (255, 255, 240), mode="RGB"),
        drawing((250, 240, 60), (20, 30, 120), mode="RGB"),
        drawing(at=(100, 180)),
        drawing(size=(1500, 900), at=(20, 10)),
        drawing(size=(3000, 4000), at=(600, 900), height=2000, pen=200),
        drawing().convert("1"),
        drawing().convert("P"),
        drawing().convert("LA"),
        drawing().convert("CMYK").convert("RGB"),
        Image.fromarray(np.asarray(drawing()).astype(np.uint16) * 257),
        Image.fromarray(np.asarray(drawing()).astype(np.uint16) * 4),
    ],
    ids="inverted low_contrast red_on_cream yellow_on_blue moved wide large 1-bit palette alpha cmyk 16-bit 10-bit".split(),
)
def test_colours_size_and_place_make_no_difference(load, other):
    assert close(load(other), load(drawing()))


@pytest.mark.parametrize("shade", [0, 255, 120])
def test_transparent_is_paper_whatever_the_ink(load, shade):
    image = Image.new("LA", (300, 400), (shade, 0))
    image.putalpha(drawing(255, 0))
    assert close(load(image), load(drawing()))


@pytest.mark.parametrize("name", ["a.jpg", "a.bmp", "a.gif", "a.webp", "a.tiff"])
def test_file_formats(load, name):
    assert close(load(drawing(), name), load(drawing()))


def test_exif_rotation_is_undone(load):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to the right to show"
    assert close(load(drawing().rotate(90, expand=True), "a.jpg", exif=exif), load(drawing()))


def test_first_frame_of_an_animation(load):
    frames = [drawing(at=(20, 20), height=40)]
    assert close(load(drawing(), "a.gif", save_all=True, append_images=frames), load(drawing()))


def test_uneven_light_noise_and_specks(load):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:400, :300]
    light = 0.5 + 0.4 * x / 300 - 0.2 * (y > 220)  # a gradient, and the edge of a shadow across the digit
    photo = np.asarray(drawing(60, 230)) * light + rng.normal(0, 4, light.shape)
    photo[20:23, 20:23] = 0
    image = load(Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)), "a.jpg", quality=60)
    assert close(image, load(drawing()))


def test_thin_lines_become_as_thick_as_mnists(load):
    width = lambda image: image.sum() / 32  # the 7's lines are about 32 pixels long
    thin, thick = width(load(drawing(pen=1))), width(load(drawing(pen=20)))
    assert 1.5 < thin < 3 and 1.5 < thick < 3


def test_digit_in_two_parts_stays_whole(load):
    image = drawing()
    ImageDraw.Draw(image).line([(90, 190), (170, 190)], fill=0, width=20)
    ImageDraw.Draw(image).rectangle([112, 150, 200, 165], fill=255)  # a gap in the stem
    assert load(image)[20:].sum() > 5, "the part below the gap is there"


def test_tiny_picture_and_a_digit_at_the_border(load):
    assert_mnist_form(load(drawing(size=(8, 8), at=(1, 1), height=5, pen=1)))
    assert_mnist_form(load(drawing(size=(140, 220), at=(8, 8))))


@pytest.mark.parametrize("side", [28, 300])
def test_a_page_without_ink_is_refused(load, side):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    pages = [np.full((side, side), 255), np.zeros((side, side)), 180 + rng.normal(0, 5, (side, side))]
    pages += [120 + 80 * x] if side > 28 else []  # at this size a gradient could be a broad stroke
    for page in pages:
        with pytest.raises(InputError, match="no digit found"):
            load(Image.fromarray(page.astype(np.uint8)))
    with pytest.raises(InputError, match="no digit found"):
        load(Image.new("RGBA", (side, side)))


def test_files_that_are_no_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    drawing().save("whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    for name, words in (("none.png", "no such file"), ("folder", "no such file"), ("text.png", "not a picture"),
                        ("empty.png", "not a picture"), ("cut.png", "not a picture")):  # fmt: skip
        with pytest.raises(InputError, match=f"^{name}: {words}"):
            load_image(name)


def test_decompression_bomb_is_an_error_not_a_warning(load, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 400 - 1)
    with pytest.raises(InputError, match="a.png: not a picture that can be read .*bomb"):
        load(drawing())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.bmp", "a.webp", "a.tiff"])
def test_fuzzed_pictures_raise_input_error_or_give_an_image(tmp_path, name):
    """200 damaged copies of each format. Found: nothing that passed load_image's own error."""
    drawing(size=(60, 80), at=(12, 18), height=40, pen=4).save(tmp_path / name)
    for damaged in mutations((tmp_path / name).read_bytes(), 200, seed=0):
        (tmp_path / name).write_bytes(damaged)
        try:
            image = load_image(tmp_path / name)
        except InputError:
            continue
        assert image.dtype == np.float32 and image.shape == (28, 28, 1)
        assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1


def answers(capsys, monkeypatch, *args):
    """Run evaluate_model.py in this process; return its exit status, output and errors."""
    monkeypatch.setattr("sys.argv", ["evaluate_model.py", *map(str, args)])
    try:
        run(evaluate_model.main)
        status = 0
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_one_line_a_picture_and_status_1_if_one_was_bad(tmp_path, digits_model, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawing().save("my $seven_$ 100%.png")
    (tmp_path / "text.png").write_text("hello")
    model = digits_model[0]
    status, out, error = answers(
        capsys, monkeypatch, "--model", model, "text.png", "my $seven_$ 100%.png", "none.png"
    )
    assert status == 1
    lines = out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("Saved ") and lines[1].endswith("_predictions.png")
    network = keras.models.load_model(model, compile=False)
    seen = network.predict(load_image("my $seven_$ 100%.png")[np.newaxis], verbose=0)[0]
    best, runner_up = 100 * np.sort(seen)[:-3:-1]
    assert parse(lines[0], "my $seven_$ 100%.png") == (
        seen.argmax(),
        pytest.approx(best, abs=0.02),
        pytest.approx(runner_up, abs=0.02),
    )
    assert [line.split(": ")[:2] for line in error.splitlines()] == [
        ["error", "text.png"],
        ["error", "none.png"],
    ]
    assert model.with_name(f"{model.stem}_predictions.png").read_bytes().startswith(b"\x89PNG")
    status, out, error = answers(capsys, monkeypatch, "--model", model, "my $seven_$ 100%.png")
    assert (status, error) == (0, "")
    assert answers(capsys, monkeypatch, "--model", model, "none.png")[:2] == (1, "")


def parse(line, name):
    """Return the digit, its percentage and the runner-up's of a line like `a.png: 7 (99.87 %, next 1 with 0.08 %)`."""
    assert line.startswith(f"{name}: ")
    digit, first, _, _, _, _, second, _ = (
        line.removeprefix(f"{name}: ").replace("(", "").replace(")", "").split()
    )
    return int(digit), float(first), float(second)


@pytest.fixture(scope="session")
def mnist_network(mnist, tmp_path_factory):
    """The network after two epochs on the real MNIST, and the test images."""
    path = tmp_path_factory.mktemp("mnist") / "mnist.h5"
    train_model(mnist, epochs=2, model=path)
    _, _, X_test, y_test = load_data(mnist)
    return evaluate_model.load_model(path), X_test, y_test


@pytest.mark.slow
def test_a_thousand_pictures_as_people_make_them(mnist_network):
    """The figures for each kind, of the default 10 epochs: `python tests/pictures.py`."""
    network, X_test, y_test = mnist_network
    counts = measure(network, X_test, y_test, per_kind=48)
    for kinds, least in ((PAINT, 0.97), (PHOTO, 0.95)):
        right, usual, pictures = np.sum([counts[kind] for kind in kinds], axis=0)
        assert right / pictures >= least, counts
        assert usual / pictures < 0.8, "the usual way is no better"
    assert sum(n for _, _, n in counts.values()) >= 1000


@pytest.mark.slow
@pytest.mark.parametrize("invert", [False, True])
def test_mnist_itself_survives_the_round_trip(mnist_network, tmp_path, invert):
    network, X_test, y_test = mnist_network
    some = slice(None, None, 5)
    X, truth = X_test[some], y_test[some].argmax(axis=1)
    back = []
    for pixels in np.rint(255 * X[..., 0]).astype(np.uint8):
        Image.fromarray(255 - pixels if invert else pixels).save(tmp_path / "a.png")
        back.append(load_image(tmp_path / "a.png"))
    right = [
        (network.predict(images, verbose=0).argmax(axis=1) == truth).sum() for images in (X, np.stack(back))
    ]
    assert right[1] >= 0.99 * right[0]
