"""Load MNIST, or any data set of its form, as float32 images and one-hot labels; find the digits in pictures.

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
from scipy.stats import skew
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

IMAGE_SHAPE = (28, 28, 1)
CLASSES = 10
MAX_IMAGES = 280_000  # train and test together: EMNIST Digits, the largest set of this form
DATA_HELP = "mnist (downloaded once), digits (needs no download), an .npz file or a folder of IDX files"


class InputError(ValueError):
    """A problem that the user can mend; the message says in one line what it is and, where it helps, what to do."""


# Data sets


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
    check_source(source)
    if source == "mnist":
        arrays = download_mnist()
    elif source == "digits":
        arrays = enlarge_digits()
    elif os.path.isdir(source):
        names = ("train-images", "train-labels", "t10k-images", "t10k-labels")
        arrays = [read_idx(source, name) for name in names]
    else:
        arrays = read_npz(source)
    x_train, y_train, x_test, y_test = arrays
    if x_train.nbytes + x_test.nbytes > MAX_IMAGES * math.prod(IMAGE_SHAPE):
        raise InputError(f"{source}: larger than {MAX_IMAGES} images of 28x28 bytes")
    X_train, y_train = preprocess(f"{source}: train", x_train, y_train)
    X_test, y_test = preprocess(f"{source}: test", x_test, y_test)
    return X_train, y_train, X_test, y_test


def check_source(source):
    """Raise InputError unless `source` is a data set's name, or a path that exists."""
    if source not in ("mnist", "digits") and not os.path.isfile(source) and not os.path.isdir(source):
        raise InputError(f"{source}: no such file or folder; the data can be {DATA_HELP}")


def download_mnist():
    """Return MNIST's four uint8 arrays from Keras's cache, downloaded at the first call."""
    from build_model import keras  # not above: build_model imports this file, and the rest needs no TensorFlow

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
    """Return scikit-learn's 8x8 digits in MNIST's form, always split the same way."""
    digits = load_digits()
    images = np.array([np.uint8(255 * center(image / 16)) for image in digits.images])
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=297, stratify=digits.target, random_state=0
    )
    return x_train, y_train, x_test, y_test


def read_idx(folder, name):
    """Return the uint8 images (n, 28, 28) or labels (n,) of one IDX file: a big-endian header, then the bytes."""
    item_shape = IMAGE_SHAPE[:2] if name.endswith("images") else ()
    ndim = 1 + len(item_shape)
    # Such as train-images-idx3-ubyte or train-images.idx3-ubyte.gz
    files = [f"{name}{separator}idx{ndim}-ubyte{end}" for separator in "-." for end in ("", ".gz")]
    found = [file for file in files if os.path.isfile(os.path.join(folder, file))]
    if not found:
        raise InputError(f"{folder}: has no {files[0]}, with or without .gz")
    where = f"{folder}: {found[0]}"
    expected_magic = 0x800 + ndim  # unsigned bytes in so many dimensions
    try:
        with open(os.path.join(folder, found[0]), "rb") as raw:
            file = gzip.open(raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            magic, *shape = struct.unpack(f">{1 + ndim}I", file.read(4 * (1 + ndim)))
            data = file.read(MAX_IMAGES * math.prod(item_shape) + 1)  # one byte more, to notice a file that is too long
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise InputError(f"{where}: can't be read as IDX data ({error})") from error
    if magic != expected_magic:
        raise InputError(f"{where}: magic number is {magic:#010x}, expected {expected_magic:#010x}")
    if tuple(shape[1:]) != item_shape or shape[0] > MAX_IMAGES:
        raise InputError(f"{where}: header says {shape}, expected {['n', *item_shape]}, n at most {MAX_IMAGES}")
    size = math.prod(shape)
    if len(data) != size:
        raise InputError(f"{where}: header says {shape}; {'more' if len(data) > size else 'fewer'} bytes follow")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_npz(path):
    """Return the arrays x_train, y_train, x_test, y_test of an .npz file."""
    arrays, where = [], path
    try:
        with zipfile.ZipFile(path) as archive, warnings.catch_warnings(action="ignore"):
            for name in ("x_train", "y_train", "x_test", "y_test"):
                where = f"{path}: {name}"
                member = archive.getinfo(f"{name}.npy")
                # With these two methods, zipfile never unpacks more than the size that a member declares.
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("packed by another method than NumPy's")
                if member.file_size > MAX_IMAGES * math.prod(IMAGE_SHAPE):
                    raise ValueError(f"larger than {MAX_IMAGES} images of 28x28 bytes")
                with archive.open(member) as file:
                    arrays.append(np.lib.format.read_array(file, allow_pickle=False))
    except Exception as error:  # a damaged file makes zipfile and NumPy raise almost anything
        raise InputError(f"{where}: can't be read as .npz data ({error})") from error
    return arrays


def preprocess(name, images, labels):
    """Return images scaled to 0 to 1, and labels one-hot. Raises InputError unless they are of MNIST's form."""
    problem = None
    if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE[:2]:
        problem = f"images are {images.dtype} of shape {images.shape}, expected uint8 of shape (n, 28, 28)"
    elif labels.dtype.kind not in "iu" or labels.ndim != 1:
        problem = f"labels are {labels.dtype} of shape {labels.shape}, expected integers of shape (n,)"
    elif len(images) != len(labels) or not len(images):
        problem = f"has {len(images)} images and {len(labels)} labels, expected equally many, at least one"
    elif labels.min() < 0 or labels.max() >= CLASSES:
        problem = f"labels are {labels.min()} to {labels.max()}, expected 0 to 9"
    if problem:
        raise InputError(f"{name} {problem}")
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]
    return np.divide(images, 255, dtype=np.float32)[..., np.newaxis], one_hot


