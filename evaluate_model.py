"""Evaluate a trained model on the test images; read pictures of your own with it, or draw for it.

python evaluate_model.py [--data mnist | digits | PATH] [--model FILE.h5] [PICTURE ... | --draw]
"""

import contextlib
import math
import os
import sys
import warnings
from pathlib import Path

# build_model before the others: it starts TensorFlow quietly.
from build_model import keras, load_model, model_parser, save_and_show, verbosity
from load_data import CLASSES, InputError, crop_and_scale, fit_to_mnist, load_data, one_line, run

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.widgets import LassoSelector
from PIL import Image, ImageDraw, ImageOps
from scipy import ndimage
from scipy.sparse.csgraph import connected_components
from scipy.stats import binomtest
from sklearn.metrics import classification_report, confusion_matrix

SHOWN = 36  # at most this many images or pictures in a figure. Higher: too many to look at; lower: fewer are seen


def evaluate_model(data="mnist", model=None):
    """Print a trained model's accuracy on the test images; draw its confusion matrix and mistakes.

    Args:
        data: a source that `load_data()` takes.
        model: path of the .h5 file; default: the data's name and `_classification_model.h5`, in
            the current folder.

    Returns:
        A dict: `loss` (mean categorical cross-entropy), `accuracy` (a fraction) and
        `confusion_matrix` (integers of shape (10, 10), true class by row).

    Raises:
        InputError: bad data, no such model, one that doesn't fit these images, a figure that can't be saved.
    """
    network, path = load_model(data, model)
    _, _, X_test, y_test = load_data(data)
    probabilities = network.predict(X_test, batch_size=250, verbose=verbosity())  # Keras's usual 32 would take longer

    y_true, y_pred = y_test.argmax(axis=1), probabilities.argmax(axis=1)
    loss = float(keras.losses.categorical_crossentropy(y_test, probabilities).numpy().mean())
    correct = int((y_true == y_pred).sum())
    accuracy = correct / len(y_true)
    # The test images are a sample: over all images of the kind, the accuracy probably lies in this interval. Wilson's
    # method works even where nearly all are right.
    interval = binomtest(correct, len(y_true)).proportion_ci(method="wilson")
    print(f"Test loss: {loss:.4f}")
    print(f"Test accuracy: {accuracy:.4f} (95 % interval {interval.low:.4f} to {interval.high:.4f})")
    print(classification_report(y_true, y_pred, labels=range(CLASSES), digits=4, zero_division=0))
    matrix = confusion_matrix(y_true, y_pred, labels=range(CLASSES))
    save_and_show(draw_confusion_matrix(matrix), path, "confusion_matrix")

    wrong = np.flatnonzero(y_true != y_pred)
    if len(wrong) == 0:
        print("No mistakes to draw: every test image was read right")
    else:
        confidence = probabilities.max(axis=1)
        wrong = wrong[np.argsort(-confidence[wrong])]  # the surest first
        surest = wrong[:SHOWN]
        titles = [f"{y_true[i]} read as {y_pred[i]}\n{100 * confidence[i]:.1f} %" for i in surest]
        note = f"the {len(surest)} surest of {len(wrong)} mistakes"
        save_and_show(draw_mistakes(X_test[surest], titles, note), path, "mistakes", f" ({note})")
    return {"loss": loss, "accuracy": accuracy, "confusion_matrix": matrix}


def draw_confusion_matrix(matrix):
    """Return a figure of the counts, true class by row. Only errors are coloured: beside hits, they'd look white."""
    figure, ax = plt.subplots(figsize=(10, 8), layout="constrained")
    errors = matrix - np.diag(np.diag(matrix))  # without the hits
    sns.heatmap(errors, annot=matrix, fmt="d", cmap="Blues", cbar_kws={"label": "Errors"}, ax=ax)
    ax.set(title="Confusion matrix", xlabel="Predicted", ylabel="True")
    ax.tick_params(axis="y", rotation=0)
    return figure


