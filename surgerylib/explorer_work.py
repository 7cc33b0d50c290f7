"""What the explorer does in the background, with its progress bar, and the one line that says what happened."""

from __future__ import annotations

import io
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from html import escape
from typing import Any

import ipywidgets as widgets
from tqdm import tqdm

from .errors import SurgeryError


class Work:
    """One thread for what takes long, so that the kernel goes on answering; of several that wait, the newest is done.

    Attributes:
        busy: `progress`, a bar, and `doing`, what is being done; hidden while nothing is.
        line: the last error, or what was done.
        lock: held while the widget's state changes.
        traceback: of the last error that is a bug of this package; empty while there was none.
    """

    def __init__(self) -> None:
        self.line = widgets.HTML()
        self.progress = widgets.IntProgress(min=0, max=1, layout=widgets.Layout(width="160px"))
        self.doing = widgets.Label()
        self.busy = widgets.HBox([self.progress, self.doing], layout=widgets.Layout(min_height="32px"))
        self.lock = threading.RLock()
        self.traceback = ""
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="explorer")
        self._job: Future | None = None
        self._newest = 0

    def begin(
        self, doing: str, compute: Callable[[], Any], then: Callable[[Any], None], finally_: Callable[[], None]
    ) -> None:
        """Compute in the background, then go on with the result under the lock, unless something newer has begun.

        Args:
            doing: what the line beside the bar says.
            compute: without a widget.
            then: takes the result.
            finally_: called at the end, also after an error.
        """
        self._newest += 1
        number = self._newest
        self.progress.value, self.progress.max = 1, 1
        self.doing.value = f"{doing} …"
        self.busy.layout.visibility = "visible"

        def work() -> None:
            if number != self._newest:
                return
            with self.errors():
                result = compute()
                with self.lock:
                    if number == self._newest:
                        self.say("")
                        then(result)
            with self.lock:
                if number == self._newest:
                    self.busy.layout.visibility = "hidden"
                    finally_()

        self._job = self._pool.submit(work)

    def wait(self, timeout: float) -> None:
        """Until nothing runs in the background.

        Raises:
            TimeoutError: something does, after so many seconds.
        """
        while (job := self._job) is not None:
            job.result(timeout)
            if job is self._job:
                return

    @contextmanager
    def errors(self) -> Iterator[None]:
        """An error inside becomes the line."""
        try:
            yield
        except SurgeryError as error:
            self.say(str(error), error=True)
        except Exception as error:  # a bug of ours: one line too, and the rest for whoever reports it
            self.traceback = traceback.format_exc()
            self.say(
                f"a bug of the workbook ({type(error).__name__}: {error}); report explorer.work.traceback", error=True
            )

    def say(self, text: str, *, error: bool = False) -> None:
        """Set the line; an empty text takes it away."""
        role, style = ("alert", "error") if error else ("status", "said")
        text = escape(" ".join(text.split()))
        self.line.value = f'<div class="explorer-line {style}" role="{role}">{text}</div>' if text else ""

    @property
    def bar(self) -> type[tqdm]:
        """A tqdm that shows its progress in the widget."""
        progress, doing = self.progress, self.doing

        class Bar(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "file": io.StringIO(), "delay": 0, "mininterval": 0.1})
                progress.value, progress.max = 0, max(self.total or 1, 1)

            def display(self, *args: Any, **options: Any) -> None:
                progress.value, doing.value = self.n, f"{self.desc}: {self.n:,} of {self.total:,}"

        return Bar
