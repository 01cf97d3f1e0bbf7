"""Faults to survive: kills, a full disk, output that can't be written, a loss of NaN, Ctrl-C.

Through all of them the model file is the old one or the new one, whole, and the user gets
one line that says what failed.
"""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, assert_one_line, failing, posix, python

import evaluate_model
import train_model
from train_model import create_temporary, save_whole

OLD = b"the old model"
TRAIN = ("--data", "small.npz", "--epochs", "1", "--model", "m.h5", "--no-augment")
# How a process of a test's own begins: it will train a network that takes no time.
SMALL_NETWORK = "import conftest, train_model\ntrain_model.build_model = conftest.build_small_network\n"


# Helpers


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


def assert_whole(path):
    network, _ = evaluate_model.load_model(model=path)
    assert network.output_shape == (None, 10)


never = failing(AssertionError("it went on"))
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


# Files that appear whole or not at all


def write_new(temporary):
    temporary.write_text("new")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a [b].h5"
    path.write_text("old")

    def half(temporary):
        assert temporary.parent == tmp_path and temporary.name.startswith(".a [b].")
        temporary.write_text("half")
        assert path.read_text() == "old"
        1 / 0

    with pytest.raises(ZeroDivisionError):
        save_whole(path, half)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    save_whole(path, write_new)
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    """Else a power cut could leave an empty file under the good name."""
    path, existed, real = tmp_path / "a.h5", [], os.fsync

    def fsync(descriptor):
        existed.append(path.exists())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    save_whole(path, write_new)
    assert existed == [False] and path.read_text() == "new"


def test_two_threads_may_save_one_file_at_once(tmp_path):
    """Or two containers, where both processes have the same number: the one that ends last wins."""
    path, meet = tmp_path / "a.h5", threading.Barrier(2, timeout=20)

    def write(content, temporary):
        temporary.write_text(content)
        meet.wait()  # both have written
        assert temporary.read_text() == content
        meet.wait()  # both have looked

    writers = [partial(write, content) for content in ("first", "second")]
    with ThreadPoolExecutor() as threads:
        list(threads.map(save_whole, [path, path], writers))  # raises what they raise
    assert path.read_text() in ("first", "second") and list(tmp_path.iterdir()) == [path]


def test_leftovers_of_a_day_are_cleared(here):
    """A killed run's, but no other file's; and not those of a run that may still be under way.

    One that can't be cleared, as another user's in /tmp, is no failure; here it is a folder.
    """
    path = Path("m [1].h5")
    old, young, stuck, other = (create_temporary(path) for _ in range(4))
    stuck.unlink()
    stuck.mkdir()
    others = [other.rename(other.name.replace("m [1]", "m 1")), Path(".m [1].mine.h5")]
    others[1].touch()
    for file in (old, young, stuck, *others):
        written = time.time() - 3600 * (23 if file == young else 25)
        os.utime(file, (0, written))
    save_whole(path, write_new)
    assert path.read_text() == "new" and set(Path().glob(".m*")) == {young, stuck, *others}


@posix
def test_a_link_to_a_model_becomes_the_model(here, small_network, end_of):
    """What the link led to stays as it was."""
    Path("real.h5").write_bytes(OLD)
    Path("m.h5").unlink()
    Path("m.h5").symlink_to("real.h5")
    assert end_of(train_model, *TRAIN).code == 0
    assert_whole("m.h5")
    assert Path("real.h5").read_bytes() == OLD and not Path("m.h5").is_symlink()


# Kills

# One process imports the project and forks for each kill, before TensorFlow's first operation
# (afterwards a fork would hang). A child kills itself at its n-th call of a Python function or
# a C function. The first child counts the calls, in all and up to the start of the saving.
KILLS = """
import os, random, signal, sys
from pathlib import Path

def train(kill_at):
    calls = saving = 0

    def count(frame, event, arg):
        nonlocal calls, saving
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if not saving and frame.f_code is train_model.save_network.__code__:
            saving = calls

    sys.setprofile(count)
    train_model.train_model("small.npz", epochs=1, model="m.h5", augment=False, seed=kill_at)
    sys.setprofile(None)
    if not kill_at:
        Path("counts").write_text(f"{saving} {calls}")

def attempt(kill_at):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.dup2(2, 1)
            train(kill_at)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

assert attempt(0) == 0
saving, calls = map(int, Path("counts").read_text().split())
rng = random.Random(0)
# 10 moments of the whole run, 20 of the saving and what comes after it
moments = [rng.randrange(1, calls) for _ in range(10)] + [rng.randrange(saving, calls) for _ in range(20)]
for number, moment in enumerate(moments):
    print(attempt(moment), flush=True)
    os.link("m.h5", f"seen/{number}.h5")  # a later run replaces m.h5, not this file
"""


