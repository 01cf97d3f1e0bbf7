"""Train the CNN, save it and draw its training curves.

python train_model.py [--data mnist | digits | PATH] [--epochs 10] [--model FILE.h5] ...
"""

import contextlib
import glob
import io
import math
import os
import sys
import time
import warnings
from pathlib import Path

from load_data import InputError, data_parser, load_data, run  # first: it quietens TensorFlow's start
from build_model import build_model

import h5py
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras.src.legacy.saving.legacy_h5_format import save_model_to_hdf5
from matplotlib.ticker import MaxNLocator

# The recipe, chosen on the last 10,000 training images (see the README).
EPOCHS = 10
BATCH_SIZE = 128  # smaller ones are slower on 2 CPU cores, larger ones less accurate in short runs
PEAK_RATE = 8e-3  # Adam's learning rate at the top of the cycle, in a run of one epoch
PEAK_DECAY = 0.3  # longer runs do better with a lower one: 10**0.3 = 2, so half of it in 10 epochs
WARM_UP = 0.2  # part of the run in which the rate climbs
ROTATION = 10  # largest angle, degrees
SCALING = 0.1  # largest change of width and of height
SHIFT = 2  # largest shift, pixels
STEPS_PER_EXECUTION = 8  # fewer returns to Python: the same steps, sooner
# Intel CPUs with AMX multiply numbers of 16 bits so fast that a run takes about 0.6 of the time, at the
# same accuracy. Without AMX it would take longer. Linux tells; elsewhere all is computed in float32.
CPUINFO = Path("/proc/cpuinfo")
BFLOAT16 = CPUINFO.exists() and "amx_bf16" in CPUINFO.read_text()

MODEL_HELP = "the model's file (default: the data's name and _classification_model.h5, in this folder)"


def train_model(data="mnist", epochs=EPOCHS, batch_size=BATCH_SIZE, seed=0, model=None, augment=True):
    """Train the CNN on `data`, save it to the file `model` and its curves beside it.

    The test set is used for the curves only; nothing is chosen by it. Where `BFLOAT16` is
    true, training computes in bfloat16; validation and the saved model are float32. The same
    seed gives the same weights, bit for bit, on the same CPU, number of cores and versions.

    Args:
        data: a source that `load_data()` takes.
        epochs, batch_size: positive integers.
        seed: integer from 0 to 2**32 - 1.
        model: path ending in .h5; default: `model_file(data)` in the current folder. It
            appears whole or not at all.
        augment: whether to distort half of the training images, at random.

    Returns:
        Keras's `History`; its `history` holds loss, accuracy, val_loss and val_accuracy
        (fractions, not percent) by epoch.

    Raises:
        InputError: bad data, a folder that can't be written, a loss that became NaN.
    """
    model = Path(model or model_file(data))
    with whole_file(model) as temporary:
        X_train, y_train, X_test, y_test = load_data(data)
        keras.utils.set_random_seed(seed)
        network = build_model()
        network.optimizer.learning_rate = one_cycle(epochs, math.ceil(len(X_train) / batch_size))
        network.steps_per_execution = STEPS_PER_EXECUTION
        try:
            history = network.fit(
                batches(X_train, y_train, batch_size, seed, augment),
                epochs=epochs,
                validation_data=batches(X_test, y_test, batch_size),
                callbacks=[
                    keras.callbacks.TerminateOnNaN(),
                    keras.callbacks.LambdaCallback(
                        on_epoch_begin=lambda epoch, logs: mixed_precision(BFLOAT16),
                        on_test_begin=lambda logs: mixed_precision(False),  # as evaluate_model.py has it
                    ),
                ],
                shuffle=False,  # `batches` has done it
                verbose=progress(),
            )
        finally:
            mixed_precision(False)
        if not np.isfinite(history.history["loss"] + history.history["val_loss"]).all():
            raise InputError(f"the loss became NaN in epoch {len(history.epoch)}; {model} is as it was")
        save(network, temporary, model)
    print(f"Saved {model}")
    save_picture(model.with_name(f"{model.stem}_curves.png"), draw_history, history.history)
    return history


def model_file(data):
    """Return the default name of the model file: it carries the data's name."""
    path = Path(os.path.abspath(data))
    return f"{path.name if path.is_dir() else path.stem}_classification_model.h5"


def one_cycle(epochs, steps):
    """Return a learning rate that climbs, then falls along a cosine to 0 after `epochs` of `steps` steps."""
    peak = PEAK_RATE / epochs**PEAK_DECAY
    total = epochs * steps
    warm_up = int(WARM_UP * total)
    return keras.optimizers.schedules.CosineDecay(
        peak / 100, total - warm_up, warmup_target=peak, warmup_steps=warm_up
    )


