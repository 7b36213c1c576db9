import json
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import permutations

import pytest
from strange_shop import ROWS, SCHEMA, build, contents, make_shop, sharding, spec

from facetclip import faults, shards
from facetclip.catalog import read_catalog
from facetclip.claims import lease_path
from facetclip.cli import main
from facetclip.downloads import FetchSpec
from facetclip.errors import UserError
from facetclip.index import INDEX_NAME
from facetclip.lease import STALE_AFTER, Held, Lease
from facetclip.portions import WHOLE, Portion, launched_portion, parse_portion
from facetclip.shards import build_portion
from facetclip.slices import PARTS


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one process makes of the shop."""
    shop = make_shop(tmp_path_factory.mktemp("whole"))
    build(shop)
    return contents(shop / "shards")


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "PATIENCE", 0.3)
    return make_shop(tmp_path)


def build_part(shop, number, of, **more):
    return build_portion(read_catalog(str(shop / "catalog.csv")), SCHEMA, spec(shop, **more), Portion(number, of))


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_portions_in_any_order_give_the_bytes_of_one_process(shop, whole, order):
    reports = [build_part(shop, number, 3) for number in order]
    assert reports[:2] == [None, None], "the index is there only when every shard is"
    assert reports[2]
    assert reports[2].samples == ROWS
    assert contents(shop / "shards") == whole


def test_more_portions_than_shards_and_portions_done_twice(shop, whole):
    for number in [*range(7), 2, 0]:
        build_part(shop, number, 7)
    assert contents(shop / "shards") == whole


def test_a_lost_portion_is_done_again_alone(shop, whole):
    for number in (0, 2):
        build_part(shop, number, 3)
    kept = {path: path.stat().st_mtime_ns for path in (shop / "shards").glob("*.tar")}
    report = build_part(shop, 1, 3)
    assert report
    assert report.reused == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert contents(shop / "shards") == whole


def test_without_a_part_the_command_does_whatever_is_missing(shop, whole):
    build_part(shop, 1, 3)
    assert build(shop).reused == 2
    assert contents(shop / "shards") == whole


def test_another_division_goes_on_with_the_same_shards(shop, whole):
    build_part(shop, 0, 3)
    assert build_part(shop, 0, 2) is None
    report = build_part(shop, 1, 2)
    assert report
    assert report.reused == 1, "shard 3 was part 0/3's"
    assert contents(shop / "shards") == whole


@pytest.mark.parametrize(
    ("held", "asked", "refused"),
    [
        (Portion(1, 3), Portion(1, 3), True),
        (Portion(1, 3), Portion(1, 2), True),
        (Portion(1, 3), WHOLE, True),
        (WHOLE, Portion(0, 3), True),
        (Portion(1, 3), Portion(0, 3), False),
    ],
)
def test_no_two_processes_write_the_same_shards(shop, held, asked, refused):
    lease = Lease(lease_path(shop / "shards" / PARTS, held), "")
    if refused:
        with pytest.raises(Held, match=f"process {os.getpid()} on .* is packing part {held} of these shards"):
            build_part(shop, asked.number, asked.of)
        assert not list((shop / "shards").glob("*.tar"))
    else:
        assert build_part(shop, asked.number, asked.of) is None
    lease.release()
    build_part(shop, asked.number, asked.of)
    assert list((shop / "shards").glob("*.tar"))


@pytest.mark.parametrize("age", [0, STALE_AFTER + 1])
def test_a_machine_whose_locks_are_not_seen_holds_its_portion_while_it_renews(shop, age):
    path = lease_path(shop / "shards" / PARTS, Portion(1, 3))
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"host": "other", "pid": 7, "renewed": time.time() - age}))
    assert socket.gethostname() != "other"
    if not age:
        with pytest.raises(Held, match="process 7 on other is packing part 1/3"):
            build_part(shop, 1, 3)
    else:
        assert build_part(shop, 1, 3) is None


def test_what_a_killed_portion_left_is_cleared_by_itself_alone(shop):
    (shop / "shards" / PARTS).mkdir(parents=True)
    left = [shop / "shards" / f".shard-00000{number}.tar.ab12.tmp" for number in (0, 1)]
    for path in left:
        path.write_bytes(b"half")
    other = Lease(lease_path(shop / "shards" / PARTS, Portion(0, 3)), "")
    build_part(shop, 1, 3)
    other.release()
    assert [path.exists() for path in left] == [True, False]


def test_a_portion_of_other_inputs_is_refused(shop):
    build_part(shop, 0, 3)
    with pytest.raises(UserError, match="unfinished build of another catalog"):
        build_part(shop, 1, 3, seed=1)


def test_bad_images_are_counted_over_all_portions(shop):
    for number in (2, 12, 22):  # in shards 0, 1 and 2
        (shop / "photos" / "a" / f"{number}.jpg").unlink()
    assert [build_part(shop, number, 3, max_bad=0.05) for number in (0, 1)] == [None, None]
    with pytest.raises(UserError, match=r"3 of 40 images cannot be used \(3 not_found\).* allows 2"):
        build_part(shop, 2, 3, max_bad=0.05)
    assert not (shop / "shards" / INDEX_NAME).exists()


def test_a_tar_that_went_missing_is_not_indexed(shop, whole):
    build_part(shop, 0, 2)
    (shop / "shards" / "shard-000002.tar").unlink()
    assert build_part(shop, 1, 2) is None
    build_part(shop, 0, 2)
    assert contents(shop / "shards") == whole


def test_portions_do_not_share_a_folder_of_downloads(shop):
    with pytest.raises(UserError, match="--downloads: parts cannot share one folder"):
        build_part(shop, 0, 2, fetch=FetchSpec(folder=shop / "kept"))


@pytest.mark.parametrize("place", ["shards.after_portion", "shards.before_index", "shards.after_index"])
def test_a_portion_stopped_at_the_last_step_does_it_when_it_runs_again(shop, whole, monkeypatch, place):
    build_part(shop, 0, 2)

    def stop(reached):
        if reached == place:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(faults, "reach", stop)
        with pytest.raises(KeyboardInterrupt):
            build_part(shop, 1, 2)
    report = build_part(shop, 1, 2)
    assert report
    assert report.samples == ROWS
    assert contents(shop / "shards") == whole


RUN = """
import os, sys
from pathlib import Path
from facetclip.catalog import read_catalog
from facetclip.portions import Portion
from facetclip.schema import Schema
from facetclip.shards import ShardSpec, build_portion

