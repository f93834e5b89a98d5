"""The schedule of cyclic training as data: which (source, task) a step trains, and which parts.

A *cycle* is a list of slots and is repeated. A *slot* is one visit to a (source, task): a list of
phases. A *phase* shows a share of its images once and trains some groups of parameters; all others
are locked. Where a run stands is a pure function of the iteration, so a resumed run needs nothing
else. No torch, nothing of this package: the schedule of a run can be looked at anywhere.
"""

from __future__ import annotations

import difflib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

TASKS = ("cls", "loc", "seg")
TRAINABLE, LOCKED, UNUSED = "trainable", "locked", "-"
ORDERS = ("cyclic", "sequential")


@dataclass(frozen=True)
class Group:
    """Parameters that are locked and released together.

    Args:
        patterns: of their names; ``*`` and ``?`` as in file names.
        tasks: whose losses depend on them.
        optional: whether patterns may name nothing, since not every model has every part.
    """

    patterns: tuple[str, ...]
    tasks: tuple[str, ...] = TASKS
    optional: bool = False


# The columns of the paper's table, over the names of FoundationX.
GROUPS: dict[str, Group] = {
    "backbone": Group(("trunk.*",), TASKS, optional=True),
    "cls_head": Group(("heads.cls.*", "cls_encoder.*"), ("cls",), optional=True),
    "loc_encoder": Group(("loc_encoder.*",), ("loc",), optional=True),
    "loc_decoder": Group(("heads.loc.*", "loc_decoder.*"), ("loc",), optional=True),
    "seg_decoder": Group(("seg_decoder.*",), ("seg",), optional=True),
    "seg_head": Group(("heads.seg.*",), ("seg",), optional=True),
}


@dataclass(frozen=True)
class Phase:
    """A pass over a share of the images of one (source, task).

    Args:
        source, task: what is trained.
        name: for people; ``lock`` and ``release`` in the presets.
        share: of the images, in (0, 1].
        trainable: groups that are trained; all others are locked.
    """

    source: str
    task: str
    name: str
    share: float
    trainable: tuple[str, ...]

    @property
    def title(self) -> str:
        """``rsna/loc lock``."""
        return f"{self.source}/{self.task} {self.name}"


@dataclass(frozen=True)
class Slot:
    """One visit to a (source, task)."""

    source: str
    task: str
    phases: tuple[Phase, ...]


@dataclass(frozen=True)
class Pass:
    """What a phase takes: how many images it shows, in how many iterations."""

    images: int
    steps: int


@dataclass(frozen=True)
class PhaseAt:
    """Where an iteration stands.

    Args:
        phase: that it belongs to.
        number: phases of the run before this one.
        slot_index: of the cycle, from 0.
        cycle_index: complete cycles before this one; in sequential training, repetitions of this
            source.
        pass_index: how often this share of this (source, task) was shown before.
        first, last: iterations of the phase, both inclusive.
        ends_slot, ends_cycle: whether it is the last phase of its slot and cycle.
    """

    phase: Phase
    number: int
    slot_index: int
    cycle_index: int
    pass_index: int
    first: int
    last: int
    ends_slot: bool
    ends_cycle: bool

    @property
    def steps(self) -> int:
        """Iterations of the phase."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class Cycle:
    """Slots in their order, and the groups their phases name.

    Args:
        name: for people.
        slots: of one cycle.
        groups: by name.
        order: ``cyclic`` repeats all slots; ``sequential`` repeats those of one source before the
            next source.
    """

    name: str
    slots: tuple[Slot, ...]
    groups: Mapping[str, Group]
    order: str = "cyclic"

    def __post_init__(self) -> None:
        choose(self.order, ORDERS, f"cycle {self.name!r}: order")
        if not self.slots:
            raise ValueError(f"cycle {self.name!r} has no slots")
        for name, group in self.groups.items():
            for task in group.tasks:
                choose(task, TASKS, f"group {name!r}: task")
        for slot in self.slots:
            if not slot.phases:
                raise ValueError(f"slot {slot.source}/{slot.task} has no phases")
            for phase in slot.phases:
                self._check(phase)

    def _check(self, phase: Phase) -> None:
        where = f"phase {phase.title}"
        choose(phase.task, TASKS, f"{where}: task")
        share = phase.share
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise ValueError(f"{where}: share is {share!r}; allowed: above 0, at most 1")
        for group in phase.trainable:
            choose(group, self.groups, f"{where}: group")
        if not any(phase.task in self.groups[group].tasks for group in phase.trainable):
            useful = [name for name, group in self.groups.items() if phase.task in group.tasks]
            raise ValueError(
                f"{where} trains {list(phase.trainable)}, on which its loss does not depend; "
                f"name some of {', '.join(useful)}"
            )

    def state(self, phase: Phase, group: str) -> str:
        """A cell of the paper's table: ``trainable``, ``locked``, or ``-`` where not used."""
        if phase.task not in self.groups[group].tasks:
            return UNUSED
        return TRAINABLE if group in phase.trainable else LOCKED

    def schedule(self, pass_of: Callable[[Phase], Pass], repeats: int = 0) -> Schedule:
        """The iterations of a run.

        Args:
            pass_of: what a phase takes.
            repeats: cycles of the run; 0 is without end, which sequential training cannot be.
        """
        if repeats < 0:
            raise ValueError(f"{repeats} cycles; allowed: 1 or more, or 0 for no end")
        if self.order == "cyclic":
            return Schedule(self, [_Block(enumerate(self.slots), pass_of)], repeats)
        if not repeats:
            raise ValueError(
                "sequential training has to know how long it stays with a source: set CYCLE.CYCLES"
            )
        blocks = []
        for source in dict.fromkeys(slot.source for slot in self.slots):
            mine = [(i, slot) for i, slot in enumerate(self.slots) if slot.source == source]
            blocks.append(_Block(mine, pass_of))
        return Schedule(self, blocks, repeats)


