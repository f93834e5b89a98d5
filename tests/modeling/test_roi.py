from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import build_roi_heads
from detectron2.structures import Boxes, ImageList, Instances

SOURCES = ("tbx11k", "rsna", "chestx_det", "candid_ptx")


def detectron2_twin(model, cfg, source):
    """Detectron2's own heads with the weights of our head of ``source``, X layout."""
    cfg = copy.deepcopy(cfg)
    head = model.heads["loc"].get_submodule(source)
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = head.num_classes
    cfg.MODEL.MASK_ON = head.mask_predictor is not None
    twin = build_roi_heads(cfg, model.loc_encoder.neck.output_shape())
    renamed = {}
    for name, value in head.state_dict().items():
        name = name.replace("decoder.", "").replace("mask_predictor.", "mask_head.predictor.")
        renamed[name] = value
    twin.load_state_dict(renamed)
    return twin


def proposals_of(model, batch):
    images = model._images(batch)
    targets = [one["instances"] for one in batch]
    levels, proposals, _ = model.loc_encoder(images, model.trunk(images.tensor), targets)
    return images, levels, proposals, targets


@pytest.mark.parametrize("source", ["rsna", "chestx_det"])
def test_losses_and_detections_are_those_of_detectron2(tiny_model, tiny_cfg, item, source):
    cfg = tiny_cfg(*SOURCES)
    model = tiny_model(*SOURCES)
    twin = detectron2_twin(model, cfg, source)
    batch = [item(source, "loc", i) for i in range(2)]
    images, levels, proposals, targets = proposals_of(model.train(), batch)
    torch.manual_seed(5)
    ours = model.heads["loc"](levels, copy.deepcopy(proposals), targets, source)
    torch.manual_seed(5)
    _, theirs = twin.train()(images, levels, copy.deepcopy(proposals), targets)
    renamed = {
        "loss_cls": "loss_loc_cls",
        "loss_box_reg": "loss_loc_box",
        "loss_mask": "loss_loc_mask",
    }
    assert {k: v.item() for k, v in ours.items()} == {
        renamed[k]: v.item() for k, v in theirs.items()
    }
    assert ("loss_loc_mask" in ours) == (source == "chestx_det")

    model.eval(), twin.eval()
    with torch.no_grad():
        images, levels, proposals, _ = proposals_of(model, batch)
        ours = model.heads["loc"].inference(levels, proposals, SOURCES)[source]
        theirs, _ = twin(images, levels, proposals)
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_classes, b.pred_classes)
        if source == "chestx_det":
            assert torch.equal(a.pred_masks, b.pred_masks)


def test_regions_are_pooled_once_and_seen_once_by_a_shared_decoder(tiny_model, item):
    calls = []
    for shared in (False, True):
        model = tiny_model(*SOURCES, MODEL__FX__LOC__SHARED_DECODER=shared).eval()
        calls.clear()
        model.heads["loc"].box_pooler.register_forward_hook(lambda *_: calls.append("pool"))
        for name, module in model.named_modules():
            if name.endswith("box_head"):
                module.register_forward_hook(lambda *_: calls.append("box head"))
        model([item("rsna", "loc")], heads=["loc"])
        assert calls.count("pool") == 1
        assert calls.count("box head") == (1 if shared else len(SOURCES))


def test_the_shared_decoder_leaves_a_source_its_predictors_only(tiny_model):
    x, plus = tiny_model(*SOURCES), tiny_model(*SOURCES, MODEL__FX__LOC__SHARED_DECODER=True)
    own = {n for n, _ in plus.heads["loc"].rsna.named_parameters()}
    assert own == {
        f"box_predictor.{a}.{b}" for a in ("cls_score", "bbox_pred") for b in ("weight", "bias")
    }
    own = {n.split(".")[0] for n, _ in plus.heads["loc"].chestx_det.named_parameters()}
    assert own == {"box_predictor", "mask_predictor"}
    assert any(n.startswith("loc_decoder.mask_head") for n, _ in plus.named_parameters())
    assert not any(p.is_meta for p in plus.parameters())
    assert x.loc_decoder is None
    assert sum(p.numel() for p in plus.parameters()) < sum(p.numel() for p in x.parameters())


def test_masks_only_where_boxes_have_them(tiny_model):
    heads = tiny_model(*SOURCES).heads["loc"]
    with_masks = {s for s in SOURCES if heads.get_submodule(s).mask_predictor is not None}
    assert with_masks == {"chestx_det", "candid_ptx"}
    off = tiny_model(*SOURCES, MODEL__MASK_ON=False)
    assert not any("mask" in n for n, _ in off.named_parameters())


def test_agnostic_sources_have_one_class_and_keep_their_targets(tiny_model, item):
    model = tiny_model("tbx11k").train()
    head = model.heads["loc"].tbx11k
    assert head.num_classes == 1 and head.spec.classes == ("any",)
    one = item("tbx11k", "loc")
    assert one["instances"].gt_classes.tolist() == [0, 1]
    assert head.targets([one["instances"]])[0].gt_classes.tolist() == [0, 0]
    values = []
    for classes in ([0, 1], [0, 0]):  # class 1 must not be taken for the background of one class
        one["instances"].gt_classes = torch.tensor(classes)
        torch.manual_seed(0)
        values.append({k: v.item() for k, v in model([one]).items()})
        assert one["instances"].gt_classes.tolist() == classes
    assert values[0] == values[1]
    kept = tiny_model("tbx11k", MODEL__FX__LOC__AGNOSTIC=False)
    assert kept.heads["loc"].tbx11k.num_classes == 2


def test_regions_end_where_the_image_ends(tiny_model, item):
    model = tiny_model("rsna").eval()
    tensor = torch.rand(2, 3, 64, 64)
    images = ImageList(tensor, [(64, 64), (40, 64)])
    with torch.no_grad():
        _, (whole, cut), losses = model.loc_encoder(images, model.trunk(tensor))
    assert losses == {} and whole.proposal_boxes.tensor[:, 3].max() > 60
    assert cut.image_size == (40, 64) and cut.proposal_boxes.tensor[:, 3].max() <= 40


def test_coordinates_stay_exact_under_bf16(tiny_model):
    """Regions are pooled from float32 levels: bf16 knows only every second pixel above 256."""
    model = tiny_model("rsna").eval()
    images = ImageList(torch.rand(1, 3, 64, 64), [(64, 64)])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        levels, (proposals,), _ = model.loc_encoder(images, model.trunk(images.tensor))
    assert {level.dtype for level in levels.values()} == {torch.float32}
    boxes = proposals.proposal_boxes.tensor
    assert boxes.dtype == torch.float32
    assert not torch.equal(boxes, boxes.to(torch.bfloat16).float())


def test_no_proposal_at_all(tiny_model):
    model = tiny_model("rsna", "chestx_det").eval()
    images = ImageList(torch.rand(1, 3, 64, 64), [(64, 64)])
    none = Instances((64, 64))
    none.proposal_boxes, none.objectness_logits = Boxes(torch.zeros(0, 4)), torch.zeros(0)
    with torch.no_grad():
        levels, _, _ = model.loc_encoder(images, model.trunk(images.tensor))
        found = model.heads["loc"].inference(levels, [none], ["rsna", "chestx_det"])
    assert all(len(per_image[0]) == 0 for per_image in found.values())
    assert found["chestx_det"][0].pred_masks.shape[0] == 0
