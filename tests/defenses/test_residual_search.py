"""Patches that still work are found on the cleansed network, and a good verdict is taken back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from defending import CPU
from helpers import lessen_effort
from torch import Tensor, nn
from torch.nn import functional as F

from bcu_cli.defenses.adversarial import patches, residual_search, verification
from bcu_cli.defenses.adversarial.evidence import Evidence
from bcu_cli.defenses.adversarial.residual_search import ModelPair, TriggerSuccess, outliers_among
from bcu_cli.defenses.adversarial.searching import LIMITS
from bcu_cli.defenses.auto import Auto, AutoOptions
from bcu_cli.evaluation.measures import Proportion
from bcu_cli.images.folder import ImageSet, hold_out
from bcu_cli.models import Classifier, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Sequence

SIDE, CLASSES, COUNT = 16, 4, 400
WHITE = torch.ones(3, 4, 4)
RED = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 3, 3)
GRID = ((torch.arange(4)[:, None] + torch.arange(4)) % 2).float().expand(3, 4, 4)
ALL = (0, 1, 2, 3)
ALL_SIDES = patches.SIDES
WIDE = replace(LIMITS, patch=0.07)


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sizes of patches, and a few steps of the gradient's search, which finds nothing here."""
    lessen_effort(monkeypatch, verification_steps=4)
    monkeypatch.setattr(patches, "SIDES", (6, 8))  # of an image of 32; of these 3 and 4 pixels


