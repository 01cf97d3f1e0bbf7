"""What train_model() promises: its recipe, the same weights for the same seed, and values checked before it starts."""

import math
import re
import runpy
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from scipy import ndimage

import train_model as module
from load_data import InputError, load_data
from train_model import batches, distort, draw_history, model_path, one_cycle, steps_per_execution, train_model


def weights(path):
    return keras.models.load_model(path, compile=False).get_weights()


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one seed in each precision that this machine can train in: their models' paths and histories."""
    folder, runs = tmp_path_factory.mktemp("runs"), {}
    for bfloat16 in {False, module.BFLOAT16}:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "BFLOAT16", bfloat16)
            paths = [folder / f"{bfloat16}{number}.h5" for number in range(2)]
            runs[bfloat16] = [(path, train_model("digits", 2, 400, seed=1, model=path).history) for path in paths]
    return runs


def no_units():
    pytest.skip("needs Linux, a CPU with AMX or AVX512_BF16 and no GPU")


# A run


def test_digits_are_learnt(digits_model):
    _, history = digits_model
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert [len(values) for values in history.values()] == [5] * 4
    assert history["val_accuracy"][-1] > 0.85


def test_what_is_written_lies_beside_the_model_which_carries_the_readmes_loss_and_metrics(digits_model):
    path, _ = digits_model
    files = {file.name for file in path.parent.iterdir()}
    assert {"digits_classification_model.h5", "digits_classification_model_curves.png"} <= files
    assert all(name.startswith("digits_classification_model") for name in files), files
    model = keras.models.load_model(path)
    assert model.loss is keras.losses.categorical_crossentropy
    assert model.get_compile_config()["metrics"] == ["accuracy"]
    assert type(model.optimizer).__name__ == "Adam"


@pytest.mark.parametrize(
    "images, batch_size, epochs, seed",
    [(1, 128, 1, 0), (1, 1, 3, 0), (30, 128, 1, 0), (30, 7, 2, 0), (30, np.uint8(30), np.int64(1), 2**32 - 1)],
)
def test_any_number_of_images_trains(images, batch_size, epochs, seed, tmp_path, arrays, small_network):
    """NumPy's integers and the largest seed will do, too."""
    arrays["x_train"], arrays["y_train"] = arrays["x_train"][:images], arrays["y_train"][:images]
    np.savez(tmp_path / "few.npz", **arrays)
    train_model(tmp_path / "few.npz", epochs, batch_size, seed, model=str(tmp_path / "few.h5"))
    steps = keras.models.load_model(tmp_path / "few.h5").optimizer.iterations.numpy()
    assert steps == epochs * math.ceil(images / batch_size), "every image counts, the last batch too"
    assert all(np.isfinite(w).all() for w in weights(tmp_path / "few.h5"))


def test_callbacks_are_handed_on(npz, tmp_path, small_network):
    """As EarlyStopping does, this one ends the run; the model is then saved as usual."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            assert "val_loss" in logs
            self.model.stop_training = epoch == 1

    history = train_model(npz, epochs=9, model=tmp_path / "a.h5", callbacks=(callback for callback in [Stop()]))
    assert len(history.epoch) == 2 and (tmp_path / "a.h5").is_file()


def test_default_model_is_named_after_the_data(tmp_path, monkeypatch):
    for folder in ("kmnist.v2", "shared/mnist", "some"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "some/fashion.npz").touch()
    monkeypatch.chdir(tmp_path / "kmnist.v2")
    names = {
        "mnist": "mnist_classification_model.h5",
        "digits": "digits_classification_model.h5",
        "../shared/mnist": "mnist_classification_model.h5",
        "../some/fashion.npz": "fashion_classification_model.h5",
        ".": "kmnist.v2_classification_model.h5",
    }
    assert {data: str(model_path(data)) for data in names} == names


# Values are checked by the function, before anything is loaded or written


@pytest.mark.parametrize(
    "values, words",
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, not 0"),
        ({"epochs": 1.5}, "epochs must be a whole number of at least 1, not 1.5"),
        ({"epochs": "3"}, "epochs must be a whole number"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"batch_size": math.nan}, "batch_size must be a whole number"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295, not -1"),
        ({"seed": 2**32}, "seed must be a whole number from 0 to 4294967295, not 4294967296"),
        ({"model": "foo.keras"}, "the model's name must end in .h5, not foo.keras"),
        ({"model": "foo"}, "the model's name must end in .h5, not foo"),
        ({"model": ".h5"}, "the model's name must end in .h5, not .h5"),
        ({"data": "nowhere"}, "nowhere: no such file or folder"),
        ({"data": "nowhere", "model": "a.h5"}, "nowhere: no such file or folder"),
    ],
)
def test_values_that_wont_do_are_said_in_plain_words(values, words, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "build_model", lambda: pytest.fail("it went on"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(words)):
        train_model(**{"data": "digits", **values})
    assert not list(tmp_path.iterdir())


# Repeatable


@pytest.mark.parametrize("bfloat16", [False, True])
def test_same_seed_same_weights_bit_for_bit(bfloat16, runs):
    (path, history), (other_path, other_history) = runs.get(bfloat16) or no_units()
    assert same(weights(path), weights(other_path)) and history == other_history


def test_seed_and_augment_make_a_difference(npz, tmp_path, small_network):
    choices = {"usual": {}, "seed": {"seed": 1}, "plain": {"augment": False}, "plain too": {"augment": False}}
    for name, choice in choices.items():
        train_model(npz, epochs=1, model=tmp_path / f"{name}.h5", **choice)
    usual, seed, plain, plain_too = (weights(tmp_path / f"{name}.h5") for name in choices)
    assert not any(np.array_equal(a, b) for a, b in zip(usual, seed))
    assert not same(usual, plain) and same(plain, plain_too)


# Precision


@pytest.mark.parametrize(
    "flags, gpus, on",
    [
        ("fpu amx_bf16 amx_int8", [], True),
        ("fpu avx512_bf16", [], True),
        ("fpu avx512f amx_int8 avx512_bf16x", [], False),
        ("fpu amx_bf16 avx512_bf16", ["a GPU"], False),
        (None, [], False),
    ],
)
def test_bfloat16_is_used_where_the_cpu_has_units_for_it_and_no_gpu_is_there(flags, gpus, on, monkeypatch):
    """The script's constant, with another /proc/cpuinfo, or none, as on Windows and macOS."""
    monkeypatch.setattr(Path, "exists", lambda path: flags is not None)
    monkeypatch.setattr(Path, "read_text", lambda path: f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: gpus)
    assert runpy.run_path(str(ROOT / "train_model.py"))["BFLOAT16"] is on


