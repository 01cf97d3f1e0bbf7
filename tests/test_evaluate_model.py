"""What evaluate_model() promises: every test image counted, figures that agree with a count by hand."""

import re
import shutil

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from keras import layers
from scipy.stats import norm

import evaluate_model as module
from build_model import build_model
from evaluate_model import draw_confusion_matrix, evaluate_model, load_model
from load_data import InputError, load_data


def save(path, *stack, shape=(28, 28, 1)):
    keras.Sequential([keras.Input(shape), *stack]).save(path)
    return path


def test_figures_agree_with_a_count_by_hand(digits_model, capsys):
    path, history = digits_model
    result = evaluate_model("digits", model=path)
    printed = capsys.readouterr().out
    _, _, X_test, y_test = load_data("digits")
    network = keras.models.load_model(path, compile=False)
    matrix, log_loss = np.zeros((10, 10), int), 0.0
    for image, label in zip(X_test, y_test):
        probabilities = network(image[np.newaxis]).numpy()[0].astype(float)
        matrix[np.argmax(label), np.argmax(probabilities)] += 1
        log_loss -= np.log(probabilities[np.argmax(label)])
    n, hits = len(X_test), int(np.trace(matrix))
    assert n == 297
    assert np.array_equal(result["confusion_matrix"], matrix)
    assert result["accuracy"] == hits / n
    assert result["loss"] == pytest.approx(log_loss / n, rel=1e-4)
    # Wilson's interval, from its formula.
    z, p = norm.ppf(0.975), hits / n
    middle, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n),
    )
    assert f"Test loss: {log_loss / n:.4f}\n" in printed
    assert f"Test accuracy: {p:.4f} (95 % interval {middle - half:.4f} to {middle + half:.4f})\n" in printed
    # The report's lines: precision, recall, F1 score and number of images of each class.
    for digit in range(10):
        precision, recall = (
            matrix[digit, digit] / max(1, matrix[:, digit].sum()),
            matrix[digit, digit] / matrix[digit].sum(),
        )
        f1 = 2 * precision * recall / (precision + recall)
        line = rf"^ +{digit} +{precision:.4f} +{recall:.4f} +{f1:.4f} +{matrix[digit].sum()}$"
        assert re.search(line, printed, re.MULTILINE), line
    # Both equal the last validation figures of the training.
    assert result["accuracy"] == pytest.approx(history["val_accuracy"][-1], abs=1e-6)
    assert result["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-4)


def test_one_forward_pass_over_each_image(digits_model, monkeypatch):
    sizes = []

    class Spy:
        def __init__(self, network):
            self.network = network

        def predict(self, images, **options):
            sizes.append(len(images))
            return self.network.predict(images, **options)

    monkeypatch.setattr(module, "load_model", lambda *args: Spy(load_model(*args)))
    evaluate_model("digits", model=digits_model[0])
    assert sizes == [297]


def test_pictures_lie_beside_the_model(digits_model):
    evaluate_model("digits", model=digits_model[0])
    png = digits_model[0].with_name("digits_classification_model_confusion_matrix.png").read_bytes()
    assert png.startswith(b"\x89PNG") and png.endswith(b"IEND\xaeB`\x82")


def test_confusion_matrix_has_true_by_row_and_every_count():
    matrix = np.arange(100).reshape(10, 10)
    figure = draw_confusion_matrix(matrix)
    ax = figure.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Predicted", "True")
    shown = np.full((10, 10), -1)
    for text in ax.texts:
        x, y = text.get_position()
        shown[int(y), int(x)] = int(text.get_text())
    assert np.array_equal(shown, matrix)
    assert [label.get_text() for label in ax.get_yticklabels()] == [str(digit) for digit in range(10)]
    assert ax.yaxis_inverted(), "row 0 is on top"
    plt.close(figure)


def test_a_class_without_images_is_reported(tmp_path, arrays, digits_model, capsys):
    keep = arrays["y_test"] != 3
    arrays["x_test"], arrays["y_test"] = arrays["x_test"][keep], arrays["y_test"][keep]
    np.savez(tmp_path / "gap.npz", **arrays)
    result = evaluate_model(tmp_path / "gap.npz", model=shutil.copy(digits_model[0], tmp_path / "a.h5"))
    assert result["confusion_matrix"].shape == (10, 10) and result["confusion_matrix"][3].sum() == 0
    assert re.search(r"^ +3 +0\.0000 +0\.0000 +0\.0000 +0$", capsys.readouterr().out, re.MULTILINE)


def test_no_model_says_how_to_train_one_before_the_data_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "load_data", lambda data: pytest.fail("the data was loaded first"))
    (tmp_path / "kmnist_classification_model.h5").write_text("")
    with pytest.raises(
        InputError, match=r"^mnist_\w+\.h5: no such model.*: python train_model\.py \(.*kmnist_"
    ):
        evaluate_model()
    with pytest.raises(InputError, match=r"python train_model\.py --data digits \("):
        evaluate_model("digits")
    with pytest.raises(InputError, match=r"python train_model\.py --data digits --model a\.h5 \("):
        evaluate_model("digits", model="a.h5")


