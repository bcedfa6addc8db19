"""Builds what is missing of a request, reuses what is valid, and adds it to the bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from filelock import FileLock, Timeout

from vsr_trt.engines import additions
from vsr_trt.engines import report as reports
from vsr_trt.engines.cache import Cache, Entry
from vsr_trt.engines.jobs import BuildJob, Pool, Result
from vsr_trt.engines.plan import Item, refuse_changed
from vsr_trt.engines.tensorrt.library import Backend
from vsr_trt.engines.worker import Phase
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Engine, Manifest, sha256
from vsr_trt.runtime.errors import EngineError, OutputError

Origin = Literal["bundle", "cache", "built"]


@dataclass(frozen=True)
class Built:
    """An engine that is now in the bundle, where it came from, and its build's report."""

    item: Item
    origin: Origin
    report: dict[str, Any]
    engine: Engine


@dataclass(frozen=True)
class Progress:
    """Called as the work proceeds.

    Attributes:
        phase: the compiler entered a phase of an engine.
        done: an engine is in the bundle.
        note: something the user should know.
    """

    phase: Callable[[Item, Phase], None] = lambda item, phase: None
    done: Callable[[Built], None] = lambda built: None
    note: Callable[[str], None] = lambda text: None


def build_engines(
    bundle: Bundle,
    items: Sequence[Item],
    backend: Backend,
    cache: Cache,
    jobs: int,
    memory: int,
    progress: Progress | None = None,
) -> list[Built]:
    """Makes every engine of `items` part of the bundle.

    Engines enter the bundle one by one as they are ready, so an interrupted run keeps what it has.

    Args:
        bundle: opened; its directory is written to.
        items: from `engines.plan.list_engines`.
        backend: that compiles.
        cache: shared with other builds.
        jobs: processes at once.
        memory: bytes that they may take together by estimate.
        progress: is called with how far the work is.

    Raises:
        EngineError: the compiler refuses some; all others are in the bundle.
        OutputError: cache or bundle cannot be written.
    """
    progress = progress or Progress()
    built = []
    for item in items:
        if item.state == "bundle":
            engine = next(e for e in bundle.manifest.engines if e.key == item.key)
            built.append(Built(item, "bundle", reports.read(bundle.file(engine.report)), engine))
            progress.done(built[-1])
    wanted = {item.key: item for item in items if item.state != "bundle"}
    run = _Run(bundle, backend, cache, jobs, memory, progress, frozenset(wanted))
    pending = list(wanted.values())
    while pending:
        pending = run.round(pending)
    if run.failures:
        raise EngineError("\n".join(map(str, run.failures)))
    return [*built, *run.built]


class _Run:
    """One call of `build_engines`: what it was given, what it has made, what failed."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        cache: Cache,
        jobs: int,
        memory: int,
        progress: Progress,
        keep: frozenset[str],
    ) -> None:
        self._bundle, self._cache, self._progress, self._keep = bundle, cache, progress, keep
        self._backend, self._jobs, self._memory = backend, jobs, memory
        self._locks: dict[str, FileLock] = {}
        self.built: list[Built] = []
        self.failures: list[EngineError] = []

    def round(self, pending: Sequence[Item]) -> list[Item]:
        """Takes what the cache has, builds what nobody else is building; returns what others are building."""
        mine: list[Item] = []
        others: list[Item] = []
        try:
            for item in pending:
                lock = self._cache.lock(item.key)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    others.append(item)
                    continue
                self._locks[item.key] = lock
                # asked again under the lock: another process may just have finished it
                entry = None if item.forced else self._valid(item)
                if entry is None:
                    mine.append(item)
                else:
                    self._finish(item, entry, "cache")
            if mine:
                self._build(mine)
        finally:
            for key in list(self._locks):
                self._locks.pop(key).release()
        if others and not mine:
            names = ", ".join(item.name for item in others)
            self._progress.note(f"another process is building {names}; waiting for it")
            _wait(self._cache.lock(others[0].key))
        return others

    def _build(self, items: Sequence[Item]) -> None:
        refuse_changed(self._bundle, {item.order.graph for item in items})

        def watch(job: BuildJob, phase: Phase) -> None:
            self._progress.phase(job.tag, phase)

        pool = Pool(self._backend, self._jobs, self._memory, watch)
        with self._cache.workspace() as workspace:
            prepared = []
            for item in items:
                folder = workspace / item.key
                folder.mkdir()
                prepared.append(BuildJob(item.order, folder / item.file, item.memory, item))
            with contextlib.closing(pool.run(prepared)) as results:
                for result in results:
                    self._take(result)

    def _take(self, result: Result) -> None:
        item: Item = result.job.tag
        if isinstance(result.error, EngineError):
            self.failures.append(result.error)  # the others may be fine
            self._progress.note(f"{item.target.name} {item.name} failed; the others go on")
            return
        if result.error is not None:
            raise result.error
        assert result.done is not None
        report = reports.of_build(item, result.done)
        self._finish(item, self._cache.add(item.parts, result.job.out, report, self._keep), "built")

    def _finish(self, item: Item, entry: Entry, origin: Origin) -> None:
        engine = add_to_bundle(self._bundle, item, entry)
        self.built.append(Built(item, origin, entry.report, engine))
        self._progress.done(self.built[-1])
        self._locks.pop(item.key).release()

    def _valid(self, item: Item) -> Entry | None:
        """The cache's engine, if every byte of it is as it was written."""
        entry = self._cache.find(item.key)
        if entry is None:
            return None
        for name, expected in entry.files.items():
            if sha256(entry.folder / name) != expected:
                self._progress.note(f"the cached engine {item.name} was damaged; it is built again")
                self._cache.remove(entry)
                return None
        return entry


