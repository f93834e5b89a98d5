#!/usr/bin/env python3
"""Install Detectron2 where none is, and say whether the one that is there is fit.

Detectron2 is not on the package index under its own name. ``pb1-detectron2 0.6`` is: its Python
files are those of the official v0.6 tag, but it has no C++ sources and does not build as it is.
This script downloads that source distribution, checks its hash, applies the patches listed in
``detectron2_patches.py`` and installs the result as a pure-Python wheel.

    python tools/install_detectron2.py              install unless a Detectron2 is importable
    python tools/install_detectron2.py --official   build the official repository's main with git
    python tools/install_detectron2.py --check      say what is there; exit code 0 when it is fit

It needs pip in the Python that runs it. Torch and Detectron2's other requirements are installed
before it (they are requirements of fx_d2): the check at the end uses them.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html.parser
import importlib.metadata
import importlib.util
import os
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path, PurePosixPath

_HERE = Path(__file__).resolve().parent
if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))

import detectron2_check  # noqa: E402
import detectron2_patches  # noqa: E402

DIST_NAME = "pb1-detectron2"
DIST_VERSION = "0.6"
SDIST_NAME = "pb1-detectron2-0.6.tar.gz"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
OFFICIAL_URL = "git+https://github.com/facebookresearch/detectron2.git"

# The distribution is 0.5 MB packed and 3 MB unpacked, in 330 files.
_MAX_DOWNLOAD_BYTES = 8 << 20
_MAX_UNPACKED_BYTES = 64 << 20
_MAX_MEMBERS = 5000
_TIMEOUT_SECONDS = 60


class InstallError(RuntimeError):
    """Something that the user has to act on. The message says what."""


# --- finding and fetching the source distribution -------------------------------------------------


class _Links(html.parser.HTMLParser):
    """Collects the targets of the links of a package index page."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.targets += [value for name, value in attrs if name == "href" and value]


def pip_settings() -> dict[str, str]:
    """The settings of pip, from its files and from ``PIP_*``, by their short name."""
    run = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    settings: dict[str, str] = {}
    for line in run.stdout.splitlines():
        match = re.fullmatch(r"[^=]*\.([\w-]+)='(.*)'", line.strip())
        if match:
            settings[match.group(1).lstrip(".")] = match.group(2)
    for key, value in os.environ.items():
        if key.startswith("PIP_"):
            settings[key[4:].lower().replace("_", "-")] = value
    return settings


def index_urls(settings: dict[str, str]) -> list[str]:
    """The package indexes that pip is set up for, in pip's order."""
    main = settings["index-url"].split() if "index-url" in settings else _default_index()
    return [url.rstrip("/") for url in main + settings.get("extra-index-url", "").split()]


def _default_index() -> list[str]:
    """The index that pip uses unless told otherwise, from pip itself; empty if it does not say."""
    run = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "400"},
    )
    return re.findall(r"\(default (https?://[^\s)]+)\)", run.stdout)[:1]


def _opener(settings: dict[str, str]) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    bundle = settings.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE")
    if bundle:
        kind = "capath" if os.path.isdir(bundle) else "cafile"
        context.load_verify_locations(**{kind: bundle})
    elif not context.get_ca_certs():
        # Some Python builds come without root certificates; pip brings its own.
        from pip._vendor import certifi

        context.load_verify_locations(certifi.where())
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
    if settings.get("proxy"):
        proxy = settings["proxy"]
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    return urllib.request.build_opener(*handlers)


def _split_login(url: str) -> tuple[str, str | None]:
    """A URL without its user name and password, and the header value that carries them."""
    parts = urllib.parse.urlsplit(url)
    if parts.username is None:
        return url, None
    login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    bare = parts._replace(netloc=parts.netloc.rsplit("@", 1)[1]).geturl()
    return bare, "Basic " + base64.b64encode(login.encode()).decode()


def _read(
    opener: urllib.request.OpenerDirector, url: str, login: str | None = None
) -> tuple[bytes, str]:
    """The content at a URL and the address it came from after redirections."""
    request = urllib.request.Request(url, headers={"Accept": "text/html, */*;q=0.1"})
    if login is not None:
        # Not sent on to another host by a redirection.
        request.add_unredirected_header("Authorization", login)
    with opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
        content = answer.read(_MAX_DOWNLOAD_BYTES + 1)
        if len(content) > _MAX_DOWNLOAD_BYTES:
            raise InstallError(f"{url}: larger than {_MAX_DOWNLOAD_BYTES} bytes; not used")
        return content, answer.geturl()


