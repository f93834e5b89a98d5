from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from fx_d2.benchmark import prediction
from fx_d2.benchmark.parts import PartClock, parts_timed, without_postprocessing
from fx_d2.benchmark.setting import first_spec, make_batch
from fx_d2.modeling.postprocess import BoxMasks


@pytest.fixture
def model(quick):
    return quick.model().eval()


@pytest.fixture
def batch(quick):
    cfg = quick.cfg()
    return make_batch(first_spec(cfg, "cls"), cfg, replace(quick, batch=1))


def test_variants_run_what_their_names_say(model, batch):
    calls = []
    for spec in model.specs:
        head = model.heads[spec.task].get_submodule(spec.source)
        part = head.box_predictor if spec.task == "loc" else head
        part.register_forward_hook(lambda *_, name=spec.name: calls.append(name))
    model.trunk.register_forward_hook(lambda *_: calls.append("trunk"))
    expected = {
        "trunk": {"trunk"},
        "heads of one source": {"trunk", "chestx_det/cls", "chestx_det/loc", "chestx_det/seg"},
        "all heads": {"trunk", *(spec.name for spec in model.specs)},
    }
    variants = prediction.raw_variants(model, batch)
    assert set(variants) == set(expected)
    for name, run in variants.items():
        calls.clear()
        run()
        assert set(calls) == expected[name] and calls.count("trunk") == 1


def test_raw_results_are_not_postprocessed_and_later_ones_are(model, batch):
    large = [{**item, "height": 200, "width": 100} for item in batch]
    with without_postprocessing():
        (raw,) = model.inference(large)
    (whole,) = model.inference(large)
    assert raw["masks"] == {"chestx_det": {}}
    assert raw["instances"]["chestx_det"].image_size == (64, 64)
    assert whole["instances"]["chestx_det"].image_size == (200, 100)
    assert isinstance(whole["instances"]["chestx_det"].pred_masks, BoxMasks)
    assert next(iter(whole["masks"]["chestx_det"].values())).shape == (200, 100)


def test_pasting_makes_every_mask(model, batch, monkeypatch):
    made = []
    take = BoxMasks.__getitem__

    def noted(self, item):
        if isinstance(item, int) and item < len(self):
            made.append(item)
        return take(self, item)

    monkeypatch.setattr(BoxMasks, "__getitem__", noted)
    _, masks = prediction.count_detections(model, batch)
    assert not made and masks > 0
    prediction.whole_variants(model, batch, 100)["all, masks pasted"]()
    assert len(made) == masks


def test_limit_of_detections_holds_and_is_lifted(model, batch):
    free = prediction.count_detections(model, batch)
    with prediction.at_most(model, 3):
        assert prediction.count_detections(model, batch) == (6, 3)
    assert prediction.count_detections(model, batch) == free
    with prediction.at_most(model, 0):
        assert prediction.count_detections(model, batch) == free


def test_parts_add_up_and_leave_the_model_as_it_was(model, batch):
    with torch.no_grad():
        (before,) = model.inference(batch)
        attributes = {name: set(vars(m)) for name, m in model.named_modules()}
        start = time.perf_counter()
        with parts_timed(model, PartClock(model.device)) as clock:
            (timed,) = model.inference(batch)
        passed = time.perf_counter() - start
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes
    assert timed["labels"] == before["labels"]
    assert set(clock.seconds) >= {"trunk", "box heads", "instance masks", "post-processing"}
    assert all(seconds >= 0 for seconds in clock.seconds.values())
    assert 0.9 * passed - 0.01 < sum(clock.seconds.values()) <= passed


def test_source_with_all_tasks_is_the_base(model):
    assert prediction.whole_source(model.specs) == "chestx_det"
    without = [spec for spec in model.specs if spec.source != "chestx_det"]
    assert prediction.whole_source(without) == "rsna"  # two heads against one


@pytest.mark.parametrize("shared", [False, True])
def test_given_weights_are_loaded_and_decide_the_layout(quick, tmp_path, shared):
    from safetensors.torch import save_file

    setting = quick.having("MODEL.FX.LOC.SHARED_DECODER", str(shared))
    trained = replace(setting, seed=5).model()
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    case = prediction.Case("given", weights=str(tmp_path / "w.safetensors"))
    _, model = prediction._build(setting, case)
    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    tables = prediction.measure_prediction(
        setting, 1, weights=case.weights, original_px=80, clock=time.perf_counter, quiet=True
    )
    layouts = {row["layout"] for row in tables["prediction"].rows}
    assert layouts == {"X+" if shared else "X"}
