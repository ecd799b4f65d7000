"""The output of ``bcu cleanse``: evidence in tables, facts, and a verdict with its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bcu_cli.cli import output
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Sequence


_NAMED = 3
"""Most classes that are named in a row."""


def show(report: dict[str, Any]) -> None:
    """Print a report for people."""
    model, images, details = report["model"], report["images"], report["details"]
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
    if "reinitialised" in details:
        facts.append(("re-initialised", _show_reinitialised(details["reinitialised"])))
    if "pruned" in details:
        facts.append(("pruned", _show_pruned(details["pruned"])))
    if "trials" in details:
        _show_evidence(details, report["classes"])
        facts.append(("strength", _show_strength(details)))
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
    if written and written["beside"]:
        facts.append(("beside it", ", ".join(file["path"] for file in written["beside"])))
    if page := report.get("page"):
        facts.append(("page", page["path"]))
    output.facts(facts)


def explain(report: dict[str, Any]) -> None:
    """Print on stderr why a verdict is not good, and what to do about it."""
    verdict, written = report["verdict"], report["output"]
    outcome = f"{written['path']} was written all the same" if written else "nothing was written"
    advice = [
        *(["leave --quick out"] if report["details"].get("more_without_quick") else []),
        *(
            []
            if report["details"].get("unproven")
            else ["give it more images of what the model was made for"]
        ),
        *(
            []
            if written
            else ["repeat the command with --resume --force: it writes the result without training again"]
        ),
    ]
    output.fail(f"{verdict['word']}: {verdict['why']}; {outcome}", ", or ".join(advice))


def show_profile(profile: dict[str, Any]) -> None:
    """Print on stderr how long each part took, without those that took no time."""
    total = profile["seconds"]["total"]
    for name, seconds in profile["seconds"].items():
        if seconds:
            output.say(f"{name:<20} {seconds:9.3f} s  {100 * seconds / total:5.1f} %")
    if shares := profile.get("share_of_peak"):
        peaks = [f"{output.percent(share)} of a {kind.replace('_', ' ')}" for kind, share in shares.items()]
        speed = f"{profile['flops_per_second'] / 1e9:,.0f} GFLOP/s in training"
        output.say(f"{speed}: {', '.join(peaks)} in the same precision")


def _verdict(verdict: dict[str, Any]) -> list[tuple[str, str]]:
    from bcu_cli.report.card import LIMITS  # not at the start: it reads and writes files

    good = verdict["word"] == "cleansed"
    return [("verdict", f"{verdict['word']}: {verdict['why']}"), *([("but", LIMITS)] if good else [])]


def _show_evidence(details: dict[str, Any], classes: Sequence[str]) -> None:
    """Print the success of canaries after each level, and of the triggers found on the original.

    Args:
        details: Details of method ``auto``.
        classes: Class names; may be empty.
    """
    rows = [
        (str(level), each["trigger"], _share(each["before"]), _share(each["after"]))
        for level, trial in enumerate(details["trials"])
        for each in trial
    ]
    if rows:
        output.table(
            "Success of canary backdoors planted in a copy",
            ("level", "trigger", "planted", "cleansed"),
            rows,
        )
    kinds = dict.fromkeys(each["trigger"] for each in details["found_triggers"])
    header = ("kind", "tried", "strong before", "target", "worst afterwards")
    sinusoids = details["sinusoids"]
    searched = []
    for kind in kinds:
        triggers = [each for each in details["found_triggers"] if each["trigger"] == kind]
        strong = [each for each in triggers if each["stands_out"]]
        searched.append(_tried(kind, len(triggers), strong, classes))
    searched.append(_tried("sinusoid", sinusoids["tried"], sinusoids["working"], classes))
    output.table("Triggers searched on the original, and sinusoidal patterns", header, searched)
    if details["residual_searches"]:
        _show_residual_searches(details["residual_searches"], classes)


def _show_residual_searches(searches: Sequence[dict[str, Any]], classes: Sequence[str]) -> None:
    """Print the best triggers that were found on the cleansed network.

    Args:
        searches: Results of the searches.
        classes: Class names; may be empty.
    """
    rows = []
    for search in searches:
        found = sorted(search["found"], key=_rank)
        worst, others = found[0], [float(each["after"]["value"]) for each in found[1:]]
        target = worst["target_class"]
        name = classes[target] if classes else f"class {target}"
        rows.append(
            (
                search["search"],
                worst["trigger"],
                f"{name} (suspected)" if worst["suspected"] else name,
                _share(worst["before"]),
                _share(worst["after"]),
                output.percent(max(others)) if others else "–",
            )
        )
    header = ("search", "best", "target", "original", "cleansed", "others at most")
    output.table("Triggers searched on the cleansed network", header, rows)


def _rank(found: dict[str, Any]) -> tuple[bool, bool, float]:
    """Sort key of triggers: outliers first, then suspected classes, then by success."""
    return not found["stands_out"], not found["suspected"], -float(found["after"]["value"])


def _tried(
    kind: str, number: int, strong: Sequence[dict[str, Any]], classes: Sequence[str]
) -> tuple[str, ...]:
    """A table row for the triggers of a kind."""
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
    waited = f"waited {stream['waited_seconds']:.1f} of {stream['training_seconds']:.1f} s for images"
    decoding = number_of(stream["processes"], "process decodes", "processes decode")
    decoded = f"{decoding} {stream['decoded_per_second']:,.0f} a second"
    return f"{kept}; {waited}; {decoded}, training takes {stream['needed_per_second']:,.0f}"


def _show_reinitialised(layers: list[dict[str, Any]]) -> str:
    """Print the layers as a table, and return their total."""
    rows = [
        (
            str(layer["depth"]),
            layer["name"],
            f"{layer['weights']:,}",
            f"{layer['reinitialised_weights']:,}",
            output.percent(layer["reinitialised_weights"] / layer["weights"]),
        )
        for layer in layers
    ]
    header = ("depth", "layer", "weights", "re-initialised", "share")
    output.table("Re-initialised weights, from shallow to deep", header, rows)
    weights, replaced = (sum(layer[key] for layer in layers) for key in ("weights", "reinitialised_weights"))
    return f"{replaced:,} of {weights:,} weights ({output.percent(replaced / weights)})"


def _show_strength(details: dict[str, Any]) -> str:
    level = f"level {details['level']} of {details['levels']}"
    if details["mix"] == 1.0:
        return level
    return f"{level}; {details['mix']:.0%} of the cleansed weights, the rest is the original's"


def _show_pruned(layers: list[dict[str, Any]]) -> str:
    """Print the layers as a table, and return their total."""
    rows = [(layer["name"], str(layer["channels"]), str(len(layer["pruned"]))) for layer in layers]
    output.table("Pruned channels, in the order of use", ("convolution", "channels", "pruned"), rows)
    pruned = sum(len(layer["pruned"]) for layer in layers)
    return f"{pruned} of {sum(layer['channels'] for layer in layers)} channels"


def _show_suitability(found: dict[str, Any]) -> str:
    classes = number_of(found["of_classes"], "class", "classes")
    answered = f"the original predicts {found['answered_classes']} of {classes} for them"
    effective = f"effective number {found['effective_classes']:.1f}"
    return f"{answered} ({effective}); median confidence {found['median_confidence']:.2f}"
