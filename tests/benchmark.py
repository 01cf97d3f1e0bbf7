"""Compare this project's recipe with the README's original loop: accuracy, time and memory.

    python tests/benchmark.py [--data PATH] [--seeds 5] [--quick]

The two alternate within one run, so that a busy machine slows both. Timed is all that comes
between the loaded data and the trained network, with validation in every epoch. Prints a
Markdown table. Takes about 25 minutes on 2 CPU cores, with --quick about 2. Where the recipe uses
bfloat16, a row tells what the same CPU takes in float32.
"""

import argparse
import contextlib
import functools
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["MPLBACKEND"] = "agg"

import train_model as ours
from build_model import build_model
from load_data import load_data

import keras
import numpy as np
import tensorflow as tf

# The original loop, alone in a process of its own, for its peak memory.
README_SCRIPT = """
import sys
from load_data import load_data
from build_model import build_model
import matplotlib.pyplot as plt
X_train, y_train, X_test, y_test = load_data(sys.argv[1])
build_model().fit(X_train, y_train, epochs=1, validation_data=(X_test, y_test), verbose=0)
"""


def readme_loop(arrays, epochs, seed):
    """The README's loop as written: batch 32, constant rate, NumPy arrays into `fit`; not seeded, as there."""
    X_train, y_train, X_test, y_test = arrays
    history = build_model().fit(X_train, y_train, epochs=epochs, validation_data=(X_test, y_test), verbose=0)
    return history.history["val_accuracy"][-1]


def our_recipe(arrays, epochs, seed, bfloat16=ours.BFLOAT16):
    """`train_model()` as it stands, less loading, saving and drawing; `bfloat16` is its constant."""
    ours.BFLOAT16 = bfloat16
    ours.load_data = lambda data: arrays
    ours.save = ours.save_picture = lambda *args: None
    ours.progress = lambda: 0
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        history = ours.train_model(epochs=epochs, seed=seed, model=Path(folder, "model.h5"))
    return history.history["val_accuracy"][-1]


def peak_memory(code, *args):
    """Return the peak resident memory in MiB of a process of its own that runs `code` (POSIX only)."""
    code += (
        "\nimport resource, sys; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [sys.executable, "-c", code, *args],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
    return int(result.stderr.split()[-1]) / (2**20 if sys.platform == "darwin" else 2**10)


def training_flop():
    """Return the floating-point operations that training on one image takes, counted from the layers."""
    flop = 0
    for number, layer in enumerate(build_model().layers):
        if layer.weights:
            places = np.prod(layer.output.shape[1:-1])  # 1 for a dense layer
            forward = 2 * places * np.prod(layer.kernel.shape)
            flop += forward * (
                2 if number == 0 else 3
            )  # backward costs one for the weights, one for the inputs
    return flop


def matmul_peak(dtype):
    """Return the GFLOP/s of a product of two 2048x2048 matrices of `dtype`: what the machine can do."""
    a = tf.cast(tf.random.normal((2048, 2048)), dtype)
    product = tf.function(lambda: tf.linalg.matmul(a, a))
    product()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / np.median(seconds) / 1e9


def processor():
    """Return the processor's name and the number of cores this process may use."""
    names = (
        [line for line in ours.CPUINFO.read_text().splitlines() if "model name" in line]
        if ours.CPUINFO.exists()
        else []
    )
    name = names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist", help="a source that load_data() takes (default: mnist)")
    parser.add_argument("--seeds", type=int, default=5, help="how often each is run (default: 5)")
    parser.add_argument("--quick", action="store_true", help="two rounds of two epochs: a first impression")
    args = parser.parse_args()
    tf.get_logger().setLevel("ERROR")  # it warns that several networks are trained in one process
    long, rounds = (2, 2) if args.quick else (10, args.seeds)
    rows = [("README's loop", readme_loop, long), ("train_model.py", our_recipe, long)]
    rows += [(f"train_model.py --epochs {n}", our_recipe, n) for n in (2, 1) if n < long]
    dtypes = ["float32"]
    if ours.BFLOAT16:
        rows.append(("train_model.py in float32", functools.partial(our_recipe, bfloat16=False), long))
        dtypes.append("bfloat16")

    # First, while this process is small: Linux counts what a child shares with it before its start.
    print("peak memory", end="", file=sys.stderr, flush=True)
    data = os.path.abspath(args.data) if os.path.exists(args.data) else args.data
    memory_readme = peak_memory(README_SCRIPT, data)
    memory_ours = peak_memory("import sys, train_model; train_model.train_model(sys.argv[1], epochs=1)", data)
    arrays = load_data(args.data)
    accuracy, seconds = np.zeros((2, len(rows), rounds))
    peaks = []
    for i in range(rounds):
        for j, (name, train, epochs) in enumerate(rows):
            print(f"\rround {i + 1} of {rounds}: {name:30}", end="", file=sys.stderr, flush=True)
            start = time.perf_counter()
            accuracy[j, i] = 100 * train(arrays, epochs, seed=i)
            seconds[j, i] = time.perf_counter() - start
            peaks.append([matmul_peak(dtype) for dtype in dtypes])
    print("\r" + " " * 50 + "\r", end="", file=sys.stderr)

    gflops = training_flop() * len(arrays[0]) * np.array([[epochs] for _, _, epochs in rows]) / seconds / 1e9
    print(
        "| run | epochs | test accuracy, % | seconds | time, README's loop = 1 | GFLOP/s |\n|---|---|---|---|---|---|"
    )
    for (name, _, epochs), acc, sec, ratio, rate in zip(
        rows, accuracy, seconds, seconds / seconds[0], gflops
    ):
        spread = lambda values, digits: (
            f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"
            if rounds > 1
            else f"{values.mean():.{digits}f}"
        )
        print(
            f"| {name} | {epochs} | {spread(acc, 2)} | {spread(sec, 1)} | {spread(ratio, 3)} | {rate.mean():.0f} |"
        )
    products = " and ".join(f"{peak:.0f} GFLOP/s in {t}" for peak, t in zip(np.median(peaks, axis=0), dtypes))
    print(
        f"\nMean ± standard deviation over n = {rounds} runs. Peak memory of the whole process: "
        f"{memory_ours:.0f} MiB, README's loop {memory_readme:.0f} MiB ({memory_ours / memory_readme:.2f}). "
        f"{processor()}; matrix product {products}. Python {platform.python_version()}, "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}, NumPy {np.__version__}."
    )


if __name__ == "__main__":
    main()
