"""The commands `features` and `train`: notebook 03's work without the notebook, in the same folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine import adapter_training, localizer_training
from ..engine.adapter_training import AdapterTask
from ..engine.features import FeatureCache
from ..engine.image_shards import ImageShards, check_disk
from ..engine.localizer_training import LocalizerTask, kept_epochs
from ..engine.token_cache import TokenCache
from ..engine.training import Schedule, Task, Training, fit, progress_of
from ..errors import OutputError, ParameterError
from ..files import only_process, remove_parts
from ..identities import differences
from ..locations import RUN_LOCK
from ..study.adapter_plan import AdapterPlan, adapted_kinds, check_stage, publish_adapters
from ..study.localizer_plan import TrainingPlan, plain, publish
from .check import check, check_cache, check_output
from .parameters import LEAVES_OUT, STAGE, find_notebooks, known_parameters, validate
from .session import Session, open_session

NOTEBOOK = "03"


@dataclass(frozen=True)
class _Opened:
    """Session, plans and caches of a configuration; nothing is computed yet."""

    session: Session
    stages: tuple[str, ...]
    plan: TrainingPlan
    adapter_plan: AdapterPlan
    features: Mapping[str, FeatureCache]  # by role; empty where no head is trained
    tokens: Mapping[str, TokenCache]  # by role; empty where no adapter is trained


@dataclass(frozen=True)
class _Work:
    """One training to do."""

    name: str
    task: Task
    schedule: Schedule
    folder: Path
    keep_epochs: tuple[int, ...] = ()


def features(config: Mapping[str, Any], out_dir: Path, *, predict_only: bool = False) -> None:
    """Compute the caches of a configuration; a later `train` or `run` into the same folder finds them.

    Args:
        config: parameters, as in `run_workbook`.
        out_dir: the run's folder.
        predict_only: say how much disk they need, and compute nothing.

    Raises:
        SurgeryError: bad input, found before anything is computed.
    """
    opened = _open(config, out_dir)
    caches = [*opened.tokens.items(), *opened.features.items()]
    for role, cache in caches:
        print(
            f"{cache.what}, {role} ({cache.dataset.split}): {cache.record.itemsize:,} bytes an image, "
            f"{len(cache.dataset.images):,} images, {cache.nbytes / 1e9:.3f} GB"
        )
    print(f"all: {sum(cache.nbytes for _, cache in caches) / 1e9:.3f} GB")
    if not predict_only:
        _compute([cache for _, cache in caches], opened.plan.batch_size)


def train(config: Mapping[str, Any], out_dir: Path, *, resume: bool = False) -> list[Path]:
    """Train what the parameter `stage` of a configuration names; returns the files with the best weights.

    Args:
        config: parameters, as in `run_workbook`.
        out_dir: the run's folder.
        resume: go on with trainings of these very settings that were stopped; without it, finding one is an error.

    Raises:
        SurgeryError: bad input, found before anything is computed; nothing to resume, or something that should be;
            a folder with the report of another training.
    """
    opened = _open(config, out_dir)
    session = opened.session
    with only_process(session.out_dir, "writes", lock_name=RUN_LOCK):
        remove_parts(session.out_dir)
        reports = {
            "heatmap": ("adapter_results.json", opened.adapter_plan),
            "localizer": ("training_results.json", opened.plan),
        }
        for name, plan in (reports[stage] for stage in opened.stages):
            _check_report(session.out_dir / name, plain(plan))
        # the head needs no features of the images that are reported on
        needed = [*opened.tokens.values(), *(c for role, c in opened.features.items() if role != "report")]
        _compute(needed, opened.plan.batch_size)
        adapters = _adapters(opened)
        head = _head(opened)
        works = [*adapters.values(), *([head] if head else [])]
        _check_progress(works, session.cache_dir, resume=resume)
        published: list[Path] = []
        if adapters:
            trainings = {kind: _fit(work, opened.plan.choose_split) for kind, work in adapters.items()}
            published += publish_adapters(trainings, session.out_dir).values()
        if head:
            published.append(publish(_fit(head, opened.plan.choose_split), session.out_dir))
        return published


def _adapters(opened: _Opened) -> dict[str, _Work]:
    """Kind -> the training of its adapter; empty where none is trained."""
    if not opened.tokens:
        return {}
    plan, train, choose = opened.adapter_plan, opened.tokens["train"], opened.tokens["choose"]
    settings = plan.settings(train.dataset.classes)
    works = {}
    for kind in adapted_kinds():
        task = AdapterTask(train, choose, settings, kind=kind)
        folder = adapter_training.training_folder(task, plan.schedule, opened.session.cache_dir)
        works[kind] = _Work(f"adapter of {kind}", task, plan.schedule, folder)
    return works


def _head(opened: _Opened) -> _Work | None:
    if not opened.features:
        return None
    plan = opened.plan
    task = LocalizerTask(opened.features["train"], opened.features["choose"], plan.settings)
    folder = localizer_training.training_folder(task, plan.schedule, opened.session.cache_dir)
    return _Work("localiser", task, plan.schedule, folder, kept_epochs(plan.schedule))


def _fit(work: _Work, choose_split: str) -> Training:
    training = fit(
        work.task, work.schedule, work.folder, keep_epochs=work.keep_epochs, description=f"training the {work.name}"
    )  # fmt: skip
    row = training.history.set_index("epoch").loc[training.best_epoch]
    figures = ", ".join(f"{name} {row[name]:.3f}" for name in row.index if name.startswith("val_"))
    print(f"{work.name}: best epoch {training.best_epoch} on {choose_split}: {figures}; {training.seconds:.0f} s here")
    return training


def _compute(caches: Sequence[ImageShards], batch_size: int) -> None:
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
    progress = {work.name: progress_of(work.folder) for work in works}
    if resume and not any(progress.values()):
        raise ParameterError(f"--resume: there is no training of these settings in {trainings_dir}; leave it out")
    for work in works:
        if progress[work.name] is None:
            continue
        epochs, finished = progress[work.name]
        if finished:
            print(f"the training of the {work.name} is at its end already; another seed or setting makes another")
        elif not resume:
            raise ParameterError(
                f"a training of these settings ({work.name}) stopped behind epoch {epochs} of "
                f"{work.schedule.epochs} in {work.folder}: go on with --resume, or delete the folder to begin anew"
            )


def _open(config: Mapping[str, Any], out_dir: Path) -> _Opened:
    notebooks = find_notebooks()
    root = notebooks[0].resolve().parent.parent
    given = validate(config, known_parameters(notebooks))
    if given.get(LEAVES_OUT, "") is None:
        raise ParameterError(f"{LEAVES_OUT} is null, so there is nothing to train; name a split, such as train")
    check_output(out_dir)
    check_cache(given, root)
    check(given, only=NOTEBOOK)
    own = known_parameters(find_notebooks(only=NOTEBOOK))
    parameters = {name: parameter.default for name, parameter in own.items()}
    parameters |= {name: value for name, value in given.items() if name in own}
    plan, adapter_plan = TrainingPlan.from_parameters(parameters), AdapterPlan.from_parameters(parameters)
    stages = check_stage(parameters[STAGE])
    session = open_session(find_notebooks(only=NOTEBOOK)[0].stem, parameters | {"out_dir": str(out_dir)})
    datasets = session.training_datasets(plan)
    return _Opened(
        session=session,
        stages=stages,
        plan=plan,
        adapter_plan=adapter_plan,
        features=plan.caches(session.clip, datasets, session.cache_dir) if "localizer" in stages else {},
        tokens=adapter_plan.caches(session.clip, datasets, session.cache_dir) if "heatmap" in stages else {},
    )
