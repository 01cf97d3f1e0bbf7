"""Files from strangers: what a hostile or damaged model or data file can't do.

No code of the file runs, no other file is read, memory stays below 2 GB, and the user gets
one line that names the file as he wrote it, and status 1.
"""

import bz2
import gzip
import io
import json
import marshal
import os
import random
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from base64 import b64encode
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import build_model
import evaluate_model
import load_data
from load_data import InputError

ROOT = Path(__file__).resolve().parents[1]
SOME = {"x_train": 30, "y_train": 30, "x_test": 20, "y_test": 20}  # items in each array


# Helpers


def arrays():
    """Return the four arrays of a small, good data set."""
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, 256, (n, 28, 28), np.uint8)
        if name[0] == "x"
        else np.arange(n, dtype=np.uint8) % 10
        for name, n in SOME.items()
    }


def npy(array, **kwargs):
    """Return the bytes of an .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), **kwargs)
    return file.getvalue()


def npy_header(text, data=b""):
    """Return the bytes of an .npy file with any header."""
    text = text.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def idx(array):
    """Return the bytes of an IDX file."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def npz(path, compression=zipfile.ZIP_DEFLATED, **members):
    """Write a good .npz file but for `members`: bytes, or None to leave one out."""
    whole = {name: npy(array) for name, array in arrays().items()} | members
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in whole.items():
            if content is not None:
                archive.writestr(f"{name}.npy", content)
    return path


def idx_folder(folder, **files):
    """Write a folder of IDX files, good but for `files` (by Keras's name of the array)."""
    names = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    folder.mkdir()
    for name, (key, array) in zip(names, arrays().items()):
        (folder / name).write_bytes(files.get(key, idx(array)))
    return folder


def mutations(data, n, seed):
    """Yield n damaged copies of the bytes `data`, the same ones for the same seed.

    One to three kinds of damage each: flipped bits, bytes cut from the end or the middle,
    junk added, a part copied elsewhere, zeroed, or an integer overwritten with an extreme.
    Half the damage goes to the first 512 bytes or the last 512, where headers are.
    """
    rng = random.Random(seed)
    extremes = [
        0,
        1,
        0x7F,
        0x80,
        0xFF,
        0x7FFF,
        0xFFFF,
        0x7FFFFFFF,
        0x80000000,
        0xFFFFFFFF,
        2**63 - 1,
        2**64 - 1,
    ]

    def place(size):
        if size and rng.random() < 0.5:
            return (
                rng.randrange(min(512, size))
                if rng.random() < 0.5
                else size - 1 - rng.randrange(min(512, size))
            )
        return rng.randrange(size + 1)

    for _ in range(n):
        copy = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            at, size = place(len(copy)), rng.choice((1, 2, 4, 8, 64, 1000))
            kind = rng.choice(("flip", "cut", "drop", "extend", "splice", "zero", "integer", "byte"))
            if kind == "flip":
                for _ in range(rng.randint(1, 8)):
                    if copy:
                        copy[place(len(copy) - 1)] ^= 1 << rng.randrange(8)
            elif kind == "cut":
                del copy[at:]
            elif kind == "drop":
                del copy[at : at + size]
            elif kind == "extend":
                copy += rng.randbytes(size)
            elif kind == "splice":
                start = place(len(copy))
                copy[at : at + rng.choice((0, size))] = copy[start : start + size]
            elif kind == "zero":
                copy[at : at + size] = bytes(len(copy[at : at + size]))
            elif kind == "integer":
                width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
                value = rng.choice(extremes) & (1 << 8 * width) - 1
                copy[at : at + width] = value.to_bytes(width, order)
            else:
                copy[at : at + 1] = rng.randbytes(1)
        yield bytes(copy)


def line_of(script, monkeypatch, capfd, *args):
    """Run a script's main() in this process; return the one line that it ends with.

    sys.exit(text) prints the text and gives status 1; nothing else may reach stderr.
    """
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, args)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        load_data.run(script.main)
    line = stop.value.code
    assert isinstance(line, str) and line.startswith("error: ") and len(line.splitlines()) == 1, line
    assert capfd.readouterr().err == ""
    return line


def check_arrays(X_train, y_train, X_test, y_test):
    """Assert what load_data() promises of the arrays that it returns."""
    for X, y in ((X_train, y_train), (X_test, y_test)):
        assert X.dtype == y.dtype == np.float32
        assert len(X) and X.shape == (len(X), 28, 28, 1) and y.shape == (len(X), 10)
        assert 0 <= X.min() and X.max() <= 1 and (y.sum(axis=1) == 1).all()


