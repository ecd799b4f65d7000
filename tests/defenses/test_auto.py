"""The search of method auto: its decisions and its verdict."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from defending import CPU, backdoored_setting, classifier, pictures, run, small
from helpers import lessen_effort
from scripted import script_network
from torch import nn

from bcu_cli.defenses import auto
from bcu_cli.defenses.adversarial import effort, evidence, mixing
from bcu_cli.defenses.adversarial.mixing import Mixture
from bcu_cli.defenses.adversarial.residual_search import ModelPair, ResidualSearch, TriggerSuccess, spread
from bcu_cli.defenses.adversarial.searching import LIMITS, Searcher, Weaknesses
from bcu_cli.defenses.adversarial.sinusoids import NUM_KINDS
from bcu_cli.defenses.auto import Auto, AutoOptions
from bcu_cli.evaluation.adversary import UNIVERSAL, Adversary
from bcu_cli.evaluation.measures import Proportion, agreement
from bcu_cli.evaluation.spectrum import Candidate, SpectralAdversary
from bcu_cli.images.folder import hold_out
from bcu_cli.models.normalisation import normalised_by
from bcu_cli.training.inference import predict
from bcu_cli.training.optimizers import Adam, AdamW

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bcu_cli.images.folder import ImageSet
    from bcu_cli.models import Classifier
    from bcu_cli.training.loop import Stage


@pytest.fixture(autouse=True)
def few_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests hold out few images, to be quick, and mix nothing but in ``test_mixing.py``."""
    monkeypatch.setattr(evidence, "MIN_HELD_OUT", 8)
    monkeypatch.setattr(mixing, "MIN_UNMIXED_AGREEMENT", 0.0)


@pytest.fixture(autouse=True)
def one_class_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny networks answer most noise with one class, which is no reason against a verdict here."""
    monkeypatch.setattr(auto, "LARGEST_SHARE", 1.0)


def method(model: Classifier, data: ImageSet, **options: object) -> Auto:
    used, held_out = hold_out(data, 0.2, most=1000, generator=torch.Generator().manual_seed(0))
    return Auto(model, used, AutoOptions(**options), device=CPU, held_out=held_out)  # type: ignore[arg-type]


def share(percent: int) -> Proportion:
    return Proportion(hits=percent, of=100)


def of_class(target: int, *, before: int, after: int) -> TriggerSuccess:
    return TriggerSuccess(
        trigger="patch", target=target, before=share(before), after=share(after), change=torch.clone
    )


def test_what_the_original_is_unsure_of_says_nothing() -> None:
    """It is sure of bright images alone; another network answers otherwise to dark ones."""

    def answering(bias: tuple[float, ...]) -> Classifier:
        layer = nn.Linear(3 * 8 * 8, 4)
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight[1] += 0.1
            layer.bias.copy_(torch.tensor(bias))
        return classifier(nn.Sequential(nn.Flatten(), layer))

    data = pictures()
    dark, bright = (torch.full((10, 3, 8, 8), value, dtype=torch.uint8) for value in (0, 255))
    held_out = replace(data, images=torch.cat([dark, bright]), labels=None)
    original = answering((0.1, 0.0, 0.0, 0.0))
    cleansing = Auto(original, data, AutoOptions(epochs=1), device=CPU, held_out=held_out)
    assert cleansing.searcher.answers.tolist() == [0] * 10 + [1] * 10
    cleansing.student = answering((0.0, 0.0, 0.1, 0.0))
    assert cleansing._confident_agreement() == Proportion(hits=10, of=10)
    cleansing.student = answering((0.1, -50.0, 0.0, 0.0))
    assert cleansing._confident_agreement() == Proportion(hits=0, of=10)


def test_a_spread_index_covers_the_whole_range() -> None:
    """Images of one class often lie together: the first so many would be of the first classes alone."""
    index = torch.arange(10, 260)
    shown = spread(index, 200)
    assert (len(shown), int(shown[0]), int(shown[-1])) == (200, 10, 259)
    assert int(shown.diff().max()) == 2
    assert spread(index, 250) is index


def test_a_canary_target_is_no_class_that_every_image_already_has() -> None:
    """There are two classes, and every held-out image is predicted as the first."""
    network = classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)), classes=2)
    cleansing = method(network, pictures(), epochs=1)
    cleansing.searcher._predictions = (torch.zeros(len(cleansing.held_out), dtype=torch.int64),) * 2
    assert cleansing._targets(auto.canary.draw((3, 8, 8), 0)) == [1, 1, 1, 1]


def no_weaknesses(cleansing: Auto) -> Weaknesses:
    """A search that found nothing."""
    return Weaknesses(cleansing.searcher.adversary(LIMITS, 0), torch.ones(NUM_KINDS))


def test_the_student_is_on_the_cpu_when_it_is_re_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it was compared with the original before, which takes it to a GPU: on no device here."""
    cleansing = method(small(), pictures(), epochs=1)
    called: list[str] = []
    monkeypatch.setattr(type(cleansing.student), "cpu", lambda self: called.append("cpu"))
    monkeypatch.setattr(auto, "reinitialise", lambda *_: called.append("drawn"))
    cleansing._cleansing(cleansing.student, cleansing.teacher, no_weaknesses(cleansing), 1, "cleansing")
    assert called == ["cpu", "drawn"]