def test_only_training_computes_in_bfloat16(npz, tmp_path, monkeypatch):
    """The last layer, whose probabilities need float32's digits, never does; and what is saved is float32."""
    monkeypatch.setattr(module, "BFLOAT16", True)
    training, validation, own = set(), set(), set()

    def note(precisions):
        precisions.add(tuple(layer.compute_dtype for layer in watch.model.layers))
        own.add(keras.config.dtype_policy().name)

    watch = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: note(training),
        on_train_batch_end=lambda batch, logs: note(training),
        on_test_batch_begin=lambda batch, logs: note(validation),
    )
    train_model(npz, epochs=2, model=tmp_path / "a.h5", callbacks=[watch])
    assert training == {("bfloat16",) * 8 + ("float32",)}
    assert validation == {("float32",) * 9}
    assert own == {"float32"}, "the process's own policy is left alone"
    saved = keras.models.load_model(tmp_path / "a.h5")
    assert {layer.dtype_policy.name for layer in saved.layers} == {"float32"}
    assert {weight.dtype for weight in saved.get_weights()} == {np.dtype("float32")}


@pytest.mark.parametrize("bfloat16", [False, True])
def test_validation_is_what_any_float32_evaluation_gives(bfloat16, runs):
    (path, history), _ = runs.get(bfloat16) or no_units()
    X, y = load_data("digits")[2:]
    probabilities = keras.models.load_model(path, compile=False)(X).numpy()
    assert probabilities.dtype == np.float32
    assert history["val_loss"][-1] == pytest.approx(-np.log(probabilities[y == 1]).mean(), rel=1e-5)
    assert history["val_accuracy"][-1] == pytest.approx((probabilities.argmax(1) == y.argmax(1)).mean(), abs=1e-6)


def test_bfloat16_changes_the_training(runs):
    ((bfloat16, _), _), ((float32, _), _) = runs.get(True) or no_units(), runs[False]
    assert not same(weights(bfloat16), weights(float32))


# Steps and their rate


@pytest.mark.parametrize(
    "epochs, steps, peak",
    [(1, 1, 8e-3), (2, 1, 6.498e-3), (1, 3, 8e-3), (3, 4, 5.754e-3), (1, 100, 8e-3), (10, 12, 4.010e-3)],
)
def test_learning_rate_climbs_for_a_fifth_then_falls_along_a_cosine_to_nothing(epochs, steps, peak):
    rate, total = one_cycle(epochs, steps), epochs * steps
    top = total // 5
    rates = [float(rate(step)) for step in range(total + 1)]
    climb = np.linspace(peak / 100, peak, top, endpoint=False)
    fall = peak * (1 + np.cos(np.linspace(0, np.pi, total - top + 1))) / 2
    assert rates == pytest.approx(np.append(climb, fall), rel=1e-3, abs=1e-9)
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) < 0).all()
    assert min(rates[:-1]) > 0, "no step is wasted"


@pytest.mark.parametrize("steps, at_a_time", [(469, 7), (12, 6), (10, 10), (1, 1), (13, 1), (100, 10), (121, 1)])
def test_the_steps_at_a_time_divide_the_epochs_steps(steps, at_a_time):
    assert steps_per_execution(steps) == at_a_time


