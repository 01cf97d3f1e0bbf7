"""Evaluate a trained model on the test images, or read pictures of your own with it.

python evaluate_model.py [--data mnist | digits | PATH] [--model FILE.h5] [PICTURE ...]
"""

import argparse
import math
import os
import sys
from pathlib import Path

from load_data import (
    CLASSES,
    DATA_HELP,
    IMAGE_SHAPE,
    InputError,
    decode,
    load_data,
    load_image,
    one_line,
    run,
)
from train_model import h5_file, model_file, progress, save_picture

import h5py
import keras
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from scipy.stats import binomtest
from sklearn.metrics import classification_report, confusion_matrix

SHOWN = 36  # at most so many images in a picture


def evaluate_model(data="mnist", model=None):
    """Print a trained model's accuracy on the test images; draw its confusion matrix and mistakes.

    Args:
        data: a source that `load_data()` takes.
        model: path of the .h5 file; default: `model_file(data)` in the current folder.

    Returns:
        A dict: `loss` (mean categorical cross-entropy), `accuracy` (a fraction) and
        `confusion_matrix` (integers of shape (10, 10), true class by row).

    Raises:
        InputError: no such model, a file that is none for these images, bad data.
    """
    model = Path(model or model_file(data))
    network = load_model(model, data)
    _, _, X_test, y_test = load_data(data)
    probabilities = network.predict(X_test, batch_size=1000, verbose=progress())
    check_probabilities(probabilities, model)
    y_true, y_pred = y_test.argmax(axis=1), probabilities.argmax(axis=1)
    loss = float(np.mean(keras.losses.categorical_crossentropy(y_test, probabilities)))
    correct = int((y_true == y_pred).sum())
    accuracy = correct / len(y_true)
    interval = binomtest(correct, len(y_true)).proportion_ci(method="wilson")
    print(f"Test loss: {loss:.4f}")
    print(f"Test accuracy: {accuracy:.4f} (95 % interval {interval.low:.4f} to {interval.high:.4f})")
    labels = range(CLASSES)
    print(classification_report(y_true, y_pred, labels=labels, digits=4, zero_division=0))
    matrix = confusion_matrix(y_true, y_pred, labels=labels)
    save_picture(model.with_name(f"{model.stem}_confusion_matrix.png"), draw_confusion_matrix, matrix)
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(y_true != y_pred)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN]
    if len(wrong):
        titles = [f"{y_true[i]} read as {y_pred[i]}\n{100 * confidence[i]:.1f} %" for i in wrong]
        save_picture(model.with_name(f"{model.stem}_mistakes.png"), draw_images, X_test[wrong], titles, 9)
    else:
        print("No mistakes to draw: every test image was read right")
    return {"loss": loss, "accuracy": accuracy, "confusion_matrix": matrix}


def read_pictures(pictures, data="mnist", model=None):
    """Print which digit a trained model reads in each picture file, and draw what it saw.

    Args:
        pictures: paths of picture files, one handwritten digit in each; see `load_image()`.
        data, model: as in `evaluate_model()`; `data` only names the default model.

    Returns:
        float32 class probabilities of shape (n, 10); NaN for a picture that can't be read,
        which one line on stderr explains.

    Raises:
        InputError: no such model, or a file that is none for these images.
    """
    model = Path(model or model_file(data))
    network = load_model(model, data)
    images = {}
    for number, path in enumerate(pictures):
        try:
            images[number] = load_image(path)
        except InputError as error:
            print(one_line(error), file=sys.stderr)
    answers = np.full((len(pictures), CLASSES), np.nan, np.float32)
    if not images:
        return answers
    answers[list(images)] = network.predict(np.stack(list(images.values())), verbose=0)
    check_probabilities(answers[list(images)], model)
    cells, titles = [], []
    for number, image in images.items():
        second, first = np.argsort(answers[number])[-2:]
        answer, runner_up = 100 * answers[number][[first, second]]
        print(f"{pictures[number]}: {first} ({answer:.2f} %, next {second} with {runner_up:.2f} %)")
        if len(cells) < 2 * SHOWN:
            cells += [decode(pictures[number]) / 255, image]
            titles += [Path(pictures[number]).name[-20:], f"{first} ({answer:.1f} %)"]
    save_picture(model.with_name(f"{model.stem}_predictions.png"), draw_images, cells, titles, 8)
    return answers