@pytest.mark.parametrize(
    ("side", "given", "batch_size", "epochs"),
    [
        (64, {}, 128, 134),  # 400 steps, 3 in a pass over 320 images
        (65, {}, 12, 4),  # 100 steps, 27 in a pass
        (65, {"batch_size": 128}, 128, 34),
        (65, {"batch_size": 20, "epochs": 3}, 20, 3),
    ],
)
def test_large_images_take_fewer_steps_with_fewer_images(
    side: int, given: dict[str, int], batch_size: int, epochs: int
) -> None:
    answers = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    made = method(classifier(answers, side), pictures(side, count=400), **given)
    assert (made.options.batch_size, made.options.epochs) == (batch_size, epochs)
    assert made.options.learning_rate == (0.05 if side == 64 else 0.01)
    assert made.effort.search_steps == (120 if side == 64 else 300)


def test_a_network_without_norms_is_trained_at_a_lower_rate_and_not_mixed() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )
    made = method(classifier(network, 16), pictures(16))
    assert (made.effort.optimizer, made.options.learning_rate, made._unproven()) == ("sgd", 0.01, "")
    assert made._mildest(Mixture(made.teacher, made.student)) == 1.0
    assert made._unguided == 1.0  # nor are canaries judged on a mix


def layer_normalised(side: int) -> Classifier:
    """A network with LayerNorm and no BatchNorm."""
    area = (side // 8) ** 2
    norm = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(2), nn.LayerNorm(area))
    return classifier(nn.Sequential(norm, nn.Flatten(), nn.Linear(4 * area, 4)), side)


@pytest.mark.parametrize(("side", "rate"), [(64, 0.001), (65, 0.0003)])
def test_a_network_with_layer_norm_is_trained_by_adamw(side: int, rate: float) -> None:
    """An adversary keeps its own optimiser."""
    made = method(layer_normalised(side), pictures(side), epochs=1)
    assert (made.effort.optimizer, made.options.learning_rate) == ("adamw", rate)
    stage = made._cleansing(made.student, made.teacher, no_weaknesses(made), auto.GENTLE, "cleansing")
    student, adversary = stage.training._learners
    assert (type(student.optimizer), type(adversary.optimizer)) == (AdamW, Adam)


def test_canaries_are_planted_by_the_optimiser_of_the_network() -> None:
    made = method(layer_normalised(16), pictures(16), epochs=1)
    planting = next(made._tune_on_canaries())
    assert planting.title == "planting canaries"
    assert type(planting.training._learners[0].optimizer) is AdamW


@pytest.mark.parametrize(
    ("classes", "share", "options", "why"),
    [
        (4, 0.9, {}, ""),
        (3, 0.5, {}, "in a network of 3 classes"),
        (4, 0.91, {}, "by images of which 91% are of one class to the original"),
        (4, 0.5, {"momentum": 0.5}, "at a momentum of 0.5 for 0.9"),
        (4, 0.5, {"learning_rate": 0.01}, "at a learning rate of 0.01 for 0.05"),
    ],
)
def test_where_too_little_can_be_compared_nothing_is_called_cleansed(
    monkeypatch: pytest.MonkeyPatch, classes: int, share: float, options: dict[str, float], why: str
) -> None:
    monkeypatch.undo()
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, classes))
    made = method(classifier(network, classes=classes), pictures(), epochs=1, **options)
    made.searcher._predictions = ((torch.arange(100) >= 100 * share).long(), torch.arange(50))
    none, most = Proportion(hits=1, of=100), Proportion(hits=99, of=100)
    found = [
        TriggerSuccess(
            trigger="patch", target=each, before=none if each else most, after=none, change=torch.clone
        )
        for each in range(classes)
    ]
    made.evidence = evidence.Evidence(
        found=found, sinusoids=[], trials=[], residual_searches=[], confident_agreement=most, held_out=100
    )
    assert made._unproven() == why
    assert made.verdict().word == ("could not tell" if why else "cleansed")
    assert made.verdict().why.startswith(why)


