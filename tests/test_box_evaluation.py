"""Tables of boxes judged in worker processes: in order, a few at a time, without torch."""

from __future__ import annotations

import subprocess
import sys

from surgerylib.engine.evaluate import evaluate


def test_results_come_in_the_order_of_the_tables():
    numbers = [5, -3, 8, 0, -7, 2, 9]
    for workers in (1, 2):
        assert list(evaluate(abs, iter(numbers), workers=workers)) == [abs(number) for number in numbers]
    assert list(evaluate(abs, [], workers=2)) == []


def test_no_more_tables_are_held_than_are_evaluated_together():
    taken = []

    def tables():
        for number in range(-9, 0):
            taken.append(number)
            yield number

    found = evaluate(abs, tables(), workers=6)
    assert next(found) == 9
    assert len(taken) == 4
    assert list(found) == [8, 7, 6, 5, 4, 3, 2, 1]


def test_a_worker_need_not_load_torch():
    code = "import sys, surgerylib.engine.box_evaluation; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