if __name__ == "__main__":
    shop, of, schema = Path(sys.argv[1]), int(sys.argv[2]), Schema.from_json(sys.argv[3])
    spec = ShardSpec(shop / "shards", shop / "photos", 64, samples_per_shard=9)
    catalog = read_catalog(str(shop / "catalog.csv"))
    build_portion(catalog, schema, spec, Portion(int(os.environ["RANK"]), of))
"""


def launch(shop, of, fault=""):
    (shop / "run.py").write_text(RUN)
    command = [sys.executable, str(shop / "run.py"), str(shop), str(of), SCHEMA.to_json()]
    environment = {**os.environ, "FACETCLIP_FAULT": fault}
    portions = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}) for rank in range(of)]
    return [portion.wait(timeout=60) for portion in portions]


def test_portions_at_once_one_of_them_killed_and_run_again(shop, whole):
    assert launch(shop, 2, fault="shards.after_tar:2@1") == [0, -signal.SIGKILL]
    assert not (shop / "shards" / INDEX_NAME).exists()
    assert launch(shop, 2) == [0, 0]
    assert contents(shop / "shards") == whole


def test_a_portion_that_is_packed_leaves_the_last_step_to_whoever_is_at_it(shop):
    build_part(shop, 0, 2)
    lease = Lease(lease_path(shop / "shards" / PARTS, WHOLE), "is at the last step")
    assert build_part(shop, 0, 2) is None
    with pytest.raises(Held, match="is packing part 0/1"):
        build_part(shop, 1, 2)
    lease.release()


def test_the_command_takes_its_part_from_the_option_or_the_launcher(shop, monkeypatch, capsys, whole):
    command = sharding(shop)
    assert main([*command, "--part", "1/2"]) == 0
    assert "part 1/2 is packed" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command) == 0
    assert "40 items in 1 shard (" in capsys.readouterr().out
    assert main([*command, "--part", "2/2"]) == 2
    assert "counted from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "a/2", "-1/2", "2/2", "0/0", "1/2/3"])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="part"):
        parse_portion(text)


def test_portions_share_everything_without_overlap():
    for of in range(1, 9):
        taken = [piece for number in range(of) for piece in Portion(number, of).among(20)]
        assert sorted(taken) == list(range(20))


ARRAY = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "3"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, WHOLE),
        ({"RANK": "0", "WORLD_SIZE": "1"}, WHOLE),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Portion(1, 2)),
        (ARRAY, Portion(2, 4)),
        ({**ARRAY, "RANK": "1", "WORLD_SIZE": "2"}, Portion(5, 8)),
    ],
)
def test_the_launcher_says_which_portion_a_process_has(environment, expected):
    assert launched_portion(environment) == expected


@pytest.mark.parametrize("task", [{"SLURM_ARRAY_TASK_ID": "9"}, {"SLURM_ARRAY_TASK_ID": "x"}])
def test_an_array_with_gaps_is_refused(task):
    with pytest.raises(UserError, match="SLURM"):
        launched_portion({**ARRAY, **task})
