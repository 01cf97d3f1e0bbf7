"""Evaluate a trained model on the test images, or read pictures of your own with it.

python evaluate_model.py [--data mnist | digits | PATH] [--model FILE.h5] [PICTURE ...]
"""

import math
import os
import sys
from pathlib import Path

from load_data import CLASSES, IMAGE_SHAPE, InputError, data_parser, load_data, one_line, run
from load_data import decode, load_image
from train_model import MODEL_HELP, h5_file, model_file, progress, save_picture

import h5py
import keras
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.ticker import MaxNLocator
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
    X_test, y_test = load_data(data)[2:]
    probabilities = predict(network, X_test, model, progress())
    y_true, y_pred = y_test.argmax(axis=1), probabilities.argmax(axis=1)
    loss = float(np.mean(keras.losses.categorical_crossentropy(y_test, probabilities)))
    correct = int((y_true == y_pred).sum())
    accuracy = correct / len(y_true)
    interval = binomtest(correct, len(y_true)).proportion_ci(method="wilson")
    print(f"Test loss: {loss:.4f}")
    print(f"Test accuracy: {accuracy:.4f} (95 % interval {interval.low:.4f} to {interval.high:.4f})")
    print(classification_report(y_true, y_pred, labels=range(CLASSES), digits=4, zero_division=0))
    matrix = confusion_matrix(y_true, y_pred, labels=range(CLASSES))
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

    A picture that can't be read gets a line on stderr, and the others are read all the same.

    Args:
        pictures: paths of picture files, one handwritten digit in each; see `load_image()`.
        data, model: as in `evaluate_model()`; `data` only names the default model.

    Returns:
        A list of (path, float32 class probabilities of shape (10,)) of the pictures read.

    Raises:
        InputError: no such model, or a file that is none for these images.
    """
    model = Path(model or model_file(data))
    network = load_model(model, data)
    paths, images, drawn, titles = [], [], [], []
    for path in pictures:
        try:
            images.append(load_image(path))
            paths.append(path)
        except InputError as error:
            print(one_line(error), file=sys.stderr)
    if not images:
        return []
    answers = predict(network, np.stack(images), model, 0)
    for path, image, answer in zip(paths, images, answers):
        second, first = np.argsort(answer)[-2:]
        best, next_best = 100 * answer[[first, second]]
        print(f"{path}: {first} ({best:.2f} %, next {second} with {next_best:.2f} %)")
        if len(titles) < 2 * SHOWN:
            drawn += [np.uint8(decode(path)), image]
            titles += [Path(path).name[-20:], f"{first} ({best:.1f} %)"]
    save_picture(model.with_name(f"{model.stem}_predictions.png"), draw_images, drawn, titles, 8)
    return list(zip(paths, answers))


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
    """Raise ValueError if an HDF5 file declares or names more weights than it holds, or 256 MiB."""
    sizes, names = [], []

    def visit(_, item):
        sizes.append(getattr(item, "nbytes", 0))
        names.extend(name for key, value in item.attrs.items() if "_names" in key for name in np.ravel(value))

    with h5py.File(path) as file:
        file.visititems(visit)
    if sum(sizes) > min(os.path.getsize(path), 2**28) or len(names) > len(sizes):
        raise ValueError("it declares more weights than it holds, or more than 256 MiB")


def predict(network, images, model, verbose):
    """Return class probabilities (n, 10); raise InputError if the outputs are none."""
    probabilities = network.predict(images, batch_size=250, verbose=verbose)
    if probabilities.min() < 0 or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise InputError(f"{model}: its outputs are no probabilities (NaN, negative or not summing to 1)")
    return probabilities


def draw_confusion_matrix(matrix):
    """Return a figure of the counts; only the errors are coloured, or they would pale."""
    figure, ax = plt.subplots(figsize=(10, 8), layout="constrained")
    hits = np.eye(CLASSES, dtype=bool)
    style = {"annot": True, "fmt": "d", "linewidths": 0.5, "ax": ax}
    sns.heatmap(matrix, mask=~hits, cmap=["#e4e4e4"], cbar=False, **style)
    bar = {"label": "Errors", "ticks": MaxNLocator(integer=True)}
    sns.heatmap(matrix, mask=hits, cmap="Blues", vmin=0, cbar_kws=bar, **style)
    ax.set(title="Confusion matrix", xlabel="Predicted", ylabel="True")
    return figure


def draw_images(images, titles, columns):
    """Return a figure of images, (28, 28, 1) white on black or RGBA, each with its title."""
    rows, columns = -(-len(images) // columns), min(columns, len(images))
    size = 1.4 * columns, 1.75 * rows
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize=9, parse_math=False)  # a file name may hold a $
    return figure


def main():
    """Read the command line and evaluate."""
    parser = data_parser("Evaluate a trained model on the test images, or read pictures of your own with it.")
    parser.add_argument("--model", type=h5_file, metavar="FILE.h5", help=MODEL_HELP)
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="one handwritten digit each")
    args = parser.parse_args()
    if not args.pictures:
        evaluate_model(args.data, args.model)
    elif len(read_pictures(**vars(args))) < len(args.pictures):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
