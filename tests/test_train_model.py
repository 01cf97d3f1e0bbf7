"""The recipe: what is trained, in which order and at which rate, and that the same seed gives the same weights."""

import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

import train_model as module
from load_data import InputError, load_data
from train_model import batches, distort, draw_curves, one_cycle, steps_at_a_time, train_model


def weights(path):
    return keras.models.load_model(path, compile=False).get_weights()


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


class Watch(keras.callbacks.Callback):
    """Notes what `fit` was given, what each epoch's rate came to and what the layers compute in."""

    def __init__(self):
        super().__init__()
        self.rates, self.computed_in, self.policies = [], set(), set()

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))
        self.computed_in.add(tuple(layer.compute_dtype for layer in self.model.layers))
        self.policies.add(keras.config.dtype_policy().name)


def test_each_option_is_a_parameter_and_its_default_is_in_the_help(end_of, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "train_model", lambda **options: calls.append(options))
    words = " ".join(end_of(module, "--help").out.split())
    for default in ("mnist)", "(default: 10)", "(default: 128)", "(default: 0)", "_classification_model.h5"):
        assert default in words
    options = "--data digits --epochs 3 --batch-size 7 --seed 5 --model a.h5 --no-augment"
    assert end_of(module) == end_of(module, *options.split()) == (0, "", "")
    assert calls == [
        {"data": "mnist", "epochs": 10, "batch_size": 128, "seed": 0, "model": None, "augment": True},
        {"data": "digits", "epochs": 3, "batch_size": 7, "seed": 5, "model": "a.h5", "augment": False},
    ]


# A run


def test_digits_are_learnt(digits_model):
    """By the default recipe; 24 runs reached 0.973 to 0.990."""
    _, history = digits_model
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert [len(values) for values in history.values()] == [10] * 4
    assert history["val_accuracy"][-1] >= 0.965 and history["val_loss"][-1] < 0.15


def test_what_train_model_hands_to_fit(npz, tmp_path, small_network, monkeypatch):
    made, fitted = [], []
    real_fit, real_batches = keras.Model.fit, module.batches

    def fit(network, x, **options):
        fitted.append(options | {"steps": network.steps_per_execution})
        return real_fit(network, x, **options)

    monkeypatch.setattr(keras.Model, "fit", fit)
    monkeypatch.setattr(module, "batches", lambda *args, **off: made.append(args) or real_batches(*args, **off))
    watch = Watch()
    train_model(npz, epochs=3, batch_size=4, seed=9, model=tmp_path / "a.h5", augment=False, callbacks=watch)
    (options,) = fitted
    X_train, y_train, X_test, y_test = load_data(npz)
    (X, y, *rest), (X_val, y_val, *_) = made
    assert same((X, y), (X_train, y_train)) and rest == [4, 9, False]
    assert same((X_val, y_val), (X_test, y_test)) and options["validation_data"].cardinality() == 5
    assert options["epochs"] == 3 and options["verbose"] == 2
    rate = one_cycle(3, 8)  # 30 images in batches of 4: 8 steps an epoch
    # Keras tells the rate of the step to come.
    assert watch.rates == pytest.approx([float(rate(step)) for step in range(1, 25)], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("images, batch_size, seed", [(1, 128, 2**32 - 1), (30, np.uint8(7), np.uint8(3))])
def test_any_number_of_images_trains(images, batch_size, seed, tmp_path, arrays, small_network):
    """NumPy's integers and the largest seed will do, too."""
    arrays["x_train"], arrays["y_train"] = arrays["x_train"][:images], arrays["y_train"][:images]
    np.savez(tmp_path / "few.npz", **arrays)
    watch = Watch()
    one = type(batch_size)(1)
    train_model(tmp_path / "few.npz", one, batch_size, seed, tmp_path / "few.h5", callbacks=watch)
    assert len(watch.rates) == math.ceil(images / batch_size), "every image counts, the last batch too"


def test_callbacks_are_what_fit_takes(npz, tmp_path, small_network):
    """None, one or several. As EarlyStopping does, one of these ends the run; the model is then saved as usual."""
    stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: setattr(stop.model, "stop_training", True))
    for number, callbacks in enumerate((None, stop, [Watch(), stop])):
        path = tmp_path / f"{number}.h5"
        assert len(train_model(npz, epochs=2, model=path, callbacks=callbacks).epoch) == (2 if number == 0 else 1)
        assert path.is_file()