def draw_mistakes(images, titles, note):
    """Return a figure of test images (n, 28, 28, 1), each under its title."""
    columns = min(9, len(images))
    rows = math.ceil(len(images) / columns)
    figure = plt.figure(figsize=(max(4, 1.4 * columns), 1.75 * rows + 0.5), layout="constrained")
    figure.suptitle(note.capitalize(), fontsize=11)
    for place, (image, title) in enumerate(zip(images, titles), start=1):
        ax = figure.add_subplot(rows, columns, place)
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize=9)
        ax.axis("off")
    return figure


# Pictures of your own

SURE = 0.8  # less probable digits get a question mark. Higher: right ones get it, too; lower: wrong ones don't


def read_pictures(pictures, data="mnist", model=None):
    """Print which digits a trained model reads in each picture file, and draw where it found them.

    A picture that can't be read gets a line on stderr, and the others are read all the same.

    Args:
        pictures: paths of picture files with one or more digits each.
        data, model: as in `evaluate_model()`; `data` isn't loaded, it only names the default model.

    Returns:
        A list of (path, float32 class probabilities of shape (digits, 10)) of the pictures read.

    Raises:
        InputError: no such model, one that doesn't fit these images, a figure that can't be saved.
    """
    network, path = load_model(data, model)
    answers, shown = [], []
    for picture in pictures:
        try:
            pixels = load_picture(picture)
            images, boxes, rows = find_digits(pixels)
        except InputError as error:
            print(f"error: {one_line(f'{picture}: {error}')}", file=sys.stderr)
            continue
        probabilities = network(images, training=False).numpy()  # for a few images faster than predict()
        print(f"{one_line(picture)}: {describe(probabilities, rows)}")
        answers.append((picture, probabilities))
        if len(shown) < SHOWN:
            shown.append((picture, pixels, images, boxes, probabilities))
    if answers:
        note = f" (the first {SHOWN} of {len(answers)})" if len(answers) > SHOWN else ""
        save_and_show(draw_predictions(shown), path, "predictions", note)
    return answers


def describe(probabilities, rows):
    """Return what is read: `7 (99.87 %, then 1: 0.08 %)`, or, of several, `12 3? (least sure: 3, 71.20 %)`.

    `rows`, int (n,), are the numbers of the rows that the digits stand in.
    """
    # For `12 3?`, texts are "1", "2" and "3?", rows are 0, 0 and 1, and words become "12" and "3?".
    texts = np.array(digit_texts(probabilities))
    words = ["".join(texts[rows == row]) for row in np.unique(rows)]
    text = " ".join(words)
    percent = 100 * probabilities.max(axis=1)
    if len(texts) > 1:
        least = percent.argmin()
        return f"{text} (least sure: {probabilities[least].argmax()}, {percent[least]:.2f} %)"
    second = probabilities[0].argsort()[-2]
    return f"{text} ({percent[0]:.2f} %, then {second}: {100 * probabilities[0, second]:.2f} %)"


def digit_texts(probabilities):
    """Return the digits as a list of texts, each with a question mark if it is unsure."""
    return [f"{row.argmax()}?" if row.max() < SURE else f"{row.argmax()}" for row in probabilities]


def draw_predictions(shown):
    """Return a figure of pictures, with a red box around each digit; ink with just a grey box wasn't read.

    A picture of one digit has beside it what the network saw.
    """
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = plt.figure(figsize=(3.6 * columns, 2.6 * rows), layout="constrained")
    behind_text = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
    # A cell is a small figure of its own, for each picture.
    cells = figure.subfigures(rows, columns, squeeze=False, wspace=0.03, hspace=0.03).flat
    for cell, (picture, pixels, images, boxes, probabilities) in zip(cells, shown):
        name = one_line(Path(picture).name)[-30:]  # more would reach into the next cell
        cell.suptitle(name, fontsize=9, parse_math=False)  # or a $ in it would begin a formula
        cell.set(edgecolor="0.7", linewidth=1)
        parts = 2 if len(images) == 1 else 1
        axes = cell.subplots(1, parts, squeeze=False)[0]
        axes[0].imshow(pixels)
        axes[0].set_facecolor("0.6")  # shows through where the picture is transparent
        # Grey: each stroke that find_strokes() keeps; then, red: each digit.
        _, _, stroke_boxes = find_strokes(remove_paper(pixels))
        for box in stroke_boxes:
            draw_box(axes[0], box, "0.5")
        for box, digit in zip(boxes, digit_texts(probabilities)):
            draw_box(axes[0], box, "red")
            axes[0].text(box[0], box[1], digit, color="red", fontsize=8, va="bottom", bbox=behind_text)
        if len(images) == 1:
            axes[1].imshow(images[0], cmap="gray", vmin=0, vmax=1)
        for ax in axes:
            ax.set(xticks=[], yticks=[])
    return figure


