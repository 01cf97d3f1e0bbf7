"""What train_model() promises: the recipe, repeatable weights, a model file that is never half-written."""

import math
import os
import re
import time
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

import train_model as module
from load_data import InputError, load_data
from train_model import batches, distort, draw_history, model_file, one_cycle, train_model, whole_file


def weights(path):
    return keras.models.load_model(path, compile=False).get_weights()


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_digits_are_learnt(digits_model):
    path, history = digits_model
    assert path.is_file()
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert [len(values) for values in history.values()] == [5] * 4
    assert history["val_accuracy"][-1] > 0.85


def test_everything_written_lies_beside_the_model_and_starts_with_its_stem(digits_model):
    files = {file.name for file in digits_model[0].parent.iterdir()}
    assert {"digits_classification_model.h5", "digits_classification_model_curves.png"} <= files
    assert all(name.startswith("digits_classification_model") for name in files), files


@pytest.mark.parametrize("augment", [True, False])
def test_same_seed_same_weights_bit_for_bit(npz, tmp_path, augment):
    paths = [tmp_path / f"{name}.h5" for name in "abc"]
    for path, seed in zip(paths, (1, 1, 2)):
        train_model(npz, epochs=3, batch_size=8, seed=seed, model=path, augment=augment)
    a, b, c = map(weights, paths)
    assert same(a, b)
    assert not any(np.array_equal(x, y) for x, y in zip(a, c))


def test_augment_makes_a_difference(npz, tmp_path):
    for augment in (True, False):
        train_model(npz, epochs=1, model=tmp_path / f"{augment}.h5", augment=augment)
    assert not same(weights(tmp_path / "True.h5"), weights(tmp_path / "False.h5"))


@pytest.mark.parametrize("images, batch_size, epochs", [(1, 128, 1), (1, 1, 3), (30, 128, 1), (30, 7, 2)])
def test_any_number_of_images_trains(tmp_path, arrays, images, batch_size, epochs):
    arrays["x_train"], arrays["y_train"] = arrays["x_train"][:images], arrays["y_train"][:images]
    np.savez(tmp_path / "few.npz", **arrays)
    train_model(tmp_path / "few.npz", epochs=epochs, batch_size=batch_size, model=tmp_path / "few.h5")
    steps = keras.models.load_model(tmp_path / "few.h5").optimizer.iterations.numpy()
    assert steps == epochs * math.ceil(images / batch_size), "every image counts, the last batch too"
    assert np.isfinite(np.concatenate([w.ravel() for w in weights(tmp_path / "few.h5")])).all()


def labelled(n):
    """Images and labels that carry their own index."""
    X = np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1) * np.ones((1, 28, 28, 1), np.float32)
    return X, np.arange(n, dtype=np.float32)[:, np.newaxis]


