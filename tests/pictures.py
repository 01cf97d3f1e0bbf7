"""Turn MNIST digits into pictures as people make them, and count how many are read right.

    python tests/pictures.py --data PATH --model FILE.h5

Prints the accuracy for each kind of picture, ours and that of the usual way (resize, invert,
divide by 255). Takes about 5 minutes.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import load_data as project

import keras
import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

PAINT = "pencil white_pencil brush white_brush colour transparent small border drawn28 mnist28 tiny specks scan".split()
PHOTO = "paper shadow ruled faint desk chalk paint_on_paper felt photo12".split()
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


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
    light = rng.uniform(150, 235) * (
        1 + rng.uniform(0.05, 0.3) * across - rng.uniform(0, 0.12) * (x * x + y * y)
    )
    if kind == "shadow":
        edge = (across - rng.uniform(-0.6, 0.6)) / rng.uniform(0.004, 0.15)
        light *= 1 - rng.uniform(0.25, 0.55) / (1 + np.exp(np.clip(-edge, -50, 50)))
    sheet = 1 + 0.02 * ndimage.zoom(rng.standard_normal((9, 9)), (height / 9, width / 9), order=1)
    if kind == "ruled":
        gap = side * rng.uniform(0.07, 0.16)
        row, column = np.mgrid[:height, :width]
        lines = np.abs((row + 0.03 * column) % gap - gap / 2) < max(0.5, side / 500)
        sheet *= 1 - rng.uniform(0.08, 0.25) * lines
    depth = rng.uniform(0.18, 0.35) if kind == "faint" else rng.uniform(0.5, 0.85)
    cover = ndimage.gaussian_filter(mask.astype(np.float32), side * rng.uniform(0.0005, 0.004))[
        ..., np.newaxis
    ]
    tint = np.array([1, rng.uniform(0.95, 1), rng.uniform(0.85, 1)])
    ink = np.array([[1, 1, 1], [1, 0.9, 0.45], [0.4, 0.9, 0.9]])[rng.integers(3)]
    photo = (light * sheet)[..., np.newaxis] * tint * (1 - depth * ink * cover)
    if kind == "desk":
        photo[across > rng.uniform(0.75, 0.95)] = np.array((70, 50, 40)) * rng.uniform(0.5, 1.3)
    if kind == "chalk":
        photo = 255 - photo * rng.uniform(0.8, 1)
    photo += rng.normal(0, rng.uniform(1, 7), photo.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(
        file, "JPEG", quality=int(rng.integers(40, 92))
    )
    return Image.open(file)


def picture(digit, kind, rng):
    """Return a (28, 28) uint8 MNIST digit as a PIL picture of the given kind."""
    side = int(rng.integers(100, 801))
    canvas, size = (int(side * rng.uniform(1, 1.5)), side), side * rng.uniform(0.35, 0.85)
    two = (BLACK, WHITE) if rng.random() < 0.6 else (WHITE, BLACK)
    if kind == "mnist28":
        image = np.roll(digit, rng.integers(-4, 5, 2), (0, 1))
        return Image.fromarray(image if two[0] == WHITE else 255 - image)
    if kind == "tiny":
        small = int(rng.integers(8, 21))
        return Image.fromarray(digit if two[0] == WHITE else 255 - digit).resize(
            (small, small), Image.Resampling.BOX
        )
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
    if kind in PHOTO:
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
        mask = mask | ndimage.binary_dilation(
            rng.random(mask.shape) < 3 / mask.size, iterations=max(1, side // 200)
        )
    return paint(
        mask,
        *{"pencil": (BLACK, WHITE), "white_pencil": (WHITE, BLACK), "white_brush": (WHITE, BLACK)}.get(
            kind, two
        ),
    )


def usual_way(image):
    """Return a picture as most tutorials prepare it: float32 (28, 28, 1)."""
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        image = paper
    return 1 - np.asarray(image.convert("L").resize((28, 28)), np.float32)[..., np.newaxis] / 255


def measure(network, X, y, per_kind, seed=0):
    """Return {kind: (right, right the usual way, pictures)}; images X (n, 28, 28, 1), one-hot labels y.

    Each picture is made of another image, written to a file and read back from it.
    """
    rng = np.random.default_rng(seed)
    order = iter(rng.permutation(len(X)))
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in PAINT + PHOTO:
            n = per_kind if kind != "photo12" else max(1, per_kind // 5)
            ours, usual, labels = [], [], []
            for i in (next(order) for _ in range(n)):
                image = picture(np.rint(255 * X[i, ..., 0]).astype(np.uint8), kind, rng)
                path = Path(folder, "a.jpg" if image.format == "JPEG" else "a.png")
                image.save(path, quality=90) if path.suffix == ".jpg" else image.save(path)
                labels.append(y[i].argmax())
                usual.append(usual_way(image))
                try:
                    ours.append(project.load_image(path))
                except project.InputError:  # "no digit found": counts as wrong
                    ours.append(np.zeros((28, 28, 1), np.float32))
            right = [
                (network.predict(np.stack(images), verbose=0).argmax(axis=1) == labels)
                & np.any(images, axis=(1, 2, 3))
                for images in (ours, usual)
            ]
            counts[kind] = (int(right[0].sum()), int(right[1].sum()), n)
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist", help="a source that load_data() takes (default: mnist)")
    parser.add_argument(
        "--model", default="mnist_classification_model.h5", help="a trained model (default: %(default)s)"
    )
    parser.add_argument(
        "--per-kind", type=int, default=60, help="pictures of each kind (default: %(default)s)"
    )
    args = parser.parse_args()
    _, _, X_test, y_test = project.load_data(args.data)
    counts = measure(keras.models.load_model(args.model, compile=False), X_test, y_test, args.per_kind)
    print("| pictures | n | read right, % | the usual way, % |\n|---|---|---|---|")
    groups = [(kind, [kind]) for kind in counts] + [("**drawn**", PAINT), ("**on paper**", PHOTO)]
    for name, kinds in groups:
        ours, usual, n = np.sum([counts[kind] for kind in kinds], axis=0)
        print(f"| {name} | {n} | {100 * ours / n:.1f} | {100 * usual / n:.1f} |")


if __name__ == "__main__":
    main()
