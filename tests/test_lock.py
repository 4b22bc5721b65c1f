"""A lock keeps a second process off, and outlives no process."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Heard

from fastscape._lock import InUseError, Lock, _own

HOLD = """
import os, sys
from fastscape._lock import Lock
lock = Lock(sys.argv[1], "the folder", "wait")
os.write(int(os.environ["READY"]), b"x")
os.read(0, 1)
"""


def lock(path):
    return Lock(path, "--out run", "choose another")


def test_a_lock_names_its_process_and_is_gone_when_released(tmp_path):
    path = tmp_path / "a.lock"
    with lock(path) as held:
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(InUseError, match=r"--out run is in use by this process \(lock file .*a\.lock\); choose another"):
            lock(path)
    assert not path.exists()
    held.release()
    lock(path).release()


def test_a_lock_that_is_dropped_is_released(tmp_path):
    held = lock(tmp_path / "a.lock")
    del held
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_living_process_keeps_its_lock_and_a_killed_one_loses_it(tmp_path):
    path = tmp_path / "a.lock"
    with Heard([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, cwd=Path(__file__).parents[1]) as other:
        other.wait_until_ready()
        with pytest.raises(InUseError, match=f"in use by process {other.process.pid} "):
            lock(path)
        other.process.kill()
        other.process.wait()
        other.process.stdin.close()
    assert path.exists()
    with lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_an_id_that_was_given_again_to_a_later_process_holds_nothing(tmp_path):
    path = tmp_path / "a.lock"
    path.write_text(json.dumps(_own() | {"pid": os.getppid(), "started": 1.0}))
    lock(path).release()


@pytest.mark.parametrize("content", [b"", b'{"pid": ', b"[]", b"\xff", b'{"pid": "a"}'])
def test_a_lock_whose_process_died_while_writing_it_is_taken_over(tmp_path, content):
    path = tmp_path / "a.lock"
    path.write_bytes(content)
    with lock(path):
        assert json.loads(path.read_text()) == _own()


def test_the_lock_of_another_machine_is_kept_with_the_remedy(tmp_path):
    path = tmp_path / "a.lock"
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": 1.0}))
    with pytest.raises(InUseError, match="process 1 of elsewhere"):
        lock(path)


def test_a_child_process_leaves_the_lock_of_its_parent(tmp_path):
    path = tmp_path / "a.lock"
    program = (
        "import os, sys\n"
        "from fastscape._lock import Lock\n"
        "lock = Lock(sys.argv[1], 'a', 'b')\n"
        "if os.fork() == 0:\n"
        "    sys.exit(0)\n"
        "os.wait()\n"
        "assert os.path.exists(sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, cwd=Path(__file__).parents[1])
    assert not path.exists()
