"""Evaluate a trained model on the test images.

    python evaluate_model.py [--data mnist | digits | PATH] [--model FILE.h5]
"""

import argparse
import os
from pathlib import Path

from load_data import CLASSES, DATA_HELP, IMAGE_SHAPE, InputError, load_data, run
from train_model import h5_file, model_file, plt, progress, save_picture

import h5py
import keras
import numpy as np
import seaborn as sns
from scipy.stats import binomtest
from sklearn.metrics import classification_report, confusion_matrix


def evaluate_model(data="mnist", model=None):
    """Print a trained model's accuracy on the test images and draw its confusion matrix.

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
    return {"loss": loss, "accuracy": accuracy, "confusion_matrix": matrix}


def load_model(path, data="mnist"):
    """Return the Keras model in the .h5 file `path`, or raise InputError."""
    if not path.is_file():
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
        shapes = network.input_shape, network.output_shape
    except Exception as error:  # a damaged file makes HDF5, JSON and Keras raise almost anything
        raise InputError(f"{path}: not a Keras model that can be used ({error})") from error
    if shapes != ((None, *IMAGE_SHAPE), (None, CLASSES)):
        raise InputError(f"{path}: input and output are {shapes}; expected (n, 28, 28, 1) and (n, 10)")
    return network


def refuse_bomb(path):
    """Raise ValueError if the weights that an HDF5 file declares are larger than the file."""
    sizes = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: sizes.append(getattr(item, "nbytes", 0)))
    if sum(sizes) > os.path.getsize(path):
        raise ValueError("it declares more weights than it holds")


def check_probabilities(probabilities, model):
    """Raise InputError unless each row holds class probabilities."""
    if probabilities.min() < 0 or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise InputError(f"{model}: its outputs are no probabilities (NaN, negative or not summing to 1); not scored")


def draw_confusion_matrix(matrix):
    """Return a figure of the counts; only the errors are coloured, or they would pale."""
    figure, ax = plt.subplots(figsize=(10, 8), layout="constrained")
    hits = np.eye(CLASSES, dtype=bool)
    style = {"annot": True, "fmt": "d", "linewidths": 0.5, "ax": ax}
    sns.heatmap(matrix, mask=~hits, cmap=["#e4e4e4"], cbar=False, **style)
    sns.heatmap(matrix, mask=hits, cmap="Blues", vmin=0, cbar_kws={"label": "Errors"}, **style)
    ax.set(title="Confusion matrix", xlabel="Predicted", ylabel="True")
    return figure


def main():
    """Read the command line and evaluate."""
    parser = argparse.ArgumentParser(
        description="Evaluate a trained model on the test images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", default="mnist", help=DATA_HELP)
    parser.add_argument("--model", type=h5_file, metavar="FILE.h5", default=argparse.SUPPRESS, help="the model (default: the data's name with _classification_model.h5, here)")
    evaluate_model(**vars(parser.parse_args()))


if __name__ == "__main__":
    run(main)
