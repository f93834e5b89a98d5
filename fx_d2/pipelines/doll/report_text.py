"""The report of pseudo-masks as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CONSENSUS = "consensus"


def as_markdown(body: Mapping[str, Any]) -> str:
    """The page of a report's JSON."""
    made = body["provenance"]
    head = [
        f"# Pseudo-masks of {made['dataset']}",
        "",
        f"{body['images']} images, {len(body['members'])} members, "
        f"explained by {body['explainers'][0]}, seed {made['seed']}, fx_d2 {made['fx_d2']}.",
    ]
    for why, n in body["failed"].items():
        head.append(f"Not read: {n} x {why}.")
    parts = [head, _masks(body), _left_out(body), _auc(body), *_hits(body), _committee(made)]
    return "\n".join(line for part in parts for line in (*part, "")).rstrip() + "\n"


def _masks(body: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, figures in body["classes"].items():
        states = figures["states"]
        others = ", ".join(
            f"{n} {state}" for state, n in states.items() if n and state not in ("kept", "negative")
        )
        rows.append(
            [
                name,
                figures["positive"],
                figures["masks"],
                number(figures["share_kept"]),
                number(figures["area"]),
                number(figures["ignored"]),
                number(figures["completeness"]["mean"]),
                states["negative"],
                others or "-",
            ]
        )
    columns = ["class", "positive", "masks", "share kept", "area", "ignored", "completeness",
               "background", "not learned from"]  # fmt: skip
    return [
        "## Masks",
        "",
        "Area and ignored are shares of the frame; completeness is the relative error of the "
        "worst member.",
        "",
        *table(columns, rows),
    ]


def _left_out(body: Mapping[str, Any]) -> list[str]:
    lines = [f"- {name}: {why}" for name, why in body["excluded"].items()]
    return ["## Excluded classes", "", *(lines or ["None."])]


def _auc(body: Mapping[str, Any]) -> list[str]:
    columns = [CONSENSUS, *body["members"]]
    rows = [
        [name, *(number(figures["auc"][c]) for c in columns)]
        for name, figures in body["classes"].items()
    ]
    return ["## AUC on these images", "", *table(["class", *columns], rows)]


def _hits(body: Mapping[str, Any]) -> Iterable[list[str]]:
    places = body["places"]
    names = places["classes"]
    if not names:
        yield ["## Where the truth is known", "", "Nowhere: this dataset has no boxes or masks of "
               "these classes."]  # fmt: skip
        return
    columns = [CONSENSUS, *body["members"]]
    for place, explainer in enumerate(body["explainers"]):
        for what, title in (("pointing", "Pointing game"), ("mass", "Mass in the true region")):
            rows = []
            for name in names:
                own = body["classes"][name]
                found = own if not place else own["beside"][explainer]
                rows.append(
                    [name, own["with_truth"], number(own["chance"])]
                    + [number(found[what][c]) for c in columns]
                )
            mean = places[explainer][what]
            rows.append(["mean", "", number(places["chance"]), *(number(mean[c]) for c in columns)])
            yield [
                f"## {title}: {explainer}",
                "",
                *table(["class", "images", "chance", *columns], rows),
                *(_verdict(body, explainer) if what == "pointing" else []),
            ]


def _verdict(body: Mapping[str, Any], explainer: str) -> list[str]:
    own = body["places"][explainer]
    best = own["best_member"]
    if best is None:
        return []
    values, raw = own["pointing"], own["pointing_unclipped"]
    top = max(raw.values())
    return [
        "",
        f"Best single member: {best}, {number(values[best])} against "
        f"{number(values[CONSENSUS])} of the consensus. Members are measured as committees of "
        f"one; by the single highest pixel of the unclipped map the best has {number(top)}.",
    ]


def _committee(made: Mapping[str, Any]) -> list[str]:
    rows = [[one["name"], str(one["sha256"])[:16]] for one in made["committee"]]
    return ["## Committee", "", *table(["member", "SHA-256 of its weights"], rows)]


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The lines of a table."""

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return [line(columns), line(["---"] * len(columns)), *(line(row) for row in rows)]


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"