def draw_box(ax, box, color):
    """Draw the outline of a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    ax.add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, color=color, lw=0.8))


# Finding the digits in a picture
#
# 1. load_picture()
# 2. remove_paper(): only ink is left
# 3. find_strokes(): number its connected pieces. Dropped: ruled lines, faint pieces and specks
# 4. choose_strokes(): which can be digits or parts of them? Dropped: frames, and most of what lies at the border
# 5. join_strokes(): put the parts of each digit together. Dropped: dots and dashes
# 6. reading_order()
# 7. cut_out(): make each digit look like MNIST's
#
# Nothing here knows what digits look like: any ink of about the usual size is taken for one, a letter, too.
#
# A stroke is a connected piece of ink: a whole digit, or a part of one. In a numbered picture, int (height, width),
# the pixels of the first stroke are 1, those of the second 2, and so on; the paper is 0. Of the strokes not dropped so
# far, `numbers` are their numbers, int (n,), and `boxes` their left, top, right and bottom in pixels, int (n, 4); right
# and bottom are exclusive, as in slices. Comments on a constant say what goes wrong when it is higher, and when it is
# lower; each was tried on about 400 pictures.

LONGEST = 1000  # pixels of the longer side, to which pictures are reduced. Higher: slow; lower: small digits are lost
BORDER = 3  # pixels along each edge. Higher: whole digits count as cut off; lower: blurred cut ones don't


def find_digits(pixels):
    """Find all handwritten digits in a picture, and prepare them as MNIST's authors prepared theirs.

    Args:
        pixels: uint8 (height, width) or (height, width, 3 or 4), such as `load_picture()` returns.

    Returns:
        `images, boxes, rows`, in reading order: float32 (n, 28, 28, 1) from 0 (paper) to 1 (ink); the digits'
        left, top, right and bottom in pixels, int (n, 4); the numbers of the rows they stand in, int (n,).

    Raises:
        InputError: no digit is found.
    """
    ink = remove_paper(pixels)
    strokes, numbers, boxes = find_strokes(ink)
    numbers, boxes, digit_size = choose_strokes(strokes, numbers, boxes)
    digits, boxes = join_strokes(numbers, boxes, digit_size)
    if not digits:
        raise InputError("no digit found in it; each must stand out from its paper, and apart from other ink")
    order, rows = reading_order(boxes)
    images = [cut_out(ink, strokes, digits[i], boxes[i]) for i in order]
    return np.stack(images)[..., np.newaxis], boxes[order], rows


def load_picture(path):
    """Load a picture file as uint8 RGBA (height, width, 4), upright, and reduced if it is large.

    Raises InputError.
    """
    if not os.path.isfile(path):
        raise InputError("is a folder; name the pictures in it" if os.path.isdir(path) else "no such file")
    formats = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")  # for others, Pillow may run programs (EPS)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=formats) as image:
            if image.width * image.height > 50_000_000:  # it could fill the memory
                raise ValueError("more than 50 megapixels: reduce it first")
            if image.mode.startswith(("I", "F")):  # 16-bit integers and floats, which Pillow would cut off at 255
                raise ValueError("more than 8 bits a colour")
            image = ImageOps.exif_transpose(image).convert("RGBA")  # telephones note how a picture is to be turned
            image.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)  # BOX averages: thin strokes fade, but stay
            return np.asarray(image)
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise InputError(f"not a picture that can be read ({error}); export it as JPEG") from error


def remove_paper(pixels):
    """Turn a picture into its ink alone: bright strokes on a ground near 0, float32 (height, width)."""
    brightness = brightness_of(pixels)
    bright_ink = -brightness if ink_is_dark(brightness) else brightness
    side = min(brightness.shape)
    blur = side / 600  # averages noise away. Higher: thin strokes fade; lower: specks stay
    bright_ink = ndimage.gaussian_filter(bright_ink, blur)

    # To see the paper alone, erase the ink, which is narrow and bright, by an opening: each pixel becomes the darkest
    # in a window around it, then the brightest of these. With a window of 3, a row 1 1 9 9 1 1 becomes 1 1 1 1 1 1.
    # Higher than 0.2: the edges of shadows count as ink; lower: broad strokes vanish. At least 15, for tiny pictures.
    window = max(15, int(0.2 * side))
    # Repeating the edge's pixels makes a strip of desk that lies there wide, so that it counts as paper.
    padded = np.pad(bright_ink, window, "edge")
    paper = ndimage.grey_opening(padded, window)[window:-window, window:-window]
    return bright_ink - paper


def brightness_of(pixels):
    """Return the logarithm of a picture's grey values, each plus 100, float32 (height, width)."""
    image = Image.fromarray(pixels).convert("RGBA")
    backing = Image.new("RGBA", image.size, "grey")  # of what is transparent: black and white ink both show on it
    grey = np.asarray(Image.alpha_composite(backing, image).convert("L"), np.float32)  # from 0 to 255
    # A shadow divides ink and paper by one factor, so their logarithms differ as in the light: with the 100 added, only
    # roughly. Higher: ink in a shadow stands out less; lower: noise in what is nearly black stands out.
    return np.log(100 + grey)


