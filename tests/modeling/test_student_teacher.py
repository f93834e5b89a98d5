from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from detectron2.modeling import build_model
from torch import nn

from fx_d2.modeling.meta_arch.foundation_x import FoundationX
from fx_d2.modeling.meta_arch.student_teacher import (
    DISTANCES,
    LOSS,
    StudentTeacher,
    evaluated_models,
    teacher_weights,
)

SOURCE = "chestx_det"
TASKS = ("cls", "loc", "seg")
# Where the consistency loss has to reach, and the deepest shared parts it must pass through.
REACHED = {"cls": ("trunk",), "loc": ("trunk", "loc_encoder"), "seg": ("trunk", "seg_decoder")}


@pytest.fixture
def build(tiny_cfg):
    def made(*sources, **options) -> StudentTeacher:
        torch.manual_seed(0)
        options = {"MODEL__META_ARCHITECTURE": "StudentTeacher", **options}
        return build_model(tiny_cfg(*(sources or (SOURCE,)), **options))

    return made


def apart(model: StudentTeacher) -> StudentTeacher:
    """A teacher whose weights are others than the student's."""
    rng = torch.Generator().manual_seed(5)
    for weight in model.teacher.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=rng)
    return model


def batch_of(item, task: str, count: int = 2, **more):
    return [item(SOURCE, task, i) | more for i in range(count)]


def parts_with_gradient(model: nn.Module) -> set[str]:
    return {
        n.split(".")[0]
        for n, p in model.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }


def test_the_student_is_a_foundation_x_and_the_teacher_is_hidden(build, tiny_model):
    model, plain = build(), tiny_model(SOURCE)
    names = [n for n, _ in plain.named_parameters()]
    assert [n for n, _ in model.named_parameters()] == names
    assert not any("teacher" in n for n, _ in model.named_modules())
    state = model.state_dict()
    assert set(state) == {*plain.state_dict(), *(f"teacher.{n}" for n in plain.state_dict())}
    assert all(torch.equal(state[n], state[f"teacher.{n}"]) for n in plain.state_dict())
    mine, its = dict(model.named_parameters()), dict(model.teacher.named_parameters())
    assert all(mine[n].data_ptr() != its[n].data_ptr() for n in names)
    assert type(model.teacher) is FoundationX and model.specs == model.teacher.specs
    # A copy is a copy of both.
    twin = copy.deepcopy(model)
    assert twin.teacher is not model.teacher
    assert twin.teacher.pixel_mean.data_ptr() != model.teacher.pixel_mean.data_ptr()


def test_the_teacher_moves_with_the_model(build):
    model = build()
    model.to(torch.float64)
    assert {p.dtype for p in model.teacher.parameters()} == {torch.float64}
    model.to("meta")
    assert all(p.is_meta for p in model.teacher.parameters()) and model.teacher.pixel_mean.is_meta


def test_train_and_requires_grad_do_not_reach_the_teacher(build):
    model = build()
    model.train().requires_grad_(True)
    assert model.training
    assert not any(m.training for m in model.teacher.modules())
    assert not any(p.requires_grad for p in model.teacher.parameters())


@pytest.mark.parametrize("task", TASKS)
def test_the_consistency_loss_reaches_the_student_only(build, item, task):
    model = apart(build()).train()
    before = {n: v.clone() for n, v in model.teacher.state_dict().items()}
    losses = model(batch_of(item, task))
    losses[LOSS].backward()
    reached = parts_with_gradient(model)
    assert reached == set(REACHED[task]), reached
    # Not some last layer only: the first one of the trunk, and every level of the pyramid.
    trunk = [p.grad for n, p in model.named_parameters() if n.startswith("trunk.") and "patch" in n]
    assert trunk and all(g is not None and g.abs().sum() > 0 for g in trunk)
    assert all(p.grad is None for p in model.teacher.parameters())
    # As a whole: the losses together never give the teacher anything either.
    sum(model(batch_of(item, task)).values()).backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(torch.equal(v, before[n]) for n, v in model.teacher.state_dict().items())


@pytest.mark.parametrize("task", TASKS)
def test_equal_views_and_weights_in_eval_mode_give_exactly_zero(build, item, task):
    for distance in DISTANCES:
        model = build(TEACHER__DISTANCE=distance).eval()
        batch = batch_of(item, task)
        assert model.consistency(model.seen(batch, task), batch, task) == 0
        other = batch_of(item, task, second_view=torch.rand(3, 64, 64))
        assert model.consistency(model.seen(other, task), other, task) > 0
        apart(model)
        assert model.consistency(model.seen(batch, task), batch, task) > 0


@pytest.mark.parametrize("task", TASKS)
def test_what_a_step_compares_is_what_seen_gives(build, item, task):
    """Dropout and drop path are off here, so the student's two ways have to agree."""
    model = apart(build()).train()
    batch = batch_of(item, task)
    spec = model._route(batch)
    _, during = model._learn(batch, spec)
    alone = model.seen(batch, task)
    assert during.keys() == alone.keys()
    assert all(torch.equal(during[n], alone[n]) for n in alone)
    by_hand = model.consistency(alone, batch, task)
    assert torch.equal(model(batch)[LOSS], by_hand) and by_hand > 0


