"""The queue: every point runs once and is counted once, whoever dies and whoever else starts."""

import threading
from collections import Counter
from dataclasses import replace

import pytest
from sweep_recipes import recipe_of

from gafscope.errors import UserError
from gafscope.sweep.points import MOST_DEATHS, settled, unfinished
from gafscope.sweep.queue import Queue
from gafscope.sweep.storage import open_storage
from gafscope.sweep.tables import trials_table

RUN = {"seed": 0, "validation_accuracy": 0.5}


def counts(queue):
    """How many complete trials each point has."""
    trials = queue.trials().values()
    return [sum(1 for t in mine if t.state.name == "COMPLETE") for mine in trials]


def test_every_point_is_queued_once_by_however_many_starters(tmp_path):
    recipe = recipe_of(tmp_path)
    queues = [Queue(recipe, name) for name in "abc"]
    for queue in queues:
        queue.fill()
        queue.fill()
    assert [len(mine) for mine in queues[0].trials().values()] == [1] * 8


def test_two_trials_of_one_point_run_one_after_the_other_and_count_once(tmp_path):
    """As two starters leave them that looked at the same moment."""
    recipe = recipe_of(tmp_path, grid={"tau": [0.5]}, seeds=1)
    first, second = Queue(recipe, "a"), Queue(recipe, "b")
    first.fill()
    (point,) = first.trials()
    import optuna

    waiting = optuna.trial.TrialState.WAITING
    first._study.add_trial(optuna.create_trial(state=waiting, user_attrs={"point": point}))
    (claim,) = first.claim(5)
    assert second.claim(5) == []
    first.finish(claim, [RUN], 0.5)
    assert second.claim(5) == []
    (mine,) = second.trials().values()
    assert [t.state.name for t in mine] == ["COMPLETE", "FAIL"]
    assert len(trials_table(second)) == 1