# Models


@pytest.fixture(scope="module")
def good_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.h5"
    build_model.build_model().save(path)
    return path


@pytest.fixture
def model(tmp_path, monkeypatch, good_model):
    """A copy of a good model to be spoilt, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("stranger.h5").write_bytes(good_model.read_bytes())
    return Path("stranger.h5")


def edit_config(path, edit):
    """Let `edit` change the model's configuration, a dict, or return a text for it."""
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        text = edit(config) or json.dumps(config)
        del file.attrs["model_config"]
        file.attrs["model_config"] = text


def insert_layer(path, class_name, **config):
    """Put a layer at the head of a model file's configuration."""
    layer = {"class_name": class_name, "config": {"name": "stranger", **config}}
    edit_config(path, lambda whole: whole["config"]["layers"].insert(1, layer))


def first_kernel(file):
    """Return the name of the first layer's 3x3x1x32 kernel in an HDF5 file."""
    names = []
    file.visititems(
        lambda name, item: names.append(name) if getattr(item, "shape", 0) == (3, 3, 1, 32) else None
    )
    return [name for name in names if name.startswith("model_weights")][0]


def refused(path, monkeypatch, capfd):
    """Assert that evaluate_model.py refuses a model file, naming it, and return its line."""
    line = line_of(evaluate_model, monkeypatch, capfd, "--data", "digits", "--model", path)
    assert line.startswith(f"error: {path}: ")
    return line


def attack_code(target):
    """Return, as Keras stores functions, one that makes the file `target` when called."""

    def attack(x):
        open("TARGET", "w").close()
        return x

    code = attack.__code__.replace(
        co_consts=tuple(str(target) if c == "TARGET" else c for c in attack.__code__.co_consts)
    )
    return b64encode(marshal.dumps(code)).decode()


def test_the_attack_code_would_work(tmp_path):
    """The three tests below prove something: Keras runs this code when it is told to trust it."""
    code = {
        "class_name": "__lambda__",
        "config": {"code": attack_code(tmp_path / "ran"), "defaults": None, "closure": None},
    }
    layer = layers.Lambda.from_config({"name": "stranger", "function": code}, safe_mode=False)
    layer(np.zeros((1, 2)))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", ("list", "dict", "activation"))
def test_code_in_a_model_does_not_run(form, model, tmp_path, monkeypatch, capfd):
    """A Lambda layer as Keras 2 and as Keras 3 write it, and code as an activation."""
    target = tmp_path / "ran"
    code = attack_code(target)
    keras3 = {"class_name": "__lambda__", "config": {"code": code, "defaults": None, "closure": None}}
    if form == "list":
        insert_layer(model, "Lambda", function=[code, None, None], function_type="lambda")
    elif form == "dict":
        insert_layer(model, "Lambda", function=keras3)
    else:
        insert_layer(
            model,
            "Activation",
            activation={"class_name": "__lambda__", "config": {"value": [code, None, None]}},
        )
    refused(model, monkeypatch, capfd)
    assert not target.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    (("os", "system"), ("builtins", "eval"), ("keras.utils", "get_file"), ("subprocess", "run")),
)
def test_a_model_can_not_call_functions_by_name(module, name, model, monkeypatch, capfd):
    function = {"class_name": "function", "module": module, "config": name, "registered_name": name}
    insert_layer(model, "Activation", activation=function)
    refused(model, monkeypatch, capfd)


@pytest.mark.parametrize("link", ("external", "external group", "soft", "raw", "virtual"))
def test_links_in_a_model_are_refused(link, model, monkeypatch, capfd, good_model):
    """Each link leads to weights that would fit: were one followed, the model would load."""
    with h5py.File("other.h5", "w") as other:
        other["kernel"] = np.zeros((3, 3, 1, 32), np.float32)
    Path("raw").write_bytes(bytes(3 * 3 * 32 * 4))
    with h5py.File(model, "a") as file:
        name = first_kernel(file)
        group = name.split("/")[1]
        if link == "external group":
            del file["model_weights"][group]
            file["model_weights"][group] = h5py.ExternalLink(str(good_model), f"model_weights/{group}")
        else:
            kernel = file[name][()]
            del file[name]
        if link == "external":
            file[name] = h5py.ExternalLink("other.h5", "kernel")
        elif link == "soft":
            file["elsewhere"] = kernel
            file[name] = h5py.SoftLink("/elsewhere")
        elif link == "raw":
            file.create_dataset(name, kernel.shape, kernel.dtype, external=[("raw", 0, kernel.nbytes)])
        elif link == "virtual":
            layout = h5py.VirtualLayout(kernel.shape, kernel.dtype)
            layout[...] = h5py.VirtualSource("other.h5", "kernel", kernel.shape)
            file.create_virtual_dataset(name, layout)
    assert "Not allowed" in refused(model, monkeypatch, capfd)


