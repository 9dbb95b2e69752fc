"""Files and directories are written whole or not at all, whoever else writes there."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from perceiver_obs.files import new_directory, remove_abandoned, write_atomic

BEGIN = "import sys\nfrom pathlib import Path\nfrom perceiver_obs.files import *\nfile = Path(sys.argv[1])\n"


def start(script, *arguments):
    """A process that imports what is tested, with the path in `file`; it says "ready" and waits for a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + "print('ready', flush=True)\ninput()\n" + script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go_on(*processes):
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()


def ends_well(process):
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


def test_two_processes_and_two_threads_write_one_file(tmp_path):
    file = tmp_path / "result.json"
    script = "for _ in range(150):\n    write_atomic(file, sys.argv[2].encode() * 1000)\n"
    processes = [start(script, file, letter) for letter in "ab"]
    go_on(*processes)
    failures = []

    def write():
        try:
            for _ in range(50):
                write_atomic(file, b"c" * 1000)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        ends_well(process)
    assert not failures
    assert file.read_bytes() in (b"a" * 1000, b"b" * 1000, b"c" * 1000)
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    file = tmp_path / "new" / "file"
    write_atomic(file, lambda opened: opened.write(b"old"))

    def fail(opened):
        opened.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomic(file, fail)
    with pytest.raises(FileExistsError):
        write_atomic(file, b"other", replace=False)
    assert file.read_bytes() == b"old"
    assert os.listdir(file.parent) == ["file"]
    write_atomic(file, b"other")
    write_atomic(tmp_path / "another", b"one", replace=False)
    assert (file.read_bytes(), (tmp_path / "another").read_bytes()) == (b"other", b"one")


def test_files_have_the_permissions_of_any_new_file(tmp_path):
    write_atomic(tmp_path / "ours", b"")
    (tmp_path / "usual").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_what_is_new_is_of_one_writer_alone(tmp_path):
    script = (
        "won = 0\nfor number in range(100):\n"
        "    try:\n        write_atomic(file / str(number), sys.argv[2].encode(), replace=False)\n        won += 1\n"
        "    except FileExistsError:\n        pass\nprint(won)\n"
    )
    processes = [start(script, tmp_path, letter) for letter in "ab"]
    go_on(*processes)
    won = [int(ends_well(process)) for process in processes]
    assert sum(won) == 100
    content = [(tmp_path / str(number)).read_text() for number in range(100)]
    assert [content.count(letter) for letter in "ab"] == won


@pytest.mark.skipif(sys.platform == "win32", reason="known by age there")
def test_leftovers_of_the_killed_go_and_the_work_of_others_stays(tmp_path):
    script = (
        "def wait(opened):\n    print('writing', flush=True)\n    input()\n    opened.write(b'whole')\n"
        "write_atomic(file, wait)\n"
    )
    alive, killed = (start(script, tmp_path / name) for name in ("alive", "killed"))
    in_directory = start(
        "with new_directory(file) as directory:\n    (directory / 'part').touch()\n"
        "    print('writing', flush=True)\n    input()\n",
        tmp_path / "directory",
    )
    go_on(alive, killed, in_directory)
    for process in (alive, killed, in_directory):
        assert process.stdout.readline() == "writing\n"
    killed.kill()
    killed.communicate()
    foreign = tmp_path / ".others.123.tmp"
    foreign.touch()
    assert len(list(tmp_path.iterdir())) == 4
    remove_abandoned(tmp_path)
    assert sorted(path.name.split(".")[1] for path in tmp_path.iterdir()) == ["alive", "directory", "others"]
    go_on(alive, in_directory)
    ends_well(alive)
    ends_well(in_directory)
    assert (tmp_path / "alive").read_bytes() == b"whole"
    assert sorted(os.listdir(tmp_path)) == [".others.123.tmp", "alive", "directory"]
    assert os.listdir(tmp_path / "directory") == ["part"]


def test_a_directory_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "within" / "directory"

    def break_off():
        with new_directory(path) as directory:
            (directory / "half").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert not os.listdir(path.parent)
    with new_directory(path) as directory:
        (directory / "file").write_text("first")
        assert not path.exists()
    with pytest.raises(FileExistsError), new_directory(path) as directory:
        (directory / "file").write_text("second")
    assert (path / "file").read_text() == "first"
    with new_directory(path, replace=True) as directory:
        (directory / "other").write_text("third")
    assert os.listdir(path) == ["other"]
    assert os.listdir(path.parent) == ["directory"]


def test_a_full_disk_is_named_with_what_is_needed_and_free(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        write_atomic(disk / "file", b"old")
        for content in (bytes(500_000), lambda opened: opened.write(bytes(500_000))):
            needed = "0.5 MB needed, " if isinstance(content, bytes) else ""
            with pytest.raises(OSError, match=rf"disk full while writing {disk}/file .*: {needed}0.1 MB free") as error:
                write_atomic(disk / "file", content)
            assert error.value.errno == errno.ENOSPC
            with pytest.raises(OSError, match="disk full while writing"), new_directory(disk / "new") as directory:
                (directory / "large").write_bytes(bytes(500_000))
        assert (disk / "file").read_bytes() == b"old"
        assert os.listdir(disk) == ["file"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_nothing_else_in_the_project_writes_by_rename():
    """One atomic write, in one place."""
    root = Path(__file__).parent.parent
    for package in ("perceiver_obs", "envs", "agents", "benchmarks"):
        for file in (root / package).rglob("*.py"):
            if file != root / "perceiver_obs" / "files.py":
                text = file.read_text()
                assert "os.replace" not in text, file
                assert "os.rename" not in text, file
                assert "shutil.move" not in text, file
