"""What several test files share: paths, small data sets, a trained model, the scripts as processes."""

import os
import subprocess
import sys
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # before matplotlib is imported: no window may open

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import pytest

from train_model import train_model


def python(*args, cwd):
    """Run Python on `args` with the project's modules in reach; return what it printed."""
    result = subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


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


@pytest.fixture(scope="session")
def digits_model(tmp_path_factory):
    """Path of a model trained on the digits, and its training history (a dict)."""
    path = tmp_path_factory.mktemp("digits") / "digits_classification_model.h5"
    return path, train_model("digits", epochs=5, model=path).history


@pytest.fixture(scope="session")
def mnist():
    """Folder with a copy of the real MNIST; the test is skipped where there is none."""
    folder = Path(os.environ.get("MNIST_DATA", ROOT.parent / "shared" / "mnist"))
    if not (folder / "mnist.npz").is_file():
        pytest.skip(f"needs the real MNIST: no mnist.npz in {folder}; MNIST_DATA can name another folder")
    return folder


@pytest.fixture
def script(tmp_path):
    """Return a function that runs a script in `tmp_path` as a user would and returns the finished process."""

    def run(name, *args, **env):
        return subprocess.run(
            [sys.executable, str(ROOT / name), *map(str, args)],
            cwd=tmp_path,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run