def test_the_teacher_looks_at_the_second_view(build, item):
    model = apart(build(TEACHER__DISTANCE="mse")).eval()
    batch = batch_of(item, "cls", second_view=torch.rand(3, 64, 64))
    swapped = [{**one, "image": one["second_view"]} for one in batch]
    mine, its = model.seen(batch, "cls")["pooled"], model.teacher.seen(swapped, "cls")["pooled"]
    expected = ((mine - its) ** 2).mean()
    assert torch.allclose(model.consistency({"pooled": mine}, batch, "cls"), expected)
    assert batch[0]["image"] is not batch[0]["second_view"]  # the batch is left as it was


def test_the_distances_by_hand():
    a, b = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    # Cosines 0.96 and 0; unit vectors differ by (0.2, 0.2) and (1, 1).
    assert DISTANCES["mse"](a, b) == pytest.approx((1 + 1 + 1 + 4) / 4)
    assert DISTANCES["cosine"](a, b) == pytest.approx((0.04 + 1) / 2)
    assert DISTANCES["unit_mse"](a, b) == pytest.approx((0.04 + 0.04 + 1 + 1) / 4)
    assert DISTANCES["cosine"](10 * a, b) == pytest.approx(DISTANCES["cosine"](a, b))
    maps = a[:, :, None, None].expand(2, 2, 3, 5)  # the same at every place
    assert DISTANCES["cosine"](maps, b[:, :, None, None].expand(2, 2, 3, 5)) == pytest.approx(0.52)


@pytest.mark.parametrize("task", TASKS)
def test_sum_and_convex(build, tiny_model, item, task):
    batch = batch_of(item, task)

    def losses(model):
        torch.manual_seed(7)  # which regions are sampled
        return {n: v.item() for n, v in model.train()(batch).items()}

    plain = losses(tiny_model(SOURCE))
    # The teacher draws nothing at random: the student's losses are those of a plain model.
    added = losses(apart(build(TEACHER__WEIGHT=0.25)))
    distance = added.pop(LOSS) / 0.25
    assert added == plain and distance > 0
    mixed = losses(apart(build(TEACHER__WEIGHT=0.25, TEACHER__MIX="convex")))
    assert mixed.pop(LOSS) == pytest.approx(0.25 * distance)
    assert mixed == pytest.approx({n: 0.75 * v for n, v in plain.items()})


def test_no_weight_and_locked_features_cost_no_pass_of_the_teacher(build, item):
    model = apart(build()).train()
    calls = []
    model.teacher.trunk.register_forward_hook(lambda *_: calls.append(1))
    model.consistency_weight = 0.0
    assert LOSS not in model(batch_of(item, "seg"))
    model.consistency_weight = 1.0
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith("heads."))
    losses = model(batch_of(item, "seg"))
    assert LOSS not in losses and not calls
    sum(losses.values()).backward()
    model.requires_grad_(True)
    assert LOSS in model(batch_of(item, "seg")) and len(calls) == 1


def test_images_without_boxes_are_left_out_of_both(build, item):
    model = apart(build()).train()
    batch = batch_of(item, "loc")
    del batch[1]["instances"]
    assert torch.equal(model(batch)[LOSS], model(batch[:1])[LOSS])
    del batch[0]["instances"]
    losses = model(batch)
    assert losses.pop(LOSS) > 0 and all(value == 0 for value in losses.values())


def test_a_distributed_wrapper_sees_the_student_only(build, item, tmp_path):
    model = apart(build()).train()
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(
            model, broadcast_buffers=False, find_unused_parameters=True
        )
        held = {id(p) for p in wrapped.parameters()}
        assert held == {id(p) for p in model.parameters()}
        before = {n: v.clone() for n, v in model.teacher.state_dict().items()}
        for task in TASKS:
            losses = wrapped(batch_of(item, task))
            assert losses[LOSS] > 0
            sum(losses.values()).backward()
        assert all(torch.equal(v, before[n]) for n, v in model.teacher.state_dict().items())
        assert {n.removeprefix("module.") for n in wrapped.state_dict()} == set(model.state_dict())
    finally:
        dist.destroy_process_group()


class Toy(nn.Module):
    """Stands in for the network of student and teacher: a weight, a running mean, a counter."""

    size_divisibility = 0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("steps", torch.tensor(0))


def toy_pair() -> StudentTeacher:
    model = StudentTeacher(specs=(), trunk=Toy(), heads={}, pixel_mean=[0.5], pixel_std=[0.2])
    model.teacher.trunk.weight.data[:] = torch.tensor([1.0, -2.0])
    model.teacher.trunk.mean[:] = torch.tensor([10.0, 20.0])
    return model