@pytest.mark.parametrize("layer", ("IntegerLookup", "StringLookup"))
def test_a_model_reads_no_vocabulary_from_another_file(layer, model, tmp_path, monkeypatch, capfd):
    secret = tmp_path / "secret"
    secret.write_text("1\n2\n")
    opened = []
    import tensorflow as tf  # Keras reads vocabularies with it

    real = tf.io.gfile.GFile
    monkeypatch.setattr(tf.io.gfile, "GFile", lambda path, *rest: opened.append(path) or real(path, *rest))
    insert_layer(model, layer, vocabulary=str(secret))
    refused(model, monkeypatch, capfd)
    assert opened == []


def nested(depth):
    return lambda config: '{"class_name": "Sequential", "config": {"layers": [' * depth + "]}}" * depth


@pytest.mark.parametrize(
    "edit",
    (
        lambda config: "[" * 100_000 + "]" * 100_000,
        nested(100),
        nested(10_000),
        lambda config: "{",
        lambda config: "null",
        lambda config: '{"class_name": "Sequential"}',
        lambda config: config["config"]["layers"][1].update(class_name="x\x1b[31m\n" * 9),
        lambda config: config["config"]["layers"][1]["config"].update(filters=-1),
        lambda config: config["config"]["layers"][1]["config"].update(filters="many"),
        lambda config: config["config"]["layers"][1]["config"].update(kernel_size=[0, 0]),
        lambda config: config["config"]["layers"][-1]["config"].update(units=10**9),
        lambda config: config["config"]["layers"][-1]["config"].update(units=10**18),
        lambda config: config["config"]["layers"][0]["config"].update(batch_shape=[None, 10**6, 10**6, 1]),
        lambda config: config["config"]["layers"][0]["config"].update(batch_shape=[None, 32, 32, 3]),
    ),
    ids=(
        "deep JSON", "nested 100", "nested 10000", "no JSON", "null", "no config", "escapes", "negative",
        "text for a number", "no kernel", "billion units", "10**18 units", "huge input", "other input",
    ),
)  # fmt: skip
def test_a_bad_configuration_is_refused(edit, model, monkeypatch, capfd):
    edit_config(model, edit)
    refused(model, monkeypatch, capfd)


def test_a_huge_configuration_is_refused_in_a_short_line(model, monkeypatch, capfd):
    """Keras's messages quote the whole configuration: megabytes of the stranger's text."""
    edit_config(
        model, lambda config: config["config"]["layers"][1]["config"].update(stranger=["x" * 50] * 50_000)
    )
    assert len(refused(model, monkeypatch, capfd)) < 2000


def test_a_line_holds_no_control_characters(model, monkeypatch, capfd):
    """Escape sequences in a stranger's file would reach the terminal."""
    edit_config(model, lambda config: config["config"]["layers"][1].update(class_name="x\x1b]0;owned\x07"))
    assert refused(model, monkeypatch, capfd).isprintable()


@pytest.mark.parametrize(
    "content", (b"", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(500), bytes(9999))
)
def test_a_file_that_is_no_model_is_refused(content, tmp_path, monkeypatch, capfd):
    path = tmp_path / "model.h5"
    path.write_bytes(content)
    refused(path, monkeypatch, capfd)


def test_random_bytes_are_no_model(tmp_path, monkeypatch, capfd):
    path = tmp_path / "model.h5"
    for seed in range(20):
        path.write_bytes(random.Random(seed).randbytes(5000))
        refused(path, monkeypatch, capfd)


def test_a_truncated_model_is_refused(model, good_model, monkeypatch, capfd):
    data = good_model.read_bytes()
    cuts = [1, 8, 9, 96, len(data) - 1, *random.Random(0).sample(range(len(data)), 45)]
    for cut in cuts:
        model.write_bytes(data[:cut])
        refused(model, monkeypatch, capfd)


@pytest.mark.parametrize("kind", ("folder", "missing", "fifo", "long", "loop"))
def test_a_path_that_is_no_file_is_refused(kind, tmp_path, monkeypatch, capfd):
    """A FIFO would hang; a name longer than 255 bytes makes pathlib's is_file() raise OSError."""
    path = tmp_path / ("m" * 300 + ".h5" if kind == "long" else "model.h5")
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    refused(path, monkeypatch, capfd)


