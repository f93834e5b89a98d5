from __future__ import annotations

import copy

import pytest
import torch
from detectron2.structures import Boxes, Instances

from fx_d2.modeling.heads.spec import HeadSpec, select_heads

SOURCES = ("chexpert", "tbx11k", "rsna", "chestx_det", "siim_acr")
SHARED = {"cls": {"cls_encoder"}, "loc": {"loc_encoder", "loc_decoder"}, "seg": {"seg_decoder"}}


def part(name: str) -> str:
    """``trunk``, a shared part, or ``heads.<task>.<source>``."""
    pieces = name.split(".")
    return ".".join(pieces[:3]) if pieces[0] == "heads" else pieces[0]


def backward(model, batch):
    model.zero_grad(set_to_none=True)
    losses = model.train()(batch)
    sum(losses.values()).backward()
    return losses


def grads(model):
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def model(tiny_model):
    return tiny_model(*SOURCES)


@pytest.mark.parametrize("shared_decoder", [False, True])
def test_only_trunk_shared_parts_and_the_addressed_head_get_gradients(
    tiny_model, item, shared_decoder
):
    model = tiny_model(*SOURCES, MODEL__FX__LOC__SHARED_DECODER=shared_decoder)
    parts = {part(n) for n, _ in model.named_parameters()}
    assert ("loc_decoder" in parts) == shared_decoder
    assert len(model.specs) == 5 + 4 + 2
    for spec in model.specs:
        batch = [item(spec.source, spec.task, i) for i in range(2)]
        losses = backward(model, batch)
        assert losses and all(k.startswith(f"loss_{spec.task}_") for k in losses)
        assert all(torch.isfinite(v) for v in losses.values())
        touched = {part(n) for n in grads(model)}
        allowed = {"trunk", f"heads.{spec.task}.{spec.source}"} | SHARED[spec.task] & parts
        assert touched == allowed
        # Every parameter of these, with one exception: what only other sources' masks use, and the
        # final norm, which only classification taps.
        without = {n for n, p in model.named_parameters() if part(n) in allowed and p.grad is None}
        no_masks = spec.task == "loc" and not spec.instance_masks
        assert all(
            n.startswith("trunk.norm") or (no_masks and "mask_head" in n) for n in without
        ), without
        assert all(torch.isfinite(g).all() for g in grads(model).values())
        assert any(g.abs().sum() > 0 for n, g in grads(model).items() if n.startswith("trunk"))


def test_the_names_of_parameters_are_the_published_ones(model):
    names = {n for n, _ in model.named_parameters()}
    assert {
        "heads.cls.chexpert.linear.weight",
        "heads.loc.chestx_det.box_predictor.cls_score.weight",
        "heads.loc.chestx_det.mask_predictor.weight",
        "heads.loc.chestx_det.decoder.box_head.fc1.weight",
        "heads.seg.siim_acr.weight",
        "seg_decoder.pooling.fuse.0.weight",
        "loc_encoder.rpn.rpn_head.conv.weight",
    } <= names
    assert set(model.state_dict()) == names  # nothing of the config in the weights


def test_not_annotated_labels_give_exactly_zero(model, item):
    batch = [item("chexpert", "cls", i) for i in range(3)]
    for one in batch:
        one["labels"][4] = torch.nan
    backward(model, batch)
    linear, votes = model.heads["cls"].chexpert.linear, model.heads["cls"].chexpert.votes
    for grad in (linear.weight.grad, linear.bias.grad, votes.weight.grad):
        size = grad.reshape(14, -1).abs().sum(1)
        assert size[4] == 0 and (size[[c for c in range(14) if c != 4]] > 0).all()
    for one in batch:
        one["labels"][:] = torch.nan
    losses = backward(model, batch)
    assert sum(losses.values()) == 0
    assert all((g == 0).all() for g in grads(model).values())


