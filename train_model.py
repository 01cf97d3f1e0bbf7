"""Train the CNN, save it and draw its training curves.

python train_model.py [--data mnist | digits | PATH] [--epochs 10] [--model FILE.h5] ...
"""

import math
from pathlib import Path

# build_model before the others: it starts TensorFlow quietly.
from build_model import build_model, keras
from build_model import check_writable, model_parser, model_path, save_and_show, save_model, verbosity
from load_data import InputError, load_data, run

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from matplotlib.ticker import MaxNLocator

# The recipe. Each constant was chosen on the last 10,000 training images, held out; percentages are accuracy on them.
EPOCHS = 10
BATCH_SIZE = 128  # smaller: slower on 2 CPU cores; larger: less accurate in short runs
PEAK_RATE = 4e-3  # Adam's highest learning rate in 10 epochs. Half of it: 0.06 % less; twice as much: 0.11 % less
# Short runs need large steps: the peak is PEAK_RATE * (10 / epochs)**PEAK_EXPONENT, in 1 epoch twice PEAK_RATE.
PEAK_EXPONENT = 0.3
WARM_UP = 0.2  # part of the run in which the rate climbs to its peak. Without it: 0.03 % less; longer: the same
CORNER_SHIFT = 4.0  # pixels, for distortions. Smaller: it overfits; larger: illegible images; both lose 0.05 %


def train_model(data="mnist", epochs=EPOCHS, batch_size=BATCH_SIZE, seed=0, model=None, augment=True, callbacks=None):
    """Train the CNN on `data`, save it to the file `model` and draw its curves beside it.

    The test set is used for the curves only; nothing is chosen by it. Where it is faster, the
    network computes in bfloat16 while it is trained; its weights, and what is saved, are float32.
    The same seed gives the same weights, bit for bit, on the same CPU, number of cores and versions.

    It sets the random seeds of Python, NumPy and TensorFlow, which the whole process shares. To
    train several networks at once, use processes, such as joblib's (but not Python's `fork`:
    after it, Keras hangs).

    Args:
        data: a source that `load_data()` takes.
        epochs, batch_size: integers, at least 1.
        seed: integer from 0 to 2**32 - 1.
        model: path ending in .h5; default: the data's name and `_classification_model.h5`, in
            the current folder. It appears whole or not at all.
        augment: whether to distort half of the training images, at random.
        callbacks: what `fit()` takes: a Keras callback or several, such as `CSVLogger`; but
            none that sets the learning rate, as the recipe does.

    Returns:
        Keras's `History`; its `history` holds loss, accuracy, val_loss and val_accuracy
        (fractions, not percent) by epoch.

    Raises:
        InputError: bad data, a value out of range, a folder that can't be written, a full
            disk, a loss that became NaN or infinite.
    """
    check_integers(epochs=epochs, batch_size=batch_size, seed=seed)
    epochs, batch_size, seed = int(epochs), int(batch_size), int(seed)  # np.uint8(200) * 2 would overflow
    path = model_path(data, model)
    check_writable(path)

    X_train, y_train, X_test, y_test = load_data(data)
    keras.utils.set_random_seed(seed)
    steps = math.ceil(len(X_train) / batch_size)  # of an epoch
    network = build_fast_model(one_cycle(epochs, steps), steps_at_a_time(steps))
    history = network.fit(
        batches(X_train, y_train, batch_size, seed, augment),
        epochs=epochs,
        validation_data=batches(X_test, y_test, batch_size, seed, augment=False),  # faster than the arrays themselves
        callbacks=[keras.callbacks.TerminateOnNaN(), callbacks or []],  # Keras unpacks a list in a list
        shuffle=False,  # batches() shuffles; with True, Keras would warn that it can't
        verbose=verbosity(),
    )
    if not np.isfinite(history.history["loss"] + history.history["val_loss"]).all():
        raise InputError(f"the loss became NaN or infinite in epoch {history.epoch[-1] + 1}; {path} is as it was")

    trained = build_model()  # the same network in float32, with an ordinary optimizer for those who train it further
    trained.set_weights(network.get_weights())
    save_model(trained, path)
    save_and_show(draw_curves(history), path, "curves")
    return history


# The training's parts


def build_fast_model(learning_rate, steps_per_execution):
    """Return `build_model()`, but its layers compute in bfloat16, floats of 16 bits, where that is faster."""
    policy = "mixed_bfloat16" if bfloat16_is_faster() else "float32"
    keras.config.set_dtype_policy(policy)  # of the layers that are built from now on
    try:
        return build_model(learning_rate, steps_per_execution)
    finally:
        keras.config.set_dtype_policy("float32")