def test_a_strange_path_is_given_as_written(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for path in ("two  spaces.h5", "é\udcff.h5"):
        Path(path).write_bytes(b"stranger")
        line = line_of(evaluate_model, monkeypatch, capfd, "--data", "digits", "--model", path)
        assert path in line


def test_a_path_with_a_newline_still_gives_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("a\nb.h5").write_bytes(b"stranger")
    line_of(evaluate_model, monkeypatch, capfd, "--data", "digits", "--model", "a\nb.h5")


def test_a_model_for_other_images_is_refused(tmp_path, monkeypatch, capfd):
    for shape, outputs in (((32, 32, 3), 10), ((28, 28, 1), 5)):
        path = tmp_path / "other.h5"
        keras.Sequential(
            [keras.Input(shape), layers.Flatten(), layers.Dense(outputs, activation="softmax")]
        ).save(path)
        assert "(n, 28, 28, 1)" in refused(path, monkeypatch, capfd)


@pytest.mark.parametrize(
    "bomb",
    (layers.UpSampling2D(100), layers.ZeroPadding2D(50_000), layers.RepeatVector(10**7)),
    ids=lambda layer: layer.name,
)
def test_a_model_with_huge_activations_is_not_run(bomb, tmp_path, monkeypatch, capfd):
    """Small weights, but 10**8 numbers for an image: for a batch, more than any memory."""
    path = tmp_path / "bomb.h5"
    head = [layers.Flatten()] if isinstance(bomb, layers.RepeatVector) else []
    pool = layers.GlobalMaxPooling1D() if head else layers.GlobalMaxPooling2D()
    keras.Sequential(
        [keras.Input((28, 28, 1)), *head, bomb, pool, layers.Dense(10, activation="softmax")]
    ).save(path)
    monkeypatch.setattr(keras.Model, "predict", lambda *args, **kwargs: pytest.fail("it was run"))
    refused(path, monkeypatch, capfd)


def test_a_readme_model_still_evaluates(tmp_path, monkeypatch, capsys):
    """The README's original script: its network, its compile and its default file name."""
    original = keras.Sequential(
        [
            layers.Conv2D(32, (3, 3), activation="relu", input_shape=(28, 28, 1)),
            layers.MaxPooling2D((2, 2)),
            layers.Conv2D(64, (3, 3), activation="relu"),
            layers.MaxPooling2D((2, 2)),
            layers.Conv2D(64, (3, 3), activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )
    original.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    monkeypatch.chdir(tmp_path)
    data = load_data.load_data("digits")
    original.fit(data[0][:64], data[1][:64], verbose=0)
    original.save("mnist_classification_model.h5")
    result = evaluate_model.evaluate_model("digits", "mnist_classification_model.h5")
    expected = original.predict(data[2], verbose=0).argmax(axis=1)
    assert result["accuracy"] == np.mean(expected == data[3].argmax(axis=1))


# Honest evaluation


def write_model(path, spoil, activation="softmax"):
    network = keras.Sequential(
        [keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(10, activation=activation)]
    )
    kernel, bias = network.layers[-1].get_weights()
    network.layers[-1].set_weights([spoil(kernel), bias])
    network.save(path)


@pytest.mark.parametrize(
    ("activation", "spoil"),
    (
        ("softmax", lambda kernel: kernel * np.nan),
        ("softmax", lambda kernel: kernel * np.inf),
        ("linear", lambda kernel: kernel - 1),
        ("sigmoid", lambda kernel: kernel),
        ("relu", lambda kernel: kernel * 0),
        ("linear", lambda kernel: np.pad(np.zeros((784, 8), np.float32), ((0, 0), (1, 1)))),
    ),
    ids=("NaN", "infinite", "negative", "sigmoid", "zero", "constant"),
)
def test_outputs_that_are_no_probabilities_are_not_scored(activation, spoil, tmp_path, monkeypatch, capfd):
    path = tmp_path / "model.h5"
    write_model(path, spoil, activation)
    monkeypatch.setattr(sys, "argv", ["evaluate_model.py", "--data", "digits", "--model", str(path)])
    with pytest.raises(SystemExit) as stop:
        load_data.run(evaluate_model.main)
    assert stop.value.code.startswith(f"error: {path}: ") and "no probabilities" in stop.value.code
    assert "accuracy" not in capfd.readouterr().out and not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("split", ("train", "test"))
def test_no_images_are_refused(split, tmp_path, monkeypatch, capfd):
    nothing = {f"x_{split}": np.zeros((0, 28, 28), np.uint8), f"y_{split}": np.zeros(0, np.uint8)}
    path = npz(tmp_path / "none.npz", **{name: npy(array) for name, array in nothing.items()})
    assert line_of(load_data, monkeypatch, capfd, "--data", path).startswith(
        f"error: {path}: {split} has 0 images"
    )
    path = idx_folder(tmp_path / "none", **{name: idx(array) for name, array in nothing.items()})
    assert line_of(load_data, monkeypatch, capfd, "--data", path).startswith(
        f"error: {path}: {split} has 0 images"
    )


# Data


class Attack:
    """Unpickling it makes the file `target`."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_the_helpers_make_good_data(tmp_path):
    """What the tests below spoil is good before they do."""
    for path in (npz(tmp_path / "good.npz"), idx_folder(tmp_path / "good")):
        data = load_data.load_data(path)
        check_arrays(*data)
        assert [len(array) for array in data] == list(SOME.values())


def test_pickled_objects_do_not_run(tmp_path, monkeypatch, capfd):
    target = tmp_path / "ran"
    evil = npy(np.array([Attack(target)], dtype=object), allow_pickle=True)
    np.lib.format.read_array(io.BytesIO(evil), allow_pickle=True)
    assert target.exists()  # the attack works
    target.unlink()
    for name in SOME:
        path = npz(tmp_path / "evil.npz", **{name: evil})
        assert str(path) in line_of(load_data, monkeypatch, capfd, "--data", path)
    assert not target.exists()


def changed(archive, member, offset_local, offset_central, form, value):
    """Overwrite a field of a member's two zip headers."""
    data = bytearray(archive)
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        local = file.getinfo(member).header_offset
        central = file.start_dir
    while data[central + 46 : central + 46 + len(member)] != member.encode():
        name, extra, comment = struct.unpack_from("<HHH", data, central + 28)
        central += 46 + name + extra + comment
    for at in (local + offset_local, central + offset_central):
        struct.pack_into(form, data, at, value)
    return bytes(data)


@pytest.mark.parametrize(
    "header",
    (
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 28, 28), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (9223372036854775807, 28, 28), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-30, 28, 28), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (30, 28), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 28, 28), }",
        "{'descr': '|V2000000000', 'fortran_order': False, 'shape': (30, 28, 28), }",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000, 28, 28), }",
        "{'descr': '<U500000000', 'fortran_order': False, 'shape': (30, 28, 28), }",
        "{'descr': [('a', '|u1', (28, 28))], 'fortran_order': False, 'shape': (30,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (30, 28, 28), }",
        "{'descr': __import__('os').system('false'), 'fortran_order': False, 'shape': (30, 28, 28), }",
        "{'descr': " + "(" * 5000 + ")" * 4000,
        "{'descr': '|u1', 'fortran_order': False, 'shape': (30 if 1or 0 else 1, 28, 28), }",
        "x" * 20000,
        "",
    ),
    ids=(
        "10**12 images", "2**63 images", "negative", "2-D", "0-D", "bool", "huge item", "empty item", "huge text",
        "record", "object", "call", "deep", "warning", "long", "empty",
    ),
)  # fmt: skip
def test_a_bad_array_header_is_refused(header, tmp_path, monkeypatch, capfd, recwarn):
    path = npz(tmp_path / "bad.npz", x_train=npy_header(header, bytes(30 * 784)))
    assert str(path) in line_of(load_data, monkeypatch, capfd, "--data", path)
    assert not recwarn.list  # it would be a second line on stderr


