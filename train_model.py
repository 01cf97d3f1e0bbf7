"""Train the CNN, save it and draw its training curves.

python train_model.py [--data mnist | digits | PATH] [--epochs 10] [--model FILE.h5] ...
"""

import contextlib
import glob
import logging
import math
import os
import sys
import time
import uuid
import warnings
from pathlib import Path

from build_model import build_model, keras  # first: it starts TensorFlow quietly
from load_data import InputError, check_source, data_parser, load_data, run

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from matplotlib.ticker import MaxNLocator

logging.getLogger("absl").addFilter(lambda record: "HDF5 file" not in record.getMessage())  # Keras advises against .h5

# The recipe. Every choice was made by validating on the last 10,000 training images, held out (see the README).
EPOCHS = 10
BATCH_SIZE = 128  # smaller ones are slower on 2 CPU cores, larger ones less accurate in short runs
PEAK_RATE = 8e-3  # Adam's learning rate at the top of the cycle, in a run of one epoch
PEAK_DECAY = 0.3  # longer runs do better with a lower peak: 10**0.3 is 2, so it is halved for 10 epochs
WARM_UP = 0.2  # part of the run in which the rate climbs
DISTORT_ONE_IN = 2  # half of each batch is distorted: faster than all of it and, in 10 epochs, more accurate
CORNER_SHIFT = 4.0  # a distortion moves each corner of an image by up to this many pixels, in x and in y
# On a CPU with instructions for bfloat16 (16-bit floats), training takes about two thirds of the time, at an
# accuracy within 0.1 %; without them it would take longer. Linux lists them in this file. Not measured on a GPU.
CPUINFO = Path("/proc/cpuinfo")
CPU_FLAGS = CPUINFO.read_text().split() if CPUINFO.exists() else []
BFLOAT16 = ("amx_bf16" in CPU_FLAGS or "avx512_bf16" in CPU_FLAGS) and not tf.config.list_physical_devices("GPU")


