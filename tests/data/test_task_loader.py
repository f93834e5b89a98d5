from __future__ import annotations

import logging
import multiprocessing
import time

import numpy as np
import pytest

from fx_d2.data.errors import DataError
from fx_d2.data.mapper import FxMapper
from fx_d2.data.record import PackedRecords
from fx_d2.data.task_loader import TaskLoader, WorkerConfig, start_method

KEY = "toy_chest"


@pytest.fixture
def make(toy, fx_cfg):
    """Loaders that are closed at the end, whatever happened."""
    made = []

    def build(workers=0, records=None, **more):
        records = PackedRecords(toy.records if records is None else records)
        datasets = {(KEY, task): records for task in ("cls", "loc", "seg")}
        options = {"seed": 1, "batch_size": 4, **more}
        datasets = options.pop("datasets", datasets)
        made.append(
            TaskLoader(
                datasets,
                FxMapper(fx_cfg, True),
                workers=WorkerConfig(num_workers=workers),
                **options,
            )
        )
        return made[-1]

    yield build
    for loader in made:
        loader.close()


def ids(batches):
    return [[item["image_id"] for item in batch] for batch in batches]


def children():
    return len(multiprocessing.active_children())


def test_a_pass_shows_every_image(make):
    loader = make()
    assert loader.activate(KEY, "cls") == 4 == loader.steps_per_pass(KEY, "cls")
    seen = [i for batch in ids(loader) for i in batch]
    assert len(seen) == 16 and set(seen) == {f"toy{i}" for i in range(13)}
    assert seen[13:] == seen[:3]  # filled up with the first ones


@pytest.mark.parametrize("policy, lengths", [("drop", [4, 4, 4]), ("keep", [4, 4, 4, 1])])
def test_other_ends_of_a_pass(make, policy, lengths):
    loader = make(last_batch=policy)
    loader.activate(KEY, "cls")
    assert [len(b) for b in loader] == lengths


def test_half_a_pass_and_the_other_half(make):
    loader = make(batch_size=1)
    halves = []
    for number in range(2):
        assert loader.activate(KEY, "cls", fraction=0.5, pass_index=number) == 7
        halves.append({i for batch in ids(loader) for i in batch})
    assert len(halves[0] | halves[1]) == 13
    loader.activate(KEY, "cls", fraction=0.1)
    assert len(ids(loader)) == 1


def test_passes_differ_and_a_pass_can_be_repeated(make):
    loader = make()
    runs = []
    for number in (0, 1, 0):
        loader.activate(KEY, "cls", pass_index=number)
        runs.append(ids(loader))
    assert runs[0] != runs[1] and runs[0] == runs[2]
    assert ids(loader) == runs[0]  # iterating again without activating gives the pass again


def test_workers_start_at_the_first_batch_and_stop_with_their_task(make):
    before = children()
    loader = make(workers=2)
    loader.activate(KEY, "cls")
    assert children() == before
    stream = iter(loader)
    next(stream)
    assert children() == before + 2
    loader.activate(KEY, "cls", pass_index=1)
    assert children() == before + 2  # the next pass of the task keeps them
    again = iter(loader)
    next(again)
    pids = {p.pid for p in multiprocessing.active_children()}
    loader.activate(KEY, "loc")
    assert children() == before  # though batches were left over
    next(iter(loader))
    assert children() == before + 2
    assert pids.isdisjoint(p.pid for p in multiprocessing.active_children())
    loader.close()
    assert children() == before


def test_an_iteration_ends_with_its_activation(make):
    loader = make()
    loader.activate(KEY, "cls")
    stream = iter(loader)
    next(stream)
    loader.activate(KEY, "loc")
    with pytest.raises(RuntimeError, match="anew"):
        next(stream)
    first, second = iter(loader), iter(loader)
    assert len(list(second)) == 4
    with pytest.raises(RuntimeError, match="anew"):
        next(first)


def test_a_restarted_pass_holds_nothing_of_the_one_before(make):
    loader = make(workers=2)
    loader.activate(KEY, "cls")
    expected = ids(loader)
    loader.activate(KEY, "cls", pass_index=1)
    next(iter(loader))  # several batches of pass 1 are prepared and never taken
    loader.activate(KEY, "cls", pass_index=0)
    assert ids(loader) == expected