def test_what_speaks_against_a_good_result_is_said_beforehand() -> None:
    def doubts(rate: float) -> list[str]:
        made = method(layer_normalised(16), pictures(16), epochs=1, learning_rate=rate)
        return [doubt for doubt in made.doubts() if "rate" in doubt]

    assert doubts(0.004) == doubts(0.001) == []
    assert doubts(0.0005) == [
        "at a learning rate of 0.0005 for 0.001 no result is called cleansed: a search may miss what remains"
    ]
    assert doubts(0.01) == [
        "a learning rate of 0.01 may take away accuracy: for this network, which adamw trains, 0.001 is usual"
    ]
    large = method(layer_normalised(72), pictures(72), epochs=1).doubts()
    assert any("LayerNorm and for such large images no result is called cleansed" in each for each in large)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Conv2d(3, 4, 3)], "nothing"),
        ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)], "batch"),
        ([nn.Conv2d(3, 4, 3), nn.LayerNorm(6)], "layer"),
        ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm(6)], "batch"),
        ([nn.Flatten(2), nn.TransformerEncoderLayer(64, 2, 8, batch_first=True)], "layer"),
    ],
)
def test_what_normalises_a_network_is_seen_in_what_it_runs(layers: list[nn.Module], expected: str) -> None:
    network = nn.Sequential(*layers).eval()
    assert normalised_by(network, torch.rand(2, 3, 8, 8)) == expected
    network.requires_grad_(False)  # torch fuses the layers of a transformer where no gradient is asked for
    assert normalised_by(network, torch.rand(2, 3, 8, 8)) == expected
    in_a_file = script_network(network, torch.rand(2, 3, 8, 8))
    assert normalised_by(in_a_file, torch.rand(2, 3, 8, 8)) == expected


def test_large_networks_are_not_re_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(auto, "reinitialise", lambda *_: drawn.append(1))
    answers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    for side, times in ((64, 1), (65, 0)):
        made = method(classifier(answers, side), pictures(side), epochs=1)
        drawn.clear()
        made._cleansing(made.student, made.teacher, no_weaknesses(made), 1, "cleansing")
        assert len(drawn) == times


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    lessen_effort(monkeypatch, canary_steps=2, search_steps=2, spectral_steps=0)


def staged(
    monkeypatch: pytest.MonkeyPatch,
    *,
    canaries: Sequence[int] = (),
    triggers: Sequence[int] = (5,),
    sinusoids: Sequence[int] = (5,),
) -> tuple[Auto, list[str]]:
    """A search with given successes, by level, of canaries, triggers and a sinusoid; its stages' titles.

    At the gentle level canaries are tried on one mix after the other, until they do not work.
    Without canaries a trigger stands out on the original; with them, none does.
    """
    cleansing = method(small(), pictures(), epochs=1, batch_size=32)
    kinds = len(auto.canary.NAMES)
    planted = [90] * kinds if canaries else []
    successes = iter(
        [share(percent) for percent in [*planted, *[left for left in canaries for _ in range(kinds)]]]
    )
    monkeypatch.setattr(cleansing.searcher, "success", lambda *_: next(successes))
    of_copy = [20] * NUM_KINDS if canaries else []
    percents = iter([*[20] * NUM_KINDS, *[50] * (NUM_KINDS - 1), 95, *of_copy, *sinusoids])
    monkeypatch.setattr(
        cleansing.searcher,
        "success_by_class",
        lambda *_: [share(next(percents)), share(0), share(0), share(0)],
    )
    monkeypatch.setattr(cleansing, "_verify", lambda: iter(()))  # tests/defenses/test_residual_search.py
    found = give(monkeypatch, cleansing, [50, *([60, 50] if canaries else [99]), *triggers])
    titles = [stage.title for stage in stages_of(cleansing)]
    assert next(successes, None) is None
    assert next(found, None) is None
    assert next(percents, None) is None
    return cleansing, titles


def give(monkeypatch: pytest.MonkeyPatch, cleansing: Auto, percents: list[int]) -> Iterator[int]:
    """Make each search find a patch for class 0 with a given success, and ordinary ones for the others."""
    given = iter(percents)

    def successes(
        adversary: Adversary, network: Classifier, kinds: Sequence[str] = UNIVERSAL
    ) -> dict[tuple[str, int], Proportion]:
        if "patch" not in kinds:
            return {}
        usual = {("patch", target): share(50) for target in (1, 2, 3)}
        return {("patch", 0): share(next(given)), **usual}

    monkeypatch.setattr(cleansing.searcher, "successes", successes)
    return given


