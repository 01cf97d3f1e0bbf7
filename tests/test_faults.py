"""Faults to survive: kills, a full disk, a closed pipe, Ctrl-C, a broken download.

Through all of them the model file is the old one or the new one, whole, and the user gets
one line that says what failed.
"""

import errno
import hashlib
import http.server
import importlib.util
import io
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import evaluate_model
import load_data
import train_model
from load_data import run

ROOT = Path(__file__).resolve().parents[1]
OLD = b"the old model"


# Helpers


def tiny_arrays():
    """Return 20 training and 10 test images of noise, by Keras's names."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (20, 28, 28), np.uint8),
        "y_train": np.arange(20) % 10,
        "x_test": rng.integers(0, 256, (10, 28, 28), np.uint8),
        "y_test": np.arange(10),
    }


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A current folder with the data set tiny.npz and, as m.h5, an old model."""
    monkeypatch.chdir(tmp_path)
    np.savez("tiny.npz", **tiny_arrays())
    Path("m.h5").write_bytes(OLD)
    return tmp_path


@pytest.fixture
def small_network(monkeypatch):
    """Let train_model() train a network that takes no time."""

    def build():
        network = keras.Sequential(
            [keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(10, activation="softmax")]
        )
        # Run eagerly, one step takes less time than to build a graph for it.
        network.compile(
            optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"], run_eagerly=True
        )
        return network

    monkeypatch.setattr(train_model, "build_model", build)
    return build


def end_of(monkeypatch, *args, script=train_model):
    """Run a script's main() in this process as a script does; return the code that it ends with.

    That is a status, or the text of the one line that Python prints before status 1.
    """
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, args)])
    try:
        run(script.main)
    except SystemExit as stop:
        return stop.code
    return 0


TRAIN = ("--data", "tiny.npz", "--epochs", "1", "--model", "m.h5", "--no-augment")


def assert_line(code, *parts):
    """Assert that a script ended in one line, `error: ...`, that holds all the parts."""
    assert isinstance(code, str) and code.startswith("error: ") and len(code.splitlines()) == 1
    for part in parts:
        assert str(part) in code


def assert_untouched(folder=Path()):
    """Assert that the old model is there, and no file of a run that failed."""
    assert (folder / "m.h5").read_bytes() == OLD
    assert sorted(path.name for path in folder.iterdir()) == ["m.h5", "tiny.npz"]


def assert_whole(path):
    assert evaluate_model.load_model(Path(path)).output_shape == (None, 10)


def never(*args, **kwargs):
    pytest.fail("it went on")


def environment(**env):
    return os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"} | env


def run_script(*args, cwd, stdout=subprocess.PIPE, **env):
    """Run a script as a user does, with no terminal, and return the finished process."""
    return subprocess.run(
        [sys.executable, ROOT / args[0], *args[1:]],
        cwd=cwd, env=environment(**env), stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
        text=True, timeout=300, start_new_session=True,
    )  # fmt: skip


def run_code(code, *args, cwd):
    """Run Python code that drives the scripts from within, and return the finished process."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300
    )  # fmt: skip


# For processes of a test's own: train_model with a network that takes no time.
SMALL_NETWORK = """
import train_model
import keras
def build():
    layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    network = keras.Sequential(layers)
    network.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"], run_eagerly=True)
    return network
train_model.build_model = build
"""


# Kills

# One process imports the project and forks for each kill, before TensorFlow's first operation
# (afterwards a fork would hang). A child kills itself at its n-th call of a Python function or
# a C function. The first child counts the calls, in all and up to the start of the saving.
KILLS = (
    SMALL_NETWORK
    + """
import os, random, signal, sys

def train(kill_at, report):
    calls = 0
    start = [0]

    def count(frame, event, arg):
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if not start[0] and frame.f_code is train_model.save.__code__:
            start[0] = calls

    sys.setprofile(count)
    train_model.train_model("tiny.npz", epochs=1, model="m.h5", augment=False, seed=kill_at or 0)
    sys.setprofile(None)
    os.write(report, f"{start[0]} {calls}".encode())

def attempt(kill_at):
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.dup2(2, 1)
            train(kill_at, writer)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), os.read(reader, 100)

