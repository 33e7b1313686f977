"""A few of the faults of `make chaos`: the harness itself works, and nothing that is done is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import deaths, files, images
from tests.chaos.__main__ import document, plain
from tests.chaos.ground import Ground, make_ground
from tests.chaos.images import classes
from tests.chaos.rows import Row, Watched, finish
from tests.chaos.runs import Reference, Trial, reference_of


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return make_ground(tmp_path_factory.mktemp("chaos") / "ground")


@pytest.fixture(scope="module")
def reference(ground: Ground) -> Reference:
    found = reference_of(ground)
    assert sum(len(plan.blocks) for plan in found.plans.values()) > 20
    begun = Trial(ground, "undisturbed").begun(found)
    assert begun == {(name, block.index): 1 for name, plan in found.plans.items() for block in plan.blocks}
    return found


def test_the_undisturbed_masks_are_what_the_pixels_say(ground: Ground, reference: Reference) -> None:
    trial = Trial(ground, "undisturbed")
    for image in reference.report.images:
        mask = images.mask_of(trial, image)
        assert mask is not None
        assert (mask == classes(Path(image.uri))).all()


def test_a_driver_that_is_killed_loses_nothing(ground: Ground, reference: Reference) -> None:
    row = deaths.doors(ground, reference, tuple(door for door in deaths.DOORS if door[0] == "a mask is published"))
    assert row.good, row.problems
    assert row.times == 1


def test_torn_shards_cost_their_blocks_only(ground: Ground, reference: Reference) -> None:
    row = files.shards(ground, reference)
    assert row.good, row.problems
    assert row.times == 3
    assert row.recomputed >= 3


def test_damaged_images_cost_themselves_only(ground: Ground, reference: Reference) -> None:
    rows = images.damaged(ground, reference)
    assert all(row.good for row in rows), [row.problems for row in rows]
    assert len(rows) == 5


def test_the_harness_sees_what_is_lost_changed_and_left_behind(ground: Ground, reference: Reference) -> None:
    """A harness that always says yes would be worth nothing."""
    trial = Trial(ground, "wrong")
    trial.run(seconds=0)
    watched = Watched(trial, reference)
    watched.fault()
    mask = next((trial.output / "masks").glob("a-*/*.zarr"))
    for path in trial.output.glob("ledger.sqlite*"):
        path.unlink()
    mask.with_suffix(".json").unlink()
    mask.rename(mask.with_name("gone"))
    ended = trial.run(seconds=0)
    row = Row("a mask and all that is known of it are gone", "on purpose")
    watched.check(row)
    assert row.lost == len(reference.plans["a"].blocks)
    assert not row.good
    assert any("records of finished blocks changed" in problem for problem in row.problems)
    next((trial.output / "masks").glob("b-*/*.zarr/0/mask/c/0/0")).write_bytes(b"")
    (mask.parent / "0.partial").touch()
    again = Row("a shard of another mask is emptied", "on purpose")
    finish(again, trial, reference, ended.report)
    assert again.equal == "NO"
    assert any("left behind" in problem for problem in again.problems)


def test_the_document_shows_a_row_that_is_not_as_it_must_be_and_no_path_of_the_machine(tmp_path: Path) -> None:
    said = plain(f"{tmp_path}/ground/full0/out takes no more", str(tmp_path))
    rows = [Row("good", "so", times=1, equal="yes", said=said), Row("bad", "so", times=2, lost=1, equal="yes")]
    rows += [
        Row("elsewhere", "so", skipped="no mount"),
        Row("unlike", "so", times=1, equal="NO"),
        Row("broken off", "so", times=1),
    ]
    text = document(rows, 27, 60.0)
    assert "| good | so | 1 | 0 | 0 | yes | yes |" in text
    assert "| bad | so | 2 | 1 | 0 | yes | **NO** |" in text
    assert "not run: no mount" in text
    assert "| unlike | so | 1 | 0 | 0 | NO | **NO** |" in text
    assert "| broken off | so | 1 | 0 | 0 | not compared | **NO** |" in text
    assert "**3 rows not as they must be**" in text
    assert str(tmp_path) not in text
    assert "{{" not in text
