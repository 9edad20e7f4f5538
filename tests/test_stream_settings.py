"""Optimisers and problems as settings: of `Training`, of a stream, of an experiment."""

import dataclasses
import json

import clouds
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.continual import optimisers
from jaxmerge.continual.optimisers import by_name, sgd
from jaxmerge.continual.problems import classification
from jaxmerge.models.alexnet.learner import alexnet
from jaxmerge.models.mlp.learner import mlp
from jaxmerge.models.resnet.learner import resnet18
from jaxmerge.studies import cells
from jaxmerge.studies.config import Experiment
from jaxmerge.studies.conversion import to_plain
from jaxmerge.studies.loop import Stream
from jaxmerge.studies.seed import steps_of
from jaxmerge.studies.settings import changed, restored
from jaxmerge.training.how import Training
from jaxmerge.training.model_learner import from_model


@dataclasses.dataclass(frozen=True)
class Clouds(Experiment):
    """Clouds of points, as an experiment."""

    lr: float = 0.01

    def scenario(self, seed):
        return clouds.scenario(clouds.source())

    def learner(self, scenario):
        return from_model({"mlp": {"inputs": 12, "hidden": [4], "classes": 6}}, scenario)


def plans(**settings):
    return {p.name: p for p in changed(Clouds(), settings).plans()}


@pytest.mark.parametrize(
    "given",
    ["sgd", {"optimiser": "sgd"}, {"sgd": {}}, {"sgd": None}, optimisers.sgd()],
    ids=["name", "kind", "settings", "null", "spec"],
)
def test_an_optimiser_in_every_spelling_is_one(given):
    training = Training(optimiser=given)
    assert training == Training(optimiser=sgd())
    assert hash(training) == hash(Training(optimiser=sgd()))
    assert training.optimiser_of(7) == training.optimiser_of() == sgd()
    assert "optimiser=sgd()" in repr(training)


def test_without_one_the_four_fields_are_adamw_under_a_cosine():
    training = Training(rate=0.02, warmup=3, weight_decay=0.0, clip=2.0)
    expected = optimisers.cosine(0.02, 0.0, 0.0, 2.0, np.float32(3))
    assert training.optimiser_of(10) == expected
    assert Training(warmup=0.5).optimiser_of(8).arguments["warm"] == 4


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"optimiser": "sgdd"}, "No optimiser is named 'sgdd': did you mean sgd?"),
        ({"optimiser": {"sgd": {"rate": -1.0}}}, "sgd: rate must be a positive number, got -1.0"),
        ({"optimiser": {"adam": {"b3": 0.5}}}, "adam has no setting 'b3'"),
        ({"optimiser": {"sgd": 0.5}}, "the settings of sgd are key: value pairs, got 0.5"),
        (
            {"optimiser": "sgd", "rate": 0.5},
            "rate is AdamW's under a cosine, and the optimiser",
        ),
        ({"optimiser": "adam", "clip": 2.0, "warmup": 5}, "warmup and clip are AdamW's"),
        ({"optimiser": {"by_name": {"rules": [["(", "sgd"]]}}}, "'(' is no regular expression"),
        ({"optimiser": {"by_name": {"rules": [[".*", "sdg"]]}}}, "No optimiser is named 'sdg'"),
        ({"optimiser": {"by_name": {"rules": ["sgd"]}}}, "rules are pairs of a pattern and an"),
    ],
)
def test_what_is_wrong_with_an_optimiser_is_said(fields, what):
    with pytest.raises(ValueError) as error:
        Training(**fields)
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def test_counts_are_whole_numbers_of_python_or_numpy():
    assert Training(batch=np.int64(8), accumulate=4) == Training(batch=8, accumulate=4)
    for odd in (True, 8.0, "8"):
        with pytest.raises(ValueError, match="batch must be at least 1, and whole"):
            Training(batch=odd)


@pytest.mark.parametrize("found", [3, ["sgd"], 0.5])
def test_a_setting_of_several_types_names_them_all(found):
    with pytest.raises(ValueError, match=r"optimiser is a text or a mapping .* or null, got"):
        restored(Clouds(optimiser="sgd"), {"optimiser": found})


@pytest.mark.parametrize("name, found", [("hidden", 8), ("hidden", "abc"), ("dropout", 0.5)])
def test_layers_of_a_perceptron_are_a_list(name, found):
    with pytest.raises(ValueError, match=f"{name} is a list of .*; found {found!r}"):
        mlp(**{name: found}).build()


@pytest.mark.parametrize("as_given", [tuple, list, np.array])
def test_layers_of_a_network_stay_numbers_where_its_spec_is_traced(as_given):
    networks = (
        mlp(4, as_given((3, 2)), 2, dropout=as_given((0.2, 0.5))),
        alexnet(2, filters=as_given((2, 2, 2)), hidden=as_given((4, 4))),
        resnet18(2, width=2, blocks=as_given((1, 1, 1, 1))),
    )
    for network in networks:
        shapes = jax.eval_shape(lambda spec: spec.build().init(jax.random.key(0)), network)
        assert "head/kernel" in shapes
    outputs = jax.jit(lambda spec, p, x: spec.build().train(p, x, 0, jax.random.key(0)).logits)
    params = networks[0].build().init(jax.random.key(0))
    assert outputs(networks[0], params, jnp.ones((5, 4))).shape == (5, 2)