def test_not_annotated_masks_give_exactly_zero(model, item):
    batch = [item("chestx_det", "seg", i) for i in range(2)]
    for one in batch:
        one["sem_known"][3] = False
        one["sem_masks"][3] = 1
    backward(model, batch)
    grad = model.heads["seg"].chestx_det.weight.grad.flatten(1).abs().sum(1)
    assert grad[3] == 0 and (grad[[c for c in range(13) if c != 3]] > 0).all()
    for one in batch:
        one["sem_known"][:] = False
    losses = backward(model, batch)
    assert sum(losses.values()) == 0
    assert all((g == 0).all() for g in grads(model).values())


@pytest.mark.parametrize("source", ["rsna", "chestx_det"])
def test_images_without_annotated_boxes_contribute_nothing(model, item, source):
    annotated, other = item(source, "loc", 0), item(source, "loc", 1)
    del other["instances"]
    torch.manual_seed(3)
    alone = backward(model, [annotated])
    alone_grads = {n: g.clone() for n, g in grads(model).items()}
    torch.manual_seed(3)
    both = backward(model, [other, annotated])
    assert {k: v.item() for k, v in both.items()} == {k: v.item() for k, v in alone.items()}
    assert all(torch.equal(g, alone_grads[n]) for n, g in grads(model).items())
    losses = backward(model, [other])
    assert set(losses) == set(alone) and all(v == 0 for v in losses.values())
    assert grads(model) and all((g == 0).all() for g in grads(model).values())


@pytest.mark.parametrize("source", ["rsna", "chestx_det"])
def test_finding_free_images_are_negatives_and_finite(model, item, source):
    batch = [item(source, "loc", i) for i in range(2)]
    for one in batch:
        one["instances"] = one["instances"][[]]
    losses = backward(model, batch)
    assert all(torch.isfinite(v) for v in losses.values())
    assert losses["loss_loc_cls"] > 0 and losses["loss_loc_box"] == 0
    assert losses["loss_loc_rpn_cls"] > 0
    assert all(torch.isfinite(g).all() for g in grads(model).values())
    mixed = backward(model, [batch[0], item(source, "loc", 5)])
    assert mixed["loss_loc_box"] > 0 and all(torch.isfinite(v) for v in mixed.values())


@pytest.mark.parametrize("task", ["cls", "loc", "seg"])
def test_a_batch_of_one_image(model, item, task):
    losses = backward(model, [item("chestx_det", task)])
    assert all(torch.isfinite(v) and v > 0 for v in losses.values())


def test_empty_masks_are_learned_as_empty(model, item):
    one = item("siim_acr", "seg")
    one["sem_masks"][:] = 0
    losses = backward(model, [one])
    assert all(torch.isfinite(v) and v > 0 for v in losses.values())
    assert model.heads["seg"].siim_acr.bias.grad.item() > 0  # the probability goes down


def test_a_batch_of_two_kinds_is_refused_by_name(model, item):
    model.train()
    with pytest.raises(ValueError, match=r"one source and one task.*chestx_det.*seg.*rsna.*loc"):
        model([item("rsna", "loc"), item("chestx_det", "seg")])
    with pytest.raises(ValueError, match="one source and one task"):
        model([item("rsna", "cls"), item("chexpert", "cls")])
    with pytest.raises(KeyError, match="no head 'chexpert/loc'.*Did you mean"):
        model([{**item("chexpert", "cls"), "task": "loc"}])
    with pytest.raises(ValueError, match=r"one task; this one is of \('cls', 'loc'\)"):
        model([{**item("rsna", "cls"), "task": ("cls", "loc")}])
    with pytest.raises(ValueError, match="empty"):
        model([])


