"""Shards of pseudo-masks: their content, their bytes, their report, and what is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import doll_world
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from fx_d2.data.builtin import load_records
from fx_d2.data.errors import DataError
from fx_d2.data.sources import get_source
from fx_d2.explain.consensus import consensus
from fx_d2.explain.pseudo_labels import LabelRules, pixel_labels
from fx_d2.pipelines.doll import build as building
from fx_d2.pipelines.doll.build import build, plan
from fx_d2.pipelines.doll.settings import DollSettings, Quality, SettingsError, load_settings
from fx_d2.pipelines.doll.sheets import write_sheets

SETTINGS = DollSettings(
    dataset="doll_toy_all", beside=("grad_cam",), shard_images=5, mask_px=48, val_share=0.3, seed=7
)


def planned(out: Path, make, settings: DollSettings = SETTINGS, **kwargs):
    source = get_source("doll_toy")
    return plan(out, source, load_records("doll_toy", "all"), make, settings, **kwargs)


def made(out: Path, make, settings: DollSettings = SETTINGS, workers: int = 1, **kwargs):
    return build(planned(out, make, settings, **kwargs), workers=workers, progress=False)


def digests(out: Path) -> dict[str, str]:
    files = [p for p in out.rglob("*") if p.is_file()]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def shards(out: Path) -> list[dict]:
    return [json.loads(p.read_text()) for p in sorted((out / "shards").glob("*.json"))]


def expected(record, name: str):
    """Maps, consensus and labels of a class of an image, without the code under test's plumbing."""
    fake = doll_world.committee(3)
    seen = fake.prepare(record["file_name"])[0].image
    maps = np.stack([fake.map_of(seen, name, m, (36, 48)) for m in range(3)])
    return maps, consensus(maps), pixel_labels(consensus(maps), name, LabelRules())


def decoded(rle: dict) -> np.ndarray:
    """By pycocotools itself."""
    return coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode()}).astype(bool)


def test_a_shard_holds_what_the_rules_say_of_every_image(tmp_path: Path, toy) -> None:
    report = made(tmp_path, toy)
    records = {r["image_id"]: r for r in load_records("doll_toy", "all")}
    seen = kept = 0
    for body in shards(tmp_path):
        assert [c["name"] for c in body["categories"]] == list(doll_world.CLASSES)
        assert body["info"]["provenance"]["committee"][1]["sha256"] == f"{1:064x}"
        masks = {(a["image_id"], a["category_id"]): a for a in body["annotations"]}
        for entry in body["images"]:
            seen += 1
            record, states = records[entry["image_id"]], entry["states"]
            assert (entry["height"], entry["width"]) == (60, 80)
            for k, name in enumerate(doll_world.CLASSES):
                note = masks.get((entry["id"], k + 1))
                assert (note is not None) == (states[k] == "kept")
                if note is None:
                    continue
                kept += 1
                assert record["labels"][k] == 1
                front, ignored = decoded(note["segmentation"]), decoded(note["ignore"])
                labels = expected(record, name)[2]
                np.testing.assert_array_equal(front, labels == 1)
                np.testing.assert_array_equal(ignored, labels == 255)
                assert front.shape == (36, 48) and note["area"] == front.sum() > 0
                doll = note["doll"]
                assert doll["n_models"] == 3 and doll["q"] == 0.1 and doll["prob"] >= 0.5
                assert 2 / 3 - 1e-6 <= doll["agree"] <= 1 and 0 < doll["consensus_mean"] <= 1
                assert doll["completeness"] == pytest.approx(0.017)
            if record["labels"][0] == 1 and record["labels"][1] == 1:
                assert states[1] == "contradicted"
            if record["labels"][3] == 1:
                assert states[3] == "low probability"
    assert seen == report.images == 22 and kept > 10
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one(tmp_path: Path, toy) -> None:
    made(tmp_path / "one", toy)
    made(tmp_path / "two", toy, workers=2)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert len(digests(tmp_path / "one")) == 14