@posix
@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_model(here, small_network):
    """30 kills of a short run, 20 of them from the start of the saving on, at seeded random calls."""
    Path("seen").mkdir()
    done = python("-c", SMALL_NETWORK + KILLS, cwd=here)
    assert done.returncode == 0, done.stderr
    statuses = done.stdout.split()
    # Its threads may make a run a few calls shorter than the one that counted.
    assert len(statuses) == 30 and statuses.count("-9") >= 25
    seen = list(Path("seen").iterdir())
    for path in seen:
        assert_whole(path)
    # Some runs were killed before, some after the model took its name.
    assert len({path.read_bytes() for path in seen}) > 1

    leftovers = list(here.glob(".m*"))
    assert leftovers  # kills leave some: else this proves nothing
    for leftover in leftovers:
        os.utime(leftover, (0, 0))
    train_model.train_model("small.npz", epochs=1, model="m.h5", augment=False)
    assert not list(here.glob(".m*"))


# A full disk

# The limit is set in a process of its own when the saving begins: it stands for the disk, and
# HDF5 must also end well after it failed to write. SIGXFSZ is ignored by Python.
FULL_DISK = """
import resource, sys
from load_data import run
real, limit = train_model.save_network, int(sys.argv.pop())
def save_network(*args):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    real(*args)
train_model.save_network = save_network
run(train_model.main)
"""


@posix
@pytest.mark.slow
@pytest.mark.parametrize("network", (SMALL_NETWORK, "import train_model\n"), ids=("small", "real"))
@pytest.mark.parametrize("limit", (0, 50_000, 250_000))
def test_a_full_disk_spares_the_old_model(limit, network, here):
    """Once HDF5 has written a part, it can end Python by a segmentation fault: it must not come so far."""
    done = python("-c", network + FULL_DISK, *TRAIN, limit, cwd=here)
    assert done.returncode == 1
    assert_one_line(done.stderr, "m.h5: could not be saved")
    assert_untouched()


def test_the_space_asked_for_is_enough(tmp_path):
    """For the network with its optimizer after a step, as it is saved: HDF5 then never asks the disk for more."""
    network, asked = train_model.build_model(), []
    network.train_on_batch(np.zeros((1, 28, 28, 1)), np.eye(10)[:1])
    real = network.save
    network.save = lambda path: (asked.append(path.stat().st_size), real(path))
    train_model.save_network(network, tmp_path / "a.h5")
    assert (tmp_path / "a.h5").stat().st_size <= asked[0]


