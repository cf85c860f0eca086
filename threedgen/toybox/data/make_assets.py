"""Task "make-toybox-assets": write toybox objects as GLB files with captions. They are test data for user assets.

RUN/000/00017-a-blue-dog.glb, ...    y up, front +z, vertex colours
RUN/captions.csv                     file,caption
"""

import csv
import io
from functools import partial

from threedgen.run.disk import write_atomic
from threedgen.run.folder import slug
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import Count
from threedgen.toybox.world.toybox import Toybox
from threedgen.train.task import Task, run_task

from .room_mesh import glb


def make(task: Task) -> None:
    """Write the missing GLB files and captions.csv. Raises Stopped after Ctrl-C."""
    config, rows = task.config, [("file", "caption")]
    box = Toybox(config.seed, config.split, style=config.style)
    with Interrupts() as interrupts, Count("assets", config.count, task.quiet) as count:
        for index in range(config.first, config.first + config.count):
            interrupts.raise_if_stopped()
            asset = box.asset(index)
            file = f"{index // 1000:03d}/{index:05d}-{slug(asset.caption)[:-9][:40].strip('-')}.glb"
            rows.append((file, asset.caption))
            if not (path := task.folder / file).is_file():
                path.parent.mkdir(exist_ok=True)
                vertices, faces, colours, _ = asset.mesh()
                write_atomic(path, glb(vertices[faces], colours))
            count.add(1, asset.caption)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomic(task.folder / "captions.csv", text.getvalue())
    task.summarise(assets=config.count)


run = partial(run_task, make, result="captions.csv", files=("captions.csv",), again=True)
