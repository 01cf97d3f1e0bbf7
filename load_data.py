"""Load MNIST, or any data set of its form, as float32 images and one-hot labels.

python load_data.py [--data mnist | digits | PATH]
"""

import argparse
import contextlib
import errno
import gzip
import math
import os
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

os.environ["KERAS_BACKEND"] = "tensorflow"  # must be set before Keras is imported; replaces the user's own setting
IMAGE_SHAPE = (28, 28, 1)
CLASSES = 10
MAX_BYTES = 280_000 * 28 * 28  # of an array: as large as EMNIST Digits; a larger one could fill the memory
DATA_HELP = "mnist (downloaded once), digits (needs no download), an .npz file or a folder of IDX files"


def load_data(source="mnist"):
    """Load and preprocess a data set of 28x28 grey images in 10 classes.

    Args:
        source: `"mnist"`, the 70,000 images that Keras downloads once and checks by SHA-256
            (cached under `~/.keras`, or `KERAS_HOME`); `"digits"`, the 1,797 8x8 digits that
            ship with scikit-learn, enlarged, 1,500 of them for training; or a path: an `.npz`
            file with Keras's array names (`x_train`, `y_train`, `x_test`, `y_test`), images uint8
            (n, 28, 28) and labels integers from 0 to 9, or a folder with the four IDX files of
            the original distribution, gzipped or not.

    Returns:
        `X_train, y_train, X_test, y_test`. Images are float32 of shape (n, 28, 28, 1), from
        0 (paper) to 1 (ink); labels are one-hot float32 of shape (n, 10).

    Raises:
        InputError: the source can't be found, downloaded or read, or isn't of this form.
    """
    source = os.fspath(source)
    if source == "mnist":
        train_images, train_labels, test_images, test_labels = download_mnist()
    elif source == "digits":
        train_images, train_labels, test_images, test_labels = enlarge_digits()
    elif os.path.isdir(source):
        names = ("train-images", "train-labels", "t10k-images", "t10k-labels")
        train_images, train_labels, test_images, test_labels = [read_idx(source, name) for name in names]
    elif os.path.isfile(source):
        train_images, train_labels, test_images, test_labels = read_npz(source)
    else:
        raise InputError(f"{source}: no such file or folder; the data can be {DATA_HELP}")
    check_form(f"{source}: train", train_images, train_labels)
    check_form(f"{source}: test", test_images, test_labels)
    X_train, y_train = preprocess(train_images, train_labels)
    X_test, y_test = preprocess(test_images, test_labels)
    return X_train, y_train, X_test, y_test


# The four sources. Each function returns uint8 images (n, 28, 28) and integer labels (n,).


def download_mnist():
    """Return MNIST's four arrays from Keras's cache, downloaded at the first call. Raises InputError."""
    with quiet_start():  # hides what TensorFlow prints; imported only here, as the rest of the file doesn't need it
        from keras.datasets import mnist

    try:
        (x_train, y_train), (x_test, y_test) = mnist.load_data()
    except Exception as error:  # Keras raises a bare Exception
        ways_on = "use a copy with --data PATH, or --data digits, which needs no download"
        raise InputError(f"MNIST could not be downloaded ({error}); {ways_on}") from error
    return x_train, y_train, x_test, y_test


def enlarge_digits():
    """Return scikit-learn's 8x8 digits in MNIST's form, always split the same way."""
    digits = load_digits()
    images = np.array([np.uint8(255 * fit_to_mnist(image)) for image in digits.images])
    # Stratified: each class has the same share in both parts.
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, train_size=1500, stratify=digits.target, random_state=0
    )
    return x_train, y_train, x_test, y_test


def read_npz(path):
    """Return the arrays x_train, y_train, x_test and y_test of an .npz file. Raises InputError."""
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        # An .npz file is a zip file of arrays. np.load() refuses pickled objects, which can run code.
        with zipfile.ZipFile(path) as archive, np.load(path) as file:
            if max(member.file_size for member in archive.infolist()) > MAX_BYTES + 1000:  # 1000 bytes for its header
                raise ValueError(f"an array takes over {MAX_BYTES // 10**6} MB; images must be uint8, at most 280,000")
            # A member that is no array comes as bytes, of which asarray() makes one that check_form() refuses.
            return [np.asarray(file[name]) for name in names]
    except Exception as error:  # a damaged file makes NumPy raise almost anything
        raise InputError(f"{path}: can't be read as .npz data with {', '.join(names)} ({error})") from error


def read_idx(folder, name):
    """Return the images or labels of one IDX file, such as train-images-idx3-ubyte.gz. Raises InputError.

    It begins with big-endian integers: 0x803 for bytes in 3 dimensions or 0x801 for bytes in 1, then the dimensions'
    sizes. The bytes follow.
    """
    ndim = 3 if name.endswith("images") else 1
    # ? stands for "-", in Kaggle's copies for "." (there, the name with "-" is a folder's); * for "" or ".gz".
    paths = sorted(path for path in Path(folder).glob(f"{name}?idx{ndim}-ubyte*") if path.is_file())
    if not paths:
        raise InputError(f"{folder}: has no {name}-idx{ndim}-ubyte, with or without .gz")
    path = paths[0]
    try:
        opened = gzip.open(path) if path.suffix == ".gz" else open(path, "rb")
        with opened as file:
            header = file.read(4 + 4 * ndim)
            content = file.read(MAX_BYTES)  # longer files are cut here; the check of the length refuses them
        magic, *shape = struct.unpack(f">{1 + ndim}I", header)  # ">4I": 4 big-endian integers, 0x803, 60000, 28, 28
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"{path}: can't be read ({error})") from error
    if magic != 0x800 + ndim or len(content) != math.prod(shape):
        limit = f"at most {MAX_BYTES // 10**6} MB"
        raise InputError(f"{path}: isn't an IDX file ({limit}) of {ndim} dimensions with a header that fits its length")
    return np.frombuffer(content, np.uint8).reshape(shape)


