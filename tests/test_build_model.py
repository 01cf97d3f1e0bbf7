"""The network is the README's, layer by layer."""

import numpy as np
import pytest

import build_model as module
from build_model import build_model


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
    model = build_model()
    found = [(type(layer).__name__, layer.output.shape[1:], layer.count_params()) for layer in model.layers]
    assert found == expected
    assert model.count_params() == 93_322
    assert model.input_shape == (None, 28, 28, 1)
    activations = [layer.activation.__name__ for layer in model.layers if hasattr(layer, "activation")]
    assert activations == ["relu", "relu", "relu", "relu", "softmax"]
    assert model.layers[7].rate == 0.5


def test_compiled_as_in_the_readme():
    model = build_model()
    config = model.get_compile_config()
    assert type(model.optimizer).__name__ == "Adam"
    assert float(model.optimizer.learning_rate) == pytest.approx(0.001)
    assert config["loss"] == "categorical_crossentropy" and config["metrics"] == ["accuracy"]


def test_output_is_probabilities():
    images = np.random.default_rng(0).random((3, 28, 28, 1), np.float32)
    probabilities = build_model()(images).numpy()
    assert probabilities.shape == (3, 10) and probabilities.dtype == np.float32
    assert probabilities.min() >= 0 and np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_summary(end_of):
    end = end_of(module)
    assert (end.code, end.err) == (0, "") and "93,322" in end.out
