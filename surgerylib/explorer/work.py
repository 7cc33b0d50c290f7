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

from ..errors import SurgeryError


class Work:
    """One thread for what takes long, so that the kernel goes on answering."""

    def __init__(self) -> None:
        self.line = widgets.HTML()  # the last error, or what was done
        self.progress = widgets.IntProgress(min=0, max=1, layout=widgets.Layout(width="110px"))
        self.doing = widgets.Label()
        self.busy = widgets.HBox([self.progress, self.doing], layout=widgets.Layout(min_height="32px"))
        self.lock = threading.RLock()  # held while the widget's state changes
        self.traceback = ""  # of the last error that is a bug of this package
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="explorer")
        self._job: Future | None = None
        self._newest: dict[str, int] = {}
        self._pending = 0

    def begin(
        self, doing: str, compute: Callable[[], Any], then: Callable[[Any], None], *, kind: str,
        finally_: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Compute in the background, then go on with the result under the lock.

        Args:
            doing: what the line beside the bar says.
            compute: without a widget.
            then: takes the result.
            kind: of those of one kind that wait only the newest is done.
            finally_: called at the end, also after an error, unless a newer one of its kind has begun.
        """
        with self.lock:
            self._newest[kind] = number = self._newest.get(kind, 0) + 1
            self._pending += 1
            self._show(doing)

        def is_newest() -> bool:
            return self._newest[kind] == number

        def work() -> None:
            if is_newest():
                self._show(doing)
                with self.errors():
                    result = compute()
                    with self.lock:
                        if is_newest():
                            self.say("")
                            then(result)
            with self.lock:
                self._pending -= 1
                if is_newest():
                    finally_()
                if not self._pending:
                    self.busy.layout.visibility = "hidden"

        self._job = self._pool.submit(work)

    def close(self) -> None:
        """Begin nothing more; what runs comes to its end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _show(self, doing: str) -> None:
        self.progress.value, self.progress.max, self.doing.value = 1, 1, f"{doing} …"
        self.busy.layout.visibility = "visible"

    def wait(self, timeout: float) -> None:
        """Until nothing runs in the background; a `TimeoutError` after so many seconds."""
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
            what = f"{type(error).__name__}: {error}"
            self.say(f"a bug of the workbook ({what}); report explorer.work.traceback", error=True)

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