def test_each_epoch_holds_every_image_once_in_a_new_order():
    X, y = labelled(10)
    dataset = batches(X, y, 4, seed=0)
    epochs = []
    for _ in range(3):
        got = [(images.numpy(), labels.numpy()) for images, labels in dataset]
        assert [len(labels) for _, labels in got] == [4, 4, 2]
        assert all((images[:, 0, 0, 0] == labels[:, 0]).all() for images, labels in got)
        epochs.append(np.concatenate([labels[:, 0] for _, labels in got]).tolist())
    assert all(sorted(order) == list(range(10)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_without_a_seed_the_order_is_kept():
    X, y = labelled(10)
    assert np.concatenate([labels for _, labels in batches(X, y, 3)]).ravel().tolist() == list(range(10))


def test_distortions_are_new_in_each_epoch_and_repeat_with_the_seed():
    X = np.random.default_rng(0).random((4, 28, 28, 1), np.float32)
    y = np.eye(4, dtype=np.float32)

    def two_epochs(seed):
        dataset = batches(X, y, 4, seed, augment=True)
        by_label = lambda images, labels: images.numpy()[np.argsort(labels.numpy().argmax(axis=1))]
        return [by_label(*next(iter(dataset))) for _ in range(2)]

    first, second = two_epochs(5)
    assert not np.array_equal(first, second)
    assert same((first, second), two_epochs(5))
    assert not np.array_equal(first, two_epochs(6)[0])


@pytest.mark.parametrize("n", [1, 2, 7])
def test_half_of_a_batch_is_distorted_others_in_each_epoch(n):
    X = np.random.default_rng(0).random((n, 28, 28, 1), np.float32)
    dataset = batches(X, np.eye(n, dtype=np.float32), n, 0, augment=True)
    epochs = []
    for _ in range(10):
        images, labels = (part.numpy() for part in next(iter(dataset)))
        distorted = {i for image, i in zip(images, labels.argmax(axis=1)) if not np.array_equal(image, X[i])}
        assert len(distorted) == math.ceil(n / 2)
        epochs.append(distorted)
    assert set.union(*epochs) == set(range(n))


def test_distort_agrees_with_scipy():
    """The same draws, turned into SciPy's form of an affine transform, give the same pictures."""
    images = ndimage.gaussian_filter(np.random.default_rng(0).random((6, 28, 28)), (0, 2, 2)).astype(
        np.float32
    )
    seed = tf.constant([3, 4], tf.int64)
    got = distort(tf.constant(images[..., np.newaxis]), seed).numpy()[..., 0]
    draws = tf.random.stateless_uniform((5, 6), seed, -1.0, 1.0).numpy()
    for image, result, (turn, width, height, right, down) in zip(images, got, draws.T):
        angle = math.radians(module.ROTATION) * turn
        rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        matrix = (
            np.diag([1 + module.SCALING * height, 1 + module.SCALING * width]) @ rotation
        )  # rows, columns
        shift = module.SHIFT * np.array([down, right])
        offset = 13.5 - matrix @ [13.5, 13.5] + shift
        expected = ndimage.affine_transform(image, matrix, offset, order=1, mode="grid-constant")
        inside = ndimage.affine_transform(np.ones((28, 28)), matrix, offset, order=1, mode="constant") > 0.99
        assert np.abs(result - expected)[inside].max() < 1e-3
        assert inside.mean() > 0.5


@pytest.mark.parametrize("epochs, steps", [(1, 1), (2, 1), (1, 3), (3, 4), (10, 469)])
def test_learning_rate_climbs_then_falls_to_nothing_at_the_last_step(epochs, steps):
    rate = one_cycle(epochs, steps)
    rates = np.array([float(rate(step)) for step in range(epochs * steps)])
    top = rates.argmax()
    assert rates[top] == pytest.approx(module.PEAK_RATE / epochs**module.PEAK_DECAY, rel=0.01)
    assert top <= math.ceil(module.WARM_UP * epochs * steps)
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) < 0).all()
    assert rates.min() > 0, "no step is wasted"
    assert float(rate(epochs * steps)) == pytest.approx(0, abs=1e-9)


def test_learning_rate_is_half_as_high_in_ten_epochs_as_in_one():
    top = lambda epochs: max(float(one_cycle(epochs, 100)(step)) for step in range(100 * epochs))
    assert (top(1), top(10)) == (pytest.approx(8e-3, rel=0.01), pytest.approx(4e-3, rel=0.01))


