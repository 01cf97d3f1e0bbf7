"""What load_data() promises: the arrays it returns, and a clear word about data it can't use."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import IDX_FILES, assert_one_line, idx, write_idx
from scipy import ndimage
from sklearn.datasets import load_digits

import load_data as module
from load_data import InputError, fit_to_mnist, load_data

NAMES = ("x_train", "y_train", "x_test", "y_test")


def check_contract(loaded, arrays):
    for got, key in zip(loaded, NAMES, strict=True):
        raw = arrays[key]
        assert got.dtype == np.float32
        if key.startswith("x"):
            assert np.array_equal(got, np.float32(raw[..., np.newaxis]) / np.float32(255)), "0 to 1, with a channel"
        else:
            assert np.array_equal(got, np.eye(10)[raw]), "one-hot"


# Good data


def test_npz(npz, arrays):
    check_contract(load_data(npz), arrays)
    check_contract(load_data(str(npz)), arrays)


@pytest.mark.parametrize("pack, end", [(bytes, ""), (gzip.compress, ".gz")], ids=["plain", "gzipped"])
@pytest.mark.parametrize("dash", "-.", ids=["original", "kaggle"])
def test_idx_folder(tmp_path, arrays, pack, end, dash):
    write_idx(tmp_path, arrays, lambda name: name.replace("-idx", f"{dash}idx") + end, pack)
    check_contract(load_data(tmp_path), arrays)


def test_digits_are_fixed_stratified_and_in_mnist_form():
    loaded = X_train, y_train, X_test, y_test = load_data("digits")
    assert [array.shape for array in loaded] == [(1500, 28, 28, 1), (1500, 10), (297, 28, 28, 1), (297, 10)]
    assert all(array.dtype == np.float32 for array in loaded)
    per_class = np.bincount(load_digits().target)
    assert np.array_equal((y_train.sum(axis=0) + y_test.sum(axis=0)), per_class)
    assert np.abs(y_test.sum(axis=0) - per_class * 297 / 1797).max() < 1
    assert all(np.array_equal(a, b) for a, b in zip(loaded, load_data("digits")))
    for image in X_train[::50, ..., 0]:
        assert image.min() == 0 and image.max() == 1, "black paper, and the strongest ink is white"
        rows, columns = np.nonzero(image > 0.2)
        assert 18 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 20, "fills the 20x20 box"
        assert np.abs(np.array(ndimage.center_of_mass(image)) - 14).max() < 0.51, "as near as whole pixels can be"


def test_fit_to_mnist_keeps_proportions_and_neither_turns_nor_mirrors():
    ink = np.zeros((300, 200))
    ink[40:240, 60:100] = 0.5  # a faint L, 200 high and 100 wide, on paper that isn't quite clean
    ink[200:240, 60:160] = 0.5
    image = fit_to_mnist(np.maximum(ink, 0.1))
    rows, columns = np.nonzero(image > 0.5)
    assert image.shape == (28, 28) and (np.ptp(rows) + 1, np.ptp(columns) + 1) == (20, 10)
    assert image[rows.min(), columns.min()] == pytest.approx(1, abs=0.1) and image[rows.max(), columns.max()] > 0.9
    assert image[rows.min(), columns.max()] < 0.25 and image.min() == 0
    assert fit_to_mnist(np.ones((200, 2))).max() == 1, "a hairline is still a pixel wide"


def test_real_mnist(mnist):
    X_train, y_train, X_test, y_test = load_data(mnist)
    assert X_train.shape == (60000, 28, 28, 1) and X_test.shape == (10000, 28, 28, 1)
    # The counts per class that MNIST's authors publish.
    assert y_test.sum(axis=0).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert y_train[:5].argmax(axis=1).tolist() == [5, 0, 4, 1, 9]
    assert X_train.mean() == pytest.approx(0.1307, abs=1e-4)  # the field's usual figure


def test_summary(npz, end_of):
    end = end_of(module, "--data", npz)
    assert (end.code, end.err) == (0, "")
    assert end.out.splitlines() == [
        "train images: float32 (30, 28, 28, 1) from 0 to 1",
        "train labels: float32 (30, 10), images per class [3, 3, 3, 3, 3, 3, 3, 3, 3, 3]",
        "test images: float32 (20, 28, 28, 1) from 0 to 1",
        "test labels: float32 (20, 10), images per class [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]",
    ]


# Data that can't be used. What an attacker would think of is in test_strangers.py.


@pytest.mark.parametrize(
    "words, change",
    [
        ("can't be read .*x_train is not a file in the archive", {"x_train": None}),
        (r"train images are uint8 of shape \(30, 27, 28\), expected", {"x_train": np.zeros((30, 27, 28), np.uint8)}),
        ("test images are float32 .*expected uint8", {"x_test": np.zeros((20, 28, 28), np.float32)}),
        (r"test labels are uint8 of shape \(20, 10\), expected", {"y_test": np.zeros((20, 10), np.uint8)}),
        ("test labels are float32 .*expected integers", {"y_test": np.zeros(20, np.float32)}),
        ("test has 19 images and 20 labels, expected equally", {"x_test": np.zeros((19, 28, 28), np.uint8)}),
        ("train has 0 images", {"x_train": np.zeros((0, 28, 28), np.uint8), "y_train": np.zeros(0, np.uint8)}),
        ("train labels are 1 to 10, expected 0 to 9", {"y_train": np.arange(30) % 10 + 1}),
        ("train labels are -1 to 8, expected 0 to 9", {"y_train": np.arange(30) % 10 - 1}),
    ],
)
def test_wrong_npz(tmp_path, arrays, monkeypatch, words, change):
    monkeypatch.chdir(tmp_path)
    np.savez("wrong.npz", **{name: array for name, array in (arrays | change).items() if array is not None})
    with pytest.raises(InputError, match=f"^wrong.npz: {words}"):
        load_data("wrong.npz")


def test_what_is_no_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder/train-images-idx3-ubyte").mkdir(parents=True)  # as in Kaggle's archive
    words = {"folder": "has no train-images-idx3-ubyte, with or without .gz"}
    for number, content in enumerate([b"label,pixel0\n5,0\n", b"\x93NUMPY\x01\x00" + bytes(200), b""]):
        Path(f"{number}.npz").write_bytes(content)
        words[f"{number}.npz"] = "can't be read as .npz data with x_train, .*not a zip file"
    nothing = "no such file or folder; the data can be mnist .*digits"
    for source, reason in (words | dict.fromkeys(("no/such/file.npz", "x" * 5000, "MNIST"), nothing)).items():
        with pytest.raises(InputError, match=f"^{source}: {reason}"):
            load_data(source)


UNFIT = (
    r"train-images-idx3-ubyte: isn't an IDX file \(at most 219 MB\) of 3 dimensions with a header that fits its length$"
)
ZIPPED = gzip.compress(idx(np.zeros(30, np.uint8)))


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("x_train", idx(np.zeros((30, 27, 28), np.uint8)), r"train images are uint8 of shape \(30, 27, 28\)"),
        ("x_train", struct.pack(">4I", 0x803, 31, 28, 28) + bytes(30 * 784), UNFIT),
        ("x_train", struct.pack(">4I", 0x803, 30, 28, 28) + bytes(30 * 784 + 99), UNFIT),
        ("x_train", struct.pack(">4I", 0xD03, 30, 28, 28) + bytes(30 * 784), UNFIT),
        ("y_train", b"\0\0\x08\x01\0", "train-labels-idx1-ubyte: can't be read"),
        ("y_train", ZIPPED, "train-labels-idx1-ubyte: isn't an IDX file"),  # without .gz in its name
    ],
    ids=["shape", "too few", "rest", "floats", "half a header", "gzipped"],
)
def test_wrong_idx_file(tmp_path, arrays, name, content, words):
    write_idx(tmp_path, arrays, **{name: content})
    with pytest.raises(InputError, match=words):
        load_data(tmp_path)


@pytest.mark.parametrize("content", [ZIPPED[:-9], ZIPPED[:-8] + bytes(8), ZIPPED[:10] + b"\xff" * 99])
def test_damaged_gzip(tmp_path, arrays, content):
    """It ends too soon, its check sum is wrong, it can't be unpacked: each is an error of another kind."""
    write_idx(tmp_path, arrays)
    (tmp_path / IDX_FILES[1]).unlink()
    (tmp_path / f"{IDX_FILES[1]}.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte\.gz: can't be read"):
        load_data(tmp_path)


def test_without_a_network_the_start_is_quiet_and_one_line_says_what_to_do(script, tmp_path):
    nowhere = dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": None, "no_proxy": None, "NO_PROXY": None}
    done = script("load_data.py", KERAS_HOME=str(tmp_path), **quiet, **nowhere)
    assert done.returncode == 1 and "images" not in done.stdout
    assert_one_line(done.stderr, "MNIST could not be downloaded (", "--data PATH", "--data digits")


def test_mnist_is_the_default_and_comes_from_keras(arrays, monkeypatch):
    from build_model import keras

    pairs = (arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: pairs)
    check_contract(load_data(), arrays)