def test_groups_of_leaves_from_settings_are_those_of_python():
    rules = [["head/.*", {"sgd": {"rate": 0.1}}], [".*", "adam"]]
    read = Training(optimiser={"by_name": {"rules": rules}}).optimiser_of()
    made = by_name((("head/.*", sgd(0.1)), (".*", optimisers.adam())))
    leaves = {"head/kernel": jnp.ones(2), "layer/kernel": jnp.ones(3)}
    one, other = (spec.build()(5) for spec in (read, made))
    grads = {n: 2 * p for n, p in leaves.items()}
    for n, p in one.update(grads, one.init(leaves), leaves)[0].items():
        np.testing.assert_array_equal(p, other.update(grads, other.init(leaves), leaves)[0][n])


def test_a_stream_has_an_optimiser_of_its_own_and_the_others_have_the_experiment_s():
    streams = {
        "sgd": {"training": {"optimiser": {"sgd": {"rate": 0.5}}, "epochs": 1}},
        "plain": {},
        "AdamW": {"training": {"optimiser": None, "warmup": 0.2}},
    }
    made = {p.name: p.training() for p in dataclasses.replace(Clouds(), streams=streams).plans()}
    assert made["sgd"] == Training(epochs=1, batch=32, optimiser=sgd(0.5))
    assert (made["plain"].rate, made["plain"].optimiser) == (0.01, None)
    one = dataclasses.replace(Clouds(), streams=streams, optimiser="adam")
    made = {p.name: p.training() for p in one.plans()}
    assert made["sgd"].optimiser == sgd(0.5)
    assert made["plain"].optimiser == optimisers.adam() == one.how().optimiser
    assert (made["AdamW"].rate, made["AdamW"].warmup, made["AdamW"].optimiser) == (0.01, 0.2, None)
    one.check()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (
            {"training": {"optimiser": "sdg"}},
            "stream 'x': Training: optimiser: No optimiser",
        ),
        ({"training": {"optimiser": "sgd", "rate": 1e-4}}, "rate is AdamW's under a cosine"),
        ({"problem": "clasification"}, "No problem is named 'clasification': did you mean"),
        ({"problem": {"classification": {"columns": "past"}}}, "columns must be one of"),
        ({"problem": "next_token"}, "measures shares of right answers"),
        ({"methods": ["supsup", "prd", "onpro"]}, "prd and onpro both replace the objective"),
    ],
)
def test_a_stream_that_cannot_be_is_refused_when_it_is_checked(settings, what):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(Clouds(), streams={"x": settings}).check()
    assert what in str(error.value)


def test_an_experiment_that_contradicts_itself_is_refused_when_it_is_checked():
    Clouds(optimiser="sgd").check()  # its lr is what the file has for AdamW
    with pytest.raises(ValueError, match="lr and clip are AdamW's under a cosine"):
        Clouds(optimiser="sgd", lr=0.5, clip=3.0).check()
    streams = {"plain": {}, "other": {"deploys": ["MagMix"]}}
    with pytest.raises(ValueError, match="problem: No problem is named 'x'") as error:
        Clouds(problem="x", streams=streams).check()
    assert str(error.value).count("'x'") == 1  # not again for each stream
    assert "no merge is named 'MagMix'" in str(error.value)

    class Forgets(Clouds):
        def how(self, task=None):
            return Training()

    with pytest.raises(ValueError, match="makes no use of optimiser"):
        Forgets(optimiser="sgd").check()


def test_problems_of_streams_and_of_the_experiment():
    streams = {"seen": {"problem": {"classification": {"columns": "seen"}}}, "plain": {}}
    made = lambda **more: {
        p.name: p.problem for p in dataclasses.replace(Clouds(), streams=streams, **more).plans()
    }
    assert made() == {"seen": classification("seen"), "plain": classification("own")}
    assert made(problem="classification")["plain"] == classification()
    assert Clouds(problem={"classification": {"columns": "all"}}).problem_spec() == classification()


def test_the_first_model_is_shared_by_equal_problems_and_optimisers_only():
    scenario = clouds.scenario(clouds.source())
    steps = lambda **other: steps_of(
        scenario,
        dataclasses.replace(Clouds(), streams={"a": {}, "b": {"start": "base", **other}}).plans(),
        Clouds().how, (),
    )  # fmt: skip
    first = Clouds().how().steps(len(scenario[0].rows["train"]))
    assert steps(problem="classification") == steps(training={"optimiser": "sgd"})
    assert steps() == steps(problem="classification") - first


def test_new_settings_name_new_cells_and_leave_the_names_of_old_ones():
    plain = to_plain(Clouds())
    before = {k: v for k, v in plain.items() if k not in ("optimiser", "problem")}
    key = lambda recipe: cells.key("clouds", recipe, "sequential", "MagMax", None)
    assert key(plain) == key(before)
    assert key(to_plain(Clouds(optimiser="sgd"))) != key(before)
    assert json.loads(json.dumps(to_plain(Clouds(optimiser={"sgd": {"rate": 0.1}})))) == to_plain(
        Clouds(optimiser={"sgd": {"rate": 0.1}})
    )


def test_a_loss_that_diverges_names_the_optimiser():
    scenario = clouds.scenario(clouds.source())
    learner = Clouds().learner(scenario)
    how = Training(epochs=2, batch=8, optimiser={"sgd": {"rate": 1e30}})
    with pytest.raises(FloatingPointError, match=r"lower the learning rate \(sgd\(rate=1e\+30\)\)"):
        Stream(scenario, learner, training=how).run()