@pytest.mark.parametrize("name", ["loss", "val_loss"])
def test_a_loss_of_nan_saves_nothing(name, npz, tmp_path, small_network):
    """In training, or only in the validation after the last step."""
    poison = lambda *_, **__: callback.model.layers[-1].bias.assign([np.nan] * 10)
    event = {"loss": "on_train_batch_begin", "val_loss": "on_test_begin"}[name]
    callback = keras.callbacks.LambdaCallback(**{event: poison})
    with pytest.raises(InputError, match="the loss became NaN or infinite in epoch 1; .*a.h5 is as it was"):
        train_model(npz, epochs=1, batch_size=15, model=tmp_path / "a.h5", callbacks=callback)
    assert not (tmp_path / "a.h5").exists()


def test_numbers_that_wont_do_are_said_before_the_data_is_loaded(monkeypatch):
    monkeypatch.setattr(module, "load_data", lambda data: pytest.fail("it went on"))
    wrong = ("epochs", 0, 1), ("epochs", 1.5, 1), ("batch_size", "3", 1), ("seed", -1, 0), ("seed", 2**32, 0)
    for option, value, least in wrong:
        words = f"^{option} must be a whole number from {least} to 4294967295, not {value}$"
        with pytest.raises(InputError, match=words):
            train_model("digits", **{option: value})


def test_the_seed_makes_the_weights_the_order_and_the_distortions(npz, tmp_path, small_network):
    """With the same one, all is the same; test_scripts.py tries the real network."""
    choices = {"usual": {}, "again": {}, "seed": {"seed": 1}, "plain": {"augment": False}}
    first = []
    note = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: first.append(note.model.get_weights()))
    for name, choice in choices.items():
        train_model(npz, epochs=2, batch_size=7, model=tmp_path / f"{name}.h5", callbacks=note, **choice)
    usual, again, seed, plain = (weights(tmp_path / f"{name}.h5") for name in choices)
    assert same(first[0], first[1]) and not same(first[0], first[2]) and same(first[0], first[3])
    assert same(usual, again) and not same(usual, plain)
    assert not any(np.array_equal(a, b) for a, b in zip(usual, seed))


def test_bfloat16_is_used_where_it_is_faster(monkeypatch):
    """With another /proc/cpuinfo, or none, as on Windows and macOS."""
    for flags, gpus, on in [
        ("fpu amx_bf16 amx_int8", [], True),
        ("fpu avx512_bf16", [], True),
        ("fpu avx512f amx_int8 avx512_bf16x", [], False),
        ("fpu amx_bf16 avx512_bf16", ["a GPU"], False),
        (None, [], False),
    ]:
        monkeypatch.setattr(Path, "exists", lambda path: flags is not None)
        monkeypatch.setattr(Path, "read_text", lambda path: f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: gpus)
        assert module.bfloat16_is_faster() is on, (flags, gpus)


@pytest.mark.parametrize("bfloat16, dtype", [(True, "bfloat16"), (False, "float32")])
def test_all_layers_but_the_last_are_trained_in_bfloat16(bfloat16, dtype, npz, tmp_path, monkeypatch):
    """The last one's probabilities need float32's digits; and what is saved is float32."""
    monkeypatch.setattr(module, "bfloat16_is_faster", lambda: bfloat16)
    watch = Watch()
    train_model(npz, epochs=1, batch_size=5, model=tmp_path / "a.h5", callbacks=[watch])
    assert watch.model.steps_per_execution == 6, "all of an epoch's"
    assert watch.computed_in == {(dtype,) * 8 + ("float32",)}
    assert watch.policies == {"float32"}, "the process's own policy is left alone"
    saved = keras.models.load_model(tmp_path / "a.h5")
    assert {layer.dtype_policy.name for layer in saved.layers} == {"float32"}
    assert same(saved.get_weights(), watch.model.get_weights())


PEAKS = [(10, 469, 4e-3), (1, 100, 7.98e-3), (2, 100, 6.483e-3), (1, 1, 7.98e-3)]