class _Block:
    """Phases that are repeated as a whole."""

    def __init__(
        self,
        slots: Iterator[tuple[int, Slot]] | Sequence[tuple[int, Slot]],
        pass_of: Callable[[Phase], Pass],
    ) -> None:
        placed = [
            (index, phase, phase is slot.phases[-1])
            for index, slot in slots
            for phase in slot.phases
        ]
        self.slot_of = [index for index, _, _ in placed]
        self.phases = [phase for _, phase, _ in placed]
        self.ends_slot = [last for _, _, last in placed]
        self.passes = [pass_of(phase) for phase in self.phases]
        for phase, taken in zip(self.phases, self.passes, strict=True):
            if taken.images < 1 or taken.steps < 1:
                raise ValueError(f"slot {phase.source}/{phase.task} has no data")
        # A (source, task) may be visited several times: each visit continues its images.
        seen: Counter[tuple[str, str, float]] = Counter()
        self.visit = []
        for phase in self.phases:
            self.visit.append(seen[_images_of(phase)])
            seen[_images_of(phase)] += 1
        self.visits = [seen[_images_of(phase)] for phase in self.phases]
        self.starts = [0, *accumulate(taken.steps for taken in self.passes)]

    @property
    def length(self) -> int:
        return self.starts[-1]


def _images_of(phase: Phase) -> tuple[str, str, float]:
    return (phase.source, phase.task, float(phase.share))


class Schedule:
    """A cycle with its lengths; made by :meth:`Cycle.schedule`."""

    def __init__(self, cycle: Cycle, blocks: Sequence[_Block], repeats: int) -> None:
        self.cycle, self.repeats = cycle, repeats
        self._blocks = tuple(blocks)
        # Iterations and phases of the run before each block.
        self._starts = [0, *accumulate(block.length * repeats for block in blocks)]
        self._numbers = [0, *accumulate(len(block.phases) * repeats for block in blocks)]

    @property
    def length(self) -> int:
        """Iterations of one cycle."""
        return sum(block.length for block in self._blocks)

    @property
    def total(self) -> int | None:
        """Iterations of the run; None without end."""
        return self.length * self.repeats or None

    def phase_at(self, iteration: int) -> PhaseAt:
        """Where ``iteration`` stands; sequential training ends with :attr:`total`."""
        if iteration < 0:
            raise ValueError(f"iteration {iteration}")
        which = 0
        if len(self._blocks) > 1:
            which = bisect_right(self._starts, iteration) - 1
            if which == len(self._blocks):
                raise ValueError(f"iteration {iteration} of a sequence of {self._starts[-1]}")
        block = self._blocks[which]
        repetition, place = divmod(iteration - self._starts[which], block.length)
        return self._phase(which, repetition, bisect_right(block.starts, place) - 1)

    def _phase(self, which: int, repetition: int, index: int) -> PhaseAt:
        block = self._blocks[which]
        start = self._starts[which] + repetition * block.length
        return PhaseAt(
            phase=block.phases[index],
            number=self._numbers[which] + repetition * len(block.phases) + index,
            slot_index=block.slot_of[index],
            cycle_index=repetition,
            pass_index=repetition * block.visits[index] + block.visit[index],
            first=start + block.starts[index],
            last=start + block.starts[index + 1] - 1,
            ends_slot=block.ends_slot[index],
            ends_cycle=index == len(block.phases) - 1,
        )

    def cycle_start(self, iteration: int) -> int:
        """The first iteration of the cycle (sequentially: the repetition) of ``iteration``."""
        which = 0
        if len(self._blocks) > 1:
            which = min(bisect_right(self._starts, iteration), len(self._blocks)) - 1
        past = iteration - self._starts[which]
        return iteration - past % self._blocks[which].length

    def rows(self) -> list[tuple[PhaseAt, Pass]]:
        """Every phase once, as it first comes, with what it takes."""
        return [
            (self._phase(which, 0, index), taken)
            for which, block in enumerate(self._blocks)
            for index, taken in enumerate(block.passes)
        ]

    def lines(self) -> list[str]:
        """All that decides which step trains what; two runs with equal lines can be joined."""
        head = self.cycle.order
        if head == "sequential":
            head += f", {self.repeats} times each"
        groups = [
            f"group {name}: {' '.join(group.patterns)}" for name, group in self.cycle.groups.items()
        ]
        phases = [
            f"{at.phase.title} {at.phase.share:.4g}, {taken.images} images, {taken.steps} steps, "
            f"trains {' '.join(at.phase.trainable)}"
            for at, taken in self.rows()
        ]
        return [head, *phases, *groups]


def choose(given: str, known: Collection[str], what: str) -> str:
    """``given`` if it is known; else an error with the nearest name.

    Args:
        given: by the user.
        known: what is allowed.
        what: stands before it in the message.
    """
    if given in known:
        return given
    near = difflib.get_close_matches(str(given), list(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} {given!r} does not exist{hint} (known: {', '.join(known)})")
