"""What evaluate_model.py promises: figures that agree with a count by hand, pictures read, a window to draw in."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT, assert_one_line, build_small_network, posix
from keras import layers
from matplotlib.backend_bases import KeyEvent, MouseEvent
from PIL import Image, ImageDraw
from scipy.stats import norm

import evaluate_model as module
from build_model import build_model
from evaluate_model import describe, draw_confusion_matrix, drawing_window, evaluate_model, load_model
from load_data import InputError, find_digits, load_data

MY_DIGIT = ROOT / ".github" / "images" / "my_digit.png"  # a 7


def save(path, *stack, shape=(28, 28, 1)):
    keras.Sequential([keras.Input(shape), layers.Flatten(), *stack]).save(path)
    return path


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    """Path of a model that reads clear digits: it answers with the nearest of the ten mean images of `digits`."""
    X, y, _, _ = load_data("digits")
    means = y.T @ X.reshape(len(X), -1) / y.sum(axis=0)[:, np.newaxis]
    network = build_small_network()
    network.set_weights([1.2 * means.T, -0.6 * (means**2).sum(axis=1)])
    path = tmp_path_factory.mktemp("reader") / "reader.h5"
    network.save(path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch, reader):
    """The current folder, with a copy of `reader` as m.h5."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(reader, "m.h5")
    return tmp_path


@pytest.fixture
def saved(monkeypatch):
    """A list that takes the figures in place of their files, which stay empty."""
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: figures.append(figure))
    return figures


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


# The test images


