"""Operations of the studio's API on the job queue and on runs: describe jobs and runs, read, store and delete files."""

import hashlib
import re
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

from fastapi import HTTPException

from threedgen.config.errors import ConfigError
from threedgen.data.assets.listing import MESH_FORMATS
from threedgen.geometry.image_file import SUFFIXES as IMAGES
from threedgen.run.disk import make_folder, write_atomic
from threedgen.run.prompts import normalise_prompt
from threedgen.run.text import clean
from threedgen.viewer.gallery import contact_sheets
from threedgen.viewer.record import TASKS, Record, read_record
from threedgen.viewer.report import PAGE

from .job_queue import Queue
from .jobs import LIVE, WAITING, Job, make_job
from .options import StudioConfig
from .schema import JobInfo, Order, Progress, RunInfo, Status, Upload

_ADVICE = re.compile(r"`|--\w|\b\w+(\.\w+)*=|\.(md|yaml)\b|\bconfigs?\b")
_INSTALL = re.compile(r'^(?:[\w.]+: )?(.*): pip install (?:-e )?(?:"[^"]+"|[\w-]+)(, or [^.;]*)?')
_KEY = re.compile(r"^(?:\w+\.)*(\w+): (?=(?:contains|has|is|are|needs|should|was|were)\b)")


def plain_words(text: str) -> str:
    """Rewrite an error message for users of the page, without options, flags, commands, configs and doc pages.

    "prompt: is empty. Set it, for example prompt=..." becomes "The prompt is empty.". A command that installs a package
    becomes the advice to ask whoever runs the studio for it.
    """

    def ask(found: re.Match[str]) -> str:
        instead = found[2] or ""
        return f"{found[1]}. Ask whoever runs this studio to install it{'' if _ADVICE.search(instead) else instead}."

    text = _INSTALL.sub(ask, re.sub(r" \(got [^()]*(\([^()]*\))?[^()]*\)", "", text).strip())
    sentences = re.split(r"(?<=[.;?!]) ", text)
    kept = [part for part in sentences if not _ADVICE.search(part)]
    return _KEY.sub(r"The \1 ", " ".join(kept or sentences[:1])).rstrip(";")


RUN_TASKS = (*TASKS, "texture")
UPLOADS = "uploads"
SUFFIXES = {"image": IMAGES, "mesh": MESH_FORMATS}
"""Allowed suffixes of uploaded files, for the fields "image" and "mesh" of a request (`schema.Order`)."""
UPDATE_SECONDS = 0.5  # interval at which the event stream looks for changes


