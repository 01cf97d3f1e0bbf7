"""Build the convolutional neural network (CNN) that the other scripts train and evaluate, and keep it in files.

python build_model.py
"""

import argparse
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np

from load_data import CLASSES, IMAGE_SHAPE, InputError, data_parser, one_line, quiet_start, run

with quiet_start():
    import keras
    import tensorflow as tf
    from keras import layers

    tf.config.list_physical_devices()  # only to have TensorFlow look for a GPU now, as that writes lines, too
# Images are (height, width, channels) and numbers float32, whatever the user's ~/.keras/keras.json says.
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")


def build_model(learning_rate=1e-3, steps_per_execution=1):
    """Return the CNN, with fresh random weights and compiled.

    Input: float32 images of shape (n, 28, 28, 1) in [0, 1]. Output: float32 class
    probabilities of shape (n, 10). 93,322 trainable parameters.

    Compiled with Adam, categorical cross-entropy (for one-hot labels) and accuracy.

    Args:
        learning_rate: Adam's; a number or a Keras learning-rate schedule.
        steps_per_execution: batches that Keras handles in one go, without returning to Python.
    """
    network = keras.Sequential(
        [
            keras.Input(IMAGE_SHAPE),
            layers.Conv2D(32, (3, 3), activation="relu"),  # 26x26x32
            layers.MaxPooling2D((2, 2)),  # 13x13x32
            layers.Conv2D(64, (3, 3), activation="relu"),  # 11x11x64
            layers.MaxPooling2D((2, 2)),  # 5x5x64
            layers.Conv2D(64, (3, 3), activation="relu"),  # 3x3x64
            layers.Flatten(),  # 576
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(CLASSES, activation="softmax", dtype="float32"),  # in training, others may be bfloat16
        ]
    )
    network.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
    )
    return network


# Files: a trained network, and figures beside it. Nothing below is needed to understand the network

# Hides one line: whenever Keras writes an .h5 file, it logs that the format is old.
logging.getLogger("absl").addFilter(lambda record: "HDF5 file" not in record.getMessage())


def model_path(data, model=None):
    """Return the path of the model's file; unless `model` names it, it is named after the data. Raises InputError.

    The data mnist, mnist.npz and a folder mnist/ share one name.
    """
    if model is None:
        source = Path(os.path.abspath(data))  # "." has no name, its full path has one
        model = f"{source.name if source.is_dir() else source.stem}_classification_model.h5"
    path = Path(model)
    if path.suffix != ".h5":
        raise InputError(f"the model's name must end in .h5, not {path.name} (try my_model.h5)")
    return path


def save_model(network, path):
    """Save a compiled network as an .h5 file that appears whole or not at all. Raises InputError.

    It is written to a temporary folder beside `path`, then moved. `keras.models.load_model()` loads it, and `fit()`
    trains it further.
    """
    target = Path(os.path.realpath(path))  # where a symbolic link leads
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as folder:
            file = Path(folder, target.name)
            file.write_bytes(bytes(1_000_000))  # is there room? On a full disk, HDF5 would crash, and raise no error
            network.save(file)
            with h5py.File(file, "a") as groups:
                # Adam's state: Keras misreads it, and a later fit() would fail. Without it, Adam starts anew.
                groups.pop("optimizer_weights", None)
            with open(file, "rb+") as written:
                os.fsync(written.fileno())  # waits until it is on the disk: a power cut could leave an empty file
            replace_file(file, target)
    except OSError as error:
        raise InputError(f"{path}: could not be saved ({error.strerror or error})") from error
    print(f"Saved {one_line(path)}")


def replace_file(file, target):
    """Move a file over another one; if that one can't be replaced, beside it. Raises InputError."""
    try:
        os.replace(file, target)
    except OSError as error:  # the target belongs to another user, or under Windows, another program has it open
        beside = target.with_stem(f"{target.stem}_new")
        os.replace(file, beside)
        raise InputError(f"{target}: can't be replaced ({error.strerror}); the new model is {beside}") from error


def check_writable(path):
    """Raise InputError if no file can be made at `path`: this should be said before training, not after."""
    if os.path.isdir(path):
        raise InputError(f"{path}: can't be written (it is a folder)")
    target = Path(os.path.realpath(path))
    try:  # makes a file there and deletes it; its name is longer than the model's, which may be too long
        tempfile.NamedTemporaryFile(prefix=target.name, dir=target.parent).close()
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror})") from error


def load_model(data="mnist", model=None):
    """Return a trained network and its file's path; `data` and `model` are as in `model_path()`.

    Raises InputError. The file can be a stranger's: Keras (from 3.15.1 on) neither runs code from it nor opens other
    files that it names.
    """
    path = model_path(data, model)
    if not os.path.isfile(path):
        advice = "train it first: python train_model.py, with the same --data and --model"
        raise InputError(f"{path}: no such model; {advice}")
    try:
        with warnings.catch_warnings(action="ignore"):  # Keras's advice on how to build networks
            network = keras.models.load_model(path, compile=False)
            shapes = network.input_shape, network.output_shape
    except Exception as error:  # a damaged file makes HDF5, JSON and Keras raise almost anything
        reason = f"Keras {keras.__version__} can't load it ({str(error)[:150]})"  # which can quote the whole file
        raise InputError(f"{path}: {reason}; train it again") from error
    if shapes != ((None, *IMAGE_SHAPE), (None, CLASSES)):
        raise InputError(f"{path}: input and output are {shapes}; expected (n, 28, 28, 1) and (n, 10)")
    if not all(np.isfinite(weights).all() for weights in network.get_weights()):
        raise InputError(f"{path}: not all of its weights are finite numbers; train it again")
    probabilities = network(np.ones((1, *IMAGE_SHAPE), np.float32), training=False).numpy()  # of an image full of ink
    if not (probabilities.min() >= 0 and abs(probabilities.sum() - 1) <= 1e-3):  # NaN fails both comparisons
        raise InputError(f"{path}: its outputs are no probabilities; it must end with a softmax")
    return network, path


def save_and_show(figure, path, name, note=""):
    """Save a figure beside the model's file `path`, and show it in a window if there is a display.

    The script waits until the window is closed. Raises InputError.
    """
    png = path.with_name(f"{path.stem}_{name}.png")
    with warnings.catch_warnings(action="ignore"):  # matplotlib's: no display, or its font lacks letters of a name
        try:
            figure.savefig(png)
        except OSError as error:
            raise InputError(f"{png}: could not be saved ({error.strerror})") from error
        print(f"Saved {one_line(png)}{note}")
        plt.show()
    plt.close(figure)


# Running as a script


def model_parser(description):
    """Return an argparse parser with the options --data and --model."""
    parser = data_parser(description)
    default = "the data's name and _classification_model.h5, in the current folder"
    parser.add_argument("--model", metavar="FILE.h5", help=f"the model's file (default: {default})")
    return parser


def verbosity():
    """Return Keras's `verbose`: 1, a progress bar, on a terminal; 2, a line per epoch, elsewhere."""
    return 1 if sys.stdout and sys.stdout.isatty() else 2


def main():
    """Print the network's layers, output shapes and parameters."""
    argparse.ArgumentParser(description="Build the CNN and print its summary.").parse_args()
    build_model().summary()


if __name__ == "__main__":
    run(main)
