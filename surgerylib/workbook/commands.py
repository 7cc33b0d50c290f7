"""The commands `features` and `train`: notebook 03's work without the notebook, in the same folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..engine import AdapterTask, LocalizerTask, Store, check_disk, fit, folder_of, kept_epochs, progress_of
from ..errors import OutputError, ParameterError
from ..files import RUN_LOCK, differences, only_process, remove_parts
from ..study import TrainingPlan, adapted_kinds, publish, publish_adapters
from .check import check, check_output
from .parameters import find_notebooks, known_parameters, notebook_parameters, validate
from .session import Session, open_session

NOTEBOOK = "03"
_REPORTS = {"heatmap": "adapter_results.json", "localizer": "training_results.json"}


def features(config: Mapping[str, Any], out_dir: Path, *, predict_only: bool = False) -> None:
    """Compute the caches of a configuration; a later `train` or `run` into the same folder finds them.

    `predict_only` says how much disk they need, and computes nothing.

    Raises:
        SurgeryError: bad input, found before anything is computed.
    """
    _, plan, tokens, of_head = _open(config, out_dir)
    caches = [*tokens.items(), *of_head.items()]
    for role, cache in caches:
        print(
            f"{cache.what}, {role} ({cache.dataset.split}): {cache.record.itemsize:,} bytes an image, "
            f"{len(cache.dataset.images):,} images, {cache.nbytes / 1e9:.3f} GB"
        )
    print(f"all: {sum(cache.nbytes for _, cache in caches) / 1e9:.3f} GB")
    if not predict_only:
        _compute([cache for _, cache in caches], plan.batch_size)


def train(config: Mapping[str, Any], out_dir: Path, *, resume: bool = False) -> list[Path]:
    """Train what the parameter `stage` of a configuration names; returns the files with the best weights.

    `resume` goes on with trainings of these very settings that were stopped; without it, finding one is an error.

    Raises:
        SurgeryError: bad input, found before anything is computed; nothing to resume, or something that should be;
            a folder with the report of another training.
    """
    session, plan, tokens, of_head = _open(config, out_dir)
    with only_process(session.out_dir, "writes", lock_name=RUN_LOCK):
        remove_parts(session.out_dir)
        for stage in plan.stages:
            _check_report(session.out_dir / _REPORTS[stage], plan.parameters(stage))
        of_head.pop("report", None)  # the head needs no features of the images that are reported on
        _compute([*tokens.values(), *of_head.values()], plan.batch_size)
        works = {}  # what to train -> task, schedule, and which epochs to keep
        kinds = adapted_kinds() if tokens else []
        for kind in kinds:
            task = AdapterTask(*tokens.values(), plan.adapter, kind=kind)
            works[f"adapter of {kind}"] = task, plan.adapter_schedule, ()
        if of_head:
            task = LocalizerTask(*of_head.values(), plan.head)
            works["localiser"] = task, plan.schedule, kept_epochs(plan.schedule)
        _check_progress(works, session.cache_dir, resume=resume)
        trained = {}
        for name, (task, schedule, kept) in works.items():
            doing = f"training the {name}"
            training = trained[name] = fit(task, schedule, session.cache_dir, keep_epochs=kept, description=doing)
            row = training.history.set_index("epoch").loc[training.best_epoch]
            figures = ", ".join(f"{figure} {row[figure]:.3f}" for figure in row.index if figure.startswith("val_"))
            best = f"best epoch {training.best_epoch} on {plan.choose_split}: {figures}"
            print(f"{name}: {best}; {training.seconds:.0f} s here")
        adapters = publish_adapters({kind: trained[f"adapter of {kind}"] for kind in kinds}, session.out_dir)
        heads = [publish(trained["localiser"], session.out_dir)] if of_head else []
        return [*adapters.values(), *heads]


def _compute(caches: Sequence[Store], batch_size: int) -> None:
    check_disk(caches)
    for cache in caches:
        print(cache.compute(batch_size=batch_size).describe())


def _check_report(path: Path, plan: Mapping[str, Any]) -> None:
    """A report beside which other weights would lie is not touched."""
    try:
        reported = json.loads(path.read_text(encoding="utf-8"))["plan"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no report of a training there
    if different := differences(reported, plan):
        raise OutputError(
            f"{path.parent} holds the report of another training ({different}): choose another --out, or run notebook "
            "03 there with these settings"
        )


def _check_progress(works: Mapping[str, tuple], trainings_dir: Path, *, resume: bool) -> None:
    folders = {name: folder_of(task, schedule, trainings_dir) for name, (task, schedule, _) in works.items()}
    begun = {name: progress for name, folder in folders.items() if (progress := progress_of(folder))}
    if resume and not begun:
        raise ParameterError(f"--resume: there is no training of these settings in {trainings_dir}; leave it out")
    for name, (epochs, finished) in begun.items():
        if finished:
            print(f"the training of the {name} is at its end already; another seed or setting makes another")
        elif not resume:
            raise ParameterError(
                f"a training of these settings ({name}) stopped behind epoch {epochs} of {works[name][1].epochs} in "
                f"{folders[name]}: go on with --resume, or delete the folder to begin anew"
            )


def _open(config: Mapping[str, Any], out_dir: Path) -> tuple[Session, TrainingPlan, dict[str, Store], dict[str, Store]]:
    """Session, plan, and by role the caches of adapters and head, empty where none is trained; nothing is computed."""
    given = validate(config, known_parameters(find_notebooks()))
    if given.get("train_split", "") is None:
        raise ParameterError("train_split is null, so there is nothing to train; name a split, such as train")
    check_output(out_dir)
    check(given, only=NOTEBOOK)
    (notebook,) = find_notebooks(only=NOTEBOOK)
    own = notebook_parameters(notebook)
    parameters = {name: given.get(name, parameter.default) for name, parameter in own.items()}
    plan = TrainingPlan.from_parameters(parameters)
    session = open_session(notebook.stem, parameters | {"out_dir": str(out_dir)})
    made_of = (session.clip, session.training_datasets(plan), session.cache_dir)
    tokens = plan.token_caches(*made_of) if "heatmap" in plan.stages else {}
    of_head = plan.feature_caches(*made_of) if "localizer" in plan.stages else {}
    return session, plan, tokens, of_head
