"""What load_data() promises: the arrays it returns, and a clear word about data it can't use."""

import gzip
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import keras
import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_digits

import load_data as module
from load_data import InputError, load_data, main, run


def idx(array):
    """Return `array` in the IDX format, written by hand from its description."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def write_idx(folder, arrays, rename=lambda name: name, pack=lambda data: data):
    for name, array in zip(FILES, arrays.values()):
        (folder / rename(name)).write_bytes(pack(idx(array)))


def check_contract(loaded, arrays):
    for got, key in zip(loaded, ("x_train", "y_train", "x_test", "y_test")):
        raw = arrays[key]
        assert got.dtype == np.float32
        if key.startswith("x"):
            assert got.shape == (len(raw), 28, 28, 1)
            assert np.array_equal(np.rint(got[..., 0] * 255), raw) and got.min() >= 0 and got.max() <= 1
        else:
            assert got.shape == (len(raw), 10)
            assert np.array_equal(got.argmax(axis=1), raw) and np.array_equal(
                got.sum(axis=1), np.ones(len(raw))
            )
            assert set(np.unique(got)) <= {0, 1}


def test_npz(npz, arrays):
    check_contract(load_data(npz), arrays)
    check_contract(load_data(str(npz)), arrays)


def test_order_of_results(npz, arrays):
    X_train, y_train, X_test, y_test = load_data(npz)
    assert (len(X_train), len(y_train), len(X_test), len(y_test)) == (30, 30, 20, 20)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
@pytest.mark.parametrize("dash", ["-", "."], ids=["original", "kaggle"])
def test_idx_folder(tmp_path, arrays, pack, dash):
    end = ".gz" if pack is gzip.compress else ""
    write_idx(tmp_path, arrays, lambda name: name.replace("-idx", dash + "idx") + end, pack)
    check_contract(load_data(tmp_path), arrays)


def test_digits_are_fixed_stratified_and_in_mnist_form():
    loaded = X_train, y_train, X_test, y_test = load_data("digits")
    assert X_train.shape == (1500, 28, 28, 1) and X_test.shape == (297, 28, 28, 1)
    assert y_train.shape == (1500, 10) and y_test.shape == (297, 10)
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


def change(key, value):
    return lambda arrays: arrays.update({key: value(arrays[key])})


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda arrays: arrays.pop("y_test"), "y_test"),
        (change("x_train", lambda x: x[:, :27]), r"train images.*\(30, 27, 28\)"),
        (change("x_test", lambda x: x / np.float32(255)), "test images.*float32.*uint8"),
        (change("x_test", lambda x: x[:19]), "test.*19 images.*20 labels"),
        (change("y_train", lambda y: y + 1), "train labels.*1 to 10"),
        (change("y_train", lambda y: y.astype(int) - 1), "train labels.*-1 to 8"),
        (change("y_test", lambda y: np.eye(10)[y]), r"test labels.*\(20, 10\)"),
        (change("y_test", lambda y: y.astype(object)), "y_test.*[Oo]bject"),
        (change("y_test", lambda y: np.uint8(3)), r"test labels.*\(\)"),
        (
            lambda arrays: arrays.update(x_test=arrays["x_test"][:0], y_test=arrays["y_test"][:0]),
            "test has 0 images",
        ),
    ],
)
def test_wrong_npz(tmp_path, arrays, monkeypatch, damage, words):
    damage(arrays)
    np.savez(tmp_path / "wrong.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"^wrong\.npz: .*{words}"):
        load_data("wrong.npz")


def test_more_images_than_the_limit(npz, monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGES", 49)
    with pytest.raises(InputError, match="more than 49 images"):
        load_data(npz)
    monkeypatch.setattr(module, "MAX_IMAGES", 25)
    with pytest.raises(InputError, match="x_train: .*larger than 25 images"):
        load_data(npz)


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04" + bytes(100)])
def test_file_that_is_no_npz(tmp_path, content):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="data.npz"):
        load_data(path)


@pytest.mark.parametrize(
    "file, damage, words",
    [
        (FILES[0], lambda data: None, "has no train-images-idx3-ubyte"),
        (FILES[3], lambda data: data[:-1], "t10k-labels-idx1-ubyte: .*fewer"),
        (FILES[2], lambda data: data + b"x", "t10k-images-idx3-ubyte: .*more"),
        (FILES[1], lambda data: data[:5], "train-labels-idx1-ubyte: truncated"),
        (FILES[1], lambda data: b"", "train-labels-idx1-ubyte: truncated"),
        (
            FILES[0],
            lambda data: b"\0\0\x0d\x03" + data[4:],
            "magic number is 0x00000d03, expected 0x00000803",
        ),
        (FILES[2], lambda data: gzip.compress(data)[:-20], "t10k-images-idx3-ubyte: truncated or corrupt"),
        (
            FILES[2],
            lambda data: gzip.compress(data)[:40] + b"?" * 99,
            "t10k-images-idx3-ubyte: truncated or corrupt",
        ),
        (FILES[0], lambda data: idx(np.zeros((30, 27, 28), np.uint8)), r"header says \[30, 27, 28\]"),
    ],
)
def test_wrong_idx_folder(tmp_path, arrays, monkeypatch, file, damage, words):
    (tmp_path / "data").mkdir()
    write_idx(tmp_path / "data", arrays)
    path = tmp_path / "data" / file
    data = damage(path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"^data: .*{words}"):
        load_data("data")


def test_source_that_names_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("fashion", "no/such/file.npz", "x" * 5000):
        with pytest.raises(InputError, match=f"^{source}: no such file or folder"):
            load_data(source)


class Silent(BaseHTTPRequestHandler):
    """A host that takes the request and never answers."""

    def do_GET(self):
        self.server.release.wait()

    def log_message(self, *args):
        pass


def test_silent_host_is_given_up(monkeypatch, tmp_path, capsys):
    server = HTTPServer(("127.0.0.1", 0), Silent)
    server.release = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    timeouts = []
    set_timeout = socket.setdefaulttimeout
    monkeypatch.setattr(
        socket,
        "setdefaulttimeout",
        lambda value: (timeouts.append(value), set_timeout(value and min(value, 0.5))),
    )
    monkeypatch.setattr(
        "keras.src.datasets.mnist.get_file",
        lambda **kwargs: keras.utils.get_file(
            **{
                **kwargs,
                "origin": f"http://127.0.0.1:{server.server_port}/mnist.npz",
                "cache_dir": str(tmp_path),
            }
        ),
    )
    try:
        with pytest.raises(
            InputError, match="could not be downloaded.*timed out.*--data PATH.*--data digits"
        ):
            load_data("mnist")
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
    assert timeouts == [10, None], "ten seconds during the download, Python's own default after it"
    assert socket.getdefaulttimeout() is None


def test_cached_mnist_is_used_without_a_network(monkeypatch, arrays):
    monkeypatch.setattr(
        keras.datasets.mnist,
        "load_data",
        lambda: ((arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"])),
    )
    check_contract(load_data(), arrays)


def test_summary(npz, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["load_data.py", "--data", str(npz)])
    run(main)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train images: float32 (30, 28, 28, 1) from 0 to 1")
    assert lines[1] == "train labels: float32 (30, 10), images per class [3, 3, 3, 3, 3, 3, 3, 3, 3, 3]"
    assert lines[3].endswith("[2, 2, 2, 2, 2, 2, 2, 2, 2, 2]")


def test_run_says_input_errors_in_one_line_and_lets_programming_errors_through(capsys):
    def fail(error):
        raise error

    with pytest.raises(SystemExit) as stop:
        run(lambda: fail(InputError("a\nb  c")))
    assert stop.value.code == "error: a b  c"  # Python prints it on stderr and exits with 1
    with pytest.raises(SystemExit) as stop:
        run(lambda: fail(KeyboardInterrupt()))
    assert stop.value.code == 130
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
