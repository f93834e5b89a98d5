"""tools/install_detectron2.py: fetching, unpacking, patching, building, judging what is there."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import importlib.util
import io
import os
import re
import shutil
import subprocess
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

import detectron2_check
import detectron2_patches
import install_detectron2
from detectron2_patches import PATCHES, Patch, PatchError, apply_patches, patch_label
from install_detectron2 import InstallError

_SCRIPT = Path(install_detectron2.__file__)


# --- the table ------------------------------------------------------------------------------------


def test_rows_are_complete():
    assert len({patch.name for patch in PATCHES}) == len(PATCHES)
    for patch in PATCHES:
        assert patch.why.endswith((".", ")"))
        assert patch.old != patch.new
        assert patch.count >= 1
        assert not Path(patch.file).is_absolute()


def write_target(root: Path, patch: Patch, text: str) -> Path:
    path = root / patch.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
class TestEveryPatch:
    def test_replaces_its_text_and_nothing_else(self, patch, tmp_path):
        path = write_target(tmp_path, patch, "# before\n" + patch.old * patch.count + "# after\n")
        apply_patches(tmp_path, (patch,), {})
        assert path.read_text() == "# before\n" + patch.new * patch.count + "# after\n"

    def test_refuses_a_source_without_its_text(self, patch, tmp_path):
        write_target(tmp_path, patch, "# another version\n")
        with pytest.raises(PatchError, match=f"{patch.name}.*found 0"):
            apply_patches(tmp_path, (patch,), {})

    def test_refuses_a_source_with_its_text_once_more(self, patch, tmp_path):
        write_target(tmp_path, patch, patch.old * (patch.count + 1))
        with pytest.raises(PatchError, match=f"expects its text {patch.count} time"):
            apply_patches(tmp_path, (patch,), {})

    def test_is_not_applied_twice(self, patch, tmp_path):
        path = write_target(tmp_path, patch, patch.old * patch.count)
        apply_patches(tmp_path, (patch,), {})
        text = path.read_text()
        with pytest.raises(PatchError):
            apply_patches(tmp_path, (patch,), {})
        assert path.read_text() == text


def test_all_patches_or_none(tmp_path):
    good = Patch("good", "a.py", "old", "new", "why")
    bad = Patch("bad", "b.py", "absent", "new", "why")
    (tmp_path / "a.py").write_text("old")
    (tmp_path / "b.py").write_text("text")
    with pytest.raises(PatchError, match="bad"):
        apply_patches(tmp_path, (good, bad), {"c.py": "x"})
    assert (tmp_path / "a.py").read_text() == "old"
    assert not (tmp_path / "c.py").exists()


def test_missing_file_and_existing_generated_file_are_refused(tmp_path):
    with pytest.raises(PatchError, match="a.py: no such file"):
        apply_patches(tmp_path, (Patch("p", "a.py", "x", "y", "why"),), {})
    (tmp_path / "c.py").write_text("theirs")
    with pytest.raises(PatchError, match="c.py: exists already"):
        apply_patches(tmp_path, (), {"c.py": "ours"})
    assert (tmp_path / "c.py").read_text() == "theirs"


def test_label_changes_with_the_table(monkeypatch):
    before = patch_label()
    monkeypatch.setattr(detectron2_patches, "PATCHES", PATCHES[:-1])
    assert patch_label() != before
    monkeypatch.setattr(detectron2_patches, "PATCHES", PATCHES)
    monkeypatch.setitem(detectron2_patches.GENERATED_FILES, "new.py", "")
    assert patch_label() != before


# --- fetching -------------------------------------------------------------------------------------


@contextlib.contextmanager
def package_index(pages: dict[str, bytes]):
    """A package index on this machine: yields its address and the (path, login) asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Authorization"]))
            content = pages.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def no_pip_download(monkeypatch):
    def refuse(folder):
        raise InstallError("pip download: refused")

    monkeypatch.setattr(install_detectron2, "_from_pip", refuse)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def use_indexes(monkeypatch, *urls: str) -> None:
    settings = {"index-url": urls[0], "extra-index-url": " ".join(urls[1:])}
    monkeypatch.setattr(install_detectron2, "pip_settings", lambda: settings)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_fetches_from_the_index_pip_is_set_up_for(tmp_path, monkeypatch, no_pip_download):
    page = b'<a href="../../files/other-0.6.tar.gz">x</a><a>no target</a>'
    page += b'<a href="../../files/pb1-detectron2-0.6.tar.gz#sha256=00">x</a>'
    pages = {
        "/simple/pb1-detectron2/": page,
        "/files/pb1-detectron2-0.6.tar.gz": b"the file",
    }
    with package_index(pages) as (url, asked):
        use_indexes(monkeypatch, f"{url}/empty", f"{url}/simple")
        path = install_detectron2.fetch_sdist(tmp_path, sha256=sha256(b"the file"))
    assert path.read_bytes() == b"the file"
    assert asked[0] == ("/empty/pb1-detectron2/", None)


