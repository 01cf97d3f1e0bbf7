"""Evaluate a trained model on the test images, read pictures of your own with it, or draw for it.

python evaluate_model.py [--data mnist | digits | PATH] [--model FILE.h5] [PICTURE ... | --draw]
"""

import contextlib
import math
import os
import re
import shlex
import sys
from pathlib import Path

from build_model import keras
from load_data import CLASSES, IMAGE_SHAPE, InputError, data_parser, load_data, one_line, run
from load_data import find_digits, load_picture
from train_model import MODEL_HELP, model_path, progress, save_picture, save_whole

import h5py
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.widgets import LassoSelector
from PIL import Image, ImageDraw
from scipy.stats import binomtest
from sklearn.metrics import classification_report, confusion_matrix

SHOWN = 36  # at most this many images or pictures in a figure
UNSURE = 0.8  # a digit read with a lower probability is followed by a question mark


def evaluate_model(data="mnist", model=None):
    """Print a trained model's accuracy on the test images; draw its confusion matrix and mistakes.

    Args:
        data: a source that `load_data()` takes.
        model: path of the .h5 file; default: the data's name and `_classification_model.h5`, in
            the current folder.

    Returns:
        A dict: `loss` (mean categorical cross-entropy), `accuracy` (a fraction) and
        `confusion_matrix` (integers of shape (10, 10), true class by row).

    Raises:
        InputError: bad data, no such model, or one that doesn't fit these images.
    """
    network, path = load_model(data, model)
    X_test, y_test = load_data(data)[2:]
    probabilities = predict(network, X_test, path, progress())

    y_true, y_pred = y_test.argmax(axis=1), probabilities.argmax(axis=1)
    loss = float(np.mean(keras.losses.categorical_crossentropy(y_test, probabilities)))
    correct = int((y_true == y_pred).sum())
    accuracy = correct / len(y_true)
    interval = binomtest(correct, len(y_true)).proportion_ci(method="wilson")
    print(f"Test loss: {loss:.4f}")
    print(f"Test accuracy: {accuracy:.4f} (95 % interval {interval.low:.4f} to {interval.high:.4f})")
    print(classification_report(y_true, y_pred, labels=range(CLASSES), digits=4, zero_division=0))
    matrix = confusion_matrix(y_true, y_pred, labels=range(CLASSES))
    save_picture(path, "confusion_matrix", draw_confusion_matrix(matrix))

    wrong = np.flatnonzero(y_true != y_pred)
    if len(wrong) == 0:
        print("No mistakes to draw: every test image was read right")
    else:
        confidence = probabilities.max(axis=1)
        surest = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN]
        titles = [f"{y_true[i]} read as {y_pred[i]}\n{100 * confidence[i]:.1f} %" for i in surest]
        note = f"the {len(surest)} surest of {len(wrong)} mistakes"
        save_picture(path, "mistakes", draw_mistakes(X_test[surest], titles, note), f" ({note})")
    return {"loss": loss, "accuracy": accuracy, "confusion_matrix": matrix}


def draw_confusion_matrix(matrix):
    """Return a figure of the counts, true class by row, coloured by the errors alone."""
    figure, ax = plt.subplots(figsize=(10, 8), layout="constrained")
    errors = matrix - np.diag(np.diag(matrix))  # beside hundreds of hits, they would all look alike
    sns.heatmap(errors, annot=matrix, fmt="d", cmap="Blues", linewidths=0.5, cbar_kws={"label": "Errors"}, ax=ax)
    ax.set(title="Confusion matrix", xlabel="Predicted", ylabel="True")
    ax.tick_params(axis="y", rotation=0)
    return figure


def draw_mistakes(images, titles, note):
    """Return a figure of test images (n, 28, 28, 1), each under its title."""
    columns = min(9, len(images))
    rows = math.ceil(len(images) / columns)
    figure = plt.figure(figsize=(max(4, 1.4 * columns), 1.75 * rows + 0.5), layout="constrained")
    figure.suptitle(note.capitalize(), fontsize=11)
    for place, (image, title) in enumerate(zip(images, titles), start=1):
        ax = figure.add_subplot(rows, columns, place)
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize=9)
        ax.axis("off")
    return figure


# Pictures of your own


def read_pictures(pictures, data="mnist", model=None):
    """Print which digits a trained model reads in each picture file, and draw where it found them.

    A picture that can't be read gets a line on stderr, and the others are read all the same.

    Args:
        pictures: paths of picture files with one or more digits each; see `find_digits()`.
        data, model: as in `evaluate_model()`; `data` isn't loaded, it only names the default model.

    Returns:
        A list of (path, float32 class probabilities of shape (digits, 10)) of the pictures read.

    Raises:
        InputError: no such model, or one that doesn't fit these images.
    """
    network, path = load_model(data, model)
    if data == "digits" or path.name == model_path("digits").name:
        print("note: a model trained on digits has seen 8x8 pixels, and isn't meant for pictures", file=sys.stderr)
    answers, drawn = [], []
    for picture in pictures:
        try:
            pixels, _ = load_picture(picture)
            images, boxes, rows = find_digits(pixels, name=picture)
        except InputError as error:
            print(one_line(error), file=sys.stderr)
            continue
        probabilities = predict(network, images, path)
        print(f"{printable(picture)}: {describe(probabilities, rows)}")
        answers.append((picture, probabilities))
        if len(drawn) < SHOWN:
            drawn.append((picture, pixels, images, boxes, probabilities))
    if answers:
        note = f" (the first {SHOWN} of {len(answers)})" if len(answers) > SHOWN else ""
        save_picture(path, "predictions", draw_predictions(drawn), note)
    return answers


