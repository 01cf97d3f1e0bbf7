"""Count how many pictures of digits are read right: simulated ones, or photographs of your own.

    python tests/pictures.py [--data PATH] [--model FILE.h5] [--per-kind 60]
    python tests/pictures.py --photos FOLDER [--model FILE.h5]

The first turns MNIST's test images into pictures as people make them: single digits drawn in a paint
program or written on paper, pages of several digits, and pages without any. It prints a table by
kind, beside the usual way to prepare a single digit (resize, invert, divide by 255): 10 minutes.

The second reads the pictures in a folder, each named `<anything>_<digits in reading order>.<ending>`.
"""

import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark import tell

import evaluate_model
from load_data import InputError, data_parser, find_digits, load_data, run

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

DRAWN = "pencil white_pencil brush white_brush colour transparent small border drawn28 mnist28 tiny specks scan".split()
PAPER = "paper shadow ruled faint desk chalk paint_on_paper felt photo12".split()
PAGES = "page page_slanted page_uneven page_ruled page_shadow page_drawn".split()
BLANK = "blank blank_shadow blank_ruled blank_squared".split()
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


# One digit


def smooth(digit, size, angle):
    """Return a (28, 28) uint8 digit as a bool mask of `size` x `size`, turned by `angle` degrees."""
    image = Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC)
    image = image.rotate(angle, Image.Resampling.BICUBIC)
    return ndimage.gaussian_filter(np.asarray(image, np.float32), size / 100) > 110


def skeleton(mask):
    """Return the lines of one pixel that Zhang and Suen's thinning (1984) leaves of a bool mask."""
    mask, before = np.pad(mask, 1), None
    ring = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    while before is None or (mask != before).any():
        before = mask
        for step in (0, 1):
            around = [np.roll(mask, (-y, -x), (0, 1)) for y, x in ring]
            count = np.sum(around, axis=0)
            turns = np.sum([~a & b for a, b in zip(around, around[1:] + around[:1])], axis=0)
            n, e, s, w = around[::2]
            kept = (n & e & s) | (e & s & w) if step == 0 else (n & e & w) | (n & s & w)
            mask = mask & ~((count >= 2) & (count <= 6) & (turns == 1) & ~kept)
    return mask[1:-1, 1:-1]


def draw(digit, rng, canvas, size, pen, at=None):
    """Return a bool canvas (width, height) on which a round pen has drawn the digit `size` pixels long."""
    ys, xs = np.nonzero(skeleton(smooth(digit, 140, rng.uniform(-10, 10))))
    scale = size / max(np.ptp(ys), np.ptp(xs), 1)
    points = np.stack([xs - xs.min(), ys - ys.min()], axis=1)
    room = np.maximum(np.array(canvas) - points.max(axis=0) * scale - 2 * pen, 0)
    start = pen + room * (rng.random(2) if at is None else at)
    image = Image.new("L", canvas)
    on_canvas = ImageDraw.Draw(image)
    filled = set(map(tuple, points.tolist()))
    for x, y in filled:
        for neighbour in ((x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1), (x - 1, y + 1)):
            if neighbour in filled:
                a, b = (np.array(point) * scale + start for point in ((x, y), neighbour))
                on_canvas.line([*a, *b], fill=255, width=round(pen))
                if pen >= 3:
                    on_canvas.ellipse([*(a - pen / 2), *(a + pen / 2)], fill=255)
    return np.asarray(image) > 0


def paint(mask, ink, paper):
    """Return the RGB picture of a bool mask in two colours."""
    return Image.fromarray(np.where(mask[..., np.newaxis], ink, paper).astype(np.uint8))


def photograph(mask, rng, kind):
    """Return a noisy JPEG photo of ink (a bool mask) on paper in uneven light."""
    height, width = mask.shape
    side = min(height, width)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    across = x * np.cos(turn) + y * np.sin(turn)
    light = rng.uniform(150, 235) * (1 + rng.uniform(0.05, 0.3) * across - rng.uniform(0, 0.12) * (x * x + y * y))
    if kind == "shadow":
        edge = (across - rng.uniform(-0.6, 0.6)) / rng.uniform(0.004, 0.15)
        light *= 1 - rng.uniform(0.25, 0.55) / (1 + np.exp(np.clip(-edge, -50, 50)))
    sheet = 1 + 0.02 * ndimage.zoom(rng.standard_normal((9, 9)), (height / 9, width / 9), order=1)
    if kind in ("ruled", "squared"):
        gap = side * rng.uniform(0.07, 0.16)
        row, column = np.mgrid[:height, :width]
        lines = np.abs((row + 0.03 * column) % gap - gap / 2) < max(0.5, side / 500)
        if kind == "squared":
            lines |= np.abs((column - 0.03 * row) % gap - gap / 2) < max(0.5, side / 500)
        sheet *= 1 - rng.uniform(0.08, 0.25) * lines
    depth = rng.uniform(0.18, 0.35) if kind == "faint" else rng.uniform(0.5, 0.85)
    cover = ndimage.gaussian_filter(mask.astype(np.float32), side * rng.uniform(0.0005, 0.004))[..., np.newaxis]
    tint = np.array([1, rng.uniform(0.95, 1), rng.uniform(0.85, 1)])
    ink = np.array([[1, 1, 1], [1, 0.9, 0.45], [0.4, 0.9, 0.9]])[rng.integers(3)]
    photo = (light * sheet)[..., np.newaxis] * tint * (1 - depth * ink * cover)
    if kind == "desk":
        photo[across > rng.uniform(0.75, 0.95)] = np.array((70, 50, 40)) * rng.uniform(0.5, 1.3)
    if kind == "chalk":
        photo = 255 - photo * rng.uniform(0.8, 1)
    photo += rng.normal(0, rng.uniform(1, 7), photo.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=int(rng.integers(40, 92)))
    return Image.open(file)


