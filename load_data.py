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
import warnings
import zipfile
import zlib

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage
from scipy.stats import skew
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

IMAGE_SHAPE = (28, 28, 1)
CLASSES = 10
MAX_IMAGES = 280_000  # train and test together: EMNIST Digits, the largest set of this form
DATA_HELP = "mnist (downloaded once), digits (needs no download), an .npz file or a folder of IDX files"


@contextlib.contextmanager
def quiet_start():
    """Drop the notes on its start that TensorFlow 2.21 prints before it reads any setting."""
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") != "2":
        yield  # the user asked for another level: hide nothing
        return
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            log.seek(0)
            for line in log.read().decode(errors="replace").splitlines():
                if not re.match(r"I\d{4} |.*failed call to cuInit|WARNING: All log messages before", line):
                    print(line, file=sys.stderr)


os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the user's other projects take
with quiet_start():
    try:
        import keras
    except ValueError as error:  # Keras imports matplotlib, and MPLBACKEND names no backend
        sys.exit(f"error: {error}")
    import tensorflow as tf

    tf.config.list_physical_devices()  # looking for a GPU prints such notes, too
keras.config.set_image_data_format("channels_last")


class InputError(ValueError):
    """Something the user gave can't be used; the message says what, and what to do, in one line."""


def one_line(error):
    """Return an error's message for the user: no line breaks or terminal codes, not too long."""
    return "error: " + re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", str(error))[:1000]