status, counts = attempt(0)
assert status == 0
saving, calls = map(int, counts.split())
rng = random.Random(0)
# 10 moments of the whole run, 20 of the saving and what comes after it
moments = [rng.randrange(1, calls) for _ in range(10)] + [rng.randrange(saving, calls) for _ in range(20)]
for number, moment in enumerate(moments):
    status, _ = attempt(moment)
    os.link("m.h5", f"seen/{number}.h5")  # a later run replaces m.h5, not this file
    print(status, flush=True)
"""
)


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_model(tiny, small_network):
    """30 kills of a short run, 20 of them from the start of the saving on, at seeded random calls."""
    Path("m.h5").unlink()
    Path("seen").mkdir()
    done = run_code(KILLS, cwd=tiny)
    assert done.returncode == 0, done.stderr
    statuses = done.stdout.split()
    # Its threads may make a run a few calls shorter than the one that counted.
    assert len(statuses) == 30 and statuses.count("-9") >= 25
    contents = {path.read_bytes() for path in Path("seen").iterdir()}
    assert len(contents) > 1  # some runs were killed before, some after the model took its name
    for content in contents:
        Path("copy.h5").write_bytes(content)
        assert_whole("copy.h5")

    leftovers = list(tiny.glob(".m*"))
    assert leftovers  # kills leave some: else this proves nothing
    for leftover in leftovers:
        os.utime(leftover, (0, 0))
    train_model.train_model("tiny.npz", epochs=1, model="m.h5", augment=False)
    assert not list(tiny.glob(".m*"))


def test_a_good_run_clears_only_old_leftovers_of_its_own(tiny, small_network):
    old, young, other = (Path(name) for name in (".m.4711.h5", ".m.4712.h5", ".mine.4713.h5"))
    for path in (old, young, other):
        path.touch()
    hours = 3600
    os.utime(old, (0, time.time() - 25 * hours))
    os.utime(young, (0, time.time() - 23 * hours))
    os.utime(other, (0, 0))
    train_model.train_model("tiny.npz", epochs=1, model="m.h5", augment=False)
    assert not old.exists() and young.exists() and other.exists()


def test_a_leftover_that_cant_be_cleared_is_no_failure(tiny, monkeypatch):
    """Another user's in /tmp, or one that another run has just cleared."""
    Path(".m.4711.h5").touch()
    os.utime(".m.4711.h5", (0, 0))
    real = Path.unlink

    def unlink(path, *args, **kwargs):
        if "4711" in path.name:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "unlink", unlink)
    with train_model.whole_file(Path("m.h5")) as temporary:
        temporary.write_bytes(b"new")
    assert Path("m.h5").read_bytes() == b"new"


# A full disk


