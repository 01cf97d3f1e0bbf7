"""The scripts as a user starts them: output, exit status, a quiet start, and the original README's own calls."""

import io
import json
import os
import re

import keras
import numpy as np
import pytest
from conftest import ROOT, assert_one_line, failing, posix, python

import evaluate_model
import load_data
from train_model import train_model

# What the original README's two scripts do, by its calls; only the data is the digits.
README_TRAIN = """
from load_data import load_data
from build_model import build_model
X_train, y_train, X_test, y_test = load_data("digits")
model = build_model()
history = model.fit(X_train, y_train, epochs=1, validation_data=(X_test, y_test), verbose=0)
for name in ("accuracy", "val_accuracy", "loss", "val_loss"):
    assert len(history.history[name]) == 1
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


def test_train_then_evaluate_then_the_readmes_own_evaluate(script, end_of, tmp_path, monkeypatch):
    """Nothing on stderr: no warning, no chatter of the start. A user's own settings of Keras change nothing."""
    monkeypatch.chdir(tmp_path)
    settings = {"floatx": "float16", "epsilon": 1e-7, "backend": "jax", "image_data_format": "channels_first"}
    (tmp_path / "home").mkdir()
    (tmp_path / "home/keras.json").write_text(json.dumps(settings))
    odd = {"KERAS_HOME": str(tmp_path / "home"), "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": None}
    trained = script("train_model.py", *DIGITS, "--epochs", "2", **odd)
    assert (trained.returncode, trained.stderr) == (0, "")
    train_model("digits", epochs=2, model="home/usual.h5")
    names = ("mnist_classification_model.h5", "home/usual.h5")
    odd, usual = (keras.models.load_model(name).get_weights() for name in names)
    assert all(np.array_equal(a, b) and a.dtype == np.float32 for a, b in zip(odd, usual, strict=True)), "bit for bit"
    lines = trained.stdout.splitlines()
    assert lines[0] == "Epoch 1/2" and lines[1].startswith("12/12 - ") and len(lines) == 6, "a line per epoch"
    assert lines[4:] == ["Saved mnist_classification_model.h5", "Saved mnist_classification_model_curves.png"]
    evaluated = end_of(evaluate_model, *DIGITS)
    assert (evaluated.code, evaluated.err) == (0, "")
    ours = [line for line in evaluated.out.splitlines() if line.startswith("Test ")]
    for mine, theirs in zip(ours, run_code(README_EVALUATE)["result"], strict=True):
        assert mine.startswith(theirs)
    names = {path.name for path in tmp_path.iterdir()}
    pictures = {f"mnist_classification_model_{name}.png" for name in ("curves", "confusion_matrix", "mistakes")}
    assert names == {"home", "mnist_classification_model.h5", *pictures}


def test_model_of_the_readmes_own_training_evaluates(end_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_code(README_TRAIN)
    end = end_of(evaluate_model, *DIGITS)
    assert end.code == 0 and f"{run_code(README_EVALUATE)['result'][1]} (95 % interval" in end.out


# The command line


@pytest.mark.parametrize(
    "name, args, words",
    [
        ("train_model", "--epochs 1.5", "usage: .*--epochs: invalid int value: '1.5'"),
        ("evaluate_model", "--epochs 3", "usage: .*unrecognized arguments"),
        ("evaluate_model", "--draw a.png", "usage: .*--draw takes no pictures"),
        ("build_model", "x", "usage: .*unrecognized arguments"),
        ("load_data", "--data fashion", "fashion: no such file or folder"),
        ("train_model", "--data digits --epochs 0", "epochs must be a whole number from 1"),
        ("evaluate_model", "--data digits", "digits_classification_model.h5: no such model; train it first"),
        ("evaluate_model", "", "mnist_classification_model.h5: no such model"),  # and not: could not be downloaded
    ],
)
def test_what_wont_do_is_said_and_leaves_nothing_behind(name, args, words, end_of, tmp_path, monkeypatch):
    """What can't be parsed gets the usage and status 2, all else one line and status 1."""
    monkeypatch.chdir(tmp_path)
    code, out, err = end_of(__import__(name), *args.split())
    assert out == "" and not list(tmp_path.iterdir())
    if words.startswith("usage: "):
        assert code == 2 and re.match(words, err, re.DOTALL)
    else:
        assert_one_line(code, f"error: {words}")
        assert err == ""


# The output


@posix
def test_a_closed_pipe_ends_quietly(npz, script):
    """As `... | head -1` closes it, but before the first line, so that each write fails."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = script("load_data.py", "--data", npz, stdout=pipe)
    assert (done.returncode, done.stderr) == (1, "")


def test_what_a_terminal_cant_show_is_taken_out_or_escaped(monkeypatch):
    """As on Windows, where the output is redirected to a file."""
    assert load_data.one_line("a\nb\x1b[31m\tc") == "a b [31m c"
    assert len(load_data.one_line("x" * 5000)) <= 500
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert load_data.one_line("ü数.h5") == "\\xfc\\u6570.h5"
    with pytest.raises(SystemExit, match=r"^error: \\xfc\\u6570$"):
        load_data.run(failing(load_data.InputError("ü数")))


@posix
@pytest.mark.parametrize("stream", [1, 2])
def test_a_closed_stream_is_no_failure(stream, npz, tmp_path):
    """As `>&-` closes stdout, and `2>&-` stderr."""
    code = f"import os, sys; os.close({stream}); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    done = python("-c", code, ROOT / "load_data.py", "--data", npz, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("train images" in done.stdout) == (stream == 2)


@pytest.mark.parametrize("level, shown", [(None, ""), ("0", "chatter"), ("3", "chatter")])
def test_the_start_is_quiet_unless_the_user_wants_it_and_a_failure_is_shown(level, shown, monkeypatch, capfd):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level or "")
    if level is None:
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    with load_data.quiet_start():
        os.write(2, b"chatter")
    os.write(2, b"later")
    assert capfd.readouterr().err == f"{shown}later"
    with pytest.raises(ImportError), load_data.quiet_start():
        os.write(2, b"chatter")
        raise ImportError("no such library")
    os.write(2, b"a traceback")
    assert capfd.readouterr().err == f"{shown}a traceback"