def load_model(path, data="mnist"):
    """Return the Keras model in the .h5 file `path`, or raise InputError."""
    if not os.path.isfile(path):
        others = ", ".join(sorted(file.name for file in path.parent.glob("*.h5"))) or "none"
        command = "python train_model.py" + ("" if data == "mnist" else f" --data {data}")
        command += "" if path == Path(model_file(data)) else f" --model {path}"
        raise InputError(f"{path}: no such model; train one first: {command} (models there: {others})")
    try:
        refuse_bomb(path)
        # A rehearsal that makes no weights: a file whose layers don't fit its weights ends here.
        with keras.StatelessScope(initialize_variables=False):
            keras.models.load_model(path, compile=False)
        network = keras.models.load_model(path, compile=False)
        if max(math.prod(layer.output.shape[1:]) for layer in network.layers) > 100_000:
            raise ValueError("a layer puts out more than 100,000 numbers for an image")
        shapes = network.input_shape, network.output_shape
    except Exception as error:  # a damaged file makes HDF5, JSON and Keras raise almost anything
        raise InputError(f"{path}: not a Keras model that can be used ({error})") from error
    if shapes != ((None, *IMAGE_SHAPE), (None, CLASSES)):
        raise InputError(f"{path}: input and output are {shapes}; expected (n, 28, 28, 1) and (n, 10)")
    return network


def refuse_bomb(path):
    """Raise ValueError if an HDF5 file declares or names more weights than it holds."""
    sizes, names = [], []

    def visit(_, item):
        sizes.append(getattr(item, "nbytes", 0))
        names.extend(name for key, value in item.attrs.items() if "_names" in key for name in np.ravel(value))

    with h5py.File(path) as file:
        file.visititems(visit)
    if sum(sizes) > min(os.path.getsize(path), 2**28) or len(names) > len(sizes):
        raise ValueError("it declares more weights than it holds")


def check_probabilities(probabilities, model):
    """Raise InputError unless each row holds class probabilities."""
    if probabilities.min() < 0 or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise InputError(
            f"{model}: its outputs are no probabilities (NaN, negative or not summing to 1); not scored"
        )


def draw_confusion_matrix(matrix):
    """Return a figure of the counts; only the errors are coloured, or they would pale."""
    figure, ax = plt.subplots(figsize=(10, 8), layout="constrained")
    hits = np.eye(CLASSES, dtype=bool)
    style = {"annot": True, "fmt": "d", "linewidths": 0.5, "ax": ax}
    sns.heatmap(matrix, mask=~hits, cmap=["#e4e4e4"], cbar=False, **style)
    sns.heatmap(matrix, mask=hits, cmap="Blues", vmin=0, cbar_kws={"label": "Errors"}, **style)
    ax.set(title="Confusion matrix", xlabel="Predicted", ylabel="True")
    return figure


def draw_images(images, titles, columns):
    """Return a figure of images (28, 28, 1), white on black, or RGBA, each with its title."""
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.4 * columns, 1.75 * rows), layout="constrained", squeeze=False
    )
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize=9)
    return figure


def main():
    """Read the command line and evaluate."""
    parser = argparse.ArgumentParser(
        description="Evaluate a trained model on the test images, or read pictures of your own with it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "pictures",
        nargs="*",
        metavar="PICTURE",
        default=argparse.SUPPRESS,
        help="pictures of one handwritten digit each, read instead of the test images",
    )
    parser.add_argument("--data", default="mnist", help=DATA_HELP)
    parser.add_argument(
        "--model",
        type=h5_file,
        metavar="FILE.h5",
        default=argparse.SUPPRESS,
        help="the model (default: the data's name with _classification_model.h5, here)",
    )
    choices = vars(parser.parse_args())
    if not choices.get("pictures"):
        choices.pop("pictures", None)
        evaluate_model(**choices)
    elif np.isnan(read_pictures(**choices)).any():
        sys.exit(1)


if __name__ == "__main__":
    run(main)
