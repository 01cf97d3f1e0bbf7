"""The programs in tests/measure/ print the README's figures: what they change and call in the scripts exists."""

import benchmark
import numpy as np
import pictures
import pytest
from conftest import MY_DIGIT, ROOT

import build_model
import train_model
from load_data import load_data


def test_a_run_of_the_benchmark_and_of_each_row_of_the_ablation(npz, small_network, monkeypatch):
    """Neither saves anything; what a row changes exists, or there would be an AttributeError."""
    monkeypatch.setattr(benchmark, "build_model", small_network)
    arrays = load_data(npz)
    assert 0 <= benchmark.textbook_loop(arrays, 1, 0) <= 1
    for name, changes in benchmark.ROWS.items():
        assert 0 <= benchmark.our_recipe(arrays, 1, 0, **changes) <= 1, name
    assert train_model.save_model is build_model.save_model, "all is as it was"
    assert "TensorFlow" in benchmark.machine()


def test_pictures_of_each_kind_are_made_and_counted(digits_model):
    network, _ = build_model.load_model(model=digits_model[0])
    shares = pictures.measure(network, *load_data("digits")[2:], each=3)
    assert list(shares) == list(pictures.KINDS)
    assert shares["blank"][0] == 1, "nothing is found on paper without a digit"


@pytest.mark.slow
def test_the_readmes_shares_are_reached(mnist, tmp_path):
    """By the network after two epochs; measured with 200 of each: 0.97, 0.99, 0.99, 0.80, 1.00."""
    train_model.train_model(mnist, epochs=2, model=tmp_path / "m.h5")
    network, _ = build_model.load_model(model=tmp_path / "m.h5")
    shares = pictures.measure(network, *load_data(mnist)[2:], each=40)
    least = {"drawn": 0.9, "paper": 0.92, "ruled": 0.92, "page": 0.65, "blank": 0.97}
    assert {kind: share for kind, (share, _) in shares.items() if share < least[kind]} == {}
    assert shares["drawn"][1] < 0.7, "the usual way is no better"


def test_the_steps_are_drawn(tmp_path, monkeypatch, end_of):
    monkeypatch.chdir(tmp_path)
    assert end_of(pictures, "--steps", ROOT / ".github/images/page.jpg") == (0, "Saved steps.png\n", "")
    figure = pictures.draw_steps(MY_DIGIT)
    assert len(figure.axes) == 6 and all(ax.images for ax in figure.axes)
    assert np.asarray(figure.axes[5].images[0].get_array()).shape == (28, 28)