SEARCHES = ["looking for weaknesses", "looking for triggers"]
PLANTING = ["planting canaries", "looking for weaknesses of the copy"]


@pytest.mark.usefixtures("brief")
def test_no_canaries_are_planted_where_a_trigger_stands_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cleansing, titles = staged(monkeypatch)
    assert titles == [*SEARCHES, "cleansing, level 0"]
    assert (cleansing.details()["level"], cleansing.details()["trials"]) == (0, [])
    assert cleansing.verdict().word == "cleansed"


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("kind", ["patch", "perturbation", "warp"])
def test_the_gentle_level_is_the_first_whatever_stands_out(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    cleansing = method(small(), pictures(), epochs=1, batch_size=32)
    monkeypatch.setattr(
        cleansing.searcher,
        "successes",
        lambda *_: {(kind, target): share(50 if target else 99) for target in range(4)},
    )
    monkeypatch.setattr(cleansing.searcher, "success_by_class", lambda *_: [share(5)] * 4)
    titles = []
    for stage in cleansing.stages():
        titles.append(stage.title)
        if len(titles) > len(SEARCHES):
            break
        stage.training.run()
    assert titles == [*SEARCHES, "cleansing, level 0"]


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(
    ("before", "after", "quick", "levels", "word"),
    [
        (60, [60], False, [0], "could not tell"),  # no canaries: they prove too little there
        (99, [5], False, [0], "cleansed"),
        (99, [60, 5], False, [0, 2], "cleansed"),
        (99, [60], True, [0], "not cleansed"),
    ],
)
def test_on_large_images_every_level_is_gentle_and_level_1_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
    before: int,
    after: list[int],
    quick: bool,
    levels: list[int],
    word: str,
) -> None:
    lessen_effort(monkeypatch, reinitialise=False)
    cleansing = method(small(), pictures(), epochs=1, batch_size=32, quick=quick)
    monkeypatch.setattr(cleansing.searcher, "success_by_class", lambda *_: [share(5)] * 4)
    monkeypatch.setattr(cleansing, "_verify", lambda: iter(()))
    give(monkeypatch, cleansing, [50, before, *after])
    titles = [stage.title for stage in stages_of(cleansing)]
    assert titles == [*SEARCHES, *[f"cleansing, level {level}" for level in levels]]
    assert cleansing.verdict().word == word
    assert cleansing.details()["more_without_quick"] is (quick and word == "not cleansed")


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("large", [True, False])
def test_to_leave_quick_out_is_advised_only_where_more_would_be_tried(
    monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """Nothing stands out and sinusoids work to the end; canaries are planted on small images alone."""
    lessen_effort(monkeypatch, reinitialise=not large)
    cleansing = method(small(), pictures(), epochs=1, batch_size=32, quick=True)
    monkeypatch.setattr(cleansing.searcher, "success_by_class", lambda *_: [share(95)] * 4)
    give(monkeypatch, cleansing, [50, 60, 60])
    assert [stage.title for stage in stages_of(cleansing)] == [*SEARCHES, "cleansing, level 0"]
    assert cleansing.evidence.triggers_remain
    assert cleansing.details()["more_without_quick"] is not large


@pytest.mark.usefixtures("brief")
def test_no_more_is_tried_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "MIN_UNMIXED_AGREEMENT", 1.1)
    cleansing, titles = staged(monkeypatch, canaries=[5])
    tried = [*PLANTING, "cleansing canaries, level 0"]
    assert titles == [*SEARCHES, *tried, "cleansing, level 0"]
    assert (cleansing.details()["level"], cleansing.details()["mix"]) == (0, 0.7)
    assert cleansing.verdict().word == "cleansed"


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(("canaries", "mix"), [([80, 5], 0.9), ([80, 80, 5], 1.0)])
def test_the_mix_is_one_in_which_the_canaries_died(
    monkeypatch: pytest.MonkeyPatch, canaries: list[int], mix: float
) -> None:
    monkeypatch.setattr(mixing, "MIN_UNMIXED_AGREEMENT", 1.1)
    cleansing, titles = staged(monkeypatch, canaries=canaries)
    assert titles[-1] == "cleansing, level 0"
    assert (cleansing.details()["level"], cleansing.details()["mix"]) == (0, mix)
    assert cleansing.verdict().word == "cleansed"


