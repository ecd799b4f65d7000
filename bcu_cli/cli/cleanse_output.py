"""What ``bcu cleanse`` shows: its evidence in tables, the facts, and a verdict with what it does not mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bcu_cli.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence


_LIMITS = (
    "a backdoor of a kind that none of these tests resembles may remain, as may one made to show only in a "
    "student (a distillation-conditional backdoor, the known way around distillation); bcu inspect --scan on "
    "the result is the next look"
)
"""What a good verdict does not mean."""

_NAMED = 3
"""Most classes named in a row."""


def show(report: dict[str, Any]) -> None:
    """A report for people."""
    model, images, did = report["model"], report["images"], report["did"]
    facts = [
        ("original", f"{model['path']} (SHA-256 {model['sha256'][:16]}…)"),
        ("architecture", f"{model['architecture']['name']}, by {model['architecture']['source']}"),
        ("preprocessing", output.preprocessing(model["preprocessing"])),
        ("method", f"{report['method']}: {report['paper']}"),
    ]
    if images:
        skipped = f", {len(images['skipped'])} skipped" if images["skipped"] else ""
        labels = f"; labels: {images['labels']}" if images["labels"] else ""
        facts.append(("images", f"{images['used']} used, {images['held_out']} held out{skipped}{labels}"))
        if images["stream"]:
            facts.append(("streaming", _show_stream(images)))
        facts.append(("suitability", _show_suitability(images["suitability"])))
    if "reinitialised" in did:
        facts.append(("re-initialised", _show_reinitialised(did["reinitialised"])))
    if "pruned" in did:
        facts.append(("pruned", _show_pruned(did["pruned"])))
    if "trials" in did:
        _show_evidence(did, report["classes"])
        facts.append(("strength", f"level {did['level']} of {did['levels']}"))
    for name, share in (report["agreement"] or {}).items():
        if share:
            facts.append((f"agreement {name.replace('_', ' ')}", output.measure(share)))
    if report["training"]:
        facts += output.speed(report)
    facts.append(("peak memory", output.size(report["peak_memory"]["process_bytes"])))
    if report["verdict"]:
        facts += _verdict(report["verdict"])
    written = report["output"]
    facts.append(
        ("output", f"{written['path']} (SHA-256 {written['sha256'][:16]}…)" if written else "not written")
    )
    output.facts(facts)


def explain(report: dict[str, Any]) -> None:
    """Say on stderr why a verdict is not a good one, and what to do about it."""
    verdict, written = report["verdict"], report["output"]
    outcome = f"{written['path']} was written all the same" if written else "nothing was written"
    advice = [
        *(["leave --quick out"] if report["options"].get("quick") else []),
        "give it more images of what the model was made for",
        *([] if written else ["repeat the command with --resume --force: it writes the result at once"]),
    ]
    output.fail(f"{verdict['word']}: {verdict['why']}; {outcome}", ", or ".join(advice))


def show_profile(profile: dict[str, Any]) -> None:
    """Say on stderr where the time went; what took none is left out."""
    total = profile["seconds"]["total"]
    for name, seconds in profile["seconds"].items():
        if seconds:
            output.say(f"{name:<20} {seconds:9.3f} s  {100 * seconds / total:5.1f} %")
    if shares := profile.get("share_of_peak"):
        peaks = [f"{output.percent(share)} of a {kind.replace('_', ' ')}" for kind, share in shares.items()]
        speed = f"{profile['flops_per_second'] / 1e9:,.0f} GFLOP/s in training"
        output.say(f"{speed}: {', '.join(peaks)} in the same precision")


def _verdict(verdict: dict[str, Any]) -> list[tuple[str, str]]:
    good = verdict["word"] == "cleansed"
    return [("verdict", f"{verdict['word']}: {verdict['why']}"), *([("but", _LIMITS)] if good else [])]


def _show_evidence(did: dict[str, Any], classes: Sequence[str]) -> None:
    """What the canaries did after each level tried, and the triggers that were found on the original.

    Args:
        did: Of method auto.
        classes: The names of the classes, or none.
    """
    rows = [
        (str(level), each["trigger"], _share(each["before"]), _share(each["after"]))
        for level, trial in enumerate(did["trials"], start=1)
        for each in trial
    ]
    if rows:
        output.table(
            "Backdoors of our own, planted in a copy: how often each works",
            ("level", "trigger", "planted", "cleansed"),
            rows,
        )
    kinds = dict.fromkeys(each["trigger"] for each in did["found_triggers"])
    header = ("kind", "tried", "strong before", "leads to", "worst afterwards")
    looked_for = []
    for kind in kinds:
        triggers = [each for each in did["found_triggers"] if each["trigger"] == kind]
        strong = [each for each in triggers if each["stands_out"]]
        looked_for.append(_tried(kind, len(triggers), strong, classes))
    looked_for.append(_tried("wave", did["waves"]["tried"], did["waves"]["working"], classes))
    output.table("Triggers looked for on the original, each for a class, and waves", header, looked_for)
    if did["found_anew"]:
        _show_found_anew(did["found_anew"], classes)


def _show_found_anew(searches: Sequence[dict[str, Any]], classes: Sequence[str]) -> None:
    """The best patches that were found on the cleansed network: for the class led most often, and the others.

    Args:
        searches: One for each way of searching.
        classes: The names of the classes, or none.
    """
    rows = []
    for search in searches:
        found = sorted(search["found"], key=_standing)
        worst, others = found[0], [float(each["after"]["value"]) for each in found[1:]]
        target = worst["target_class"]
        name = classes[target] if classes else f"class {target}"
        rows.append(
            (
                search["way"],
                worst["trigger"],
                f"{name} (stood out)" if worst["suspected"] else name,
                _share(worst["before"]),
                _share(worst["after"]),
                output.percent(max(others)) if others else "–",
            )
        )
    header = ("patches", "best", "leads to", "original", "cleansed", "others at most")
    output.table("Searched anew on the cleansed network", header, rows)


def _standing(found: dict[str, Any]) -> tuple[bool, bool, float]:
    """The order of what was found: what stands out first, then what was suspected, then by success."""
    return not found["stands_out"], not found["suspected"], -float(found["after"]["value"])


def _tried(
    kind: str, number: int, strong: Sequence[dict[str, Any]], classes: Sequence[str]
) -> tuple[str, ...]:
    """A row for the triggers of a kind."""
    if not strong:
        return kind, str(number), "0", "–", "–"
    targets = sorted({each["target_class"] for each in strong})
    named = [classes[target] if classes else f"class {target}" for target in targets]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    worst = max(strong, key=lambda each: float(each["after"]["value"]))
    return kind, str(number), str(len(strong)), ", ".join(named[:_NAMED]) + more, _share(worst["after"])


def _share(measured: dict[str, Any]) -> str:
    return f"{output.percent(measured['value'])} of {measured['of']}"


def _show_stream(images: dict[str, Any]) -> str:
    stream = images["stream"]
    kept = f"{images['kept_decoded']:,} kept decoded, {images['streamed']:,} streamed"
    waited = f"waited {stream['waited_seconds']:.1f} of {stream['training_seconds']:.1f} s for them"
    decoded = f"{stream['processes']} processes decode {stream['decoded_per_second']:,.0f} a second"
    return f"{kept}; {waited}; {decoded}, training takes {stream['needed_per_second']:,.0f}"


def _show_reinitialised(layers: list[dict[str, Any]]) -> str:
    """The layers as a table; returns their sum."""
    rows = [
        (
            str(layer["depth"]),
            layer["name"],
            f"{layer['weights']:,}",
            f"{layer['drawn_anew']:,}",
            output.percent(layer["drawn_anew"] / layer["weights"]),
        )
        for layer in layers
    ]
    header = ("depth", "layer", "weights", "drawn anew", "share")
    output.table("Re-initialised weights, from shallow to deep", header, rows)
    weights, anew = (sum(layer[key] for layer in layers) for key in ("weights", "drawn_anew"))
    return f"{anew:,} of {weights:,} weights ({output.percent(anew / weights)})"


def _show_pruned(layers: list[dict[str, Any]]) -> str:
    """The layers as a table; returns their sum."""
    rows = [(layer["name"], str(layer["channels"]), str(len(layer["pruned"]))) for layer in layers]
    output.table("Pruned channels, in the order of use", ("convolution", "channels", "pruned"), rows)
    pruned = sum(len(layer["pruned"]) for layer in layers)
    return f"{pruned} of {sum(layer['channels'] for layer in layers)} channels"


def _show_suitability(found: dict[str, Any]) -> str:
    answered = f"the original answers {found['answered_classes']} of {found['of_classes']} classes for them"
    spread = f"spread as over {found['effective_classes']:.1f}"
    return f"{answered}, {spread}; median confidence {found['median_confidence']:.2f}"
