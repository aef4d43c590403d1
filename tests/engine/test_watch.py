import ctypes
import os
import signal
import sys
import time

import pytest
from detectron2.utils import comm
from ranks import Child, as_rank, run_ranks

from yolact_d2.engine import watch_ranks

QUICK = {"interval": 0.05, "grace": 0.3}


def watched(body, **options):
    """Run `body` for each rank as `watch_ranks` of a long run would see it, only quicker."""
    with watch_ranks(**{**QUICK, **options}):
        body(comm.get_rank())
    print("went on")


def sleep_as_if_working():
    time.sleep(30)
    print("never told")


def raise_on_1(rank):
    if rank == 1:
        raise ValueError("this image is bad")
    sleep_as_if_working()


def raise_on_0(rank):
    if rank == 0:
        raise ValueError("this image is bad")
    sleep_as_if_working()


@pytest.mark.parametrize("body, failing", [(raise_on_0, 0), (raise_on_1, 1)])
def test_the_others_end_with_the_error_of_the_one_that_raises(tmp_path, body, failing):
    ended = run_ranks(tmp_path, watched, body, world_size=3)
    assert [end.code for end in ended] == [1, 1, 1]
    for rank, end in enumerate(ended):
        assert "never told" not in end.log and "went on" not in end.log
        if rank == failing:
            assert "Traceback" in end.log
            assert end.log.endswith("ValueError: this image is bad\n")
        else:
            assert f"rank {failing}: ValueError: this image is bad" in end.log


def raise_on_both(rank):
    raise ValueError(f"bad {rank}")


def test_errors_at_the_same_time_are_all_told_by_those_who_made_them(tmp_path):
    for rank, end in enumerate(run_ranks(tmp_path, watched, raise_on_both)):
        assert end.code == 1 and f"rank {rank} is gone" not in end.log
        assert end.log.endswith(f"ValueError: bad {rank}\n")


def exit_on_1(rank):
    if rank == 1:
        sys.exit(2)
    sleep_as_if_working()


def test_an_exit_status_is_an_error_that_stays_what_it_is(tmp_path):
    first, second = run_ranks(tmp_path, watched, exit_on_1)
    assert second.code == 2 and "Traceback" not in second.log
    assert first.code == 1 and "rank 1: SystemExit: 2" in first.log


def refuse_on_1(rank):
    if rank == 1:
        try:
            raise ValueError("there is no such file")
        except ValueError:
            sys.exit(2)
    sleep_as_if_working()


def test_what_an_exit_status_stands_for_is_told(tmp_path):
    first, second = run_ranks(tmp_path, watched, refuse_on_1)
    assert second.code == 2
    assert first.code == 1 and "rank 1: ValueError: there is no such file" in first.log


def test_a_run_that_was_paused_goes_on(tmp_path):
    def main():
        watched(lambda rank: time.sleep(1.0), silent=2.0)

    store = f"file://{tmp_path / 'store'}"
    children = [Child(tmp_path / f"{r}.log", as_rank, store, 2, r, main) for r in range(2)]
    time.sleep(0.7)
    for sent, pause in ((signal.SIGSTOP, 3.0), (signal.SIGCONT, 0.0)):
        for child in children:
            os.kill(child.process.pid, sent)
        time.sleep(pause)
    for child in children:
        end = child.end()
        assert end.code == 0 and end.log == "went on\n"


def kill_1(rank):
    time.sleep(0.2)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    sleep_as_if_working()


def kill_0(rank):
    kill_1(1 - rank)


@pytest.mark.parametrize("body, killed", [(kill_0, 0), (kill_1, 1)])
def test_the_others_end_when_one_is_killed(tmp_path, body, killed):
    ended = run_ranks(tmp_path, watched, body, world_size=3)
    assert ended[killed].code == -signal.SIGKILL
    for end in ended[:killed] + ended[killed + 1 :]:
        assert end.code == 1
        assert f"rank {killed} is gone" in end.log and "never told" not in end.log


def test_a_worker_that_outlives_its_process_does_not_hide_that(tmp_path):
    def body(rank):
        if rank == 1:
            worker = os.fork()
            if worker == 0:
                time.sleep(8)
                (tmp_path / "worker has ended").touch()
                os._exit(0)
            (tmp_path / "worker").write_text(str(worker))
            os.kill(os.getpid(), signal.SIGKILL)

    first, _ = run_ranks(tmp_path, watched, body)
    assert not (tmp_path / "worker has ended").exists()
    os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)
    assert first.code == 1 and "rank 1 is gone" in first.log


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize(
    "how, told",
    [("raises", "rank {}: ValueError: this image is bad"), ("is killed", "rank {} is gone")],
)
def test_who_waits_for_the_one_that_fails_says_why(tmp_path, how, told, failing):
    def body(rank):
        if rank != failing:
            comm.synchronize()
        elif how == "raises":
            raise ValueError("this image is bad")
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    end = run_ranks(tmp_path, watched, body)[1 - failing]
    assert end.code == 1 and told.format(failing) in end.log


@pytest.mark.parametrize("stopped", [0, 1])
def test_the_others_end_when_one_hangs(tmp_path, stopped):
    def stop(rank):
        if rank == stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        sleep_as_if_working()

    def main():
        watched(stop, silent=1.0)

    store = f"file://{tmp_path / 'store'}"
    children = [Child(tmp_path / f"{r}.log", as_rank, store, 2, r, main) for r in range(2)]
    end = children[1 - stopped].end()
    assert end.code == 1 and f"rank {stopped} has said nothing for 1 s" in end.log
    children[stopped].process.kill()


def hold_the_lock():
    """Sleep without giving up Python's lock, as json.load of a large file does."""
    ctypes.PyDLL(None).usleep(900_000)


def test_a_long_call_is_not_taken_for_the_end(tmp_path):
    def body(rank):
        if rank == 1:
            hold_the_lock()

    for end in run_ranks(tmp_path, lambda: watched(body, vanished=0.5)):
        assert end.code == 0 and end.log == "went on\n"


def test_an_error_is_told_to_who_is_late_to_listen(tmp_path):
    def body(rank):
        if rank == 1:
            raise ValueError("this image is bad")
        hold_the_lock()
        sleep_as_if_working()

    first, _ = run_ranks(tmp_path, watched, body)
    assert first.code == 1 and "rank 1: ValueError: this image is bad" in first.log
    assert "is gone" not in first.log


def test_who_is_done_waits_for_the_others_and_can_watch_again(tmp_path):
    def main():
        for slow in (0, 1, 2):
            path = tmp_path / f"{slow} is done"

            def body(rank):
                if rank == slow:
                    time.sleep(0.3)
                    path.touch()

            watched(body)
            print(path.exists())

    for end in run_ranks(tmp_path, main, world_size=3):
        assert end.code == 0 and end.log == "went on\nTrue\n" * 3


def die_after_the_others(rank):
    if rank == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)


def test_who_is_done_still_learns_of_an_end(tmp_path):
    first, _ = run_ranks(tmp_path, watched, die_after_the_others)
    assert first.code == 1 and "rank 1 is gone" in first.log and "went on" not in first.log


def test_a_single_process_is_not_watched():
    with pytest.raises(KeyError), watch_ranks():
        raise KeyError