def train_model(data="mnist", epochs=EPOCHS, batch_size=BATCH_SIZE, seed=0, model=None, augment=True, callbacks=()):
    """Train the CNN on `data`, save it to the file `model` and its curves beside it.

    The test set is used for the curves only; nothing is chosen by it. Where `BFLOAT16` is
    true, training computes in bfloat16; validation and the saved model are float32. The same
    seed gives the same weights, bit for bit, on the same CPU, number of cores and versions.
    It sets the random seeds of Python, NumPy and TensorFlow, which the whole process shares:
    to train several networks side by side, use processes, not threads.

    Args:
        data: a source that `load_data()` takes.
        epochs, batch_size: integers, at least 1.
        seed: integer from 0 to 2**32 - 1.
        model: path ending in .h5; default: the data's name and `_classification_model.h5`, in
            the current folder. It appears whole or not at all.
        augment: whether to distort half of the training images, at random.
        callbacks: more Keras callbacks, such as `keras.callbacks.CSVLogger`.

    Returns:
        Keras's `History`; its `history` holds loss, accuracy, val_loss and val_accuracy
        (fractions, not percent) by epoch.

    Raises:
        InputError: bad data, a value out of range, a folder that can't be written, a full
            disk, a loss that became NaN or infinite.
    """
    check_integer("epochs", epochs, 1)
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, 0, 2**32 - 1)
    path = model_path(data, model)
    create_temporary(path).unlink()  # a folder that can't be written should fail now, not after training

    X_train, y_train, X_test, y_test = load_data(data)
    keras.utils.set_random_seed(int(seed))
    network = build_model()
    steps = math.ceil(len(X_train) / batch_size)  # of an epoch
    network.optimizer.learning_rate = one_cycle(epochs, steps)
    network.steps_per_execution = steps_per_execution(steps)
    # Keras compiles the training step and the validation step when each first runs, in the precision set then.
    # Every epoch ends with validation: the layers are float32 when the model is saved.
    precision = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: compute_in(network, "mixed_bfloat16" if BFLOAT16 else "float32"),
        on_test_begin=lambda logs: compute_in(network, "float32"),
    )
    try:
        history = network.fit(
            batches(X_train, y_train, batch_size, seed, augment),
            epochs=epochs,
            validation_data=batches(X_test, y_test, batch_size),
            callbacks=[precision, keras.callbacks.TerminateOnNaN(), *callbacks],
            shuffle=False,  # otherwise Keras warns that it can't shuffle a Dataset
            verbose=progress(),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {path} is as it was") from None
    if not np.isfinite(history.history["loss"] + history.history["val_loss"]).all():
        raise InputError(f"the loss became NaN or infinite in epoch {len(history.epoch)}; {path} is as it was")

    save_whole(path, lambda temporary: save_network(network, temporary))
    print(f"Saved {path}")
    save_picture(path, "curves", draw_history(history.history))
    return history


# Parts of a run


def check_integer(name, value, least, most=math.inf):
    """Raise InputError unless `value` is an integer in the range."""
    if not isinstance(value, (int, np.integer)) or not least <= value <= most:
        limits = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise InputError(f"{name} must be a whole number {limits}, not {value}")


def model_path(data, model=None):
    """Return the path of the model's file, named after the data if `model` is None.

    Raises InputError for a name that isn't an .h5 file's, or data that isn't there.
    """
    check_source(data)
    if model is None:
        source = Path(os.path.abspath(data))  # so that "." has a name, too
        model = f"{source.name if source.is_dir() else source.stem}_classification_model.h5"
    path = Path(model)
    if path.suffix != ".h5":
        raise InputError(f"the model's name must end in .h5, not {path.name} (try my_model.h5)")
    return path


def one_cycle(epochs, steps):
    """Return a learning rate that climbs, then falls along a cosine to 0 after `epochs` of `steps` steps."""
    peak = PEAK_RATE / epochs**PEAK_DECAY
    total = epochs * steps
    warm_up = int(WARM_UP * total)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=peak / 100, warmup_target=peak, warmup_steps=warm_up, decay_steps=total - warm_up
    )


def steps_per_execution(steps):
    """Return how many of an epoch's `steps` to take at a time, which saves returns to Python.

    It divides `steps`, or Keras's progress bar would run past its end.
    """
    return max(n for n in range(1, 11) if steps % n == 0)


def compute_in(network, dtype_policy):
    """Give all layers but the last a Keras dtype policy to compute in; their weights stay float32."""
    for layer in network.layers[:-1]:  # the last one's probabilities need float32's digits
        layer.dtype_policy = dtype_policy


def progress():
    """Return Keras's `verbose`: a progress bar on a terminal, a line per epoch elsewhere."""
    return 1 if sys.stdout and sys.stdout.isatty() else 2


# Batches of images


def batches(X, y, batch_size, seed=None, augment=False):
    """Return a tf.data.Dataset of (images, labels) batches, the last one maybe smaller.

    With a seed, each epoch has a new order; with `augment`, part of each batch is distorted.
    """
    indices = tf.data.Dataset.range(len(X))  # these are shuffled rather than the images, which are larger
    if seed is not None:
        indices = indices.shuffle(len(X), seed=seed, reshuffle_each_iteration=True)
    # Two random integers for each batch, new ones in each epoch: what `distort` takes as its seed.
    seed_pairs = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)

    def gather(chosen, seed_pair):
        # NumPy takes the images out of X; with X as a tensor, they would lie in memory twice.
        images = tf.numpy_function(lambda chosen: X[chosen], [chosen], X.dtype, stateful=False)
        images = tf.ensure_shape(images, (None, *X.shape[1:]))
        if augment:  # the first part of the batch: in a random order, it is as good as any
            count = (tf.size(chosen) + DISTORT_ONE_IN - 1) // DISTORT_ONE_IN  # rounded up
            images = tf.concat([distort(images[:count], seed_pair), images[count:]], axis=0)
        return images, tf.gather(y, chosen)

    dataset = tf.data.Dataset.zip(indices.batch(batch_size), seed_pairs).map(gather).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False  # its thread would stall the end of every epoch for seconds
    return dataset.with_options(options)


