"""Files from strangers: what a hostile or damaged model or data file can't do.

No code of the file runs, no other file is read, memory stays below 2 GB, and the user gets
one line that names the file as he wrote it, and status 1.
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
from conftest import IDX_FILES, assert_one_line, idx, mutations, posix, python, write_idx

import evaluate_model
import load_data
from build_model import build_model, keras, layers
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


def npy_header(shape, descr="'|u1'", data=b""):
    """Return the bytes of an .npy file with any header."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def write_npz(path, arrays, compression=zipfile.ZIP_DEFLATED, **members):
    """Write an .npz file of `arrays`; `members` holds bytes in place of an array, by its name."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in ({name: npy(array) for name, array in arrays.items()} | members).items():
            archive.writestr(f"{name}.npy", content)
    return path


def overwrite_member(path, in_local, in_central, form, value):
    """Overwrite a field of the first member's two headers in a zip file; the field's places in them differ."""
    with zipfile.ZipFile(path) as archive, open(path, "rb+") as file:
        for place in (in_local, archive.start_dir + in_central):
            file.seek(place)
            file.write(struct.pack(form, value))


def assert_valid(X_train, y_train, X_test, y_test):
    """Assert what load_data() promises of the arrays that it returns."""
    for X, y in ((X_train, y_train), (X_test, y_test)):
        assert X.dtype == y.dtype == np.float32
        assert len(X) and X.shape == (len(X), 28, 28, 1) and y.shape == (len(X), 10)
        assert 0 <= X.min() and X.max() <= 1 and (y.sum(axis=1) == 1).all()


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


def nested(depth):
    return lambda config: '{"class_name": "Sequential", "config": {"layers": [' * depth + "]}}" * depth


@pytest.mark.parametrize(
    "edit",
    [
        lambda config: "[" * 100_000 + "]" * 100_000,
        nested(100),
        nested(10_000),
        lambda config: "{",
        lambda config: "null",
        lambda config: '{"class_name": "Sequential"}',
        change_layer(1, filters=-1),
        change_layer(1, filters="many"),
        change_layer(1, kernel_size=[0, 0]),
        change_layer(-1, units=10**9),
        change_layer(-1, units=10**18),
        change_layer(0, batch_shape=[None, 10**6, 10**6, 1]),
        change_layer(0, batch_shape=[None, 32, 32, 3]),
        # Keras's messages quote the configuration: megabytes and terminal codes of the stranger's.
        change_layer(1, stranger=["x" * 50] * 50_000),
        lambda config: config["config"]["layers"][1].update(class_name="x\x1b]0;owned\x07\n\x9b31m"),
    ],
)
def test_a_bad_configuration_is_refused_in_a_short_line(edit, model, refused):
    edit_config(model, edit)
    line = refused(model)
    assert line.isprintable() and len(line) < 1500


def test_bytes_that_are_no_model_are_refused(model, good_model, refused):
    whole = good_model.read_bytes()
    cuts = [1, 8, 9, 96, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 45)]
    junk = [random.Random(seed).randbytes(5000) for seed in range(20)]
    for content in (*junk, b"", b"no HDF5 file", whole[:8] + bytes(500), *(whole[:cut] for cut in cuts)):
        model.write_bytes(content)
        refused(model, "not a Keras model that can be used")


@pytest.mark.parametrize(
    "middle",
    [
        [layers.UpSampling2D(100), layers.GlobalMaxPooling2D()],
        [layers.ZeroPadding2D(50_000), layers.GlobalMaxPooling2D()],
        [layers.Flatten(), layers.RepeatVector(10**7), layers.GlobalMaxPooling1D()],
    ],
)
def test_a_model_with_huge_activations_is_not_run(middle, tmp_path, npz, monkeypatch, end_of):
    """Small weights, but 10**8 numbers for an image: for a batch, more than any memory."""
    path = tmp_path / "bomb.h5"
    keras.Sequential([keras.Input((28, 28, 1)), *middle, layers.Dense(10, activation="softmax")]).save(path)
    monkeypatch.setattr(keras.Model, "predict", lambda *args, **options: pytest.fail("it was run"))
    assert_one_line(end_of(evaluate_model, "--data", npz, "--model", path).code, path, "more than 100,000 numbers")


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
    "name", ["two  spaces", *(pytest.param(name, marks=posix) for name in ("a\nb", "é\udcff"))], ids=ascii
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
    refused(write_npz("evil.npz", arrays, **{name: evil}), name)
    assert os.listdir() == ["evil.npz"]


@pytest.mark.parametrize(
    "descr, shape",
    [
        ("'|u1'", "(1000000000000, 28, 28)"),
        ("'|u1'", "(9223372036854775807, 28, 28)"),
        ("'|u1'", "(-30, 28, 28)"),
        ("'|u1'", "(30, 28)"),
        ("'|u1'", "()"),
        ("'|u1'", "(True, 28, 28)"),
        ("'|V2000000000'", "(30, 28, 28)"),
        ("'|V0'", "(1000000000, 28, 28)"),
        ("'<U500000000'", "(30, 28, 28)"),
        ("[('a', '|u1', (28, 28))]", "(30,)"),
        ("'|O'", "(30, 28, 28)"),
        ("__import__('os').system('false')", "(30, 28, 28)"),
        ("(" * 5000 + ")" * 4000, "(30, 28, 28)"),
        ("'|u1'", "(30 if 1or 0 else 1, 28, 28)"),  # Python warns of `1or`
        ("'" + "x" * 20000 + "'", "(30, 28, 28)"),
        ("", ""),
    ],
    ids=lambda text: text[:40],
)
def test_a_bad_array_header_is_refused(descr, shape, tmp_path, arrays, refused, recwarn):
    content = npy_header(shape, descr, bytes(30 * 784))
    refused(write_npz(tmp_path / "bad.npz", arrays, x_train=content), "train")
    assert not recwarn.list  # it would be a second line on stderr


@pytest.mark.parametrize(
    "in_local, in_central, form, value",
    [(6, 8, "<H", 1), (8, 10, "<H", 99), (22, 24, "<I", 10), (14, 16, "<I", 0)],
    ids=["encrypted", "method", "size", "crc"],
)
def test_a_bad_archive_member_is_refused(in_local, in_central, form, value, tmp_path, arrays, refused):
    path = write_npz(tmp_path / "bad.npz", arrays)  # x_train comes first
    overwrite_member(path, in_local, in_central, form, value)
    refused(path, "x_train")


def test_an_archive_with_two_arrays_of_a_name_gives_one_of_them(tmp_path, arrays):
    path = write_npz(tmp_path / "twice.npz", arrays)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("x_test.npy", npy(np.full((20, 28, 28), 255, np.uint8)))
    assert_valid(*load_data.load_data(path))


@pytest.mark.parametrize(
    "name, header",
    [
        ("x_train", struct.pack(">4I", 0x803, 2**32 - 1, 28, 28)),
        ("x_train", struct.pack(">4I", 0x803, 2**32 - 1, 0, 2**32 - 1)),
        ("x_train", struct.pack(">4I", 0x80D03, 30, 28, 28)),
        ("y_train", struct.pack(">2I", 0x801, 2**32 - 1)),
        ("y_train", b"\x1f\x8b\x08\x00"),
    ],
    ids=["2**32 images", "zero width", "magic", "2**32 labels", "no deflate"],
)
def test_a_bad_idx_header_is_refused(name, header, tmp_path, arrays, refused):
    refused(write_idx(tmp_path, arrays, **{name: header + bytes(30 * 784)}))


# Memory: each bomb is opened in turn by a process of its own, which tells its peak

LARGE = 2000 << 20  # with the 0.3 GB that loading takes, more than 2 GB; zip64 begins at 2048 << 20


def sparse_h5(path, filters=10**11):
    """Write a model whose chunked dataset declares 4 TB and stores nothing."""
    with h5py.File(path, "a") as file:
        name = first_kernel(file)
        del file[name]
        file.create_dataset(name, (3, 3, 1, filters), "f4", chunks=(3, 3, 1, 10**5), compression="gzip")


def full_h5(path):
    """Write a model whose kernel unpacks to 3 GB of zeros: below Keras's own limit of 4 GB."""
    sparse_h5(path, filters=85_000_000)
    edit_config(path, change_layer(1, filters=85_000_000))


