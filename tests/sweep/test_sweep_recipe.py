"""Recipes: what they lay out, and what they refuse in one sentence that says what to do."""

import json

import pytest
from sweep_recipes import SETTINGS, recipe_of

from gafscope.errors import UserError
from gafscope.sweep.recipe import recipe_from_json
from gafscope.sweep.values import put

RANGE = {"low": 0.01, "high": 0.1, "log": True}


def test_a_list_of_grids_is_laid_out_in_order_and_doubles_count_once(tmp_path):
    grid = [{"rule": ["mean"]}, {"rule": ["gaf"], "tau": [0.7, 1]}, {"rule": ["mean", "mean"]}]
    recipe = recipe_of(tmp_path, grid=grid)
    assert list(recipe.points) == [
        {"rule": "mean"},
        {"rule": "gaf", "tau": 0.7},
        {"rule": "gaf", "tau": 1.0},
    ]
    assert recipe.keys == ["rule", "tau"]
    assert recipe.seeds == (0, 1)


def test_settings_go_over_the_preset_and_options_become_text(tmp_path):
    base = recipe_of(tmp_path).base
    assert (base.label_noise, base.steps, base.threads) == (0.3, 60, 1)
    assert base.model_options == {"hidden": "16"}
    changed = put(base, {"model_options.hidden": "8,4", "model_options.norm": "layer", "tau": None})
    assert changed.model_options == {"hidden": "8,4", "norm": "layer"}
    assert put(changed, {"model_options.norm": None}).model_options == {"hidden": "8,4"}


def test_one_option_can_be_swept(tmp_path):
    recipe = recipe_of(tmp_path, grid={"rule_options.anchor": ["first", "best"]})
    assert [p["rule_options.anchor"] for p in recipe.points] == ["first", "best"]


@pytest.mark.parametrize("search", [None, {"trials": 3, "space": {"lr": RANGE}}])
def test_a_worker_reads_the_recipe_that_was_written(tmp_path, search):
    recipe = recipe_of(tmp_path, search=search, grid=None if search else {"tau": [0.5]})
    assert recipe_from_json(json.loads(json.dumps(recipe.as_json()))) == recipe


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gird": {}}, ["gird", "grid"]),
        ({"preset": "quik"}, ["quik", "quick"]),
        ({"settings": {"taus": 1}}, ["taus", "tau"]),
        ({"settings": {"steps": 1.5}}, ["steps", "a whole number", "1.5"]),
        ({"settings": {"augment": 1}}, ["augment", "true or false", "1"]),
        ({"settings": {"run_dir": "x"}}, ["run_dir", "folder"]),
        ({"settings": [1]}, ["settings", "[1]"]),
        ({"grid": {"tau": 0.5}}, ["tau", "list", "[0.5]"]),
        ({"grid": {"tau": ["high"]}}, ["tau", "a number", "high"]),
        ({"grid": {"seed": [1]}}, ["seed", "seeds:"]),
        ({"grid": {"model_options": [3]}}, ["model_options", "3"]),
        ({"grid": {"model.hidden": [3]}}, ["model.hidden", "model_options.NAME"]),
        ({"grid": None}, ["grid", "search", "neither"]),
        ({"search": {"trials": 1, "space": {"lr": RANGE}}}, ["both"]),
        ({"seeds": 0}, ["seeds", "0"]),
        ({"seeds": [0, "a"]}, ["seeds", "'a'"]),
        ({"objective": "test_accuracy"}, ["test_accuracy", "validation_accuracy"]),
        ({"objective": "speed"}, ["speed", "validation_loss"]),
        ({"workers": 0}, ["workers", "0"]),
        ({"devices": 3}, ["devices", "3"]),
        ({"name": "a b"}, ["name", "a b"]),
        ({"grid": {"tau": []}}, ["tau", "[]"]),
    ],
)
def test_mistakes_are_named(tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        recipe_of(tmp_path, **changes)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"trials": 0, "space": {"lr": RANGE}}, ["trials", "0"]),
        ({"trials": 1, "sampler": "grid", "space": {"lr": RANGE}}, ["'grid' instead of 'search'"]),
        ({"trials": 1, "space": {}}, ["space"]),
        ({"trials": 1, "space": {"lr": {"low": 1}}}, ["lr", "high"]),
        ({"trials": 1, "space": {"lr": {"low": 1, "high": 0.5}}}, ["lr", "below"]),
        ({"trials": 1, "space": {"lr": {"low": 0, "high": 1, "log": True}}}, ["lr", "above 0"]),
        ({"trials": 1, "space": {"lr": RANGE | {"lag": 1}}}, ["lag", "log"]),
        ({"trials": 1, "space": {"lrr": RANGE}}, ["lrr", "lr"]),
        ({"trials": 1, "tries": 2, "space": {"lr": RANGE}}, ["tries", "trials"]),
    ],
)
def test_mistakes_of_a_search_are_named(tmp_path, search, words):
    with pytest.raises(UserError) as error:
        recipe_of(tmp_path, grid=None, search=search)
    for word in words:
        assert word in str(error.value)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    assert recipe_of(tmp_path, settings=SETTINGS | {"lr": "1e-3"}).base.lr == 0.001