def ink_is_dark(brightness):
    """Return whether the ink is darker than the paper."""
    # Compare each pixel with the mean of a square around it. Ink differs much, and paper little; but there is more
    # paper. Squared, the few large differences outweigh the many small ones.
    around = 1 + min(brightness.shape) // 3  # pixels. Higher: the light varies more; lower: broad strokes fill it
    difference = brightness - ndimage.uniform_filter(brightness, around)
    darker, brighter = difference[difference < 0], difference[difference > 0]
    return (darker**2).sum() > (brighter**2).sum()


def find_strokes(ink):
    """Number the strokes: return the numbered picture, and `numbers` and `boxes` without faint strokes and specks."""
    # The usual strength of ink. A factor above 0.33: only the strongest ink counts; below: paper counts, too.
    usual = np.median(ink[ink >= 0.33 * ink.max()])
    strong = ink > 0.4 * usual  # higher: faint strokes break; lower: blurred neighbours touch
    strong = strong & ~ruled_lines(strong) & ~ruled_lines(strong.T).T  # .T: on its side, for squared paper

    touching = np.ones((3, 3))  # around a pixel, all eight others touch it, those at its corners, too
    strokes, count = ndimage.label(strong, touching)  # pixels that touch get the same number
    numbers, boxes = np.arange(1, count + 1), find_boxes(strokes)

    # Creases and the edges of shadows are weaker than ink, and dust is smaller.
    strength = ndimage.mean(ink, strokes, numbers)  # of each stroke
    least = 0.55 * usual  # higher: faint digits are lost; lower: creases are read
    # 0.12 is log(100 + 255) - log(100 + 215), light grey on white. Nothing on an empty page stands out so much.
    stands_out = strength > max(least, 0.12)
    left, top, right, bottom = boxes.T
    shortest = 0.025 * min(ink.shape)  # higher: small digits are lost; lower: dust counts
    is_long = np.maximum(right - left, bottom - top) > shortest
    chosen = stands_out & is_long
    return strokes, numbers[chosen], boxes[chosen]


