"""The scripts as a user starts them: output, exit status, and what the seed README's own calls need."""

import signal
import subprocess
import sys

import h5py
import pytest
from conftest import ROOT, python

# What the seed README's two scripts do, with its calls; only the data is the digits.
README_CALLS = """
import load_data
load_data.load_data.__defaults__ = ("digits",)
from load_data import load_data
from build_model import build_model
X_train, y_train, X_test, y_test = load_data()
"""
README_TRAIN = (
    README_CALLS
    + """
model = build_model()
history = model.fit(X_train, y_train, epochs=2, validation_data=(X_test, y_test))
for name in ("accuracy", "val_accuracy", "loss", "val_loss"):
    assert len(history.history[name]) == 2
model.save("mnist_classification_model.h5")
"""
)
README_EVALUATE = (
    README_CALLS
    + """
from tensorflow.keras.models import load_model
from sklearn.metrics import classification_report, confusion_matrix
import numpy as np
model = load_model("mnist_classification_model.h5")
loss, accuracy = model.evaluate(X_test, y_test, verbose=0)
predicted = np.argmax(model.predict(X_test, verbose=0), axis=1)
true = np.argmax(y_test, axis=1)
classification_report(true, predicted)
assert confusion_matrix(true, predicted).trace() == round(accuracy * len(true))
print(f"Test loss: {loss:.4f}")
print(f"Test accuracy: {accuracy:.4f}")
"""
)


def test_train_then_evaluate_then_the_readmes_own_evaluate(script, tmp_path):
    trained = script(
        "train_model.py", "--data", "digits", "--epochs", "2", "--model", "mnist_classification_model.h5"
    )
    assert (trained.returncode, trained.stderr) == (0, ""), (
        "nothing on stderr: no warning, no start-up chatter"
    )
    lines = trained.stdout.splitlines()
    assert lines[0] == "Epoch 1/2" and lines[1].startswith("12/12 - ") and len(lines) == 6
    assert lines[4:] == ["Saved mnist_classification_model.h5", "Saved mnist_classification_model_curves.png"]
    evaluated = script("evaluate_model.py", "--data", "digits", "--model", "mnist_classification_model.h5")
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    ours = [line for line in evaluated.stdout.splitlines() if line.startswith("Test ")]
    assert len(ours) == 2
    for mine, theirs in zip(ours, python("-c", README_EVALUATE, cwd=tmp_path).splitlines()[-2:]):
        assert mine.startswith(theirs)
    stems = {path.name for path in tmp_path.iterdir()}
    assert all(name.startswith("mnist_classification_model") for name in stems), stems


def test_model_of_the_readmes_own_training_evaluates(script, tmp_path):
    python("-c", README_TRAIN, cwd=tmp_path)
    with h5py.File(tmp_path / "mnist_classification_model.h5") as file:
        assert "CosineDecay" not in file.attrs["training_config"], "the README's plain Adam"
    evaluated = script("evaluate_model.py", "--data", "digits", "--model", "mnist_classification_model.h5")
    assert evaluated.returncode == 0 and "Test accuracy: 0." in evaluated.stdout


@pytest.mark.parametrize("name", ["load_data", "build_model", "train_model", "evaluate_model"])
def test_help_states_the_defaults(name, monkeypatch, capsys):
    module = __import__(name)
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    defaults = {
        "load_data": ["(default: mnist)"],
        "build_model": [],
        "train_model": [
            "(default: mnist)",
            "(default: 10)",
            "(default: 128)",
            "(default: 0)",
            "_classification_model.h5",
        ],
        "evaluate_model": ["(default: mnist)", "_classification_model.h5"],
    }
    assert all(default in text for default in defaults[name])


@pytest.mark.parametrize(
    "name, args, words",
    [
        ("train_model", ["--epochs", "0"], "--epochs: invalid positive value: '0'"),
        ("train_model", ["--epochs", "1.5"], "--epochs: invalid positive value: '1.5'"),
        ("train_model", ["--batch-size", "x"], "--batch-size: invalid positive value: 'x'"),
        ("train_model", ["--seed", "-1"], "--seed: invalid seed_number value: '-1'"),
        ("train_model", ["--seed", str(2**32)], "invalid seed_number value"),
        ("train_model", ["--model", "a.keras"], "--model: invalid h5_file value: 'a.keras'"),
        ("train_model", ["--fast"], "unrecognized arguments: --fast"),
        ("evaluate_model", ["--model", "a"], "--model: invalid h5_file value: 'a'"),
        ("evaluate_model", ["--epochs", "3"], "unrecognized arguments"),
        ("load_data", ["--seed", "3"], "unrecognized arguments"),
        ("build_model", ["x"], "unrecognized arguments"),
    ],
)
def test_wrong_flags_get_argparses_usage_line(name, args, words, monkeypatch, capsys):
    module = __import__(name)
    monkeypatch.setattr("sys.argv", [f"{name}.py", *args])
    with pytest.raises(SystemExit) as stop:
        module.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("usage: ") and words in error


@pytest.mark.parametrize(
    "name, args, words",
    [
        ("train_model.py", ["--data", "fashion"], "error: fashion: no such file or folder"),
        ("train_model.py", ["--data", "digits", "--model", "no/a.h5"], "error: no/a.h5: can't be written"),
        ("evaluate_model.py", ["--data", "digits"], "error: digits_classification_model.h5: no such model"),
    ],
)
def test_what_the_user_can_mend_ends_in_one_line_and_status_1(script, tmp_path, name, args, words):
    result = script(name, *args)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith(words) and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_interrupt_during_training_ends_with_130_and_the_old_model(tmp_path):
    (tmp_path / "digits_classification_model.h5").write_text("old")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train_model.py"), "--data", "digits", "--epochs", "1000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell starts with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stdout:
        if "val_loss" in line:  # the first epoch is over: training is under way
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert (process.returncode, error) == (130, "")
    assert [file.name for file in tmp_path.iterdir()] == ["digits_classification_model.h5"]
    assert (tmp_path / "digits_classification_model.h5").read_text() == "old"
