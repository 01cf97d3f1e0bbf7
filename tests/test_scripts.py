"""The scripts as a user starts them: output, exit status, a quiet start, and what the seed README's own calls need."""

import io
import os
import sys

import h5py
import pytest
from conftest import ROOT, assert_one_line, posix, python

import evaluate_model
import load_data

# What the seed README's two scripts do, by its calls; only the data is the digits.
README_TRAIN = """
from load_data import load_data
from build_model import build_model
X_train, y_train, X_test, y_test = load_data("digits")
model = build_model()
history = model.fit(X_train, y_train, epochs=2, validation_data=(X_test, y_test))
for name in ("accuracy", "val_accuracy", "loss", "val_loss"):
    assert len(history.history[name]) == 2
model.save("mnist_classification_model.h5")
"""
README_EVALUATE = """
from tensorflow.keras.models import load_model
from sklearn.metrics import classification_report, confusion_matrix
import numpy as np
from load_data import load_data
_, _, X_test, y_test = load_data("digits")
model = load_model("mnist_classification_model.h5")
loss, accuracy = model.evaluate(X_test, y_test, verbose=0)
predicted = np.argmax(model.predict(X_test, verbose=0), axis=1)
true = np.argmax(y_test, axis=1)
classification_report(true, predicted)
assert confusion_matrix(true, predicted).trace() == round(accuracy * len(true))
result = [f"Test loss: {loss:.4f}", f"Test accuracy: {accuracy:.4f}"]
"""
DIGITS = ("--data", "digits", "--model", "mnist_classification_model.h5")


def run_code(code):
    """Run Python code in this process and return its variables."""
    variables = {}
    exec(code, variables)
    return variables


# A good run


def test_train_then_evaluate_then_the_readmes_own_evaluate(script, end_of, tmp_path, monkeypatch):
    """Nothing on stderr: no warning, no chatter of the start."""
    monkeypatch.chdir(tmp_path)
    trained = script("train_model.py", *DIGITS, "--epochs", "2")
    assert (trained.returncode, trained.stderr) == (0, "")
    lines = trained.stdout.splitlines()
    assert lines[0] == "Epoch 1/2" and lines[1].startswith("12/12 - ") and len(lines) == 6
    assert lines[4:] == ["Saved mnist_classification_model.h5", "Saved mnist_classification_model_curves.png"]
    evaluated = end_of(evaluate_model, *DIGITS)
    assert (evaluated.code, evaluated.err) == (0, "")
    ours = [line for line in evaluated.out.splitlines() if line.startswith("Test ")]
    for mine, theirs in zip(ours, run_code(README_EVALUATE)["result"], strict=True):
        assert mine.startswith(theirs)
    names = {path.name for path in tmp_path.iterdir()}
    assert all(name.startswith("mnist_classification_model") for name in names), names


