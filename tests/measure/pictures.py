"""Count how many simulated pictures of digits are read right, or draw the steps from a picture to its digits.

    python tests/measure/pictures.py [--data PATH] [--model FILE.h5] [--each 200]
    python tests/measure/pictures.py --steps PICTURE

The first turns MNIST's test images into pictures of five kinds and prints a table, beside the usual way to prepare
a single digit (resize, invert, divide by 255): 2 minutes. The second saves steps.png in the current folder.
"""

import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import evaluate_model as module
from build_model import load_model, model_parser
from load_data import InputError, load_data, run

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from scipy import ndimage

KINDS = {
    "drawn": "one digit drawn in a paint program",
    "paper": "one digit on paper in uneven light",
    "ruled": "one digit on ruled paper",
    "page": "whole pages (right: every digit)",
    "blank": "paper without a digit (right: none found)",
}


def enlarge(digit, size, rng):
    """Return a (28, 28) uint8 digit as a smooth bool mask of `size` x `size`, turned a little."""
    image = Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC)
    image = image.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC)
    return ndimage.gaussian_filter(np.asarray(image, np.float32), size / 100) > 110


def write(rows, width, height, rng):
    """Return rows of (28, 28) uint8 digits as a bool mask (height, width), each digit in a cell of its own."""
    mask = np.zeros((height, width), bool)
    for number, row in enumerate(rows):
        cell_width, cell_height = width // len(row), height // len(rows)
        size = int(min(cell_width, cell_height) * rng.uniform(0.5, 0.9))
        for column, digit in enumerate(row):
            left = column * cell_width + int(rng.uniform(0, cell_width - size))
            top = number * cell_height + (cell_height - size) // 2
            mask[top : top + size, left : left + size] = enlarge(digit, size, rng)
    return mask


def photograph(mask, rng, ruled):
    """Return a noisy JPEG photograph of ink (a bool mask) on paper in uneven light, under the edge of a shadow."""
    height, width = mask.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    turn = rng.uniform(0, 2 * np.pi)
    across = x * np.cos(turn) + y * np.sin(turn)
    light = rng.uniform(150, 235) * (1 + rng.uniform(0.05, 0.3) * across)
    edge = (across - rng.uniform(-0.6, 0.6)) / rng.uniform(0.008, 0.3)
    light *= 1 - rng.uniform(0, 0.25) * (1 + np.tanh(edge))
    if ruled:
        gap, row, column = min(mask.shape) * rng.uniform(0.07, 0.16), *np.mgrid[:height, :width]
        lines = np.abs((row + 0.03 * column) % gap - gap / 2) < max(0.5, min(mask.shape) / 500)
        light *= 1 - rng.uniform(0.08, 0.25) * lines
    ink = rng.uniform(0.4, 0.85) * ndimage.gaussian_filter(mask.astype(float), min(mask.shape) / 400)
    photo = light * (1 - ink) + rng.normal(0, rng.uniform(1, 7), mask.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=int(rng.integers(40, 92)))
    return Image.open(file)


def make(kind, pick, rng):
    """Return a picture of the given kind, and its digits as text; `pick(n)` gives n images and their labels."""
    width, height = rng.integers(300, 1001, 2)
    lengths = {"page": rng.integers(2, 9, rng.integers(1, 4)), "blank": []}.get(kind, [1])
    images, labels = pick(int(np.sum(lengths)))
    mask = write(np.split(images, np.cumsum(lengths)[:-1]) if len(lengths) else [], width, height, rng)
    if kind == "drawn":
        picture = Image.fromarray(mask != (rng.random() < 0.6))  # black on white, or white on black
    else:
        picture = photograph(mask, rng, ruled=kind == "ruled" or kind == "blank" and rng.random() < 0.5)
    return picture, "".join(map(str, labels))


def read_as_usual(network, pixels):
    """Return the digit that is read in a picture as text, prepared as most tutorials have it."""
    small = np.asarray(Image.fromarray(pixels).convert("L").resize((28, 28)), np.float32)
    return str(network(1 - small[np.newaxis, ..., np.newaxis] / 255, training=False).numpy().argmax())


def read(network, pixels):
    """Return the digits that are read in a picture as text, without spaces; '' if none is found."""
    try:
        images, _, _ = module.find_digits(pixels)
    except InputError:
        return ""
    return "".join(map(str, network(images, training=False).numpy().argmax(axis=1)))


def measure(network, X, y, each):
    """Return {kind: (share read right, share the usual way)}; images X (n, 28, 28, 1), one-hot labels y."""
    rng, shares = np.random.default_rng(0), {}

    def pick(n):
        chosen = rng.choice(len(X), n, replace=False)
        return np.rint(255 * X[chosen, ..., 0]).astype(np.uint8), y[chosen].argmax(axis=1)

    for kind in KINDS:
        right = []
        for _ in range(each):
            picture, label = make(kind, pick, rng)
            pixels = np.asarray(picture.convert("RGB"))
            right.append((read(network, pixels) == label, read_as_usual(network, pixels) == label))
        shares[kind] = np.mean(right, axis=0)
    return shares


def draw_steps(picture):
    """Return a figure of six steps: the picture, its ink, its strokes, those of digits, the boxes, the images."""
    pixels = module.load_picture(picture)
    ink = module.remove_paper(pixels)
    strokes, numbers, boxes = module.find_strokes(ink)
    digits, _ = module.join_strokes(*module.choose_strokes(strokes, numbers, boxes))
    joined = sum(number * np.isin(strokes, own) for number, own in enumerate(digits, start=1))
    images, found, _ = module.find_digits(pixels)
    panels = {
        "1. the picture": pixels,
        "2. paper removed": ink,
        "3. strokes": in_colours(strokes * np.isin(strokes, numbers)),
        "4. chosen, 5. joined": in_colours(joined),
        "6. in reading order": pixels,
        "7. like MNIST's": np.hstack(images[..., 0]),
    }
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), layout="constrained")
    for ax, (title, panel) in zip(axes.flat, panels.items()):
        ax.imshow(panel, cmap="gray")
        ax.set(title=title, xticks=[], yticks=[])
    for number, box in enumerate(found, start=1):
        module.draw_box(axes.flat[4], box, "blue")
        axes.flat[4].text(box[0], box[1], number, color="blue", va="bottom")
    return figure


def in_colours(strokes):
    """Return a numbered picture as RGBA: black, and a colour for each number."""
    return plt.get_cmap("nipy_spectral")(np.where(strokes, (strokes % 9 + 3) / 12, 0))


def main():
    parser = model_parser(__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=200, help="pictures of each kind (default: %(default)s)")
    parser.add_argument("--steps", metavar="PICTURE", help="draw the steps from this picture to its digits")
    args = parser.parse_args()
    if args.steps:
        draw_steps(args.steps).savefig("steps.png", dpi=80)
        return print("Saved steps.png")
    network, _ = load_model(args.data, args.model)
    X_test, y_test = load_data(args.data)[2:]
    print(f"| {args.each} pictures of each kind | read right, % | the usual way, % |\n|---|---|---|")
    for kind, (right, usual) in measure(network, X_test, y_test, args.each).items():
        beside = "–" if kind in ("page", "blank") else f"{100 * usual:.1f}"
        print(f"| {KINDS[kind]} | {100 * right:.1f} | {beside} |")


if __name__ == "__main__":
    run(main)