def test_figures_agree_with_a_count_by_hand(digits_model, capsys):
    path, history = digits_model
    result = evaluate_model("digits", model=path)
    printed = capsys.readouterr().out
    _, _, X_test, y_test = load_data("digits")
    network = keras.models.load_model(path, compile=False)
    matrix, log_loss = np.zeros((10, 10), int), 0.0
    for probabilities, label in zip(network(X_test).numpy().astype(float), y_test):
        matrix[np.argmax(label), np.argmax(probabilities)] += 1
        log_loss -= np.log(probabilities[np.argmax(label)])
    n, hits = len(X_test), int(np.trace(matrix))
    assert n == 297
    assert np.array_equal(result["confusion_matrix"], matrix)
    assert result["accuracy"] == hits / n
    assert result["loss"] == pytest.approx(log_loss / n, rel=1e-4)
    # Wilson's interval, from its formula.
    z, p = norm.ppf(0.975), hits / n
    middle = (p + z * z / 2 / n) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    assert f"Test loss: {log_loss / n:.4f}\n" in printed
    assert f"Test accuracy: {p:.4f} (95 % interval {middle - half:.4f} to {middle + half:.4f})\n" in printed
    # The report's lines: precision, recall, F1 score and number of images of each class.
    for digit in range(10):
        hits, row, column = matrix[digit, digit], matrix[digit].sum(), matrix[:, digit].sum()
        precision, recall = hits / max(1, column), hits / row
        f1 = 2 * precision * recall / (precision + recall)
        line = rf"^ +{digit} +{precision:.4f} +{recall:.4f} +{f1:.4f} +{row}$"
        assert re.search(line, printed, re.MULTILINE), line
    # Both equal the last validation figures of the training.
    assert result["accuracy"] == pytest.approx(history["val_accuracy"][-1], abs=1e-6)
    assert result["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-4)
    for name in ("confusion_matrix", "mistakes"):
        png = path.with_name(f"{path.stem}_{name}.png")
        assert f"Saved {png}" in printed
        assert png.read_bytes().startswith(b"\x89PNG") and png.read_bytes().endswith(b"IEND\xaeB`\x82")


def test_one_forward_pass_over_each_image(reader, monkeypatch, saved):
    network, path = load_model("digits", reader)
    sizes = []

    def predict(images, **options):
        sizes.append(len(images))
        return network.predict(images, **options)

    # A network that can predict, and nothing else.
    monkeypatch.setattr(module, "load_model", lambda *args: (SimpleNamespace(predict=predict), path))
    evaluate_model("digits", model=reader)
    assert sizes == [297]


def test_confusion_matrix_has_true_by_row_every_count_and_colours_of_the_errors():
    matrix = np.arange(100).reshape(10, 10)
    ax = draw_confusion_matrix(matrix).axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Predicted", "True")
    shown = {text.get_position(): text.get_text() for text in ax.texts}
    assert shown == {(x + 0.5, y + 0.5): str(matrix[y, x]) for y in range(10) for x in range(10)}
    labels = ax.get_yticklabels()
    assert [label.get_text() for label in labels] == [str(digit) for digit in range(10)]
    assert {label.get_rotation() for label in labels} == {0} and ax.yaxis_inverted(), "upright, row 0 on top"
    (colours,) = ax.collections  # one heatmap
    errors = matrix * (1 - np.eye(10, dtype=int))
    assert np.array_equal(np.reshape(colours.get_array(), (10, 10)), errors)


def test_the_surest_mistakes_are_drawn_and_all_are_counted(tmp_path, arrays, saved, capsys):
    keras.utils.set_random_seed(0)
    network = build_small_network()
    network.save(tmp_path / "m.h5")
    X = np.random.default_rng(0).integers(0, 256, (53, 28, 28), np.uint8)
    probabilities = network.predict(X[..., np.newaxis] / np.float32(255), verbose=0)
    read, sureness = probabilities.argmax(axis=1), probabilities.max(axis=1)
    true = np.where(np.arange(53) < 5, read, (read + 1) % 10)
    np.savez(tmp_path / "data.npz", **arrays | {"x_test": X, "y_test": true})
    evaluate_model(tmp_path / "data.npz", model=tmp_path / "m.h5")
    assert f"Saved {tmp_path / 'm_mistakes.png'} (the 36 surest of 48 mistakes)\n" in capsys.readouterr().out
    figure = saved[-1]
    assert figure.get_suptitle() == "The 36 surest of 48 mistakes"
    expected = sorted(range(5, 53), key=lambda i: -sureness[i])[:36]
    axes = [ax for ax in figure.axes if ax.images]
    titles = [f"{true[i]} read as {read[i]}\n{100 * sureness[i]:.1f} %" for i in expected]
    assert [ax.get_title() for ax in axes] == titles
    assert np.allclose([ax.images[0].get_array() for ax in axes], X[expected] / 255)


@pytest.mark.parametrize("label, accuracy", [(7, 1.0), (3, 0.0)])
def test_images_that_are_all_right_or_all_wrong(label, accuracy, tmp_path, arrays, saved, capsys):
    """A network whose answer is always 7, and any of the right shapes is welcome; nine classes have no images."""
    network = build_small_network()
    network.set_weights([np.zeros((784, 10)), 9.0 * (np.arange(10) == 7)])
    network.save(tmp_path / "seven.h5")
    arrays["y_test"][:] = label
    np.savez(tmp_path / "data.npz", **arrays)
    result = evaluate_model(tmp_path / "data.npz", model=tmp_path / "seven.h5")
    assert result["accuracy"] == accuracy and result["confusion_matrix"].shape == (10, 10)
    assert result["confusion_matrix"][label, 7] == result["confusion_matrix"].sum() == 20
    printed = capsys.readouterr().out
    assert re.search(r"^ +5 +0\.0000 +0\.0000 +0\.0000 +0(\.0)?$", printed, re.MULTILINE)
    assert ("No mistakes to draw" in printed) == (accuracy == 1.0) == (len(saved) == 1)


# Models and data that aren't there or can't be used. What an attacker would think of is in test_strangers.py.


@pytest.mark.parametrize(
    "data, model, advice",
    [
        ("mnist", None, "python train_model.py"),
        ("digits", None, "python train_model.py --data digits"),
        ("digits", "a.h5", "python train_model.py --data digits --model a.h5"),
        ("my data.npz", None, "python train_model.py --data 'my data.npz'"),
        ("my data.npz", "folder/a b.h5", "python train_model.py --data 'my data.npz' --model 'folder/a b.h5'"),
    ],
)
def test_no_model_says_how_to_train_one(data, model, advice, here):
    Path("my data.npz").touch()
    path = Path(model or f"{Path(data).stem}_classification_model.h5")
    there = "none" if "folder" in path.parts else "m.h5"
    with pytest.raises(InputError) as error:
        load_model(data, model)
    assert str(error.value) == f"{path}: no such model; train one first: {advice} (models there: {there})"


@pytest.mark.parametrize(
    "model, words",
    [
        ("none.h5", "none.h5: no such model"),
        ("folder.h5", "folder.h5: no such model"),
        ("m", "the model's name must end in"),
    ],
)
def test_no_model_is_said_before_the_data_is_loaded(model, words, here, monkeypatch):
    Path("folder.h5").mkdir()
    monkeypatch.setattr(module, "load_data", lambda data: pytest.fail("MNIST was downloaded first"))
    with pytest.raises(InputError, match=words):
        evaluate_model(model=model)


@pytest.mark.parametrize("shape, classes, words", [((14, 14, 1), 10, "(None, 14, 14, 1)"), ((28, 28, 1), 5, "5")])
def test_models_for_other_images_or_classes_are_refused(tmp_path, shape, classes, words):
    path = save(tmp_path / "other.h5", layers.Dense(classes, activation="softmax"), shape=shape)
    with pytest.raises(InputError, match=rf"other\.h5: input and output are .*{re.escape(words)}.*; expected"):
        load_model(model=path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value, tmp_path, npz, end_of):
    """A ReLU swallows the NaN on some processors, and the figures would look good."""
    network = build_model()
    network.layers[0].kernel.assign(np.where(np.arange(288).reshape(3, 3, 1, 32), network.layers[0].kernel, value))
    network.save(tmp_path / "m.h5")
    end = end_of(module, "--data", npz, "--model", tmp_path / "m.h5")
    assert_one_line(end.code, "m.h5: not a Keras model that can be used (not all of its weights are finite numbers)")
    assert end.out == ""


@pytest.mark.parametrize(
    "activation, weight", [("linear", -1), ("sigmoid", 0), ("relu", 0), ("linear", 0.2), ("softmax", 3e38)]
)
def test_outputs_that_are_no_probabilities_are_not_scored(activation, weight, tmp_path, npz, end_of):
    """Negative, a sum of 5, of 0, of another number for each image, and NaN from weights that are finite."""
    constant = keras.initializers.Constant(weight)
    dense = layers.Dense(10, activation=activation, kernel_initializer=constant)
    path = save(tmp_path / "m.h5", dense)
    for args in (("--data", npz), (MY_DIGIT,)):
        end = end_of(module, "--model", path, *args)
        assert_one_line(end.code, f"error: {path}: its outputs are not probabilities")
        assert "accuracy" not in end.out and not list(tmp_path.glob("*.png"))


# Pictures of one's own


def shape(digit, x, y):
    """Return the points of a 7, 1 or 0, about 200 pixels high, with the left upper corner at x, y."""
    turn = np.linspace(0, 2 * np.pi, 20)
    points = {
        7: [(0, 0), (110, 0), (50, 200)],
        1: [(10, 0), (25, 210)],
        0: np.stack([60 + 60 * np.cos(turn), 100 + 100 * np.sin(turn)], axis=1),
    }
    return [(x + float(across), y + float(down)) for across, down in points[digit]]


def draw_page(path, *places, size=(480, 360), ink="black", paper="white"):
    """Save a picture of digits, each given as (digit, x, y), and return its path."""
    picture = Image.new("RGBA", size, paper)
    for place in places:
        ImageDraw.Draw(picture).line(shape(*place), fill=ink, width=14, joint="curve")
    picture.save(path)
    return path


@pytest.mark.parametrize(
    "percents, rows, text",
    [
        ([{7: 99.87, 1: 0.08, 2: 0.05}], [0], "7 (99.87 %, then 1: 0.08 %)"),
        ([{7: 79.99, 1: 20.01}], [0], "7? (79.99 %, then 1: 20.01 %)"),
        ([{0: 100}, {0: 100}, {2: 91.2, 3: 8.8}], [0, 0, 0], "002 (least sure: 2, 91.20 %)"),
        ([{1: 99}, {2: 98}, {3: 88}, {4: 97}], [0, 0, 1, 1], "12 34 (least sure: 3, 88.00 %)"),
        ([{6: 99}, {2: 71.2, 9: 28.8}, {4: 90}], [0, 1, 2], "6 2? 4 (least sure: 2, 71.20 %)"),
    ],
)
def test_what_is_printed_of_a_picture(percents, rows, text):
    probabilities = [[image.get(digit, 0) / 100 for digit in range(10)] for image in percents]
    assert describe(np.float32(probabilities), np.array(rows)) == text


def test_a_line_for_each_picture_with_the_networks_own_probabilities(here, end_of):
    draw_page("page.png", (7, 40, 30), (1, 200, 40), (0, 300, 35), (0, 60, 300), (1, 200, 320), size=(480, 600))
    end = end_of(module, "--model", "m.h5", MY_DIGIT, "page.png")
    assert (end.code, end.err) == (0, "")
    one, several, saved = end.out.splitlines()
    network = keras.models.load_model("m.h5", compile=False)
    first, second = np.sort(network.predict(find_digits(MY_DIGIT)[0], verbose=0)[0])[:-3:-1]
    assert re.sub(r"\d:", "n:", one) == f"{MY_DIGIT}: 7 ({100 * first:.2f} %, then n: {100 * second:.2f} %)"
    least = network.predict(find_digits("page.png")[0], verbose=0).max(axis=1).min()
    assert re.sub(r"sure: \d", "sure: n", several) == f"page.png: 710 01 (least sure: n, {100 * least:.2f} %)"
    assert saved == "Saved m_predictions.png" and Path("m_predictions.png").read_bytes().startswith(b"\x89PNG")
    returned = module.read_pictures([MY_DIGIT, "page.png"], model="m.h5")
    assert [(path, len(probabilities)) for path, probabilities in returned] == [(MY_DIGIT, 1), ("page.png", 5)]


def test_bad_pictures_get_a_line_each_and_the_others_are_read(here, end_of, saved):
    """What else find_digits() refuses, and in which words, is in test_find_digits.py."""
    Path("text.png").write_text("hello")
    Image.new("L", (300, 300), 255).save("blank.png")
    end = end_of(module, "--model", "m.h5", "text.png", MY_DIGIT, "blank.png")
    assert end.code == 1 and end.out.startswith(f"{MY_DIGIT}: 7 (") and len(end.out.splitlines()) == 2
    text, blank = end.err.splitlines()
    assert text.startswith("error: text.png: not a picture")
    assert blank.startswith("error: blank.png: no digit found")
    assert end_of(module, "--model", "m.h5", "text.png", "blank.png") == (1, "", end.err)
    assert len(saved) == 1, "nothing to draw the second time"


def test_a_picture_is_decoded_once_and_may_vanish_then(here, monkeypatch, end_of):
    draw_page("a.png", (7, 40, 30))
    opened, real = [], Image.open

    def find_and_remove(*args, **options):
        Path("a.png").unlink()
        return find_digits(*args, **options)

    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(args) or real(*args, **options))
    monkeypatch.setattr(module, "find_digits", find_and_remove)
    end = end_of(module, "--model", "m.h5", "a.png")
    assert (end.code, end.err, len(opened)) == (0, "", 1)