@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_the_average_is_the_recursion_by_hand(buffers):
    model = toy_pair()
    its = model.teacher.trunk
    by_hand, mean_by_hand = [1.0, -2.0], [10.0, 20.0]
    for step, (momentum, value) in enumerate([(0.8, 3.0), (0.5, -1.0), (0.9, 7.0), (0.0, 2.0)], 1):
        model.trunk.weight.data[:] = value
        model.trunk.mean[:] = 2 * value
        model.trunk.steps += 1
        model.update_teacher(momentum, buffers)
        by_hand = [momentum * t + (1 - momentum) * value for t in by_hand]
        mean_by_hand = [momentum * t + (1 - momentum) * 2 * value for t in mean_by_hand]
        assert its.weight.tolist() == pytest.approx(by_hand, rel=1e-6)
        expected = mean_by_hand if buffers == "average" else [2 * value] * 2
        assert its.mean.tolist() == pytest.approx(expected, rel=1e-6)
        assert its.steps == step
    assert its.weight.tolist() == [2.0, 2.0]  # momentum 0 is a copy
    assert model.trunk.weight.tolist() == [2.0, 2.0]  # the student stays as it is
    model.update_teacher(0.9, buffers)
    assert its.weight.tolist() == [2.0, 2.0]  # equal ones stay equal to the last bit
    assert its.weight.grad is None and not its.weight.requires_grad


def test_averages_do_not_touch_the_config_in_the_model():
    model = toy_pair()
    model.update_teacher(0.7)
    assert torch.equal(model.teacher.pixel_mean, model.pixel_mean)
    with pytest.raises(ValueError, match=r"momentum is 1\.5"):
        model.update_teacher(1.5)
    with pytest.raises(ValueError, match="TEACHER.BUFFERS is 'keep'"):
        model.update_teacher(0.5, "keep")


def test_weights_go_from_and_to_a_plain_model(build, tiny_model):
    plain = tiny_model(SOURCE)
    for weight in plain.parameters():
        weight.data += 1
    model = build()
    report = model.load_state_dict(plain.state_dict())
    assert not report.missing_keys and not report.unexpected_keys
    state = plain.state_dict()
    assert all(
        torch.equal(v, state[n.removeprefix("teacher.")]) for n, v in model.state_dict().items()
    )
    # Both at once, each its own.
    apart(model)
    other = build()
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(v, other.state_dict()[n]) for n, v in model.state_dict().items())
    fresh = tiny_model(SOURCE)
    fresh.load_state_dict(teacher_weights(model.state_dict()))
    assert all(torch.equal(v, fresh.state_dict()[n]) for n, v in model.teacher.state_dict().items())
    left = model.state_dict()
    del left["teacher.trunk.norm.weight"], left["trunk.norm.bias"]
    with pytest.raises(RuntimeError, match="trunk.norm.bias"):
        other.load_state_dict(left)
    report = other.load_state_dict({**left, "teacher.x": torch.zeros(1)}, strict=False)
    assert set(report.missing_keys) == {"teacher.trunk.norm.weight", "trunk.norm.bias"}
    assert report.unexpected_keys == ["teacher.x"]


def test_predictions_are_of_who_is_asked(build, item):
    model = apart(build("rsna", SOURCE)).eval()
    batch = [item("rsna", "cls")]

    def probabilities(*args):
        return model(batch, *args)[0]["labels"]["rsna"]

    with model.answering("student"):
        mine = probabilities()
    its = model.teacher(batch)[0]["labels"]["rsna"]
    assert probabilities() == its != mine  # the teacher is what counts by default
    with model.answering("student"), model.answering("teacher"):
        assert probabilities() == its
    with model.asking([("rsna", "cls")]):
        (found,) = model(batch)
        assert found["labels"].keys() == {"rsna"} and not found["instances"]
    assert model(batch, ["rsna/cls"])[0]["labels"].keys() == {"rsna"}
    student = build("rsna", SOURCE, TEACHER__EVALUATE="student").eval()
    with student.answering("student"):
        assert student(batch)[0]["labels"]["rsna"] == mine
    with pytest.raises(ValueError, match="allowed: .*'both'"), model.answering("tutor"):
        pass
    assert evaluated_models(model, "both") == ("student", "teacher")
    assert evaluated_models(model, "student") == ("student",)
    assert evaluated_models(nn.Identity(), "both") == ("",)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"TEACHER__MIX": "product"}, "TEACHER.MIX is 'product'"),
        ({"TEACHER__WEIGHT": -1.0}, "TEACHER.WEIGHT is -1.0"),
        ({"TEACHER__WEIGHT": 1.5, "TEACHER__MIX": "convex"}, "at most 1"),
        ({"TEACHER__DISTANCE": "l1"}, r"TEACHER.DISTANCE names \['l1'\]"),
        ({"TEACHER__DISTANCE_BY": ("box=mse",)}, "'box=mse'"),
        ({"TEACHER__EVALUATE": "tutor"}, "TEACHER.EVALUATE is 'tutor'"),
    ],
)
def test_wrong_settings(build, options, told):
    with pytest.raises(ValueError, match=told):
        build(**options)
