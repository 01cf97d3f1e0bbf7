"""What several test files share: small data, a trained model, a fast network, and the scripts as users run them.

The files, in the order in which the pipeline runs:

test_load_data.py       data sets become arrays, or a clear error
test_build_model.py     the network is the README's, and its file can be read by others
test_train_model.py     the recipe: what is trained, in which order, at which rate
test_evaluate_model.py  figures that agree with a count by hand; pictures are read and drawn
test_find_digits.py     digits are found in pictures and look like MNIST's
test_window.py          the window to draw in
test_scripts.py         the scripts as a user starts them: output, exit status, a quiet start
test_readme.py          what the README names exists and runs
test_measure.py         the programs in tests/measure/, which print the README's figures
test_faults.py          kills, full disks, Ctrl-C, NaN: no model is lost
test_strangers.py       damaged and hostile files: no code runs, no other file is read
"""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

os.environ["MPLBACKEND"] = "agg"  # before matplotlib is imported: no window may open

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "measure")]

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image, ImageDraw

from load_data import run

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX: Linux or macOS")

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


# Data


@pytest.fixture
def arrays():
    """Four uint8 arrays of MNIST's form: 30 training and 20 test images of noise, each class present."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (30, 28, 28), dtype=np.uint8),
        "y_train": np.arange(30, dtype=np.uint8) % 10,
        "x_test": rng.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "y_test": np.arange(20, dtype=np.uint8) % 10,
    }


@pytest.fixture
def npz(tmp_path, arrays):
    """Path of an .npz file that holds `arrays`."""
    path = tmp_path / "small.npz"
    np.savez(path, **arrays)
    return path


def idx(array):
    """Return the bytes of an IDX file, written by hand from the format's description."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_idx(folder, arrays, rename=str, pack=bytes, **contents):
    """Write the four IDX files of `arrays`; `contents` holds bytes in place of an array, by its name."""
    for file, (name, array) in zip(IDX_FILES, arrays.items()):
        (folder / rename(file)).write_bytes(pack(contents.get(name, idx(array))))
    return folder


@pytest.fixture(scope="session")
def mnist():
    """Path of the real mnist.npz; the test is skipped where there is none."""
    path = Path(os.environ.get("MNIST_DATA", ROOT.parent / "shared" / "mnist"), "mnist.npz")
    if not path.is_file():
        pytest.skip(f"needs the real MNIST: no {path}; MNIST_DATA can name another folder that holds mnist.npz")
    return path


# Networks. TensorFlow is imported by the tests that need it.


@pytest.fixture(scope="session")
def digits_model(tmp_path_factory):
    """Path of a model trained on the digits by the default recipe, and its training history (a dict)."""
    from train_model import train_model

    path = tmp_path_factory.mktemp("digits") / "digits_classification_model.h5"
    return path, train_model("digits", model=path).history


def build_small_network(learning_rate=1e-3, steps_per_execution=1):
    """Return a network that trains in no time: eagerly, as building a graph takes longer than its few steps."""
    import keras

    stack = [keras.Input((28, 28, 1)), keras.layers.Flatten()]
    stack.append(keras.layers.Dense(10, activation="softmax", dtype="float32"))
    network = keras.Sequential(stack)
    optimizer = keras.optimizers.Adam(learning_rate)
    network.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"], run_eagerly=True)
    return network


@pytest.fixture
def small_network(monkeypatch):
    """Let train_model() train the small network; return the function that builds it."""
    import train_model

    monkeypatch.setattr(train_model, "build_model", build_small_network)
    return build_small_network


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    """Path of a model that reads clear digits: it answers with the nearest of the ten mean images of `digits`."""
    from load_data import load_data

    X, y, _, _ = load_data("digits")
    means = y.T @ X.reshape(len(X), -1) / y.sum(axis=0)[:, np.newaxis]
    network = build_small_network()
    network.set_weights([1.2 * means.T, -0.6 * (means**2).sum(axis=1)])
    path = tmp_path_factory.mktemp("reader") / "reader.h5"
    network.save(path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch, reader):
    """The current folder, with a copy of `reader` as m.h5."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(reader, "m.h5")
    return tmp_path


# Pictures

MY_DIGIT = ROOT / ".github" / "images" / "my_digit.png"  # a 7


TURN = np.linspace(0, 2 * np.pi, 20)
STROKES = {  # of digits 100 pixels high, each a list of points
    "7": [[(0, 0), (60, 0), (20, 100)]],
    "1": [[(20, 0), (28, 100)]],
    "0": [np.stack([30 + 30 * np.cos(TURN), 50 + 50 * np.sin(TURN)], axis=1)],
    "5": [[(5, 10), (5, 50), (50, 55), (50, 95), (0, 100)], [(5, 0), (70, 0)]],  # its bar lies apart
    "/": [[(40, 0), (0, 100)]],
    "-": [[(0, 50), (60, 50)]],
}


def strokes(name, x, y, scale=1):
    """Return a digit's strokes with its left upper corner at x, y."""
    return [[(x + scale * float(a), y + scale * float(b)) for a, b in points] for points in STROKES[name]]


def page(*places, size=(1000, 750), pen=8, scale=1, mode="L", ink="black", paper="white", frame=None):
    """Return a PIL picture of digits, each given as (name, x, y), maybe in a frame."""
    picture = Image.new(mode, size, paper)
    for place in places:
        for points in strokes(*place, scale):
            ImageDraw.Draw(picture).line(points, fill=ink, width=pen, joint="curve")
    if frame:
        ImageDraw.Draw(picture).rectangle(frame, outline=ink, width=6)
    return picture


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def found_in(path):
    """Return what find_digits() finds in a picture file."""
    from evaluate_model import find_digits, load_picture

    return find_digits(load_picture(path))


# Processes, and scripts in this process


def python(*args, cwd, stdout=subprocess.PIPE, **env):
    """Run Python on `args`, with the project and its tests in reach; return the finished process.

    `env` is added to the environment; a variable that is None is taken out of it.
    """
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "measure")])
    env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": None, **env}
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={name: value for name, value in env.items() if value is not None},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=600,
    )


@pytest.fixture
def script(tmp_path):
    """Return a function that runs a script in `tmp_path` as a user would, and returns the finished process."""
    return lambda name, *args, **options: python(ROOT / name, *args, cwd=tmp_path, **options)


class End(NamedTuple):
    """How a script ended: its status, or the line that Python prints before status 1; and what it printed."""

    code: int | str
    out: str
    err: str


@pytest.fixture
def end_of(monkeypatch, capfd):
    """Return a function that runs a module's main() in this process as its script does, and returns an End."""

    def end_of(module, *args):
        monkeypatch.setattr("sys.argv", [f"{module.__name__}.py", *map(str, args)])
        capfd.readouterr()  # what was printed before
        code = 0
        try:
            run(module.main)
        except SystemExit as stop:
            code = stop.code or 0
        return End(code, *capfd.readouterr())

    return end_of


def assert_one_line(text, *parts):
    """Assert that `text`, an End's code or a process's stderr, is one line, `error: ...`, that holds all the parts."""
    assert isinstance(text, str) and text.startswith("error: ") and len(text.splitlines()) == 1, text
    for part in parts:
        assert str(part) in text


def failing(error):
    """Return a function that raises `error`, whatever it's called with."""

    def fail(*args, **kwargs):
        raise error

    return fail