@pytest.mark.usefixtures("brief")
def test_more_is_tried_where_canaries_live(monkeypatch: pytest.MonkeyPatch) -> None:
    cleansing, titles = staged(monkeypatch, canaries=[80, 80, 80, 80, 5])
    tried = [*PLANTING, *[f"cleansing canaries, level {level}" for level in range(3)]]
    assert titles == [*SEARCHES, *tried, "cleansing, level 2"]
    did = cleansing.details()
    assert [{each["after"]["value"] for each in trial} for trial in did["trials"]] == [{0.8}, {0.8}, {0.05}]
    assert (did["level"], did["limits"]) == (2, asdict(auto.LEVELS[2]))


@pytest.mark.usefixtures("brief")
def test_the_mildest_mix_is_taken_where_canaries_live_at_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stronger level costs accuracy, and shows no more."""
    monkeypatch.setattr(mixing, "MIN_UNMIXED_AGREEMENT", 1.1)
    cleansing, titles = staged(monkeypatch, canaries=[80, 70, 60, 50, 40])
    assert titles[-2:] == ["cleansing canaries, level 2", "cleansing, level 0"]
    did = cleansing.details()
    assert (did["level"], did["mix"]) == (0, 0.7)
    trials = [trial[0]["after"]["value"] for trial in did["trials"]]
    assert trials == [0.8, 0.5, 0.4]  # at the gentle level that of the mix that is taken
    assert cleansing.verdict().word == "could not tell"
    assert "a canary backdoor still works on 80%" in cleansing.verdict().why


@pytest.mark.usefixtures("brief")
def test_a_canary_that_is_too_much_for_a_level_is_too_much_for_the_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On 22 of 100 images it lives, though its interval begins below the 20 % that a dead one may have."""
    cleansing, _ = staged(monkeypatch, canaries=[22] * 5)
    assert cleansing.verdict().word == "could not tell"
    assert "a canary backdoor still works on 22%" in cleansing.verdict().why


@pytest.mark.usefixtures("brief")
def test_a_large_image_network_with_layer_norm_is_not_called_cleansed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cleansing, _ = staged(monkeypatch)
    assert cleansing.verdict().word == "cleansed"
    for side, word in ((64, "cleansed"), (65, "could not tell")):
        cleansing.effort = effort.suited((3, side, side), normalised_by="layer")
        assert cleansing.verdict().word == word
    assert "LayerNorm" in cleansing.verdict().why


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(("rate", "word"), [(0.05, "cleansed"), (0.04, "could not tell")])
def test_with_a_lower_learning_rate_nothing_is_called_cleansed(
    monkeypatch: pytest.MonkeyPatch, rate: float, word: str
) -> None:
    cleansing, _ = staged(monkeypatch)
    cleansing.options = replace(cleansing.options, learning_rate=rate)
    assert cleansing.verdict().word == word
    assert ("learning rate of 0.04 for 0.05" in cleansing.verdict().why) == (rate < 0.05)


@pytest.mark.usefixtures("brief")
def test_of_few_images_nothing_is_called_cleansed_and_nothing_stronger_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held_out = len(method(small(), pictures()).held_out)
    monkeypatch.setattr(evidence, "MIN_HELD_OUT", held_out + 1)
    cleansing, titles = staged(monkeypatch)
    assert titles[-1] == "cleansing, level 0"
    assert cleansing.verdict().word == "could not tell"
    assert f"{held_out} held-out images are too few" in cleansing.verdict().why


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(("rounded", "word"), [(5, "could not tell"), (95, "not cleansed")])
def test_rounding_makes_nothing_good_that_was_not_searched(
    monkeypatch: pytest.MonkeyPatch, rounded: int, word: str
) -> None:
    """A patch on 41 of 100 images might be more than 40 %; on 5 it is not, but nobody looked further."""
    cleansing = method(small(), pictures(), epochs=1, batch_size=32, quick=True)
    monkeypatch.setattr(cleansing.searcher, "success_by_class", lambda *_: [share(5)] * 4)
    give(monkeypatch, cleansing, [50, 99, 41, 41, rounded])
    for stage in stages_of(cleansing):
        assert stage.title != "looking for remaining triggers"
    assert cleansing.verdict().word == "could not tell"
    cleansing.measure_again()
    assert cleansing.verdict().word == word