@pytest.mark.parametrize("epochs, steps, peak", PEAKS)
def test_learning_rate_climbs_for_a_fifth_then_falls_along_a_cosine_to_nothing(epochs, steps, peak):
    rate, total = one_cycle(epochs, steps), epochs * steps
    top = total // 5
    asked = np.unique(np.append(np.linspace(0, total, 60, dtype=int), top))
    rates = np.array([float(rate(step)) for step in asked])
    climb, fall = asked / max(1, top) * peak, peak * (1 + np.cos(np.pi * (asked - top) / (total - top))) / 2
    assert rates == pytest.approx(np.where(asked < top, climb, fall), rel=1e-3, abs=1e-8)


def test_the_steps_at_a_time_divide_the_epochs_steps():
    assert [steps_at_a_time(steps) for steps in (469, 12, 10, 1, 13, 100, 121)] == [7, 6, 10, 1, 1, 10, 1]


# Batches of images


def noise(n):
    """Return images of noise, and labels that are their indices."""
    return np.random.default_rng(0).random((n, 28, 28, 1), np.float32), np.arange(n)


def test_each_epoch_holds_every_image_once_in_a_new_order():
    X, y = noise(10)
    orders = []
    for seed, dataset in [(0, batches(X, y, 4, 0, False))] * 2 + [(1, batches(X, y, 4, 1, False))]:
        images, labels = zip(*dataset.as_numpy_iterator())
        assert [len(batch) for batch in labels] == [4, 4, 2]
        order = np.concatenate(labels)
        assert np.array_equal(np.concatenate(images), X[order]) and sorted(order) == list(range(10))
        orders.append(order.tolist())
    first, second, other_seed = orders
    assert first != second and other_seed not in (first, second)


def augmented(n, seed, epochs):
    """Return the images of `noise` as each of the epochs has them, distorted, in the order of their labels."""
    dataset = batches(*noise(n), n, seed)
    return [images[labels.argsort()] for _ in range(epochs) for images, labels in dataset.as_numpy_iterator()]


def test_distortions_are_new_in_each_epoch_and_repeat_with_the_seed():
    """One image alone is always distorted."""
    first, second = augmented(1, seed=5, epochs=2)
    assert not np.array_equal(first, second) and same((first, second), augmented(1, seed=5, epochs=2))
    assert not np.array_equal(first, augmented(1, seed=6, epochs=1)[0])


@pytest.mark.parametrize("n", [1, 2, 7])
def test_half_of_a_batch_is_distorted_others_in_each_epoch(n):
    distorted = (augmented(n, seed=0, epochs=10) != noise(n)[0]).any(axis=(2, 3, 4))  # (epochs, n)
    assert (distorted.sum(axis=1) == math.ceil(n / 2)).all()
    assert distorted.any(axis=0).all(), "each image in some epoch"


def test_distort_agrees_with_scipy():
    """SciPy, given the same draws of up to 4 pixels, makes the same pictures."""
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


@pytest.mark.parametrize("epochs", [[0], list(range(10)), [3, 4, 5]], ids=str)
def test_curves_are_the_readmes_two_plots(epochs):
    """Their axis counts in whole numbers the epochs that Keras counts from 0."""
    names = ("accuracy", "val_accuracy", "loss", "val_loss")
    history = keras.callbacks.History()
    history.history = dict(zip(names, np.random.default_rng(0).random((4, len(epochs))).tolist()))
    history.epoch = epochs
    figure = draw_curves(history)
    figure.canvas.draw()
    for ax, name, title in zip(figure.axes, ("accuracy", "loss"), ("Accuracy", "Loss"), strict=True):
        assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == (f"Model {name}", "Epoch", title)
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Train", "Test"]
        train, test = ax.get_lines()
        assert train.get_ydata().tolist() == history.history[name]
        assert test.get_ydata().tolist() == history.history[f"val_{name}"]
        numbers = [epoch + 1 for epoch in epochs]
        assert train.get_xdata().tolist() == test.get_xdata().tolist() == numbers
        left, right = ax.get_xlim()
        ticks = [tick for tick in ax.get_xticks() if left <= tick <= right]
        assert ticks and set(ticks) <= set(numbers), ticks