def test_the_progress_bar_does_not_run_past_its_end(npz, tmp_path, small_network, monkeypatch, capsys):
    monkeypatch.setattr(module, "progress", lambda: 1)
    at_a_time = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: at_a_time.append(note.model.steps_per_execution))
    train_model(npz, epochs=1, batch_size=5, model=tmp_path / "a.h5", callbacks=[note])
    shown = [int(step) for step in re.findall(r"(\d+)/6\b", capsys.readouterr().out)]
    assert max(shown) == 6 and at_a_time == [6]


# Batches of images


def noise(n):
    """Return images of noise, and labels that are their indices."""
    return np.random.default_rng(0).random((n, 28, 28, 1), np.float32), np.arange(n)


def test_each_epoch_holds_every_image_once_in_a_new_order_with_a_seed():
    X, y = noise(10)
    epochs = []
    for dataset in [batches(X, y, 4, seed=0)] * 3 + [batches(X, y, 4)]:
        images, labels = zip(*dataset.as_numpy_iterator())
        assert [len(batch) for batch in labels] == [4, 4, 2]
        order = np.concatenate(labels)
        assert np.array_equal(np.concatenate(images), X[order])
        epochs.append(order.tolist())
    *shuffled, kept = epochs
    assert all(sorted(order) == kept == list(range(10)) for order in shuffled)
    assert shuffled[0] != shuffled[1] != shuffled[2] != shuffled[0]


def augmented(n, seed, epochs):
    """Return the images of `noise` as each of the epochs has them, distorted, in the order of their labels."""
    batch = batches(*noise(n), n, seed, augment=True)
    return [images[labels.argsort()] for _ in range(epochs) for images, labels in batch.as_numpy_iterator()]


@pytest.mark.parametrize("n", [1, 4])
def test_distortions_are_new_in_each_epoch_and_repeat_with_the_seed(n):
    """One image alone is always distorted; of several it also varies which ones are."""
    first, second = augmented(n, seed=5, epochs=2)
    assert not np.array_equal(first, second)
    assert same((first, second), augmented(n, seed=5, epochs=2))
    assert not np.array_equal(first, augmented(n, seed=6, epochs=1)[0])


@pytest.mark.parametrize("n", [1, 2, 7])
def test_half_of_a_batch_is_distorted_others_in_each_epoch(n):
    distorted = (augmented(n, seed=0, epochs=10) != noise(n)[0]).any(axis=(2, 3, 4))  # (epochs, n)
    assert (distorted.sum(axis=1) == math.ceil(n / 2)).all()
    assert distorted.any(axis=0).all(), "each image in some epoch"


def test_distort_agrees_with_scipy():
    """SciPy, given the same draws, makes the same pictures."""
    images = ndimage.gaussian_filter(np.random.default_rng(0).random((6, 28, 28)), (0, 2, 2)).astype(np.float32)
    seed = tf.constant([3, 4], tf.int64)
    got = distort(tf.constant(images[..., np.newaxis]), seed).numpy()[..., 0]
    corners = np.array([[0, 0], [27, 0], [0, 27], [27, 27]])
    shifts = tf.random.stateless_uniform((6, 4, 2), seed, -4.0, 4.0).numpy()
    row, column = np.mgrid[:28, :28]
    for image, result, moved in zip(images, got, corners + shifts):
        equations = []  # two for each corner: a projection takes (x, y), in the result, to (u, v), in the image
        for (x, y), (u, v) in zip(moved, corners):
            equations.append([x, y, 1, 0, 0, 0, -u * x, -u * y, -u])
            equations.append([0, 0, 0, x, y, 1, -v * x, -v * y, -v])
        projection = np.linalg.svd(equations)[2][-1].reshape(3, 3)  # their solution, up to a factor
        x, y, w = np.tensordot(projection, np.stack([column, row, np.ones((28, 28))]), 1)
        expected = ndimage.map_coordinates(image, [y / w, x / w], order=1, mode="grid-constant")
        assert np.abs(result - expected).max() < 1e-4


# Curves


@pytest.mark.parametrize("epochs", [1, 2, 10, 40])
def test_curves_are_the_readmes_two_plots(epochs):
    """Their axis counts epochs in whole numbers from 1 to the last; a picture of one epoch has its 1."""
    names = ("accuracy", "val_accuracy", "loss", "val_loss")
    history = dict(zip(names, np.random.default_rng(0).random((4, epochs)).tolist()))
    figure = draw_history(history)
    figure.canvas.draw()
    for ax, name, title in zip(figure.axes, ("accuracy", "loss"), ("Accuracy", "Loss"), strict=True):
        assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == (f"Model {name}", "Epoch", title)
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Train", "Test"]
        train, test = ax.get_lines()
        assert train.get_ydata().tolist() == history[name] and test.get_ydata().tolist() == history[f"val_{name}"]
        numbers = list(range(1, epochs + 1))
        assert train.get_xdata().tolist() == test.get_xdata().tolist() == numbers
        left, right = ax.get_xlim()
        ticks = [tick for tick in ax.get_xticks() if left <= tick <= right]
        assert ticks and set(ticks) <= set(numbers), ticks
    plt.close(figure)
