"""What load_data() promises: the arrays it returns, a clear word about data it can't use, and a download that ends."""

import errno
import gzip
import hashlib
import http.server
import os
import shutil
import socket
import struct
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import IDX_FILES, ROOT, assert_one_line, failing, idx, posix, python, write_idx
from scipy import ndimage
from sklearn.datasets import load_digits

import load_data as module
from load_data import InputError, check_source, load_data

NAMES = ("x_train", "y_train", "x_test", "y_test")
NO_IMAGES = np.zeros((0, 28, 28), np.uint8)


def check_contract(loaded, arrays):
    for got, key in zip(loaded, NAMES, strict=True):
        raw = arrays[key]
        assert got.dtype == np.float32
        if key.startswith("x"):
            assert got.shape == (len(raw), 28, 28, 1) and got.min() >= 0 and got.max() <= 1
            assert np.array_equal(np.rint(got[..., 0] * 255), raw)
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
    assert X_train.min() == 0 and 0.9 < X_train.max() <= 1
    per_class = np.bincount(load_digits().target)
    assert np.array_equal((y_train.sum(axis=0) + y_test.sum(axis=0)), per_class)
    assert np.abs(y_test.sum(axis=0) - per_class * 297 / 1797).max() < 1
    assert all(np.array_equal(a, b) for a, b in zip(loaded, load_data("digits")))
    for image in X_train[::50, ..., 0]:
        rows, columns = np.nonzero(image > 0.2)
        assert np.ptp(rows) < 20 and np.ptp(columns) < 20, "fits the 20x20 box"
        assert np.abs(np.array(ndimage.center_of_mass(image)) - 14).max() < 0.6, "centred by its mass"


def test_real_mnist(mnist):
    for source in (mnist, mnist / "mnist.npz"):
        X_train, y_train, X_test, y_test = load_data(source)
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