def test_wrong_images_are_refused_by_id(model, item):
    for image in (torch.rand(1, 64, 64), torch.zeros(3, 64, 64, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"image 'image0' is torch.*expected float32 \(3"):
            model.eval()([{**item("rsna", "cls"), "image": image}])


def test_statistics_of_eight_bit_images_are_refused(tiny_model):
    with pytest.raises(ValueError, match=r"MODEL.PIXEL_MEAN is \[103.*Base-FX.yaml"):
        tiny_model("rsna", MODEL__PIXEL_MEAN=[103.5, 116.3, 123.7])


def test_all_heads_in_one_forward_of_the_trunk(model, item):
    calls = []
    model.trunk.register_forward_hook(lambda *_: calls.append(1))
    batch = [item("rsna", "cls", i) for i in range(2)]
    batch[1] |= {"height": 50, "width": 70}
    outputs = model.eval()(batch)
    assert len(calls) == 1 and len(outputs) == 2
    for output, (height, width) in zip(outputs, [(120, 90), (50, 70)], strict=True):
        assert set(output["labels"]) == set(SOURCES)
        assert list(output["labels"]["siim_acr"]) == ["Pneumothorax"]
        assert sum(output["labels"]["rsna"].values()) == pytest.approx(1, abs=1e-5)
        assert set(output["instances"]) == {"tbx11k", "rsna", "chestx_det", "siim_acr"}
        assert set(output["masks"]) == {"chestx_det", "siim_acr"}
        for mask in output["masks"]["chestx_det"].values():
            assert mask.dtype == torch.bool and mask.shape == (height, width)
        for source, found in output["instances"].items():
            assert found.image_size == (height, width)
            assert found.has("pred_masks") == (source in ("chestx_det", "siim_acr"))
            boxes = found.pred_boxes.tensor
            assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height] * 2)).all()
        assert set(output["instances"]["tbx11k"].pred_classes.tolist()) == {0}  # agnostic
        masks = output["instances"]["chestx_det"].pred_masks
        assert masks[0].shape == (height, width) and masks[0].dtype == torch.bool


def test_asked_heads_only_and_the_same_numbers(model, item):
    model.eval()
    batch = [item("rsna", "cls", i) for i in range(2)]
    everything = model(batch)
    calls = []
    model.loc_encoder.register_forward_hook(lambda *_: calls.append(1))
    only = model(batch, heads=["chexpert", "chestx_det/seg"])
    assert not calls and not only[0]["instances"]
    assert only[0]["labels"].keys() == {"chexpert"} and only[0]["masks"].keys() == {"chestx_det"}
    assert only[1]["labels"]["chexpert"] == everything[1]["labels"]["chexpert"]
    with model.asking([("rsna", "loc")]):
        inside = model(batch)
        with model.asking("cls"):
            assert model(batch)[0]["labels"].keys() == set(SOURCES)
    assert inside[0]["instances"].keys() == {"rsna"} and not inside[0]["labels"]
    assert torch.equal(
        inside[1]["instances"]["rsna"].scores, everything[1]["instances"]["rsna"].scores
    )
    assert model(batch)[0].keys() == everything[0].keys()
    assert model(batch)[0]["labels"].keys() == set(SOURCES)
    with pytest.raises(KeyError, match="no head 'chexprt'. Did you mean 'chexpert'"):
        model(batch, heads=["chexprt"])
    with pytest.raises(KeyError, match="chexpert/seg"), model.asking(["chexpert/seg"]):
        pass


def test_selection_keeps_the_order_of_the_model():
    specs = [
        HeadSpec("a", "cls", ("x",)),
        HeadSpec("a", "loc", ("x",)),
        HeadSpec("b", "cls", ("x",)),
    ]
    assert select_heads(specs, None) == specs
    assert select_heads(specs, ["b", "a/loc"]) == specs[1:]
    assert select_heads(specs, "cls") == [specs[0], specs[2]]
    assert select_heads(specs, []) == []


def test_an_image_gets_the_same_answer_alone_and_in_a_batch(model, item):
    model.eval()
    alone = model([item("rsna", "cls", 1)])[0]
    batch = model([item("rsna", "cls", 0), item("rsna", "cls", 1)])[1]
    for source in SOURCES:
        assert batch["labels"][source] == pytest.approx(alone["labels"][source], abs=1e-5)
    a, b = alone["instances"]["rsna"], batch["instances"]["rsna"]
    assert torch.allclose(a.scores[:5], b.scores[:5], atol=1e-5)


