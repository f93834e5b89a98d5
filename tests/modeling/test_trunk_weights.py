"""Weights of a trunk from files and from the model hub, of which none is reached."""

from __future__ import annotations

import http.server
import pickle
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from tiny_trunks import TINY, plain, shake, tiny

from fx_d2.modeling.backbone import TimmBackbone, weights
from fx_d2.modeling.backbone.weights import WeightsError


@pytest.fixture
def trained() -> dict[str, torch.Tensor]:
    """A tiny Swin's state dict as timm names it, with a classifier."""
    torch.manual_seed(5)
    net = plain("swin", num_classes=7)
    shake(net)
    return net.state_dict()


def assert_trained(backbone: TimmBackbone, trained: dict[str, torch.Tensor]) -> None:
    own = backbone.net.state_dict()
    assert all(torch.equal(own[k], trained[k]) for k in own)
    assert torch.equal(backbone.norm.weight, trained["norm.weight"])
    assert torch.equal(backbone.norm.bias, trained["norm.bias"])


@pytest.mark.parametrize(
    ("prefix", "inside"),
    [
        ("", None),
        ("module.", "teacher"),  # Ark
        ("backbone.0.", "teacher_model"),  # Foundation X
        ("trunk.net.", "model"),
    ],
)
def test_weights_from_a_file_of_any_wrapping(tmp_path, trained, prefix, inside):
    state = {f"{prefix}{k}": v for k, v in trained.items()}
    state["projector.0.weight"] = torch.zeros(4, 4)
    file = tmp_path / "weights.pth"
    wrong = {k: torch.zeros_like(v) for k, v in state.items()}
    content = state if inside is None else {inside: state, "student": wrong, "epoch": 3}
    torch.save(content, file)
    backbone = tiny("swin", pretrained=str(file))
    assert_trained(backbone, trained)
    report = backbone.weights_report
    assert report.complete and len(report.loaded) == len(tiny("swin").state_dict())
    assert report.unused == ("projector.0.weight",)
    assert str(file) in str(report) and (inside is None or f"['{inside}']" in str(report))


def test_weights_from_safetensors_and_old_names(tmp_path, trained):
    """Names of the original Swin: downsampling at the end of a stage, position indices stored."""

    def old(name: str) -> str:
        return re.sub(
            r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name
        )

    state = {old(k): v.contiguous() for k, v in trained.items()}
    assert "layers.0.downsample.reduction.weight" in state
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    file = tmp_path / "weights.safetensors"
    save_file(state, file)
    backbone = tiny("swin", pretrained=str(file))
    assert_trained(backbone, trained)
    assert backbone.weights_report.complete


def test_the_report_names_what_did_not_load(tmp_path, trained, caplog):
    lacking = {k: v for k, v in trained.items() if k != "norm.bias"}
    lacking["layers.3.blocks.0.mlp.fc1.bias"] = torch.zeros(5)
    lacking["extra.weight"] = torch.zeros(2)
    file = tmp_path / "weights.safetensors"
    save_file(lacking, file)
    backbone = tiny("swin", pretrained=str(file))
    report = backbone.weights_report
    assert not report.complete
    assert report.missing == ("norm.bias",) and report.unused == ("extra.weight",)
    assert report.mismatched == ("layers.3.blocks.0.mlp.fc1.bias ((5,), (768,))",)
    assert torch.equal(backbone.norm.weight, trained["norm.weight"])
    assert "1 still random, absent in the file: norm.bias" in caplog.text


@pytest.mark.parametrize("family", ["swin", "tresnet", "resnet"])
@torch.no_grad()
def test_a_stem_for_one_channel_answers_as_the_colour_stem_to_grey(tmp_path, family):
    """From 3 to 1 and back: the same features for the grey image and the grey image three times."""
    colour = tiny(family)
    shake(colour)
    file = tmp_path / "weights.pth"
    torch.save(plain(family, colour).state_dict(), file)
    grey = tiny(family, in_channels=1, pretrained=str(file))
    x = torch.rand(1, 1, 64, 64)
    expected = colour(x.repeat(1, 3, 1, 1))["res5"]
    torch.testing.assert_close(grey(x)["res5"], expected, rtol=1e-4, atol=1e-4)
    assert "from" in str(grey.weights_report.adapted) and grey.weights_report.complete
    if family != "tresnet":  # its stem folds pixels into channels: see the docs
        torch.save(
            grey.net.state_dict() | {f"norm.{k}": v for k, v in grey.norm.state_dict().items()},
            file,
        )
        again = tiny(family, pretrained=str(file))
        torch.testing.assert_close(
            again(x.repeat(1, 3, 1, 1))["res5"], expected, rtol=1e-4, atol=1e-4
        )