def test_digits_and_pictures_need_no_tensorflow(tmp_path):
    code = "import sys; from load_data import *; find_digits(sys.argv.pop()); run(main)"
    loaded = "; print({'keras', 'tensorflow', 'matplotlib'} & set(sys.modules))"
    done = python("-c", code + loaded, "--data", "digits", ROOT / ".github/images/my_digit.png", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "(1500, 28, 28, 1)" in done.stdout and done.stdout.endswith("\nset()\n")


# Data that can't be used. What an attacker would think of is in test_strangers.py.


@pytest.mark.parametrize(
    "words, change",
    [
        *((name, {name: None}) for name in NAMES),  # left out
        (r"train images are uint8 of shape \(30, 27, 28\), expected", {"x_train": np.zeros((30, 27, 28), np.uint8)}),
        (r"test images are .*\(20, 32, 32, 3\), expected", {"x_test": np.zeros((20, 32, 32, 3), np.uint8)}),
        ("test images are float32 .*expected uint8", {"x_test": np.zeros((20, 28, 28), np.float32)}),
        ("test images are uint16 .*expected uint8", {"x_test": np.zeros((20, 28, 28), np.uint16)}),
        ("test has 19 images and 20 labels, expected equally many", {"x_test": np.zeros((19, 28, 28), np.uint8)}),
        ("train has 0 images and 0 labels", {"x_train": NO_IMAGES, "y_train": NO_IMAGES[:, 0, 0]}),
        ("test has 0 images and 0 labels", {"x_test": NO_IMAGES, "y_test": NO_IMAGES[:, 0, 0]}),
        (r"train labels are uint8 of shape \(\), expected", {"y_train": np.uint8(3)}),
        (r"test labels are uint8 of shape \(20, 10\), expected", {"y_test": np.zeros((20, 10), np.uint8)}),
        ("test labels are float32 .*expected integers", {"y_test": np.zeros(20, np.float32)}),
        ("train labels are bool .*expected integers", {"y_train": np.zeros(30, bool)}),
        ("train labels are 1 to 10, expected 0 to 9", {"y_train": np.arange(30) % 10 + 1}),
        ("train labels are -1 to 8, expected 0 to 9", {"y_train": np.arange(30) % 10 - 1}),
        ("test labels are 18446744073709551615 to", {"y_test": np.full(20, 2**64 - 1, np.uint64)}),
    ],
)
def test_wrong_npz(tmp_path, arrays, monkeypatch, words, change):
    monkeypatch.chdir(tmp_path)
    np.savez("wrong.npz", **{name: array for name, array in (arrays | change).items() if array is not None})
    with pytest.raises(InputError, match=f"^wrong.npz: {words}"):
        load_data("wrong.npz")


def test_more_images_than_the_limit(npz, monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGES", 50)
    assert len(load_data(npz)[0]) == 30
    for limit, words in ((49, "larger than 49 images"), (25, "x_train: .*larger than 25 images")):
        monkeypatch.setattr(module, "MAX_IMAGES", limit)
        with pytest.raises(InputError, match=words):
            load_data(npz)


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04" + bytes(100), b"PK\x05\x06" + bytes(18)])
def test_file_that_is_no_npz(tmp_path, content):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"data\.npz.*: can't be read as \.npz data"):
        load_data(path)


ZIPPED = gzip.compress(idx(np.zeros(30, np.uint8)))


@pytest.mark.parametrize(
    "name, content, words",
    [
        *((name, None, f"has no {file}, with or without .gz") for name, file in zip(NAMES, IDX_FILES)),
        ("x_train", idx(np.zeros((30, 27, 28), np.uint8)), r"FILE: header says \[30, 27, 28\], expected"),
        ("x_train", struct.pack(">4I", 0x803, 280_001, 28, 28), "FILE: header says .*, n at most 280000"),
        ("x_train", struct.pack(">4I", 0x803, 31, 28, 28) + bytes(30 * 784), "FILE: .*; fewer bytes follow"),
        ("x_train", struct.pack(">4I", 0x803, 29, 28, 28) + bytes(30 * 784), "FILE: .*; more bytes follow"),
        ("x_train", struct.pack(">4I", 0xD03, 30, 28, 28), "FILE: magic number is 0x00000d03, expected 0x00000803"),
        ("y_train", struct.pack(">2I", 0x803, 30) + bytes(30), "FILE: magic number is 0x00000803, expected 0x00000801"),
        ("y_train", struct.pack(">2I", 0x801, 30) + b"\xff" * 30, "train labels are 255 to 255, expected 0 to 9"),
        ("y_train", b"", "FILE: can't be read as IDX data"),
        ("y_train", b"\0\0\x08\x01\0", "FILE: can't be read as IDX data"),
        ("y_train", b"\x1f\x8b", "FILE: can't be read as IDX data"),
        ("y_train", ZIPPED[:-9], "FILE: can't be read as IDX data"),
        ("y_train", ZIPPED[:-8] + bytes(8), "FILE: can't be read as IDX data"),  # the check sum
        ("y_train", ZIPPED[:12] + b"?" * 99, "FILE: can't be read as IDX data"),
    ],
)
def test_wrong_idx_folder(tmp_path, arrays, monkeypatch, name, content, words):
    monkeypatch.chdir(tmp_path)
    os.mkdir("data")
    write_idx(Path("data"), arrays, **{name: content or b""})
    file = IDX_FILES[NAMES.index(name)]
    if content is None:
        os.remove(f"data/{file}")
    with pytest.raises(InputError, match=f"^data: {words.replace('FILE', file)}"):
        load_data("data")


@pytest.mark.parametrize("source", ["fashion", "no/such/file.npz", "x" * 5000, "MNIST"])
def test_source_that_names_nothing(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    for function in (load_data, check_source):
        with pytest.raises(InputError, match=f"^{source}: no such file or folder; the data can be mnist .*digits"):
            function(source)


@posix
def test_folder_that_may_not_be_searched(tmp_path, arrays):
    if os.geteuid() == 0:
        pytest.skip("root may search any folder")
    (tmp_path / "closed").mkdir()
    folder = write_idx(tmp_path / "closed", arrays)
    folder.chmod(0o600)
    try:
        with pytest.raises(InputError, match="closed: "):
            load_data(folder)
    finally:
        folder.chmod(0o700)


# The download


@pytest.fixture
def mirror(tmp_path, monkeypatch, npz):
    """A server on loopback in MNIST's place, whose answer a test sets: `mirror.answer = ...`.

    `keras.datasets.mnist.load_data()` does with it what it does with MNIST's own place: Keras's
    get_file() asks it, checks the hash and keeps the file in a cache.
    """
    from build_model import keras

    good = npz.read_bytes()
    page = b"<html>log in first</html>".ljust(len(good))
    bodies = {"good": good, "break": good[: len(good) // 2], "stall": good[:1000], "page": page}
    state = types.SimpleNamespace(answer="good", asked=0, limits=[], cache=tmp_path / "cache")
    state.cache.mkdir()
    release = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked += 1
            if state.answer in bodies:
                self.send_response(200)
                self.send_header("Content-Length", str(len(good)))
                self.end_headers()
                self.wfile.write(bodies[state.answer])
            elif state.answer == 404:
                self.send_error(404)
            if state.answer in ("silence", "stall"):
                release.wait(60)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def load_mnist():
        origin = f"http://127.0.0.1:{server.server_port}/mnist.npz"
        digest = hashlib.sha256(good).hexdigest()
        path = keras.utils.get_file("mnist.npz", origin, file_hash=digest, cache_dir=state.cache)
        with np.load(path) as file:
            return (file["x_train"], file["y_train"]), (file["x_test"], file["y_test"])

    monkeypatch.setattr(keras.datasets.mnist, "load_data", load_mnist)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # The project's limit of seconds, made short: only the silent answers wait for it.
    real = socket.setdefaulttimeout

    def set_limit(seconds):
        state.limits.append(seconds)
        real(seconds and min(seconds, 0.5))

    monkeypatch.setattr(socket, "setdefaulttimeout", set_limit)
    yield state
    release.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "answer, reason",
    [(404, "404"), ("break", ""), ("page", "corrupted"), ("silence", "timed out"), ("stall", "timed out")],
)
def test_a_download_that_fails_is_one_line_and_leaves_no_damage(answer, reason, mirror, arrays, end_of):
    before = socket.getdefaulttimeout()
    mirror.answer = answer
    end = end_of(module)
    assert_one_line(end.code, "error: MNIST could not be downloaded (", reason, "--data PATH", "--data digits")
    assert end.err == "" and socket.getdefaulttimeout() == before
    mirror.answer = "good"
    check_contract(load_data(), arrays)
    assert mirror.asked == 2 and socket.getdefaulttimeout() == before
    assert mirror.limits == [10, before] * 2, "seconds: without a limit a silent host would hang the script for ever"
    check_contract(load_data("mnist"), arrays)
    assert mirror.asked == 2, "the cached copy, once it is whole"


def test_a_damaged_copy_in_the_cache_is_not_used(mirror, arrays):
    """What a kill in the download leaves, or a bad disk."""
    load_data()
    (copy,) = (path for path in mirror.cache.rglob("*") if path.is_file())
    whole = copy.read_bytes()
    for asked, damaged in enumerate((b"", whole[:-100], whole[:5000] + b"\xff" + whole[5001:]), 2):
        copy.write_bytes(damaged)
        check_contract(load_data(), arrays)
        assert mirror.asked == asked


def test_a_file_that_is_not_mnist_in_the_cache_is_not_used(script, npz, tmp_path):
    """Keras itself, with its own check: it asks for the real file, which no proxy here lets through."""
    (tmp_path / "datasets").mkdir()
    shutil.copy(npz, tmp_path / "datasets" / "mnist.npz")
    nowhere = dict.fromkeys(("https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = script("load_data.py", KERAS_HOME=str(tmp_path), no_proxy=None, NO_PROXY=None, **nowhere)
    assert done.returncode == 1 and "train images" not in done.stdout
    assert_one_line(done.stderr, "MNIST could not be downloaded", "--data PATH", "--data digits")


@pytest.mark.parametrize(
    "error", [socket.gaierror(socket.EAI_NONAME, "Name unknown"), OSError(errno.ENOSPC, "No space left in the cache")]
)
def test_what_else_stops_the_download_is_one_line(error, monkeypatch, end_of):
    monkeypatch.setattr("keras.datasets.mnist.load_data", failing(error))
    assert_one_line(end_of(module).code, "error: MNIST could not be downloaded (", error.strerror, "--data digits")
