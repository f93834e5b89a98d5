from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

import fx_d2.engine.cycle as cycle_module
from fx_d2.config import add_fx_config
from fx_d2.data.samplers import pass_length, steps_in_pass
from fx_d2.engine.cycle import GROUPS, Cycle, Pass, Phase, Slot
from fx_d2.engine.cycle_config import build_cycle, build_plan, cycle_choice, preset_names
from fx_d2.engine.dry_run import dry_run
from fx_d2.engine.trainer import FxTrainer

# The poster's table for one source with all three tasks. Written out by hand.
#   epoch, data size, backbone, cls head, loc enc, loc dec, seg dec, seg head, mode, task
POSTER = """
1  Full  Trainable  Trainable  -          -          -          -          Release  Classification
2  Half  Frozen     -          Frozen     Trainable  -          -          Lock     Localization
3  Full  Trainable  -          Trainable  Trainable  -          -          Release  Localization
4  Half  Frozen     -          -          -          Frozen     Trainable  Lock     Segmentation
5  Full  Trainable  -          -          -          Trainable  Trainable  Release  Segmentation
"""
TASK_NAMES = {"Classification": "cls", "Localization": "loc", "Segmentation": "seg"}

# The 20 slots in the paper's order, by hand: heads C1..C11, L1..L6, S1..S3.
SLOTS = [
    *("chexpert/cls", "nih14/cls", "vindr_cxr/cls", "shenzhen/cls", "mimic_cxr/cls"),
    *("tbx11k/cls", "tbx11k/loc"),
    *("node21/cls", "node21/loc"),
    *("candid_ptx/cls", "candid_ptx/loc", "candid_ptx/seg"),
    *("rsna/cls", "rsna/loc"),
    *("chestx_det/cls", "chestx_det/loc", "chestx_det/seg"),
    *("siim_acr/cls", "siim_acr/loc", "siim_acr/seg"),
]
SOURCES_11 = tuple(dict.fromkeys(slot.partition("/")[0] for slot in SLOTS))


def make_cfg(*sources: str, **options: Any) -> CfgNode:
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.DATASETS.TRAIN = tuple(f"{source}_train" for source in sources)
    cfg.SOLVER.IMS_PER_BATCH = 4
    for key, value in {"NAME": "paper", **options}.items():
        cfg.CYCLE[key] = CfgNode(value, new_allowed=True) if isinstance(value, dict) else value
    return cfg


class Loader:
    """Sizes as a loader tells them; 10 records where none are given."""

    def __init__(self, keys: list[str], sizes: dict[str, int] | None = None, batch: int = 4):
        self.keys = tuple(tuple(key.split("/")) for key in keys)
        self.sizes, self.batch, self.last_batch = sizes or {}, batch, "fill"
        self.annotated = {"labels": np.zeros(1, np.float32), "annotations": [], "masks": {}}

    def records(self, source: str, task: str) -> list[dict[str, Any]]:
        return [self.annotated] * self.sizes.get(f"{source}/{task}", 10)

    def images_per_pass(self, source: str, task: str, fraction: float) -> int:
        return pass_length(len(self.records(source, task)), fraction)

    def steps_per_pass(self, source: str, task: str, fraction: float) -> int:
        length = self.images_per_pass(source, task, fraction)
        return steps_in_pass(length, self.batch, self.last_batch)


def cells(line: str, counts: bool) -> list[str]:
    """Columns of the dry run in the poster's words."""
    parts = [part.strip() for part in line.split("  ") if part.strip()]
    _, source, task, phase, share, _, *groups = parts[:-1]
    words = {"locked": "Frozen", "-": "-"}
    states = [words.get(group, "Trainable") for group in groups]
    assert counts == any(group[0].isdigit() for group in groups)
    size = {"1": "Full", "0.5": "Half"}[share]
    return [f"{source}/{task}", size, *states, phase.capitalize()]


