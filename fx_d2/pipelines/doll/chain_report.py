"""The summary of a chain: what every stage came to, read from what the stages wrote."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fx_d2.data.atomic import write_atomically
from fx_d2.engine.few_shot import TRAINED_SHARE
from fx_d2.engine.study_folder import DONE, result_of, state_of
from fx_d2.engine.study_report import gather
from fx_d2.report.stages import duration

from .chain_stages import ChainRun
from .chain_targets import AdaptRun
from .report_text import CONSENSUS, number, table

FORMAT = "fx_d2 doll chain 1"
NAME = "summary"
_SCORE = "seg/mIoU"


def write_summary(
    run: ChainRun | AdaptRun, about: Mapping[str, str], seconds: Mapping[str, float]
) -> str:
    """Write ``summary.md`` and ``summary.json``; the Markdown is returned.

    Args:
        run: of the chain; what is not finished is left out.
        about: what stands at the top, such as command and machine.
        seconds: of each stage so far.
    """
    body = summary(run, about, seconds)
    text = as_markdown(body)
    write_atomically(run.out / f"{NAME}.json", json.dumps(body, indent=1, allow_nan=False) + "\n")
    write_atomically(run.out / f"{NAME}.md", text)
    return text


def summary(
    run: ChainRun | AdaptRun, about: Mapping[str, str], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Plain values of what is finished."""
    report = _json(run.masks / "report.json")
    return {
        "format": FORMAT,
        "title": run.chain.title,
        "about": dict(about),
        "seconds": dict(seconds),
        "members": _members(run),
        "masks": None if report is None else _masks(report),
        "epochs": _epochs(run),
        "targets": _targets(run),
    }


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None  # not finished


def _members(run: ChainRun | AdaptRun) -> list[dict[str, Any]]:
    """Of those that the chain trained; the AUC is that of their own test datasets."""
    found = []
    for job in run.members:
        if state_of(job) != DONE:
            continue
        results = (_json(result_of(job)) or {}).get("results", {})
        auc = {key: row.get("AUC") for key, row in results.items() if key.endswith("/cls")}
        found.append({"name": Path(job.arm).name, "seed": job.seed, "auc": auc})
    return found


def _masks(report: Mapping[str, Any]) -> dict[str, Any]:
    classes = report["classes"]
    keys = ("positive", "masks", "share_kept", "area", "with_truth", "chance", "pointing", "mass",
            "beside", "auc")  # fmt: skip
    positive = sum(own["positive"] for own in classes.values())
    masks = sum(own["masks"] for own in classes.values())
    columns = [CONSENSUS, *report["members"]]
    return {
        "images": report["images"],
        "members": report["members"],
        "explainers": report["explainers"],
        "excluded": report["excluded"],
        "positive": positive,
        "masks": masks,
        "share_kept": masks / positive if positive else None,
        "mean_auc": {
            name: _mean([own["auc"][name] for own in classes.values()]) for name in columns
        },
        "classes": {name: {key: own[key] for key in keys} for name, own in classes.items()},
        "places": report["places"],
    }


def _epochs(run: ChainRun | AdaptRun) -> list[dict[str, Any]]:
    if not run.pretrained.chosen:
        return []
    found = [(seed, _json(run.pretrained.choice(seed))) for seed in run.chain.seeds]
    return [
        {
            "seed": seed,
            "recommended": body["recommended"],
            "scores": {str(e["number"]): e["mean"] for e in body["epochs"]},
        }
        for seed, body in found
        if body is not None
    ]


def _targets(run: ChainRun | AdaptRun) -> list[dict[str, Any]]:
    """One row per target, start, mode and number of images, over seeds and draws."""
    chain = run.chain
    if not chain.targets or not run.pretrained.all_known():
        return []
    by_name = {
        f"{t.runs.name}_{mode}": (t.runs.name, mode) for t in chain.targets for mode in t.modes
    }
    found: dict[tuple[str, str, int], dict[str, list[float]]] = {}
    jobs = run.targets.jobs(run.pretrained.starts(), count=False)
    for row in gather(run.targets.study(), jobs).rows:
        if row.then:
            place = found.setdefault((row.arm, row.then, row.images), {})
            place[row.figure] = list(row.values)
    return [
        {
            "target": by_name[then][0],
            "start": arm,
            "mode": by_name[then][1],
            "images": images,
            "figures": figures,
        }
        for (arm, then, images), figures in found.items()
    ]


def as_markdown(body: Mapping[str, Any]) -> str:
    """The page of a summary."""
    head = [f"# {body['title']}", "", *(f"- {k}: {v}" for k, v in body["about"].items())]
    if body["seconds"]:
        spent = ", ".join(f"{name} {duration(s)}" for name, s in body["seconds"].items())
        head.append(f"- time so far: {spent}")
    parts = [head]
    if body["members"]:
        parts.append(_members_part(body["members"]))
    if body["masks"] is not None:
        parts += [_masks_part(body["masks"]), *_places_parts(body["masks"])]
    if body["epochs"]:
        parts.append(_epochs_part(body["epochs"]))
    if body["targets"]:
        parts.append(_targets_part(body["targets"]))
    return "\n".join(line for part in parts for line in (*part, "")).rstrip() + "\n"


