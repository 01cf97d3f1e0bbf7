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
from scipy.sparse.csgraph import connected_components
from scipy.stats import skew
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

IMAGE_SHAPE = (28, 28, 1)
CLASSES = 10
MAX_IMAGES = 280_000  # train and test together: EMNIST Digits, the largest set of this form
DATA_HELP = "mnist (downloaded once), digits (needs no download), an .npz file or a folder of IDX files"


class InputError(ValueError):
    """Something the user gave can't be used; the message says what, and what to do, in one line."""


# Data sets


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
    check_source(source)
    if source == "mnist":
        x_train, y_train, x_test, y_test = download_mnist()
    elif source == "digits":
        x_train, y_train, x_test, y_test = enlarge_digits()
    elif os.path.isdir(source):
        x_train, y_train, x_test, y_test = read_idx_folder(source)
    else:
        x_train, y_train, x_test, y_test = read_npz(source)
    check_arrays(f"{source}: train", x_train, y_train)
    check_arrays(f"{source}: test", x_test, y_test)
    if len(x_train) + len(x_test) > MAX_IMAGES:
        raise InputError(f"{source}: more than {MAX_IMAGES} images")
    return scale(x_train), one_hot(y_train), scale(x_test), one_hot(y_test)


def check_source(source):
    """Raise InputError unless `source` is a data set's name, or a path that exists."""
    if source not in ("mnist", "digits") and not os.path.isfile(source) and not os.path.isdir(source):
        raise InputError(f"{source}: no such file or folder; the data can be {DATA_HELP}")


def download_mnist():
    """Return MNIST's four uint8 arrays from Keras's cache, downloaded at the first call."""
    from build_model import keras  # here, not above: other data and pictures need no TensorFlow

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)  # seconds; Keras sets none, and a silent host would hang us
    try:
        (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
    except Exception as error:  # Keras raises a bare Exception
        ways_on = "use a copy with --data PATH, or --data digits, which needs no download"
        raise InputError(f"MNIST could not be downloaded ({error}); {ways_on}") from error
    finally:
        socket.setdefaulttimeout(timeout)
    return x_train, y_train, x_test, y_test


def enlarge_digits():
    """Return scikit-learn's 8x8 digits in MNIST's form, split once and for all."""
    digits = load_digits()
    images = np.array([np.uint8(255 * center(image / 16)) for image in digits.images])
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=297, stratify=digits.target, random_state=0
    )
    return x_train, y_train, x_test, y_test


def read_idx_folder(folder):
    """Return train images, train labels, test images and test labels from the four IDX files."""
    parts = [("images", IMAGE_SHAPE[:2]), ("labels", ())]
    return [read_idx(folder, f"{split}-{part}", shape) for split in ("train", "t10k") for part, shape in parts]


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


def check_arrays(name, images, labels):
    """Raise InputError unless these are uint8 images (n, 28, 28) with n labels from 0 to 9."""
    if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE[:2]:
        problem = f"images are {images.dtype} of shape {images.shape}, expected uint8 of shape (n, 28, 28)"
    elif labels.dtype.kind not in "iu" or labels.ndim != 1:
        problem = f"labels are {labels.dtype} of shape {labels.shape}, expected integers of shape (n,)"
    elif len(images) != len(labels) or not len(images):
        problem = f"has {len(images)} images and {len(labels)} labels, expected as many, at least one"
    elif labels.min() < 0 or labels.max() >= CLASSES:
        problem = f"labels are {labels.min()} to {labels.max()}, expected 0 to 9"
    else:
        return
    raise InputError(f"{name} {problem}")


def scale(images):
    """Return uint8 images (n, 28, 28) as float32 (n, 28, 28, 1) from 0 to 1."""
    return np.divide(images, 255, dtype=np.float32)[..., np.newaxis]


def one_hot(labels):
    """Return integer labels (n,) as float32 (n, 10): 1 in the label's column, else 0."""
    return np.eye(CLASSES, dtype=np.float32)[labels]


# Pictures of one's own. How find_digits() goes about it:
# 1. Grey: the picture's colours along the line on which they differ most; ink is bright.
# 2. Paper away: what is left after a morphological opening that no stroke survives is paper.
# 3. Parts: connected components of strong ink, without lines across the picture and desks beside it.
# 4. Digits: parts that lie close above each other are one; tiny ones are specks. They stand in rows.
# 5. Centre: each digit is cut out and put into 28x28 pixels as MNIST's authors did.
MOST_PIXELS = 20_000_000  # of a picture: one as large takes up to a second and 0.5 GB
MOST_JPEG_PIXELS = 120_000_000  # a JPEG is decoded at an eighth of its size or more
LONGEST = 1000  # pixels of a picture's longer side in which digits are looked for


def load_picture(path):
    """Return a picture file as uint8 RGBA (height, width, 4), upright, and the scale it was reduced by."""
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file")
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; name the pictures in it")
    try:
        with open(path, "rb") as file, warnings.catch_warnings(action="ignore"):
            if file.read(12)[4:] in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1"):
                raise ValueError("HEIC; export it as JPEG")
            with Image.open(file) as image:
                return reduce(image)
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise InputError(f"{path}: not a picture that can be read ({error})") from error