def test_model_of_the_readmes_own_training_evaluates(end_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_code(README_TRAIN)
    with h5py.File("mnist_classification_model.h5") as file:
        assert "CosineDecay" not in file.attrs["training_config"], "the README's plain Adam"
    end = end_of(evaluate_model, *DIGITS)
    assert end.code == 0 and f"{run_code(README_EVALUATE)['result'][1]} (95 % interval" in end.out


@pytest.mark.slow
def test_scripts_work_with_lang_c_no_terminal_and_a_strange_folder(npz, tmp_path):
    folder = tmp_path / "mit Leerzeichen, é und 数"
    folder.mkdir()
    npz.rename(folder / "daten ü.npz")
    places = {"LANG": "C", "LC_ALL": "C", "HOME": str(folder)}
    data = ("--data", folder / "daten ü.npz")
    done = python(ROOT / "train_model.py", *data, "--epochs", "1", cwd=folder, **places)
    # Matplotlib tells of the fonts that it indexes in a new home.
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "Saved daten ü_classification_model.h5" in done.stdout
    done = python(ROOT / "evaluate_model.py", *data, cwd=folder, **places)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    model = "daten ü_classification_model"
    pictures = {f"{model}_{name}.png" for name in ("curves", "confusion_matrix", "mistakes")}
    assert {path.name for path in folder.glob("daten*")} == {"daten ü.npz", f"{model}.h5"} | pictures


# The command line


@pytest.mark.parametrize(
    "name, defaults",
    [
        ("load_data", ["(default: mnist)"]),
        ("build_model", []),
        (
            "train_model",
            ["(default: mnist)", "(default: 10)", "(default: 128)", "(default: 0)", "_classification_model.h5"],
        ),
        ("evaluate_model", ["(default: mnist)", "_classification_model.h5"]),
    ],
)
def test_help_states_the_defaults(name, defaults, end_of):
    end = end_of(__import__(name), "--help")
    assert (end.code, end.err) == (0, "")
    assert all(default in " ".join(end.out.split()) for default in defaults)


@pytest.mark.parametrize(
    "name, args, words",
    [
        ("train_model", ["--epochs", "1.5"], "--epochs: invalid int value: '1.5'"),
        ("train_model", ["--batch-size", "x"], "--batch-size: invalid int value: 'x'"),
        ("train_model", ["--fast"], "unrecognized arguments: --fast"),
        ("evaluate_model", ["--epochs", "3"], "unrecognized arguments"),
        ("evaluate_model", ["--draw", "a.png"], "--draw takes no pictures"),
        ("load_data", ["--seed", "3"], "unrecognized arguments"),
        ("build_model", ["x"], "unrecognized arguments"),
    ],
)
def test_what_cant_be_parsed_gets_the_usage_and_status_2(name, args, words, end_of):
    end = end_of(__import__(name), *args)
    assert end.code == 2 and end.err.startswith("usage: ") and words in end.err


@pytest.mark.parametrize(
    "name, args, words",
    [
        ("load_data", ["--data", "fashion"], "fashion: no such file or folder"),
        ("train_model", ["--data", "fashion"], "fashion: no such file or folder"),
        ("train_model", ["--data", "digits", "--epochs", "0"], "epochs must be a whole number of at least 1, not 0"),
        ("evaluate_model", ["--data", "fashion"], "fashion: no such file or folder; the data can be mnist"),
        ("evaluate_model", ["--data", "fashion", "--model", "m.h5"], "fashion: no such file or folder"),
        ("evaluate_model", ["--data", "digits", "--model", "a"], "the model's name must end in .h5, not a"),
        ("evaluate_model", ["--data", "digits"], "digits_classification_model.h5: no such model"),
        # For names of more than 255 bytes pathlib's is_file() raised OSError.
        ("evaluate_model", ["--data", "digits", "--model", f"{'m' * 300}.h5"], f"{'m' * 300}.h5: no such model"),
    ],
)
def test_what_wont_do_is_one_line_and_leaves_nothing_behind(name, args, words, end_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    end = end_of(__import__(name), *args)
    assert_one_line(end.code, f"error: {words}")
    assert (end.out, end.err) == ("", "") and not list(tmp_path.iterdir())


# The output


@posix
@pytest.mark.parametrize(
    "args",
    (
        pytest.param(("train_model.py", "--data", "small.npz", "--epochs", "1"), marks=pytest.mark.slow),
        ("load_data.py", "--data", "small.npz"),
        ("load_data.py", "--help"),
    ),
    ids=" ".join,
)
def test_a_closed_pipe_ends_quietly(args, npz, script, tmp_path):
    """As `... | head -1` closes it, but before the first line, so that each write fails."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = script(*args, stdout=pipe)
    assert (done.returncode, done.stderr) == (1, "")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_to_a_full_disk_is_one_line(npz, script):
    with open("/dev/full", "w") as full:
        done = script("load_data.py", "--data", npz, stdout=full)
    assert done.returncode == 1
    assert_one_line(done.stderr, "No space left on device")


def test_a_name_that_the_output_cant_encode_is_escaped(tmp_path):
    """As on Windows, where the output is redirected to a file."""
    code = """
from load_data import InputError, run
def main():
    print("Saved ü数.h5")
    raise InputError("ü数")
run(main)
"""
    done = python("-c", code, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (1, "Saved \\xfc\\u6570.h5\n")
    assert done.stderr == "error: \\xfc\\u6570\n"


def test_a_notebooks_output_will_do(monkeypatch):
    """What `%run load_data.py` prints to is no file, and has no encoding that could be changed."""
    output = io.StringIO()
    monkeypatch.setattr("sys.stdout", output)
    load_data.run(lambda: print("done"))
    assert output.getvalue() == "done\n"


# A quiet start. TensorFlow starts once in a process, so these have processes of their own.

QUIET = {"TF_CPP_MIN_LOG_LEVEL": None}


def test_the_start_is_quiet_and_what_comes_after_it_is_not(tmp_path):
    """Nor does its setting stay in the environment of the user's other processes; and Keras runs on TensorFlow."""
    code = """
import os, sys
from build_model import keras
print("after", file=sys.stderr, flush=True)
os.write(2, b"later")
print(keras.backend.backend(), keras.config.image_data_format(), "TF_CPP_MIN_LOG_LEVEL" in os.environ)
"""
    done = python("-c", code, cwd=tmp_path, KERAS_BACKEND="jax", **QUIET)
    assert (done.returncode, done.stderr) == (0, "after\nlater")
    assert done.stdout.split() == ["tensorflow", "channels_last", "False"]


@pytest.mark.parametrize("level, shown", [(None, ""), ("0", "chatter"), ("3", "chatter")])
def test_a_setting_of_the_users_own_shows_everything(level, shown, monkeypatch, capfd):
    if level is None:
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    else:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    with load_data.quiet_start():
        os.write(2, b"chatter")
    assert capfd.readouterr().err == shown and os.environ.get("TF_CPP_MIN_LOG_LEVEL") == level


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what TensorFlow prints on its start was seen on Linux")
def test_tensorflows_own_lines_can_be_shown(tmp_path):
    """Which they are, depends on the machine; without the setting there are none (see above)."""
    done = python("-c", "import build_model", cwd=tmp_path, TF_CPP_MIN_LOG_LEVEL="0")
    assert done.returncode == 0 and done.stderr


def test_a_start_that_fails_shows_what_was_held_back(tmp_path):
    """Here Keras is a module that says something, as TensorFlow does, and can't be imported."""
    (tmp_path / "keras.py").write_text("import os; os.write(2, b'chatter\\n')\nraise ImportError('no such library')")
    done = python("-c", "import sys; sys.path.insert(0, ''); import build_model", cwd=tmp_path, **QUIET)
    assert done.returncode == 1
    assert done.stderr.startswith("chatter\nTraceback") and "ImportError: no such library" in done.stderr


@posix
@pytest.mark.parametrize(
    "stream, args",
    [(1, ("load_data.py", "--data", "small.npz")), pytest.param(2, ("build_model.py",), marks=pytest.mark.slow)],
)
def test_a_closed_stream_is_no_failure(stream, args, npz, tmp_path):
    """As `>&-` closes stdout, and `2>&-` stderr."""
    code = f"import os, sys; os.close({stream}); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    done = python("-c", code, ROOT / args[0], *args[1:], cwd=tmp_path, **QUIET)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("93,322" in done.stdout) == (stream == 2)


# Windows


@posix
@pytest.mark.slow
def test_the_suite_can_be_collected_without_posixs_modules(tmp_path):
    """A stand-in for Windows, which has none of these modules and functions."""
    code = """
import os, sys
for name in ("resource", "fcntl", "pwd", "grp", "termios", "pty"):
    sys.modules[name] = None
for name in ("fork", "geteuid", "getuid", "mkfifo"):
    delattr(os, name)
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider"]))
"""
    done = python("-c", code, cwd=ROOT)
    assert done.returncode == 0 and "test_scripts.py" in done.stdout, done.stdout[-2000:] + done.stderr
