"""Load MNIST, or any data set of its form, as float32 images and one-hot labels.

    python load_data.py [--data mnist | digits | PATH]
"""

import argparse
import contextlib
import gzip
import math
import os
import re
import socket
import struct
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

IMAGE_SHAPE = (28, 28, 1)
CLASSES = 10
MAX_IMAGES = 280_000  # train and test together: EMNIST Digits, the largest set of this form
DATA_HELP = "mnist (downloaded once), digits (needs no download), an .npz file or a folder of IDX files"


@contextlib.contextmanager
def quiet_start():
    """Drop the start-up notes that TensorFlow 2.21 prints before it reads its own settings."""
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") != "2":
        yield  # the user asked for another level: hide nothing
        return
    with tempfile.TemporaryFile() as log:
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            log.seek(0)
            for line in log.read().decode(errors="replace").splitlines():
                if not re.match(r"I\d{4} |E\d{4} .*cuInit|WARNING: All log messages before", line):
                    print(line, file=sys.stderr)


with quiet_start():
    import keras
    import tensorflow as tf

    tf.config.list_physical_devices()  # looking for a GPU prints such notes too


class InputError(ValueError):
    """Something the user gave can't be used; the message says what, and what to do, in one line."""


def run(main):
    """Run a script's `main()`; what the user can mend ends in one line on stderr, no traceback."""
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        sys.exit("error: " + " ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def load_data(source="mnist"):
    """Load and preprocess a data set of 28x28 grey images in 10 classes.

    Args:
        source: `"mnist"`, the 70,000 images that Keras downloads once and checks by SHA-256
            (cached under `~/.keras`, or `KERAS_HOME`); `"digits"`, the 1,797 8x8 digits that
            ship with scikit-learn, enlarged, 1,500 of them for training; or a path: an `.npz`
            file with Keras's array names (`x_train`, `y_train`, `x_test`, `y_test`), or a
            folder with the four IDX files of the original distribution, gzipped or not.

    Returns:
        `X_train, y_train, X_test, y_test`. Images are float32 of shape (n, 28, 28, 1), from
        0 (paper) to 1 (ink); labels are one-hot float32 of shape (n, 10).

    Raises:
        InputError: the source can't be found, downloaded or read, or isn't of this form.
    """
    source = os.fspath(source)
    if source == "mnist":
        arrays = download_mnist()
    elif source == "digits":
        arrays = enlarge_digits()
    elif os.path.isdir(source):
        arrays = read_idx_folder(source)
    elif os.path.isfile(source):
        arrays = read_npz(source)
    else:
        raise InputError(f"{source}: no such file or folder; the data can be {DATA_HELP}")
    x_train, y_train, x_test, y_test = arrays
    if len(x_train) + len(x_test) > MAX_IMAGES:
        raise InputError(f"{source}: more than {MAX_IMAGES} images")
    check_arrays(source, x_train, y_train, "train")
    check_arrays(source, x_test, y_test, "test")
    return scale(x_train), one_hot(y_train), scale(x_test), one_hot(y_test)


def scale(images):
    return np.divide(images, 255, dtype=np.float32)[..., np.newaxis]


def one_hot(labels):
    return np.eye(CLASSES, dtype=np.float32)[labels]


def check_arrays(source, images, labels, split):
    """Raise InputError unless these are uint8 images (n, 28, 28) with n labels from 0 to 9."""
    where = f"{source}: {split}"
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != IMAGE_SHAPE[:2]:
        raise InputError(
            f"{where} images: expected uint8 of shape (n, 28, 28), found {images.dtype} of shape {images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InputError(
            f"{where} labels: expected integers of shape (n,), found {labels.dtype} of shape {labels.shape}"
        )
    if not len(images) or len(images) != len(labels):
        raise InputError(f"{where}: {len(images)} images and {len(labels)} labels; expected as many, at least one")
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise InputError(f"{where} labels: expected 0 to 9, found {labels.min()} to {labels.max()}")


def download_mnist():
    """Return MNIST's four uint8 arrays from Keras's cache, downloaded at the first call."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)  # seconds; Keras sets none, and a silent host would hang us
    try:
        (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
    except Exception as error:  # Keras raises a bare Exception
        raise InputError(
            f"MNIST could not be downloaded ({error}); "
            "use a copy with --data PATH, or --data digits, which needs no download"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return x_train, y_train, x_test, y_test


def enlarge_digits():
    """Return scikit-learn's 8x8 digits in MNIST's form: a 20x20 box in 28x28 pixels."""
    digits = load_digits()
    images = np.zeros((len(digits.images), 28, 28), np.uint8)
    for image, small in zip(images, digits.images):
        box = Image.fromarray((small * (255 / 16)).astype(np.uint8)).resize((20, 20), Image.Resampling.BICUBIC)
        image[4:24, 4:24] = box
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=297, stratify=digits.target, random_state=0
    )
    return x_train, y_train, x_test, y_test


def read_npz(path):
    """Return the arrays x_train, y_train, x_test, y_test of an .npz file."""
    arrays, where = [], path
    try:
        with zipfile.ZipFile(path) as archive:
            for name in ("x_train", "y_train", "x_test", "y_test"):
                where = f"{path}: {name}"
                # zipfile never unpacks more than the size that a member declares.
                if archive.getinfo(f"{name}.npy").file_size > MAX_IMAGES * math.prod(IMAGE_SHAPE):
                    raise ValueError(f"larger than {MAX_IMAGES} images of 28x28 bytes")
                with archive.open(f"{name}.npy") as file:
                    arrays.append(np.lib.format.read_array(file, allow_pickle=False))
    except Exception as error:  # a damaged file makes zipfile and NumPy raise almost anything
        raise InputError(f"{where}: {error}") from error
    return arrays


def read_idx_folder(folder):
    """Return train images, train labels, test images and test labels from the IDX files."""
    return [
        read_idx(folder, f"{split}-{kind}", shape)
        for split in ("train", "t10k")
        for kind, shape in (("images", IMAGE_SHAPE[:2]), ("labels", ()))
    ]


def read_idx(folder, name, item_shape):
    """Return the uint8 array of one IDX file: a big-endian header, then the bytes."""
    ndim = 1 + len(item_shape)
    names = [f"{name}{dash}idx{ndim}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    found = [Path(folder, name) for name in names if Path(folder, name).is_file()]
    if not found:
        raise InputError(f"{folder}: has no {names[0]}, with or without .gz")
    where = f"{folder}: {found[0].name}"
    try:
        with open(found[0], "rb") as raw:
            file = gzip.open(raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            magic, *shape = struct.unpack(f">{1 + ndim}I", file.read(4 * (1 + ndim)))
            size = math.prod(shape)
            data = file.read(min(size, MAX_IMAGES * math.prod(item_shape)) + 1)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise InputError(f"{where}: truncated or corrupt ({error})") from error
    if magic != 0x800 + ndim:
        raise InputError(f"{where}: magic number is {magic:#010x}, expected {0x800 + ndim:#010x}")
    if len(data) != size:
        raise InputError(f"{where}: header promises {shape}, {size} bytes; the file holds {'more' if len(data) > size else 'fewer'}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def main():
    """Print what a data set holds."""
    parser = argparse.ArgumentParser(
        description="Load a data set and print what it holds.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", default="mnist", help=DATA_HELP)
    X_train, y_train, X_test, y_test = load_data(parser.parse_args().data)
    for split, X, y in (("train", X_train, y_train), ("test", X_test, y_test)):
        print(f"{split} images: {X.dtype} {X.shape} from {X.min():g} to {X.max():g}")
        print(f"{split} labels: {y.dtype} {y.shape}, images per class {y.sum(axis=0).astype(int).tolist()}")


if __name__ == "__main__":
    run(main)