def describe(probabilities, rows):
    """Return what is read: `7 (99.87 %, then 1: 0.08 %)`, or, in two rows, `12 3? (least sure: 3, 71.20 %)`."""
    digits = np.array(digit_texts(probabilities))
    text = " ".join("".join(digits[rows == row]) for row in np.unique(rows))
    percent = 100 * probabilities.max(axis=1)
    if len(digits) > 1:
        least = percent.argmin()
        return f"{text} (least sure: {probabilities[least].argmax()}, {percent[least]:.2f} %)"
    second = probabilities[0].argsort()[-2]
    return f"{text} ({percent[0]:.2f} %, then {second}: {100 * probabilities[0, second]:.2f} %)"


def digit_texts(probabilities):
    """Return the digits as a list of texts, each with a question mark if it is unsure."""
    return [f"{row.argmax()}?" if row.max() < UNSURE else f"{row.argmax()}" for row in probabilities]


def printable(text):
    """Return a text or path with `?` for control characters and what UTF-8 can't encode."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", os.fspath(text).encode(errors="replace").decode())


def draw_predictions(drawn):
    """Return a figure of pictures with a box and the digit read at every place.

    A picture of one digit has beside it what the network saw.
    """
    columns = min(4, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = plt.figure(figsize=(3.6 * columns, 2.6 * rows), layout="constrained")
    cells = figure.subfigures(rows, columns, squeeze=False, wspace=0.03, hspace=0.03).flat
    for cell, (picture, pixels, images, boxes, probabilities) in zip(cells, drawn):
        name = printable(Path(picture).name)
        cell.suptitle(name if len(name) <= 30 else f"{name[:18]}…{name[-11:]}", fontsize=9, parse_math=False)
        cell.set(edgecolor="0.7", linewidth=1)
        axes = cell.subplots(1, 2 if len(images) == 1 else 1, squeeze=False)[0]
        axes[0].imshow(pixels)
        axes[0].set_facecolor("0.6")  # shows through where the picture is transparent
        for (left, top, right, bottom), digit in zip(boxes, digit_texts(probabilities)):
            axes[0].add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, color="red", lw=0.8))
            axes[0].text(left, top, digit, color="red", fontsize=9, va="bottom")
        if len(images) == 1:
            axes[1].imshow(images[0], cmap="gray", vmin=0, vmax=1)
        for ax in axes:
            ax.set(xticks=[], yticks=[])
    return figure


# Drawing in a window

PAPER = (480, 360)  # width and height in pixels
PEN = 14  # width in pixels


def draw(data="mnist", model=None):
    """Open a window to draw digits in; it shows what a trained model reads.

    Its keys: `c` clears the paper, `z` takes the last stroke back, `s` saves the drawing beside
    the model. In a notebook it needs an interactive backend, such as `%matplotlib widget`.

    Args:
        data, model: as in `read_pictures()`.

    Raises:
        InputError: no display, no such model, or one that doesn't fit these images.
    """
    if plt.get_backend().lower() in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE):
        raise InputError("there is no display to draw on, or none that matplotlib can use")
    network, path = load_model(data, model)
    with plt.rc_context({"toolbar": "None"}):
        drawing_window(network, path.with_name(f"{path.stem}_drawing.png"))
    plt.show()


def drawing_window(network, path):
    """Open a figure to draw digits in, which shows what `network` reads and saves to the file `path`."""
    figure, (paper, seen, bars) = plt.subplots(1, 3, figsize=(11, 4.4), width_ratios=(8, 4, 3), layout="constrained")
    figure.canvas.manager.set_window_title("Draw digits")
    figure.canvas.mpl_disconnect(figure.canvas.manager.key_press_handler_id)  # matplotlib's own keys
    drawings = [Image.new("RGB", PAPER, "white")]  # the empty paper, then the drawing after each stroke
    shown = paper.imshow(drawings[0])
    paper.set(xticks=[], yticks=[], xlabel="Draw here.   c: clear   z: take the last stroke back   s: save")
    seen.set(title="the last digit,\nas the network sees it", xticks=[], yticks=[], box_aspect=1)
    bars.set(title="its probabilities", xlim=(0, 1), ylim=(CLASSES - 0.5, -0.5), yticks=range(CLASSES))

    def show(message=""):
        shown.set_data(drawings[-1])
        for old in (*seen.images, *bars.containers):
            old.remove()
        with contextlib.suppress(InputError):  # no digit there yet: nothing to show
            images, _, rows = find_digits(np.asarray(drawings[-1]))
            probabilities = network(images, training=False).numpy()  # for a few images faster than predict()
            message = message or describe(probabilities, rows)
            seen.imshow(images[-1], cmap="gray", vmin=0, vmax=1)
            bars.barh(range(CLASSES), probabilities[-1], color="tab:blue")
        paper.set_title(printable(message), parse_math=False)
        figure.canvas.draw_idle()

    def add_stroke(points):
        drawings.append(drawings[-1].copy())
        canvas = ImageDraw.Draw(drawings[-1])
        canvas.line(points, fill="black", width=PEN)
        for point in points:  # round joints and ends, and a dot for a click
            canvas.circle(point, PEN / 2, fill="black")
        show()

    def obey(event):
        message = ""
        if event.key == "c":
            del drawings[1:]
        elif event.key == "z" and len(drawings) > 1:
            drawings.pop()
        elif event.key == "s":
            try:
                save_whole(path, drawings[-1].save)
                message = f"Saved {path}"
            except InputError as error:
                message = one_line(error)
        show(message)

    figure.canvas.mpl_connect("key_press_event", obey)
    # Kept, as matplotlib holds it only weakly. The width of its line is in points, not in the drawing's pixels.
    figure.pen = LassoSelector(paper, add_stroke, props={"color": "black", "linewidth": 0.8 * PEN})


# Trained models


def load_model(data="mnist", model=None):
    """Return a trained Keras model and its file's path; `data` and `model` as in `evaluate_model()`.

    Raises InputError.
    """
    path = model_path(data, model)
    if not os.path.isfile(path):
        command = ["python", "train_model.py"]
        if data != "mnist":
            command += ["--data", os.fspath(data)]
        if path != model_path(data):
            command += ["--model", os.fspath(path)]
        others = ", ".join(sorted(file.name for file in path.parent.glob("*.h5"))) or "none"
        raise InputError(f"{path}: no such model; train one first: {shlex.join(command)} (models there: {others})")
    try:
        check_sizes(path)
        # First a trial in which Keras allocates no variables: a file whose layers don't fit its weights fails
        # here, before gigabytes are allocated.
        with keras.StatelessScope(initialize_variables=False):
            keras.models.load_model(path, compile=False)
        network = keras.models.load_model(path, compile=False)
        if max(math.prod(layer.output.shape[1:]) for layer in network.layers) > 100_000:
            raise ValueError("a layer outputs more than 100,000 numbers for an image")
        if not all(np.isfinite(weights).all() for weights in network.get_weights()):
            raise ValueError("not all of its weights are finite numbers")
    except Exception as error:  # a damaged file makes HDF5, JSON and Keras raise almost anything
        raise InputError(f"{path}: not a Keras model that can be used ({error})") from error
    shapes = network.input_shape, network.output_shape
    if shapes != ((None, *IMAGE_SHAPE), (None, CLASSES)):
        raise InputError(f"{path}: input and output are {shapes}; expected (n, 28, 28, 1) and (n, 10)")
    return network, path


def check_sizes(path):
    """Raise ValueError unless an .h5 file holds all the weights that it declares, each once, in at most 256 MiB.

    HDF5 can declare gigabytes that the file doesn't hold, and Keras would make room for them.
    """
    items = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: items.append(item))
        declared = sum(getattr(item, "nbytes", 0) for item in items)
        # Keras loads an item as often as attributes like layer_names list it: in a good file, once at most.
        named = sum(np.size(value) for item in items for key, value in item.attrs.items() if "_names" in key)
    if declared > os.path.getsize(path):
        raise ValueError("it declares more weights than it holds")
    if declared > 2**28:
        raise ValueError("its weights take more than 256 MiB")
    if named > len(items):
        raise ValueError("it lists some weights twice")


def predict(network, images, path, verbose=0):
    """Return class probabilities (n, 10). Raises InputError, naming the model's file `path`, if they are none."""
    probabilities = network.predict(images, batch_size=250, verbose=verbose)
    if probabilities.min() < 0 or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise InputError(f"{path}: its outputs are not probabilities (NaN, negative or not summing to 1)")
    return probabilities


# Running as a script


def main():
    """Read the command line; then evaluate, read pictures or open a window to draw in."""
    parser = data_parser("Evaluate a trained model on the test images, read pictures with it, or draw for it.")
    parser.add_argument("--model", metavar="FILE.h5", help=MODEL_HELP)
    parser.add_argument("--draw", action="store_true", help="open a window to draw digits in, and read them")
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="one or more handwritten digits each")
    args = parser.parse_args()
    if args.draw and args.pictures:
        parser.error("--draw takes no pictures")
    if args.draw:
        draw(args.data, args.model)
    elif not args.pictures:
        evaluate_model(args.data, args.model)
    elif len(read_pictures(args.pictures, args.data, args.model)) < len(args.pictures):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