def ruled_lines(strong):
    """Find a ruled page's lines, or pieces of them: long, nearly horizontal, and leading to the left or right border.

    Takes and returns a bool mask (height, width); the lines come back a pixel wider all around, to cover their edges.
    A digit on a line may be left in two pieces, one above the other, which join_strokes() puts together.
    """
    # A slanted line is a staircase of short steps. Widened by a pixel all around, each row holds three steps in a line.
    grown = ndimage.maximum_filter(strong, 3)
    # Higher: lines that digits interrupt are missed; lower: the bars of digits are taken for lines.
    length = max(50, int(0.15 * strong.shape[1]))  # in small pictures, digits are wider than 15 %
    # Keep only what is at least `length` pixels long from left to right, by an opening with a window of one row.
    runs = ndimage.grey_opening(grown, (1, length), mode="constant")  # "constant": no ink beyond the border
    lines, _ = ndimage.label(runs)
    left, _, right, _ = find_boxes(lines).T
    at_border = (left < BORDER) | (right > strong.shape[1] - BORDER)
    if at_border.sum() < 2:  # a single piece may be a digit's bar
        at_border[:] = False
    return np.isin(lines, 1 + np.flatnonzero(at_border))  # they are numbered from 1


def find_boxes(strokes):
    """Return the boxes, int (n, 4), of the strokes in a numbered picture."""
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(strokes)]
    return np.array(boxes, int).reshape(-1, 4)  # (0, 4) if there are none


def choose_strokes(strokes, numbers, boxes):
    """Leave out frames and most of what lies at the border: return `numbers`, `boxes` and about a digit's size."""
    is_frame = find_frames(strokes, numbers, boxes)
    left, top, right, bottom = boxes.T
    picture_height, picture_width = strokes.shape
    at_border = np.min([left, top, picture_width - right, picture_height - bottom], axis=0) < BORDER
    if at_border[~is_frame].all():  # the picture is cropped tightly: keep all
        at_border[:] = False
    digit_size = usual_size(boxes[~is_frame & ~at_border])

    # Drop what lies at the border if its centre is near the edge, or if it is very tall.
    x, y = centres(boxes)
    to_edge = np.min([x, y, picture_width - x, picture_height - y], axis=0)  # from the centre to the nearest edge
    is_near = to_edge < 0.3 * digit_size  # higher: whole digits are lost; lower: the edge of a desk is read
    is_tall = bottom - top > 1.9 * digit_size  # higher: margin lines are read; lower: long-tailed digits aren't
    chosen = ~is_frame & ~(at_border & (is_near | is_tall))
    return numbers[chosen], boxes[chosen], digit_size


def find_frames(strokes, numbers, boxes):
    """Return which strokes are frames, bool (n,): hollow, and with other strokes inside."""
    x, y = centres(boxes)
    heights = boxes[:, 3] - boxes[:, 1]
    is_frame = np.zeros(len(boxes), bool)
    for i, (left, top, right, bottom) in enumerate(boxes):
        inside = (left < x) & (x < right) & (top < y) & (y < bottom)  # strokes whose centres lie in this box
        others = heights[inside].sum() - heights[i]  # not its own
        # Higher: a frame around one small digit is read; lower: a 0 with a speck in it isn't.
        holds_strokes = others > 0.2 * heights[i]
        third_x, third_y = (right - left) // 3, (bottom - top) // 3
        core = strokes[top + third_y : bottom - third_y, left + third_x : right - third_x]  # the box's middle ninth
        is_hollow = numbers[i] not in core  # none of its own pixels
        is_frame[i] = holds_strokes and is_hollow
    return is_frame


def centres(boxes):
    """Return x and y of the centres of boxes."""
    left, top, right, bottom = boxes.T
    return (left + right) / 2, (top + bottom) / 2


def usual_size(boxes):
    """Return a mean of the boxes' longer sides in pixels, or 0 if there are no boxes."""
    left, top, right, bottom = boxes.T
    lengths = np.maximum(right - left, bottom - top)
    # Long ones weigh more, so that dots hardly count: of 2 and 100, this mean is 98, not 51.
    return np.average(lengths, weights=lengths) if len(boxes) else 0