@pytest.mark.parametrize("change", ("encrypted", "method", "size", "crc"))
def test_a_bad_archive_member_is_refused(change, tmp_path, monkeypatch, capfd):
    path = npz(tmp_path / "bad.npz")
    local, central, form, value = {
        "encrypted": (6, 8, "<H", 1),
        "method": (8, 10, "<H", 99),
        "size": (22, 24, "<I", 10),
        "crc": (14, 16, "<I", 0),
    }[change]
    path.write_bytes(changed(path.read_bytes(), "x_test.npy", local, central, form, value))
    assert str(path) in line_of(load_data, monkeypatch, capfd, "--data", path)


def test_an_archive_without_an_array_is_refused(tmp_path, monkeypatch, capfd):
    for name in SOME:
        path = npz(tmp_path / "bad.npz", **{name: None})
        assert name in line_of(load_data, monkeypatch, capfd, "--data", path)


def test_an_archive_with_two_arrays_of_a_name_gives_one_of_them(tmp_path):
    path = npz(tmp_path / "twice.npz")
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("x_test.npy", npy(np.full((20, 28, 28), 255, np.uint8)))
    check_arrays(*load_data.load_data(path))


@pytest.mark.parametrize(
    ("name", "array"),
    (
        ("y_train", np.full(30, 255, np.uint8)),
        ("y_test", np.full(20, -1)),
        ("y_test", np.full(20, 2**64 - 1, np.uint64)),
        ("y_test", np.zeros(20, np.float32)),
        ("y_test", np.zeros((20, 10), np.uint8)),
        ("y_train", np.zeros(29, np.uint8)),
        ("y_train", np.zeros(30, bool)),
        ("x_train", np.full((30, 28, 28), np.nan, np.float32)),
        ("x_test", np.full((20, 28, 28), 1e38, np.float64)),
        ("x_test", np.zeros((20, 28, 28), np.uint16)),
        ("x_test", np.zeros((20, 32, 32, 3), np.uint8)),
    ),
    ids=lambda value: value if isinstance(value, str) else str(value.dtype),
)
def test_arrays_of_another_form_are_refused(name, array, tmp_path, monkeypatch, capfd):
    path = npz(tmp_path / "bad.npz", **{name: npy(array)})
    line = line_of(load_data, monkeypatch, capfd, "--data", path)
    assert line.startswith(f"error: {path}: {name[2:]}") and "expected" in line