def test_the_same_bytes_after_a_kill(tmp_path: Path, toy, monkeypatch) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    made(one, toy)
    real, calls = building.write_shard, []

    def killed(job, number, records) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(number)
        real(job, number, records)

    monkeypatch.setattr(building, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        made(three, toy)
    assert not (three / "pseudo_masks.json").exists()
    kept = sorted((three / "shards").glob("*.json"))
    assert len(kept) == 2
    before = [p.stat().st_mtime_ns for p in kept]
    monkeypatch.setattr(building, "write_shard", real)
    made(three, toy)
    assert [p.stat().st_mtime_ns for p in kept] == before
    assert digests(three) == digests(one)
    # What is lost is made again, and other limits need no new shard.
    (three / "shards" / "00003.json").unlink()
    made(three, toy)
    assert digests(three) == digests(one)
    made(three, toy, replace(SETTINGS, quality=Quality(min_auc=0.99), exclude=("Left",)))
    assert [p.stat().st_mtime_ns for p in kept] == before
    assert json.loads((three / "pseudo_masks.json").read_text())["excluded"]["Left"] == "asked for"
    # Another seed is another run.
    with pytest.raises(DataError, match="there are pseudo-masks of other seed"):
        made(three, toy, replace(SETTINGS, seed=8))
    with pytest.raises(DataError, match="of other committee"):
        made(three, partial(doll_world.committee, 2))


def test_a_shard_is_done_only_if_it_is_of_this_run_and_whole(tmp_path: Path, toy) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    made(here, toy)
    made(other, toy, replace(SETTINGS, seed=8))
    good, name = digests(here), "shards/00002.json"
    foreign = (other / name).read_bytes()
    own = (here / name).read_bytes()
    (here / name).write_bytes(foreign)
    with pytest.raises(DataError, match=r"00002\.json.*shard of another committee"):
        made(here, toy)
    (here / name).write_bytes(own)
    # Measures or a shard of fewer images than it should have are made again.
    for file in ("measures/00001.json", name):
        body = json.loads((here / file).read_text())
        (body if isinstance(body, list) else body["images"]).pop()
        (here / file).write_text(json.dumps(body))
        made(here, toy)
        assert digests(here) == good, file


def test_everything_that_decides_the_bytes_is_another_run(tmp_path: Path, toy) -> None:
    plain = planned(tmp_path, toy).job.fingerprint
    assert planned(tmp_path / "elsewhere", toy).job.fingerprint == plain
    records = [dict(r) for r in load_records("doll_toy", "all")]
    records[3]["labels"] = 1 - records[3]["labels"]
    relabelled = plan(
        tmp_path, get_source("doll_toy"), type(load_records("doll_toy", "all"))(records), toy,
        SETTINGS,
    )  # fmt: skip
    weighed = replace(SETTINGS, class_weights={"Left": [1.0, 2.0, 1.0]})
    others = [
        relabelled,
        planned(tmp_path, toy, limit=21),
        planned(tmp_path, partial(doll_world.committee, 2)),
        planned(tmp_path, toy, weighed),
        planned(tmp_path, toy, replace(SETTINGS, labels=LabelRules(min_prob=0.4))),
        planned(tmp_path, toy, replace(SETTINGS, mask_px=40)),
    ]
    assert len({plain, *(one.job.fingerprint for one in others)}) == 7


def test_the_report_counts_what_an_independent_computation_counts(tmp_path: Path, toy) -> None:
    report = made(tmp_path, toy)
    records = list(load_records("doll_toy", "all"))
    fake = doll_world.committee(3)
    body = json.loads((tmp_path / "report.json").read_text())
    for k, name in ((1, "Left"), (2, "Right")):
        hits, raw, shares, scores = [], [], [], {0: [], 1: []}
        for record in records:
            seen = fake.prepare(record["file_name"])
            label = record["labels"][k]
            chance = float(fake.answer([seen]).probabilities[:, 0, k].double().mean())
            if label in (0, 1):
                scores[int(label)].append(chance)
            if label != 1 or record["labels"][0] == 1 or chance < 0.5:
                continue
            maps, agreed, _ = expected(record, name)
            (box,) = [a["bbox"] for a in record["annotations"] if a["category_id"] == 2 - k]
            x0, y0, x1, y1 = (v * 0.6 for v in box)  # 80 x 60 to 48 x 36
            inside = np.zeros((36, 48), dtype=bool)
            inside[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
            hits.append(inside[agreed.mean == agreed.mean.max()].mean())
            raw.append([float(inside.ravel()[m.argmax()]) for m in maps])
            shares.append((agreed.mean * inside).sum() / agreed.mean.sum())
        figures = body["classes"][name]
        assert figures["with_truth"] == len(hits) > 3
        assert figures["pointing"]["consensus"] == pytest.approx(np.mean(hits), abs=1e-5)
        assert figures["mass"]["consensus"] == pytest.approx(np.mean(shares), abs=1e-5)
        pairs = [(p > n) + 0.5 * (p == n) for p in scores[1] for n in scores[0]]
        assert figures["auc"]["consensus"] == pytest.approx(np.mean(pairs), abs=1e-4)
        assert figures["states"]["kept"] == figures["masks"] <= figures["positive"]
        # The stripe of a member is the highest there is: alone it always misses.
        assert figures["pointing"]["consensus"] > max(
            figures["pointing"][m] for m in ("m0", "m1", "m2")
        )
        assert np.mean(raw) < 0.5 and figures["beside"]["grad_cam"]["pointing"].keys()
    assert body["places"]["classes"] == ["Left", "Right"]
    # Never annotated, and a hard negative where nothing was found.
    assert body["excluded"]["Never"] == "0 masks, fewer than 1 (4 x negative; 18 x unknown)"
    assert "low probability" in body["excluded"]["Rare"] and "No Finding" in report.kept
    text = (tmp_path / "report.md").read_text()
    assert "Best single member" in text and "| Never | - |" in text
    made_plan = planned(tmp_path, toy)
    files = write_sheets(made_plan.job, made_plan.records, 5, report.kept)
    assert [f.name for f in files] == ["Left.png", "Right.png"] and files[0].stat().st_size > 1000


def test_a_committee_that_fits_nothing_is_refused_before_any_work(tmp_path: Path, toy) -> None:
    other = partial(doll_world.committee, 2, classes=("Oedema", "Rihgt"))
    with pytest.raises(DataError, match="are no labels of doll_toy: Oedema, Rihgt"):
        planned(tmp_path, other)
    some = planned(tmp_path, partial(doll_world.committee, 2, classes=("Left", "Oedema")))
    assert some.unlabelled == ("Oedema",)
    with pytest.raises(SettingsError, match="exclude names 'Rihgt'.*Did you mean 'Right'"):
        planned(tmp_path, toy, replace(SETTINGS, exclude=("Rihgt",)))
    with pytest.raises(SettingsError, match="2 weights for 3 members"):
        planned(tmp_path, toy, replace(SETTINGS, class_weights={"Left": [1.0, 1.0]}))
    assert not list(tmp_path.iterdir())


def test_no_foreground_anywhere_is_an_error_that_counts(tmp_path: Path, toy) -> None:
    strict = replace(SETTINGS, labels=LabelRules(min_prob=1.0))
    with pytest.raises(DataError, match=r"no class has a mask: .*low probability"):
        made(tmp_path, toy, strict)
    assert (tmp_path / "report.md").is_file() and not (tmp_path / "pseudo_masks.json").exists()


def test_an_image_that_cannot_be_read_stops_or_is_counted(tmp_path: Path, toy) -> None:
    source, records = get_source("doll_toy"), load_records("doll_toy", "all")
    broken = [dict(r) for r in records]
    (tmp_path / "bad.png").write_bytes(b"no image")
    broken[3]["file_name"] = str(tmp_path / "bad.png")
    packed = type(records)(broken)
    with pytest.raises(DataError, match="bad.png"):
        build(plan(tmp_path / "a", source, packed, toy, SETTINGS), progress=False)
    report = build(
        plan(tmp_path / "b", source, packed, toy, SETTINGS, on_error="skip"), progress=False
    )
    assert report.images == 21 and sum(report.failed.values()) == 1


def test_settings_from_a_file_and_words(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("dataset: a_train\nlabels: {top_share: 0.2, no_finding: [Normal]}\n")
    found = load_settings(file, ["labels.min_prob_by", "{Edema: 0.3}", "ig.steps", "20"])
    assert found.labels.top_share == 0.2 and found.labels.min_prob_by == {"Edema": 0.3}
    assert found.ig.steps == 20 and found.labels.no_finding == ("Normal",)
    for words, what in (
        (["labels.top_shar", "0.2"], "labels.top_shar. Did you mean 'top_share'"),
        (["labels.top_share", "0.9"], "labels.top_share is 0.9"),
        (["labels.top_share", "much"], "labels.top_share is 'much'; expected a number"),
        (["explainer", "grad_cma"], "Did you mean 'grad_cam'"),
        (["labels", "3"], "labels is 3; expected a group"),
        (["seed"], "'seed' has no value"),
        (["shard_images", "0"], "shard_images is 0"),
        (["ig.steps", "0"], "steps"),
    ):
        with pytest.raises(SettingsError, match=what):
            load_settings(file, words)
    file.write_text("!!python/object/apply:os.system ['true']\n")
    with pytest.raises(SettingsError, match="not YAML"):
        load_settings(file)
    assert load_settings(Path(__file__).parents[3] / "configs/doll/pseudo_masks.yaml").dataset
