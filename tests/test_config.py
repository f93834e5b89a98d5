from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from fx_d2 import config
from fx_d2.data.lesion_mix.settings import MixSettings
from fx_d2.data.sources import SOURCES

FOLDER = Path(config.__file__).parent


def leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def assignments(code: str) -> Iterator[tuple[int, str]]:
    """(line, target) of every ``cfg.... = value`` and ``node.X = value`` that declares a value."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Assign):
            value = node.value
            is_node = isinstance(value, ast.Call) and ast.unparse(value.func) == "CN"
            if is_node and not value.args:
                continue  # an empty node is not a value
            for target in node.targets:
                if ast.unparse(target).split(".")[0] in ("cfg", "node"):
                    yield node.lineno, ast.unparse(target)


def uncommented(code: str) -> list[str]:
    """The declared keys without a comment on their line or ending on the line above."""
    tokens = tokenize.generate_tokens(StringIO(code).readline)
    commented = {t.start[0] for t in tokens if t.type == tokenize.COMMENT}
    return [name for line, name in assignments(code) if not {line, line - 1} & commented]


def written() -> str:
    """Everything that declares keys."""
    return "\n".join(file.read_text("utf-8") for file in sorted(FOLDER.glob("*.py")))


def explained_by_the_mix() -> set[str]:
    """Keys that the docstring of the dataclass that declares them explains."""
    said = re.findall(r"^ {8}((?:\w+, )*\w+): \S", str(MixSettings.__doc__), flags=re.MULTILINE)
    return {name.upper() for names in said for name in names.split(", ")}


def test_every_key_is_declared_with_a_reason():
    code = written()
    assert uncommented(code) == []
    assert len(list(assignments(code))) > 45
    assert uncommented("# why\ncfg.A = 1\n\ncfg.B = 2\n") == ["cfg.B"]


def test_the_modules_declare_every_key_there_is():
    """What the config holds and what the modules say are the same set."""
    plain, ours = get_cfg(), get_cfg()
    config.add_fx_config(ours)
    added = set(leaves(ours)) - set(leaves(plain))
    said = " ".join(name for _, name in assignments(written()))
    of_mix, explained = {n.upper() for n in MixSettings().to_dict()}, explained_by_the_mix()
    for name in added:
        group, _, key = name.rpartition(".")
        if group in ("DATASETS.ROOTS", "DATASETS.SPLIT_FILES") or "DATASETS.OPTIONS" in group:
            assert f"cfg.{group.split('.OPTIONS')[0]}" in said  # one line for all sources
        elif group == "INPUT.FX.LESION_MIX" and key in of_mix:
            assert key in explained, name  # one line for all fields
        else:
            assert f".{key}" in said, name
    assert set(leaves(plain)) <= set(leaves(ours))


def test_every_source_has_its_keys():
    cfg = get_cfg()
    config.add_fx_config(cfg)
    assert set(cfg.DATASETS.ROOTS) == set(cfg.DATASETS.SPLIT_FILES) == set(SOURCES)
    assert cfg.DATASETS.OPTIONS.vindr_local.fuse_iou == SOURCES["vindr_local"].options["fuse_iou"]


def test_keys_from_the_command_line_and_from_a_file(tmp_path):
    cfg = get_cfg()
    config.add_fx_config(cfg)
    cfg.merge_from_list(
        [
            *("DATASETS.ROOTS.rsna", "/data/rsna", "INPUT.FX.SIZE", "448"),
            *("INPUT.FX.UNCERTAIN_BY", "('chexpert=smooth',)", "INPUT.FX.AUG.SEG.FLIP", "0.5"),
        ]
    )
    assert cfg.DATASETS.ROOTS.rsna == "/data/rsna" and cfg.INPUT.FX.SIZE == 448
    file = tmp_path / "mine.yaml"
    file.write_text("DATASETS:\n  ROOTS:\n    my_own: /data/mine\nVERSION: 2\n")
    cfg.merge_from_file(str(file))
    assert cfg.DATASETS.ROOTS.my_own == "/data/mine"
    with pytest.raises((KeyError, AssertionError)):
        cfg.merge_from_list(["INPUT.FX.SIZES", "448"])


def test_a_dumped_config_is_read_back(tmp_path):
    cfg = get_cfg()
    config.add_fx_config(cfg)
    cfg.INPUT.FX.AUG.CLS.FLIP = 0.25
    file = tmp_path / "config.yaml"
    file.write_text(cfg.dump())
    again = get_cfg()
    config.add_fx_config(again)
    again.merge_from_file(str(file))
    for section in ("INPUT", "DATASETS", "DATALOADER"):
        assert again[section] == cfg[section]
    assert "&id" not in cfg.INPUT.FX.dump()  # readable: nothing stands for something further up


def test_two_configs_share_nothing():
    first, second = get_cfg(), get_cfg()
    config.add_fx_config(first)
    config.add_fx_config(second)
    first.DATASETS.ROOTS.rsna = "/elsewhere"
    first.DATASETS.OPTIONS.vindr_local.fuse_iou = 0.9
    assert second.DATASETS.ROOTS.rsna == "" and second.DATASETS.OPTIONS.vindr_local.fuse_iou == 0.5