def one_digit(digit, kind, rng):
    """Return a (28, 28) uint8 MNIST digit as a PIL picture of the given kind."""
    side = int(rng.integers(100, 801))
    canvas, size = (int(side * rng.uniform(1, 1.5)), side), side * rng.uniform(0.35, 0.85)
    two = (BLACK, WHITE) if rng.random() < 0.6 else (WHITE, BLACK)
    if kind == "mnist28":
        image = np.roll(digit, rng.integers(-4, 5, 2), (0, 1))
        return Image.fromarray(image if two[0] == WHITE else 255 - image)
    if kind == "tiny":
        small = int(rng.integers(8, 21))
        image = Image.fromarray(digit if two[0] == WHITE else 255 - digit)
        return image.resize((small, small), Image.Resampling.BOX)
    if kind in ("felt", "scan"):
        mask = np.zeros((side, side), bool)
        mask[: int(size), : int(size)] = smooth(digit, int(size), rng.uniform(-10, 10))
        mask = np.roll(mask, rng.integers(0, side - int(size), 2), (0, 1))
        return photograph(mask, rng, "shadow") if kind == "felt" else paint(mask, BLACK, WHITE).convert("1")
    at, pen = None, size * rng.uniform(0.02, 0.08)
    if kind in ("pencil", "white_pencil", "paint_on_paper"):
        pen = rng.integers(1, 4)
    elif kind in ("brush", "white_brush"):
        pen = size * rng.uniform(0.08, 0.2)
    elif kind == "small":
        size, pen = size / 4, max(1, size / 4 * rng.uniform(0.02, 0.1))
    elif kind == "border":
        at = rng.permutation([rng.choice([-0.02, 1.02]), rng.random()])
    elif kind == "drawn28":
        canvas, size, pen, at = (28, 28), rng.uniform(14, 22), rng.integers(1, 4), rng.uniform(0.2, 0.8, 2)
    elif kind == "desk":
        size, pen, at = size * 0.7, pen * 0.7, (0.5, 0.5)
    elif kind == "photo12":
        canvas, size = (4000, 3000), rng.uniform(300, 2400)
        pen = size * rng.uniform(0.025, 0.08)
    if kind in PAPER:
        pen = max(2, pen)
        kind = "shadow" if kind in ("paint_on_paper", "photo12") else kind
        return photograph(draw(digit, rng, canvas, size, pen, at), rng, kind)
    mask = draw(digit, rng, canvas, size, max(1, pen), at)
    if kind == "transparent":
        shade = np.full((*mask.shape, 3), (0, 255, 90)[rng.integers(3)], np.uint8)
        return Image.fromarray(np.dstack([shade, np.uint8(255 * mask)]), "RGBA")
    if kind == "colour":
        ink = rng.integers(0, 256, 3)
        return paint(mask, ink, (ink + rng.integers(90, 166, 3)) % 256)
    if kind == "specks":
        mask = mask | ndimage.binary_dilation(rng.random(mask.shape) < 3 / mask.size, iterations=max(1, side // 200))
    colours = {"pencil": (BLACK, WHITE), "white_pencil": (WHITE, BLACK), "white_brush": (WHITE, BLACK)}
    return paint(mask, *colours.get(kind, two))


# Pages


def page(rows, kind, rng):
    """Return rows of (28, 28) uint8 digits as a PIL picture of a page of the given kind, maybe without any."""
    width, height = int(rng.integers(800, 1601)), int(rng.integers(600, 1201))
    mask = np.zeros((height, width), bool)
    longest = max(map(len, rows), default=1)
    size = int(min(height / len(rows or [1]) / 2, width / longest / 1.6))
    pen = max(2, size * rng.uniform(0.04, 0.1))
    slope = rng.uniform(-0.12, 0.12) if kind == "page_slanted" else 0
    for number, row in enumerate(rows):
        left, top = 0.1 * size, (number + 0.3) * height / len(rows)
        for digit in row:
            cell = draw(digit, rng, (int(1.1 * size), int(1.1 * size)), 0.9 * size, pen, (0.5, 0.5))
            y = top + slope * (left - width / 2) + rng.normal(0, 0.04 * size)
            x, y = int(left), int(np.clip(y, 0, height - size))
            space = mask[y : y + len(cell), x : x + len(cell)]
            space |= cell[: space.shape[0], : space.shape[1]]
            left += size * (rng.uniform(0.95, 1.55) if kind == "page_uneven" else 1.15)
    if kind == "page_drawn":
        return paint(mask, BLACK, WHITE)
    return photograph(mask, rng, kind.partition("_")[2])


# Counting


def read_as_usual(network, image):
    """Return the digit that is read in a picture as text, prepared as most tutorials have it."""
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        image = paper
    prepared = 1 - np.asarray(image.convert("L").resize((28, 28)), np.float32)[np.newaxis, ..., np.newaxis] / 255
    return str(network(prepared, training=False).numpy().argmax())


def read(network, path):
    """Return the digits that are read in a picture file as text, without spaces; '' if none is found."""
    try:
        images, _, _ = find_digits(path)
    except InputError:
        return ""
    return as_text(network(images, training=False).numpy().argmax(axis=1))


def as_text(digits):
    return "".join(map(str, digits))


def make(kind, pick, rng):
    """Return a picture of the given kind, and its digits as text; `pick(n)` gives n images and their labels."""
    if kind in DRAWN + PAPER:
        images, labels = pick(1)
        return one_digit(images[0], kind, rng), as_text(labels)
    if kind in BLANK:
        return page([], kind, rng), ""
    lengths = rng.integers(2, 9, rng.integers(1, 4))
    images, labels = pick(lengths.sum())
    return page(np.split(images, lengths.cumsum()[:-1]), kind, rng), as_text(labels)


def measure(network, X, y, per_kind):
    """Return {kind: (right, right the usual way, pictures)}; images X (n, 28, 28, 1), one-hot labels y.

    Each picture is written to a file and read back from it.
    """
    rng = np.random.default_rng(0)
    counts = {}

    def pick(n):
        i = rng.choice(len(X), n, replace=False)
        return np.rint(255 * X[i, ..., 0]).astype(np.uint8), y[i].argmax(axis=1)

    with tempfile.TemporaryDirectory() as folder:
        for kind in DRAWN + PAPER + PAGES + BLANK:
            n = per_kind if kind != "photo12" else max(1, per_kind // 5)
            right = usual = 0
            for number in range(n):
                tell(f"{kind}: {number + 1} of {n}")
                image, label = make(kind, pick, rng)
                path = Path(folder, "a.jpg" if image.format == "JPEG" else "a.png")
                image.save(path, quality=90)  # which a PNG ignores
                right += read(network, path) == label
                usual += read_as_usual(network, image) == label
            counts[kind] = right, usual, n
    tell("")
    return counts


def print_photos(network, folder):
    """Print which pictures in a folder are read right, and how many, of one and of several digits."""
    one, several, usual = [], [], []
    for path in sorted(Path(folder).iterdir()):
        label = path.stem.rpartition("_")[2]
        if not label.isdecimal():
            continue
        tell(path.name)
        answer = read(network, path)
        if len(label) == 1:
            one.append(answer == label)
            usual.append(read_as_usual(network, Image.open(path)) == label)
        else:
            several.append(answer == label)
        tell("")
        print(f"{'right' if answer == label else 'WRONG'}  {path.name}: {answer or 'no digit found'}", flush=True)
    print(f"one digit: {sum(one)} of {len(one)} read right, the usual way {sum(usual)}")
    print(f"several digits: {sum(several)} of {len(several)} read right")


def main():
    parser = data_parser(__doc__.splitlines()[0])
    parser.add_argument("--model", default="mnist_classification_model.h5", help="default: %(default)s")
    parser.add_argument("--per-kind", type=int, default=60, help="pictures of each kind (default: %(default)s)")
    parser.add_argument("--photos", metavar="FOLDER", help="read the photographs in this folder instead")
    args = parser.parse_args()
    network, _ = evaluate_model.load_model(args.data, args.model)
    if args.photos:
        if not Path(args.photos).is_dir():
            raise InputError(f"{args.photos}: no such folder")
        return print_photos(network, args.photos)
    X_test, y_test = load_data(args.data)[2:]
    counts = measure(network, X_test, y_test, args.per_kind)
    print("| pictures | n | read right, % | the usual way, % |\n|---|---|---|---|")
    groups = {"**drawn**": DRAWN, "**on paper**": PAPER, "**pages**": PAGES, "**without a digit**": BLANK}
    for name, kinds in ({kind: [kind] for kind in counts} | groups).items():
        right, usual, n = np.sum([counts[kind] for kind in kinds], axis=0)
        beside = f"{100 * usual / n:.1f}" if set(kinds) <= {*DRAWN, *PAPER} else "-"
        print(f"| {name} | {n} | {100 * right / n:.1f} | {beside} |")


if __name__ == "__main__":
    run(main)