@pytest.mark.parametrize(
    "name, shown",
    [
        *((name, name) for name in ("my $seven_$ 100%.png", "$\\frac{.png", "数字 😀 שלום.png", "x" * 200 + ".png")),
        pytest.param("a\nb\x1b[31m.png", "a?b?[31m.png", marks=posix),
        pytest.param("\udcff.png", "?.png", marks=posix),
    ],
    ids=ascii,
)
def test_odd_file_names_are_shown_and_no_failure(name, shown, here, end_of, recwarn):
    shutil.copy(MY_DIGIT, name)
    end = end_of(module, "--model", "m.h5", name)
    assert (end.code, end.err) == (0, "") and end.out.startswith(f"{shown}: 7 (")
    assert not recwarn.list  # it would be a line on stderr


def test_models_of_digits_are_not_meant_for_pictures(here, end_of, saved):
    shutil.copy("m.h5", "digits_classification_model.h5")
    for args in (
        ["--data", "digits"],
        ["--data", "digits", "--model", "m.h5"],
        ["--model", "digits_classification_model.h5"],
    ):
        end = end_of(module, *args, MY_DIGIT)
        assert end.code == 0 and end.out.startswith(f"{MY_DIGIT}: 7 (")
        assert end.err.startswith("note: a model trained on digits ") and end.err.count("\n") == 1
    shutil.copy("m.h5", "digits_v2.h5")  # anybody's digits
    assert end_of(module, "--model", "digits_v2.h5", MY_DIGIT).err == ""