@pytest.mark.usefixtures("brief")
def test_more_is_tried_where_a_trigger_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    cleansing, titles = staged(monkeypatch, triggers=[60, 5], sinusoids=[5, 5])
    assert titles == [*SEARCHES, "cleansing, level 0", "cleansing, level 1"]
    assert cleansing.verdict().word == "cleansed"


@pytest.mark.usefixtures("brief")
def test_more_is_tried_where_a_sinusoid_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    cleansing, titles = staged(monkeypatch, triggers=[5, 5, 5], sinusoids=[41, 41, 5])
    assert titles == [*SEARCHES, "cleansing, level 0", "cleansing, level 1", "cleansing, level 2"]
    assert cleansing.details()["sinusoids"]["working"][0]["after"]["value"] == 0.05
    assert cleansing.verdict().word == "cleansed"


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(("left", "levels"), [([True, False], 2), ([False], 1), ([True] * 3, 3)])
def test_more_is_tried_where_a_trigger_is_found_on_the_cleansed_network(
    monkeypatch: pytest.MonkeyPatch, left: list[bool], levels: int
) -> None:
    """What one level left has no say in the verdict on the next."""
    cleansing = method(small(), pictures(), epochs=1, batch_size=32)
    give(monkeypatch, cleansing, [50, 99, 5, 5, 5])
    remaining = iter(left)

    def verify() -> Iterator[Stage]:
        left = of_class(0, before=100, after=95 if next(remaining) else 5)
        found = (left, *[of_class(target, before=60, after=5) for target in (1, 2, 3)])
        searches = [ResidualSearch(search="gradient", suspects=(0,), found=found)]
        cleansing.evidence = replace(cleansing.evidence, residual_searches=searches)
        return iter(())

    monkeypatch.setattr(cleansing, "_verify", verify)
    monkeypatch.setattr(cleansing.searcher, "success_by_class", lambda *_: [share(5)] * 4)
    monkeypatch.setattr(cleansing, "_confident_agreement", lambda: share(99))
    titles = [stage.title for stage in stages_of(cleansing)]
    assert titles == [*SEARCHES, *[f"cleansing, level {level}" for level in range(levels)]]
    assert cleansing.verdict().word == ("not cleansed" if left[-1] else "cleansed")


@pytest.mark.usefixtures("brief")
def test_the_gentle_level_begins_with_the_original_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    cleansing = method(small(), pictures(), epochs=1, batch_size=32)
    give(monkeypatch, cleansing, [50, 99, 60, 5])
    monkeypatch.setattr(cleansing, "_verify", lambda: iter(()))
    monkeypatch.setattr(cleansing.searcher, "success_by_class", lambda *_: [share(5)] * 4)
    seen: dict[str, bool] = {}
    for stage in stages_of(cleansing):
        if stage.title.startswith("cleansing, level"):
            parameters = zip(cleansing.student.parameters(), cleansing.teacher.parameters(), strict=True)
            seen[stage.title] = all(torch.equal(a, b) for a, b in parameters)
    assert seen == {"cleansing, level 0": True, "cleansing, level 1": False}


@pytest.mark.usefixtures("brief")
def test_limits_are_halved_until_classes_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch of the full size reaches all classes, a quarter of it the backdoor's class alone."""
    cleansing = method(small(), pictures(), epochs=1, batch_size=32)
    full = LIMITS
    asked: list[tuple[str, float]] = []

    def successes(
        adversary: Adversary, network: Classifier, kinds: Sequence[str] = UNIVERSAL
    ) -> dict[tuple[str, int], Proportion]:
        usual = {full.patch: 99, full.patch / 2: 76, full.patch / 4: 20}[adversary.limits.patch]
        asked.extend((kind, adversary.limits.patch / full.patch) for kind in kinds)
        shares = {kind: [100, usual, usual] if kind == "patch" else [30, 20, 20] for kind in kinds}
        return {(kind, target): share(of) for kind, each in shares.items() for target, of in enumerate(each)}

    monkeypatch.setattr(cleansing.searcher, "successes", successes)
    titles = []
    for stage in cleansing.triggers.search_universal():
        titles.append(stage.title)
        stage.training.run()
    assert titles == ["looking for triggers", "looking for smaller triggers", "looking for smaller triggers"]
    assert asked == [("patch", 1.0), ("perturbation", 1.0), ("warp", 1.0), ("patch", 0.5), ("patch", 0.25)]
    assert {kind: each.limits.patch for kind, each in cleansing.triggers.adversaries.items()} == {
        "patch": full.patch / 4,
        "perturbation": full.patch,
        "warp": full.patch,
    }
    assert cleansing.triggers.outstanding == [("patch", 0)]