def test_login_goes_to_the_index_and_to_no_other_host(tmp_path, monkeypatch, no_pip_download):
    with package_index({"/pb1-detectron2-0.6.tar.gz": b"it"}) as (files, asked_for_file):
        page = f'<a href="{files}/pb1-detectron2-0.6.tar.gz">x</a>'.encode()
        with package_index({"/simple/pb1-detectron2/": page}) as (url, asked):
            use_indexes(monkeypatch, url.replace("//", "//user:p%40ss@") + "/simple")
            install_detectron2.fetch_sdist(tmp_path, sha256=sha256(b"it"))
    assert asked == [("/simple/pb1-detectron2/", "Basic dXNlcjpwQHNz")]
    assert asked_for_file == [("/pb1-detectron2-0.6.tar.gz", None)]


def test_another_file_under_the_name_is_refused(tmp_path, monkeypatch, no_pip_download):
    pages = {
        "/simple/pb1-detectron2/": b'<a href="/pb1-detectron2-0.6.tar.gz">x</a>',
        "/pb1-detectron2-0.6.tar.gz": b"something else",
    }
    with package_index(pages) as (url, _):
        use_indexes(monkeypatch, f"{url}/simple")
        with pytest.raises(InstallError, match="expected 5d2e9e51e5.*is not used"):
            install_detectron2.fetch_sdist(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_endless_download_is_cut_off(tmp_path, monkeypatch, no_pip_download):
    monkeypatch.setattr(install_detectron2, "_MAX_DOWNLOAD_BYTES", 1000)
    with package_index({"/simple/pb1-detectron2/": b"x" * 1001}) as (url, _):
        use_indexes(monkeypatch, f"{url}/simple")
        with pytest.raises(InstallError, match="larger than 1000 bytes"):
            install_detectron2.fetch_sdist(tmp_path)


def test_failure_names_what_was_tried_without_passwords(tmp_path, monkeypatch, no_pip_download):
    with package_index({}) as (url, _):
        use_indexes(monkeypatch, url.replace("//", "//user:secret@"), "not-a-url")
        with pytest.raises(InstallError) as caught:
            install_detectron2.fetch_sdist(tmp_path)
    text = str(caught.value)
    assert "secret" not in text
    assert "not-a-url" in text
    assert "pip download: refused" in text
    assert "--sdist FILE" in text


def test_local_file(tmp_path):
    with pytest.raises(InstallError, match="absent.tar.gz: no such file"):
        install_detectron2.fetch_sdist(tmp_path, tmp_path / "absent.tar.gz")
    (tmp_path / "mine.tar.gz").write_bytes(b"mine")
    folder = tmp_path / "out"
    folder.mkdir()
    path = install_detectron2.fetch_sdist(folder, tmp_path / "mine.tar.gz", sha256(b"mine"))
    assert path.read_bytes() == b"mine"


def test_settings_of_pip_are_read(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://mirror.example/simple/\ncert = /ca.pem\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a.example/s https://b.example/s")
    settings = install_detectron2.pip_settings()
    assert settings["cert"] == "/ca.pem"
    assert install_detectron2.index_urls(settings) == [
        "https://mirror.example/simple",
        "https://a.example/s",
        "https://b.example/s",
    ]


def test_default_index_is_asked_of_pip():
    (url,) = install_detectron2.index_urls({})
    assert re.fullmatch(r"https://[\w.]+/simple", url)


# --- unpacking ------------------------------------------------------------------------------------


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "info",
    [
        member("top/../../evil.py"),
        member("/tmp/evil.py"),
        member("top\\..\\evil.py"),
        member("top/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("top/link", tarfile.LNKTYPE, "top/a.py"),
        member("top/device", tarfile.CHRTYPE),
        member("other/a.py"),
    ],
    ids=["dots", "absolute", "backslash", "symlink", "hard link", "device", "second top"],
)
def test_hostile_archives_are_refused(tmp_path, info):
    path = archive(tmp_path / "x.tar.gz", (member("top/a.py"), b"a"), (info, b""))
    with pytest.raises(InstallError, match=r"x\.tar\.gz"):
        install_detectron2.extract_sdist(path, tmp_path / "inner" / "out")
    assert not list(tmp_path.rglob("evil*"))


def test_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = archive(tmp_path / "x.tar.gz", (member("top/a"), b"x" * 100), (member("top/b"), b"x"))
    monkeypatch.setattr(install_detectron2, "_MAX_UNPACKED_BYTES", 100)
    with pytest.raises(InstallError, match="more than is plausible"):
        install_detectron2.extract_sdist(path, tmp_path / "out")
    monkeypatch.setattr(install_detectron2, "_MAX_UNPACKED_BYTES", 1000)
    assert install_detectron2.extract_sdist(path, tmp_path / "out").name == "top"


# --- building -------------------------------------------------------------------------------------


def test_wheel_is_pure_patched_and_labelled(tmp_path, monkeypatch):
    setup = (
        "import os\nfrom setuptools import setup\nimport a_compiler\n"
        "setup(name='pb1-detectron2', packages=['detectron2'],\n"
        "      version='0.6' + os.environ['D2_VERSION_SUFFIX'])\n"
    )
    sdist = archive(
        tmp_path / "small.tar.gz",
        (member("top/setup.py"), setup.encode()),
        (member("top/detectron2/__init__.py"), b"x = 'old'\n"),
    )
    table = (
        Patch("a", "setup.py", "import a_compiler\n", "", "why"),
        Patch("b", "detectron2/__init__.py", "'old'", "'new'", "why"),
    )
    monkeypatch.setattr(detectron2_patches, "PATCHES", table)
    temp = tmp_path / "temp"
    temp.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temp))
    wheel = install_detectron2.build_wheel(sdist, tmp_path / "wheels")
    assert wheel.name == f"pb1_detectron2-0.6+{patch_label()}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as content:
        assert content.read("detectron2/__init__.py") == b"x = 'new'\n"
        assert b"MissingCompiledOp" in content.read("detectron2/_C.py")
    assert not list(temp.iterdir()), "temporary files were left behind"


