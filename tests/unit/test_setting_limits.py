"""The ends of what settings can be: every number of both families is bounded or checked."""

import dataclasses
import math
import typing

import pytest

import families
from engine.config.fields import ConfigError, override, sections, without_none
from engine.optim.plan import check_settings, make_plan

MODELS = ("efficientdet-d0", "maskrcnn-r50-fpn")
# Numbers without limits of their own: what a network's shape allows is checked where it is known,
# a mean may be any number, and a negative margin means all anchors.
ELSEWHERE = {
    *("image_size", "min_level", "max_level"),
    *("backbone_width", "backbone_repeats", "canvases", "res5_dilation"),
    *("rpn_positive_overlap", "rpn_negative_overlap", "fg_thresh", "bg_thresh_hi", "bg_thresh_lo"),
}
ANY = {"mean_rgb", "rpn_straddle_thresh"}
MATTERPORTS = {"coding_offset", "iou_offset"}  # are -1 there


def is_numeric(hint):
    hint = without_none(hint)
    return hint in (int, float) or any(
        is_numeric(part) for part in typing.get_args(hint) if part is not Ellipsis
    )


def numbers(model_name):
    """Returns section.field -> field of all numbers of a family."""
    found = {}
    for name, section in sections(type(families.base_config(model_name))):
        hints = typing.get_type_hints(section)
        for field in dataclasses.fields(section):
            if is_numeric(hints[field.name]):
                found[f"{name}.{field.name}"] = field
    return found


def resolved(model_name, values):
    """Does what a run does before it looks for data and devices."""
    config = override(families.base_config(model_name), values, source="test")
    check_settings(config.train, config.data, config.eval)
    families.load(model_name).validate(config)
    make_plan(config.train, config.optim, num_examples=100, num_ranks=2)
    return config


def filled(value, number):
    """Returns `number` in place of every number of a value."""
    if isinstance(value, (tuple, list)):
        return [filled(item, number) for item in value] or [number] * 3
    return number


@pytest.mark.parametrize("model_name", MODELS)
def test_each_number_has_limits_or_is_checked(model_name):
    free = {
        field.name
        for field in numbers(model_name).values()
        if all(limit is None for limit in field.metadata.get("limits", ()))
    }
    assert free <= ELSEWHERE | ANY


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1, 0, 1, 1e30, 10**30])
def test_a_number_works_or_is_refused_by_name(model_name, number):
    base = families.base_config(model_name)
    for key, field in numbers(model_name).items():
        section, _, name = key.partition(".")
        value = filled(getattr(getattr(base, section), name), number)
        try:
            resolved(model_name, {key: value})
        except ConfigError as error:
            assert name in str(error), (key, value)
        else:
            assert math.isfinite(number), (key, value)
            assert number >= 0 or field.name in ANY | MATTERPORTS, (key, value)


@pytest.mark.parametrize("model_name", MODELS)
def test_an_empty_list_works_or_is_refused_by_name(model_name):
    for key, field in numbers(model_name).items():
        try:
            resolved(model_name, {key: []})
        except ConfigError as error:
            assert field.name in str(error), key


@pytest.mark.parametrize(
    ("model_name", "key", "number"),
    [
        *(("efficientdet-d0", key, 0) for key in ("loss.delta", "model.bn_epsilon")),
        *(("efficientdet-d0", key, 1) for key in ("loss.label_smoothing", "model.bn_momentum")),
        *(("maskrcnn-r50-fpn", key, 0) for key in ("rpn_box_beta", "box_beta", "gn_epsilon")),
        *((name, key, 0) for name in MODELS for key in ("jitter_min", "adam_epsilon")),
        *((name, key, 1) for name in MODELS for key in ("adam_beta2", "momentum")),
        *((name, "loss_scale", 0) for name in MODELS),
    ],
)
def test_what_gives_no_numbers_or_learns_nothing_is_refused(model_name, key, number):
    with pytest.raises(ConfigError, match=f"{key.split('.')[-1]}={number}.*: expected"):
        resolved(model_name, {key: number})