def join_strokes(numbers, boxes, digit_size):
    """Put the strokes of each digit together; drop dots and dashes.

    Returns the digits, a list with the numbers of each one's strokes, and their boxes.
    """
    joined = np.zeros((len(boxes), len(boxes)), bool)
    for a in range(len(boxes)):
        for b in range(a):
            joined[a, b] = belong_together(boxes[a], boxes[b], digit_size)
    # If a is joined to b and b to c, all three are one digit. Each stroke gets the number of its digit, from 0 on.
    count, digit_of_stroke = connected_components(joined, directed=False)

    digits, digit_boxes = [], []
    for digit in range(count):
        its_strokes = digit_of_stroke == digit
        left, top = boxes[its_strokes, :2].min(axis=0)
        right, bottom = boxes[its_strokes, 2:].max(axis=0)
        if bottom - top >= 0.36 * digit_size:  # else, a dot or dash. Higher: small digits go; lower: blots are read
            digits.append(numbers[its_strokes])
            digit_boxes.append((left, top, right, bottom))
    return digits, np.array(digit_boxes)


def belong_together(a, b, digit_size):
    """Return whether strokes with the boxes a and b are parts of one digit.

    That is, one lies above the other or in it, close to it, and together they aren't much taller than a digit.
    """
    left_a, top_a, right_a, bottom_a = a
    left_b, top_b, right_b, bottom_b = b
    overlap = min(right_a, right_b) - max(left_a, left_b)  # sideways; negative if one stands beside the other
    narrower = min(right_a - left_a, right_b - left_b)
    shares_columns = overlap > 0.3 * narrower  # higher: a 5 loses its bar; lower: leaning neighbours are joined
    gap = max(top_a, top_b) - min(bottom_a, bottom_b)  # between them, downwards; negative if one reaches into the other
    is_close = gap < 0.2 * digit_size  # higher: the row below is joined; lower: a 5 loses its bar
    height = max(bottom_a, bottom_b) - min(top_a, top_b)  # of both together
    fits_a_digit = height < 1.7 * digit_size  # higher: rows are joined; lower: tall digits stay in pieces
    return shares_columns and is_close and fits_a_digit


def reading_order(boxes):
    """Sort boxes as one reads: return their order and, in that order, the number of each one's row, both int (n,)."""
    left, top, _, bottom = boxes.T
    _, y = centres(boxes)
    downwards = y.argsort()
    # Half a digit's height. Higher: two rows are read as one; lower: a slanted row falls apart.
    step = 0.5 * np.median(bottom - top)
    begins_row = np.diff(y[downwards]) > step  # from the second on: is it so far below the one before?
    rows = np.zeros(len(boxes), int)
    rows[downwards[1:]] = begins_row.cumsum()  # the first stays 0; False, True, False, True become 0, 1, 1, 2
    order = np.lexsort((left, rows))  # by row (the last key counts first), then by the left edge
    return order, rows[order]


def cut_out(ink, strokes, numbers, box):
    """Make one digit an image like MNIST's, float32 (28, 28), with strokes of at least about MNIST's width.

    `numbers` are those of its strokes.
    """
    left, top, right, bottom = box
    is_its_own = np.isin(strokes[top:bottom, left:right], numbers)  # others can reach into its box
    digit = crop_and_scale(ink[top:bottom, left:right] * is_its_own, 100)
    digit = np.pad(digit, 5)  # strokes can grow by up to 10 pixels, 5 on each side
    distance = ndimage.distance_transform_edt(digit > 0.5)  # for each pixel of ink, how far it is to the nearest paper
    pen = 2 * distance.max()  # the farthest lies in the middle of the widest stroke
    # In a digit of 100 pixels, MNIST's pen is about 10 wide. Higher: loops fill; lower: thin strokes vanish in 28x28.
    too_thin_by = max(0, round(10 - pen))
    # Each pixel becomes the brightest in a window of that size: strokes get wider by `too_thin_by` pixels.
    return fit_to_mnist(ndimage.maximum_filter(digit, 1 + too_thin_by))


# Drawing in a window