def test_failing_build_shows_its_reason(tmp_path, monkeypatch):
    sdist = archive(tmp_path / "x.tar.gz", (member("top/setup.py"), b"raise SystemExit('no luck')"))
    monkeypatch.setattr(detectron2_patches, "PATCHES", ())
    with pytest.raises(InstallError, match="no luck"):
        install_detectron2.build_wheel(sdist, tmp_path / "wheels")


# --- what is there --------------------------------------------------------------------------------


@pytest.fixture
def installs(monkeypatch):
    """Record what main() would install, without installing or checking anything."""
    done = []
    monkeypatch.setattr(install_detectron2, "install_patched", lambda *_: done.append("patched"))
    monkeypatch.setattr(install_detectron2, "install_official", lambda: done.append("official"))
    fit = detectron2_check.Report(version="0.6", location="somewhere")
    monkeypatch.setattr(detectron2_check, "check_in_subprocess", lambda: fit)
    return done


def test_importable_detectron2_is_left_alone(installs, monkeypatch, capsys):
    monkeypatch.setattr(install_detectron2, "may_be_replaced", lambda: None)
    assert install_detectron2.main([]) == 0
    assert install_detectron2.main(["--official"]) == 0
    assert install_detectron2.main(["--check"]) == 0
    assert installs == []
    assert "left alone" in capsys.readouterr().out
    assert install_detectron2.main(["--force"]) == 0
    assert install_detectron2.main(["--force", "--official"]) == 0
    assert installs == ["patched", "official"]


def test_missing_or_outdated_detectron2_is_installed(installs, monkeypatch):
    monkeypatch.setattr(install_detectron2, "may_be_replaced", lambda: "made from other patches")
    assert install_detectron2.main([]) == 0
    monkeypatch.setattr(detectron2_check, "is_present", lambda: False)
    assert install_detectron2.main([]) == 0
    assert install_detectron2.main(["--official"]) == 0
    assert installs == ["patched", "patched", "official"]


def test_only_our_own_builds_may_be_replaced(monkeypatch, tmp_path):
    if install_detectron2.our_version() is None:
        pytest.skip("not the patched build of Detectron2")
    current = f"0.6+{patch_label()}"
    monkeypatch.setattr(install_detectron2, "our_version", lambda: current)
    assert install_detectron2.may_be_replaced() is None
    monkeypatch.setattr(install_detectron2, "our_version", lambda: "0.6+fx.00000000")
    assert "other patches" in install_detectron2.may_be_replaced()
    # The same outdated build, but Python finds a Detectron2 of the user's first.
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.util.spec_from_file_location(
        "detectron2", tmp_path / "detectron2" / "__init__.py"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert install_detectron2.may_be_replaced() is None


def test_leftover_of_an_interrupted_installation_is_replaced(monkeypatch):
    monkeypatch.setattr("importlib.metadata.packages_distributions", dict)
    monkeypatch.setattr(install_detectron2, "our_version", lambda: None)
    assert "interrupted" in install_detectron2.may_be_replaced()


def test_no_detectron2_at_all(monkeypatch, capsys):
    monkeypatch.setattr(detectron2_check, "is_present", lambda: False)
    assert install_detectron2.main(["--check"]) == 1
    assert "no Detectron2 here" in capsys.readouterr().out


def test_official_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(detectron2_check, "is_present", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert install_detectron2.main(["--official"]) == 1
    assert "needs git" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/git")

    def offline(command, **_):
        assert install_detectron2.OFFICIAL_URL in command
        return subprocess.CompletedProcess(command, 1, "", "fatal: unable to access")

    monkeypatch.setattr(subprocess, "run", offline)
    assert install_detectron2.main(["--official"]) == 1
    text = capsys.readouterr().err
    assert "unable to access" in text
    assert "access to its git repository" in text