def repeated_h5(path):
    """Write a model that names one array of 8 MB 400 times as a layer's weights."""
    with h5py.File(path, "a") as file:
        group = file["model_weights"][first_kernel(file).split("/")[1]]
        group["w"] = np.ones(2_000_000, np.float32)
        group.attrs["weight_names"] = np.array([b"w"] * 400)


def write_zeros(file, size):
    for _ in range(size >> 24):
        file.write(bytes(1 << 24))


def zip_bomb(path, method, declared=None):
    """Write an .npz file with an array of LARGE zeros that declares its true size, or `declared` bytes.

    zipfile unpacks deflated data in steps up to the declared size, but bzip2 data at once.
    """
    with zipfile.ZipFile(path, "w", method) as archive, archive.open("x_train.npy", "w") as member:
        member.write(npy_header(f"({LARGE},)"))
        write_zeros(member, LARGE)
    if declared:
        overwrite_member(path, 22, 24, "<I", declared)


def gzip_folder(path, arrays):
    """Write a folder of IDX files where 2 GB of zeros follow the test images."""
    path.mkdir()
    write_idx(path, arrays)
    with gzip.open(path / IDX_FILES[2], "wb", compresslevel=1) as file:
        file.write(idx(arrays["x_test"]))
        write_zeros(file, 2 << 30)