@pytest.mark.parametrize(
    "place, name, error",
    [
        (Path, "write_bytes", NO_SPACE),
        (keras.Model, "save", NO_SPACE),
        (os, "fsync", OSError(errno.EIO, "Input/output error")),
        # An old model that is immutable or another user's, in a folder that takes new files.
        (os, "replace", PermissionError(errno.EPERM, "Operation not permitted", "a", None, "b")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_save_that_fails_is_one_line(place, name, error, here, small_network, monkeypatch, end_of):
    monkeypatch.setattr(place, name, failing(error))
    assert_one_line(end_of(train_model, *TRAIN).code, f"m.h5: could not be saved ({error.strerror})")
    assert_untouched()


@pytest.mark.parametrize("error", (RuntimeError("a font that can't be read"), NO_SPACE))
def test_a_picture_that_fails_is_one_line_and_spares_the_model(error, here, small_network, monkeypatch, end_of):
    """And the old picture, if there is one."""
    Path("m_curves.png").write_bytes(OLD)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", failing(error))
    end = end_of(train_model, *TRAIN)
    assert_one_line(end.code, "m_curves.png: could not be", getattr(error, "strerror", None) or error)
    assert "Saved m.h5" in end.out and Path("m_curves.png").read_bytes() == OLD
    end = end_of(evaluate_model, "--data", "small.npz", "--model", "m.h5")
    assert_one_line(end.code, "m_confusion_matrix.png: could not be")
    assert_whole("m.h5")
    assert sorted(os.listdir()) == ["m.h5", "m_curves.png", "small.npz"]


def test_a_folder_in_the_pictures_place_is_one_line(here, small_network, end_of):
    Path("m_curves.png").mkdir()
    assert_one_line(end_of(train_model, *TRAIN).code, "m_curves.png: can't be written (it is a folder)")
    assert_whole("m.h5")


# Output that can't be written


@pytest.mark.parametrize(
    "model",
    (
        "missing/m.h5",
        "small.npz/m.h5",
        "folder.h5",
        f"{'m' * 300}.h5",
        *(pytest.param(model, marks=posix) for model in ("loop/m.h5", "/dev/null/m.h5", "closed/m.h5")),
    ),
    ids=lambda model: model[:12],
)
def test_output_that_cant_be_written_is_said_before_training(model, here, monkeypatch, end_of):
    Path("folder.h5").mkdir()
    if "loop" in model:
        Path("loop").symlink_to("loop")
    if "closed" in model:
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        Path("closed").mkdir(0o500)
    monkeypatch.setattr(train_model, "load_data", never)
    end = end_of(train_model, "--data", "small.npz", "--model", model)
    assert_one_line(end.code, f"error: {Path(model)}: can't be written (")
    assert "None" not in end.code


def test_a_folder_is_probed_by_creating_a_file(here, monkeypatch, end_of):
    """os.access says yes to root, and on a read-only share: here only the creation fails."""
    monkeypatch.setattr(Path, "touch", failing(OSError(errno.EROFS, "Read-only file system")))
    monkeypatch.setattr(train_model, "load_data", never)
    assert_one_line(end_of(train_model, *TRAIN).code, "m.h5: can't be written (Read-only file system)")
    assert_untouched()


# NaN


@pytest.mark.parametrize("value", (np.nan, np.inf, 1e38))
def test_a_loss_of_nan_ends_the_training(value, here, small_network, monkeypatch, end_of):
    def build():
        network = small_network()
        network.layers[-1].kernel.assign(np.resize(np.float32([value, -value]), (784, 10)))
        return network

    monkeypatch.setattr(train_model, "build_model", build)
    end = end_of(train_model, "--epochs", "50", *TRAIN[:2], *TRAIN[4:])
    assert_one_line(end.code, "loss became NaN or infinite in epoch 1", "m.h5")
    assert "Epoch 2/50" not in end.out
    assert_untouched()


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
    "building": (train_model, "build_model"),
    "training": (keras.callbacks.TerminateOnNaN, "on_train_batch_end"),
    "validation": (keras.callbacks.TerminateOnNaN, "on_test_begin"),
    "saving": (h5py.Group, "create_dataset"),  # in the middle of the file
    "renaming": (os, "replace"),
    "drawing": (train_model, "draw_history"),
    "picture": (train_model.plt.Figure, "savefig"),
    "showing": (train_model.plt, "show"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_ends_with_130_and_spares_the_model(phase, here, small_network, monkeypatch, end_of):
    monkeypatch.setattr(*PHASES[phase], interrupt)
    end = end_of(train_model, *TRAIN)
    assert end.code == 130
    assert end.err == ("stopped; m.h5 is as it was\n" if phase in ("training", "validation") else "stopped\n")
    if phase in ("drawing", "picture", "showing"):
        assert_whole("m.h5")
        assert sorted(os.listdir()) == ["m.h5", *["m_curves.png"] * (phase == "showing"), "small.npz"]
    else:
        assert_untouched()


@pytest.mark.parametrize(
    "phase",
    [(keras.models, "load_model"), (keras.Model, "predict"), (evaluate_model, "draw_confusion_matrix")],
    ids=lambda phase: phase[1],
)
def test_ctrl_c_ends_the_evaluation_with_130(phase, here, small_network, monkeypatch, end_of):
    small_network().save("m.h5")
    before = Path("m.h5").read_bytes()
    monkeypatch.setattr(*phase, interrupt)
    end = end_of(evaluate_model, "--data", "small.npz", "--model", "m.h5")
    assert (end.code, end.err) == (130, "stopped\n")
    assert Path("m.h5").read_bytes() == before


@posix
@pytest.mark.slow
def test_ctrl_c_from_a_terminal_ends_the_process_with_130(here):
    """TensorFlow's threads are at work then, and must not print or hang at the exit."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "train_model.py", "--data", "digits", "--epochs", "1000", "--model", "m.h5"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "val_loss" in line:  # the first epoch is over: training is under way
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert (process.returncode, error) == (130, "stopped; m.h5 is as it was\n")
    assert_untouched()


# Bugs, and windows


def test_bugs_keep_their_traceback(here, monkeypatch, end_of):
    """An OSError too, if nothing says that the user can mend it."""
    for error in (ValueError("a bug"), OSError(errno.EBADF, "Bad file descriptor"), FileNotFoundError("a bug")):
        monkeypatch.setattr(train_model, "batches", failing(error))
        with pytest.raises(type(error)):
            end_of(train_model, *TRAIN)
        assert_untouched()


@pytest.mark.slow
def test_no_display_is_no_failure(here):
    """Matplotlib falls back to drawing files where it may choose: nothing is shown, and all is saved."""
    hidden = {"DISPLAY": None, "WAYLAND_DISPLAY": None, "MPLBACKEND": None}
    done = python(ROOT / "train_model.py", *TRAIN, cwd=here, **hidden)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("m_curves.png").stat().st_size > 1000
    assert_whole("m.h5")