def test_only_training_may_use_bfloat16(npz, tmp_path, monkeypatch):
    switched = []
    monkeypatch.setattr(module, "BFLOAT16", True)
    monkeypatch.setattr(module, "mixed_precision", switched.append)
    train_model(npz, epochs=2, model=tmp_path / "a.h5")
    assert switched == [True, False, True, False, False], "on in each epoch, off for its validation"
    switched.clear()
    monkeypatch.setattr(keras.Model, "evaluate", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_model(npz, epochs=2, model=tmp_path / "a.h5")
    assert switched == [True, False], "off after an error, too"


CPUINFO = Path("/proc/cpuinfo")
AMX = CPUINFO.exists() and re.search(r"^flags\s*:.* amx_bf16\b", CPUINFO.read_text(), re.MULTILINE)


def test_bfloat16_is_used_where_the_cpu_has_units_for_it():
    assert module.BFLOAT16 == bool(AMX)


@pytest.mark.skipif(
    not AMX or os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0" or tf.config.list_physical_devices("GPU"),
    reason="needs Linux, an Intel CPU with AMX, TensorFlow's oneDNN and no GPU",
)
def test_bfloat16_changes_the_training_but_not_the_validation(tmp_path, monkeypatch):
    models = {}
    for bfloat16 in (True, False):
        monkeypatch.setattr(module, "BFLOAT16", bfloat16)
        models[bfloat16] = tmp_path / f"{bfloat16}.h5"
        history = train_model("digits", epochs=1, model=models[bfloat16]).history
        network = keras.models.load_model(models[bfloat16])
        X, y = load_data("digits")[2:]
        loss, accuracy = network.evaluate(X, y, verbose=0)
        assert history["val_loss"][0] == pytest.approx(loss, rel=1e-5), "float32, as in any evaluation"
        assert history["val_accuracy"][0] == accuracy
    assert not same(*map(weights, models.values()))


def test_saved_model_carries_the_readmes_loss_and_metrics(digits_model):
    model = keras.models.load_model(digits_model[0])
    assert model.loss is keras.losses.categorical_crossentropy
    assert model.get_compile_config()["metrics"] == ["accuracy"]
    assert type(model.optimizer).__name__ == "Adam"


def test_curves_are_the_readmes_two_plots():
    history = {"accuracy": [0.5, 0.6], "val_accuracy": [0.7, 0.8], "loss": [2, 1], "val_loss": [0.4, 0.3]}
    figure = draw_history(history)
    for ax, name, title in zip(figure.axes, ("accuracy", "loss"), ("Accuracy", "Loss")):
        assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == (f"Model {name}", "Epoch", title)
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Train", "Test"]
        train, test = ax.get_lines()
        assert (
            train.get_ydata().tolist() == history[name]
            and test.get_ydata().tolist() == history[f"val_{name}"]
        )
        assert train.get_xdata().tolist() == [1, 2]
    plt.close(figure)


def test_default_model_file_carries_the_datas_name(tmp_path, monkeypatch):
    (tmp_path / "kmnist.v2").mkdir()
    monkeypatch.chdir(tmp_path / "kmnist.v2")
    assert model_file("mnist") == "mnist_classification_model.h5"
    assert model_file("digits") == "digits_classification_model.h5"
    assert model_file("../shared/mnist") == "mnist_classification_model.h5"
    assert model_file("some/fashion.npz") == "fashion_classification_model.h5"
    assert model_file(".") == "kmnist.v2_classification_model.h5"


def test_whole_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a [b].h5"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        with whole_file(path) as temporary:
            assert temporary.parent == tmp_path and temporary.name == f".a [b].{os.getpid()}.h5"
            temporary.write_text("half")
            assert path.read_text() == "old"
            1 / 0
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with whole_file(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_leftovers_older_than_a_day_are_cleared(tmp_path):
    path = tmp_path / "a [b].h5"
    old, young, foreign = (tmp_path / name for name in (".a [b].123.h5", ".a [b].456.h5", ".a [b].mine.h5"))
    for file in (old, young, foreign):
        file.write_text("left")
    for file in (old, foreign):
        os.utime(file, (0, time.time() - 90_000))
    with whole_file(path) as temporary:
        temporary.write_text("new")
    assert sorted(tmp_path.iterdir()) == sorted([path, young, foreign])


def test_unwritable_output_is_said_before_the_data_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_data", lambda data: pytest.fail("the data was loaded first"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.h5").mkdir()
    for name in ("none/x.h5", "file/x.h5", "folder.h5"):
        with pytest.raises(InputError, match=f"{name}: can't be written"):
            train_model("digits", model=tmp_path / name)


def test_a_loss_of_nan_stops_and_keeps_the_old_model(npz, tmp_path, monkeypatch):
    (tmp_path / "a.h5").write_text("old")
    monkeypatch.setattr(module, "one_cycle", lambda epochs, steps: math.nan)
    with pytest.raises(InputError, match=r"the loss became NaN in epoch 1"):
        train_model(npz, epochs=2, batch_size=3, model=tmp_path / "a.h5")
    assert (tmp_path / "a.h5").read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.h5", "small.npz"]


def test_bad_data_leaves_nothing_behind(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        train_model(tmp_path / "nowhere", model=tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())