def images(seed: int = 0) -> ImageSet:
    """Noise, one of whose quarters is brighter than the others, which is the class."""
    drawn = torch.randint(0, 90, (COUNT, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))
    labels, half = torch.arange(COUNT) % CLASSES, SIDE // 2
    for image, label in zip(drawn, labels.tolist(), strict=True):
        top, left = half * (label // 2), half * (label % 2)
        image[:, top : top + half, left : left + half] += 110
    return ImageSet(images=drawn.to(torch.uint8), labels=labels, classes=("a", "b", "c", "d"))


class Backdoored(nn.Module):
    """Answers the brightest quarter, or a class of its own where it sees a pattern.

    Args:
        pattern: What it looks for anywhere, ``[C, h, w]`` in [0, 1].
        target: The class of the backdoor.
        on: The classes whose images it works on; none is a network without a backdoor.
        least: Likeness to the pattern, at most 1, above which the backdoor works.
    """

    def __init__(self, pattern: Tensor, target: int, on: tuple[int, ...], least: float = 0.95) -> None:
        super().__init__()
        self.pattern, self.target, self.on, self.least = nn.Parameter(pattern), target, on, least

    def forward(self, shown: Tensor) -> Tensor:
        quarters = F.adaptive_avg_pool2d(shown.mean(1, keepdim=True), 2).flatten(1)
        signs = 2.0 * self.pattern - 1.0
        seen = F.conv2d(2.0 * shown - 1.0, signs[None]).amax((1, 2, 3)) / self.pattern.numel()
        fires = (seen > self.least) & torch.isin(quarters.argmax(1), torch.tensor(self.on))
        return 20.0 * quarters + 100.0 * fires[:, None] * F.one_hot(torch.tensor(self.target), CLASSES)


def network(
    pattern: Tensor = WHITE, target: int = 2, on: tuple[int, ...] = (), least: float = 0.95
) -> Classifier:
    as_they_are = Preprocessing(input_size=(3, SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3)
    return Classifier(Backdoored(pattern, target, on, least), as_they_are, CLASSES).eval()


def percent(hits: int) -> Proportion:
    return Proportion(hits=hits, of=100)


def cleansed(original: Classifier, student: Classifier, suspects: Sequence[int], seed: int = 0) -> Auto:
    """A method that has finished, and believes to have removed a patch to each of some classes."""
    used, held_out = hold_out(images(), 0.25, most=1000, generator=torch.Generator().manual_seed(0))
    finished = Auto(original, used, AutoOptions(epochs=1, seed=seed), device=CPU, held_out=held_out)
    finished.student = student
    gone = TriggerSuccess(
        trigger="patch", target=0, before=percent(100), after=percent(4), change=torch.clone
    )
    usual = replace(gone, before=percent(50))
    finished.level, finished.trials = 0, [[gone]]
    finished.evidence = Evidence(
        found=[replace(gone if target in suspects else usual, target=target) for target in range(CLASSES)],
        sinusoids=[],
        trials=finished.trials,
        residual_searches=[],
        confident_agreement=percent(99),
        held_out=len(held_out),
    )
    assert finished.verdict().word == "cleansed"
    return finished


def verify(finished: Auto) -> Auto:
    for stage in finished._verify():
        stage.training.run()
    return finished


@pytest.mark.parametrize("pattern", [WHITE, RED, GRID, 1.0 - WHITE])
def test_a_square_that_still_works_on_a_third_takes_the_verdict_back(pattern: Tensor) -> None:
    """The student was taught against another patch; the attacker's still works on it."""
    finished = verify(cleansed(network(pattern, on=ALL), network(pattern, on=(0,)), [2]))
    verdict = finished.verdict()
    assert verdict.word == "not cleansed"
    assert "as class 2, clearly more" in verdict.why
    (outlier,) = finished.evidence.residual_searches[0].outliers
    assert outlier.target == 2
    assert outlier.before.value > 0.9
    assert 0.2 < outlier.after.value < 0.5


@pytest.mark.parametrize(("steps", "word"), [(0, "cleansed"), (1, "not cleansed")])
def test_the_search_climbs_from_a_listed_patch_to_the_attackers(
    monkeypatch: pytest.MonkeyPatch, steps: int, word: str
) -> None:
    """The original reacts to a listed grid, too; the student to the attacker's alone, one cell away."""
    monkeypatch.setattr(residual_search, "CLIMBING_STEPS", steps)
    pattern = GRID.clone()
    pattern[:, 1, 2] = 1.0 - pattern[:, 1, 2]
    finished = verify(cleansed(network(pattern, on=ALL, least=0.8), network(pattern, on=ALL), [2]))
    assert finished.verdict().word == word
    assert [each.target for each in finished.evidence.residual_searches[0].outliers] == [2] * steps


def test_of_many_classes_without_suspicion_few_are_climbed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be thousands."""
    monkeypatch.setattr(verification, "MOST_SUSPECTS", 1)
    monkeypatch.setattr(verification, "MOST_CONTROLS", 1)
    climbed: list[int] = []

    def climb(self: ModelPair, candidates: list[patches.Patch], target: int) -> list[patches.Patch]:
        climbed.append(target)
        return candidates

    monkeypatch.setattr(ModelPair, "climb", climb)
    verify(cleansed(network(on=ALL), network(on=ALL), []))
    assert len(climbed) == 2
    assert 2 in climbed  # the class that most images are led to


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 224, 200)])
def test_neighbours_of_a_patch_differ_a_little_and_fit(shape: tuple[int, int, int]) -> None:
    images = torch.zeros(1, *shape, dtype=torch.uint8)
    for patch in patches.draw(shape, seed=0)[::7]:
        near = patch.neighbours(shape)
        assert 5 <= len(near) <= 6 + patches.MOST_INVERTED
        assert all(each(images).shape == images.shape for each in near)
        assert all(each.pixels.shape == patch.pixels.shape for each in near)
        assert sum(each.key != patch.key for each in near) >= len(near) - 1  # a mirrored square is the same


@pytest.mark.parametrize("cells", [2, 5, 6, 8])
def test_a_cell_of_each_row_and_column_is_inverted(cells: int) -> None:
    patch = patches.Patch(
        kind="square", top=0, left=0, pixels=torch.zeros(3, cells, cells, dtype=torch.uint8)
    )
    changed = [each.pixels[0].nonzero() for each in patch.neighbours((3, 32, 32))]
    single = torch.cat([place for place in changed if len(place) == 1])
    assert all(set(single[:, axis].tolist()) == set(range(cells)) for axis in (0, 1))


@pytest.mark.parametrize("suspects", [[], [0]])
def test_a_class_without_suspicion_is_found_where_its_success_is_far_higher(suspects: list[int]) -> None:
    finished = verify(cleansed(network(on=ALL), network(on=ALL), suspects))
    assert finished.verdict().word == "not cleansed"
    assert [each.target for each in finished.evidence.residual_searches[0].outliers] == [2]


def test_two_classes_that_stood_out_are_both_looked_at() -> None:
    finished = verify(cleansed(network(target=1, on=ALL), network(target=1, on=(0,)), [3, 1]))
    assert [each.target for each in finished.evidence.residual_searches[0].outliers] == [1]


@pytest.mark.parametrize("suspects", [[], [2]])
def test_where_nothing_is_left_the_verdict_stays(suspects: list[int]) -> None:
    finished = verify(cleansed(network(on=ALL), network(), suspects))
    assert finished.verdict().word == "cleansed"
    assert [len(each.found) for each in finished.evidence.residual_searches] == [CLASSES] * 4


def test_the_gradient_finds_what_no_square_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of green on the whole image, which no small square of any colour changes enough."""

    class Tinted(Backdoored):
        def forward(self, shown: Tensor) -> Tensor:
            tint = shown[:, 1].mean((1, 2)) - shown[:, 0].mean((1, 2))
            return super().forward(shown) + 900.0 * F.relu(tint - 0.01)[:, None] * F.one_hot(
                torch.tensor(2), CLASSES
            )

    lessen_effort(monkeypatch, verification_steps=60)
    monkeypatch.setattr(verification, "VERIFICATION_LIMITS", LIMITS)
    monkeypatch.setattr(patches, "SIDES", (2,))
    original, student = network(), network()
    original.network, student.network = Tinted(WHITE, 2, ()), Tinted(WHITE, 2, ())
    finished = verify(cleansed(original, student, [2]))
    assert finished.evidence.residual_searches[0].outliers == []
    assert [each.target for each in finished.evidence.residual_searches[1].outliers] == [2]
    outliers = [each.trigger for search in finished.evidence.residual_searches for each in search.outliers]
    assert outliers == ["patch", "perturbation"]
    assert "found on the cleansed network, 77 of 77 images are predicted as class 2" in finished.verdict().why


def test_the_same_seed_finds_the_same() -> None:
    first, again = (
        verify(cleansed(network(on=ALL), network(on=(0,)), [2])).details()["residual_searches"]
        for _ in range(2)
    )
    assert first == again
    assert [each["search"] for each in first] == ["enumeration", *["gradient"] * 3]
    best = {each["target_class"]: each for each in first[0]["found"]}
    assert (best[2]["suspected"], best[2]["stands_out"]) == (True, True)
    assert (best[0]["suspected"], best[0]["stands_out"]) == (False, False)
    assert 50 < best[2]["after"]["of"] < COUNT // 4


@pytest.mark.parametrize("side", [SIDE, 7 * SIDE])
def test_the_search_of_the_original_starts_at_listed_patches(
    monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    """Only for the class that one of them reaches; its start succeeds at once, on large images, too."""
    monkeypatch.setattr(patches, "SIDES", (8, 16))  # the second one is larger than a patch may be
    model = network(on=ALL)
    larger = replace(model.preprocessing, input_size=(3, side, side))
    cell = side // SIDE
    shown = F.interpolate(images().images.float(), scale_factor=float(cell)).to(torch.uint8)
    given = ImageSet(images=shown[:100], labels=images().labels[:100], classes=("a", "b", "c", "d"))
    shrunk = nn.Sequential(nn.AvgPool2d(cell), model.network)
    original = Classifier(shrunk, larger, CLASSES).eval()
    used, held_out = hold_out(given, 0.3, most=1000, generator=torch.Generator().manual_seed(0))
    cleansing = Auto(original, used, AutoOptions(), device=CPU, held_out=held_out)
    cleansing._classes = list(range(CLASSES))
    at_random = cleansing.searcher.adversary(WIDE, 0)
    adversary = cleansing.searcher.starting_adversary(original, WIDE, 0)
    moved = [i for i in ALL if not torch.equal(adversary.masks[i], at_random.masks[i])]
    assert moved == [2]
    successes = cleansing.searcher.successes(adversary, original, ["patch"])
    assert [round(successes["patch", target].value, 1) for target in ALL] == [0.0, 0.0, 1.0, 0.0]


def test_of_the_listed_patches_only_those_within_the_limit_are_drawn() -> None:
    largest = max(each.pixels[0].numel() for each in patches.draw((3, 32, 32), 0, largest=0.05))
    assert largest == 36  # of 1024 pixels; those of 8 x 8 are too large


def found(*hits: int, of: int, before: int) -> list[TriggerSuccess]:
    usual = TriggerSuccess(
        trigger="square", target=0, before=percent(before), after=percent(0), change=torch.clone
    )
    return [
        replace(usual, target=target, after=Proportion(hits=each, of=of)) for target, each in enumerate(hits)
    ]


@pytest.mark.parametrize(
    ("percents", "of", "suspects", "outliers"),
    [
        ((27, 3, 2, 4, 1), 100, [0], [0]),
        ((27, 14, 20, 25, 16), 100, [0], []),  # such a network is fooled for any class
        ((3, 27, 3, 2, 4), 100, [0], []),  # the worst of many by nature
        ((3, 90, 3, 2, 4), 100, [0], [1]),  # no clean network is fooled so often
        ((3, 90, 3, 2, 4), 100, [], [1]),
        ((3, 0, 0, 0, 0), 10, [0], []),  # few images prove nothing
        ((3, 3), 100, [0], []),
        ((27,), 100, [0], []),  # nor does a class without others
        ((60, 62, 58, 2), 100, [0, 1, 2], [0, 1, 2]),  # suspected classes are not compared with each other
        ((60, 2), 100, [0, 1], [0]),  # unless there is nothing else to compare with
    ],
)
def test_a_class_stands_out_by_intervals(
    percents: tuple[int, ...], of: int, suspects: list[int], outliers: list[int]
) -> None:
    assert [each.target for each in outliers_among(found(*percents, of=of, before=98), suspects)] == outliers


def test_what_the_cleansed_network_reacts_to_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from the changes that lead most images on the original: no other can be an outlier."""
    shares = {"strong": (95, 30), "remains": (55, 60), "natural": (20, 90), "weak": (50, 30)}
    networks = {"original": 0, "cleansed": 1}

    def success(pair: object, network: int, change: str, target: int, **_: object) -> Proportion:
        return Proportion(hits=shares[change][network], of=100)

    monkeypatch.setattr(ModelPair, "__init__", lambda self: vars(self).update(networks))
    monkeypatch.setattr(ModelPair, "success", success)
    pair = ModelPair()  # type: ignore[call-arg]
    assert pair.best([*shares], 0) == "remains"  # type: ignore[list-item]
    first = {place: [name] for place, name in enumerate(["weak", "strong", "natural"])}
    assert pair.most_affected(first, 2) == [2, 1]  # type: ignore[arg-type]


@pytest.mark.parametrize(("before", "clear"), [(30, []), (59, []), (60, [0])])
def test_what_hardly_leads_the_original_is_no_residue_of_its_backdoor(before: int, clear: list[int]) -> None:
    """A large grid leads networks to some class by nature, about as often before as after."""
    led = found(27, 3, 2, 4, 1, of=100, before=before)
    assert [each.target for each in outliers_among(led, [0])] == clear


def test_patches_are_of_all_kinds_and_sizes_and_leave_the_rest_of_an_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patches, "SIDES", ALL_SIDES)
    drawn = patches.draw((3, 32, 32), seed=1)
    assert {each.kind for each in drawn} == {"square", "grid", "mosaic"}
    assert {tuple(each.pixels.shape) for each in drawn} == {(3, side, side) for side in range(2, 9)}
    image = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    for each in drawn[:50]:
        changed = each(image)
        side = each.pixels.shape[-1]
        assert torch.equal(
            changed[0, :, each.top : each.top + side, each.left : each.left + side], each.pixels
        )
        assert int((changed != image).any(1).sum()) <= side * side
    assert int(image.min()) == int(image.max()) == 77


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 2, 9), (4, 64, 48), (1, 1, 1)])
def test_patches_fit_into_images_of_any_size(shape: tuple[int, int, int]) -> None:
    image = torch.zeros(2, *shape, dtype=torch.uint8)
    drawn = patches.draw(shape, seed=0)
    assert all(each(image).shape == image.shape for each in drawn)
    same = zip(drawn, patches.draw(shape, seed=0), strict=True)
    assert all(torch.equal(one.pixels, other.pixels) for one, other in same)


def test_as_many_classes_are_judged_as_asked_for() -> None:
    used, held_out = hold_out(images(), 0.25, most=1000, generator=torch.Generator().manual_seed(0))
    pair = ModelPair(network(on=ALL), network(on=ALL), used.images[:96], held_out.images, CPU)
    tried = pair.promising(patches.draw((3, SIDE, SIDE), seed=0))
    judged = residual_search.compare_changes(pair, "enumeration", "patch", tried, [], most=2)
    assert len(judged.found) == 2
    assert judged.found[0].target == 2
