"""Files from strangers: no code runs, no other file is read, no memory is filled; one line names the file."""

import gzip
import io
import json
import marshal
import os
import random
import re
import shutil
import tracemalloc
import zipfile
from base64 import b64encode
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import IDX_FILES, assert_one_line, build_small_network, posix, write_idx

import evaluate_model
import load_data
from build_model import keras, load_model
from load_data import InputError


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


# Models


@pytest.fixture
def model(here):
    """A good model to be spoilt, in the current folder; its layers are Input, Flatten and Dense."""
    return Path("m.h5")


def edit_layers(path, edit):
    """Let `edit` change the list of layers in a model file's configuration, or return a text in its place."""
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        file.attrs["model_config"] = edit(config["config"]["layers"]) or json.dumps(config)


ATTACK = b64encode(marshal.dumps((lambda x: open("ran", "w").close() or x).__code__)).decode()  # as in Keras's files


@pytest.mark.parametrize(
    "function",
    [
        {"function": [ATTACK, None, None], "function_type": "lambda"},
        {"function": {"class_name": "__lambda__", "config": {"code": ATTACK, "defaults": None, "closure": None}}},
    ],
)
def test_code_in_a_model_does_not_run(function, model, refused):
    layer = {"class_name": "Lambda", "config": {"name": "stranger", **function}}
    edit_layers(model, lambda layers: layers.insert(1, layer))
    keras.models.load_model(model, compile=False, safe_mode=False)(np.zeros((1, 28, 28, 1)))
    os.remove("ran")  # it would run
    line = refused(model)
    assert not os.path.exists("ran") and "safe_mode" not in line, "Keras's own message says how to run it"


@pytest.mark.parametrize("link", ["external", "external group", "raw", "virtual"])
def test_a_model_reads_no_weights_from_another_file(link, model, refused):
    shutil.copy(model, "other.h5")
    seven = np.full((784, 10), 7, np.float32)
    Path("raw").write_bytes(seven.tobytes())
    with h5py.File(model, "a") as file, h5py.File("other.h5", "a") as other:
        name = file.visititems(lambda name, item: name if getattr(item, "shape", 0) == seven.shape else None)
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


def test_a_model_reads_no_vocabulary_from_another_file(model, refused):
    """What is said of a file that is there is said of one that isn't: neither is opened."""
    Path("1.txt").write_text("1\n2\n")
    assert list(keras.layers.IntegerLookup(vocabulary="1.txt").get_vocabulary()[-2:]) == [1, 2], "Keras reads it"
    layer = {"class_name": "IntegerLookup", "config": {"name": "stranger", "vocabulary": "1.txt"}}
    edit_layers(model, lambda layers: layers.insert(1, layer))
    line = refused(model, "1.txt")
    edit_layers(model, lambda layers: layers[1]["config"].update(vocabulary="2.txt"))
    assert refused(model) == line.replace("1.txt", "2.txt")


@pytest.mark.parametrize(
    "edit",
    [
        lambda layers: "[" * 100_000 + "]" * 100_000,
        lambda layers: "null",
        lambda layers: layers[2]["config"].update(units=-1),
        # Keras's messages quote the configuration: megabytes and terminal codes of the stranger's.
        lambda layers: layers[2]["config"].update(stranger=["x" * 50] * 50_000),
        lambda layers: layers[2].update(class_name="x\x1b]0;owned\x07\n\x9b31m"),
    ],
)
def test_a_bad_configuration_is_refused_in_a_short_line(edit, model, refused):
    edit_layers(model, edit)
    line = refused(model)
    assert line.isprintable() and len(re.search(r"\((.*)\); train it again$", line)[1]) <= 150


def test_bytes_that_are_no_model_are_refused(model, refused):
    whole = model.read_bytes()
    for content in (b"", random.Random(0).randbytes(5000), whole[:-1], whole[: len(whole) // 2]):
        model.write_bytes(content)
        refused(model, f"Keras {keras.__version__} can't load it (", "); train it again")
    keras.Sequential([]).save(model)
    refused(model)
    build_small_network().save_weights("stranger.weights.h5")
    os.replace("stranger.weights.h5", model)
    refused(model, "No model config")
    refused(model.rename("two  spaces, é.h5"))


def test_keras_does_not_lecture_about_other_peoples_networks(model, recwarn):
    """Most tutorials give the first layer an input_shape; Keras warns of it in two lines."""
    edit_layers(model, lambda layers: layers[1]["config"].update(input_shape=[28, 28, 1]))
    assert load_model(model=model) and not recwarn.list


@posix
@pytest.mark.parametrize("name", ["model.h5", "data", "folder/t10k-labels-idx1-ubyte"])
def test_a_path_that_hangs_or_leads_nowhere_is_refused(name, tmp_path, arrays, refused):
    """To open a FIFO would be to wait for a writer for ever. The other is a link to itself."""
    (tmp_path / "folder").mkdir()
    write_idx(tmp_path / "folder", arrays)
    path = tmp_path / name
    for make in (os.mkfifo, lambda path: path.symlink_to(path)):
        path.unlink(missing_ok=True)
        make(path)
        refused(path.parent if "folder" in name else path)


# Data


def npy(array):
    """Return the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_npz(path, arrays, **members):
    """Write an .npz file of `arrays`; `members` holds bytes in place of an array, by its name."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", members.get(name, npy(array)))
    return path


class Attack:
    """Unpickling it makes the file `ran`."""

    def __reduce__(self):
        return open, ("ran", "w")


EVIL = npy(np.array([Attack()]))
CODE = b"\x93NUMPY\x01\x00\x20\x00__import__('os').mkdir('ran') \n"  # in place of a header
HUGE = npy(np.zeros((30, 28, 28), np.uint8)).replace(b"(30, 28", b"(9999999999999999, 28")


@pytest.mark.parametrize("content", [EVIL, CODE, HUGE, b"no array"], ids=["pickled", "code", "huge", "bytes"])
def test_what_is_no_array_is_refused_and_does_not_run(content, tmp_path, monkeypatch, arrays, refused):
    monkeypatch.chdir(tmp_path)
    np.load(io.BytesIO(EVIL), allow_pickle=True)
    os.remove("ran")  # the attack works
    for name in arrays:
        refused(write_npz("bad.npz", arrays, **{name: content}))
    assert os.listdir() == ["bad.npz"]


def test_data_that_unpacks_to_2_gb_is_refused_without_unpacking_it(tmp_path, arrays):
    """Of a gzip file, 220 MB are unpacked, the largest size that is allowed."""
    write_idx(tmp_path, arrays, lambda name: f"{name}.gz", gzip.compress)
    with open(tmp_path / f"{IDX_FILES[2]}.gz", "ab") as file:
        file.write(128 * gzip.compress(bytes(2**24), compresslevel=1))  # members of a gzip file can be repeated
    npz = write_npz(tmp_path / "bomb.npz", arrays)
    content = npz.read_bytes()
    size = content.index(b"PK\x01\x02") + 24  # where the archive's directory says how large the first array is
    npz.write_bytes(content[:size] + (2**31).to_bytes(4, "little") + content[size + 4 :])
    tracemalloc.start()
    for path, words in ((tmp_path, IDX_FILES[2]), (npz, "an array takes over 219 MB; images must be uint8")):
        with pytest.raises(InputError, match=words):
            load_data.load_data(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500e6