# The limit is set in a process of its own when the saving begins: it stands for the disk, and
# HDF5 must also end well after it failed to write. SIGXFSZ is ignored by Python.
FULL_DISK = (
    SMALL_NETWORK
    + """
import resource, sys
from load_data import run
real, limit = train_model.save, int(sys.argv.pop())
def save(network, temporary, model):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    real(network, temporary, model)
train_model.save = save
run(train_model.main)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("limit", (0, 50_000, 100_000))
def test_a_full_disk_spares_the_old_model(limit, tiny):
    """FOUND: where HDF5 had written a part, Python died of a segmentation fault at its exit."""
    done = run_code(FULL_DISK, *TRAIN, limit, cwd=tiny)
    assert done.returncode == 1
    assert_line(done.stderr, "m.h5: could not be saved")
    assert_untouched()


@pytest.mark.slow
def test_a_full_disk_spares_the_old_picture(tiny, small_network, monkeypatch):
    """The model has been saved by then."""
    Path("m_curves.png").write_bytes(OLD)
    real, limits = train_model.draw_history, resource.getrlimit(resource.RLIMIT_FSIZE)

    def draw(history):
        figure = real(history)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        return figure

    monkeypatch.setattr(train_model, "draw_history", draw)
    try:
        code = end_of(monkeypatch, *TRAIN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_line(code, "m_curves.png: could not be drawn")
    assert Path("m_curves.png").read_bytes() == OLD
    assert_whole("m.h5")
    assert sorted(os.listdir()) == ["m.h5", "m_curves.png", "tiny.npz"]


def test_a_save_that_fails_is_one_line(tiny, small_network, monkeypatch):
    def fail(path, content):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    assert_line(end_of(monkeypatch, *TRAIN), "m.h5: could not be saved (No space left on device)")
    assert_untouched()


def test_a_model_that_cant_take_its_name_is_one_line(tiny, small_network, monkeypatch):
    """An old model that is immutable or another user's, in a folder that takes new files."""

    def fail(source, target):
        raise PermissionError(errno.EPERM, "Operation not permitted", str(source), None, str(target))

    monkeypatch.setattr(os, "replace", fail)
    assert_line(end_of(monkeypatch, *TRAIN), "m.h5")
    assert_untouched()


# Two at once


@pytest.mark.slow
def test_two_trainings_of_one_model_leave_one_whole_model(tiny):
    command = [sys.executable, ROOT / "train_model.py", *TRAIN]
    both = [
        subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [(process.communicate(timeout=300)[1], process.returncode) for process in both] == [(b"", 0)] * 2
    assert_whole("m.h5")
    assert sorted(os.listdir()) == ["m.h5", "m_curves.png", "tiny.npz"]


def test_trainings_that_interleave_do_not_mix(tiny, monkeypatch):
    path = Path("m.h5")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with train_model.whole_file(path) as first:
        first.write_bytes(b"first, the longer one")
        monkeypatch.setattr(os, "getpid", lambda: 2)
        with train_model.whole_file(path) as second:
            second.write_bytes(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first, the longer one"


# Output that can't be written


@pytest.mark.parametrize(
    "model",
    ("missing/m.h5", "tiny.npz/m.h5", "folder.h5", "loop/m.h5", f"{'m' * 300}.h5", "/proc/m.h5"),
    ids=lambda model: model[:12],
)
def test_output_that_cant_be_written_is_said_before_training(model, tiny, monkeypatch):
    Path("folder.h5").mkdir()
    Path("loop").symlink_to("loop")
    monkeypatch.setattr(train_model, "load_data", never)
    assert_line(
        end_of(monkeypatch, "--data", "tiny.npz", "--model", model), f"error: {model}: can't be written"
    )


def test_a_read_only_folder_is_said_before_training(tiny, monkeypatch):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    monkeypatch.setattr(train_model, "load_data", never)
    tiny.chmod(0o500)
    try:
        assert_line(end_of(monkeypatch, *TRAIN), "error: m.h5: can't be written")
    finally:
        tiny.chmod(0o700)


def test_a_folder_is_probed_by_creating_the_file(tiny, monkeypatch):
    """os.access says yes to root, and on a read-only share: here only the creation fails."""

    def touch(path, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", touch)
    monkeypatch.setattr(train_model, "load_data", never)
    assert_line(end_of(monkeypatch, *TRAIN), "error: m.h5: can't be written (Read-only file system)")
    assert_untouched()


@pytest.mark.parametrize("name", (".h5", "folder/.h5", "m.keras", "m"))
def test_a_name_that_keras_would_not_save_to_is_refused_by_argparse(name, tiny, monkeypatch, capsys):
    """`.h5` ends in .h5, but pathlib sees a name without a suffix, and Keras refuses it after the training."""
    monkeypatch.setattr(train_model, "load_data", never)
    Path("folder").mkdir()
    assert end_of(monkeypatch, "--data", "tiny.npz", "--model", name) == 2
    assert f"argument --model: invalid h5_file value: '{name}'" in capsys.readouterr().err


def test_a_link_to_a_model_is_trained_and_evaluated(tiny, small_network, monkeypatch):
    Path("elsewhere").mkdir()
    Path("elsewhere/real.h5").write_bytes(OLD)
    Path("m.h5").unlink()
    Path("m.h5").symlink_to("elsewhere/real.h5")
    assert end_of(monkeypatch, *TRAIN) == 0
    assert_whole("m.h5")


# NaN


@pytest.mark.parametrize("value", (np.nan, np.inf, 1e38))
def test_a_loss_of_nan_ends_the_training(value, tiny, small_network, monkeypatch, capsys):
    def build():
        network = small_network()
        network.layers[-1].kernel.assign(
            np.full((784, 10), value, np.float32) * np.resize([1, -1], (784, 10))
        )
        return network

    monkeypatch.setattr(train_model, "build_model", build)
    code = end_of(monkeypatch, "--epochs", "50", *TRAIN[:2], *TRAIN[4:])
    assert_line(code, "loss became NaN in epoch 1", "m.h5")
    assert_untouched()
    assert "Epoch 2/50" not in capsys.readouterr().out


# Ctrl-C


def interrupt(*args, **kwargs):
    """Do what Ctrl-C does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)  # the signal ends it at once
    pytest.fail("no KeyboardInterrupt came")


@pytest.fixture
def phases(monkeypatch):
    """Return a function that lays the interrupt into a phase of the training."""

    def at(phase):
        if phase == "download":
            monkeypatch.setattr("keras.src.datasets.mnist.get_file", interrupt)
        elif phase == "training":
            monkeypatch.setattr(
                keras.callbacks.TerminateOnNaN, "on_train_batch_end", interrupt, raising=False
            )
        elif phase == "validation":
            monkeypatch.setattr(keras.callbacks.TerminateOnNaN, "on_test_begin", interrupt, raising=False)
        elif phase == "saving":  # in the middle of the file
            monkeypatch.setattr(h5py.Group, "create_dataset", interrupt)
        elif phase == "renaming":
            monkeypatch.setattr(os, "replace", interrupt)
        elif phase == "plotting":
            monkeypatch.setattr(train_model, "draw_history", interrupt)
        elif phase == "picture":
            monkeypatch.setattr("matplotlib.figure.Figure.savefig", interrupt)
        elif phase == "showing":
            monkeypatch.setattr(train_model.plt, "show", interrupt)

    return at


@pytest.mark.parametrize(
    "phase", ("download", "training", "validation", "saving", "renaming", "plotting", "picture", "showing")
)
def test_ctrl_c_ends_with_130_and_spares_the_model(phase, phases, tiny, small_network, monkeypatch, capsys):
    phases(phase)
    assert end_of(monkeypatch, *TRAIN, *(("--data", "mnist") if phase == "download" else ())) == 130
    assert capsys.readouterr().err == ""
    if phase in ("plotting", "picture", "showing"):
        assert_whole("m.h5")
        assert sorted(os.listdir()) == ["m.h5", *["m_curves.png"] * (phase == "showing"), "tiny.npz"]
    else:
        assert_untouched()


@pytest.mark.parametrize("phase", ("loading", "predicting", "plotting"))
def test_ctrl_c_ends_the_evaluation_with_130(phase, tiny, small_network, monkeypatch, capsys):
    small_network().save("m.h5")
    if phase == "loading":
        monkeypatch.setattr(keras.models, "load_model", interrupt)
    elif phase == "predicting":
        monkeypatch.setattr(keras.Model, "predict", interrupt)
    else:
        monkeypatch.setattr(evaluate_model, "draw_confusion_matrix", interrupt)
    assert end_of(monkeypatch, "--data", "tiny.npz", "--model", "m.h5", script=evaluate_model) == 130
    assert capsys.readouterr().err == ""
    monkeypatch.undo()
    assert_whole(tiny / "m.h5")


CTRL_C = (
    SMALL_NETWORK
    + """
import os, signal
from load_data import run
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
keras.callbacks.TerminateOnNaN.on_train_batch_end = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGINT)
run(train_model.main)
"""
)


@pytest.mark.slow
def test_ctrl_c_in_training_ends_the_process_with_130(tiny):
    """TensorFlow's threads are at work then, and must not print or hang at the exit."""
    done = run_code(CTRL_C, *TRAIN, cwd=tiny)
    assert (done.returncode, done.stderr) == (130, "")
    assert_untouched()


# Output and places


def closed_pipe():
    """Return the writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    (
        ("train_model.py", *TRAIN),
        ("load_data.py", "--data", "digits"),
        ("build_model.py",),
        ("load_data.py", "--help"),
    ),
    ids=" ".join,
)
def test_a_closed_pipe_ends_quietly(args, tiny):
    """As `... | head -1` closes it, but before the first line, so that each write fails."""
    with closed_pipe() as pipe:
        done = run_script(*args, cwd=tiny, stdout=pipe)
    assert done.stderr == "" and done.returncode in (0, 1)
    if Path("m.h5").read_bytes() != OLD:
        assert_whole("m.h5")
    assert not list(tiny.glob(".m*"))


@pytest.mark.slow
def test_output_to_a_full_disk_is_one_line(tiny):
    with open("/dev/full", "w") as full:
        done = run_script("load_data.py", "--data", "digits", cwd=tiny, stdout=full)
    assert done.returncode == 1
    assert_line(done.stderr, "No space left on device")


@pytest.mark.slow
def test_scripts_work_with_lang_c_no_terminal_and_a_strange_folder(tmp_path):
    folder = tmp_path / "mit Leerzeichen, é und 数"
    folder.mkdir()
    np.savez(folder / "daten ü.npz", **tiny_arrays())
    places = {"LANG": "C", "LC_ALL": "C", "HOME": str(folder)}
    data = ("--data", str(folder / "daten ü.npz"))
    done = run_script("train_model.py", *data, "--epochs", "1", cwd=folder, **places)
    # Matplotlib tells of the fonts that it indexes in a new home.
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert "Saved daten ü_classification_model.h5" in done.stdout
    done = run_script("evaluate_model.py", *data, cwd=folder, **places)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    names = {path.name for path in folder.glob("daten*")}
    model = "daten ü_classification_model"
    pictures = {f"{model}_{name}.png" for name in ("curves", "confusion_matrix", "mistakes")}
    assert names == {"daten ü.npz", f"{model}.h5"} | pictures


# Plotting


@pytest.mark.slow
def test_an_unknown_backend_is_said_before_training(tiny):
    done = run_script("train_model.py", *TRAIN, cwd=tiny, MPLBACKEND="nonsense")
    assert done.returncode == 1 and done.stdout == ""
    assert_line(done.stderr, "nonsense")
    assert_untouched()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ("tkagg", "webagg", "module://missing"))
def test_a_backend_that_cant_run_spares_the_model(backend, tiny, monkeypatch):
    """Without a display, Tornado and such a module; some versions of matplotlib then fall back to Agg."""
    if backend == "webagg" and importlib.util.find_spec("tornado"):
        pytest.skip("Tornado is installed: WebAgg would run, and wait for a browser")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    done = run_script("train_model.py", *TRAIN, cwd=tiny, MPLBACKEND=backend)
    if done.returncode == 0:
        assert done.stderr == "" and Path("m_curves.png").stat().st_size > 1000
    else:
        assert done.returncode == 1
        assert_line(done.stderr, "m_curves.png: could not be drawn")
    assert_whole("m.h5")


@pytest.mark.parametrize(
    "error", (ImportError("no display"), OSError(errno.ENOSPC, "No space left on device"))
)
def test_a_picture_that_fails_is_one_line_after_the_model_is_saved(error, tiny, small_network, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(train_model.plt, "subplots", fail)
    assert_line(end_of(monkeypatch, *TRAIN), "m_curves.png: could not be drawn", str(error))
    assert_whole("m.h5")
    assert end_of(monkeypatch, *TRAIN[:2], *TRAIN[4:6], script=evaluate_model).startswith(
        "error: m_confusion_matrix.png: could"
    )


def test_a_picture_in_the_way_of_a_folder_is_one_line(tiny, small_network, monkeypatch):
    Path("m_curves.png").mkdir()
    assert_line(end_of(monkeypatch, *TRAIN), "m_curves.png: can't be written")
    assert_whole("m.h5")


def test_programming_errors_keep_their_traceback(tiny, monkeypatch):
    def bug(*args):
        raise ValueError("a bug")

    monkeypatch.setattr(train_model, "batches", bug)
    with pytest.raises(ValueError, match="a bug"):
        end_of(monkeypatch, *TRAIN)
    assert_untouched()


# The download


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server on loopback in MNIST's place, whose answer a test sets: `mirror.answer = ...`.

    Keras's own get_file() asks it, checks the hash and keeps the file in a cache of its own.
    """
    file = io.BytesIO()
    np.savez(file, **tiny_arrays())
    good = file.getvalue()
    state = types.SimpleNamespace(answer="good", asked=0, cache=tmp_path / "cache")
    state.cache.mkdir()
    release = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked += 1
            if state.answer == "silence":
                release.wait(60)
                return
            if isinstance(state.answer, int):
                self.send_error(state.answer)
                return
            self.send_response(200)
            length = len(good) * (2 if state.answer == "endless" else 1)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if state.answer == "stall":
                self.wfile.write(good[:1000])
                release.wait(60)
            elif state.answer == "break":
                self.wfile.write(good[: len(good) // 2])
            elif state.answer == "wrong":
                self.wfile.write(bytes(len(good)))
            elif state.answer == "page":
                self.wfile.write(b"<html>log in first</html>".ljust(len(good)))
            else:
                self.wfile.write(good)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def get_file(fname, origin, file_hash):
        assert origin.endswith("mnist.npz") and len(file_hash) == 64  # Keras asks for a check
        return keras.utils.get_file(
            fname,
            origin=f"http://127.0.0.1:{server.server_address[1]}/mnist.npz",
            file_hash=hashlib.sha256(good).hexdigest(),
            cache_dir=state.cache,
        )

    monkeypatch.setattr("keras.src.datasets.mnist.get_file", get_file)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # The project's limit of seconds, made short: only the silent answers wait for it.
    real = socket.setdefaulttimeout
    monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: real(seconds and min(seconds, 0.5)))
    yield state
    release.set()
    server.shutdown()
    server.server_close()


def assert_mnist_is_good():
    x_train, y_train, x_test, y_test = load_data.download_mnist()
    for name, array in zip(tiny_arrays(), (x_train, y_train, x_test, y_test)):
        assert (array == tiny_arrays()[name]).all()


@pytest.mark.parametrize("answer", (403, 404, 500, "break", "wrong", "page", "silence", "stall"))
def test_a_download_that_fails_is_one_line_and_leaves_no_damage(answer, mirror, monkeypatch):
    before = socket.getdefaulttimeout()
    mirror.answer = answer
    reason = {
        "break": "",
        "wrong": "corrupted",
        "page": "corrupted",
        "silence": "timed out",
        "stall": "timed out",
    }.get(answer, str(answer))
    line = end_of(monkeypatch, "--data", "mnist", script=load_data)
    assert_line(line, "MNIST could not be downloaded", reason, "--data PATH", "--data digits")
    assert socket.getdefaulttimeout() == before
    mirror.answer = "good"
    assert_mnist_is_good()
    assert mirror.asked == 2 and socket.getdefaulttimeout() == before
    assert_mnist_is_good()
    assert mirror.asked == 2  # the cached copy, once it is whole


def test_a_damaged_copy_in_the_cache_is_not_used(mirror):
    """What a kill in the download leaves, or a bad disk."""
    assert_mnist_is_good()
    (copy,) = (path for path in mirror.cache.rglob("*") if path.is_file())
    for damaged in (
        b"",
        copy.read_bytes()[:-100],
        copy.read_bytes()[:5000] + b"\xff" + copy.read_bytes()[5001:],
    ):
        copy.write_bytes(damaged)
        asked = mirror.asked
        assert_mnist_is_good()
        assert mirror.asked == asked + 1


def test_a_download_without_a_network_is_one_line(mirror, monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", fail)
    monkeypatch.setattr("http.client.socket.create_connection", fail)
    assert_line(
        end_of(monkeypatch, "--data", "mnist", script=load_data), "Name or service not known", "--data digits"
    )


def test_the_download_has_a_time_limit_of_seconds(monkeypatch):
    """Without one a silent host would hang the script for ever; afterwards it is as it was."""
    limits = []
    monkeypatch.setattr(
        keras.datasets.mnist,
        "load_data",
        lambda: limits.append(socket.getdefaulttimeout()) or ((0, 0), (0, 0)),
    )
    monkeypatch.setattr(socket, "_defaulttimeout", None, raising=False)
    load_data.download_mnist()
    assert limits[0] is not None and 1 <= limits[0] <= 60 and socket.getdefaulttimeout() is None


def test_a_cache_that_cant_be_written_is_one_line(mirror, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", fail)
    assert_line(
        end_of(monkeypatch, "--data", "mnist", script=load_data), "No space left on device", "--data digits"
    )