MODEL_BOMBS = {
    "wide.h5": lambda path: edit_config(path, change_layer(-1, units=10**7)),  # 2.5 GB, which a machine may have
    "sparse.h5": sparse_h5,
    "full.h5": full_h5,
    "repeated.h5": repeated_h5,
}
DATA_BOMBS = {
    "header.npz": lambda path, good: write_npz(path, good, x_train=npy_header("(9000000, 28, 28)", data=bytes(9999))),
    "declared.npz": lambda path, good: zip_bomb(path, zipfile.ZIP_DEFLATED),
    "deflate.npz": lambda path, good: zip_bomb(path, zipfile.ZIP_DEFLATED, 10**6),
    "bzip2.npz": lambda path, good: zip_bomb(path, zipfile.ZIP_BZIP2, 10**6),
    "labels.npz": lambda path, good: write_npz(
        path, good | {"y_train": np.zeros(27_000_000, np.int64), "y_test": np.zeros(27_000_000, np.int64)}
    ),
    "gzip folder": gzip_folder,
    "largest.npz": lambda path, good: write_npz(
        path, good | {"x_train": np.zeros((279_980, 28, 28), np.uint8), "y_train": np.zeros(279_980, np.uint8)}
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
            evaluate_model.load_model(model=path) if path.endswith(".h5") else load_data.load_data(path)
        except load_data.InputError as error:
            os._exit(1 if path in str(error) else 3)
        except BaseException:
            os._exit(4)
        os._exit(0)
    _, status, usage = os.wait4(pid, 0)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    print(os.waitstatus_to_exitcode(status), usage.ru_maxrss // unit, flush=True)
"""


def open_each(folder, names):
    """Open each file in a process of its own; return {name: (status, peak memory in MB), ...}."""
    done = python("-c", OPEN_EACH, *names, cwd=folder)
    assert done.returncode == 0, done.stderr
    return {name: tuple(map(int, line.split())) for name, line in zip(names, done.stdout.splitlines(), strict=True)}


@posix
@pytest.mark.slow
def test_memory_stays_below_2_gb(tmp_path, arrays, good_model):
    """Without a bomb a process needs 0.3 GB, or 0.7 with a model; the largest set allowed fits, and nothing larger."""
    for name, make in MODEL_BOMBS.items():
        make(shutil.copy(good_model, tmp_path / name))
    for name, make in DATA_BOMBS.items():
        make(tmp_path / name, arrays)
    opened = open_each(tmp_path, [*MODEL_BOMBS, *DATA_BOMBS])
    assert opened.pop("largest.npz")[0] == 0
    assert {name for name, (status, peak) in opened.items() if status != 1 or peak >= 2048} == set(), opened


# Fuzzing


def fuzz(path, write, data, n, seed):
    """Write n damaged copies of `data` in turn, and load `path`: some give valid arrays, others raise InputError.

    A warning would reach stderr beside the one line.
    """
    loaded = 0
    for damaged in mutations(data, n, seed):
        write(damaged)
        with warnings.catch_warnings(record=True, action="always") as warned:
            try:
                assert_valid(*load_data.load_data(path))
                loaded += 1
            except InputError as error:
                assert str(path) in str(error)
        assert not warned, warned[0].message
    assert 0 < loaded < n


@pytest.mark.slow
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_fuzzed_archives(compression, tmp_path, arrays):
    """Found: nothing, zip's check sums catch nearly all."""
    path = write_npz(tmp_path / "data.npz", arrays, compression)
    fuzz(path, path.write_bytes, path.read_bytes(), 1000, seed=compression)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x_train", "y_train", "x_test", "y_test"])
def test_fuzzed_array_headers(name, tmp_path, arrays):
    """In archives whose check sums are right.

    Found: NumPy's warnings on stderr (a Python 2 header, a SyntaxWarning), beside the one line.
    By hand: a 0-dimensional array raised TypeError.
    """
    path, whole = tmp_path / "data.npz", npy(arrays[name])

    def write(head):
        write_npz(path, arrays, zipfile.ZIP_STORED, **{name: head + whole[128:]})

    fuzz(path, write, whole[:128], 500, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [IDX_FILES[0], IDX_FILES[3]])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_fuzzed_idx_files(name, compress, tmp_path, arrays):
    """Whole files, and ones whose header alone is damaged.

    Found: nothing. By hand: 2**32 - 1 images of 0 x (2**32 - 1) pixels raised ValueError.
    """
    file = write_idx(tmp_path, arrays) / name
    whole = file.read_bytes()
    fuzz(tmp_path, file.write_bytes, compress(whole), 500, seed=0)
    fuzz(tmp_path, lambda head: file.write_bytes(compress(head + whole[16:])), whole[:16], 500, seed=0)


@posix
@pytest.mark.slow
def test_fuzzed_models_are_refused_or_load(tmp_path, good_model):
    """100 damaged models, each opened by a process of its own: HDF5 is C. Found: no crash, hang or bomb."""
    names = [f"{number}.h5" for number in range(100)]
    for name, data in zip(names, mutations(good_model.read_bytes(), 100, seed=0)):
        (tmp_path / name).write_bytes(data)
    assert {status for status, peak in open_each(tmp_path, names).values()} == {0, 1}