PAPER_SIZE = (520, 400)  # width and height in pixels
EDGE = 20  # pixels all around that aren't shown, so that ink at the window's edge doesn't touch the picture's border
PEN = 14  # width in pixels. Higher: loops fill; lower: it is hard to see


def draw(data="mnist", model=None):
    """Open a window to draw digits in; it shows what a trained model reads.

    Its keys: `c` clears the paper, `z` undoes the last stroke. In a notebook it needs an
    interactive backend, such as `%matplotlib widget`.

    Args:
        data, model: as in `read_pictures()`.

    Raises:
        InputError: no display, no such model, or one that doesn't fit these images.
    """
    backend = plt.get_backend().lower()  # what matplotlib draws with; some can only save files
    if backend in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE) or "inline" in backend:
        raise InputError("there is no window to draw in: no display, or a notebook without %matplotlib widget")
    network, _ = load_model(data, model)
    drawing_window(network)
    plt.show()


def drawing_window(network):
    """Open a figure to draw digits in, which shows what `network` reads."""
    figure, (paper, seen, bars) = plt.subplots(1, 3, figsize=(11, 4.4), width_ratios=(8, 4, 3), layout="constrained")
    figure.canvas.manager.set_window_title("Draw digits")
    drawings = [Image.new("RGB", PAPER_SIZE, "white")]  # the empty paper, then the drawing after each stroke
    on_paper = paper.imshow(drawings[0])
    paper.set(xlim=(EDGE, PAPER_SIZE[0] - EDGE), ylim=(PAPER_SIZE[1] - EDGE, EDGE), xticks=[], yticks=[])
    paper.set_xlabel("Draw here.   c: clear   z: undo")
    seen.set(title="the last digit,\nas the network sees it", xticks=[], yticks=[], box_aspect=1)
    bars.set(title="its probabilities", xlim=(0, 1), ylim=(CLASSES - 0.5, -0.5), yticks=range(CLASSES))

    # After each stroke and key, update() reads the drawing.

    def update():
        on_paper.set_data(drawings[-1])
        paper.set_title("")
        for old in (*seen.images, *bars.containers):  # of the last answer
            old.remove()
        with contextlib.suppress(InputError):  # no digit there yet: nothing to show
            images, _, rows = find_digits(np.asarray(drawings[-1]))
            probabilities = network(images, training=False).numpy()
            paper.set_title(describe(probabilities, rows))
            seen.imshow(images[-1], cmap="gray", vmin=0, vmax=1)
            bars.barh(range(CLASSES), probabilities[-1], color="tab:blue")
        figure.canvas.draw_idle()

    def add_stroke(points):
        drawings.append(drawings[-1].copy())
        canvas = ImageDraw.Draw(drawings[-1])
        canvas.line(points, fill="black", width=PEN)
        for point in points:  # round joints and ends, and a dot for a click
            canvas.circle(point, PEN / 2, fill="black")
        update()

    def press_key(event):
        if event.key == "c":
            del drawings[1:]
        elif event.key == "z" and len(drawings) > 1:
            drawings.pop()
        update()

    figure.canvas.mpl_connect("key_press_event", press_key)
    # Kept in the figure, or Python would delete it. Its line is seen only while the mouse is down; 0.8 makes it about
    # as wide as the drawn stroke.
    figure.pen = LassoSelector(paper, add_stroke, props={"color": "black", "linewidth": 0.8 * PEN})


# Running as a script


def main():
    """Read the command line; then evaluate, read pictures or open a window to draw in."""
    parser = model_parser("Evaluate a trained model on the test images, read pictures with it, or draw for it.")
    parser.add_argument("--draw", action="store_true", help="open a window to draw digits in, and read them")
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="one or more handwritten digits each")
    args = parser.parse_args()
    if args.draw and args.pictures:
        parser.error("--draw takes no pictures")
    if args.draw:
        draw(args.data, args.model)
    elif args.pictures:
        answers = read_pictures(args.pictures, args.data, args.model)
        if len(answers) < len(args.pictures):
            sys.exit(1)
    else:
        evaluate_model(args.data, args.model)


if __name__ == "__main__":
    run(main)