# Pictures of your own. How find_digits() goes about it; its thresholds were found by trial:
# 1. flatten(): the logarithms of colours and opacity are projected onto their first principal component.
# 2. remove_paper(): ink is made bright; the paper, an opening wider than any stroke, is subtracted.
# 3. find_strokes(): strong ink, without ruled lines and the paper's own unevenness.
# 4. join_strokes(): strokes close above one another, or whose boxes overlap clearly, form one digit; specks, dots and
#    dashes are dropped. What lies at the border counts only if no digit lies elsewhere.
# 5. reading_order(), thicken(), center(): row by row, each digit is thickened if it is thin, and put into 28x28
#    pixels as MNIST's authors put theirs.
MOST_PIXELS = 20_000_000  # to decode: this many take up to a second and 0.5 GB
LONGEST = 1000  # pixels; a picture file with a longer side is reduced to this before the search
EIGHT_NEIGHBOURS = np.ones((3, 3))  # pixels that meet at a corner are connected, too


def find_digits(picture, name="picture"):
    """Find all handwritten digits in a picture, and prepare them as MNIST's authors prepared theirs.

    Args:
        picture: a file that Pillow can read, or uint8 pixels (height, width) or (height, width, 3 or 4).
        name: what an error calls the picture if it is given as pixels.

    Returns:
        `images, boxes, rows`, in reading order: float32 (n, 28, 28, 1) from 0 (paper) to 1 (ink); the digits'
        left, top, right and bottom in pixels of the upright picture, int (n, 4); the rows' numbers, int (n,).

    Raises:
        InputError: no such file, no picture, too large, or no digit in it.
    """
    if isinstance(picture, np.ndarray):
        pixels, reduction = np.asarray(Image.fromarray(picture).convert("RGBA")), 1
    else:
        name = picture
        pixels, reduction = load_picture(picture)
    ink = remove_paper(flatten(pixels))
    strokes = find_strokes(ink)
    labels = join_strokes(strokes & ~reaching_beyond(strokes, np.s_[3:-3, 3:-3]))  # without frames and desks
    if not labels.any():  # the digits themselves lie at the border
        labels = join_strokes(strokes)
    if not labels.any():
        raise InputError(f"{name}: no digit found in it; digits must be darker or brighter than their paper")
    parts = ndimage.find_objects(labels)
    # A digit's box may hold some of its neighbours' ink, which has another label.
    digits = [ink[part] * (labels[part] == label) for label, part in enumerate(parts, start=1)]
    images = np.stack([center(thicken(digit)) for digit in digits])
    boxes = find_boxes(parts)
    order, rows = reading_order(boxes)
    return images[order, ..., np.newaxis], np.rint(boxes[order] * reduction).astype(int), rows


def load_picture(path):
    """Return a picture file as uint8 RGBA (height, width, 4), upright, and the factor by which it was reduced."""
    if not os.path.isfile(path):
        problem = "is a folder; name the pictures in it" if os.path.isdir(path) else "no such file"
        raise InputError(f"{path}: {problem}")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            length = max(image.size)
            # A JPEG can be decoded at a half to an eighth of its size, which saves memory unless it is progressive.
            if "progressive" not in image.info:
                image.draft(None, (LONGEST, LONGEST))
            if image.width * image.height > MOST_PIXELS:
                raise ValueError("too many megapixels")
            if image.format == "EPS":
                raise ValueError("EPS is a program, which Pillow would run")
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode[0] in "IF":  # more than 8 bits, which Pillow would clip
                deep = np.nan_to_num(np.asarray(image, np.float32))
                image = Image.fromarray(np.uint8((deep - deep.min()) / (np.ptp(deep) + 1e-9) * 255))
            image = image.convert("RGBA")
            image.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
            return np.asarray(image), length / max(image.size)
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        advice = "export it as JPEG, of at most 20 megapixels"
        raise InputError(f"{path}: not a picture that can be read ({error}); {advice}") from error