def _from_index(index_url: str, settings: dict[str, str]) -> bytes:
    opener = _opener(settings)
    bare_url, login = _split_login(index_url)
    page, page_url = _read(opener, f"{bare_url}/{DIST_NAME}/", login)
    links = _Links()
    links.feed(page.decode("utf-8", errors="replace"))
    for target in links.targets:
        url = urllib.parse.urljoin(page_url, target).split("#", 1)[0]
        if urllib.parse.unquote(url).rsplit("/", 1)[-1] == SDIST_NAME:
            same_host = urllib.parse.urlsplit(url).netloc == urllib.parse.urlsplit(bare_url).netloc
            return _read(opener, url, login if same_host else None)[0]
    raise InstallError(f"the page of {DIST_NAME} has no {SDIST_NAME}")


def _from_pip(folder: Path) -> bytes:
    """Let pip fetch it: slower, but it knows every way to log in to an index.

    Newer versions of pip refuse the distribution because one of its extras names a URL.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{DIST_NAME}=={DIST_VERSION} --hash=sha256:{SDIST_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", ":all:", "--no-build-isolation", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0 or not (folder / SDIST_NAME).is_file():
        lines = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
        raise InstallError("pip download: " + (lines[0] if lines else "no file"))
    return (folder / SDIST_NAME).read_bytes()


def fetch_sdist(folder: Path, local: Path | None = None, sha256: str = SDIST_SHA256) -> Path:
    """Put the source distribution into a folder and check its hash.

    Args:
        folder: Where it goes.
        local: A file to use instead of the package index.
        sha256: What its hash has to be.

    Returns:
        The path of the checked file.

    Raises:
        InstallError: Nothing could be fetched, or the hash differs.
    """
    if local is not None:
        if not local.is_file():
            raise InstallError(f"--sdist {local}: no such file")
        content = local.read_bytes()
    else:
        content = _fetch_anywhere(folder)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise InstallError(
            f"{local or SDIST_NAME}: sha256 is {found}, expected {sha256}. It is not the file this "
            "script was written for and is not used; fetch it again or use --official."
        )
    path = folder / SDIST_NAME
    path.write_bytes(content)
    return path


def _fetch_anywhere(folder: Path) -> bytes:
    settings = pip_settings()
    tried: list[str] = []
    for url in index_urls(settings):
        try:
            return _from_index(url, settings)
        except (InstallError, OSError, ValueError) as problem:
            # URLError and ssl.SSLError are OSErrors; a malformed address is a ValueError.
            tried.append(f"{url.rsplit('@', 1)[-1]}: {problem}")
    try:
        return _from_pip(folder)
    except InstallError as problem:
        tried.append(str(problem))
    raise InstallError(
        f"{SDIST_NAME} could not be fetched. Tried:\n  "
        + "\n  ".join(tried)
        + f"\nWithout access to a package index, fetch {SDIST_NAME} elsewhere and give it with "
        "--sdist FILE."
    )


def extract_sdist(archive: Path, folder: Path) -> Path:
    """Unpack a source distribution, plain files and folders only, nothing outside the folder.

    Returns:
        The one top-level folder of the archive.
    """
    total = 0
    tops = set()
    with tarfile.open(archive, "r:gz") as tar:
        for number, member in enumerate(tar):
            path = PurePosixPath(member.name)
            total += member.size
            if path.is_absolute() or ".." in path.parts or "\\" in member.name:
                raise InstallError(f"{archive.name}: {member.name!r} lies outside the archive")
            if number >= _MAX_MEMBERS or total > _MAX_UNPACKED_BYTES:
                raise InstallError(f"{archive.name}: unpacks to more than is plausible")
            target = folder.joinpath(*path.parts)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif member.isfile():
                source = tar.extractfile(member)
                if source is None:
                    raise InstallError(f"{archive.name}: {member.name!r} cannot be read")
                target.parent.mkdir(parents=True, exist_ok=True)
                with source, target.open("wb") as out:
                    shutil.copyfileobj(source, out)
            else:
                raise InstallError(f"{archive.name}: {member.name!r} is neither file nor folder")
            tops.add(path.parts[0] if path.parts else "")
    if len(tops) != 1:
        raise InstallError(f"{archive.name}: expected one top-level folder, found {sorted(tops)}")
    return folder / tops.pop()


# --- building and installing ----------------------------------------------------------------------


def _pip(*arguments: str, env: dict[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if run.returncode != 0:
        tail = "\n  ".join((run.stdout + run.stderr).strip().splitlines()[-15:])
        raise InstallError(f"{' '.join(command[1:])} failed:\n  {tail}")


def build_wheel(sdist: Path, wheel_dir: Path) -> Path:
    """Patch a source distribution and build a pure-Python wheel from it.

    Returns:
        The path of the wheel in ``wheel_dir``.
    """
    wheel_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="detectron2-build-") as temp:
        source = extract_sdist(sdist, Path(temp) / "source")
        detectron2_patches.apply_patches(source)
        built = Path(temp) / "wheel"
        # Its setup.py takes a version suffix from the environment; the local label tells this build
        # from others, and an older table from this one.
        env = {**os.environ, "D2_VERSION_SUFFIX": "+" + detectron2_patches.patch_label()}
        command = ["wheel", "--no-deps", "--wheel-dir", str(built)]
        if importlib.util.find_spec("setuptools") is not None:
            command.append("--no-build-isolation")
        _pip(*command, str(source), env=env)
        wheels = sorted(built.glob("*.whl"))
        if len(wheels) != 1:
            raise InstallError(f"expected one wheel, got {[wheel.name for wheel in wheels]}")
        return Path(shutil.copy2(wheels[0], wheel_dir / wheels[0].name))


def our_version() -> str | None:
    """Version of the patched build in this environment, whichever table made it, or None."""
    try:
        version = importlib.metadata.version(DIST_NAME)
    except importlib.metadata.PackageNotFoundError:
        return None
    return version if version.startswith(f"{DIST_VERSION}+fx.") else None


def may_be_replaced() -> str | None:
    """Why the Detectron2 that is importable need not be left alone, or None."""
    spec = importlib.util.find_spec("detectron2")
    folder = Path(spec.origin).resolve().parents[1] if spec and spec.origin else None
    here = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    if folder not in here:
        return None
    ours = our_version()
    if ours is not None and not ours.endswith(detectron2_patches.patch_label()):
        return f"it is this script's own build {ours}, made from other patches"
    if "detectron2" not in importlib.metadata.packages_distributions():
        return "no distribution owns it: an interrupted installation"
    return None


def install_patched(local: Path | None, wheel_dir: Path | None) -> None:
    """Fetch, patch, build and install the patched build."""
    with tempfile.TemporaryDirectory(prefix="detectron2-") as temp:
        print(f"fetching {SDIST_NAME}", flush=True)
        sdist = fetch_sdist(Path(temp), local)
        count = len(detectron2_patches.PATCHES)
        print(f"applying {count} patches and building a wheel", flush=True)
        wheel = build_wheel(sdist, wheel_dir or Path(temp) / "wheel")
        if wheel_dir is not None:
            print(f"the wheel is {wheel}")
        _pip("install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))


def install_official() -> None:
    """Build and install the official repository's main, with its compiled operators."""
    if shutil.which("git") is None:
        raise InstallError(
            "--official needs git, which was not found. Install git, or leave out --official."
        )
    if importlib.util.find_spec("torch") is None:
        raise InstallError(
            "--official builds against torch, which is not installed. Install torch first."
        )
    print(f"building {OFFICIAL_URL}; compiling takes minutes", flush=True)
    try:
        _pip("install", "--no-build-isolation", OFFICIAL_URL)
    except InstallError as problem:
        raise InstallError(
            f"{problem}\nThe official Detectron2 needs access to its git repository, a C++ "
            "compiler and, for a GPU, the CUDA toolkit torch was built with. Without them leave "
            "out --official."
        ) from None


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--check", action="store_true", help="say what is there and whether it is fit"
    )
    mode.add_argument(
        "--official", action="store_true", help="build the official repository with git"
    )
    parser.add_argument("--force", action="store_true", help="replace a Detectron2 that is there")
    parser.add_argument("--sdist", type=Path, metavar="FILE", help=f"a copy of {SDIST_NAME} to use")
    parser.add_argument("--wheel-dir", type=Path, metavar="DIR", help="keep the built wheel there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    args = _arguments(argv)
    try:
        if not args.check:
            _install(args)
        report = detectron2_check.check_in_subprocess()
    except (InstallError, detectron2_patches.PatchError) as problem:
        print(f"install_detectron2: {problem}", file=sys.stderr)
        return 1
    print(report.as_text())
    return 0 if report.fit else 1


def _install(args: argparse.Namespace) -> None:
    if detectron2_check.is_present() and not args.force:
        reason = may_be_replaced()
        if reason is None:
            print("a Detectron2 is importable already and is left alone (--force replaces it)")
            return
        print(f"replacing the Detectron2 that is there: {reason}")
    if args.official:
        install_official()
    else:
        install_patched(args.sdist, args.wheel_dir)


if __name__ == "__main__":
    sys.exit(main())
