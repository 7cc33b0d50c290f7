"""The interactive explorer: pick an image, type a phrase, drag a threshold, and see heatmap and boxes move.

A thin layer of ipywidgets over `exploration`. What takes long (a data set, the model, a forward) runs in a thread of
its own; a slider is answered at once, where it is called. An error is a line in the widget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from ..clip import load_clip
from ..datasets import Dataset, dataset_splits, decode_image, load_dataset, read_image
from ..embedded import write_scenes
from ..engine import load_adapters
from ..errors import ParameterError, SurgeryError
from ..figures import figure_bytes
from ..files import EMBEDDED, PROJECT_ROOT, atomic_write, checkpoint_file, dataset_folder, project_path
from ..study import FEW_IMAGES, warnings_for
from . import drawing as view
from .controls import ANY_CLASS, Controls
from .export import Origin, python_call, setting_yaml
from .stage import Stage
from .view_model import Album, Exploration, Look, Shown, Subject, look
from .widgets import Panel, box
from .work import Work

_AT_ONCE = 3  # new phrases that are read where they are typed: 0.12 s with ViT-B/32 on two cores


class Explorer:
    """A widget to look at images, heatmaps and boxes: leave it as the last line of a cell.

    Attributes:
        controls: the controls, by name.
        stage: what is shown.
        work: what runs in the background; `wait` waits for it.
        note: what a reader must know of the model.
        widget: all of it.
    """

    def __init__(self, *, save_dir: str = "reports/explorer", **origin: Any) -> None:
        """Show the controls at once, and load in the background. Wrong values become a line in the widget.

        Args:
            save_dir: where views are saved, relative to the project.
            origin: model and data as in the notebooks: `dataset`, `split`, `model`, `checkpoint`, `image_size`,
                `depth`, `device`, and `adapter`, the trained heatmap adapters to switch on, a file or a folder of them.
        """
        self._values = {**origin, "dataset": str(origin.get("dataset", EMBEDDED))}
        self._origin = Origin()
        self._save_dir = save_dir
        self._exploration: Exploration | None = None
        self._album: Album | None = None
        self._wanted: tuple[str, str, Callable[[], Subject]] | None = None  # the image last asked for, read or not
        self._shown: Shown | None = None
        self._asked: tuple[str, ...] = ()
        self._picked: str | None = None  # of what is asked, what the reader last chose to see
        self._quiet = False  # while the explorer itself sets controls
        self.work = Work()
        split, has_adapter = origin.get("split", self._origin.split), origin.get("adapter") is not None
        self.controls = Controls(dataset=self._values["dataset"], split=split, has_adapter=has_adapter)
        self.stage = Stage(self.controls.opacity)
        self.note, self._code = widgets.HTML(), widgets.HTML()
        code = widgets.Accordion([self._code], titles=("Python",), selected_index=None)
        top = box(self.controls.keep, self.work.busy, kind=widgets.HBox, flex_flow="row wrap")
        parts = (top, self.work.line, self.note, self.stage.widget, code)
        columns = (self.controls.main, box(*parts, names="explorer-view", align_items="stretch"), self.controls.more)
        layout = box(*columns, names="explorer-layout", kind=widgets.Box, display="grid")
        self.widget = box(layout, names="clip-explorer", align_items="stretch")
        self._listen()
        self.work.begin("loading the model", self._load_model, self._take_model, kind="model")

    def _ipython_display_(self) -> None:
        display(self.widget)

    def wait(self, timeout: float = 120) -> None:
        """Until nothing runs in the background; a `TimeoutError` after so many seconds."""
        self.work.wait(timeout)

    def close(self) -> None:
        """Take the widget away and let go of the model: widgets live as long as their kernel."""
        self.work.close()
        self.widget.close()
        self._exploration = self._shown = self._wanted = None

    @property
    def dataset(self) -> Dataset | None:
        """The split that is open; None until it is read."""
        return self._album.dataset if self._album else None

    @property
    def shown(self) -> Shown:
        """What is shown: image, question, answers and ground truth; an error while nothing is."""
        if self._shown is None:
            raise ParameterError("nothing is shown: wait for an image, or mend what the line above the panels says")
        return self._shown

    def python_call(self) -> str:
        """Python that gives the same boxes."""
        return python_call(self._origin_of(self.shown), self.shown, self._exploration)

    def setting_yaml(self) -> str:
        """The setting as parameters of the workbook."""
        return setting_yaml(self._origin_of(self.shown), self.shown)

    def save(self) -> tuple[Path, Path]:
        """Write the present view as PNG and its setting as YAML, beside what was saved before."""
        return self._writer()()

    def _writer(self) -> Callable[[], tuple[Path, Path]]:
        """`save` of what is shown now, whenever it is called."""
        shown, setting, patch = self.shown, self.setting_yaml(), self.stage.patch
        opacity, outline = self.controls.opacity.value, self.controls.outline.value
        words = f"{Path(shown.subject.name).stem}_{shown.question.shown}"
        stem = "".join(c if c.isalnum() or c in "-_" else "_" for c in words)[:80]
        kinds = ", ".join(shown.question.kinds)
        alt = f"{shown.subject.name}, “{shown.question.shown}”: heatmaps of {kinds} with boxes"
        if not isinstance(self._save_dir, str | Path):
            raise ParameterError(f"save_dir is {self._save_dir!r}; it must be a folder, such as reports/explorer")
        folder = project_path(self._save_dir)

        def write() -> tuple[Path, Path]:
            drawn = figure_bytes(view.figure(shown, patch=patch, opacity=opacity, outline=outline), "png", alt)
            targets = (folder / f"{stem}_{number:02d}" for number in count(1))
            target = next(to for to in targets if not any(to.with_suffix(end).exists() for end in (".png", ".yaml")))
            yaml_file = atomic_write(target.with_suffix(".yaml"), setting)
            return atomic_write(target.with_suffix(".png"), drawn), yaml_file

        return write

    def _origin_of(self, shown: Shown) -> Origin:
        size = shown.seen.image_size
        return replace(self._origin, image_size=None if size == self._exploration.clip.image_size else size)

    def _ready(self) -> Exploration:
        if self._exploration is None:
            raise ParameterError("there is no model: wait, or mend what was wrong with it and run the cell again")
        return self._exploration

    def _listen(self) -> None:
        own = self.controls
        reactions = {
            self._refresh: [*own.of_question, own.outline],
            self._pick: [own.shown],
            self._ask: [own.ask, own.words],
            self._look_again: [own.image_size],
            self._filter: [own.with_class],
            self._find: [own.find],
            self._open_path: [own.path],
            self._open_upload: [own.upload],
            self._open: [own.split],
            self._offer_splits: [own.dataset],
        }
        for react, controls in reactions.items():
            for control in controls:
                control.observe(self._guarded(react), "value")
        own.open.on_click(self._guarded(self._open))
        for button, by in ((own.previous, -1), (own.next, 1)):
            button.on_click(self._guarded(partial(self._go, to=by)))
        own.save.on_click(self._guarded(self._save))
        for panel in self.stage.all:
            panel.observe(self._guarded(partial(self._point, panel)), ["pointed", "pinned"])

    def _guarded(self, react: Callable[[], None]) -> Callable[[Any], None]:
        """A callback whose errors become a line, and that sleeps while the explorer itself sets controls."""

        def call(_: Any) -> None:
            with self.work.lock, self.work.errors():
                if not self._quiet:
                    react()

        return call

    @contextmanager
    def _set(self) -> Iterator[None]:
        """Controls are set inside without a reaction to them."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _load_model(self) -> Exploration:
        self._origin = origin = Origin(**self._values)
        weights = checkpoint_file(origin.checkpoint) or origin.checkpoint
        clip = load_clip(origin.model, weights, device=origin.device, depth=origin.depth)
        adapters = load_adapters(origin.adapter, clip) if origin.adapter is not None else {}
        return Exploration(clip, adapters=adapters)

    def _take_model(self, exploration: Exploration) -> None:
        self._exploration = exploration
        self._show_notes()
        with self._set():
            self.controls.take_model(exploration.clip, self._origin.image_size)
        self._open()

    def _show_notes(self) -> None:
        """What must be known of the weights and of the data set."""
        weights = self._exploration.clip.weights
        notes = warnings_for(n_images=FEW_IMAGES, saw_dior=weights.saw_dior, random_weights=weights.random)
        if self._album is not None and len(skipped := self._album.dataset.skipped):
            first = f"{skipped['image_id'].iloc[0]}: {skipped['reason'].iloc[0]}"
            notes.append(f"{self._album.dataset.count_skipped()} left out, such as {first}")
        self.note.value = "".join(f'<p class="explorer-note">Note: {escape(note)}</p>' for note in notes)

    def _offer_splits(self) -> None:
        """The splits of the folder that was typed in, and the images of one of them."""
        splits = _splits(self.controls.dataset.value.strip())
        with self._set():
            self.controls.take_splits(splits, "test" if "test" in splits else splits[0])
        self._open()

    def _open(self) -> None:
        """Read the split that the controls name."""
        exploration = self._ready()
        name, split = self.controls.dataset.value.strip(), self.controls.split.value

        def read() -> tuple[Dataset, list[str]]:
            folder, embedded = dataset_folder(name)
            if embedded:
                write_scenes(folder, progress=self.work.bar)
            # one damaged image need not keep anybody from looking at the others
            dataset = load_dataset(folder, split, on_bad_image="skip", decode=False, progress=self.work.bar)
            exploration.text(dataset.classes)
            return dataset, _splits(name)

        def take(found: tuple[Dataset, list[str]]) -> None:
            dataset, splits = found
            self._origin = replace(self._origin, dataset=name, split=split)
            self._album, exploration.classes = Album(dataset), dataset.classes
            self._show_notes()
            with self._set():
                self.controls.take_splits(splits, split)
                self.controls.take_classes(self._album.n_images)
            self._go()

        self.controls.enable(False)
        self._begin_image(f"reading {split} of {name}", read, take)

    def _begin_image(self, doing: str, compute: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self.work.begin(doing, compute, then, kind="image", finally_=partial(self.controls.enable, True))

    def _go(self, go: Callable[..., None] = Album.step, to: Any = 0) -> None:
        """Show the image of the data set that lies there."""
        if (album := self._album) is None:
            raise ParameterError("no data set is open: name one, or an image file")
        go(album, to)
        image_id = album.image_id
        self._look(image_id, album.position, lambda: album.subject(image_id))

    def _filter(self) -> None:
        """Only the images that hold a class, which is shown then."""
        label = self.controls.with_class.value
        self._picked = self._picked if label == ANY_CLASS else label
        self._go(Album.take, None if label == ANY_CLASS else label)

    def _find(self) -> None:
        if name := self.controls.find.value.strip():
            self._go(Album.find, name)
            with self._set():
                self.controls.with_class.value = ANY_CLASS

    def _open_path(self) -> None:
        if path := self.controls.path.value.strip():
            file = project_path(path)
            self._look(file.name, file.name, lambda: Subject(file.name, str(file), read_image(file)))

    def _open_upload(self) -> None:
        if self.controls.upload.value:
            name, data = self.controls.upload.value[0]["name"], bytes(self.controls.upload.value[0]["content"])
            self._look(name, name, lambda: Subject(name, "", decode_image(data, name)))

    def _look_again(self) -> None:
        if self._wanted is not None:
            self._look(*self._wanted)

    def _look(self, name: str, position: str, subject_of: Callable[[], Subject]) -> None:
        """One forward in the background, then the answers."""
        exploration, size = self._ready(), self.controls.image_size.value or None
        self._wanted = (name, position, subject_of)

        def see() -> tuple[Subject, Look]:
            subject = subject_of()
            return subject, look(exploration.clip, subject.image, size)

        def take(seen: tuple[Subject, Look]) -> None:
            exploration.show(*seen)
            self.stage.show_subject(*seen)
            self.controls.position.value = position
            with self._set():
                self.controls.clear()
            self._ask()

        self._begin_image(f"looking at {name}", see, take)

    def _ask(self) -> None:
        """The list in force, or the image, may be another: offer the list, and choose what of it is shown."""
        exploration = self._ready()
        self.controls.depend()
        if exploration.subject is None:
            return
        with self._blank_after_error():
            asked = self.controls.asked(exploration.classes)
        if len(unread := exploration.unread(asked)) > _AT_ONCE:
            doing = f"reading {len(unread)} phrases"
            self.work.begin(doing, lambda: exploration.text(asked), lambda _: self._take_asked(asked), kind="words")
        else:
            self._take_asked(asked)

    def _take_asked(self, asked: tuple[str, ...]) -> None:
        """Show a phrase that is new, else what the reader picked, else a class that the image holds."""
        new = [name for name in asked if name not in self._asked and name not in self._exploration.classes]
        self._picked = new[0] if new else self._picked if self._picked in asked else None
        self._asked = asked
        present = self._exploration.subject.truth["label"]
        shown = self._picked or next((name for name in present if name in asked), asked[0])
        with self._set():
            self.controls.shown.options = asked
            self.controls.shown.value = shown
        self._refresh()

    def _pick(self) -> None:
        self._picked = self.controls.shown.value
        self._refresh()

    def _refresh(self) -> None:
        """Answer the question and show it; the image's forward is not repeated."""
        exploration = self._ready()
        self.controls.depend()
        if exploration.subject is None:
            return
        with self._blank_after_error():
            self._shown = exploration.ask(self.controls.question(self._asked))
        self.work.say("")
        self.stage.show_answers(self._shown, outline=self.controls.outline.value)
        self.stage.show_patch(self._shown)
        self._offer_code(self.python_call())

    @contextmanager
    def _blank_after_error(self) -> Iterator[None]:
        try:
            yield
        except SurgeryError:
            self._shown = None
            self.stage.blank()
            self._offer_code("")
            raise

    def _offer_code(self, code: str) -> None:
        self.controls.copy.text = code
        self._code.value = f'<pre class="explorer-code" tabindex="0">{escape(code)}</pre>'

    def _point(self, panel: Panel) -> None:
        if self.stage.point(panel):
            self.stage.show_patch(self._shown)

    def _save(self) -> None:
        def say(saved: tuple[Path, Path]) -> None:
            picture, setting = saved
            shown = picture.relative_to(PROJECT_ROOT) if picture.is_relative_to(PROJECT_ROOT) else picture
            self.work.say(f"saved {shown} and {setting.name}")

        self.work.begin("saving", self._writer(), say, kind="save")


def _splits(name: str) -> list[str]:
    """The splits of a data set as a notebook names it."""
    folder, embedded = dataset_folder(name)
    return ["train", "val", "test", "trainval"] if embedded else dataset_splits(folder)