def flatten(pixels):
    """Return RGBA pixels as grey (height, width): the first principal component of colour and opacity."""
    colors = (pixels * (pixels[..., 3:] / np.float32(255))).reshape(-1, 4)  # what is transparent has no colour
    # In a shadow, ink and paper darken by one factor: in their logarithms, ink stands out as much as in the light.
    colors = np.log1p(colors / 100)  # a smaller divisor would raise the noise of dark pixels, too
    # The axis along which they differ most. With bias=True, a single pixel has a covariance, too.
    axis = np.linalg.eigh(np.cov(colors, rowvar=False, bias=True)).eigenvectors[:, -1]
    return (colors @ axis.astype(np.float32)).reshape(pixels.shape[:2])


def remove_paper(grey):
    """Return the ink, bright on a ground near 0, from grey of either polarity and uneven light."""
    side = min(grey.shape)
    # Ink is rare and extreme: bright ink skews the differences from the local mean upwards, dark ink downwards.
    # The mean is taken in two windows: a broad stroke fills the narrow one, and in the wide one light is less even.
    if skew([grey - ndimage.uniform_filter(grey, 1 + side // n) for n in (6, 2)], axis=None) < 0:
        grey = -grey
    grey = ndimage.gaussian_filter(grey, side / 600)  # the camera's noise
    width = max(15, int(0.2 * side))  # wider strokes than this would be taken for paper
    # Padded, so that a desk or a shadow at the border is wide enough to count as paper.
    return ndimage.white_tophat(np.pad(grey, width, "edge"), width)[width:-width, width:-width]


def find_strokes(ink):
    """Return the mask of the digits' strokes, (height, width)."""
    level = np.median(ink[ink >= ink.max() / 3])  # the usual ink's strength
    strong = ink > 0.4 * level
    strong &= ~(ruled_lines(strong) | ruled_lines(strong.T).T)  # the nearly horizontal and the nearly vertical ones
    labels, parts = ndimage.label(strong, EIGHT_NEIGHBOURS)
    strength = ndimage.mean(ink, labels, range(parts + 1))
    return (strength > max(0.55 * level, 0.12))[labels]  # the others are the paper's own unevenness


def ruled_lines(strong):
    """Return the mask of ruled lines: two or more, thin, nearly horizontal, reaching the left or right border."""
    # A slanted line is a staircase of short runs of pixels. Grown by a pixel, they overlap and become long.
    runs = ndimage.grey_opening(ndimage.maximum_filter(strong, 3), (1, 1 + int(0.15 * strong.shape[1])))
    lines = ndimage.maximum_filter(reaching_beyond(runs, np.s_[:, 3:-3]), 3)  # grown again, to cover ragged edges
    tall = ndimage.grey_opening(strong, (1 + min(strong.shape) // 40, 1))  # taller than a line: a digit that crosses it
    _, count = ndimage.label(lines, EIGHT_NEIGHBOURS)
    return lines & ~tall & (count > 1)  # a single one may be a digit's bar


def reaching_beyond(mask, middle):
    """Return those connected parts of a mask that reach beyond its middle."""
    outside = mask.copy()
    outside[middle] = False
    return ndimage.binary_propagation(outside, EIGHT_NEIGHBOURS, mask)


def join_strokes(strokes):
    """Join the strokes of each digit; return the label image (height, width) of the digits."""
    labels, _ = ndimage.label(strokes, EIGHT_NEIGHBOURS)
    boxes = find_boxes(ndimage.find_objects(labels))
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    # Each pixel votes with its stroke's length. That of a line, which may be long, counts as three times its height.
    votes = np.clip(widths, heights, 3 * heights)[labels[strokes] - 1]
    size = np.median(votes) if len(votes) else 0  # a digit's, as most ink is in whole digits
    least = 0.36 * size  # each digit has a stroke that is higher
    # Strokes of one digit meet in one of three ways. Those close above one another grow up and down.
    grown = ndimage.maximum_filter(strokes, (1 + 2 * int(0.15 * size), 1))
    for (left, top, right, bottom), inset in zip(boxes, widths // 4):
        # Those side by side have boxes that overlap. The boxes are filled, but for a quarter at either side, as a digit
        # may lean over the next one.
        grown[top:bottom, left + inset : right - inset] = True
        # The bar of a 5, low and long, may be farther off: its box reaches down, at its left, where the 5 is.
        if bottom - top < least < right - left:
            grown[top : bottom + int(0.3 * size), left : right - inset] = True
    # A digit is what has met a tall stroke. Specks, dots and dashes that stand alone are none. Label 0 is the ground.
    tall = (heights > max(least, min(strokes.shape) / 40, 3)) & (widths < 3 * heights)
    digits = ndimage.binary_propagation(np.append(False, tall)[labels], EIGHT_NEIGHBOURS, grown)
    labels = ndimage.label(digits, EIGHT_NEIGHBOURS)[0] * strokes
    # Each digit also gets the ground two pixels around it, for its faint edge, but no pixel of another digit.
    return np.where(labels, labels, ndimage.maximum_filter(labels, 5))


def find_boxes(parts):
    """Return the boxes of what SciPy's `find_objects()` returns: left, top, right, bottom, int (n, 4)."""
    return np.array([(x.start, y.start, x.stop, y.stop) for y, x in parts], int).reshape(-1, 4)


def reading_order(boxes):
    """Return the boxes' order, row by row and each from the left, and then their rows' numbers, both int (n,)."""
    middles = boxes[:, [1, 3]].mean(axis=1)
    height = np.median(boxes[:, 3] - boxes[:, 1])
    order = middles.argsort()
    rows = np.cumsum(np.diff(middles[order], prepend=middles.min()) > height / 2)  # half a digit lower: a new row
    return order[np.lexsort((boxes[order, 0], rows))], rows


def thicken(ink):
    """Return one digit's ink, fitted to 100x100 pixels, with thin strokes grown to 10, about the width of MNIST's."""
    ink = np.clip(ink / np.percentile(ink[ink > 0], 80), 0, 1)  # the strongest fifth becomes 1
    ink = np.pad(crop_and_scale(ink, 100), 5)  # room to grow
    strokes = ink > 0.5
    # In a stroke of width w, the mean distance to the edge is w / 4, and half a pixel more, as pixels are whole.
    width = 4 * (ndimage.distance_transform_edt(strokes)[strokes].mean() - 0.5)
    return ndimage.maximum_filter(ink, 1 + max(0, round(10 - width)))


def crop_and_scale(ink, length):
    """Return ink, from 0 to 1, cropped and scaled so that its longer side is `length`."""
    image = Image.fromarray(ink.astype(np.float32)).crop(Image.fromarray(ink > 0.2).getbbox())
    size = [max(1, round(length * side / max(image.size))) for side in image.size]
    scaled = np.asarray(image.resize(size)).clip(0, 1)  # bicubic scaling overshoots
    return scaled / scaled.max()


def center(ink):
    """Return ink of any size as float32 (28, 28): fitted to 20x20, its centre of mass at 14, as in MNIST."""
    small = crop_and_scale(ink, 20)
    digit = np.pad(small, [(0, 28 - side) for side in small.shape])
    return ndimage.shift(digit, [round(14 - c) for c in ndimage.center_of_mass(digit)], order=0)


# Running as a script


def data_parser(description):
    """Return an argparse parser with the option --data."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", default="mnist", help=f"{DATA_HELP} (default: %(default)s)")
    return parser


def run(main):
    """Run a script's `main()`; show an error that the user can mend as one line, without a traceback."""
    if hasattr(sys.stdout, "reconfigure"):  # a closed one is None, a notebook's can't be reconfigured
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: a file's name may not fit the encoding
    try:
        try:
            main()
        finally:  # also when argparse exits after --help
            if sys.stdout:
                sys.stdout.flush()  # what can't be written should fail here, not at Python's end
    except InputError as error:
        sys.exit(one_line(error))
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # Our output's reader has gone (`... | head -1`), or its disk is full: what is left goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1 if error.errno == errno.EPIPE else one_line(error))


def one_line(error):
    """Return an error's message for the user: no line breaks or terminal codes, not too long."""
    return "error: " + re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", str(error))[:1000]


@contextlib.contextmanager
def quiet_start():
    """Hold back what TensorFlow writes straight to stderr when it starts: no setting hides all of it.

    It is shown if the start fails. If the user has set TF_CPP_MIN_LOG_LEVEL, nothing is held back.
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