def poster_rows(*slots: str) -> list[list[str]]:
    """The poster's rows for these slots."""
    rows = [line.split() for line in POSTER.strip().splitlines()]
    return [
        [slot, *row[1:9]]
        for slot in slots
        for row in rows
        if TASK_NAMES[row[9]] == slot.partition("/")[2]
    ]


@pytest.mark.parametrize(
    ("sources", "slots"),
    [
        (("candid_ptx",), ["candid_ptx/cls", "candid_ptx/loc", "candid_ptx/seg"]),
        (SOURCES_11, SLOTS),
    ],
)
def test_the_dry_run_of_paper_is_the_posters_table(sources, slots, pytestconfig):
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.merge_from_file(str(pytestconfig.rootpath / "configs/foundation_x/swin_t_11src_xplus.yaml"))
    cfg.DATASETS.TRAIN = tuple(f"{source}_train" for source in sources)
    cfg.MODEL.DEVICE, cfg.INPUT.FX.SIZE, cfg.SOLVER.IMS_PER_BATCH = "cpu", 64, 4
    tiny = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
    cfg.MODEL.FX.TRUNK.KWARGS = CfgNode(tiny, new_allowed=True)
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = cfg.MODEL.FX.SEG.CHANNELS = 16
    cfg.CYCLE.NAME, cfg.CYCLE.CYCLES = "paper", 2

    class Trainer(FxTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return Loader(slots)

    title, _, header, _, *lines = dry_run(Trainer, cfg).splitlines()
    columns = ["backbone", "cls_head", "loc_encoder", "loc_decoder", "seg_decoder", "seg_head"]
    assert [name for name in header.split() if name in columns] == columns
    assert [cells(line, counts=True) for line in lines] == poster_rows(*slots)
    assert len(lines) == {1: 5, 11: 29}[len(sources)]
    # 10 records in batches of 4: 3 iterations for all, 2 for the 5 of a half.
    lengths = [3 if row[1] == "Full" else 2 for row in poster_rows(*slots)]
    starts = np.cumsum([0, *lengths])
    expected = [f"{a}-{b - 1}" for a, b in zip(starts, starts[1:], strict=False)]
    assert [line.split()[0] for line in lines] == expected
    assert [line.split()[5] for line in lines] == ["10" if n == 3 else "5" for n in lengths]
    assert f"{len(slots)} slots" in title and f"{2 * starts[-1]} iterations" in title
    # Counts are those of the model, and rates those of the paper (trunk 1e-5, all else 1e-4).
    cfg.MODEL.FX.TRUNK.PRETRAINED = ""
    model = build_model(cfg)
    trunk = sum(p.numel() for p in model.trunk.parameters())
    release = next(line for line in lines if "release" in line)
    # The warm-up starts at a thousandth.
    assert release.split("  ")[-1].strip() == "1e-08, 1e-07"
    assert f"{trunk / 1e3:.3g} k" in release


def test_the_dry_run_of_joint_and_of_a_cut_cycle(pytestconfig):
    cfg = make_cfg("rsna", NAME="joint")

    class Trainer(FxTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            loader = Loader(["rsna/cls", "rsna/loc"])
            loader.mix = lambda **_: type("Mix", (), {"describe": lambda self: "the mix"})()
            return loader

    assert dry_run(Trainer, cfg).startswith("the mix\n40,000 iterations")


def steps_of(**steps: int):
    """What a phase takes, by ``source_task_name``."""

    def pass_of(phase: Phase) -> Pass:
        return Pass(images=99, steps=steps[f"{phase.source}_{phase.task}_{phase.name}"])

    return pass_of


def small_cycle(order: str) -> Cycle:
    def slot(source: str, task: str, *names: str) -> Slot:
        trained = {"cls": "cls_head", "loc": "loc_decoder"}[task]
        phases = (Phase(source, task, n, {"lock": 0.5}.get(n, 1.0), (trained,)) for n in names)
        return Slot(source, task, tuple(phases))

    slots = (
        slot("a", "cls", "release"),
        slot("a", "loc", "lock", "release"),
        slot("b", "cls", "release"),
        slot("a", "cls", "release"),
    )
    return Cycle("small", slots, GROUPS, order)


STEPS = steps_of(a_cls_release=3, a_loc_lock=1, a_loc_release=2, b_cls_release=4)


def test_every_iteration_of_a_cycle():
    schedule = small_cycle("cyclic").schedule(STEPS)
    assert schedule.length == 13 and schedule.total is None
    # (slot, phase, steps, pass within the cycle, passes of a cycle), by hand
    cycle = [(0, "release", 3, 0, 2), (1, "lock", 1, 0, 1), (1, "release", 2, 0, 1)]
    cycle += [(2, "release", 4, 0, 1), (3, "release", 3, 1, 2)]
    iteration = number = 0
    for repetition in range(3):
        for place, (slot, name, steps, visit, visits) in enumerate(cycle):
            for step in range(steps):
                at = schedule.phase_at(iteration)
                assert (at.slot_index, at.phase.name, at.cycle_index) == (slot, name, repetition)
                assert (at.first, at.last) == (iteration - step, iteration - step + steps - 1)
                assert at.steps == steps and at.number == number
                assert at.pass_index == repetition * visits + visit
                assert at.ends_slot == (place != 1) and at.ends_cycle == (place == 4)
                assert schedule.cycle_start(iteration) == 13 * repetition
                iteration += 1
            number += 1
    with pytest.raises(ValueError, match="-1"):
        schedule.phase_at(-1)


def test_sequential_stays_with_a_source():
    schedule = small_cycle("sequential").schedule(STEPS, repeats=2)
    assert schedule.total == 26
    seen = [schedule.phase_at(i) for i in range(26)]
    assert [at.phase.source for at in seen] == ["a"] * 18 + ["b"] * 8
    a = ["cls"] * 3 + ["loc"] * 3 + ["cls"] * 3
    assert [at.phase.task for at in seen] == a * 2 + ["cls"] * 8
    assert [at.pass_index for at in seen[:9]] == [0] * 6 + [1] * 3
    assert [at.pass_index for at in seen[9:18]] == [2] * 3 + [1] * 3 + [3] * 3
    assert [at.number for at in seen] == sorted(at.number for at in seen)
    assert len({at.number for at in seen}) == 10
    assert [schedule.cycle_start(i) for i in (0, 8, 9, 18, 21, 25, 26)] == [0, 0, 9, 18, 18, 22, 26]
    with pytest.raises(ValueError, match="26"):
        schedule.phase_at(26)
    with pytest.raises(ValueError, match="CYCLE.CYCLES"):
        small_cycle("sequential").schedule(STEPS)


@pytest.mark.parametrize("order", ["cyclic", "sequential"])
def test_an_iteration_belongs_to_the_range_it_is_told(order):
    schedule = small_cycle(order).schedule(STEPS, repeats=4)
    for iteration in range(schedule.total):
        at = schedule.phase_at(iteration)
        assert at.first <= iteration <= at.last
        assert schedule.phase_at(at.first) == at == schedule.phase_at(at.last)


def test_lengths_follow_records_batch_share_and_policy():
    loader = Loader(["rsna/loc"], {"rsna/loc": 13})
    cfg = make_cfg("rsna")
    lengths = lambda: [(p.images, p.steps) for _, p in build_plan(cfg, loader).schedule.rows()]  # noqa: E731
    assert lengths() == [(7, 2), (13, 4)]  # half of 13 is 7
    loader.last_batch = "drop"
    assert lengths() == [(4, 1), (12, 3)]
    loader.last_batch, loader.batch, cfg.SOLVER.IMS_PER_BATCH = "fill", 8, 8
    assert lengths() == [(7, 1), (13, 2)]
    loader.batch, cfg.SOLVER.IMS_PER_BATCH, cfg.CYCLE.MAX_STEPS_PER_PHASE = 4, 4, 3
    assert lengths() == [(7, 2), (12, 3)]
    cfg.CYCLE.MAX_STEPS_PER_PHASE_BY = ("cls=1",)
    assert lengths() == [(7, 2), (12, 3)]
    cfg.CYCLE.MAX_STEPS_PER_PHASE_BY = ("loc=1",)
    assert lengths() == [(4, 1), (4, 1)]
    cfg.CYCLE.MAX_STEPS_PER_PHASE_BY = ("loc=0",)
    assert lengths() == [(7, 2), (13, 4)]
    cfg.CYCLE.MAX_STEPS_PER_PHASE_BY = ("loc/lock=1",)
    assert lengths() == [(4, 1), (12, 3)]
    cfg.CYCLE.MAX_STEPS_PER_PHASE_BY = ("loc/lock=0", "loc=1")  # 0 is never, also of a phase
    assert lengths() == [(7, 2), (4, 1)]


@pytest.mark.parametrize("wrong", ["lok=3", "loc=1.5", "loc=-1", "loc", "loc/look=3", "lok/lock=3"])
def test_a_wrong_exception_from_the_longest_phase(wrong):
    cfg = make_cfg("rsna", MAX_STEPS_PER_PHASE_BY=(wrong,))
    with pytest.raises(ValueError, match="MAX_STEPS_PER_PHASE_BY") as error:
        build_plan(cfg, Loader(["rsna/loc"]))
    assert wrong.partition("=")[0] in str(error.value)


def test_how_long_a_run_lasts():
    loader, cfg = Loader(["rsna/cls", "rsna/loc"]), make_cfg("rsna")
    assert build_plan(cfg, loader).max_iter == cfg.SOLVER.MAX_ITER == 40000
    cfg.CYCLE.CYCLES = 7
    assert build_plan(cfg, loader).max_iter == 7 * (3 + 2 + 3)
    cfg.CYCLE.CYCLES = -1
    with pytest.raises(ValueError, match="CYCLE.CYCLES is -1"):
        build_plan(cfg, loader)


def phases_of(cycle: Cycle) -> list[tuple[Any, ...]]:
    return [(s.source, p.name, p.share, *p.trainable) for s in cycle.slots for p in s.phases]


def test_x_code_and_x_plus():
    keys = Loader(["candid_ptx/cls", "candid_ptx/loc", "candid_ptx/seg"]).keys
    paper, code = (build_cycle(make_cfg("candid_ptx", NAME=n), keys) for n in ("paper", "x_code"))
    assert phases_of(paper) == phases_of(code)
    settings = [
        (cycle_choice(make_cfg(NAME=n), "LOCKED_LAYERS"), cycle_choice(make_cfg(NAME=n), "LR_PER"))
        for n in ("paper", "x_code", "x_plus")
    ]
    assert settings == [("eval", "step"), ("train", "cycle"), ("train", "cycle")]
    plus = build_cycle(make_cfg("candid_ptx", NAME="x_plus"), keys)
    assert phases_of(plus) == [
        ("candid_ptx", "lock", 0.5, "cls_head"),
        ("candid_ptx", "release", 1.0, "backbone", "cls_head"),
        ("candid_ptx", "lock", 0.5, "loc_head"),
        ("candid_ptx", "release", 1.0, "backbone", "loc_encoder", "loc_decoder", "loc_head"),
        ("candid_ptx", "lock", 0.5, "seg_head"),
        ("candid_ptx", "release", 1.0, "backbone", "seg_decoder", "seg_head"),
    ]


def test_organs_are_twelve_slots():
    organs = ("heart", "left_lung", "right_lung")
    keys = [(organ, task) for organ in organs for task in ("loc", "seg")]
    cycle = build_cycle(make_cfg(NAME="organs"), keys)
    assert len(cycle.slots) == 12
    four = [("loc", "lock"), ("loc", "release"), ("seg", "lock"), ("seg", "release")]
    assert [(s.source, s.task, s.phases[0].name) for s in cycle.slots] == [
        (organ, task, name) for organ in organs for task, name in four
    ]
    assert all(len(slot.phases) == 1 for slot in cycle.slots)


def test_every_preset_can_be_planned():
    loader = Loader(SLOTS)
    assert set(preset_names()) == {
        *("paper", "x_code", "x_plus", "organs", "joint", "sequential", "cyclic")
    }
    for name in set(preset_names()) - {"joint", "organs"}:
        cfg = make_cfg(*SOURCES_11, NAME=name, CYCLES=2)
        schedule = build_plan(cfg, loader).schedule
        visited = [f"{s.source}/{s.task}" for s in schedule.cycle.slots]
        assert visited == SLOTS
    unlocked = build_cycle(make_cfg(NAME="cyclic"), loader.keys)
    assert {phase.name for slot in unlocked.slots for phase in slot.phases} == {"release"}
    assert build_plan(make_cfg("rsna", NAME="joint"), loader).schedule is None
    assert build_plan(make_cfg("rsna", NAME=""), loader).schedule is None


def test_a_list_of_the_users_own(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        """
CYCLE:
  NAME: custom
  SLOTS: ["*/loc", {slot: rsna/cls, phases: [{name: probe, share: 0.25, train: [head]}]}]
  PHASES:
    loc: [{train: all}]
  GROUPS:
    trunk: [trunk.*]
    head: {patterns: [heads.cls.*, cls_encoder.*], tasks: [cls]}
    rest: {patterns: [loc_*, heads.loc.*], tasks: [loc]}
"""
    )
    cfg = make_cfg("rsna", "node21")
    cfg.merge_from_file(str(file))
    assert CfgNode.load_cfg(cfg.dump())  # what a checkpoint keeps
    keys = [("rsna", "cls"), ("rsna", "loc"), ("node21", "cls"), ("node21", "loc")]
    cycle = build_cycle(cfg, keys)
    assert phases_of(cycle) == [
        ("rsna", "release", 1.0, "trunk", "head", "rest"),
        ("node21", "release", 1.0, "trunk", "head", "rest"),
        ("rsna", "probe", 0.25, "head"),
    ]
    probe = cycle.slots[2].phases[0]
    states = [cycle.state(probe, group) for group in ("trunk", "head", "rest")]
    assert states == ["locked", "trainable", "-"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"NAME": "papre"}, ["'papre'", "did you mean 'paper'"]),
        ({"SLOTS": ("rnsa/loc",)}, ["rnsa/loc", "did you mean 'rsna'"]),
        ({"SLOTS": ("node21/loc",)}, ["node21/loc", "only has rsna"]),
        ({"SLOTS": ("rsna/lok",)}, ["rsna/lok", "did you mean 'loc'"]),
        ({"SLOTS": ("rsna/seg",)}, ["rsna/seg", "rsna/cls, rsna/loc"]),
        ({"SLOTS": (3,)}, ["CYCLE.SLOTS has 3"]),
        ({"SLOTS": ({"slots": "rsna/loc"},)}, ["'slots'", "did you mean 'slot'"]),
        ({"PHASES": {"lok": []}}, ["'lok'", "did you mean 'loc'"]),
        ({"PHASES": {"loc": [{"train": ["loc_decodr"]}]}}, ["loc_decodr", "'loc_decoder'"]),
        ({"PHASES": {"loc": [{"trian": ["loc_decoder"]}]}}, ["'trian'", "'train'"]),
        ({"PHASES": {"loc": [{"name": "lock"}]}}, ["rsna/loc", "what to train"]),
        ({"PHASES": {"loc": []}}, ["rsna/loc has no phases"]),
        ({"PHASES": {"loc": "release"}}, ["rsna/loc", "'release'", "list"]),
        ({"PHASES": {"loc": [{"train": ["cls_head"]}]}}, ["does not depend", "loc_decoder"]),
        ({"PHASES": {"loc": [{"train": []}]}}, ["rsna/loc", "[]"]),
        ({"NAME": "custom", "SLOTS": ("*",)}, ["no phases for cls", "rsna/cls"]),
        ({"NAME": "custom"}, ["CYCLE.SLOTS is empty"]),
        ({"NAME": "", "SLOTS": ("*",)}, ["CYCLE.SLOTS is set but CYCLE.NAME is not"]),
        ({"GROUPS": {"backbone": []}}, ["CYCLE.GROUPS.backbone", "[]"]),
        ({"GROUPS": {"b": {"patterns": ["*"], "task": ["cls"]}}}, ["'task'", "'tasks'"]),
        ({"GROUPS": {"b": {"patterns": ["*"], "tasks": ["cl"]}}}, ["'cl'", "'cls'"]),
        ({"ORDER": "cyclical"}, ["CYCLE.ORDER", "'cyclic'"]),
        ({"LR_PER": "epoch"}, ["CYCLE.LR_PER", "step, cycle"]),
        ({"NAME": "sequential"}, ["CYCLE.CYCLES"]),
        *(
            ({"PHASES": {"loc": [{"share": s, "train": ["loc_decoder"]}]}}, ["rsna/loc", repr(s)])
            for s in (0, 0.0, -0.5, 1.01, float("nan"), "half", True)
        ),
    ],
)
def test_what_cannot_be_is_one_clear_line(options, told):
    cfg = make_cfg("rsna", **options)
    with pytest.raises(ValueError) as error:
        build_plan(cfg, Loader(["rsna/cls", "rsna/loc"]))
        cycle_choice(cfg, "LR_PER")
    message = str(error.value)
    assert "\n" not in message
    for words in told:
        assert words in message