class Planted:
    """A pickle that would run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_bad_files_are_one_clear_line(tmp_path, trained):
    mark = tmp_path / "executed"
    code, cut = tmp_path / "code.pth", tmp_path / "cut.pth"
    with code.open("wb") as stream:
        pickle.dump({"model": Planted(mark)}, stream, protocol=2)
    torch.save(trained, cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    (tmp_path / "bad.safetensors").write_bytes(b"not at all")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"epoch": 3, "args": "none"}, tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(plain("resnet").state_dict(), tmp_path / "resnet.pth")
    torch.save(
        plain("swin", embed_dim=48).state_dict() | {"n": torch.zeros(1)}, tmp_path / "wide.pth"
    )
    torch.save(plain("swin", depths=(1, 1, 9, 2)).state_dict(), tmp_path / "deep.pth")
    for name, message in {
        "absent.pth": "no file",
        "code.pth": "needs code to be loaded, which is refused.*safetensors",
        "cut.pth": "cut.pth",
        "bad.safetensors": "is no safetensors file",
        "empty.pth": "empty.pth",
        "none.pth": "holds no weights.*epoch, args",
        "list.pth": "holds no weights",
        "resnet.pth": "SwinTransformer are in .*resnet.pth.*MODEL.FX.TRUNK.NAME",
        "wide.pth": "wide.pth",
        "deep.pth": "deep.pth does not fit SwinTransformer",
    }.items():
        with pytest.raises(WeightsError, match=message) as caught:
            tiny("swin", pretrained=str(tmp_path / name))
        assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def refused(match: str, **arguments: Any) -> float:
    """Seconds until asking for published weights failed."""
    start = time.monotonic()
    with pytest.raises(WeightsError, match=match) as caught:
        tiny("swin", pretrained="timm", **arguments)
    assert "\n" not in str(caught.value)
    return time.monotonic() - start


def test_published_weights_switched_off(empty_cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = "HF_HUB_OFFLINE, and timm/swin_tiny_patch4_window7_224.ms_in1k is not in.*Download"
    assert refused(message) < 5


def test_published_weights_without_a_network(empty_cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as listener:  # a port that nobody answers on
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert refused("cannot be reached .*refused") < 5


def test_published_weights_from_a_silent_host(empty_cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "HUB_TIMEOUT_S", 0.5)
    with socket.socket() as listener:  # takes the call and says nothing
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert refused("cannot be reached .*timed out|no answer") < 5


def test_published_weights_that_the_host_does_not_have(empty_cache, monkeypatch):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path.rpartition("/")[2])
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        host = f"http://127.0.0.1:{server.server_port}"
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, host)
        monkeypatch.setattr(constants, "ENDPOINT", host)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        assert refused("gave no file .*404.*Download") < 20
        server.shutdown()
    assert {"model.safetensors", "pytorch_model.bin"} <= set(asked)


def test_published_weights_in_the_local_cache_need_no_network(empty_cache, monkeypatch, trained):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = empty_cache / "models--timm--swin_tiny_patch4_window7_224.ms_in1k"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    save_file({k: v.contiguous() for k, v in trained.items()}, snapshot / "model.safetensors")
    assert_trained(tiny("swin", pretrained="timm"), trained)


def test_a_network_without_published_weights(empty_cache):
    with pytest.raises(WeightsError, match="no weights of coatnet_0_224 on the model hub"):
        TimmBackbone(name="coatnet_0_224", pretrained="timm", kwargs=TINY["coatnet"][1])
