import threading
import time

import pytest
import torch

from surgerylib.engine.streams import in_streams, n_streams


def test_results_come_in_the_order_of_the_batches_however_long_each_takes():
    def slow_first(batch: int) -> int:
        time.sleep(0.05 if batch == 0 else 0)
        return batch * 10

    assert list(in_streams(slow_first, range(7), 3)) == [0, 10, 20, 30, 40, 50, 60]


def test_batches_are_computed_at_once_with_a_share_of_the_threads_each():
    before, together = torch.get_num_threads(), threading.Barrier(2, timeout=10)
    torch.set_num_threads(4)
    try:

        def threads(batch: int) -> int:
            together.wait()  # breaks where batches come one after the other
            return torch.get_num_threads()

        assert list(in_streams(threads, range(6), 2)) == [2] * 6
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), later) == (4, [4])
    finally:
        torch.set_num_threads(before)


def test_an_error_comes_in_its_turn_and_leaves_the_threads_as_they_were():
    before = torch.get_num_threads()
    found: list[int] = []

    def fails(batch: int) -> int:
        if batch == 2:
            raise ValueError("the third")
        return batch

    with pytest.raises(ValueError, match="the third"):
        found.extend(in_streams(fails, range(10), 2))
    assert found == [0, 1]
    assert torch.get_num_threads() == before


def test_no_more_batches_are_taken_than_one_ahead():
    taken: list[int] = []

    def batches():
        for batch in range(10):
            taken.append(batch)
            yield batch

    results = in_streams(lambda batch: batch, batches(), 2)
    assert next(results) == 0
    assert taken == [0, 1, 2]
    results.close()


def test_no_batch_gives_nothing():
    assert list(in_streams(abs, [], 2)) == []


def test_a_gpu_computes_a_batch_after_the_other():
    assert n_streams(torch.device("cuda")) == 1
    assert 1 <= n_streams(torch.device("cpu")) <= 4