def _wait(lock: FileLock) -> None:
    """Until another process lets go; in steps, so that Ctrl-C is heard."""
    while True:
        try:
            with lock.acquire(timeout=0):
                return
        except Timeout:
            time.sleep(0.2)


def add_to_bundle(bundle: Bundle, item: Item, entry: Entry) -> Engine:
    """Copies an engine and its report into the bundle, whole or not at all, and writes them into the manifest.

    Raises:
        OutputError: the bundle cannot be written.
    """
    engine = Engine(
        network=item.order.network,
        backend=item.parts["backend"],
        version=item.parts["version"],
        target=item.target.name,
        targets=item.target.capabilities,
        device=item.target.device,
        precision=item.precision,
        profiles=item.order.profiles,
        flags=tuple(item.parts["flags"]),
        file=f"{item.folder}/{item.file}",
        report=f"{item.folder}/{item.name}.json",
        key=item.key,
        platform=item.parts.get("platform"),
    )
    try:
        with additions.staging(bundle.path, entry.bytes) as folder:
            (folder / item.folder).mkdir(parents=True)
            for file in entry.files:
                shutil.copyfile(entry.folder / file, folder / item.folder / file)
            text = json.dumps(entry.report, indent=1) + "\n"
            (folder / engine.report).write_text(text, encoding="utf-8")
            additions.sync(folder)
            additions.commit(
                bundle.path,
                folder,
                lambda manifest: _without(manifest, engine),
                lambda manifest: dataclasses.replace(manifest, engines=(*manifest.engines, engine)),
            )
    except OutputError as error:
        raise OutputError(f"{error} The engine is in the cache.") from error
    return engine


def _without(manifest: Manifest, engine: Engine) -> Manifest:
    """The manifest without an engine of the same file, which another version or other weights made."""
    return without(manifest, [e for e in manifest.engines if e.file == engine.file])


def forget_engines(bundle: Bundle, networks: Collection[str], backend: str, targets: Collection[str]) -> None:
    """Takes engines of networks that kernels compute out of the bundle, so that the kernels do.

    Raises:
        OutputError: the bundle cannot be written.
    """

    def kept(manifest: Manifest) -> Manifest:
        old = [
            engine
            for engine in manifest.engines
            if engine.network in networks and engine.backend == backend and engine.target in targets
        ]
        return without(manifest, old)

    with additions.staging(bundle.path, 0) as folder:
        additions.commit(bundle.path, folder, kept, lambda manifest: manifest)


def without(manifest: Manifest, old: Sequence[Engine]) -> Manifest:
    """The manifest without some engines, and without their files."""
    gone = {
        name
        for e in old
        for name in manifest.files
        if name in (e.file, e.report) or name.startswith(f"{e.file}.")
    }
    return dataclasses.replace(
        manifest,
        engines=tuple(e for e in manifest.engines if e not in old),
        files={name: found for name, found in manifest.files.items() if name not in gone},
    )