@pytest.mark.parametrize(
    ("name", "content"),
    (
        ("x_train", struct.pack(">4I", 0x803, 2**32 - 1, 28, 28) + bytes(30 * 784)),
        ("x_train", struct.pack(">4I", 0x803, 31, 28, 28) + bytes(30 * 784)),
        ("x_train", struct.pack(">4I", 0x803, 29, 28, 28) + bytes(30 * 784)),
        ("x_train", struct.pack(">4I", 0x803, 2**32 - 1, 0, 2**32 - 1)),
        ("x_train", struct.pack(">4I", 0x80D03, 30, 28, 28) + bytes(30 * 784)),
        ("y_train", struct.pack(">2I", 0x801, 2**32 - 1) + bytes(30)),
        ("y_train", struct.pack(">2I", 0x801, 30) + b"\xff" * 30),
        ("y_train", struct.pack(">2I", 0x803, 30) + bytes(30)),
        ("y_train", b""),
        ("y_train", b"\x1f\x8b"),
        ("y_train", gzip.compress(idx(np.zeros(30, np.uint8)))[:-9]),
        ("y_train", gzip.compress(idx(np.zeros(30, np.uint8)))[:-8] + bytes(8)),
        ("y_train", b"\x1f\x8b\x08\x00" + bytes(40)),
    ),
    ids=(
        "2**32 images", "one more", "one less", "zero width", "magic", "2**32 labels", "labels of 255", "images' magic",
        "empty", "gzip magic", "gzip cut", "gzip sum", "no deflate",
    ),
)  # fmt: skip
def test_a_bad_idx_file_is_refused(name, content, tmp_path, monkeypatch, capfd):
    path = idx_folder(tmp_path / "bad", **{name: content})
    line = line_of(load_data, monkeypatch, capfd, "--data", path)
    assert line.startswith(f"error: {path}: ")


def test_an_idx_file_that_is_a_fifo_is_refused(tmp_path, monkeypatch, capfd):
    """Opening it would wait for a writer for ever."""
    path = idx_folder(tmp_path / "bad")
    (path / "t10k-labels-idx1-ubyte").unlink()
    os.mkfifo(path / "t10k-labels-idx1-ubyte")
    assert str(path) in line_of(load_data, monkeypatch, capfd, "--data", path)


@pytest.mark.parametrize("content", (b"", b"PK\x05\x06" + bytes(18), bytes(999), b"\x93NUMPY", b"PK\x03\x04"))
def test_a_file_that_is_no_archive_is_refused(content, tmp_path, monkeypatch, capfd):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    assert line_of(load_data, monkeypatch, capfd, "--data", path).startswith(f"error: {path}: ")


@pytest.mark.parametrize("kind", ("missing", "fifo", "long", "loop", "empty folder"))
def test_data_that_is_no_file_is_refused(kind, tmp_path, monkeypatch, capfd):
    path = tmp_path / ("m" * 300 if kind == "long" else "data")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "empty folder":
        path.mkdir()
    assert line_of(load_data, monkeypatch, capfd, "--data", path).startswith(f"error: {path}: ")


