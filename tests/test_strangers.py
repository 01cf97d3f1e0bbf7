"""Files from strangers: what a hostile or damaged model or data file can't do.

No code of the file runs, no other file is read, a data file that unpacks to gigabytes is refused,
and the user gets one line that names the file as he wrote it, and status 1.
"""

import gzip
import io
import json
import marshal
import os
import random
import shutil
import struct
import warnings
import zipfile
from base64 import b64encode
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import IDX_FILES, assert_one_line, idx, posix, python, write_idx

import evaluate_model
import load_data
from build_model import build_model, keras, load_model
from load_data import InputError

# Helpers


@pytest.fixture
def refused(end_of):
    """Return a function that asserts that a script refuses a file in one line that names it, and returns the line."""

    def refused(path, *parts):
        if str(path).endswith(".h5"):
            end = end_of(evaluate_model, "--model", path, "none.png")  # the model is loaded before the picture
        else:
            end = end_of(load_data, "--data", path)
        assert_one_line(end.code, f"error: {path}: ".replace("\n", " "), *parts)
        assert end.err == ""  # nor a warning
        return end.code

    return refused


def npy(array, **options):
    """Return the bytes of an .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), **options)
    return file.getvalue()


def npy_header(shape, descr="'|u1'"):
    """Return the head of an .npy file."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def write_npz(path, arrays, compression=zipfile.ZIP_DEFLATED, **members):
    """Write an .npz file of `arrays`; `members` holds bytes in place of an array, by its name."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in ({name: npy(array) for name, array in arrays.items()} | members).items():
            archive.writestr(f"{name}.npy", content)
    return path


# Models


@pytest.fixture(scope="module")
def good_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.h5"
    build_model().save(path)
    return path


@pytest.fixture
def model(tmp_path, monkeypatch, good_model):
    """A copy of a good model to be spoilt, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(good_model, "stranger.h5"))


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


def change_layer(number, **config):
    """Return an edit for edit_config()."""
    return lambda whole: whole["config"]["layers"][number]["config"].update(config)


def first_kernel(file):
    """Return the name of the first layer's 3x3x1x32 kernel in an HDF5 file."""
    return file.visititems(lambda name, item: name if getattr(item, "shape", 0) == (3, 3, 1, 32) else None)


def attack(x):
    open("ran", "w").close()
    return x


ATTACK = b64encode(marshal.dumps(attack.__code__)).decode()  # as Keras stores functions


@pytest.mark.parametrize(
    "function",
    [
        {"function": [ATTACK, None, None], "function_type": "lambda"},
        {"function": {"class_name": "__lambda__", "config": {"code": ATTACK, "defaults": None, "closure": None}}},
    ],
    ids=["Keras 2", "Keras 3"],
)
def test_code_in_a_model_does_not_run(function, model, refused):
    insert_layer(model, "Lambda", **function)
    keras.models.load_model(model, compile=False, safe_mode=False)(np.zeros((1, 28, 28, 1)))
    os.remove("ran")  # it would run
    refused(model)
    assert not os.path.exists("ran")


@pytest.mark.parametrize("name", ["code", "os.system", "builtins.eval", "keras.utils.get_file", "subprocess.run"])
def test_a_model_names_no_function_as_its_activation(name, model, refused):
    module, _, name = name.rpartition(".")
    function = {"class_name": "function", "module": module, "config": name, "registered_name": name}
    code = {"class_name": "__lambda__", "config": {"value": [ATTACK, None, None]}}
    insert_layer(model, "Activation", activation=function if module else code)
    refused(model)
    assert os.listdir() == [model.name]


@pytest.mark.parametrize("link", ["external", "external group", "raw", "virtual"])
def test_a_model_reads_no_weights_from_another_file(link, model, refused):
    shutil.copy(model, "other.h5")
    seven = np.full((3, 3, 1, 32), 7, np.float32)
    Path("raw").write_bytes(seven.tobytes())
    with h5py.File(model, "a") as file, h5py.File("other.h5", "a") as other:
        name = first_kernel(file)
        other[name][...] = seven
        place = "/".join(name.split("/")[:2]) if link == "external group" else name
        del file[place]
        if link.startswith("external"):
            file[place] = h5py.ExternalLink("other.h5", place)
        elif link == "raw":
            file.create_dataset(name, seven.shape, seven.dtype, external=[("raw", 0, seven.nbytes)])
        else:
            layout = h5py.VirtualLayout(seven.shape, seven.dtype)
            layout[...] = h5py.VirtualSource("other.h5", name, seven.shape)
            file.create_virtual_dataset(name, layout)
    with h5py.File(model) as file:
        assert np.array_equal(file[name], seven), "the link leads to weights that fit"
    refused(model)