def test_prefetch_is_bounded(toy, fx_cfg):
    asked = []

    class Counting(PackedRecords):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    class Slow(FxMapper):
        def __call__(self, record, task, position):
            counter.value += 1
            return super().__call__(record, task, position)

    counter = multiprocessing.Value("i", 0, lock=True)
    mapper = FxMapper(fx_cfg, True)
    mapper.__class__ = Slow
    loader = TaskLoader(
        {(KEY, "cls"): PackedRecords(toy.records * 20)},
        mapper,
        seed=1,
        batch_size=2,
        workers=WorkerConfig(num_workers=1, prefetch=2),
    )
    loader.activate(KEY, "cls")
    stream = iter(loader)
    next(stream)
    time.sleep(0.7)
    prepared = counter.value
    loader.close()
    assert 2 <= prepared <= 2 * (1 + 2)


def test_records_are_read_at_the_first_activation_and_may_be_dropped(make, toy):
    reads = []

    def reader(name):
        def read():
            reads.append(name)
            return PackedRecords(toy.records)

        return read

    datasets = {(KEY, task): reader(task) for task in ("cls", "loc")}
    loader = make(datasets=datasets)
    assert reads == []
    for task in ("cls", "loc", "cls"):
        loader.activate(KEY, task)
        next(iter(loader))
    assert reads == ["cls", "loc"]
    reads.clear()
    forgetful = make(datasets=datasets, keep_records=False)
    for task in ("cls", "cls", "loc", "cls"):
        forgetful.activate(KEY, task)
        next(iter(forgetful))
    assert reads == ["cls", "loc", "cls"]


def broken(toy, number=5):
    path = toy.folder / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    records = [dict(r) for r in toy.records]
    records[number]["file_name"] = str(path)
    return records


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_arrives_as_one_line(make, toy, workers):
    loader = make(workers, records=broken(toy))
    loader.activate(KEY, "cls")
    with pytest.raises(DataError) as caught:
        list(loader)
    line = str(caught.value)
    assert "broken.png" in line and "\n" not in line and "Traceback" not in line
    assert caught.value.file.endswith("broken.png")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_can_be_left_out_and_is_counted(make, toy, workers, caplog):
    good = make(workers)
    good.activate(KEY, "cls")
    whole = ids(good)
    loader = make(workers, records=broken(toy), on_error="skip")
    loader.activate(KEY, "cls")
    with caplog.at_level(logging.WARNING, "fx_d2.data.task_loader"):
        left = ids(loader)
    assert left == [[i for i in batch if i != "toy5"] for batch in whole]  # nothing takes its place
    expected = sum(batch.count("toy5") for batch in whole)
    assert loader.skipped == {(KEY, "cls"): expected} and expected >= 1
    assert "broken.png" in caplog.text


def test_a_batch_with_nothing_left_is_an_error(make, toy):
    loader = make(records=broken(toy), on_error="skip", batch_size=1)
    loader.activate(KEY, "cls")
    with pytest.raises(DataError, match=r"none of the 1 images.*broken\.png"):
        list(loader)


def test_weights_reach_the_pass(make):
    def weights_of(source, task, records):
        assert (source, task, len(records)) == (KEY, "cls", 13)
        return np.array([3.0] + [1.0] * 12)

    loader = make(weights_of=weights_of, batch_size=1)
    assert loader.activate(KEY, "cls") == 15
    assert sum(ids(loader), []).count("toy0") == 3


def test_what_cannot_work_is_said(make):
    with pytest.raises(ValueError, match="not a multiple of the 3"):
        make(batch_size=4, world_size=3)
    with pytest.raises(ValueError, match="on_error"):
        make(on_error="ignore")
    with pytest.raises(ValueError, match="last_batch"):
        make(last_batch="pad")
    loader = make()
    with pytest.raises(RuntimeError, match="activate"):
        iter(loader)
    with pytest.raises(KeyError, match="the loader has toy_chest/cls"):
        loader.activate(KEY, "det")
    with pytest.raises(ValueError, match="START_METHOD"):
        start_method("thread")


def test_the_effective_mix_is_logged(make, caplog):
    with caplog.at_level(logging.INFO, "fx_d2.data.task_loader"):
        schedule = make().mix(ratio={(KEY, "cls"): 2.0})
    assert schedule.counts == {(KEY, "cls"): 4, (KEY, "loc"): 2, (KEY, "seg"): 2}
    assert "50.0%" in caplog.text