def test_a_folder_that_may_not_be_searched_is_refused(tmp_path, monkeypatch, capfd):
    if os.geteuid() == 0:
        pytest.skip("root may search any folder")
    path = idx_folder(tmp_path / "closed")
    path.chmod(0o600)
    try:
        assert str(path) in line_of(load_data, monkeypatch, capfd, "--data", path)
    finally:
        path.chmod(0o700)


# Memory: each bomb is opened in turn by a process of its own, which tells its peak

LARGE = 1600 << 20  # with the 0.7 GB that TensorFlow takes, more than 2 GB


def sparse_h5(path):
    """Write a model whose chunked dataset declares 4 TB and stores nothing."""
    with h5py.File(path, "a") as file:
        name = first_kernel(file)
        del file[name]
        file.create_dataset(name, (3, 3, 1, 10**11), "f4", chunks=(3, 3, 1, 10**5), compression="gzip")


def full_h5(path):
    """Write a model whose kernel unpacks to 3 GB of zeros: below Keras's own limit of 4 GB."""
    with h5py.File(path, "a") as file:
        name = first_kernel(file)
        del file[name]
        file.create_dataset(name, (3, 3, 1, 85_000_000), "f4", chunks=(3, 3, 1, 10**5), compression="gzip")
    edit_config(path, lambda config: config["config"]["layers"][1]["config"].update(filters=85_000_000))


def wide_h5(path):
    """Write a model whose last layer asks for 10**7 units: 2.5 GB that a machine may well have."""
    edit_config(path, lambda config: config["config"]["layers"][-1]["config"].update(units=10**7))


def billion_h5(path):
    edit_config(path, lambda config: config["config"]["layers"][-1]["config"].update(units=10**9))


def repeated_h5(path):
    """Write a model that names one array of 8 MB 400 times as a layer's weights."""
    with h5py.File(path, "a") as file:
        group = file["model_weights"][first_kernel(file).split("/")[1]]
        group["w"] = np.ones(2_000_000, np.float32)
        group.attrs["weight_names"] = np.array([b"w"] * 400)


def packed(pack, head, size):
    """Return `head` and then `size` zeros, compressed."""
    return (
        pack.compress(head)
        + b"".join(pack.compress(bytes(1 << 24)) for _ in range(size >> 24))
        + pack.flush()
    )


def zip_bomb(path, method, pack, size, declared):
    """Write an .npz file with an array of `size` zeros that declares `declared` bytes for it.

    zipfile unpacks deflated data in steps up to the declared size, but bzip2 data at once.
    """
    header = npy_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}")
    data, name = packed(pack, header, size), b"x_train.npy"
    fields = struct.pack("<HHHHHIII", 46, 0, method, 0, 33, 0, len(data), declared)
    local = b"PK\x03\x04" + fields + struct.pack("<HH", len(name), 0) + name + data
    central = (
        b"PK\x01\x02"
        + struct.pack("<H", 46)
        + fields
        + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0)
        + name
    )
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    path.write_bytes(local + central + end)


BOMBS = {
    "billion.h5": billion_h5,
    "wide.h5": wide_h5,
    "sparse.h5": sparse_h5,
    "full.h5": full_h5,
    "repeated.h5": repeated_h5,
    "header.npz": lambda path: npz(
        path,
        x_train=npy_header(
            "{'descr': '|u1', 'fortran_order': False, 'shape': (9000000, 28, 28), }", bytes(9999)
        ),
    ),
    "declared.npz": lambda path: zip_bomb(
        path, zipfile.ZIP_DEFLATED, zlib.compressobj(1, wbits=-15), LARGE, LARGE + 99
    ),
    "deflate.npz": lambda path: zip_bomb(
        path, zipfile.ZIP_DEFLATED, zlib.compressobj(1, wbits=-15), LARGE, 10**6
    ),
    "bzip2.npz": lambda path: zip_bomb(path, zipfile.ZIP_BZIP2, bz2.BZ2Compressor(), LARGE, 10**6),
    "labels.npz": lambda path: npz(
        path, y_train=npy(np.zeros(27_000_000, np.int64)), y_test=npy(np.zeros(27_000_000, np.int64))
    ),
    "gzip folder": lambda path: idx_folder(
        path, x_test=packed(zlib.compressobj(1, wbits=31), idx(np.zeros((20, 28, 28), np.uint8)), 2 << 30)
    ),
    "largest.npz": lambda path: npz(
        path, x_train=npy(np.zeros((279_980, 28, 28), np.uint8)), y_train=npy(np.zeros(279_980, np.uint8))
    ),
}

