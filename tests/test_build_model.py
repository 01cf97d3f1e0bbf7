"""The network is the README's, layer by layer, and its file can be read and trained further by others."""

import os
from pathlib import Path

import h5py
import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import build_small_network, posix
from numpy.lib.stride_tricks import sliding_window_view

import build_model as module
from build_model import build_model, load_model, model_path, save_and_show, save_model, verbosity
from load_data import InputError, load_data


def test_layers_shapes_and_parameters():
    # Worked out by hand: (kernel height * width * channels in + 1 bias) * channels out.
    expected = [
        ("Conv2D", (26, 26, 32), (3 * 3 * 1 + 1) * 32),
        ("MaxPooling2D", (13, 13, 32), 0),
        ("Conv2D", (11, 11, 64), (3 * 3 * 32 + 1) * 64),
        ("MaxPooling2D", (5, 5, 64), 0),
        ("Conv2D", (3, 3, 64), (3 * 3 * 64 + 1) * 64),
        ("Flatten", (576,), 0),
        ("Dense", (64,), (576 + 1) * 64),
        ("Dropout", (64,), 0),
        ("Dense", (10,), (64 + 1) * 10),
    ]
    network = build_model()
    found = [(type(layer).__name__, layer.output.shape[1:], layer.count_params()) for layer in network.layers]
    assert found == expected and network.count_params() == 93_322
    assert network.input_shape == (None, 28, 28, 1)
    activations = [layer.activation.__name__ for layer in network.layers if hasattr(layer, "activation")]
    assert activations == ["relu", "relu", "relu", "relu", "softmax"]
    assert network.layers[7].rate == 0.5


def test_compiled_as_in_the_readme():
    for network, rate, steps in ((build_model(), 1e-3, 1), (build_model(0.5, steps_per_execution=7), 0.5, 7)):
        config = network.get_compile_config()
        assert type(network.optimizer).__name__ == "Adam" and network.steps_per_execution == steps
        assert float(network.optimizer.learning_rate) == pytest.approx(rate)
        assert config["loss"] == "categorical_crossentropy" and config["metrics"] == ["accuracy"]


def forward(weights, images):
    """Return what the README's network answers, computed by NumPy alone; without Dropout, as it isn't training."""
    x = images
    for number in range(3):
        kernel, bias = weights[2 * number : 2 * number + 2]
        windows = sliding_window_view(x, (3, 3), axis=(1, 2))  # (n, rows, columns, channels, 3, 3)
        x = np.maximum(np.einsum("nrcfij,ijfg->nrcg", windows, kernel, optimize=True) + bias, 0)
        if number < 2:  # the largest of each 2x2 pixels; an odd last row or column is left out
            n, side, _, channels = x.shape
            half = side // 2
            x = x[:, : 2 * half, : 2 * half].reshape(n, half, 2, half, 2, channels).max(axis=(2, 4))
    x = x.reshape(len(x), -1)
    x = np.maximum(x @ weights[6] + weights[7], 0)
    scores = np.exp(x @ weights[8] + weights[9])
    return scores / scores.sum(axis=1, keepdims=True)


def test_a_forward_pass_in_numpy_from_the_saved_weights_agrees(digits_model):
    X = load_data("digits")[2][:50]
    with h5py.File(digits_model[0]) as file:
        saved = file["model_weights"]
        names = [name for layer in saved.attrs["layer_names"] for name in saved[layer].attrs["weight_names"]]
        layers = [layer for layer in saved.attrs["layer_names"] for _ in saved[layer].attrs["weight_names"]]
        weights = [saved[layer][name][...] for layer, name in zip(layers, names)]
    network, _ = load_model(model=digits_model[0])
    answers = network.predict(X, verbose=0)
    assert answers.dtype == np.float32 and np.abs(forward(weights, X) - answers).max() < 1e-4


def test_summary(end_of):
    end = end_of(module)
    assert (end.code, end.err) == (0, "") and "93,322" in end.out