def reduce(image):
    """Return a PIL image as `load_picture()` does."""
    baseline = image.format == "JPEG" and "progressive" not in image.info
    if image.width * image.height > (MOST_JPEG_PIXELS if baseline else MOST_PIXELS):
        raise ValueError("too many megapixels; save it smaller, as JPEG")
    size = max(image.size)
    image.draft(None, (LONGEST, LONGEST))  # lets a large JPEG decode at a half to an eighth of its size
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # more than 8 bits, which Pillow would clip
        deep = np.nan_to_num(np.asarray(image, np.float32))
        image = Image.fromarray(np.uint8((deep - deep.min()) / (np.ptp(deep) + 1e-9) * 255))
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
    return np.asarray(image.convert("RGBA")), size / max(image.size)


def find_digits(picture, name=None):
    """Find all handwritten digits in a picture and prepare them as MNIST's authors prepared theirs.

    Args:
        picture: a file that Pillow can read, or uint8 pixels (height, width, 3 or 4) or (height, width).

    Returns:
        `images, boxes, rows` in reading order: float32 (n, 28, 28, 1) from 0 (paper) to 1 (ink); the
        digits' left, top, right and bottom in pixels, int (n, 4); and in which row each stands, int (n,).

    Raises:
        InputError: no such file, no picture, too large, or no digit in it.
    """
    given = isinstance(picture, np.ndarray)
    pixels, scale = reduce(Image.fromarray(picture)) if given else load_picture(picture)
    ink = remove_paper(flatten(pixels))
    digits, boxes = join_parts(*find_parts(ink))
    if len(boxes) == 0:
        advice = "digits must be darker or brighter than their paper"
        raise InputError(f"{name or ('picture' if given else picture)}: no digit found in it; {advice}")
    rows = find_rows(boxes)
    order = np.lexsort((boxes[:, 0], rows))
    images = [center(thicken(cut_out(ink, digits, i + 1, boxes[i]))) for i in order]
    return np.stack(images)[..., np.newaxis], np.rint(boxes[order] * scale).astype(int), rows[order]


def flatten(pixels):
    """Return RGBA pixels as grey (height, width), along the colours that differ most."""
    color, opacity = pixels[..., :3].astype(np.float32), pixels[..., 3:] / np.float32(255)
    shade = (color * opacity).mean((0, 1)) / (opacity.mean() + 1e-9)
    # A drawing on nothing gets paper unlike its ink; a few clear spots get the usual colour.
    paper = shade if opacity.mean() > 0.6 else 255 * (shade.mean() < 128)
    color = paper + (color - paper) * opacity
    axis = np.linalg.eigh(np.cov(color.reshape(-1, 3).T, bias=True))[1][:, -1]
    return color @ (axis * np.sign(axis.sum() + 1e-9) / np.abs(axis).sum()).astype(np.float32)


