"""Faults to survive: after kills, a full disk and Ctrl-C, the model is the old or the new one, whole."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import keras
import pytest
from conftest import ROOT, assert_one_line, failing, posix, python

import build_model
import train_model

OLD = b"the old model"
TRAIN = ("--data", "small.npz", "--epochs", "1", "--model", "m.h5", "--no-augment")


@pytest.fixture
def here(tmp_path, npz, monkeypatch):
    """A current folder with the data set small.npz and, as m.h5, an old model."""
    monkeypatch.chdir(tmp_path)
    Path("m.h5").write_bytes(OLD)
    return tmp_path


def assert_untouched():
    """Assert that the old model is there, and no file of a run that failed."""
    assert Path("m.h5").read_bytes() == OLD
    assert sorted(os.listdir()) == ["m.h5", "small.npz"]


never = failing(AssertionError("it went on"))
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def test_a_model_is_whole_and_on_the_disk_before_it_takes_its_name(here, small_network, monkeypatch):
    """Else a power cut could leave an empty file under the good name."""
    synced, moved = [], []
    real_sync, real_replace = os.fsync, os.replace
    seen = lambda file: (os.stat(file).st_ino, os.stat(file).st_size)
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(seen(file)) or real_sync(file))
    monkeypatch.setattr(os, "replace", lambda a, b: moved.append(seen(a)) or real_replace(a, b))
    train_model.train_model("small.npz", epochs=1, model="m.h5")
    assert synced == moved and synced[0][1] == Path("m.h5").stat().st_size > 10_000
    assert build_model.load_model(model="m.h5")
    assert sorted(os.listdir()) == ["m.h5", "m_curves.png", "small.npz"]


@posix
@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_model(here):
    """A process saves models over and over, until it is killed: eight times, at random moments."""
    code = "import conftest, build_model; network = conftest.build_small_network()\n"
    code += "while True: build_model.save_model(network, 'm.h5')"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    for seed in range(8):
        command = [sys.executable, "-u", "-c", code]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
        process.stdout.readline()  # the first is saved
        time.sleep(random.Random(seed).uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert build_model.load_model(model="m.h5")


# The limit is set in a process of its own when the saving begins: it stands for the disk, and
# HDF5 must also end well after it failed to write. SIGXFSZ is ignored by Python.
FULL_DISK = """
import resource, sys, train_model
from load_data import run
real, limit = train_model.save_model, int(sys.argv.pop())
def save_model(*args):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    real(*args)
train_model.save_model = save_model
run(train_model.main)
"""


@posix
@pytest.mark.slow
def test_a_full_disk_spares_the_old_model(here):
    """Once HDF5 has written a part, it can end Python by a segmentation fault: it must not come so far."""
    done = python("-c", FULL_DISK, *TRAIN, 150_000, cwd=here)
    assert done.returncode == 1
    assert_one_line(done.stderr, "m.h5: could not be saved")
    assert_untouched()


def test_the_space_asked_for_is_enough(tmp_path, monkeypatch):
    """HDF5 then never asks the disk for more."""
    asked, real = [], keras.Model.save
    monkeypatch.setattr(keras.Model, "save", lambda self, path: asked.append(path.stat().st_size) or real(self, path))
    build_model.save_model(build_model.build_model(), tmp_path / "a.h5")
    assert (tmp_path / "a.h5").stat().st_size < asked[0]


@pytest.mark.parametrize(
    "place, name, error",
    [
        (Path, "write_bytes", NO_SPACE),
        (keras.Model, "save", NO_SPACE),
        (os, "fsync", OSError(errno.EIO, "Input/output error")),
        (os, "replace", PermissionError(errno.EPERM, "Operation not permitted", "a", None, "b")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_save_that_fails_is_one_line(place, name, error, here, small_network, monkeypatch, end_of):
    monkeypatch.setattr(place, name, failing(error))
    assert_one_line(end_of(train_model, *TRAIN).code, f"m.h5: could not be saved ({error.strerror})")
    assert_untouched()


def test_a_picture_that_cant_be_saved_is_one_line_and_spares_the_model(here, small_network, end_of):
    Path("m_curves.png").mkdir()
    end = end_of(train_model, *TRAIN)
    assert_one_line(end.code, "m_curves.png: could not be saved (Is a directory)")
    assert "Saved m.h5" in end.out
    assert build_model.load_model(model="m.h5")


# Output that can't be written


def test_output_that_cant_be_written_is_said_before_training(here, monkeypatch, end_of):
    """By creating a file: os.access says yes to root, and on a read-only share."""
    Path("folder.h5").mkdir()
    monkeypatch.setattr(train_model, "load_data", never)
    for model in ("missing/m.h5", "small.npz/m.h5", "folder.h5", f"{'m' * 300}.h5"):
        end = end_of(train_model, "--data", "small.npz", "--model", model)
        assert_one_line(end.code, f"error: {Path(model)}: can't be written (")
        assert "None" not in end.code and sorted(os.listdir()) == ["folder.h5", "m.h5", "small.npz"]
    monkeypatch.setattr("tempfile.NamedTemporaryFile", failing(OSError(errno.EROFS, "Read-only file system")))
    assert_one_line(end_of(train_model, *TRAIN).code, "m.h5: can't be written (Read-only file system)")
    assert Path("m.h5").read_bytes() == OLD and sorted(os.listdir()) == ["folder.h5", "m.h5", "small.npz"]


# Ctrl-C


def interrupt(*args, **kwargs):
    """Do what Ctrl-C does."""
    signal.raise_signal(signal.SIGINT)
    time.sleep(60)  # the signal ends it at once
    pytest.fail("no KeyboardInterrupt came")


@pytest.fixture(autouse=True)
def ctrl_c_counts():
    """A background job of a shell starts with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


PHASES = {
    "training": (keras.callbacks.TerminateOnNaN, "on_train_batch_end"),
    "saving": (h5py.Group, "create_dataset"),  # in the middle of the file
    "renaming": (os, "replace"),
}


@posix
@pytest.mark.slow
def test_ctrl_c_from_a_terminal_ends_the_process_with_130(here):
    """TensorFlow's threads are at work then, and must not print or hang at the exit."""
    command = [sys.executable, ROOT / "train_model.py", "--data", "digits", "--epochs", "1000", "--model", "m.h5"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes)
    for line in process.stdout:
        if "val_loss" in line:  # the first epoch is over
            break
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=300)[1], process.returncode) == ("stopped\n", 130)
    assert_untouched()


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_ends_with_130_and_spares_the_model(phase, here, small_network, monkeypatch, end_of):
    monkeypatch.setattr(*PHASES[phase], interrupt)
    end = end_of(train_model, *TRAIN)
    assert (end.code, end.err) == (130, "stopped\n")
    assert_untouched()


def test_bugs_keep_their_traceback(here, monkeypatch, end_of):
    """An OSError too, if nothing says that the user can mend it."""
    for error in (ValueError("a bug"), OSError(errno.EBADF, "Bad file descriptor"), FileNotFoundError("a bug")):
        monkeypatch.setattr(train_model, "batches", failing(error))
        with pytest.raises(type(error)):
            end_of(train_model, *TRAIN)
        assert_untouched()