# Its file


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
    assert model_path("mnist", "a/b.h5") == Path("a/b.h5")
    for name in ("foo.keras", "foo", ".h5"):
        with pytest.raises(InputError, match=f"must end in .h5, not {name} "):
            model_path("mnist", name)


def test_a_saved_model_can_be_evaluated_and_trained_further(digits_model, tmp_path):
    """By Keras's own functions; 3.15.1 can't train what it saved itself, with the optimizer's state."""
    path, history = digits_model
    assert path.stat().st_size < 500_000
    network = keras.models.load_model(path)
    assert {weights.dtype for weights in network.get_weights()} == {np.dtype("float32")}
    assert {layer.compute_dtype for layer in network.layers} == {"float32"}
    assert type(network.optimizer).__name__ == "Adam" and float(network.optimizer.learning_rate) == pytest.approx(1e-3)
    X, y, X_test, y_test = load_data("digits")
    loss, accuracy = network.evaluate(X_test, y_test, verbose=0)
    last = history["val_accuracy"][-1]
    assert accuracy == pytest.approx(last, abs=0.004), "one image of 297, as training may be bfloat16"
    before = network.get_weights()
    network.fit(X[:64], y[:64], verbose=0)
    assert not np.array_equal(before[0], network.get_weights()[0])


@posix
def test_through_a_symbolic_link_its_target_is_written(tmp_path):
    (tmp_path / "real.h5").write_bytes(b"old")
    (tmp_path / "m.h5").symlink_to("real.h5")
    save_model(build_small_network(), tmp_path / "m.h5")
    assert (tmp_path / "m.h5").is_symlink() and load_model(model=tmp_path / "real.h5")
    assert {path.name for path in tmp_path.iterdir()} == {"m.h5", "real.h5"}


def test_if_the_old_file_cant_be_replaced_the_new_one_is_kept_beside_it(tmp_path, monkeypatch):
    """Under Windows, another program may have it open: what was trained for hours must not be lost."""
    path, real = tmp_path / "m.h5", os.replace
    path.write_bytes(b"old")

    def replace(source, target):
        if Path(target) == path:
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    words = r"m\.h5: can't be replaced \(Permission denied\); the new model is .*m_new\.h5"
    with pytest.raises(InputError, match=words):
        save_model(build_small_network(), path)
    assert path.read_bytes() == b"old" and load_model(model=tmp_path / "m_new.h5")


@pytest.mark.parametrize("shape, classes", [((14, 14, 1), 10), ((28, 28, 1), 5)])
def test_models_for_other_images_or_classes_are_refused(shape, classes, tmp_path):
    stack = [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(classes, activation="softmax")]
    keras.Sequential(stack).save(tmp_path / "other.h5")
    words = r"other\.h5: input and output are .*; expected \(n, 28, 28, 1\) and \(n, 10\)"
    with pytest.raises(InputError, match=words):
        load_model(model=tmp_path / "other.h5")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    """A ReLU swallows the NaN on some processors, and the figures would look good."""
    network = build_small_network()
    network.layers[-1].bias.assign([0.0] * 9 + [value])
    network.save(tmp_path / "m.h5")
    with pytest.raises(InputError, match=r"m\.h5: not all of its weights are finite"):
        load_model(model=tmp_path / "m.h5")


def test_a_figure_is_saved_beside_the_model_then_shown_and_closed(tmp_path, monkeypatch, capsys):
    figure, shown = plt.figure(), []
    path = tmp_path / "m_curves.png"
    monkeypatch.setattr(plt, "show", lambda: shown.append((plt.get_fignums(), path.exists())))
    save_and_show(figure, tmp_path / "m.h5", "curves", " (a note)")
    assert shown == [([figure.number], True)] and not plt.get_fignums()
    assert capsys.readouterr().out == f"Saved {path} (a note)\n"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch):
    for terminal, expected in ((True, 1), (False, 2)):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal, raising=False)
        assert verbosity() == expected
    monkeypatch.setattr("sys.stdout", None)
    assert verbosity() == 2