@pytest.mark.usefixtures("brief")
def test_sinusoids_are_weighted_by_the_odds_on_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """All patterns of the first set succeed on 20 % of the images here."""
    cleansing, weights = auto.Auto._cleansing, []

    def spied(self: auto.Auto, student: Any, teacher: Any, weaknesses: Weaknesses, *how: Any) -> Stage:
        weights.append(weaknesses.sinusoids.tolist())
        return cleansing(self, student, teacher, weaknesses, *how)

    monkeypatch.setattr(auto.Auto, "_cleansing", spied)
    staged(monkeypatch)
    assert weights == [pytest.approx([0.1 + 0.2 / 0.82] * NUM_KINDS)]


@pytest.mark.usefixtures("brief")
def test_the_copy_with_canaries_is_the_teacher_of_its_cleansing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original knows no canaries, so none of them would mislead both networks.

    The adversary starts from what a search found on the teacher, for the copy as for the original.
    """
    cleansing, teachers = auto.Auto._cleansing, []
    search, searched = Searcher.stage, {}

    def spied(
        self: auto.Auto,
        student: Classifier,
        teacher: Classifier,
        weaknesses: Weaknesses,
        level: int,
        title: str,
    ) -> Stage:
        same = all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))
        found = searched[weaknesses.adversary] is teacher
        teachers.append((title, teacher is self.teacher, teacher.training, same, found))
        return cleansing(self, student, teacher, weaknesses, level, title)

    def searching(self: Searcher, adversary: Adversary, network: Classifier, *how: Any, **more: Any) -> Stage:
        searched[adversary] = network
        return search(self, adversary, network, *how, **more)

    monkeypatch.setattr(auto.Auto, "_cleansing", spied)
    monkeypatch.setattr(Searcher, "stage", searching)
    staged(monkeypatch, canaries=[5])
    assert teachers == [
        ("cleansing canaries, level 0", False, False, True, True),
        ("cleansing, level 0", True, False, True, True),
    ]


@pytest.mark.usefixtures("brief")
def test_the_last_level_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    cleansing, titles = staged(monkeypatch, triggers=[60, 60, 60], sinusoids=[5, 5, 5])
    assert titles[-1] == "cleansing, level 2"
    assert cleansing.verdict().word == "not cleansed"


@pytest.mark.usefixtures("brief")
def test_the_next_level_begins_with_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the first student is in the second, whose training is too weak to change anything here.

    The first is marked before it is trained: were the second its copy, it would have some of the mark.
    """
    cleansing = method(small(), pictures(), epochs=1, batch_size=32, learning_rate=1e-9, weight_decay=0.0)
    give(monkeypatch, cleansing, [50, 99, 60, 60, 5])
    students, drawn = [], []
    for stage in stages_of(cleansing):
        if stage.title.startswith("cleansing, level"):
            drawn.append([p.detach().clone() for p in cleansing.student.network.parameters()])
            students.append(cleansing.student)
            with torch.no_grad():
                for parameter in cleansing.student.network.parameters():
                    parameter.add_(1.0)
    _, first, second = drawn  # nothing is re-initialised at the gentle level
    assert len(set(map(id, students))) == 3
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(("before", "levels"), [(99, [0, 1]), (60, [0])])
def test_quick_plants_nothing_and_goes_no_further_than_level_1(
    monkeypatch: pytest.MonkeyPatch, before: int, levels: list[int]
) -> None:
    """Nor beyond the gentle level where nothing stands out, since no verdict could be good."""
    cleansing = method(small(), pictures(), epochs=1, quick=True)
    give(monkeypatch, cleansing, [50, before, *[60] * len(levels)])
    titles = [stage.title for stage in stages_of(cleansing)]
    assert titles == [*SEARCHES, *[f"cleansing, level {level}" for level in levels]]
    assert cleansing.details()["trials"] == []


def test_a_hopeless_network_is_not_called_cleansed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers class 0 whatever it sees: nothing can be taught to it, and nothing found."""

    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3 * 8 * 8, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 0.0 * self.layer(images.flatten(1)) + torch.tensor([9.0, 0.0, 0.0, 0.0])

    lessen_effort(monkeypatch, canary_steps=4, search_steps=4, spectral_steps=4)
    cleansing = method(classifier(Deaf()), pictures(), epochs=1)
    run(cleansing)
    assert cleansing.verdict().word == "could not tell"


def test_a_canary_target_is_rarely_caused_by_its_trigger_already() -> None:
    """Of four classes this network answers 0 to everything: the canaries' targets are the others."""
    network = classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)))
    with torch.no_grad():
        network.network[1].weight.zero_()  # type: ignore[index, union-attr, operator]
        network.network[1].bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))  # type: ignore[index, union-attr, operator]
    cleansing = method(network, pictures(), epochs=1)
    triggers = auto.canary.draw((3, 8, 8), 0)
    targets = cleansing._targets(triggers)
    assert len(set(targets)) == 3
    assert 0 not in targets