def test_models_for_other_images_or_classes_are_refused(tmp_path):
    softmax = layers.Dense(10, activation="softmax")
    small = save(tmp_path / "small.h5", layers.Flatten(), softmax, shape=(14, 14, 1))
    few = save(tmp_path / "few.h5", layers.Flatten(), layers.Dense(5, activation="softmax"))
    for path, words in ((small, "14, 14, 1"), (few, "5")):
        with pytest.raises(InputError, match=rf"{path.name}: input and output are .*{words}"):
            load_model(path)


def test_another_network_of_the_right_shapes_is_welcome(tmp_path, npz):
    path = save(tmp_path / "other.h5", layers.Flatten(), layers.Dense(10, activation="softmax"))
    assert 0 <= evaluate_model(npz, model=path)["accuracy"] <= 1


@pytest.mark.parametrize("content", [b"", b"no HDF5 file", b"\x89HDF\r\n\x1a\n" + bytes(500)])
def test_files_that_are_no_model_are_refused(tmp_path, content):
    (tmp_path / "bad.h5").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.h5: not a Keras model"):
        load_model(tmp_path / "bad.h5")


def test_outputs_that_are_no_probabilities_are_not_scored(tmp_path, npz, capsys):
    broken = build_model()
    broken.set_weights([np.full_like(weight, np.nan) for weight in broken.get_weights()])
    broken.save(tmp_path / "nan.h5")
    save(tmp_path / "linear.h5", layers.Flatten(), layers.Dense(10))
    save(tmp_path / "sigmoid.h5", layers.Flatten(), layers.Dense(10, activation="sigmoid"))
    for name in ("nan.h5", "linear.h5", "sigmoid.h5"):
        with pytest.raises(InputError, match=f"{name}: .*no probabilities"):
            evaluate_model(npz, model=tmp_path / name)
    assert "Test accuracy" not in capsys.readouterr().out


def test_images_that_are_all_right_or_all_wrong(tmp_path, arrays):
    """A network whose answer is always 7 is right on sevens only, and the interval stays within 0 and 1."""
    network = keras.Sequential(
        [keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(10, activation="softmax")]
    )
    network.set_weights([np.zeros((784, 10)), 9.0 * (np.arange(10) == 7)])
    network.save(tmp_path / "seven.h5")
    for label, accuracy in ((7, 1.0), (3, 0.0)):
        arrays["y_test"][:] = label
        np.savez(tmp_path / "data.npz", **arrays)
        result = evaluate_model(tmp_path / "data.npz", model=tmp_path / "seven.h5")
        assert result["accuracy"] == accuracy and result["confusion_matrix"][label, 7] == 20
