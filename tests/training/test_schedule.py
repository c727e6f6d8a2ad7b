"""The time-step plan and the learning rate over it."""

import itertools
from dataclasses import replace

import pytest

from s2tdpt.errors import RecipeError
from s2tdpt.training.recipe import DataRecipe, ModelRecipe, Recipe, ScheduleRecipe
from s2tdpt.training.schedule import Position, Schedule, parse_plan


def _schedule(plan="1:6,4:2", steps=5, reserve=0.0, max_minutes=None, **schedule):
    recipe = Recipe("test", ModelRecipe("s2tdpt_tiny"), DataRecipe("digits"), schedule=ScheduleRecipe(plan, **schedule))
    return Schedule(replace(recipe, max_minutes=max_minutes), steps, reserve_seconds=reserve)


def _run(schedule, seconds_per_step=0.0, elapsed=0.0):
    """Positions, learning rate factors and times of a whole run."""
    position, seen = Position(started=elapsed), []
    while not schedule.finished(position):
        seen.append((position, schedule.lr_factor(position, elapsed), elapsed))
        elapsed += seconds_per_step
        position = schedule.advance(position, elapsed)
    return seen, elapsed


def test_plan():
    first, last = parse_plan("1:190, 4:11")
    assert (first.time_steps, first.epochs, first.first_epoch, first.cost) == (1, 190, 0, 190)
    assert (last.time_steps, last.epochs, last.first_epoch, last.cost) == (4, 11, 190, 11 * 3.25)


@pytest.mark.parametrize("text", ["", "4", "4:", ":4", "0:3", "4:0", "4:2,", "4:2;1:3", "-1:3", "4:2.5", "a:b", "260"])
def test_bad_plans_are_refused(text):
    with pytest.raises(RecipeError, match="not a time-step plan"):
        parse_plan(text)


def test_without_a_clock_every_step_is_done_once_and_in_order():
    schedule = _schedule("1:2,2:1,4:3", steps=4)
    seen, _ = _run(schedule, seconds_per_step=1e6)
    assert [schedule.epoch(position) for position, _, _ in seen] == [(e, s) for e in range(6) for s in range(4)]
    assert [position.phase for position, _, _ in seen] == [0] * 8 + [1] * 4 + [2] * 12
    assert len(seen) == schedule.total_steps == 24
    assert schedule.epochs == 6


def test_cosine_to_switch_lr_then_straight_to_final_lr():
    schedule = _schedule("1:6,4:2", warmup=0.0, switch_lr=0.2, final_lr=0.05)
    assert schedule.factor(0, 0.0) == 1
    assert schedule.factor(0, 0.5) == pytest.approx(0.6)
    assert schedule.factor(0, 1.0) == pytest.approx(0.2)
    assert schedule.factor(1, 0.0) == pytest.approx(0.2)
    assert schedule.factor(1, 0.5) == pytest.approx(0.125)
    assert schedule.factor(1, 1.0) == pytest.approx(0.05)


def test_the_shape_runs_through_all_phases_but_the_last():
    several, one = _schedule("1:3,2:3,4:2", warmup=0.0), _schedule("1:6,4:2", warmup=0.0)
    assert several.factor(0, 0.5) == pytest.approx(one.factor(0, 0.25))
    assert several.factor(1, 0.5) == pytest.approx(one.factor(0, 0.75))


@pytest.mark.parametrize(("shape", "middle", "end"), [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1, 1)])
def test_a_single_phase_goes_from_one_to_final_lr(shape, middle, end):
    schedule = _schedule("4:6", warmup=0.0, shape=shape, switch_lr=0.5, final_lr=0.1)
    assert [schedule.factor(0, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1, middle, end])


def test_shapes_differ_between_their_ends():
    cosine, linear = (_schedule("4:6", warmup=0.0, shape=shape) for shape in ("cosine", "linear"))
    assert cosine.factor(0, 0.25) == pytest.approx((1 + 0.5**0.5) / 2)
    assert linear.factor(0, 0.25) == pytest.approx(0.75)
    constant = _schedule("1:6,4:2", warmup=0.0, shape="constant")
    assert [constant.factor(0, 1.0), constant.factor(1, 0.5)] == pytest.approx([1, 0.5])


def test_warmup_is_linear_over_its_fraction_of_the_run():
    schedule = _schedule("1:6,4:2", steps=10, warmup=0.25, shape="constant")
    factors = [factor for _, factor, _ in _run(schedule)[0]]
    assert factors[:20] == pytest.approx([(step + 0.5) / 20 for step in range(20)])
    assert factors[20:60] == pytest.approx([1.0] * 40)


def test_max_minutes_shares_the_clock_by_cost_and_ends_in_time():
    schedule = _schedule("1:600,4:50", steps=100, max_minutes=10, reserve=20, warmup=0.0)
    seen, end = _run(schedule, seconds_per_step=0.25, elapsed=30.0)
    switch = next(elapsed for position, _, elapsed in seen if position.phase == 1)
    assert switch == pytest.approx(30 + 550 * 600 / (600 + 50 * 3.25), abs=0.25)
    assert end == pytest.approx(580, abs=0.25)
    assert seen[-1][1] < 0.001
    assert all(b[1] <= a[1] for a, b in itertools.pairwise(seen))
    assert next(schedule.epoch(position) for position, _, _ in seen if position.phase == 1) == (600, 0)


def test_max_minutes_gives_time_saved_early_to_later_phases():
    schedule = _schedule("1:6,4:600", steps=10, max_minutes=10)
    seen, end = _run(schedule, seconds_per_step=0.01)
    assert sum(position.phase == 0 for position, _, _ in seen) == 60
    assert end == pytest.approx(60.6)  # all steps done: the clock never cut
    slow, end = _run(schedule, seconds_per_step=1.0)
    assert end == pytest.approx(600, abs=1)
    assert len(slow) == 600


def test_max_minutes_leaves_out_the_time_before_a_phase():
    schedule = _schedule("1:100,1:100", steps=100, max_minutes=10, warmup=0.0)
    assert schedule.progress(Position(1, 0, 500.0), 500.0) == 0
    assert schedule.progress(Position(1, 0, 500.0), 550.0) == pytest.approx(0.5)
    assert schedule.advance(Position(0, 3, 0.0), 700.0) == Position(1, 0, 700.0)
    assert schedule.finished(schedule.advance(Position(1, 0, 700.0), 700.1))


def test_a_run_entered_anywhere_goes_on_the_same():
    schedule = _schedule("1:20,4:5", steps=10, max_minutes=1)
    seen, _ = _run(schedule, seconds_per_step=0.3)
    position, factor, elapsed = seen[120]
    assert schedule.lr_factor(Position(position.phase, position.step, position.started), elapsed) == factor


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(RecipeError, match=r"data\.batch_size"):
        _schedule(steps=0)
