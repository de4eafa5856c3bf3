"""Which curves share a panel, and what its axis spans."""

from __future__ import annotations

import math

import pytest
from matplotlib.figure import Figure

from nnunetv2_vqseg.core.curve_plot import draw_lines, filled_panels, grouped, limits, readable


def test_panels_begin_with_dice_and_a_loss_that_its_weighted_terms_add_up_to():
    names = ["supervised", "loss", "weighted_supervised", "weighted_vq", "ramp", "gradient_norm", "dice_student"]
    panels = grouped(
        [*names, "dice_teacher"], {"pseudo-labels": ("ramp", "confidence"), "codebook": ("use",)}, "teacher"
    )
    assert panels == {
        "Dice on validation patches (saved: teacher)": ["dice_teacher", "dice_student"],
        "loss and its terms, each times its weight": ["loss", "weighted_supervised", "weighted_vq"],
        "pseudo-labels": ["ramp"],
        "gradient norm": ["gradient_norm"],
    }


def test_a_single_term_is_not_drawn_over_the_loss_and_a_single_network_is_the_saved_one():
    assert grouped(["loss", "weighted_supervised", "dice_network"], {}, "network") == {
        "Dice on validation patches": ["dice_network"],
        "loss": ["loss"],
    }


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        (["perplexity"], [32.0002, 32.0003], (0.0, 33.600315)),  # noise is not magnified
        (["qpm_step"], [0.25, 0.25], (0.0, 0.2625)),
        (["kept_share", "ramp"], [0.01, 0.02], (-0.02, 1.02)),
        (["weighted_vq", "loss"], [-1.0, -0.5], (-1.05, 0.0)),
        (["gradient_norm"], [0.0, 0.0], (0.0, 0.05)),
        (["dice_teacher", "dice_student"], [0.90, 0.91], (0.82, 1.02)),
        (["dice_teacher"], [0.0, 0.9], (-0.02, 0.92)),
    ],
)
def test_axes_show_zero_or_all_shares_or_a_fifth_of_dice(names, values, expected):
    assert limits(names, values) == pytest.approx(expected)


def test_an_axis_of_dice_spans_a_fifth_where_there_is_room():
    low, high = limits(["dice_teacher"], [0.50, 0.51])
    assert high - low >= 0.2
    assert low <= 0.5 < 0.51 <= high


def test_curves_without_a_value_are_left_out():
    curves = {"a": [[math.nan, math.nan]], "b": [[math.nan, 1.0]]}
    assert filled_panels({"both": ["a", "b"], "none": ["a", "c"]}, curves) == {"both": {"b": [[math.nan, 1.0]]}}


def test_the_loss_is_black_and_takes_no_colour_of_its_terms():
    axes = [Figure().subplots() for _ in range(2)]
    draw_lines(axes[0], {"loss": [[1.0, 2.0]], "weighted_vq": [[0.5, 1.0]]}, label=readable)
    draw_lines(axes[1], {"weighted_vq": [[0.5, 1.0]]})
    total, term = axes[0].lines
    assert total.get_color() == "#222222"
    assert term.get_color() == axes[1].lines[0].get_color() != total.get_color()
    assert [line.get_label() for line in axes[0].lines] == ["Loss", "VQ"]


def test_a_value_between_epochs_without_one_is_seen():
    axes = Figure().subplots()
    draw_lines(axes, {"a": [[math.nan, 1.0, math.nan]], "b": [[1.0] * 40]})
    assert [line.get_marker() for line in axes.lines] == ["o", "None"]


def test_curves_that_begin_late_have_the_epochs_of_the_others():
    axes = [Figure().subplots() for _ in range(2)]
    draw_lines(axes[0], {"late": [[math.nan] * 5 + [1.0, 2.0]]})
    draw_lines(axes[1], {"whole": [[1.0] * 7]})
    assert axes[0].get_xlim() == axes[1].get_xlim()


@pytest.mark.parametrize(
    ("name", "text"),
    [("weighted_vq", "VQ"), ("dice_teacher", "Teacher"), ("reconstruction_unlabeled", "Reconstruction unlabelled")],
)
def test_names_of_curves_are_words(name, text):
    assert readable(name) == text
