"""Route for clicks and scribbles: the correction of one organ in the box around them."""

import base64
import binascii
from typing import Annotated

import numpy as np
from fastapi import APIRouter
from monailabel.endpoints.user.auth import User
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from lib.errors import ConfigError
from lib.imaging.geometry import Grid, ras_to_lps
from lib.imaging.volumes import CtVolume
from lib.prompts.organ_prompts import MAX_BOX_VOX, DrawnMask, OrganPrompts, voxel_at
from lib.prompts.refinement import Prompt
from lib.prompts.service import RefinedOrgan
from lib.recipes.schema import Recipe
from lib.server.access import KNOWN_IMAGE, USER
from lib.server.bodies import StrictRoute
from lib.server.responses import ERRORS
from lib.server.running_app import get_app

router = APIRouter(prefix="/organnet/prompts", responses=ERRORS, route_class=StrictRoute)

PointMm = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
Index = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Voxel = tuple[Index, Index, Index]


class PromptBody(BaseModel):
    """A click or a scribble: one or more positions, either in mm LPS or as voxel indices `[i, j, k]` of the CT.

    `add` says whether these voxels belong to the organ, or do not.
    """

    model_config = ConfigDict(extra="forbid")
    add: bool = True
    points_mm: list[PointMm] | None = None
    voxels: list[Voxel] | None = None

    @model_validator(mode="after")
    def _has_one_kind(self) -> "PromptBody":
        if bool(self.points_mm) == bool(self.voxels):
            raise ConfigError(
                "prompts: each has either points_mm or voxels, with at least one position"
            )
        return self

    def on(self, grid: Grid) -> Prompt:
        """Return the prompt in voxels of a CT on `grid`."""
        if self.voxels:
            return Prompt(np.array(self.voxels, np.intp), self.add)
        voxels = [voxel_at(grid, point) for point in self.points_mm or ()]
        return Prompt(np.array(voxels, np.intp), self.add)


class MaskBody(BaseModel):
    """A mask in a box of the CT's voxels.

    `bits` is base64 of one bit per voxel, i fastest, then j, then k; the first voxel is the lowest bit of the
    first byte.
    """

    model_config = ConfigDict(extra="forbid")
    start: Voxel
    size: tuple[Annotated[int, Field(ge=1, le=4096)], Annotated[int, Field(ge=1, le=4096)],
                Annotated[int, Field(ge=1, le=4096)]]  # fmt: skip
    bits: str

    @classmethod
    def of(cls, refined: RefinedOrgan) -> "MaskBody":
        """Return the mask of a corrected organ."""
        x, y, z = refined.box
        bits = np.packbits(refined.mask.ravel(order="F"), bitorder="little")
        return cls(
            start=(x.start, y.start, z.start),
            size=(x.stop - x.start, y.stop - y.start, z.stop - z.start),
            bits=base64.b64encode(bits.tobytes()).decode("ascii"),
        )

    def drawn(self) -> DrawnMask:
        """Return the mask of the drawn organ.

        Raises:
            ConfigError: If the number of bits does not fit the size.
        """
        count = int(np.prod(self.size))
        try:
            data = np.frombuffer(base64.b64decode(self.bits, validate=True), np.uint8)
        except (binascii.Error, ValueError) as error:
            raise ConfigError("drawn: bits is not base64") from error
        if count > MAX_BOX_VOX or len(data) != -(-count // 8):
            raise ConfigError(
                f"drawn: {len(data)} bytes for {' x '.join(map(str, self.size))} voxels; {-(-count // 8)} "
                f"expected, and at most {MAX_BOX_VOX} voxels"
            )
        bits = np.unpackbits(data, count=count, bitorder="little").astype(bool)
        x, y, z = (slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))
        return DrawnMask((x, y, z), bits.reshape(self.size, order="F"))


class PromptsBody(BaseModel):
    """All prompts of one organ, in the order in which they were made.

    `drawn` is the whole organ as it is drawn now; without it the model's contour is corrected. With `overwrite`
    voxels of other organs of the model's contours may be added too.
    """

    model_config = ConfigDict(extra="forbid")
    organ: str
    prompts: list[PromptBody]
    drawn: MaskBody | None = None
    overwrite: bool = False


class GridLps(BaseModel):
    """The CT's grid: voxel `[i, j, k]` is at `origin_mm + i * axes_mm[0] + j * axes_mm[1] + k * axes_mm[2]`."""

    shape: tuple[int, int, int]
    origin_mm: tuple[float, float, float]
    axes_mm: tuple[
        tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]
    ]


class RefinedAnswer(BaseModel):
    """The organ in a box; outside of the box nothing changes.

    `changed_vox` is the number of voxels that differ from the contour before. `was_kept` says whether the
    model's probabilities were there from an earlier run.
    """

    image: str
    organ: str
    model_version: str
    mask: MaskBody
    changed_vox: int
    grid: GridLps
    was_kept: bool
    seconds: float


@router.post("/{image}", dependencies=[KNOWN_IMAGE])
def refine_organ(image: str, body: PromptsBody, _user: User = USER) -> RefinedAnswer:
    """Correct an organ at clicks and scribbles; the server stores nothing."""
    app = get_app()

    def prompts_on(ct: CtVolume, _recipe: Recipe) -> OrganPrompts:
        return OrganPrompts(
            organ=body.organ,
            prompts=[prompt.on(ct.grid) for prompt in body.prompts],
            drawn=None if body.drawn is None else body.drawn.drawn(),
            is_overwriting=body.overwrite,
        )

    refined = app.prompts.refine(app.store.require_image(image), prompts_on, image_id=image)
    affine = ras_to_lps(refined.grid.affine_ras)
    x, y, z, origin = (tuple(float(v) for v in column) for column in affine[:3].T)
    return RefinedAnswer(
        image=image,
        organ=refined.organ,
        model_version=refined.version,
        mask=MaskBody.of(refined),
        changed_vox=refined.changed_vox,
        grid=GridLps.model_validate(
            {"shape": refined.grid.shape_vox, "origin_mm": origin, "axes_mm": (x, y, z)}
        ),
        was_kept=refined.was_kept,
        seconds=refined.seconds,
    )