def test_workers_that_claim_at_the_same_moment_never_share_a_trial(tmp_path):
    recipe = recipe_of(tmp_path, grid={"tau": [i / 10 for i in range(1, 13)]})
    Queue(recipe).fill()
    claimed: list[int] = []
    start = threading.Barrier(4)

    def worker(name):
        queue = Queue(recipe, name)
        start.wait()
        while claims := queue.claim(2):
            claimed.extend(claim.number for claim in claims)

    threads = [threading.Thread(target=worker, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(claimed) == Counter(range(24))


def test_a_dead_workers_trial_is_run_again_and_its_late_result_is_not_counted(tmp_path):
    recipe = recipe_of(tmp_path, grid={"tau": [0.5]}, seeds=1)
    dead, alive = Queue(recipe, "dead"), Queue(recipe, "alive")
    dead.fill()
    (lost,) = dead.claim(1)
    assert alive.claim(1) == []
    alive.bury("dead")
    (again,) = alive.claim(1)
    assert again.values == lost.values
    dead.finish(lost, [RUN], 0.1)  # it was not dead after all
    assert counts(alive) == [0]
    alive.finish(again, [RUN], 0.5)
    assert counts(alive) == [1]
    assert all(map(settled, alive.trials().values()))


def test_a_trial_without_signs_of_life_is_run_again(tmp_path):
    """Also one whose worker died right after the claim, before its first own heartbeat."""
    import sqlalchemy

    recipe = recipe_of(tmp_path, grid={"tau": [0.5]}, seeds=1)
    dead, alive = Queue(recipe, "dead"), Queue(recipe, "alive")
    dead.fill()
    (lost,) = dead.claim(1)
    alive.fill()
    assert unfinished(next(iter(alive.trials().values())))[0].number == lost.number
    with alive._storage.engine.begin() as connection:
        past = sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
        assert connection.execute(past).rowcount == 1
    (again,) = alive.claim(1)
    assert (again.number, again.values) == (1, lost.values)


def test_what_kills_every_worker_is_given_up(tmp_path):
    recipe = recipe_of(tmp_path, grid={"tau": [0.5]}, seeds=1)
    queue = Queue(recipe, "w")
    for _ in range(MOST_DEATHS):
        assert len(queue.claim(1)) == 1
        queue.bury("w")
    assert queue.claim(1) == []
    assert all(map(settled, queue.trials().values()))
    table = trials_table(queue)
    assert f"died {MOST_DEATHS} times" in table["error"].iloc[0]


def test_a_trial_that_is_given_back_is_no_death(tmp_path):
    recipe = recipe_of(tmp_path, grid={"tau": [0.5]}, seeds=1)
    queue = Queue(recipe, "w")
    for _ in range(MOST_DEATHS + 2):
        (claim,) = queue.claim(1)
        queue.release(claim)
    assert len(queue.claim(1)) == 1


def test_errors_are_settled_until_they_are_to_be_retried(tmp_path):
    recipe = recipe_of(tmp_path, grid={"tau": [0.5]}, seeds=1)
    queue = Queue(recipe, "w")
    (claim,) = queue.claim(1)
    queue.fail(claim, "it diverged")
    assert queue.claim(1) == []
    assert trials_table(queue)["error"].tolist() == ["it diverged"]
    queue.fill(retry_failed=True)
    (claim,) = queue.claim(1)
    queue.finish(claim, [RUN], 0.5)
    assert trials_table(queue)["error"].tolist() == [""]


def test_a_grid_grows_and_settled_trials_stay(tmp_path):
    recipe = recipe_of(tmp_path, grid={"tau": [0.5]}, seeds=1)
    queue = Queue(recipe)
    (claim,) = queue.claim(1)
    queue.finish(claim, [RUN], 0.5)
    larger = Queue(recipe_of(tmp_path, grid={"tau": [0.5, 0.6]}, seeds=2))
    assert [c.values for c in larger.claim(9)] == [{"tau": 0.5}, {"tau": 0.6}, {"tau": 0.6}]
    assert counts(larger) == [1, 0, 0, 0]


def test_draws_are_the_same_when_they_are_run_again(tmp_path):
    space = {"lr": {"low": 0.01, "high": 0.1, "log": True}, "rule": ["gaf", "mean"]}
    search = {"sampler": "random", "trials": 2, "space": space}
    queue = Queue(recipe_of(tmp_path, grid=None, search=search), "w")
    first, second = queue.claim(5)
    assert first.values != second.values
    assert [s.seed for s in first.settings] == [0, 1]
    assert 0.01 <= first.settings[0].lr <= 0.1
    queue.bury("w")
    assert [claim.values for claim in queue.claim(5)] == [first.values, second.values]


def test_another_sweep_of_the_same_name_is_refused(tmp_path):
    recipe = recipe_of(tmp_path)
    Queue(recipe)
    with pytest.raises(UserError, match=r"'lr' is 0\.05 there and 0\.1 now"):
        Queue(replace(recipe, base=replace(recipe.base, lr=0.1)))
    with pytest.raises(UserError, match="'keys'"):
        Queue(recipe_of(tmp_path, grid={"rule": ["gaf"], "tau": [0.7], "lr": [0.1]}))
    Queue(replace(recipe, base=replace(recipe.base, data_dir="/elsewhere")))


def test_joining_needs_a_sweep_that_was_begun(tmp_path):
    recipe = recipe_of(tmp_path)
    with pytest.raises(UserError, match="without --join"):
        Queue(recipe, join=True)
    Queue(recipe)
    Queue(recipe, join=True)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nowhere", "address of a database"),
        ("sqlite:////proc/no/such/folder/x.db", "Cannot write"),
        ("postgresql+nosuchdriver://me:secret@localhost/x", "address of a database|driver"),
    ],
)
def test_a_storage_that_cannot_be_used_is_named(address, words):
    with pytest.raises(UserError, match=words) as error:
        open_storage(address, 1)
    assert "secret" not in str(error.value)
