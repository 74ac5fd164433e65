"""Export of a model as an ONNX file, which other programs and OpenVINO can run."""

import json
import warnings
from pathlib import Path

import torch

from lib.errors import ExportError
from lib.models.registry import Model
from lib.networks.build import size_divisor
from lib.storage.atomic_files import replacing

OPSET = 17
"""Version of ONNX's operators: of 2022, so that older programs read the file too."""

_AXES = ("window", "channel", "x", "y", "z")


def export_onnx(model: Model, path: Path, *, opset: int = OPSET) -> None:
    """Write the network of `model` to `path`.

    Input `image`: `(window, channel, x, y, z)`, float32, -1 to 1. Output `logits`: `(window, organ, x, y, z)`.
    The number of windows and their size are free; the size must be divisible by `size_divisor`. Metadata:
    `version`, `sha256`, `organs` (TG-263 name -> channel of the output; channel 0 is background), `spacing_mm`,
    `hu_windows` (one input channel each, scaled to -1..1 and clipped), `window_vox`, `size_divisor`, `axes`.

    Raises:
        ExportError: If PyTorch cannot express the network in ONNX, or the file cannot be written.
    """
    recipe = model.recipe
    divisor = size_divisor(recipe)
    size = [step * -(-16 // step) for step in divisor]
    device = next(model.network.parameters()).device
    example = torch.zeros(1, recipe.in_channels, *size, device=device)
    free = {0: _AXES[0], **{axis: _AXES[axis] for axis in (2, 3, 4)}}
    metadata = {
        "version": model.version,
        "sha256": str(model.card.get("sha256", "")),
        "organs": json.dumps(dict(recipe.labels)),
        "spacing_mm": json.dumps(recipe.spacing_mm),
        "hu_windows": json.dumps(recipe.hu_windows),
        "window_vox": json.dumps(recipe.crop_vox),
        "size_divisor": json.dumps(divisor),
        "axes": "x: left to right of the patient, y: back to front, z: feet to head (RAS)",
        "intended_use": "Research use only.",
    }
    try:
        import onnx  # slow to import, and only needed here

        with replacing(path) as temporary, warnings.catch_warnings(), torch.inference_mode():
            # The exporter warns that it is the older one, and about sizes that it takes as constants.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model.network,
                (example,),
                str(temporary),
                dynamo=False,
                opset_version=opset,
                input_names=["image"],
                output_names=["logits"],
                dynamic_axes={"image": free, "logits": free},
            )
            file = onnx.load(str(temporary))
            onnx.helper.set_model_props(file, metadata)
            onnx.save(file, str(temporary))
    except (
        Exception
    ) as error:  # the exporter raises whatever the layer that it cannot express raises
        raise ExportError(
            f"{model.version}: cannot be exported as ONNX with opset {opset} ({error}); PyTorch runs it still"
        ) from error
