"""The interactive explorer: pick an image, type a phrase, drag a threshold, and see heatmap and boxes move.

A thin layer of ipywidgets over `exploration`. What takes long (a data set, the model, a forward) runs in a thread of
its own; a slider is answered at once, where it is called. An error is a line in the widget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from IPython.display import display

from . import exploration_view as view
from .adapted_store import load_adapters
from .clip import load_clip
from .datasets import Dataset, dataset_splits, load_dataset
from .errors import ParameterError, SurgeryError
from .exploration import Answer, Exploration, Look, Question, Subject, held_against, look
from .exploration_export import Origin, python_call, setting_yaml
from .explorer_controls import ANY_CLASS, Controls
from .explorer_stage import Stage
from .explorer_work import Work
from .files import atomic_write
from .frames import BOX_COLUMNS
from .images import decode_image, read_image
from .locations import PROJECT_ROOT, checkpoint_file, dataset_folder
from .plots import figure_bytes
from .scenes import write_scenes


class Explorer:
    """A widget to look at images, heatmaps and boxes: leave it as the last line of a cell.

    Attributes:
        controls: the controls, by name.
        stage: what is shown.
        work: what runs in the background; `wait` waits for it.
        widget: all of it.
        dataset: the split that is open; None until it is read.
    """

    def __init__(
        self,
        *,
        dataset: str = "embedded",
        split: str = "test",
        model: str = "embedded",
        checkpoint: str | None = None,
        adapter: str | None = None,
        image_size: int | None = None,
        depth: int = 6,
        device: str = "auto",
        save_dir: str = "reports/explorer",
    ) -> None:
        """Show the controls at once, and load in the background. Wrong values become a line in the widget.

        Args:
            dataset, split, model, checkpoint, image_size, depth, device: as in the notebooks.
            adapter: trained heatmap adapters to switch on, a file or a folder of them; None for none.
            save_dir: where views are saved, relative to the project.
        """
        self.dataset: Dataset | None = None
        self._origin = Origin(dataset, split, model, checkpoint, depth, adapter, image_size)
        self._device, self._save_dir = device, PROJECT_ROOT / save_dir
        self._exploration: Exploration | None = None
        self._order = np.empty(0, dtype=np.int64)  # of the images that next and previous go through
        self._place = 0
        self._quiet = False  # while the explorer itself sets controls
        self._asked: tuple[str, ...] = ()
        self._picked: str | None = None  # of what is asked, what the reader last chose to see
        self._answered: tuple[Question, list[Answer]] | None = None
        self.work = Work()
        self.controls = Controls(dataset=dataset, split=split, has_adapter=adapter is not None)
        self.stage = Stage(self.controls.opacity, self._guarded(self._show_patch))
        self._code = widgets.HTML()
        parts = [self.work.busy, self.work.line, self.stage.widget, self._code]
        shown = widgets.VBox(parts, layout=widgets.Layout(align_items="stretch"))
        shown.add_class("explorer-view")
        layout = widgets.Box([self.controls.main, shown, self.controls.more], layout=widgets.Layout(display="grid"))
        layout.add_class("explorer-layout")
        self.widget = widgets.VBox([layout], layout=widgets.Layout(align_items="stretch"))
        self.widget.add_class("clip-explorer")
        self._listen()
        self.work.begin("loading the model", self._load_model, self._take_model, lambda: None)

    def _ipython_display_(self) -> None:
        display(self.widget)

    def wait(self, timeout: float = 120) -> None:
        """Until nothing runs in the background.

        Raises:
            TimeoutError: something does, after so many seconds.
        """
        self.work.wait(timeout)

    @property
    def subject(self) -> Subject | None:
        """The image looked at."""
        return self._exploration.subject if self._exploration else None

    @property
    def question(self) -> Question:
        """What the controls ask.

        Raises:
            SurgeryError: they don't make a question, or no image is open.
        """
        exploration = self._opened()
        return self.controls.question(self.controls.asked(exploration.classes))

    @property
    def answers(self) -> list[Answer]:
        """What each kind shown says to it."""
        return self._opened().answers(self.question)

    def python_call(self) -> str:
        """Python that gives the same boxes."""
        return python_call(self._present_origin(), self.question, self._opened())

    def setting_yaml(self) -> str:
        """The setting as parameters of the workbook."""
        return setting_yaml(self._present_origin(), self.question, self._opened().subject)

    def save(self) -> tuple[Path, Path]:
        """Write the present view as PNG and its setting as YAML, beside what was saved before.

        Raises:
            SurgeryError: nothing to save, or nowhere to write.
        """
        exploration, question = self._opened(), self.question
        subject = exploration.subject
        own, _ = held_against(question, subject.truth, exploration.classes)
        drawn = view.figure(
            subject, exploration.seen, question, self.answers, own,
            patch=self.stage.patch, opacity=self.controls.opacity.value, outline=self.controls.outline.value,
        )  # fmt: skip
        words = f"{Path(subject.name).stem}_{question.shown}"
        stem, number = "".join(c if c.isalnum() or c in "-_" else "_" for c in words)[:80], 1
        while (self._save_dir / f"{stem}_{number:02d}.png").exists():
            number += 1
        target = self._save_dir / f"{stem}_{number:02d}"
        alt = f"{subject.name}, “{question.shown}”: heatmaps of {', '.join(question.kinds)} with boxes"
        yaml_file = atomic_write(target.with_suffix(".yaml"), self.setting_yaml())
        return atomic_write(target.with_suffix(".png"), figure_bytes(drawn, "png", alt)), yaml_file

    def _opened(self) -> Exploration:
        if self._exploration is None or self._exploration.subject is None:
            raise ParameterError("no image is open yet: wait, or mend what kept it from opening")
        return self._exploration

    def _present_origin(self) -> Origin:
        return replace(self._origin, image_size=self.controls.chosen_size)

    # controls -> what happens

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
        own.previous.on_click(self._guarded(lambda: self._step(-1)))
        own.next.on_click(self._guarded(lambda: self._step(1)))
        own.save.on_click(self._guarded(self._save))

    def _guarded(self, react: Callable[[], None]) -> Callable[..., None]:
        """A callback whose errors become a line, and that sleeps while the explorer itself sets controls."""

        def call(*_: Any) -> None:
            if self._quiet:
                return
            with self.work.lock, self.work.errors():
                react()

        return call

    def _set(self, set_controls: Callable[[], None]) -> None:
        """Set controls without reacting to them."""
        self._quiet = True
        try:
            set_controls()
        finally:
            self._quiet = False

    # model and data set

    def _load_model(self) -> Exploration:
        origin = self._origin
        weights = checkpoint_file(origin.checkpoint) or origin.checkpoint
        clip = load_clip(origin.model, weights, device=self._device, depth=origin.depth)
        adapters = load_adapters(origin.adapter, clip) if origin.adapter is not None else {}
        return Exploration(clip, (), adapters)

    def _take_model(self, exploration: Exploration) -> None:
        self._exploration = exploration
        self._set(lambda: self.controls.take_model(exploration.clip, self._origin.image_size))
        self._open()

    def _offer_splits(self) -> None:
        """The splits of the folder that was typed in, and the images of one of them."""
        splits = _splits(self.controls.dataset.value.strip())
        self._set(lambda: self.controls.take_splits(splits, "test" if "test" in splits else splits[0]))
        self._open()

    def _open(self) -> None:
        """Read the split that the controls name."""
        if self._exploration is None:
            raise ParameterError("the model is not loaded: mend what was wrong with it, and run the cell again")
        name, split, exploration = self.controls.dataset.value.strip(), self.controls.split.value, self._exploration

        def read() -> tuple[Dataset, list[str]]:
            folder, embedded = dataset_folder(name)
            if embedded:
                write_scenes(folder, progress=self.work.bar)
            dataset = load_dataset(folder, split, progress=self.work.bar)
            exploration.prepare(dataset.classes)
            return dataset, _splits(name)

        def take(found: tuple[Dataset, list[str]]) -> None:
            self._origin = replace(self._origin, dataset=name, split=split)
            self._take_dataset(*found)

        self.controls.enable(False)
        self.work.begin(f"reading {split} of {name}", read, take, lambda: self.controls.enable(True))

    def _take_dataset(self, dataset: Dataset, splits: list[str]) -> None:
        self.dataset, self._exploration.classes = dataset, dataset.classes
        holding = dataset.boxes.drop_duplicates(["image_id", "label"])["label"].value_counts()
        n_images = [int(holding.get(label, 0)) for label in dataset.classes]

        def offer() -> None:
            self.controls.take_splits(splits, dataset.split)
            self.controls.take_classes(dataset.classes, n_images)

        self._set(offer)
        self._order, self._place = np.arange(len(dataset.images)), 0
        self._go()

    # the image

    def _filter(self) -> None:
        """Only the images that hold a class, which is shown then."""
        if self.dataset is None:
            return
        label = self.controls.with_class.value
        if label == ANY_CLASS:
            self._order = np.arange(len(self.dataset.images))
        else:
            holding = self.dataset.boxes.loc[self.dataset.boxes["label"] == label, "image_id"]
            self._order = np.flatnonzero(self.dataset.images["image_id"].isin(holding))
            self._picked = label
        self._place = 0
        self._go()

    def _step(self, by: int) -> None:
        if not len(self._order):
            raise ParameterError("no data set is open: open one, or name an image file")
        self._place = (self._place + by) % len(self._order)
        self._go()

    def _find(self) -> None:
        """Go to the image of this name, or to the first whose name holds it."""
        wanted = Path(self.controls.find.value.strip()).stem
        if not wanted or self.dataset is None:
            return
        names = self.dataset.images["image_id"]
        places = np.flatnonzero(names == wanted)
        if not len(places):
            places = np.flatnonzero(names.str.contains(wanted, case=False, regex=False))
        if not len(places):
            raise ParameterError(
                f"no image {wanted!r} in split {self.dataset.split} of {self.dataset.name}, which holds "
                f"{names.iloc[0]} to {names.iloc[-1]}; type a name, or a part of one"
            )
        self._set(lambda: setattr(self.controls.with_class, "value", ANY_CLASS))
        self._order, self._place = np.arange(len(names)), int(places[0])
        self._go()

    def _go(self) -> None:
        """Look at the image of the data set whose turn it is."""
        row = self.dataset.images.iloc[self._order[self._place]]
        truth = self.dataset.boxes[self.dataset.boxes["image_id"] == row["image_id"]]
        truth = truth.drop(columns="image_id").reset_index(drop=True)
        self._look(row["image_id"], lambda: Subject(row["image_id"], row["path"], read_image(row["path"]), truth))

    def _open_path(self) -> None:
        if path := self.controls.path.value.strip():
            file = PROJECT_ROOT / Path(path).expanduser()
            self._look(file.name, lambda: Subject(file.name, str(file), read_image(file), _no_boxes()))

    def _open_upload(self) -> None:
        if self.controls.upload.value:
            name, data = self.controls.upload.value[0]["name"], bytes(self.controls.upload.value[0]["content"])
            self._look(name, lambda: Subject(name, "", decode_image(data, name), _no_boxes()))

    def _look_again(self) -> None:
        if (subject := self.subject) is not None:
            self._look(subject.name, lambda: subject)

    def _look(self, name: str, subject_of: Callable[[], Subject]) -> None:
        """One forward in the background, then the answers."""
        if self._exploration is None:
            raise ParameterError("the model is not loaded: mend what was wrong with it, and run the cell again")
        clip, size = self._exploration.clip, self.controls.chosen_size

        def see() -> tuple[Subject, Look]:
            subject = subject_of()
            return subject, look(clip, subject.image, size)

        def take(seen: tuple[Subject, Look]) -> None:
            self._exploration.show(*seen)
            self.stage.show_subject(*seen)
            self.controls.position.value = self._position()
            self._ask()

        self.work.begin(f"looking at {name}", see, take, lambda: self.controls.enable(True))

    def _position(self) -> str:
        subject = self.subject
        if self.dataset is None or not len(self._order):
            return subject.name
        if self.dataset.images["image_id"].iloc[self._order[self._place]] != subject.name:
            return f"{subject.name}, not of the data set"
        return f"{self._place + 1:,} of {len(self._order):,}: {subject.name}"

    # the question

    def _ask(self) -> None:
        """The list in force, or the image, may be another: offer the list, and choose what of it is shown."""
        exploration = self._opened()
        self.controls.depend()
        try:
            asked = self.controls.asked(exploration.classes)
        except SurgeryError:
            self.stage.blank()
            raise
        self._picked = self._to_show(asked)
        self._asked = asked
        shown = self._picked or next((name for name in exploration.subject.truth["label"] if name in asked), asked[0])
        self._set(lambda: self.controls.take_asked(asked, shown))
        self._refresh()

    def _to_show(self, asked: tuple[str, ...]) -> str | None:
        """A phrase that is new, else what the reader picked, else nothing: then the image decides."""
        new = [name for name in asked if name not in self._asked and name not in self._exploration.classes]
        return new[0] if new else self._picked if self._picked in asked else None

    def _pick(self) -> None:
        self._picked = self.controls.shown.value
        self._refresh()

    def _refresh(self) -> None:
        """Answer the question and show it; the image's forward is not repeated."""
        exploration = self._opened()
        self.controls.depend()
        try:
            question = self.question
            answers = exploration.answers(question)
        except SurgeryError:
            self.stage.blank()
            raise
        self.work.say("")
        self._answered = question, answers
        own, against = held_against(question, exploration.subject.truth, exploration.classes)
        outline = self.controls.outline.value
        self.stage.show_answers(exploration.subject, question, answers, own, against, outline=outline)
        self.controls.copy.text = self.python_call()
        self._code.value = (
            f'<details class="explorer-details"><summary>Python</summary><pre class="explorer-code" tabindex="0">'
            f"{escape(self.controls.copy.text)}</pre></details>"
        )
        self._show_patch()

    def _show_patch(self) -> None:
        if self._exploration is not None and self._exploration.seen is not None and self._answered is not None:
            self.stage.show_patch(self._exploration.seen, *self._answered)

    def _save(self) -> None:
        picture, setting = self.save()
        shown = picture.relative_to(PROJECT_ROOT) if picture.is_relative_to(PROJECT_ROOT) else picture
        self.work.say(f"saved {shown} and {setting.name}")


def _splits(name: str) -> list[str]:
    """The splits of a data set as a notebook names it."""
    folder, embedded = dataset_folder(name)
    return ["train", "val", "test", "trainval"] if embedded else dataset_splits(folder)


def _no_boxes() -> pd.DataFrame:
    """Ground truth of an image that comes from no data set."""
    return pd.DataFrame({"label": pd.Series(dtype="str"), **{side: pd.Series(dtype="float64") for side in BOX_COLUMNS}})
