"""What evaluate_model.py promises: figures that agree with a count by hand; pictures read, printed and drawn."""

import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import MY_DIGIT, assert_one_line, build_small_network, found_in, page, posix
from PIL import Image
from scipy.stats import norm

import evaluate_model as module
from build_model import load_model
from evaluate_model import describe, draw_confusion_matrix, evaluate_model
from load_data import load_data


@pytest.fixture
def saved(monkeypatch):
    """A list that takes the figures in place of their files, which stay empty."""
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: figures.append(figure))
    return figures


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
    # Both are the last validation figures of the training, but for one image of 297, as training may be in bfloat16.
    assert result["accuracy"] == pytest.approx(history["val_accuracy"][-1], abs=0.004)
    assert result["loss"] == pytest.approx(history["val_loss"][-1], rel=0.02)
    for name in ("confusion_matrix", "mistakes"):
        png = path.with_name(f"{path.stem}_{name}.png")
        assert f"Saved {png}" in printed
        assert png.read_bytes().startswith(b"\x89PNG") and png.read_bytes().endswith(b"IEND\xaeB`\x82")


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


@pytest.mark.parametrize(
    "activation, weight, biases",
    [
        ("linear", 0, [-0.1, 1.1] + [0] * 8),
        ("sigmoid", 0, [0] * 10),
        ("linear", 0, [0.2] * 10),
        ("softmax", 3e38, [0] * 10),
    ],
    ids=["negative, but their sum is 1", "a sum of 5", "a sum of 2", "NaN, as the weights are too large"],
)
def test_outputs_that_are_no_probabilities_are_not_scored(activation, weight, biases, tmp_path, npz, end_of):
    network = build_small_network()
    network.layers[-1].activation = keras.activations.get(activation)
    network.set_weights([np.full((784, 10), weight), np.array(biases, float)])
    network.save(tmp_path / "m.h5")
    for args in (("--data", npz), (MY_DIGIT,)):
        end = end_of(module, "--model", tmp_path / "m.h5", *args)
        assert_one_line(end.code, "m.h5: its outputs are no probabilities; it must end with a softmax")
        assert "accuracy" not in end.out and not list(tmp_path.glob("*.png"))


# Pictures of one's own


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
    page(("7", 40, 30), ("1", 200, 40), ("0", 300, 35), ("0", 60, 200), ("1", 200, 220)).save("page.png")
    end = end_of(module, "--model", "m.h5", MY_DIGIT, "page.png")
    assert (end.code, end.err) == (0, "")
    one, several, saved = end.out.splitlines()
    network = keras.models.load_model("m.h5", compile=False)
    first, second = np.sort(network.predict(found_in(MY_DIGIT)[0], verbose=0)[0])[:-3:-1]
    assert re.sub(r"\d:", "n:", one) == f"{MY_DIGIT}: 7 ({100 * first:.2f} %, then n: {100 * second:.2f} %)"
    least = network.predict(found_in("page.png")[0], verbose=0).max(axis=1).min()
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


@pytest.mark.parametrize(
    "name, shown",
    [
        *((name, name) for name in ("my $seven_$ 100%.png", "$\\frac{.png", "数字 😀.png")),
        pytest.param("a\nb\x1b[31m.png", "a b [31m.png", marks=posix),
        pytest.param("\udcff.png", "\\udcff.png", marks=posix),
    ],
    ids=ascii,
)
def test_odd_file_names_are_shown_and_no_failure(name, shown, here, end_of, recwarn):
    shutil.copy(MY_DIGIT, name)
    end = end_of(module, "--model", "m.h5", name)
    assert (end.code, end.err) == (0, "") and end.out.startswith(f"{shown}: 7 (")
    assert not recwarn.list  # it would be a line on stderr


def test_the_figure_shows_what_was_found_where_and_what_the_network_saw(here, end_of, saved):
    white, several = "white on nothing.png", "page" * 9 + ".png"
    page(("7", 40, 30), mode="RGBA", ink="white", paper=(0, 0, 0, 0)).save(white)
    page(("7", 40, 30), ("1", 200, 40), ("0", 300, 35)).save(several)
    assert end_of(module, "--model", "m.h5", white, several).code == 0
    cells = saved[0].subfigs
    assert [cell.get_suptitle() for cell in cells] == [white, several[-30:]]
    for cell, name, digits in zip(cells, (white, several), ("7", "710"), strict=True):
        boxes = found_in(name)[1]
        ax = cell.axes[0]
        assert ax.images[0].get_array().shape == (750, 1000, 4)
        assert "".join(text.get_text() for text in ax.texts) == digits
        assert np.array_equal([text.get_position() for text in ax.texts], boxes[:, :2])
        red = [patch.get_bbox().extents for patch in ax.patches if patch.get_edgecolor() == (1, 0, 0, 1)]
        assert np.array_equal(red, boxes)
        grounds = {text.get_bbox_patch().get_facecolor()[:3] for text in ax.texts}
        assert grounds == {(1, 1, 1)}, "seen on dark paper, too"
        assert all(0.2 < shade < 0.8 for shade in ax.get_facecolor()[:3]), "white and black show on it"
        assert cell.get_linewidth() > 0 and cell.get_edgecolor() != cell.get_facecolor(), "a frame"
    _, seen = cells[0].axes
    assert np.array_equal(seen.images[0].get_array(), found_in(white)[0][0, ..., 0])
    assert len(cells[1].axes) == 1


def test_more_pictures_than_a_figure_holds(here, end_of, saved):
    """The figure isn't drawn: `saved` keeps it."""
    end = end_of(module, "--model", "m.h5", *[MY_DIGIT] * 38)
    assert end.code == 0 and len(saved[0].subfigs) == 36
    lines = end.out.splitlines()
    assert len(lines) == 39 and lines[-1] == "Saved m_predictions.png (the first 36 of 38)"


def test_ink_that_was_not_read_gets_a_grey_box(here, end_of, saved):
    page(("7", 80, 60), ("1", 240, 70), ("-", 350, 60), frame=(20, 20, 460, 340)).save("page.png")
    assert end_of(module, "--model", "m.h5", "page.png").out.startswith("page.png: 71 ")
    ax = saved[0].subfigs[0].axes[0]
    boxes = {str(patch.get_bbox().extents): patch.get_edgecolor() for patch in ax.patches}
    grey = [color for color in boxes.values() if color[0] == color[1] == color[2]]
    assert len(boxes) == 4 and len(grey) == 2, "the frame and the dash; over the digits' lie red ones"


def test_answers_are_without_dropout_and_repeat_without_warnings(here, digits_model, capfd):
    """A network that is called with a new shape each time makes TensorFlow warn of retracing, unless called plainly."""
    network, _ = load_model(model=digits_model[0])
    expected = network.predict(found_in(MY_DIGIT)[0], verbose=0)
    capfd.readouterr()
    for _ in range(6):
        ((_, probabilities),) = module.read_pictures([MY_DIGIT], model=digits_model[0])
        assert np.allclose(probabilities, expected, atol=1e-6)
    assert capfd.readouterr().err == ""
