from __future__ import annotations

import dataclasses
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from common.planning.decompositions import Decompositions
from common.search.policies import POLICIES, Start
from common.search.policies.samplers import DrawnLevels, tried_trials
from common.search.probabilities import Probabilities, elite_of, even_logits
from common.search.settings import SearchSettings
from common.search.space import Space
from common.search.study.attempts import OUTCOME, SET_ASIDE, Attempts
from tests.networks import tiny_cnn

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SETTINGS = SearchSettings(method="svd", trials=12, batch=4, elite=0.5)


@pytest.fixture(scope="module")
def space() -> Space:
    model = tiny_cnn()
    return Space(model, X, Decompositions(model), "svd")


def score(levels: dict[str, int]) -> float:
    return -float(sum(level**2 for level in levels.values()))


def run(study: optuna.Study, space: Space, trials: int, made: dict[str, int] | None = None) -> list[dict[str, Any]]:
    """Run trials whose merit needs no network. ``made`` are the levels of their plans; None for the drawn levels."""

    def objective(trial: optuna.Trial) -> float:
        levels = {name: trial.suggest_int(name, d.low, d.high) for name, d in space.distributions().items()}
        trial.set_user_attr(OUTCOME, {"rung": 2, "merit": score(levels), "levels": made or levels})
        return score(levels)

    study.optimize(objective, n_trials=trials)
    return [trial.params for trial in study.trials]


def study_with(space: Space, settings: SearchSettings, **arguments: Any) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    start = Start(space, settings, even_logits(space.candidates))
    sampler = POLICIES[settings.policy].sampler(start, None)
    return optuna.create_study(sampler=sampler, direction="maximize", load_if_exists=True, **arguments)


@pytest.mark.parametrize("policy", ["adaptive", "static", "random", "tpe", "nsga2"])
def test_a_stop_changes_nothing(policy: Any, space: Space) -> None:
    settings = dataclasses.replace(SETTINGS, policy=policy)
    whole = run(study_with(space, settings), space, 12)
    storage = optuna.storages.InMemoryStorage()
    run(study_with(space, settings, storage=storage, study_name="s"), space, 5)
    assert run(study_with(space, settings, storage=storage, study_name="s"), space, 7) == whole
    other = dataclasses.replace(settings, seed=1)
    assert run(study_with(space, other), space, 12) != whole


def test_the_policy_moves_toward_the_elite_after_every_batch(space: Space) -> None:
    study = study_with(space, SETTINGS)
    run(study, space, 11)
    assert isinstance(study.sampler, DrawnLevels)
    expected = Probabilities(even_logits(space.candidates))
    trials = [((2.0, score(trial.params)), trial.params) for trial in study.trials]
    for place in range(12):
        if place in (4, 8):
            expected.update(elite_of(trials[:place], SETTINGS.elite), SETTINGS.smoothing)
        assert study.sampler.probabilities(study, place).by_layer == expected.by_layer
    last = POLICIES["adaptive"].last_probabilities(study, Start(space, SETTINGS, even_logits(space.candidates)))
    assert last.by_layer != Probabilities(even_logits(space.candidates)).by_layer


def test_the_policy_learns_from_its_draws_not_from_the_plans_made_of_them(space: Space) -> None:
    def probabilities(levels: dict[str, int] | None) -> dict[str, list[float]]:
        study = study_with(space, SETTINGS)
        run(study, space, 4, levels)
        assert isinstance(study.sampler, DrawnLevels)
        return study.sampler.probabilities(study, 4).by_layer

    made = {name: d.low for name, d in space.distributions().items()}
    assert probabilities(made) == probabilities(None) != Probabilities(even_logits(space.candidates)).by_layer


def test_the_last_policy_of_a_stopped_study_is_that_of_its_next_trial(space: Space) -> None:
    study = study_with(space, SETTINGS)
    run(study, space, 5)
    assert isinstance(study.sampler, DrawnLevels)
    last = POLICIES["adaptive"].last_probabilities(study, Start(space, SETTINGS, even_logits(space.candidates)))
    assert last.by_layer == study.sampler.probabilities(study, 5).by_layer
    assert last.by_layer != study.sampler.probabilities(study, 12).by_layer


def test_a_trial_whose_process_died_is_sampled_as_if_it_had_not(space: Space) -> None:
    whole = run(study_with(space, SETTINGS), space, 12)
    study = study_with(space, SETTINGS)
    run(study, space, 6)
    dead = study.ask()  # place 6
    dead.suggest_int("conv", space.distributions()["conv"].low, space.distributions()["conv"].high)
    dead.set_user_attr(SET_ASIDE, "interrupted")
    study.tell(dead, state=TrialState.FAIL)
    Attempts(study, 12).retry({})
    run(study, space, 6)
    attempts = Attempts(study, 12)
    assert [attempts.judged[place].params for place in range(12)] == whole


def test_a_trial_on_a_higher_rung_has_the_greater_merit(space: Space) -> None:
    study = study_with(space, SETTINGS)
    for rung, value, state in ((1, 0.9, TrialState.PRUNED), (2, 0.5, TrialState.COMPLETE)):
        trial = study.ask()
        trial.suggest_int("conv", space.distributions()["conv"].low, space.distributions()["conv"].high)
        trial.set_user_attr(OUTCOME, {"rung": rung, "merit": value, "levels": {"conv": rung}})
        study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
    tried = tried_trials(study)
    assert [(trial.place, trial.merit, trial.made) for trial in tried] == [
        (0, (1.0, 0.9), {"conv": 1}),
        (1, (2.0, 0.5), {"conv": 2}),
    ]
    assert [trial.drawn for trial in tried] == [trial.params for trial in study.trials]
    assert elite_of([(trial.merit, trial.made) for trial in tried], 0.5) == [{"conv": 2}]


def test_a_trial_that_ends_late_moves_the_policy_from_its_batch_on(space: Space) -> None:
    study = study_with(space, SETTINGS)
    run(study, space, 3)
    late = study.ask()  # place 3, of the first batch
    levels = {name: late.suggest_int(name, d.low, d.high) for name, d in space.distributions().items()}
    run(study, space, 6)
    assert isinstance(study.sampler, DrawnLevels)
    without = study.sampler.probabilities(study, 9).by_layer
    late.set_user_attr(OUTCOME, {"rung": 2, "merit": 9.0, "levels": levels})
    study.tell(late, 9.0)
    afresh = POLICIES["adaptive"].sampler(Start(space, SETTINGS, even_logits(space.candidates)), None)
    assert isinstance(afresh, DrawnLevels)
    for place in (9, 4, 9):
        assert study.sampler.probabilities(study, place).by_layer == afresh.probabilities(study, place).by_layer
    assert study.sampler.probabilities(study, 9).by_layer != without