def test_the_figure_shows_what_was_found_where_and_what_the_network_saw(here, end_of, saved):
    white = draw_page("white on nothing.png", (7, 40, 30), ink="white", paper=(0, 0, 0, 0))
    page = draw_page("page" * 9 + ".png", (7, 40, 30), (1, 200, 40), (0, 300, 35))
    assert end_of(module, "--model", "m.h5", white, page).code == 0
    cells = saved[0].subfigs
    assert [cell.get_suptitle() for cell in cells] == [white, "pagepagepagepagepa…agepage.png"]
    for cell, name, digits in zip(cells, (white, page), ("7", "710"), strict=True):
        boxes = find_digits(name)[1]
        ax = cell.axes[0]
        assert ax.images[0].get_array().shape == (360, 480, 4)
        assert "".join(text.get_text() for text in ax.texts) == digits
        assert np.array_equal([text.get_position() for text in ax.texts], boxes[:, :2])
        assert np.array_equal([patch.get_bbox().extents for patch in ax.patches], boxes)
        assert all(0.2 < shade < 0.8 for shade in ax.get_facecolor()[:3]), "white and black show on it"
        assert cell.get_linewidth() > 0 and cell.get_edgecolor() != cell.get_facecolor(), "a frame"
    _, seen = cells[0].axes
    assert np.array_equal(seen.images[0].get_array(), find_digits(white)[0][0, ..., 0])
    assert len(cells[1].axes) == 1