class Studio:
    """Operations of the studio's web API on the job queue and on the runs in the folder `root`.

    They raise HTTPException 404 if a job, a run or a file of a run does not exist.
    """

    def __init__(self, config: StudioConfig, root: Path, queue: Queue) -> None:
        self.config, self.root, self.queue = config, root, queue
        self.closing = threading.Event()  # ends the event streams
        self._lock, self._status, self._status_at = threading.Lock(), Status(jobs=[], over=0), 0.0

    def find(self, number: int) -> Job:
        job = self.queue.find(number)
        if job is None:
            raise HTTPException(404, "there is no such job")
        return job

    def job(self, order: Order) -> Job:
        names = {"image": order.image, "mesh": order.mesh}
        inputs = {key: self.upload(name, key) for key, name in names.items() if name is not None}
        if order.edit is not None:
            if inputs:
                raise ConfigError("changes a run, and takes neither an image nor a mesh", "edit", order.edit)
            inputs["edit"] = self.record(order.edit).folder
        empty = "image" in inputs and not order.prompt.strip()
        prompt = "" if empty else normalise_prompt(order.prompt)
        return make_job(self.config, self.root, prompt, order.seed, order.export, inputs)

    def status(self) -> Status:
        """Return the state of the queue: all jobs, and the counter `over`.

        The counter increases when a run has ended or was deleted, which tells clients to load the list of runs again.
        The result is cached for 0.25 s, so that many clients cost little.
        """
        with self._lock:
            if time.monotonic() - self._status_at > UPDATE_SECONDS / 2:
                jobs, version = self.queue.jobs(), self.queue.runs_version
                self._status = Status(jobs=[self.describe(job) for job in jobs], over=version)
                self._status_at = time.monotonic()
            return self._status

    def describe(self, job: Job) -> JobInfo:
        """Return prompt, state, progress and error of a job as the API sends them.

        If the job is running, the result also names the file of the newest image of the run.
        """
        folder, image, state = self.root / job.name, "", job.state
        if job.has_result is None:
            try:
                record = read_record(folder, RUN_TASKS)
                finished = state not in (WAITING, *LIVE) and record.has_result
                if state in LIVE:
                    path = next((sheet[0] for sheet in contact_sheets(record)), None)
                    image = f"{path.relative_to(folder).as_posix()}?{path.stat().st_mtime_ns}" if path else ""
            except (ConfigError, OSError):  # no files yet
                finished = state == "finished" and folder.is_dir()
            if state == job.state and state not in (WAITING, *LIVE):
                job.has_result = finished
        progress = None
        if job.progress:
            details = [part for part in job.progress["details"].split(", ") if part]
            left = next((part.removesuffix(" left") for part in details if part.endswith(" left")), "")
            progress = Progress(**{**job.progress, "left": left, "details": details})
        return JobInfo(
            number=job.number,
            prompt=clean(job.prompt),
            seed=job.seed,
            run=job.name,
            state=state,
            progress=progress,
            error=plain_words(job.error),
            image=image,
            finished=bool(job.has_result),
            can_finish=self.queue.can_finish(job),
            can_export=job.task in ("generate", "export"),
        )

    def folder(self, name: str) -> Path:
        """Return the folder of the run `name`, a path relative to `root`.

        Raises HTTPException 404 if the folder is not inside `root`, or is not the folder of a run.
        """
        with suppress(OSError, ValueError):
            folder = (self.root / name).resolve()
            inside = folder.is_relative_to(self.root.resolve()) and folder != self.root.resolve()
            if inside and (folder / "config.yaml").is_file():
                return folder
        raise HTTPException(404, "there is no such run")

    def record(self, name: str) -> Record:
        try:
            return read_record(self.folder(name), RUN_TASKS)
        except ConfigError:
            raise HTTPException(404, "this run has no result") from None

    def file(self, name: str, file: str) -> Path:
        folder = self.folder(name)
        with suppress(OSError, ValueError):
            path = (folder / file).resolve()
            if path.is_relative_to(folder) and path.is_file():
                return path
        raise HTTPException(404, "there is no such file")

    def store(self, name: str, data: bytes) -> Upload:
        """Save the content `data` of an uploaded file in `root`/uploads. Return its new file name and its kind.

        The new name contains a hash of the content. The kind, "image" or "mesh", follows from the suffix of the
        original file name `name`. Raises ConfigError for other suffixes and for empty files.
        """
        suffix = Path(name).suffix.lower()
        kind = next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)
        if kind is None or not data:
            known = " ".join(sum(SUFFIXES.values(), ()))
            raise ConfigError(f"is not an image or a mesh that can be read here. Use {known}", "file")
        stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in Path(name).stem)[:60]
        path = self.root / UPLOADS / f"{hashlib.sha256(data).hexdigest()[:8]}-{stem or 'file'}{suffix}"
        make_folder(path.parent)
        write_atomic(path, data)
        return Upload(name=path.name, kind=kind)

    def upload(self, name: str, kind: str) -> Path:
        path = self.root / UPLOADS / name
        if path.suffix not in SUFFIXES[kind] or not path.is_file():
            raise ConfigError("there is no such upload", kind, name)
        return path

    def delete(self, name: str) -> None:
        folder = self.folder(name)
        for job in self.queue.jobs():
            if (self.root / job.name).resolve() == folder:
                self.queue.remove(job)
        shutil.rmtree(folder)
        self.queue.runs_version += 1


def describe_run(record: Record, root: Path) -> RunInfo:
    seed = record.option("seed")
    return RunInfo(
        name=record.folder.resolve().relative_to(root.resolve()).as_posix(),
        prompt=clean(record.prompt),
        seed=seed if type(seed) is int else None,
        early=record.state != "finished",
        ended=f"{record.ended:%Y-%m-%dT%H:%MZ}",
        seconds=record.summary.seconds,
        report=record.file(PAGE) is not None,
        can_export=record.option("task") == "generate",
        asset=record.asset,
    )
