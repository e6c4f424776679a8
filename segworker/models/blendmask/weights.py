"""The official files of AdelaiDet: detectron2's backbone, FCOS, the modules of bases and attention."""

from __future__ import annotations

from segworker.models.common.layouts import (
    DETECTRON2_IGNORED,
    DETECTRON2_RESNET,
    Layout,
    Rename,
    detectron2_pyramid,
    shift,
)

_HEADS: tuple[Rename, ...] = (
    (r"^proposal_generator\.fcos_head\.", "fcos."),
    (r"^top_layer\.", "attention."),
    (r"^basis_module\.refine\.", "basis.refine."),
    (r"^basis_module\.seg_head\.(0|1)\.", r"basis.semantic.0.\1."),
    (r"^basis_module\.seg_head\.([34])\.", shift(-3, "basis.semantic.1.", ".")),
    (r"^basis_module\.seg_head\.6\.", "basis.semantic.2."),
)


def _official(basis_convs: int) -> Layout:
    """Return the layout of a file whose bases come from so many convolutions before the doubling."""
    tower: tuple[Rename, ...] = (
        (rf"^basis_module\.tower\.{basis_convs + 1}\.", "basis.last_conv."),
        (rf"^basis_module\.tower\.{basis_convs + 2}\.", "basis.last."),
        (r"^basis_module\.tower\.", "basis.convs."),
    )
    return Layout(
        "AdelaiDet",
        f"basis_module.tower.{basis_convs + 2}.bias",
        (*DETECTRON2_RESNET, *detectron2_pyramid(3), *_HEADS, *tower),
        DETECTRON2_IGNORED,
    )


OFFICIAL, OFFICIAL_RT = _official(3), _official(2)