def remove_paper(grey):
    """Return the ink, bright on a ground near 0, from grey of either polarity and uneven light."""
    side = min(grey.shape)
    # Ink is the rare extreme: bright ink makes the differences from the mean around skew upwards.
    if skew(grey - ndimage.uniform_filter(grey, max(5, side // 4)), None) < 0:
        grey = 255 - grey
    grey = ndimage.gaussian_filter(grey, side / 600 if side > 100 else 0)  # the camera's noise
    paper = ndimage.grey_opening(grey, 2 * [max(15, int(0.15 * side))])  # wider than any stroke
    ink = (grey - paper) * 450 / (450 - paper)  # in a shadow ink differs less from its paper
    return ink - np.percentile(ink, 30)


def find_parts(ink):
    """Return connected components of ink that can be strokes: labels (height, width), and which."""
    level = np.median(ink[ink >= ink.max() / 3])  # the usual ink's strength
    strong = ink > 0.4 * level
    if strong.mean() > 1 / 3:  # a pattern or a picture of something else
        strong[:] = False
    strong = remove_lines(strong)
    strong = remove_lines(strong.T).T
    labels, count = ndimage.label(strong, np.ones((3, 3)))
    width, height = np.diff(find_boxes(labels).reshape(-1, 2, 2), axis=1)[:, 0].T
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    touching = np.bincount(border, minlength=count + 1)[1:]
    noise = -np.percentile(ink, 5)
    dark = ndimage.mean(ink, labels, np.arange(1, count + 1)) > max(0.5 * level, 15, 4.5 * noise)
    return labels, 1 + np.flatnonzero(dark & (touching <= 0.3 * (width + height)))


def remove_lines(strong):
    """Return the mask without thin lines that run through from left to right, as on ruled paper."""
    height, width = strong.shape
    mask = strong.astype(np.uint8)
    runs = ndimage.grey_opening(ndimage.maximum_filter(mask, 3), (1, int(0.15 * width) | 1))
    labels, _ = ndimage.label(runs)
    left, _, right, _ = find_boxes(labels).T
    lines = np.isin(labels, 1 + np.flatnonzero(right - left > 0.97 * width))
    strokes = ndimage.grey_opening(mask, (1 + min(strong.shape) // 40, 1)) > 0  # that cross a line
    return strong & (strokes | ~ndimage.maximum_filter(lines, 3))


def find_boxes(labels):
    """Return the bounding boxes of labelled parts: left, top, right, bottom, int (n, 4)."""
    slices = ndimage.find_objects(labels)
    return np.array([(x.start, y.start, x.stop, y.stop) for y, x in slices], int).reshape(-1, 4)


def join_parts(labels, parts):
    """Return digits, joined from parts, as find_parts() returns parts: labels, and their boxes."""
    boxes = find_boxes(labels)[parts - 1]
    if not 0 < len(parts):
        return labels, boxes[:0]
    size = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    area = np.bincount(labels.ravel())[parts]
    usual = np.median(np.repeat(size, area))  # each pixel of ink votes
    parts, boxes = parts[size > 0.15 * usual], boxes[size > 0.15 * usual]
    if len(parts) > 300:
        return labels, boxes[:0]
    left, top, right, bottom = boxes.T
    overlap = np.minimum.outer(right, right) - np.maximum.outer(left, left)
    gap = np.maximum.outer(top, top) - np.minimum.outer(bottom, bottom)
    both = np.maximum.outer(bottom, bottom) - np.minimum.outer(top, top)
    narrower = np.minimum.outer(right - left, right - left)
    near = (overlap > 0.3 * narrower) & (gap < 0.3 * usual) & (both < 1.9 * usual)
    count, group = connected_components(near)
    number = np.zeros(labels.max() + 1, int)
    number[parts] = group + 1
    digits = number[labels]
    boxes = find_boxes(digits)
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    kept = (height > max(0.4 * usual, min(labels.shape) / 40)) & (width < 3 * height)
    number = np.zeros(count + 1, int)
    number[1:][kept] = 1 + np.arange(kept.sum())
    return number[digits], boxes[kept]


def find_rows(boxes):
    """Return the number of each box's row, int (n,): a box stands in one row with the next to its right."""
    left, top, right, bottom = boxes.T
    shared = np.minimum.outer(bottom, bottom) - np.maximum.outer(top, top)
    beside = shared > 0.5 * np.minimum.outer(bottom - top, bottom - top)
    steps = np.subtract.outer(left + right, left + right).T
    steps = np.where(beside & (steps > 0), steps, np.inf)
    links = (steps == steps.min(axis=1, keepdims=True)) & np.isfinite(steps)
    count, row = connected_components(links, directed=False)
    height = ndimage.mean(top + bottom, row, np.arange(count))
    return height.argsort().argsort()[row]


def cut_out(ink, digits, number, box):
    """Return the ink of one of the digits, and a little around it, from 0 to 1."""
    left, top, right, bottom = box
    margin = 2 + (bottom - top) // 30
    around = np.s_[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin]
    ink, digits = ink[around], digits[around]
    own = ndimage.maximum_filter(digits == number, 2 * margin - 1) & np.isin(digits, (0, number))
    return np.clip(ink / np.percentile(ink[digits == number], 85), 0, 1) * own


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


# Running as a script


def data_parser(description):
    """Return an argparse parser with the option --data."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", default="mnist", help=f"{DATA_HELP} (default: %(default)s)")
    return parser


def run(main):
    """Run a script's `main()`: what the user can put right ends in one line on stderr, without a traceback."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it is closed
        stream.reconfigure(errors="backslashreplace")  # a file's name may not fit the encoding
    try:
        main()
        if sys.stdout:
            sys.stdout.flush()
    except InputError as error:
        sys.exit(one_line(error))
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # Our output's reader has gone (`... | head -1`), or its disk is full: nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1 if error.errno == errno.EPIPE else one_line(error))


def one_line(error):
    """Return an error's message for the user: no line breaks or terminal codes, not too long."""
    return "error: " + re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", str(error))[:1000]


@contextlib.contextmanager
def quiet_start():
    """Hold back the lines that TensorFlow prints on its start, which no setting of its own hides.

    They are shown if the start fails. Setting TF_CPP_MIN_LOG_LEVEL, to anything, turns this off.
    """
    if sys.stderr is None or "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # errors only; TensorFlow reads it once, on its start
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            os.write(stderr, held_back.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            del os.environ["TF_CPP_MIN_LOG_LEVEL"]


def main():
    """Print what a data set holds."""
    args = data_parser("Load a data set and print what it holds.").parse_args()
    X_train, y_train, X_test, y_test = load_data(args.data)
    for split, X, y in (("train", X_train, y_train), ("test", X_test, y_test)):
        print(f"{split} images: {X.dtype} {X.shape} from {X.min():g} to {X.max():g}")
        print(f"{split} labels: {y.dtype} {y.shape}, images per class {y.sum(axis=0).astype(int).tolist()}")


if __name__ == "__main__":
    run(main)
