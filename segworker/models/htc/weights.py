"""The official files of mmdetection."""

from __future__ import annotations

from segworker.models.common.layouts import MMDET_BACKBONE, MMDET_MARKER, Layout, Rename, shift

_HEADS: tuple[Rename, ...] = (
    (r"^rpn_head\.rpn_conv\.", "rpn.head.conv.0.0."),
    (r"^rpn_head\.rpn_cls\.", "rpn.head.cls_logits."),
    (r"^rpn_head\.rpn_reg\.", "rpn.head.bbox_pred."),
    (r"^roi_head\.bbox_head\.(\d)\.", r"roi_heads.stages.\1."),
    (r"^(roi_heads\.stages\.\d)\.fc_cls\.", r"\1.cls_score."),
    (r"^(roi_heads\.stages\.\d)\.fc_reg\.", r"\1.bbox_pred."),
    (r"^roi_head\.mask_head\.(\d)\.", r"roi_heads.mask_heads.\1."),
    (r"^(roi_heads\.mask_heads\.\d\.convs\.\d)\.conv\.", r"\1."),
    (r"^(roi_heads\.mask_heads\.\d)\.upsample\.", r"\1.deconv."),
    (r"^(roi_heads\.mask_heads\.\d)\.conv_logits\.", r"\1.predictor."),
    (r"^(roi_heads\.mask_heads\.\d)\.conv_res\.conv\.", r"\1.carry."),
    (r"^roi_head\.semantic_head\.lateral_convs\.(\d)\.conv\.", r"roi_heads.semantic.lateral.\1."),
    (r"^roi_head\.semantic_head\.convs\.(\d)\.conv\.", r"roi_heads.semantic.convs.\1."),
    (r"^roi_head\.semantic_head\.conv_embedding\.conv\.", "roi_heads.semantic.embedding."),
    (r"^roi_head\.semantic_head\.conv_logits\.", "roi_heads.semantic.logits."),
    (r"shared_fcs\.(\d)", shift(1, "fc")),
)
MMDETECTION = Layout("mmdetection", MMDET_MARKER, (*MMDET_BACKBONE, *_HEADS))
