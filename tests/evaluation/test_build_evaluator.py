"""One output of the model for three tasks, Detectron2's verification, files, several ranks."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.evaluation import inference_on_dataset, verify_results
from detectron2.evaluation.testing import flatten_results_dict, print_csv_format
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from toy_evaluation import SOURCE, random_world, record, truth_of

from fx_d2.config import add_fx_config
from fx_d2.data.builtin import load_records
from fx_d2.data.masks import instance_reference, load_mask
from fx_d2.data.record import box_xyxy
from fx_d2.data.source import TASKS
from fx_d2.data.sources import SOURCES
from fx_d2.evaluation import (
    EVALUATORS,
    FxEvaluator,
    Results,
    build_evaluator,
    evaluator_options,
    format_table,
    merge_results,
    write_results,
)
from fx_d2.phantom.world import make_world


def _evaluator(records: list[dict[str, Any]], folder: Path | None = None) -> FxEvaluator:
    truth = truth_of(records)
    options: dict[str, dict[str, Any]] = {"cls": {"n_bootstrap": 50}, "seg": {"hd95": True}}
    evaluators = [EVALUATORS[task](truth, **options.get(task, {})) for task in TASKS]
    return FxEvaluator(evaluators, folder)


class _Answers(torch.nn.Module):
    """A model that answers from a table."""

    def __init__(self, answers: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self.answers[given["image_id"]] for given in batch]


def _model(records: list[dict], outputs: list[dict]) -> _Answers:
    return _Answers({r["image_id"]: o for r, o in zip(records, outputs, strict=True)})


@pytest.fixture
def world(rng: np.random.Generator) -> tuple[list[dict], list[dict]]:
    return random_world(rng, 12)


def test_one_output_feeds_three_tasks_and_detectron2_verifies(world, caplog) -> None:
    records, outputs = world
    batches = [records[i : i + 5] for i in range(0, 12, 5)]
    results = inference_on_dataset(_model(records, outputs), batches, _evaluator(records))
    assert list(results) == ["toy_eval/cls", "toy_eval/loc", "toy_eval/seg"]
    flat = flatten_results_dict(results)
    for name in ("cls/AUC", "loc/AP40", "loc/mask_AP", "seg/Dice_positive", "seg/HD95-Lung"):
        assert 0 <= flat[f"toy_eval/{name}"] < 100
    assert all(isinstance(v, float) and np.isfinite(v) for v in flat.values())
    with caplog.at_level(logging.INFO):
        print_csv_format(results)
    cfg = get_cfg()
    expected = ["toy_eval/loc", "AP40", results["toy_eval/loc"]["AP40"], 1e-9]
    cfg.TEST.EXPECTED_RESULTS = [expected]
    assert verify_results(cfg, results)
    cfg.TEST.EXPECTED_RESULTS = [[*expected[:2], expected[2] + 0.1, 0.05]]
    with pytest.raises(SystemExit):
        verify_results(cfg, results)


def test_the_metrics_are_known_beforehand(world) -> None:
    records, outputs = world
    evaluator = _evaluator(records)
    before = {e.key: e.metric_names() for e in evaluator.evaluators}
    evaluator.process(records, outputs)
    for key, figures in evaluator.evaluate().items():
        assert len(set(before[key])) == len(before[key])
        assert set(figures) <= set(before[key])
        assert {n for n in before[key] if "-" not in n} == {n for n in figures if "-" not in n}


def test_reset_and_repeated_images_change_nothing(world) -> None:
    records, outputs = world
    evaluator = _evaluator(records)
    evaluator.process(records, outputs)
    once = evaluator.evaluate()
    evaluator.process(records[:4], outputs[:4])  # a padded last batch
    assert evaluator.evaluate() == once
    evaluator.reset()
    assert set(map(len, evaluator.evaluate().values())) == {0}
    order = np.random.default_rng(0).permutation(12)
    evaluator.process([records[i] for i in order], [outputs[i] for i in order])
    again = evaluator.evaluate()
    assert again == once and again.notes == once.notes


def test_two_simulated_ranks_equal_one(world, monkeypatch: pytest.MonkeyPatch) -> None:
    records, outputs = world
    whole, first, second = (_evaluator(records) for _ in range(3))
    whole.process(records, outputs)
    expected = whole.evaluate()
    first.process(records[:7], outputs[:7])
    second.process(records[7:], outputs[7:])
    for mine, other in zip(first.evaluators, second.evaluators, strict=True):
        gathered = [other._rows, mine._rows]
        with monkeypatch.context() as patch:
            patch.setattr(comm, "gather", lambda data, gathered=gathered: gathered)
            results = mine.evaluate()
        assert results[mine.key] == expected[mine.key]
        assert results.notes[mine.key] == expected.notes[mine.key]
        with monkeypatch.context() as patch:
            patch.setattr(comm, "gather", lambda data: [])
            patch.setattr(comm, "is_main_process", lambda: False)
            assert mine.evaluate() == {}


def _rank(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    try:
        records, outputs = random_world(np.random.default_rng(11), 12)
        evaluator = _evaluator(records, Path(folder) / "two")
        share = slice(0, 7) if rank == 0 else slice(7, 12)
        evaluator.process(records[share], outputs[share])
        results = evaluator.evaluate()
        assert bool(results) == (rank == 0)
    finally:
        torch.distributed.destroy_process_group()


def test_two_real_ranks_write_what_one_writes(tmp_path: Path, world) -> None:
    records, outputs = world
    evaluator = _evaluator(records, tmp_path / "one")
    evaluator.process(records, outputs)
    evaluator.evaluate()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(
        _rank, (port, str(tmp_path)), nprocs=2, start_method="fork"
    )
    for name in ("results.json", "results.md"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


def test_files(world, tmp_path: Path) -> None:
    records, outputs = world
    evaluator = _evaluator(records, tmp_path / "deep" / "folder")
    evaluator.process(records, outputs)
    results = evaluator.evaluate()
    content = json.loads((tmp_path / "deep" / "folder" / "results.json").read_text())
    assert content["results"] == results
    assert content["notes"]["toy_eval/cls"]["patients"] == 6
    assert content["notes"]["toy_eval/seg"]["threshold"] == 0.5
    table = (tmp_path / "deep" / "folder" / "results.md").read_text()
    assert "### toy_eval/loc" in table
    row = next(line for line in table.splitlines() if line.startswith("| Edema"))
    assert f"{results['toy_eval/cls']['AUC-Edema']:.4f}" in row
    assert any(line.startswith("| FP_per_finding_free") for line in table.splitlines())
    assert sorted(p.name for p in (tmp_path / "deep" / "folder").iterdir()) == [
        "per_image",
        "results.json",
        "results.md",
    ]


def test_what_was_left_out_stands_in_the_table() -> None:
    records = [record(0, labels=np.float32([1, 0, np.nan]), annotations=[], masks={})]
    evaluator = _evaluator(records)
    evaluator.evaluators[0].process(
        records, [{"labels": {SOURCE.key: dict.fromkeys(SOURCE.cls_classes, 0.5)}}]
    )
    table = format_table(evaluator.evaluate())
    assert "Edema (1 positive, 0 negative), Nodule (0 positive, 1 negative)" in table
    assert "Left out, never annotated: Lung, Heart" in table


def test_a_figure_that_is_none_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a/cls/AUC is nan"):
        write_results(Results({"a/cls": {"AUC": float("nan")}}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_results_of_several_datasets() -> None:
    val, test, other = (
        Results({k: {"AP": v}}) for k, v in (("a/loc", 0.1), ("a/loc", 0.2), ("b/loc", 0.3))
    )
    test.notes["a/loc"] = {"images": 3}
    merged = merge_results({"a_val": val, "a_test": test, "b_test": other})
    assert merged == {"a_val/loc": {"AP": 0.1}, "a_test/loc": {"AP": 0.2}, "b/loc": {"AP": 0.3}}
    assert merged.notes["a_test/loc"] == {"images": 3}
    with pytest.raises(ValueError, match="a/loc"):
        val.add(test)


def test_tasks_come_from_the_metadata() -> None:
    def tasks(*args: Any, **kwargs: Any) -> list[str]:
        return [e.task for e in build_evaluator(*args, records=[], **kwargs).evaluators]

    assert tasks("candid_ptx_test") == ["cls", "loc", "seg"]
    assert tasks("chexpert_test") == ["cls"]
    assert tasks("nih14_test", ("loc", "cls")) == ["cls", "loc"]
    options = {"cls": {"group_by": "study_id"}}
    assert build_evaluator("mura_val", records=[], options=options).evaluators[0].group_by
    with pytest.raises(ValueError, match="chexpert_test is not annotated for.*seg"):
        tasks("chexpert_test", ("seg",))
    with pytest.raises(ValueError, match="detection"):
        tasks("rsna_test", ("detection",))
    with pytest.raises(ValueError, match="segmentation"):
        tasks("rsna_test", options={"segmentation": {}})
    with pytest.raises(KeyError, match="rsna_tset"):
        tasks("rsna_tset")


def test_options_come_from_the_config() -> None:
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.TEST.FX.merge_from_list(
        ["THRESHOLD", 0.3, "BOOTSTRAP", 7, "GROUP_BY", ("mura=study_id",), "HD95", True]
    )
    cfg.TEST.FX.SCORE_THRESHOLD, cfg.TEST.FX.COCO_BACKEND = 0.2, "pycocotools"
    mura = build_evaluator("mura_val", records=[], options=evaluator_options(cfg, "mura_val"))
    assert (mura.evaluators[0].group_by, mura.evaluators[0].n_bootstrap) == ("study_id", 7)
    tbx = build_evaluator("tbx11k_val", records=[], options=evaluator_options(cfg, "tbx11k_val"))
    assert tbx.evaluators[0].group_by is None and tbx.evaluators[0].thresholds.tolist() == [0.3]
    assert tbx.evaluators[1].class_agnostic and tbx.evaluators[1].score_threshold == 0.2
    assert tbx.evaluators[1].backend == "pycocotools"
    cfg.MODEL.FX.LOC.AGNOSTIC = False
    assert not evaluator_options(cfg, "tbx11k_val")["loc"]["class_agnostic"]
    siim = build_evaluator(
        "siim_acr_val", records=[], options=evaluator_options(cfg, "siim_acr_val")
    )
    assert siim.evaluators[2].hd95
    for bad, message in (("mura", "write 'source=key'"), ("muro=study_id", "mura")):
        cfg.TEST.FX.GROUP_BY = (bad,)
        with pytest.raises((ValueError, KeyError), match=message):
            evaluator_options(cfg, "mura_val")


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_source_has_its_evaluators(name: str) -> None:
    source = SOURCES[name]
    split = next(iter(source.splits))
    built = build_evaluator(f"{name}_{split}", source.all_tasks(), records=[])
    assert tuple(e.task for e in built.evaluators) == source.all_tasks()
    assert list(built.evaluate()) == [f"{name}/{task}" for task in source.all_tasks()]


def _oracle(records: Any) -> _Answers:
    """A model that knows the truth."""
    answers = {}
    for r in records:
        source, size = SOURCES[r["source"]], (r["height"], r["width"])
        labels = np.nan_to_num(r["labels"]) if "labels" in r else []
        found = Instances(size)
        notes = r.get("annotations", [])
        found.pred_boxes = Boxes(torch.tensor([box_xyxy(n) for n in notes]).reshape(-1, 4))
        found.scores = torch.linspace(0.9, 0.6, len(notes))
        found.pred_classes = torch.tensor([n["category_id"] for n in notes], dtype=torch.int64)
        if source.instance_masks:
            references = [instance_reference(n["segmentation"]) for n in notes]
            pixels = [torch.from_numpy(load_mask(ref, *size)) for ref in references]
            found.pred_masks = torch.stack(pixels) if pixels else torch.zeros(0, *size)
        masks = {
            name: load_mask(ref, *size, resize=source.resize_masks)
            for name, ref in r.get("masks", {}).items()
        }
        answers[r["image_id"]] = {
            "labels": {source.key: dict(zip(source.cls_classes, labels, strict=True))},
            "instances": {source.key: found},
            "masks": {source.key: masks},
        }
    return _Answers(answers)


@pytest.mark.parametrize("key", ["siim_acr", "chestx_det", "rsna"])
def test_a_model_that_knows_the_truth_scores_one(key: str, tmp_path: Path) -> None:
    make_world(tmp_path, patients=10, seed=1, sources=[key], size_px=96)
    split = "all" if "all" in SOURCES[key].splits else "train"
    root = tmp_path / SOURCES[key].folder
    records = [dict(r) for r in load_records(key, split, root=root)]
    for r in records:
        r.setdefault("height", 96), r.setdefault("width", 96)
    evaluator = build_evaluator(
        f"{key}_{split}", records=records, options={"cls": {"n_bootstrap": 20}}
    )
    results = inference_on_dataset(_oracle(records), [records], evaluator)
    figures = flatten_results_dict(results)
    best = {"AUC", "AP", "F1", "kappa", "accuracy", "AP40", "mask_AP", "RSNA", "CPM", "Dice", "IoU"}
    scored = {n for n in figures if n.rpartition("/")[2] in best}
    assert {f"{key}/cls/AUC", f"{key}/loc/AP40"} <= scored
    for name in scored:
        assert figures[name] == pytest.approx(1, abs=1e-6), name
    assert figures[f"{key}/cls/ECE"] == pytest.approx(0, abs=1e-6)
    assert figures.get(f"{key}/loc/FP_per_finding_free", 0) == 0
