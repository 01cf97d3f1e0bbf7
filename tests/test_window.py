"""The window to draw in: a stroke becomes a picture, which is read as a file is."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import assert_one_line, page, strokes
from matplotlib.backend_bases import KeyEvent, MouseEvent

import evaluate_model as module
from build_model import load_model
from evaluate_model import EDGE, PAPER_SIZE, PEN, drawing_window, find_digits


class Window:
    """A drawing window on matplotlib's canvas without a display, and what a user does in it."""

    def __init__(self, model="m.h5"):
        network, _ = load_model(model=model)
        drawing_window(network)
        self.figure = plt.gcf()
        self.figure.canvas.draw()  # gives everything its place
        self.figure.canvas.draw_idle = lambda: None  # a real canvas draws when it has time
        self.paper, self.seen, self.bars = self.figure.axes

    def mouse(self, name, point):
        event = MouseEvent(name, self.figure.canvas, *self.paper.transData.transform(point), button=1)
        self.figure.canvas.callbacks.process(name, event)

    def stroke(self, *points):
        self.mouse("button_press_event", points[0])
        for point in points[1:]:
            self.mouse("motion_notify_event", point)
        self.mouse("button_release_event", points[-1])

    def digit(self, name, x, y):
        self.stroke(*strokes(name, x, y, scale=2)[0])

    def key(self, key):
        x, y = self.paper.transData.transform((100, 100))
        event = KeyEvent("key_press_event", self.figure.canvas, key, x, y)
        self.figure.canvas.callbacks.process("key_press_event", event)

    def picture(self):
        return np.asarray(self.paper.images[0].get_array())

    def text(self):
        return self.paper.get_title()

    def probabilities(self):
        return [bar.get_width() for bar in self.bars.patches]


@pytest.fixture
def window(here):
    return Window()


def test_a_drawn_digit_is_read_as_a_picture_is_without_dropout(here, digits_model):
    window = Window(digits_model[0])
    window.digit("7", 100, 80)
    same = page(("7", 100, 80), size=PAPER_SIZE, pen=PEN, scale=2)
    assert np.mean(np.asarray(same.convert("RGB")) != window.picture()) < 0.005  # round ends
    images, _, _ = find_digits(window.picture())
    assert np.array_equal(window.seen.images[0].get_array(), images[0, ..., 0])
    network, _ = load_model(model=digits_model[0])
    assert window.probabilities() == pytest.approx(network.predict(images, verbose=0)[0], abs=1e-5)
    assert re.match(r"\d\?? \(\d+\.\d\d %, then \d: \d+\.\d\d %\)$", window.text())


def test_digits_beside_each_other_undo_and_clear(window):
    window.digit("7", 60, 80)
    seven = window.text(), window.probabilities()
    window.digit("0", 320, 80)
    assert window.text().startswith("70 (least sure: ")
    assert np.argmax(window.probabilities()) == 0, "the last one's"
    window.key("z")
    assert (window.text(), window.probabilities()) == seven
    window.digit("1", 320, 80)
    assert window.text().startswith("71 (least sure: ")
    assert "c: clear   z: undo" in window.paper.get_xlabel()
    for key in ("c", "z", "any"):  # then, there is nothing to take back
        window.key(key)
        assert (window.text(), window.probabilities()) == ("", []) and not window.seen.images
        assert (window.picture() == 255).all() and window.picture().shape == (400, 520, 3)
    window.digit("7", 60, 80)
    assert window.text().startswith("7 (")


def test_a_stroke_that_leaves_the_paper_is_read_beside_a_dot(window):
    """What touches a picture's border is left out where digits lie inside; but there is paper beyond the shown part."""
    window.stroke((300, 200))
    window.stroke((100, 100), (210, 100), (150, PAPER_SIZE[1] + 50))  # a 7
    assert window.text().startswith("7 (")
    dark = np.argwhere(window.picture()[..., 0] < 128)
    assert dark.max() < PAPER_SIZE[0] - 5 and dark[:, 0].max() < PAPER_SIZE[1] - 5


def test_a_click_without_a_movement_is_a_dot(window):
    window.stroke((240, 180))
    ys, xs = np.nonzero(window.picture()[..., 0] < 128)
    assert (xs.mean(), ys.mean()) == pytest.approx((240, 180), abs=1) and 100 < len(xs) < 250


def test_a_stroke_shows_while_it_is_drawn_and_ends_at_the_papers_edge(window):
    window.mouse("button_press_event", (300, 200))
    window.mouse("motion_notify_event", (400, 200))
    (line,) = (line for line in window.paper.lines if line.get_visible())
    assert line.get_xdata() == pytest.approx([300, 400]) and line.get_ydata() == pytest.approx([200, 200])
    window.mouse("motion_notify_event", (5000, 200))
    window.mouse("button_release_event", (5000, 200))
    drawn = window.picture()
    assert (drawn[200, 300 : PAPER_SIZE[0] - EDGE] == 0).all() and (drawn[:, :280] == 255).all()
    window.stroke((600, 200), (300, 300))  # from elsewhere
    assert np.array_equal(window.picture(), drawn)


def test_draw_opens_the_window_and_ends_when_it_is_closed(here, monkeypatch, end_of):
    shown = []
    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg")
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.get_fignums())))
    assert end_of(module, "--draw", "--model", "m.h5") == (0, "", "")
    assert shown == [1]


@pytest.mark.parametrize("backend", ["agg", "inline", "module://matplotlib_inline.backend_inline"])
def test_draw_needs_a_window_before_a_model(backend, here, monkeypatch, end_of):
    """In a notebook's inline backend it would be a picture that can't be drawn on."""
    monkeypatch.setattr(plt, "get_backend", lambda: backend)
    monkeypatch.setattr(module, "load_model", lambda *args: pytest.fail("the model was loaded"))
    assert_one_line(end_of(module, "--draw").code, "there is no window to draw in", "%matplotlib widget")
