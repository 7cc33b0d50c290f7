"""How the threads of one operation wait for each other."""

from __future__ import annotations

import os


def waiting_threads_sleep() -> dict[str, str]:
    """What to add to a process's environment before it loads torch, unless the user has decided: OpenMP's threads sleep
    while they wait for each other.

    By default they spin, which serves as long as nothing else wants the cores; where something does, each waits for a
    thread that waits for a core. Beside one busy process, two epochs of the head's training on two cores took a half to
    a sixth of the time with sleeping threads.
    """
    return {} if "OMP_WAIT_POLICY" in os.environ else {"OMP_WAIT_POLICY": "PASSIVE"}