def test_more_pictures_than_a_figure_holds(here, end_of, saved):
    """The figure isn't drawn: `saved` keeps it."""
    end = end_of(module, "--model", "m.h5", *[MY_DIGIT] * 50)
    assert end.code == 0 and len(saved[0].subfigs) == 36
    lines = end.out.splitlines()
    assert len(lines) == 51 and lines[-1] == "Saved m_predictions.png (the first 36 of 50)"


# Drawing in a window


class Window:
    """A drawing window on matplotlib's canvas without a display, and what a user does in it."""

    def __init__(self, path):
        network, _ = load_model(model="m.h5")
        drawing_window(network, path)
        self.figure = plt.gcf()
        self.figure.canvas.draw()  # gives everything its place
        self.figure.canvas.draw_idle = lambda: None  # a real canvas draws when it has time
        self.paper, self.seen, self.bars = self.figure.axes

    def mouse(self, name, point):
        event = MouseEvent(name, self.figure.canvas, *self.paper.transData.transform(point), button=1)
        self.figure.canvas.callbacks.process(name, event)

    def stroke(self, *points):
        self.mouse("button_press_event", points[0])
        for point in points[1:]:
            self.mouse("motion_notify_event", point)
        self.mouse("button_release_event", points[-1])

    def key(self, key):
        x, y = self.paper.transData.transform((100, 100))
        event = KeyEvent("key_press_event", self.figure.canvas, key, x, y)
        self.figure.canvas.callbacks.process("key_press_event", event)

    def picture(self):
        return np.asarray(self.paper.images[0].get_array())

    def text(self):
        return self.paper.get_title()

    def probabilities(self):
        return [bar.get_width() for bar in self.bars.patches]


@pytest.fixture
def window(here):
    return Window(here / "m_drawing.png")


@pytest.mark.parametrize("digit", [7, 1, 0])
def test_a_drawn_digit_is_read_as_a_picture_is(digit, window):
    window.stroke(*shape(digit, 100, 80))
    assert re.match(rf"{digit} \(\d+\.\d\d %, then \d: \d+\.\d\d %\)$", window.text())
    draw_page("same.png", (digit, 100, 80))
    assert np.mean(np.asarray(Image.open("same.png").convert("RGB")) != window.picture()) < 0.005  # round ends
    (images, _, _) = find_digits(window.picture())
    assert np.array_equal(window.seen.images[0].get_array(), images[0, ..., 0])
    probabilities = keras.models.load_model("m.h5", compile=False).predict(images, verbose=0)[0]
    assert window.probabilities() == pytest.approx(probabilities, abs=1e-5)


def test_digits_beside_each_other_undo_and_clear(window):
    window.stroke(*shape(7, 60, 80))
    seven = window.text(), window.probabilities()
    window.stroke(*shape(0, 320, 80))
    assert window.text().startswith("70 (least sure: ")
    assert np.argmax(window.probabilities()) == 0, "the last one's"
    window.key("z")
    assert (window.text(), window.probabilities()) == seven
    window.stroke(*shape(1, 320, 80))
    assert window.text().startswith("71 (least sure: ")
    window.key("c")
    assert (window.text(), window.probabilities()) == ("", []) and not window.seen.images
    window.key("z")  # nothing to take back
    window.stroke(*shape(7, 60, 80))
    assert window.text().startswith("7 (")


