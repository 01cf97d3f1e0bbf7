"""Compare the recipe with the textbook loop, or the recipe with others that differ by one constant.

    python tests/measure/benchmark.py [--data PATH] [--seeds 5] [--epochs 10]
    python tests/measure/benchmark.py --ablation [ROW ...] [--data PATH] [--seeds 5] [--epochs 10]

Both print a Markdown table. The runs alternate, so that a busy machine slows them all. Timed is what comes between the
loaded data and the trained network, with validation in every epoch.

The first trains on the training images and tests on the test images. It takes 30 minutes on 2 CPU cores; with
--seeds 2 --epochs 2, 3 minutes. The second trains on the first five sixths of the training images and judges by the
rest: it is how the recipe's constants were chosen. A row takes about a minute a seed; --help names them.
"""

import os
import platform
import re
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
os.environ["MPLBACKEND"] = "agg"

import train_model as recipe
from build_model import build_model, keras
from load_data import data_parser, load_data, run

import numpy as np
import tensorflow as tf

# The ablation's rows: what is changed in train_model.py.
ROWS = {
    "recipe": {},
    "float32": {"bfloat16_is_faster": lambda: False},
    "all-distorted": {"distort_half": lambda batch, seed: (recipe.distort(batch[0], seed), batch[1])},
    "none-distorted": {"distort_half": lambda batch, seed: batch},
    "corners-2": {"CORNER_SHIFT": 2.0},
    "corners-6": {"CORNER_SHIFT": 6.0},
    "constant-rate": {"one_cycle": lambda epochs, steps: 1e-3},
    "peak-2e-3": {"PEAK_RATE": 2e-3},
    "peak-8e-3": {"PEAK_RATE": 8e-3},
    "warm-up-0%": {"WARM_UP": 0.0},
    "warm-up-40%": {"WARM_UP": 0.4},
    "batches-64": {"BATCH_SIZE": 64},
    "batches-256": {"BATCH_SIZE": 256},
}


def textbook_loop(arrays, epochs, seed):
    """Train as the textbook does: batches of 32, a constant rate, NumPy arrays into `fit`; not seeded."""
    X_train, y_train, X_test, y_test = arrays
    history = build_model().fit(X_train, y_train, epochs=epochs, validation_data=(X_test, y_test), verbose=0)
    return history.history["val_accuracy"][-1]


def our_recipe(arrays, epochs, seed, **changes):
    """Train as `train_model()` does, with some of its module's names changed, but neither load nor save."""
    untimed = {
        "load_data": lambda data: arrays,
        "save_model": lambda network, path: None,
        "save_and_show": lambda figure, path, name: recipe.plt.close(figure),
        "verbosity": lambda: 0,
    }
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(None):
        model = Path(folder, "model.h5")
        with mock.patch.multiple(recipe, **untimed, **changes):
            history = recipe.train_model(epochs=epochs, batch_size=recipe.BATCH_SIZE, seed=seed, model=model)
    return history.history["val_accuracy"][-1]


def machine():
    """Return a sentence on the processor and the versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    names = re.findall(r"model name\s*: (.*)", cpuinfo) + [platform.processor(), platform.machine()]
    name = next(filter(None, names))
    bfloat16 = "with" if recipe.bfloat16_is_faster() else "without"
    versions = f"Python {platform.python_version()}, TensorFlow {tf.__version__}, Keras {keras.__version__}"
    return f"{name} {bfloat16} fast bfloat16, {os.cpu_count()} cores. {versions}."


def spread(values, digits):
    """Return values as text: mean ± standard deviation."""
    text = f"{np.mean(values):.{digits}f}"
    return text + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


def compare(runs, arrays, seeds):
    """Make runs (name, function, epochs, changes) in turn, each `seeds` times, and print a Markdown table of them."""
    accuracy, seconds = np.zeros((2, len(runs), seeds))
    for seed in range(seeds):
        for number, (name, train, epochs, changes) in enumerate(runs):
            print(f"round {seed + 1} of {seeds}: {name:40}", end="\r", file=sys.stderr, flush=True)
            start = time.perf_counter()
            accuracy[number, seed] = 100 * train(arrays, epochs, seed, **changes)
            seconds[number, seed] = time.perf_counter() - start
    print("| run | epochs | accuracy, % | seconds | time ratio |\n|---|---|---|---|---|")
    for (name, _, epochs, _), acc, sec, ratio in zip(runs, accuracy, seconds, seconds / seconds[0]):
        print(f"| {name} | {epochs} | {spread(acc, 2)} | {spread(sec, 1)} | {spread(ratio, 3)} |")
    print(f"\nMean ± standard deviation over n = {seeds} runs. {machine()}")


def main():
    parser = data_parser(__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how often each is run (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=10, help="of each run (default: %(default)s)")
    parser.add_argument("--ablation", nargs="*", choices=ROWS, metavar="ROW", help=", ".join(ROWS).replace("%", "%%"))
    args = parser.parse_args()
    tf.get_logger().setLevel("ERROR")  # it warns that several networks are trained in one process
    arrays = X, y, _, _ = load_data(args.data)
    if args.ablation is None:
        runs = [("textbook loop", textbook_loop, args.epochs, {}), ("`train_model.py`", our_recipe, args.epochs, {})]
        runs += [(f"`train_model.py --epochs {n}`", our_recipe, n, {}) for n in (2, 1) if n < args.epochs]
        if recipe.bfloat16_is_faster():
            runs.append(("`train_model.py` in float32", our_recipe, args.epochs, ROWS["float32"]))
    else:
        split = len(X) * 5 // 6
        arrays = X[:split], y[:split], X[split:], y[split:]
        runs = [(name, our_recipe, args.epochs, ROWS[name]) for name in args.ablation or ROWS]
    compare(runs, arrays, args.seeds)


if __name__ == "__main__":
    run(main)