def _members_part(members: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [one["name"], one["seed"], head, number(auc)]
        for one in members
        for head, auc in one["auc"].items()
    ]
    return ["## Classifiers", "", "Mean AUC over the classes, on the datasets they are tested on.",
            "", *table(["member", "seed", "head", "AUC"], rows)]  # fmt: skip


def _masks_part(masks: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, own["positive"], own["masks"], number(own["share_kept"]), number(own["area"]),
         number(own["auc"][CONSENSUS]), masks["excluded"].get(name, "-")]
        for name, own in masks["classes"].items()
    ]  # fmt: skip
    rows.append(["all", masks["positive"], masks["masks"], number(masks["share_kept"]), "",
                 number(masks["mean_auc"][CONSENSUS]), ""])  # fmt: skip
    aucs = ", ".join(f"{name} {number(auc)}" for name, auc in masks["mean_auc"].items())
    columns = ["class", "positive", "masks", "share kept", "area", "AUC of the committee",
               "excluded"]  # fmt: skip
    said = f"{masks['images']} images. Mean AUC on them, seen in training or not: {aucs}."
    return ["## Masks", "", said, "", *table(columns, rows)]


def _places_parts(masks: Mapping[str, Any]) -> list[list[str]]:
    """Consensus, members and what stands beside, class by class, where the truth is known."""
    places = masks["places"]
    if not places["classes"]:
        return [["## Where the truth is known", "", "Nowhere: the dataset has no boxes or masks of "
                 "these classes."]]  # fmt: skip
    first, *beside = masks["explainers"]
    sides = [(first, name) for name in (CONSENSUS, *masks["members"])]
    for other in beside:
        best = places[other]["best_member"]
        sides += [(other, CONSENSUS), *([(other, best)] if best else [])]
    titles = [name if of == first else f"{of}: {name}" for of, name in sides]
    parts = []
    for what, title in (("pointing", "Pointing game"), ("mass", "Mass in the true region")):
        rows = []
        for name in places["classes"]:
            own = masks["classes"][name]
            cells = [(own if of == first else own["beside"][of])[what][c] for of, c in sides]
            rows.append([name, own["with_truth"], number(own["chance"]), *map(number, cells)])
        means = [places[of][what][c] for of, c in sides]
        rows.append(["mean", "", number(places["chance"]), *map(number, means)])
        best = places[first]["best_member"]
        said = []
        if what == "pointing" and best is not None:
            own = places[first]["pointing"]
            said = ["", f"Best single member: {best}, {number(own[best])} against "
                    f"{number(own[CONSENSUS])} of the consensus."]  # fmt: skip
        parts.append([f"## {title}: {first}", "", *table(["class", "images", "chance", *titles],
                     rows), *said])  # fmt: skip
    return parts


def _epochs_part(epochs: Sequence[Mapping[str, Any]]) -> list[str]:
    numbers = list(dict.fromkeys(n for one in epochs for n in one["scores"]))
    rows = [
        [one["seed"], one["recommended"], *(number(one["scores"].get(n)) for n in numbers)]
        for one in epochs
    ]
    columns = ["seed", "chosen", *(f"epoch {n}" for n in numbers)]
    return ["## Epochs of the pre-training", "", "mIoU of the probe, on its validation split.", "",
            *table(columns, rows)]  # fmt: skip


def _targets_part(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    figures = dict.fromkeys(
        name.split("/", 1)[1] for row in targets for name in row["figures"] if _SCORE in name
    )
    # On the way first, then at the end.
    columns = sorted(figures, key=lambda name: (name == _SCORE, name))
    rows = []
    for row in targets:
        own = {name.split("/", 1)[-1]: values for name, values in row["figures"].items()}
        share = own.get(TRAINED_SHARE)
        rows.append(
            [row["target"], row["start"], row["mode"], row["images"],
             "-" if share is None else f"{100 * share[0]:.2f} %",
             *(_spread(own.get(name)) for name in columns)]
        )  # fmt: skip
    titles = ["target", "start", "trained", "images", "share of the values"]
    titles += [name.replace("seg/", "") for name in columns]
    return ["## Targets", "", "Mean ± standard deviation over seeds and draws.", "",
            *table(titles, rows)]  # fmt: skip


def _spread(values: Sequence[float] | None) -> str:
    if not values:
        return "-"
    text = number(statistics.fmean(values))
    return text if len(values) == 1 else f"{text} ± {number(statistics.stdev(values))}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