def batches(X, y, batch_size, seed=None, augment=False):
    """Return a tf.data.Dataset of (images, labels) batches, the last one maybe smaller.

    With a seed, each epoch has a new order; with `augment`, half of a batch is distorted.
    """
    indices = tf.data.Dataset.range(len(X))
    if seed is not None:
        indices = indices.shuffle(len(X), seed=seed, reshuffle_each_iteration=True)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)

    def gather(index, pair):  # by NumPy: as a tensor, the images would lie in memory twice
        images = tf.numpy_function(lambda i: X[i], [index], X.dtype, stateful=False)
        images = tf.ensure_shape(images, (None, *X.shape[1:]))
        if augment:  # half of them, others in each epoch: as accurate as all, and faster
            half = (tf.shape(images)[0] + 1) // 2
            images = tf.concat([distort(images[:half], pair), images[half:]], axis=0)
        return images, tf.gather(y, index)

    dataset = tf.data.Dataset.zip(indices.batch(batch_size), seeds).map(gather).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False  # its thread would stall the end of every epoch for seconds
    return dataset.with_options(options)


def distort(images, seed):
    """Rotate, scale and shift each image at random, in one interpolation.

    `images` is float32 (n, 28, 28, 1), `seed` two integers that fix what comes out.
    """
    draw = tf.random.stateless_uniform((5, tf.shape(images)[0]), seed, -1.0, 1.0)
    angle = draw[0] * math.radians(ROTATION)
    width, height = 1 + SCALING * draw[1], 1 + SCALING * draw[2]
    # The matrix leads from a pixel of the result back to the image, about the centre.
    a, b = width * tf.cos(angle), -width * tf.sin(angle)
    c, d = height * tf.sin(angle), height * tf.cos(angle)
    centre = (images.shape[1] - 1) / 2
    x = centre - centre * (a + b) + SHIFT * draw[3]
    y = centre - centre * (c + d) + SHIFT * draw[4]
    zero = tf.zeros_like(a)
    return keras.ops.image.affine_transform(images, tf.stack([a, b, x, c, d, y, zero, zero], axis=1))


def mixed_precision(on):
    """Have TensorFlow compute what runs next in bfloat16 where it can (`on` is true), or all in float32.

    Weights stay float32. It is a switch of the whole process, so train side by side in
    processes, not in threads.
    """
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": on})


def progress():
    """Return Keras's `verbose`: a progress bar on a terminal, a line per epoch in a file."""
    return 1 if sys.stdout.isatty() else 2


@contextlib.contextmanager
def whole_file(path):
    """Yield a temporary file beside `path`, which takes that name only if the block ends well.

    It is made at once, so an output folder that can't be written is known at the start.
    Raises InputError.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "Is a directory")
        temporary.touch()
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror})") from error
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.stem)}.[0-9]*{path.suffix}"):
        with contextlib.suppress(OSError):  # another run may have cleared it
            if leftover.stat().st_mtime < time.time() - 86_400:  # a run that was killed left it
                leftover.unlink()


def save(network, temporary, model):
    """Write `network` to the file `temporary`, which stands in for `model`. Raises InputError."""
    content = io.BytesIO()  # HDF5 can crash Python when the disk is full
    with h5py.File(content, "w") as file:
        save_model_to_hdf5(network, file)  # network.save() would warn that .h5 is legacy
    try:
        temporary.write_bytes(content.getvalue())
    except OSError as error:
        raise InputError(f"{model}: could not be saved ({error.strerror})") from error


def save_picture(path, draw, *args):
    """Save the figure that `draw(*args)` returns, and show it where there is a display."""
    try:
        figure = draw(*args)
        with whole_file(path) as temporary:
            figure.savefig(temporary)
    except (ImportError, OSError, RuntimeError) as error:  # MPLBACKEND can't run here, full disk
        raise InputError(f"{path}: could not be drawn ({error})") from error
    print(f"Saved {path}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*non-interactive")  # no display: nothing to show
        plt.show()
    plt.close(figure)


def draw_history(history):
    """Return a figure of accuracy and loss by epoch, for training and test images."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    epochs = range(1, len(history["loss"]) + 1)
    for ax, name in zip(axes, ("accuracy", "loss")):
        ax.plot(epochs, history[name], marker="o", label="Train")
        ax.plot(epochs, history[f"val_{name}"], marker="s", label="Test")
        ax.set(title=f"Model {name}", xlabel="Epoch", ylabel=name.capitalize())
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend()
    return figure


def positive(text):
    """Convert text to a positive integer for argparse."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def seed_number(text):
    """Convert text to an integer that Keras takes as seed, for argparse."""
    if not 0 <= int(text) < 2**32:
        raise ValueError
    return int(text)


def h5_file(text):
    """Convert text to a path that ends in .h5, for argparse."""
    if Path(text).suffix != ".h5":
        raise ValueError
    return Path(text)


def main():
    """Read the command line and train."""
    parser = data_parser("Train the CNN, save it and draw its training curves.")
    parser.add_argument(
        "--epochs", type=positive, default=EPOCHS, help="passes over the images (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=BATCH_SIZE, help="images a step (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="fixes all that is random (default: %(default)s)"
    )
    parser.add_argument("--model", type=h5_file, metavar="FILE.h5", help=MODEL_HELP)
    parser.add_argument("--no-augment", dest="augment", action="store_false", help="don't distort the images")
    train_model(**vars(parser.parse_args()))


if __name__ == "__main__":
    run(main)