def distort(images, seed):
    """Move the four corners of each image at random; the rest of the image follows. What comes in is paper (0).

    `images` is float32 (n, 28, 28, 1), `seed` two integers that fix what comes out.
    """
    last = images.shape[1] - 1.0
    corners = [[0.0, 0.0], [last, 0.0], [0.0, last], [last, last]]  # x, y
    corners = tf.tile([corners], [tf.shape(images)[0], 1, 1])
    shifts = tf.random.stateless_uniform(tf.shape(corners), seed, -CORNER_SHIFT, CORNER_SHIFT)
    return keras.ops.image.perspective_transform(images, corners, corners + shifts)


# Files that appear whole or not at all


def save_whole(path, save):
    """Let `save` write a temporary file, which then replaces `path`. Raises InputError."""
    temporary = create_temporary(path)
    try:
        save(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # or a power cut could leave an empty file under the good name
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: could not be saved ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    clear_leftovers(path)


def create_temporary(path):
    """Create an empty file beside `path` and return its path. Raises InputError where that can't be done."""
    if os.path.isdir(path):
        raise InputError(f"{path}: can't be written (it is a folder)")
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        temporary.touch()
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror})") from error
    return temporary


def clear_leftovers(path):
    """Remove temporary files for `path` that are a day old: runs that were killed left them."""
    for leftover in path.parent.glob(f".{glob.escape(path.stem)}.{'[0-9a-f]' * 32}{path.suffix}"):
        with contextlib.suppress(OSError):  # another run may have removed it
            if leftover.stat().st_mtime < time.time() - 24 * 60 * 60:
                leftover.unlink()


def save_network(network, path):
    """Write the network and its optimizer to the .h5 file `path`. Raises OSError when the disk is full."""
    # HDF5 can crash Python on a full disk, so try first whether there is space: 4 bytes for each weight and
    # for Adam's two moments of it, doubled, plus 256 KiB, for HDF5's own data.
    path.write_bytes(bytes(2 * 4 * 3 * network.count_params() + 2**18))
    network.save(path)


def save_picture(model_file, name, figure, note=""):
    """Save a figure beside the model's file, and show it where there is a display. Raises InputError."""
    path = model_file.with_name(f"{model_file.stem}_{name}.png")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a file's name may hold what the font lacks
        warnings.filterwarnings("ignore", ".*non-interactive")  # no display: nothing to show
        try:
            save_whole(path, figure.savefig)
        except RuntimeError as error:  # matplotlib's, of a font that can't be read
            raise InputError(f"{path}: could not be drawn ({error})") from error
        print(f"Saved {path}{note}")
        plt.show()
    plt.close(figure)


def draw_history(history):
    """Return a figure of accuracy and loss by epoch, for training and test images."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    epochs = range(1, len(history["loss"]) + 1)
    for ax, name in zip(axes, ("accuracy", "loss")):
        ax.plot(epochs, history[name], marker="o", label="Train")
        ax.plot(epochs, history[f"val_{name}"], marker="s", label="Test")
        ax.set(title=f"Model {name}", xlabel="Epoch", ylabel=name.capitalize(), xlim=(0.5, len(epochs) + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.grid(alpha=0.3)
        ax.legend()
    return figure


# Running as a script

MODEL_HELP = "the model's file (default: the data's name and _classification_model.h5, in the current folder)"


def main():
    """Read the command line and train."""
    parser = data_parser("Train the CNN, save it and draw its training curves.")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over the images (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="images in a batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same weights (default: %(default)s)")
    parser.add_argument("--model", metavar="FILE.h5", help=MODEL_HELP)
    parser.add_argument("--no-augment", dest="augment", action="store_false", help="don't distort the images")
    train_model(**vars(parser.parse_args()))  # each option has the name of a parameter


if __name__ == "__main__":
    run(main)
