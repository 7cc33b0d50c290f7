"""The commands `features` and `train`: notebook 03's work without the notebook, in the same folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine import (
    AdapterTask,
    FeatureCache,
    LocalizerTask,
    Schedule,
    Store,
    Task,
    TokenCache,
    Training,
    check_disk,
    fit,
    folder_of,
    kept_epochs,
    progress_of,
)
from ..errors import OutputError, ParameterError
from ..files import RUN_LOCK, differences, only_process, remove_parts
from ..study import TrainingPlan, adapted_kinds, publish, publish_adapters
from .check import check, check_cache, check_output
from .parameters import LEAVES_OUT, find_notebooks, known_parameters, notebook_parameters, validate, with_defaults
from .session import Session, open_session

NOTEBOOK = "03"
_REPORTS = {"heatmap": "adapter_results.json", "localizer": "training_results.json"}


@dataclass(frozen=True)
class _Work:
    """One training to do."""

    name: str
    task: Task
    schedule: Schedule
    keep_epochs: tuple[int, ...] = ()


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
        # the head needs no features of the images that are reported on
        needed = [*tokens.values(), *(cache for role, cache in of_head.items() if role != "report")]
        _compute(needed, plan.batch_size)
        works = []
        for kind in adapted_kinds() if tokens else ():
            task = AdapterTask(tokens["train"], tokens["choose"], plan.adapter, kind=kind)
            works.append(_Work(f"adapter of {kind}", task, plan.adapter_schedule))
        if of_head:
            task = LocalizerTask(of_head["train"], of_head["choose"], plan.head)
            works.append(_Work("localiser", task, plan.schedule, kept_epochs(plan.schedule)))
        _check_progress(works, session.cache_dir, resume=resume)
        trained = {work.name: _fit(work, session.cache_dir, plan.choose_split) for work in works}
        published: list[Path] = []
        if tokens:
            adapters = {kind: trained[f"adapter of {kind}"] for kind in adapted_kinds()}
            published += publish_adapters(adapters, session.out_dir).values()
        if of_head:
            published.append(publish(trained["localiser"], session.out_dir))
        return published


def _fit(work: _Work, trainings_dir: Path, choose_split: str) -> Training:
    training = fit(
        work.task, work.schedule, trainings_dir, keep_epochs=work.keep_epochs, description=f"training the {work.name}"
    )
    row = training.history.set_index("epoch").loc[training.best_epoch]
    figures = ", ".join(f"{name} {row[name]:.3f}" for name in row.index if name.startswith("val_"))
    print(f"{work.name}: best epoch {training.best_epoch} on {choose_split}: {figures}; {training.seconds:.0f} s here")
    return training


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


def _check_progress(works: Sequence[_Work], trainings_dir: Path, *, resume: bool) -> None:
    begun = []
    for work in works:
        folder = folder_of(work.task, work.schedule, trainings_dir)
        if progress := progress_of(folder):
            begun.append((work, folder, *progress))
    if resume and not begun:
        raise ParameterError(f"--resume: there is no training of these settings in {trainings_dir}; leave it out")
    for work, folder, epochs, finished in begun:
        if finished:
            print(f"the training of the {work.name} is at its end already; another seed or setting makes another")
        elif not resume:
            raise ParameterError(
                f"a training of these settings ({work.name}) stopped behind epoch {epochs} of "
                f"{work.schedule.epochs} in {folder}: go on with --resume, or delete the folder to begin anew"
            )


def _open(
    config: Mapping[str, Any], out_dir: Path
) -> tuple[Session, TrainingPlan, dict[str, TokenCache], dict[str, FeatureCache]]:
    """Session, plan, and by role the caches of adapters and head, empty where none is trained; nothing is computed."""
    notebooks = find_notebooks()
    root = notebooks[0].resolve().parent.parent
    given = validate(config, known_parameters(notebooks))
    if given.get(LEAVES_OUT, "") is None:
        raise ParameterError(f"{LEAVES_OUT} is null, so there is nothing to train; name a split, such as train")
    check_output(out_dir)
    check_cache(given, root)
    check(given, only=NOTEBOOK)
    (notebook,) = find_notebooks(only=NOTEBOOK)
    own = notebook_parameters(notebook)
    parameters = with_defaults({name: value for name, value in given.items() if name in own}, own)
    plan = TrainingPlan.from_parameters(parameters)
    session = open_session(notebook.stem, parameters | {"out_dir": str(out_dir)})
    datasets = session.training_datasets(plan)
    made_of = (session.clip, datasets, session.cache_dir)
    tokens = plan.token_caches(*made_of) if "heatmap" in plan.stages else {}
    of_head = plan.feature_caches(*made_of) if "localizer" in plan.stages else {}
    return session, plan, tokens, of_head