# From raw images to the network's input


def preprocess(images, labels):
    """Return images divided by 255, with an axis for the one channel, and labels one-hot; both float32."""
    scaled = np.divide(images, 255, dtype=np.float32)
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]  # row 3 of the unit matrix is the one-hot label of class 3
    return scaled[..., np.newaxis], one_hot


def fit_to_mnist(ink):
    """Return one digit's ink, of any size and strength, as MNIST's authors prepared theirs: float32 (28, 28).

    It is cropped, scaled to fit 20x20 pixels, and placed so that its centre of mass is at 14, 14.
    """
    small = crop_and_scale(ink, 20)
    digit = np.pad(small, [(0, 28 - side) for side in small.shape])  # zeros below and to the right, up to 28x28
    y, x = ndimage.center_of_mass(digit)
    return ndimage.shift(digit, (round(14 - y), round(14 - x)), order=0)  # order 0 moves whole pixels


def crop_and_scale(ink, length):
    """Return ink cropped, its longer side scaled to `length` pixels and its strongest pixel to 1."""
    ink = ink / ink.max()
    visible = Image.fromarray(ink > 0.2)  # higher: faint ends are cut off; lower: a grey rim counts as ink
    box = visible.getbbox()  # the smallest box around all visible pixels
    image = Image.fromarray(ink.astype(np.float32)).crop(box)
    size = [max(1, round(length * side / max(image.size))) for side in image.size]  # width and height, at least 1
    scaled = np.asarray(image.resize(size)).clip(0, 1)  # smooth scaling can go below 0 and above 1
    return scaled / scaled.max()


# Nothing below is needed to understand the data: checks, and running as a script


class InputError(ValueError):
    """A problem that the user can fix; the message says in one line what it is and, where it helps, what to do."""


def check_form(name, images, labels):
    """Raise InputError unless images and labels are of MNIST's form."""
    problem = None
    if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE[:2]:
        problem = f"images are {images.dtype} of shape {images.shape}, expected uint8 of shape (n, 28, 28)"
    elif labels.dtype.kind not in "iu" or labels.ndim != 1:  # signed or unsigned integers
        problem = f"labels are {labels.dtype} of shape {labels.shape}, expected integers of shape (n,)"
    elif len(images) != len(labels) or not len(images):
        problem = f"has {len(images)} images and {len(labels)} labels, expected equally many, at least one"
    elif labels.min() < 0 or labels.max() >= CLASSES:
        problem = f"labels are {labels.min()} to {labels.max()}, expected 0 to 9"
    if problem:
        raise InputError(f"{name} {problem}")


def data_parser(description):
    """Return an argparse parser with the option --data."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", default="mnist", help=f"{DATA_HELP} (default: %(default)s)")
    return parser


def run(main):
    """Run a script's `main()`. An InputError ends it in one line and status 1; a bug keeps its traceback."""
    try:
        main()
        print(end="", flush=True)  # writes what Python still holds back: if that fails, it should fail here
    except InputError as error:
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        # Has the program that reads our output quit, as in `... | head -1`? Windows reports it as EINVAL.
        reader_quit = errno.EINVAL if os.name == "nt" else errno.EPIPE
        if error.errno != reader_quit:
            raise
        os._exit(1)  # leaves at once; a usual exit would try to write the rest of the output, and fail again


@contextlib.contextmanager
def quiet_start():
    """Hide what TensorFlow writes to stderr while it starts: `with quiet_start(): import keras`.

    It writes about six lines that no setting hides, and not through Python, but to file descriptor 2, which is what the
    operating system calls stderr. So for that time, descriptor 2 is a file that drops everything. If the user has set
    TF_CPP_MIN_LOG_LEVEL to 0, 1 or 3, nothing is hidden.
    """
    # What stands before `yield` runs when the with block is entered, what stands after it when the block is left.
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # 2: only errors; it stays what the user has set
    if level != "2" or sys.__stderr__ is None:  # None: Python has no descriptor 2, as in IDLE on Windows
        yield
        return
    stderr = os.dup(2)  # a copy to come back to
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # from here on, descriptor 2 is that file
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def one_line(text):
    """Return text for a terminal: without line breaks and control codes, and only what the output can encode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = str(text).encode(encoding, "backslashreplace").decode(encoding)  # letters it lacks become \u6570 or so
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text)[:500]  # longer ones would fill the screen


def main():
    """Print what a data set holds."""
    args = data_parser("Load a data set and print what it holds.").parse_args()
    X_train, y_train, X_test, y_test = load_data(args.data)
    for split, X, y in (("train", X_train, y_train), ("test", X_test, y_test)):
        print(f"{split} images: {X.dtype} {X.shape} from {X.min():g} to {X.max():g}")
        print(f"{split} labels: {y.dtype} {y.shape}, images per class {y.sum(axis=0).astype(int).tolist()}")


if __name__ == "__main__":
    run(main)