OPEN_EACH = """
import os, resource, sys
from pathlib import Path
import evaluate_model, load_data
resource.setrlimit(resource.RLIMIT_DATA, (12 << 30, 12 << 30))  # the machine survives a failure
for path in sys.argv[1:]:
    pid = os.fork()  # before TensorFlow's first operation: afterwards a fork would hang
    if not pid:
        try:
            evaluate_model.load_model(Path(path)) if path.endswith(".h5") else load_data.load_data(path)
        except load_data.InputError as error:
            os._exit(1 if path in str(error) else 3)
        except BaseException:
            os._exit(4)
        os._exit(0)
    _, status, usage = os.wait4(pid, 0)
    print(os.waitstatus_to_exitcode(status), usage.ru_maxrss // 1024, flush=True)
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory, good_model):
    """Exit status and peak memory in MB, by bomb, of a process that opens it."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, make in BOMBS.items():
        if name.endswith(".h5"):
            (folder / name).write_bytes(good_model.read_bytes())
        make(folder / name)
    done = open_each(folder / name for name in BOMBS)
    return dict(zip(BOMBS, done, strict=True))


def open_each(paths):
    """Open each file in a process of its own; return [(status, peak memory in MB), ...]."""
    command = [sys.executable, "-c", OPEN_EACH, *map(str, paths)]
    output = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    ).stdout
    return [tuple(map(int, line.split())) for line in output.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_memory_stays_below_2_gb(name, opened):
    """Without a bomb the process needs 0.7 GB; the largest set allowed fits, and nothing larger."""
    status, peak = opened[name]
    assert status == (0 if name == "largest.npz" else 1)
    assert peak < 2048


# Fuzzing


def fuzz(path, cases):
    """Return how many of the damaged files load; the others must raise InputError.

    `cases` writes the next file to `path` at each step. A warning is a failure, too: it would
    reach stderr beside the one line.
    """
    loaded = 0
    for _ in cases:
        with warnings.catch_warnings(record=True, action="always") as warned:
            try:
                data = load_data.load_data(path)
            except InputError as error:
                assert str(path) in str(error)
            else:
                check_arrays(*data)
                loaded += 1
        assert not warned, warned[0].message
    return loaded


@pytest.mark.slow
@pytest.mark.parametrize("compression", (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
def test_fuzzed_archives_raise_input_error_or_give_valid_arrays(compression, tmp_path):
    """1,000 damaged archives of each kind. Found: nothing, zip's check sums catch nearly all."""
    path = npz(tmp_path / "data.npz", compression)
    cases = (path.write_bytes(data) for data in mutations(path.read_bytes(), 1000, seed=compression))
    assert 0 < fuzz(path, cases) < 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_fuzzed_array_headers_raise_input_error_or_give_valid_arrays(name, tmp_path):
    """500 damaged headers for each array, in archives whose check sums are right.

    Found: NumPy's warnings on stderr (a Python 2 header, a SyntaxWarning), beside the one line.
    By hand: a 0-dimensional array raised TypeError.
    """
    path = tmp_path / "data.npz"
    whole = npy(arrays()[name])
    cases = (
        npz(path, zipfile.ZIP_STORED, **{name: head + whole[128:]})
        for head in mutations(whole[:128], 500, seed=1)
    )
    assert 0 < fuzz(path, cases) < 500


@pytest.mark.slow
@pytest.mark.parametrize("name", ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"))
@pytest.mark.parametrize("compress", (bytes, gzip.compress))
def test_fuzzed_idx_files_raise_input_error_or_give_valid_arrays(name, compress, tmp_path):
    """500 damaged files of each kind, and 500 more whose header alone is damaged.

    Found: nothing. By hand: 2**32 - 1 images of 0 x (2**32 - 1) pixels raised ValueError.
    """
    folder = idx_folder(tmp_path / "data")
    file = folder / name
    whole = file.read_bytes()
    cases = (file.write_bytes(data) for data in mutations(compress(whole), 500, seed=0))
    assert 0 < fuzz(folder, cases) < 500
    cases = (file.write_bytes(compress(head + whole[16:])) for head in mutations(whole[:16], 500, seed=0))
    assert 0 < fuzz(folder, cases) < 500


@pytest.mark.slow
def test_fuzzed_models_are_refused_or_load(tmp_path, good_model):
    """100 damaged models, each opened by a process of its own: HDF5 is C.

    Found: no crash, hang or bomb.
    """
    paths = []
    for number, data in enumerate(mutations(good_model.read_bytes(), 100, seed=0)):
        paths.append(tmp_path / f"{number}.h5")
        paths[-1].write_bytes(data)
    assert {status for status, peak in open_each(paths)} == {0, 1}