@pytest.mark.parametrize("layer", ["IntegerLookup", "StringLookup"])
def test_a_model_reads_no_vocabulary_from_another_file(layer, model, refused):
    """What is said of a file that is there is said of one that isn't: neither is opened."""
    Path("1.txt").write_text("1\n2\n")
    read = keras.layers.IntegerLookup(vocabulary="1.txt").get_vocabulary()
    assert list(read[-2:]) == [1, 2], "Keras itself reads such a file"
    lines = set()
    for name in ("1.txt", "2.txt"):
        spoilt = Path(shutil.copy(model, "spoilt.h5"))
        insert_layer(spoilt, layer, vocabulary=name)
        lines.add(refused(spoilt, name).replace(name, ""))
    assert len(lines) == 1


@pytest.mark.parametrize(
    "edit",
    [
        lambda config: "[" * 100_000 + "]" * 100_000,
        lambda config: "null",
        change_layer(1, filters=-1),
        change_layer(0, batch_shape=[None, 32, 32, 3]),
        # Keras's messages quote the configuration: megabytes and terminal codes of the stranger's.
        change_layer(1, stranger=["x" * 50] * 50_000),
        lambda config: config["config"]["layers"][1].update(class_name="x\x1b]0;owned\x07\n\x9b31m"),
    ],
)
def test_a_bad_configuration_is_refused_in_a_short_line(edit, model, refused):
    edit_config(model, edit)
    line = refused(model)
    assert line.isprintable() and len(line) < 500