def test_a_slot_without_data():
    loader = Loader(["rsna/cls", "rsna/loc"])
    del loader.annotated["annotations"]
    with pytest.raises(ValueError, match=r"slot rsna/loc has no data.*10 training records"):
        build_plan(make_cfg("rsna"), loader)
    loader.annotated["annotations"] = []
    build_plan(make_cfg("rsna"), loader)  # nothing found is known too
    loader.annotated["labels"] = np.full(2, np.nan, np.float32)
    with pytest.raises(ValueError, match="slot rsna/cls has no data"):
        build_plan(make_cfg("rsna"), loader)
    with pytest.raises(ValueError, match="slot rsna/cls has no data"):
        build_plan(make_cfg("rsna"), Loader(["rsna/cls"], {"rsna/cls": 0}))


def test_lines_tell_schedules_apart():
    loader = Loader(["rsna/cls", "rsna/loc"])
    lines = build_plan(make_cfg("rsna"), loader).lines
    assert lines == build_plan(make_cfg("rsna", CYCLES=3), loader).lines  # may be prolonged
    others = [make_cfg("rsna", NAME=n) for n in ("cyclic", "x_plus", "joint")]
    others += [make_cfg("rsna", MAX_STEPS_PER_PHASE=1), make_cfg("rsna", SLOTS=("rsna/loc",))]
    for cfg in others:
        assert build_plan(cfg, loader).lines != lines
    more = Loader(["rsna/cls", "rsna/loc"], {"rsna/loc": 11})  # as many iterations, other images
    assert build_plan(make_cfg("rsna"), more).lines != lines
    a, b = (make_cfg("rsna", NAME="sequential", CYCLES=n) for n in (2, 3))
    assert build_plan(a, loader).lines != build_plan(b, loader).lines
    j = make_cfg("rsna", NAME="joint")
    k = replace_train(j, "rsna_trainval")
    assert build_plan(j, loader).lines != build_plan(k, loader).lines


def replace_train(cfg: CfgNode, *names: str) -> CfgNode:
    cfg = cfg.clone()
    cfg.DATASETS.TRAIN = names
    return cfg


def test_the_schedule_needs_no_torch_and_nothing_of_ours():
    tree = ast.parse(Path(cycle_module.__file__).read_text())
    imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert {str(name).split(".")[0] for name in imported} == {
        *("__future__", "bisect", "collections", "dataclasses", "difflib", "itertools")
    }


def test_a_phase_is_checked_however_it_is_made():
    phase = Phase("rsna", "loc", "lock", 0.5, ("loc_decoder",))
    for bad in (replace(phase, share=2), replace(phase, task="box"), replace(phase, trainable=())):
        with pytest.raises(ValueError, match="rsna/"):
            Cycle("c", (Slot("rsna", "loc", (bad,)),), GROUPS)