def test_it_removes_a_backdoor_and_proves_it() -> None:
    """The network is one that the tests share; trigger, target and labels are not given."""
    setting = backdoored_setting("backdoored16")
    assert setting.measure(setting.model) == (1.0, 1.0)
    cleansing = method(setting.model, setting.data, epochs=40, batch_size=32)
    run(cleansing)
    acc, asr = setting.measure(cleansing.student)
    assert acc > 0.9
    assert asr < 0.1
    assert cleansing.verdict().word == "cleansed"
    reference = predict(setting.model, setting.test.images, CPU)
    assert agreement(cleansing.student, reference, setting.test.images, CPU).value > 0.9


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(("stands_out", "tried"), [(True, False), (False, True)])
def test_a_sinusoid_is_searched_where_no_other_trigger_stands_out(
    monkeypatch: pytest.MonkeyPatch, stands_out: bool, tried: bool
) -> None:
    lessen_effort(monkeypatch, spectral_steps=2)
    cleansing = method(small(), pictures(), epochs=1, batch_size=32, quick=True)
    give(monkeypatch, cleansing, [50, 99 if stands_out else 60, 5])
    titles = []
    for stage in cleansing.stages():
        titles.append(stage.title)
        if stage.title.startswith("cleansing"):
            break
        stage.training.run()
    assert ("looking for a sinusoidal trigger" in titles) is tried


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(
    ("best", "second", "left", "mix", "word"),
    [
        (95, 20, 5, 0.4, "cleansed"),
        (95, 20, 60, 1.0, "not cleansed"),
        (80, 20, 5, 0.7, "could not tell"),
        (95, 80, 5, 0.7, "could not tell"),  # one to another class does nearly as much: natural
    ],
)
def test_a_sinusoid_that_is_far_ahead_is_a_trigger(
    monkeypatch: pytest.MonkeyPatch, best: int, second: int, left: int, mix: float, word: str
) -> None:
    """Those to class 2 are ahead at the second amplitude; others are natural beside it."""
    lessen_effort(monkeypatch, spectral_steps=2)
    monkeypatch.setattr(mixing, "MIN_UNMIXED_AGREEMENT", 1.1)
    cleansing = method(small(), pictures(), epochs=1, batch_size=32, quick=True)
    amplitudes = {13: 0.05, 26: 0.1, 51: 0.2}
    found = [
        [
            Candidate(target=target, sinusoid=torch.ones(1, 8, 8), amplitude=amplitude, cycles=(0, 1))
            for target in range(4)
        ]
        for amplitude in amplitudes.values()
    ]
    monkeypatch.setattr(SpectralAdversary, "candidates", lambda _: found)
    monkeypatch.setattr(cleansing.searcher, "successes", lambda *_: {})
    monkeypatch.setattr(
        cleansing.searcher, "success_by_class", lambda *_: [share(95), share(0), share(0), share(0)]
    )
    monkeypatch.setattr(cleansing, "_verify", lambda: iter(()))
    monkeypatch.setattr(ModelPair, "success", lambda *_: share(left))
    judged = []

    def success(network: Classifier, change: Any, target: int, *_: Any) -> Proportion:
        amplitude = int(change(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).max())
        if network is not cleansing.teacher:
            judged.append((amplitude, target))
            return share(left)
        if amplitude == 13:
            return share(50)
        return share({2: best, 3: second}.get(target, 5))

    monkeypatch.setattr(cleansing.searcher, "success", success)
    for _ in stages_of(cleansing):
        pass
    planted = (best, second) == (95, 20)
    assert set(judged) == ({(26, 2)} if planted else set())
    assert (cleansing.mix, cleansing.verdict().word) == (mix, word)
    outstanding = [each for each in cleansing.details()["found_triggers"] if each["stands_out"]]
    assert [each["trigger"] for each in outstanding] == ["dominant sinusoid"] * planted


def stages_of(cleansing: Auto):  # type: ignore[no-untyped-def]
    for stage in cleansing.stages():
        yield stage
        stage.training.run()