def test_bytes_that_are_no_model_are_refused(model, good_model, refused):
    whole = good_model.read_bytes()
    for content in (
        b"",
        b"no HDF5 file",
        random.Random(0).randbytes(5000),
        whole[:8],
        whole[:-1],
        whole[: len(whole) // 2],
    ):
        model.write_bytes(content)
        refused(model, "damaged, or no .h5 file; train it again")


# Models of other versions and programs


def test_an_old_keras_file_says_who_wrote_it(model, refused):
    """As Keras 2.2 wrote them, in terms that Keras 3 doesn't know."""
    edit_config(model, change_layer(1, batch_input_shape=[None, 28, 28, 1], init="glorot_uniform", nb_filter=32))
    with h5py.File(model, "a") as file:
        file.attrs["keras_version"] = "2.2.4"
    line = refused(model, f"saved by Keras 2.2.4, can't be read by Keras {keras.__version__} (", "); train it again")
    assert len(line) < 300


def test_weights_alone_are_called_so(model, refused):
    model.unlink()
    build_model().save_weights(model.with_suffix(".weights.h5"))
    model.with_suffix(".weights.h5").rename(model)
    refused(model, "holds only weights, without the network")


def test_a_lambda_is_named_without_the_advice_to_run_it(model, refused):
    insert_layer(model, "Lambda", function={"class_name": "__lambda__", "config": {"code": ATTACK}})
    assert "safe_mode" not in refused(model, "holds a Lambda layer, which is somebody's code; it isn't run")


@posix
def test_a_file_that_another_program_has_locked_is_not_called_damaged(model, refused):
    import fcntl

    with open(model, "rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "damaged" not in refused(model, "can't be opened", "does another program use it?")


def test_keras_does_not_lecture_about_other_peoples_networks(model, recwarn):
    """A model whose first layer has an input_shape, as most tutorials build it."""
    with warnings.catch_warnings(action="ignore"):
        stack = [keras.layers.Flatten(input_shape=(28, 28, 1)), keras.layers.Dense(10, activation="softmax")]
        keras.Sequential(stack).save(model)
    load_model(model=model)
    assert not recwarn.list


# Paths


@posix
@pytest.mark.parametrize("name", ["model.h5", "data", "folder/t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("kind", ["fifo", "loop"])
def test_a_path_that_hangs_or_leads_nowhere_is_refused(kind, name, tmp_path, arrays, refused):
    """To open a FIFO would be to wait for a writer for ever."""
    (tmp_path / "folder").mkdir()
    write_idx(tmp_path / "folder", arrays)
    path = tmp_path / name
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "fifo" else path.symlink_to(path)
    refused(path.parent if "folder" in name else path)


@pytest.mark.parametrize("end", [".h5", ".npz"])
@pytest.mark.parametrize(
    "name", ["two  spaces", *(pytest.param(name, marks=posix) for name in ("a\nb", "é"))], ids=ascii
)
def test_a_strange_path_is_given_as_written(name, end, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    Path(name + end).write_bytes(b"stranger")
    refused(name + end)


# Data


class Attack:
    """Unpickling it makes the file `ran`."""

    def __reduce__(self):
        return open, ("ran", "w")


@pytest.mark.parametrize("name", ["x_train", "y_train", "x_test", "y_test"])
def test_pickled_objects_do_not_run(name, tmp_path, monkeypatch, arrays, refused):
    monkeypatch.chdir(tmp_path)
    evil = npy(np.array([Attack()]), allow_pickle=True)
    np.lib.format.read_array(io.BytesIO(evil), allow_pickle=True)
    os.remove("ran")  # the attack works
    refused(write_npz("evil.npz", arrays, **{name: evil}))
    assert os.listdir() == ["evil.npz"]


@pytest.mark.parametrize(
    "descr, shape",
    [
        ("'|u1'", "(1000000000000, 28, 28)"),
        ("'|u1'", "(-30, 28, 28)"),
        ("'|u1'", "()"),
        ("'<U500000000'", "(30, 28, 28)"),
        ("[('a', '|u1', (28, 28))]", "(30,)"),
        ("__import__('os').system('false')", "(30, 28, 28)"),
        ("", ""),
    ],
    ids=lambda text: text[:40],
)
def test_a_bad_array_header_is_refused(descr, shape, tmp_path, arrays, refused):
    content = npy_header(shape, descr) + bytes(30 * 784)
    refused(write_npz(tmp_path / "bad.npz", arrays, x_train=content))


LIMITED = """
import resource
import load_data
resource.setrlimit(resource.RLIMIT_DATA, (1200 << 20, 1200 << 20))
load_data.run(load_data.main)
"""


@posix
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npz", "idx"])
def test_data_that_unpacks_to_2_gb_is_refused(kind, tmp_path, arrays):
    """With 1.2 GB, and for the right reason. gzip's members can simply be repeated."""
    if kind == "npz":
        path = tmp_path / "bomb.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with archive.open("x_train.npy", "w") as member:
                member.write(npy_header(f"({2000 << 20},)"))
                for _ in range(2000 >> 4):
                    member.write(bytes(1 << 24))
            for name in ("y_train", "x_test", "y_test"):
                archive.writestr(f"{name}.npy", npy(arrays[name]))
    else:
        path = write_idx(tmp_path, arrays)
        (path / IDX_FILES[2]).unlink()
        zeros = gzip.compress(bytes(1 << 24), compresslevel=1)
        (path / f"{IDX_FILES[2]}.gz").write_bytes(gzip.compress(idx(arrays["x_test"])) + 125 * zeros)
    done = python("-c", LIMITED, "--data", path, cwd=tmp_path)
    assert done.returncode == 1
    assert_one_line(done.stderr, "an array is larger than" if kind == "npz" else "its header isn't that of IDX images")


# Fuzzing: it found NumPy's warnings on stderr once, and since then nothing


def mutations(data, n, seed):
    """Yield n copies of the bytes `data`, with flipped bits, bytes cut out or junk, mostly in the first 512 bytes."""
    rng = random.Random(seed)
    for _ in range(n):
        copy = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(min(512, len(copy)) if rng.random() < 0.7 else len(copy))
            size = rng.choice((1, 2, 4, 8, 64))
            kind = rng.choice(("flip", "cut", "drop", "junk"))
            if kind == "flip":
                copy[at] ^= 1 << rng.randrange(8)
            elif kind == "cut":
                del copy[at + 1 :]
            else:
                copy[at : at + size] = b"" if kind == "drop" and size < len(copy) else rng.randbytes(size)
        yield bytes(copy)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["array", "idx"])
def test_fuzzed_data_is_valid_or_refused(kind, tmp_path, arrays):
    """An array in an archive whose check sums are right, or a file of a folder."""
    path = tmp_path / "data.npz" if kind == "array" else write_idx(tmp_path, arrays)
    whole = npy(arrays["x_train"]) if kind == "array" else idx(arrays["x_train"])
    loaded = 0
    for damaged in mutations(whole, 400, seed=0):
        if kind == "array":
            write_npz(path, arrays, zipfile.ZIP_STORED, x_train=damaged)
        else:
            (path / IDX_FILES[0]).write_bytes(damaged)
        try:
            with warnings.catch_warnings(action="ignore"):
                X_train, y_train, X_test, y_test = load_data.load_data(path)
            for X, y in ((X_train, y_train), (X_test, y_test)):
                assert X.shape == (len(X), 28, 28, 1) and y.shape == (len(X), 10) and 0 <= X.min() and X.max() <= 1
            loaded += 1
        except InputError as error:
            assert str(path) in str(error)
    assert 0 < loaded < 400


@posix
@pytest.mark.slow
def test_fuzzed_models_and_pictures_are_read_or_refused(tmp_path, good_model):
    """In a process of its own, as HDF5 and Pillow's decoders are C."""
    for number, damaged in enumerate(mutations(good_model.read_bytes(), 40, seed=0)):
        (tmp_path / f"{number}.h5").write_bytes(damaged)
    picture = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8)
    for end, form in (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("tiff", "TIFF")):
        picture = io.BytesIO()
        load_data.Image.fromarray(noise).save(picture, form)
        for number, damaged in enumerate(mutations(picture.getvalue(), 40, seed=1)):
            (tmp_path / f"{number}.{end}").write_bytes(damaged)
    code = """
import sys
from pathlib import Path
from build_model import load_model
from evaluate_model import find_digits
from load_data import InputError
for path in sorted(Path().iterdir()):
    try:
        load_model(model=path) if path.suffix == ".h5" else find_digits(path)
    except InputError as error:
        assert path.name in str(error)
print("all")
"""
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "all\n", done.stderr