def bfloat16_is_faster():
    """Return whether the CPU has instructions for bfloat16, and there is no GPU.

    With them, training takes about two thirds of the time, at an accuracy within 0.1 %; without them, it would take
    longer than in float32. On a GPU it wasn't measured.
    """
    cpuinfo = Path("/proc/cpuinfo")  # where Linux lists a CPU's instructions by their names
    instructions = cpuinfo.read_text().split() if cpuinfo.exists() else []
    fast = "amx_bf16" in instructions or "avx512_bf16" in instructions
    return fast and not tf.config.list_physical_devices("GPU")


def one_cycle(epochs, steps):
    """Return a learning rate that climbs, then falls along a cosine to 0 after `epochs` of `steps` steps.

    It is a schedule: Keras asks it for the rate at each step.
    """
    peak = PEAK_RATE * (10 / epochs) ** PEAK_EXPONENT
    total = epochs * steps
    warm_up = int(WARM_UP * total)  # steps that climb; in the others, the rate falls
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0, warmup_target=peak, warmup_steps=warm_up, decay_steps=total - warm_up
    )


def steps_at_a_time(steps):
    """Return how many of an epoch's `steps` TensorFlow takes before it returns to Python, which costs time.

    At most 10, as more save little. The number divides `steps` (for 469, it is 7), or Keras's progress bar would run
    past its end.
    """
    return max(n for n in range(1, 11) if steps % n == 0)


def batches(X, y, batch_size, seed, augment=True):
    """Return batches of (images, labels), in a new order each epoch; the last may be smaller.

    They are a `tf.data.Dataset`: a pipeline that TensorFlow runs beside the training, again in each epoch.
    """
    dataset = tf.data.Dataset.from_tensor_slices((X, y)).shuffle(len(X), seed).batch(batch_size)
    if augment:
        # Each batch gets a seed for its distortions, a new one in each epoch. To TensorFlow, a seed is two integers.
        # zip() makes pairs of a batch and its seed, and map() calls distort_half() on each pair.
        seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).batch(2)
        dataset = tf.data.Dataset.zip(dataset, seeds).map(distort_half)
    options = tf.data.Options()
    options.autotune.enabled = False  # it would tune the pipeline, but stall for seconds after each epoch
    return dataset.prefetch(2).with_options(options)  # 2 batches are made ahead; more only take memory


def distort_half(batch, seed):
    """Distort the first half of a batch of (images, labels); as their order is random, any half will do.

    To distort all takes longer and is, in 10 epochs, no more accurate.
    """
    images, labels = batch
    half = (tf.shape(images)[0] + 1) // 2  # rounded up, so that an image alone is distorted, too
    return tf.concat([distort(images[:half], seed), images[half:]], axis=0), labels


def distort(images, seed):
    """Move the four corners of each image at random; the rest of the image follows, as if seen from another side.

    `images` is float32 (n, 28, 28, 1); `seed`, two integers, fixes the shifts. New pixels at the edges are 0, paper.
    """
    last = images.shape[1] - 1.0
    corners = [[0.0, 0.0], [last, 0.0], [0.0, last], [last, last]]  # x, y
    n = tf.shape(images)[0]
    corners = tf.tile([corners], [n, 1, 1])  # (n, 4, 2): the same four for each image
    # "Stateless": the same seed always gives the same numbers.
    shifts = tf.random.stateless_uniform(tf.shape(corners), seed, -CORNER_SHIFT, CORNER_SHIFT)
    return keras.ops.image.perspective_transform(images, corners, corners + shifts)


def draw_curves(history):
    """Return a figure of accuracy and loss by epoch, for training and test images, from Keras's `History`."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    epochs = [epoch + 1 for epoch in history.epoch]  # Keras counts from 0
    for ax, name in zip(axes, ("accuracy", "loss")):
        ax.plot(epochs, history.history[name], marker="o", label="Train")
        ax.plot(epochs, history.history[f"val_{name}"], marker="s", label="Test")
        ax.set(title=f"Model {name}", xlabel="Epoch", ylabel=name.capitalize())
        ax.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.grid(alpha=0.3)
        ax.legend()
    return figure


# Nothing below is needed to understand the training: checks, and running as a script


def check_integers(**values):
    """Raise InputError unless all values are whole numbers from 1 (a seed: from 0) to 2**32 - 1."""
    for name, value in values.items():
        least = 0 if name == "seed" else 1
        if not isinstance(value, (int, np.integer)) or not least <= value < 2**32:
            raise InputError(f"{name} must be a whole number from {least} to {2**32 - 1}, not {value}")


def main():
    """Read the command line and train."""
    parser = model_parser("Train the CNN, save it and draw its training curves.")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over the images (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="images in a batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same weights (default: %(default)s)")
    parser.add_argument("--no-augment", dest="augment", action="store_false", help="don't distort the images")
    train_model(**vars(parser.parse_args()))  # the options are named as its parameters


if __name__ == "__main__":
    run(main)
