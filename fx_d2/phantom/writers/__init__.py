"""Writers of each vendor's own layout. A reader and its writer share no code; a test sees to it."""

from __future__ import annotations

from collections.abc import Sequence

from fx_d2.phantom.writers.base import Entry, Job, Member, Writer
from fx_d2.phantom.writers.candid import CandidPtx
from fx_d2.phantom.writers.chestx_det import ChestXDet
from fx_d2.phantom.writers.chexpert import CheXpert
from fx_d2.phantom.writers.covid19_seg import Covid19Seg
from fx_d2.phantom.writers.covid_qu_ex import CovidQuEx
from fx_d2.phantom.writers.covid_radiography import CovidRadiography
from fx_d2.phantom.writers.jsrt import Jsrt
from fx_d2.phantom.writers.mimic import Mimic
from fx_d2.phantom.writers.montgomery import Montgomery
from fx_d2.phantom.writers.mura import Mura
from fx_d2.phantom.writers.nih14 import Nih14
from fx_d2.phantom.writers.node21 import Node21
from fx_d2.phantom.writers.ribcxr import RibCxr
from fx_d2.phantom.writers.rsna import Rsna
from fx_d2.phantom.writers.shenzhen import Shenzhen
from fx_d2.phantom.writers.siim import Siim
from fx_d2.phantom.writers.tbx11k import Tbx11k
from fx_d2.phantom.writers.vindr import VinDr

WRITERS: tuple[Writer, ...] = (
    CheXpert(),
    Nih14(),
    VinDr(),
    Shenzhen(),
    Mimic(),
    Tbx11k(),
    Node21(),
    CandidPtx(),
    Rsna(),
    ChestXDet(),
    Siim(),
    RibCxr(),
    Montgomery(),
    Jsrt(),
    CovidRadiography(),
    CovidQuEx(),
    Mura(),
    Covid19Seg(),
)

__all__ = ["WRITERS", "Entry", "Job", "Member", "Writer", "writers_of"]


def writers_of(keys: Sequence[str] | None) -> list[Writer]:
    """The writers of some sources (all by default); sources that share files come together."""
    wanted = set(keys) if keys is not None else {key for w in WRITERS for key in w.keys}
    chosen = [writer for writer in WRITERS if wanted & set(writer.keys)]
    missing = wanted - {key for writer in chosen for key in writer.keys}
    if missing:
        raise ValueError(f"no writer for {', '.join(sorted(missing))}")
    return chosen
