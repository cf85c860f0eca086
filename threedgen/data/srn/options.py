"""Config models of data in the layout of Scene Representation Networks. Imports no torch."""

from typing import Literal

from pydantic import Field

from threedgen.config import Config

from .scene_files import Split, split_folder


class SRNPairsConfig(Config):
    """Training pairs of views from one split of the SRN archives.

    Options of the data source "srn" for training novel-view models: folder and split of the archives (Scene
    Representation Networks), number of held-out scenes, up axis.
    """

    name: Literal["srn"] = "srn"
    path: str = Field(min_length=1, description="folder of the archives or of one split")
    split: Split = "cars_train"
    held_out: int = Field(64, ge=2, description="last scenes, used only for validation and the sample sheet")
    up: Literal["z", "y"] = Field("z", description="up axis of the world")

    def check(self) -> None:
        split_folder(self.path, self.split)