def test_a_saved_drawing_is_read_the_same(window, end_of):
    window.stroke(*shape(7, 60, 80))
    text, probabilities = window.text(), window.probabilities()
    window.key("s")
    assert window.text().startswith("Saved ") and "m_drawing.png" in window.text()
    assert end_of(module, "--model", "m.h5", "m_drawing.png").out.startswith(f"m_drawing.png: {text}\n")
    ((_, read),) = module.read_pictures(["m_drawing.png"], model="m.h5")
    assert probabilities == pytest.approx(read[0], abs=1e-5)
    window.stroke(*shape(1, 300, 80))
    assert window.text().startswith("71 ("), "one can go on"


def test_a_drawing_that_cant_be_saved_is_said_in_the_window(here):
    """And the dollars in its name don't make it a formula."""
    (here / "$a^$.png").mkdir()
    window = Window(here / "$a^$.png")
    window.stroke(*shape(7, 60, 80))
    window.key("s")
    window.figure.canvas.draw()
    assert "$a^$.png: can't be written" in window.text()
    (here / "$a^$.png").rmdir()
    window.key("s")
    window.figure.canvas.draw()
    assert window.text().endswith("$a^$.png")


def test_a_click_without_a_movement_is_a_dot(window):
    window.stroke((240, 180))
    ys, xs = np.nonzero(window.picture()[..., 0] < 128)
    assert (xs.mean(), ys.mean()) == pytest.approx((240, 180), abs=1) and 100 < len(xs) < 250


def test_a_stroke_shows_while_it_is_drawn_and_ends_at_the_papers_edge(window):
    window.mouse("button_press_event", (300, 200))
    window.mouse("motion_notify_event", (400, 200))
    (line,) = (line for line in window.paper.lines if line.get_visible())
    assert line.get_xdata() == pytest.approx([300, 400]) and line.get_ydata() == pytest.approx([200, 200])
    window.mouse("motion_notify_event", (5000, 200))
    window.mouse("button_release_event", (5000, 200))
    drawn = window.picture()
    assert (drawn[200, 300:] == 0).all() and (drawn[:, :280] == 255).all() and not line.get_visible()
    window.mouse("motion_notify_event", (100, 200))  # with no button pressed
    window.stroke((600, 200), (300, 300))  # from elsewhere
    assert np.array_equal(window.picture(), drawn)


@pytest.mark.parametrize("key", ["c", "z"])
def test_a_key_while_the_button_is_pressed(key, window):
    window.mouse("button_press_event", (100, 100))
    window.key(key)
    window.mouse("motion_notify_event", (200, 100))
    window.mouse("button_release_event", (200, 100))
    window.key("c")
    window.stroke(*shape(7, 60, 80))
    assert window.text().startswith("7 (")


def test_an_empty_paper_is_white_and_reads_as_nothing(window):
    for key in ("any", "z", "c", "s"):
        assert window.text() == ""
        window.key(key)
        assert (window.picture() == 255).all() and window.picture().shape == (360, 480, 3)
        assert window.probabilities() == []
    assert (np.asarray(Image.open("m_drawing.png")) == 255).all()


def test_matplotlibs_own_keys_are_off(window):
    window.stroke(*shape(7, 60, 80))
    text = window.text()
    for key in ("q", "g", "l", "k", "f", "o", "p", "h", "x"):
        window.key(key)
    assert plt.fignum_exists(window.figure.number) and window.text() == text
    assert (window.paper.get_xscale(), window.paper.get_yscale()) == ("linear", "linear")
    assert all(word in window.paper.get_xlabel() for word in ("c: clear", "z: take", "s: save")), "its own are named"


def test_draw_opens_the_window_and_ends_when_it_is_closed(here, monkeypatch, end_of):
    shown, toolbars = [], []

    def open_window(*args):
        toolbars.append(plt.rcParams["toolbar"])
        drawing_window(*args)

    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg")
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.get_fignums())))
    monkeypatch.setattr(module, "drawing_window", open_window)
    assert end_of(module, "--draw", "--model", "m.h5") == (0, "", "")
    assert shown == [1]
    assert toolbars == ["None"] != [plt.rcParams["toolbar"]], "matplotlib's tools are off in this window only"


def test_draw_needs_a_display_before_a_model(here, monkeypatch, end_of):
    monkeypatch.setattr(module, "load_model", lambda *args: pytest.fail("the model was loaded"))
    assert_one_line(end_of(module, "--draw").code, "there is no display")