def run(main):
    """Run a script's `main()`; what the user can mend ends in one line on stderr, no traceback."""
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        sys.exit(one_line(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # a full disk, or the reader of our output has gone: `... | head -1`
        try:
            sys.stdout.flush()
        except OSError:  # Python would try once more at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1 if isinstance(error, BrokenPipeError) else one_line(error))


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
    check_arrays(source, x_train, y_train, "train")
    check_arrays(source, x_test, y_test, "test")
    if len(x_train) + len(x_test) > MAX_IMAGES:
        raise InputError(f"{source}: more than {MAX_IMAGES} images")
    return scale(x_train), one_hot(y_train), scale(x_test), one_hot(y_test)


def scale(images):
    return np.divide(images, 255, dtype=np.float32)[..., np.newaxis]


def one_hot(labels):
    return np.eye(CLASSES, dtype=np.float32)[labels]


def check_arrays(source, images, labels, split):
    """Raise InputError unless these are uint8 images (n, 28, 28) with n labels from 0 to 9."""
    if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE[:2]:
        problem = f"images are {images.dtype} of shape {images.shape}, expected uint8 of shape (n, 28, 28)"
    elif labels.dtype.kind not in "iu" or labels.ndim != 1:
        problem = f"labels are {labels.dtype} of shape {labels.shape}, expected integers of shape (n,)"
    elif not 0 < len(images) == len(labels):
        problem = f"has {len(images)} images and {len(labels)} labels, expected as many, at least one"
    elif labels.min() < 0 or labels.max() >= CLASSES:
        problem = f"labels are {labels.min()} to {labels.max()}, expected 0 to 9"
    else:
        return
    raise InputError(f"{source}: {split} {problem}")


def download_mnist():
    """Return MNIST's four uint8 arrays from Keras's cache, downloaded at the first call."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)  # seconds; Keras sets none, and a silent host would hang us
    try:
        train, test = keras.datasets.mnist.load_data()
    except Exception as error:  # Keras raises a bare Exception
        ways_on = "use a copy with --data PATH, or --data digits, which needs no download"
        raise InputError(f"MNIST could not be downloaded ({error}); {ways_on}") from error
    finally:
        socket.setdefaulttimeout(timeout)
    return *train, *test


def enlarge_digits():
    """Return scikit-learn's 8x8 digits in MNIST's form, split once and for all."""
    digits = load_digits()
    images = np.array([np.uint8(255 * center(image / 16)) for image in digits.images])
    split = {"test_size": 297, "stratify": digits.target, "random_state": 0}
    x_train, x_test, y_train, y_test = train_test_split(images, digits.target, **split)
    return x_train, y_train, x_test, y_test


def read_npz(path):
    """Return the arrays x_train, y_train, x_test, y_test of an .npz file."""
    arrays, where = [], path
    try:
        with zipfile.ZipFile(path) as archive, warnings.catch_warnings(action="ignore"):
            for name in ("x_train", "y_train", "x_test", "y_test"):
                where = f"{path}: {name}"
                member = archive.getinfo(f"{name}.npy")
                # Of these two, zipfile never unpacks more than the size that a member declares.
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("packed by another method than NumPy's")
                if member.file_size > MAX_IMAGES * math.prod(IMAGE_SHAPE):
                    raise ValueError(f"larger than {MAX_IMAGES} images of 28x28 bytes")
                with archive.open(member) as file:
                    arrays.append(np.lib.format.read_array(file, allow_pickle=False))
    except Exception as error:  # a damaged file makes zipfile and NumPy raise almost anything
        raise InputError(f"{where}: can't be read as .npz data ({error})") from error
    return arrays


def read_idx_folder(folder):
    """Return train images, train labels, test images and test labels from the four IDX files."""
    parts = [("images", IMAGE_SHAPE[:2]), ("labels", ())]
    return [
        read_idx(folder, f"{split}-{part}", shape) for split in ("train", "t10k") for part, shape in parts
    ]


def read_idx(folder, name, item_shape):
    """Return the uint8 array (n, *item_shape) of one IDX file: a big-endian header, then the bytes."""
    ndim = 1 + len(item_shape)
    names = [f"{name}{dash}idx{ndim}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    found = [name for name in names if os.path.isfile(os.path.join(folder, name))]
    if not found:
        raise InputError(f"{folder}: has no {names[0]}, with or without .gz")
    where = f"{folder}: {found[0]}"
    try:
        with open(os.path.join(folder, found[0]), "rb") as raw:
            file = gzip.open(raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            magic, *shape = struct.unpack(f">{1 + ndim}I", file.read(4 * (1 + ndim)))
            size = math.prod(shape)
            data = file.read(min(size, MAX_IMAGES * math.prod(item_shape)) + 1)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise InputError(f"{where}: truncated or corrupt ({error})") from error
    if magic != 0x800 + ndim:
        raise InputError(f"{where}: magic number is {magic:#010x}, expected {0x800 + ndim:#010x}")
    if tuple(shape[1:]) != item_shape or len(data) != size:
        follow = "more" if len(data) > size else "fewer" if len(data) < size else "as many"
        raise InputError(f"{where}: header says {shape}, expected {['n', *item_shape]}; {follow} bytes follow")
    return np.frombuffer(data, np.uint8).reshape(shape)


def load_image(path):
    """Load a picture of one handwritten digit, prepared as MNIST's authors prepared theirs.

    Whatever its size, colours, paper and light: the digit is scaled to fit 20x20 pixels and
    placed with its centre of mass in the middle.

    Args:
        path: a file that Pillow can read (PNG, JPEG, BMP, GIF, WebP, TIFF, ...).

    Returns:
        float32 of shape (28, 28, 1), from 0 (paper) to 1 (ink), as `load_data()` has it.

    Raises:
        InputError: no such file, no picture, one of more than 89 megapixels, or no digit in it.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    try:
        pixels = decode(path)
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise InputError(f"{path}: not a picture that can be read ({error})") from error
    grey = flatten(pixels)
    ink = find_digit(remove_paper(grey)) if np.ptp(grey) > 10 else None
    if ink is None:
        raise InputError(
            f"{path}: no digit found in it; it takes one digit, darker or brighter than its paper"
        )
    return center(thicken(ink))[..., np.newaxis]


def decode(path):
    """Return a picture as float32 RGBA (height, width, 4), at most 800 long, from 0 to 255."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image.draft(None, (1600, 1600))  # lets a large JPEG decode at half its size or less
            image = ImageOps.exif_transpose(image)
            if image.mode[0] in "IF":  # more than 8 bits, which Pillow would clip
                deep = np.nan_to_num(np.asarray(image, np.float32))
                image = Image.fromarray(np.uint8((deep - deep.min()) / (np.ptp(deep) + 1e-9) * 255))
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
            image.thumbnail((800, 800), Image.Resampling.BOX)
            return np.asarray(image.convert("RGBA"), np.float32)


def flatten(pixels):
    """Return RGBA pixels as grey (height, width), along the colours that differ most."""
    color, opacity = pixels[..., :3], pixels[..., 3:] / 255
    shade = (color * opacity).mean((0, 1)) / (opacity.mean() + 1e-9)
    # A drawing on nothing gets paper unlike its ink; a few clear spots get the usual colour.
    paper = shade if opacity.mean() > 0.6 else 255 * (shade.mean() < 128)
    color = paper + (color - paper) * opacity
    axis = np.linalg.eigh(np.cov(color.reshape(-1, 3).T, bias=True))[1][:, -1]
    return color @ (axis * np.sign(axis.sum() + 1e-9) / np.abs(axis).sum()).astype(np.float32)


def remove_paper(grey):
    """Return the ink, bright on a ground near 0, from grey of either polarity and uneven light."""
    side = min(grey.shape)
    # Ink is the rare extreme, at one scale or another; the border is mostly paper.
    rests = [grey - ndimage.uniform_filter(grey, max(5, side // n)) for n in (2, 4, 8, 16)]
    if sum(skew(rest, None) for rest in (np.pad(grey, side // 2, "edge"), *rests)) < 0:
        grey = 255 - grey
    grey = ndimage.gaussian_filter(grey, side / 600 if side > 100 else 0)
    # Opening wider than the strokes leaves the paper, and the narrower it is the better it
    # follows shadows: take the width after the first that finds nearly all the ink around.
    widths = np.geomspace(max(15, side * 0.04), max(17, side * 0.64), 5).astype(int)
    inks = [grey - ndimage.grey_opening(grey, (width, width)) for width in widths]
    inks = [ink - np.percentile(ink, 30) for ink in inks]
    peaks = [np.median(ink[ink >= ink.max() / 3]) for ink in inks]
    for width, found, peak, ink in zip(widths, inks, peaks, inks[1:]):
        near = ndimage.maximum_filter(found, width) > 0.6 * peak
        least = max(0.8 * ink[near].sum(), 0.01 * inks[-1].clip(0).sum())
        if peak > 0.2 * peaks[-1] and found[near].sum() > least:
            break
    return ink


def find_digit(ink):
    """Return the digit's ink alone, from 0 to 1, or None where there is no digit."""
    side = min(ink.shape)
    strong = ink > 0.6 * np.median(ink[ink >= ink.max() / 3])
    # Strokes a small gap apart belong together; what is far off and little is a speck.
    reach = max(1, side // 40) * 2 + 1
    labels, count = ndimage.label(ndimage.maximum_filter(strong, reach))
    labels *= strong
    edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    area, touching = (np.bincount(part.ravel(), minlength=count + 1)[1:] for part in (labels, edges))
    perimeter = [2 * sum(s.stop - s.start for s in box) for box in ndimage.find_objects(labels)]
    along = touching > 0.3 * np.array(perimeter)  # along the border lie desks and shadows
    area = area * np.where(along, 0.0003, np.where(touching > 0, 0.3, 1))
    digit = np.isin(labels, 1 + np.flatnonzero(area > 0.1 * area.max()))
    around = ndimage.maximum_filter(digit, reach)
    level, noise = ink[digit].mean(), -np.percentile(ink, 5)
    shaded = ink[around & ~digit].mean() > 0.5 * level or along[area.argmax()]
    if level < max(12, 4.5 * noise) or side > 64 and shaded:  # the paper's own unevenness
        return None
    return np.clip(ink / np.percentile(ink[digit], 85), 0, 1) * around


def thicken(ink):
    """Return ink with strokes much thinner than MNIST's grown to a tenth of its length."""
    large = np.pad(fit(ink, 100), 12)
    large = np.clip(large / np.median(large[large > large.max() / 3]), 0, 1)
    contour = np.hypot(np.diff(large, axis=0)[:, 1:], np.diff(large, axis=1)[1:]).sum()
    lacking = 5 - large.sum() / contour  # half a stroke's width is its area by its contour
    if lacking < 1 or max(ink.shape) < 40:
        return ink
    disk = np.hypot(*np.mgrid[-5:6, -5:6]) <= lacking + 0.3
    return ndimage.maximum_filter(large, footprint=disk)


def fit(ink, length):
    """Return ink cropped to its box and scaled, anti-aliased, to `length` pixels."""
    rows, columns = (np.flatnonzero((ink > 0.2).any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    height, width = (max(1, round(n * length / max(ink.shape))) for n in ink.shape)
    return np.clip(Image.fromarray(ink).resize((width, height), Image.Resampling.BICUBIC), 0, 1)


def center(ink):
    """Return ink of any size as float32 (28, 28): fitted to 20x20, centred by its mass."""
    small = fit(ink, 20)
    digit = np.zeros((28, 28), np.float32)
    digit[: small.shape[0], : small.shape[1]] = small / small.max()
    return ndimage.shift(digit, [round(14 - c) for c in ndimage.center_of_mass(digit)], order=0)


def data_parser(description):
    """Return an argparse parser with the option --data."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", default="mnist", help=f"{DATA_HELP} (default: %(default)s)")
    return parser


def main():
    """Print what a data set holds."""
    args = data_parser("Load a data set and print what it holds.").parse_args()
    X_train, y_train, X_test, y_test = load_data(args.data)
    for split, X, y in (("train", X_train, y_train), ("test", X_test, y_test)):
        print(f"{split} images: {X.dtype} {X.shape} from {X.min():g} to {X.max():g}")
        print(f"{split} labels: {y.dtype} {y.shape}, images per class {y.sum(axis=0).astype(int).tolist()}")


if __name__ == "__main__":
    run(main)