def test_detections_stay_inside_the_content_and_are_scaled_by_it(model, item):
    """What is padding at the right and bottom is no place of the original."""
    one = item("rsna", "loc")
    one["image"][:, 40:] = 0
    one |= {"content_size": (40, 64), "height": 400, "width": 640}
    seen = []
    model.heads["loc"].rsna.box_predictor.register_forward_hook(lambda *_: seen.append(1))
    found = model.eval()([one], heads=["rsna/loc"])[0]["instances"]["rsna"]
    assert seen and len(found)
    assert found.pred_boxes.tensor[:, 3].max() == pytest.approx(400, abs=1e-3)  # 40 input pixels
    model.train()
    one["instances"] = Instances((64, 64))
    one["instances"].gt_boxes = Boxes(torch.tensor([[8.0, 10.0, 30.0, 28.0]]))
    one["instances"].gt_classes = torch.tensor([0])
    assert all(torch.isfinite(v) for v in backward(model, [one]).values())


def test_a_source_more_or_less_shares_the_rest(tiny_model):
    fewer, more = tiny_model("tbx11k", "rsna"), tiny_model("tbx11k", "rsna", "chestx_det")
    a, b = fewer.state_dict(), more.state_dict()
    only_more = {part(n) for n in set(b) - set(a)}
    assert set(a) <= set(b)
    assert only_more == {
        "heads.cls.chestx_det",
        "heads.loc.chestx_det",
        "heads.seg.chestx_det",
        "seg_decoder",
    }
    assert all(a[n].shape == b[n].shape for n in a)
    result = more.load_state_dict(a, strict=False)
    assert not result.unexpected_keys and set(result.missing_keys) == set(b) - set(a)
    assert all(torch.equal(more.state_dict()[n], a[n]) for n in a)


@pytest.mark.parametrize("task", ["cls", "loc", "seg"])
def test_bf16_autocast_trains_and_predicts(model, item, task):
    batch = [item("chestx_det", task, i) for i in range(2)]
    torch.manual_seed(1)
    exact = {k: v.item() for k, v in backward(model, batch).items()}
    torch.manual_seed(1)
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    assert all(v.dtype == torch.float32 for v in losses.values())
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(exact, rel=0.1, abs=0.02)
    sum(losses.values()).backward()
    assert all(torch.isfinite(g).all() for g in grads(model).values())
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(batch)[0]
    boxes = output["instances"]["chestx_det"].pred_boxes.tensor
    assert boxes.dtype == torch.float32 and torch.isfinite(boxes).all()
    # Not the 2 px steps that bf16 has at 256 and above.
    assert (boxes != boxes.round()).any()


def test_compiling_the_trunk_changes_no_name(tiny_model):
    plain, compiled = tiny_model("rsna"), tiny_model("rsna", MODEL__FX__COMPILE=True)
    assert plain.trunk._compiled_call_impl is None
    assert compiled.trunk._compiled_call_impl is not None
    assert set(plain.state_dict()) == set(compiled.state_dict())


def test_channels_last_gives_the_same_numbers(tiny_model, item):
    plain, last = tiny_model("rsna"), tiny_model("rsna", MODEL__FX__CHANNELS_LAST=True)
    batch = [item("rsna", "cls", i) for i in range(2)]
    a, b = plain.eval()(batch)[1]["labels"]["rsna"], last.eval()(batch)[1]["labels"]["rsna"]
    assert a == pytest.approx(b, abs=1e-5)


def test_a_copy_is_independent(model, item):
    """A teacher starts as a copy of its student."""
    twin = copy.deepcopy(model).eval()
    model.eval()
    batch = [item("rsna", "cls")]
    assert twin(batch)[0]["labels"] == model(batch)[0]["labels"]
    with torch.no_grad():
        model.heads["cls"].rsna.linear.bias += 1.0
        model.trunk.norm.bias += 1.0
    assert twin(batch)[0]["labels"]["siim_acr"] != model(batch)[0]["labels"]["siim_acr"]


def test_one_step_lowers_the_loss_of_every_head(model, item):
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for name in ("chestx_det/cls", "chestx_det/seg", "rsna/loc"):
        source, task = name.split("/")
        batch = [item(source, task, i) for i in range(2)]
        values = []
        for _ in range(6):
            optimizer.zero_grad()
            torch.manual_seed(0)
            loss = sum(model.train()(batch).values())
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        assert values[-1] < 0.9 * values[0], name
