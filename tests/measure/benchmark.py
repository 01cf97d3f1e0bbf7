"""Compare the recipe with the textbook loop, or one changed constant a row with the recipe.

    python tests/measure/benchmark.py [--data PATH] [--seeds 5] [--quick]
    python tests/measure/benchmark.py --ablation [ROW ...] [--data PATH] [--seeds 5] [--epochs 10]

The first trains on the training images and tests on the test images. The runs alternate, so that a
busy machine slows them all. Timed is what comes between the loaded data and the trained network,
with validation in every epoch. It takes 30 minutes on 2 CPU cores; with --quick, 3 minutes.

The second trains on the first five sixths of the training images and judges by the rest: it is how
the recipe's constants were chosen. A row takes about a minute a seed; --ablation --help names them.

Both print a Markdown table.
"""

import os
import platform
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
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    bfloat16 = "with" if recipe.bfloat16_is_faster() else "without"
    return (
        f"{name} {bfloat16} fast bfloat16, {os.cpu_count()} cores. "
        f"Python {platform.python_version()}, TensorFlow {tf.__version__}, Keras {keras.__version__}."
    )


def spread(values, digits):
    """Return values as text: mean ± standard deviation."""
    text = f"{np.mean(values):.{digits}f}"
    return text + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


def tell(text):
    """Show on stderr how far it has come, over what was shown before."""
    print(f"\r{text:60}\r", end="", file=sys.stderr, flush=True)


def benchmark(data, seeds, quick):
    """Print the table that compares accuracy and time with the textbook loop."""
    long, seeds = (2, 2) if quick else (10, seeds)
    runs = [("textbook loop", textbook_loop, long, {}), ("`train_model.py`", our_recipe, long, {})]
    runs += [(f"`train_model.py --epochs {n}`", our_recipe, n, {}) for n in (2, 1) if n < long]
    if recipe.bfloat16_is_faster():
        runs.append(("`train_model.py` in float32", our_recipe, long, ROWS["float32"]))
    arrays = load_data(data)
    accuracy, seconds = np.zeros((2, len(runs), seeds))
    for seed in range(seeds):
        for number, (name, train, epochs, changes) in enumerate(runs):
            tell(f"round {seed + 1} of {seeds}: {name}")
            start = time.perf_counter()
            accuracy[number, seed] = 100 * train(arrays, epochs, seed, **changes)
            seconds[number, seed] = time.perf_counter() - start
    tell("")
    print("| run | epochs | test accuracy, % | seconds | time ratio |\n|---|---|---|---|---|")
    for (name, _, epochs, _), acc, sec, ratio in zip(runs, accuracy, seconds, seconds / seconds[0]):
        print(f"| {name} | {epochs} | {spread(acc, 2)} | {spread(sec, 1)} | {spread(ratio, 3)} |")
    print(f"\nMean ± standard deviation over n = {seeds} runs. {machine()}")


def ablation(data, seeds, epochs, names):
    """Print a table of accuracies on the last sixth of the training images, one changed constant a row."""
    X, y, _, _ = load_data(data)
    split = len(X) * 5 // 6
    arrays = X[:split], y[:split], X[split:], y[split:]
    print(f"| row | accuracy on the last {len(X) - split} training images, %, {epochs} epochs |\n|---|---|")
    for name in names:
        accuracy = []
        for seed in range(seeds):
            tell(f"{name}: seed {seed + 1} of {seeds}")
            accuracy.append(100 * our_recipe(arrays, epochs, seed, **ROWS[name]))
        tell("")
        print(f"| {name} | {spread(accuracy, 2)} |", flush=True)
    print(f"\nMean ± standard deviation over n = {seeds} seeds. {machine()}")


def main():
    parser = data_parser(__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how often each is run (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two rounds of two epochs: a first impression")
    parser.add_argument("--epochs", type=int, default=10, help="of the ablation's runs (default: %(default)s)")
    parser.add_argument("--ablation", nargs="*", choices=ROWS, metavar="ROW", help=", ".join(ROWS).replace("%", "%%"))
    args = parser.parse_args()
    tf.get_logger().setLevel("ERROR")  # it warns that several networks are trained in one process
    if args.ablation is None:
        benchmark(args.data, args.seeds, args.quick)
    else:
        ablation(args.data, args.seeds, args.epochs, args.ablation or list(ROWS))


if __name__ == "__main__":
    run(main)
