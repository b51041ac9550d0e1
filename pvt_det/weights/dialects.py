"""Key layouts ("dialects") of published PVT and ResNet weights, as tables that `translate.py` applies.

A dialect has a marker, which is a regular expression that at least one whole key must match, and rules that rename its
keys to the published names (to Detectron2's names for ResNet and for everything outside the trunk). To support another
layout, add an entry here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """A rule that renames keys.

    Attributes:
        sources: Regular expressions that each match one whole key. If there are several, `op` joins their tensors.
        targets: New names, or none for a constant. `{group}` is replaced by a named group of the match, and
            `{group+1}`, `{group-1}` or `{group*2}` by the result of that calculation.
        op: The operation on the tensors, a key of `translate.OPS`.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    op: str = "same"


def _spell_out(pattern: str) -> str:
    """Expand the shorthand: `<s>` is a number in group s, a final `P` is weight or bias in group p."""
    return re.sub(r"(?<!\?P)<(\w)>", r"(?P<\1>\\d+)", re.sub(r"P$", "(?P<p>weight|bias)", pattern))


@dataclass(frozen=True)
class Dialect:
    """A key layout.

    Attributes:
        name: The name of the layout, for messages.
        marker: A regular expression. A checkpoint has this layout if at least one whole key matches it.
        rules: The rules, tried in order. The first that matches a key is used.
        prefix: The prefix that keys may have in the layout of a trunk, or that the trunk's keys must have in the layout
            of a detector.
        note: Another difference between this package and the code that produced the weights. It is logged on loading.
    """

    name: str
    marker: str
    rules: tuple[Rule, ...]
    prefix: str = ""
    note: str = ""


def _dialect(name: str, marker: str, *rows: tuple, prefix: str = "", note: str = "") -> Dialect:
    """Build a dialect from rows that hold the source(s), the target(s) and optionally the op of a rule."""
    rules = []
    for source, target, *op in rows:
        sources, targets = ((names,) if isinstance(names, str) else names for names in (source, target))
        rules.append(Rule(tuple(map(_spell_out, sources)), targets, *op))
    return Dialect(name, marker, tuple(rules), prefix, note)


_UNCHANGED = (r"(?P<k>.+)", "{k}")


def _mmdet_blocks(first: int, fc2: int) -> list[tuple]:
    """Return rules for MMDetection's PVT, given the indices of block 0 and of its MLP's last layer."""
    block = r"layers\.<s>\.1\.<b>\."
    to = f"block{{s+1}}.{{b-{first}}}."
    return [
        (r"layers\.<s>\.0\.projection\.P", "patch_embed{s+1}.proj.{p}"),
        (r"layers\.<s>\.0\.norm\.P", "patch_embed{s+1}.norm.{p}"),
        (r"layers\.<s>\.1\.0\.pos_embed", "pos_embed{s+1}"),
        (r"layers\.<s>\.2\.P", "norm{s+1}.{p}"),
        (block + r"attn\.attn\.in_proj_P", (to + "attn.q.{p}", to + "attn.kv.{p}"), "split_q_kv"),
        (block + r"attn\.attn\.out_proj\.P", to + "attn.proj.{p}"),
        (block + r"ffn\.layers\.0\.P", to + "mlp.fc1.{p}", "conv_to_linear"),
        (block + rf"ffn\.layers\.{fc2}\.P", to + "mlp.fc2.{p}", "conv_to_linear"),
        (block + r"ffn\.layers\.1\.P", to + "mlp.dwconv.dwconv.{p}"),
        (block + r"(?P<k>attn\.sr|attn\.norm|norm1|norm2)\.P", to + "{k}.{p}"),
    ]


_BLOCK = "block{s+1}.{b}."


def _hf_block(block: str, within: str, reduction: str, projection: str) -> list[tuple]:
    """Return rules for the blocks of transformers' PVT.

    Args:
        block: Prefix of a block's keys.
        within: Infix between `attention.` and the names of its layers.
        reduction: Name of the layer that shortens the sequence.
        projection: Name of the attention's last layer.
    """
    attention = rf"{block}attention\.{within}"
    return [
        (block + r"layer_norm_<n>\.P", _BLOCK + "norm{n}.{p}"),
        (attention + r"query\.P", _BLOCK + "attn.q.{p}"),
        ((attention + r"key\.P", attention + r"value\.P"), _BLOCK + "attn.kv.{p}", "concat"),
        (rf"{attention}{reduction}\.P", _BLOCK + "attn.sr.{p}"),
        (attention + r"layer_norm\.P", _BLOCK + "attn.norm.{p}"),
        (rf"{block}attention\.{projection}\.P", _BLOCK + "attn.proj.{p}"),
        (block + r"mlp\.dense<n>\.P", _BLOCK + "mlp.fc{n}.{p}"),
    ]


# MMDetection's FPN from stage 2 on, with two more levels.
_MMDET_FPN = (
    (r"neck\.lateral_convs\.<i>\.conv\.P", "backbone.fpn_lateral{i+3}.{p}"),
    (r"neck\.fpn_convs\.(?P<i>[0-2])\.conv\.P", "backbone.fpn_output{i+3}.{p}"),
    (r"neck\.fpn_convs\.(?P<i>[34])\.conv\.P", "backbone.top_block.p{i+3}.{p}"),
)
# MMDetection's FPN of all stages. Its last level has no weights.
_MMDET_FPN_OF_4 = (
    (r"neck\.lateral_convs\.<i>\.conv\.P", "backbone.fpn_lateral{i+2}.{p}"),
    (r"neck\.fpn_convs\.<i>\.conv\.P", "backbone.fpn_output{i+2}.{p}"),
)
# The parts before the ROI heads of MMDetection's Mask R-CNN and Cascade Mask R-CNN.
_MMDET_RPN = (
    *_MMDET_FPN_OF_4,
    (r"rpn_head\.rpn_conv\.P", "proposal_generator.rpn_head.conv.{p}"),
    (r"rpn_head\.rpn_cls\.P", "proposal_generator.rpn_head.objectness_logits.{p}"),
    (r"rpn_head\.rpn_reg\.P", "proposal_generator.rpn_head.anchor_deltas.{p}"),
)


def _mmdet_mask_head(source: str, target: str) -> list[tuple]:
    """Return rules for a mask head of MMDetection, given the prefixes of a stage in its keys and in ours."""
    source, target = r"roi_head\.mask_head\." + source, "roi_heads.mask_head." + target
    return [
        (source + r"convs\.<i>\.conv\.P", target + "mask_fcn{i+1}.{p}"),
        (source + r"upsample\.P", target + "deconv.{p}"),
        (source + r"conv_logits\.P", target + "predictor.{p}"),
    ]


def _mmdet_towers(head: str) -> list[tuple]:
    """Return rules for the head of MMDetection's ATSS and GFL, given the prefix of its last layers."""
    return [
        *_MMDET_FPN,
        (r"bbox_head\.cls_convs\.<i>\.conv\.P", "head.cls_subnet.{i}.{p}"),
        (r"bbox_head\.reg_convs\.<i>\.conv\.P", "head.bbox_subnet.{i}.{p}"),
        (r"bbox_head\.cls_convs\.<i>\.gn\.P", "head.cls_subnet.{i}.norm.{p}"),
        (r"bbox_head\.reg_convs\.<i>\.gn\.P", "head.bbox_subnet.{i}.norm.{p}"),
        (rf"bbox_head\.{head}_cls\.P", "head.cls_score.{p}"),
        (rf"bbox_head\.{head}_reg\.P", "head.bbox_pred.{p}"),
        (r"bbox_head\.scales\.<i>\.scale", "head.scales.{i}"),
    ]


_BN = "(?P<p>weight|bias|running_mean|running_var|num_batches_tracked)"
_RESNET_BLOCK = "res{s+1}.{b}."

_EPS_NOTE = "to reproduce MMDetection's outputs exactly, set MODEL.PVT.EMBED_NORM_EPS to 1e-6"

# The part of the trunk's keys that says that the trunk is a model of timm.
TIMM_PREFIX = "timm."

# Layouts of a trunk or a classifier.
TRUNKS = (
    _dialect("timm backbone", r"timm\..+", _UNCHANGED),
    _dialect("published PVT", r"patch_embed1\.proj\.weight", _UNCHANGED, prefix="backbone."),
    _dialect(
        "MMDetection PVT",
        r"layers\.0\.1\.0\.pos_embed",
        *_mmdet_blocks(1, 3),
        prefix="backbone.",
        note=_EPS_NOTE,
    ),
    _dialect(
        "MMDetection PVT v2",
        r"layers\.0\.1\.0\.norm1\.weight",
        *_mmdet_blocks(0, 4),
        prefix="backbone.",
        note=_EPS_NOTE,
    ),
    _dialect(
        "OpenMixup PVT",
        r"patch_embed1\.projection\.weight",
        (r"patch_embed<s>\.projection\.P", "patch_embed{s}.proj.{p}"),
        (r"patch_embed<s>\.norm\.P", "patch_embed{s}.norm.{p}"),
        (r"blocks<s>\.<b>\.(ln|norm)<n>\.P", "block{s}.{b}.norm{n}.{p}"),
        (r"blocks<s>\.<b>\.ffn\.(?P<k>fc1|fc2)\.P", "block{s}.{b}.mlp.{k}.{p}"),
        (r"blocks<s>\.<b>\.(?P<k>attn\.\w+)\.P", "block{s}.{b}.{k}.{p}"),
        (r"norm3\.P", "norm.{p}"),
        (r"head\.layers\.head\.P", "head.{p}"),
        (r"(?P<k>pos_embed\d|cls_token)", "{k}"),
        prefix="backbone.",
    ),
    _dialect(
        "timm PVT v2",
        r"stages\.0\.blocks\.0\.attn\.q\.weight",
        (r"patch_embed\.(?P<k>proj|norm)\.P", "patch_embed1.{k}.{p}"),
        (r"stages\.<s>\.downsample\.(?P<k>proj|norm)\.P", "patch_embed{s+1}.{k}.{p}"),
        (r"stages\.<s>\.norm\.P", "norm{s+1}.{p}"),
        (r"stages\.<s>\.blocks\.<b>\.mlp\.dwconv\.P", _BLOCK + "mlp.dwconv.dwconv.{p}"),
        (r"stages\.<s>\.blocks\.<b>\.(?P<k>[\w.]+)\.P", _BLOCK + "{k}.{p}"),
        (r"head\.P", "head.{p}"),
    ),
    _dialect(
        "transformers PVT",
        r"encoder\.patch_embeddings\.0\.projection\.weight",
        (r"encoder\.patch_embeddings\.<s>\.projection\.P", "patch_embed{s+1}.proj.{p}"),
        (r"encoder\.patch_embeddings\.<s>\.layer_norm\.P", "patch_embed{s+1}.norm.{p}"),
        (r"encoder\.patch_embeddings\.<s>\.position_embeddings", "pos_embed{s+1}"),
        (r"encoder\.patch_embeddings\.3\.cls_token", "cls_token"),
        *_hf_block(r"encoder\.block\.<s>\.<b>\.", r"self\.", "sequence_reduction", r"output\.dense"),
        (r"encoder\.layer_norm\.P", "norm.{p}"),
        (r"classifier\.P", "head.{p}"),
        prefix="pvt.",
    ),
    _dialect(
        "transformers PVT v2",
        r"encoder\.layers\.0\.patch_embedding\.proj\.weight",
        (r"encoder\.layers\.<s>\.patch_embedding\.proj\.P", "patch_embed{s+1}.proj.{p}"),
        (r"encoder\.layers\.<s>\.patch_embedding\.layer_norm\.P", "patch_embed{s+1}.norm.{p}"),
        (r"encoder\.layers\.<s>\.layer_norm\.P", "norm{s+1}.{p}"),
        *_hf_block(r"encoder\.layers\.<s>\.blocks\.<b>\.", "", "spatial_reduction", "proj"),
        (r"encoder\.layers\.<s>\.blocks\.<b>\.mlp\.dwconv\.dwconv\.P", _BLOCK + "mlp.dwconv.dwconv.{p}"),
        (r"classifier\.P", "head.{p}"),
        prefix="pvt_v2.",
    ),
    _dialect(
        "torchvision ResNet",
        r"layer1\.0\.conv1\.weight",
        (r"conv1\.weight", "stem.conv1.weight"),
        (rf"bn1\.{_BN}", "stem.conv1.norm.{p}"),
        (r"layer<s>\.<b>\.conv<n>\.weight", _RESNET_BLOCK + "conv{n}.weight"),
        (rf"layer<s>\.<b>\.bn<n>\.{_BN}", _RESNET_BLOCK + "conv{n}.norm.{p}"),
        (r"layer<s>\.<b>\.downsample\.0\.weight", _RESNET_BLOCK + "shortcut.weight"),
        (rf"layer<s>\.<b>\.downsample\.1\.{_BN}", _RESNET_BLOCK + "shortcut.norm.{p}"),
        (r"fc\.P", "stem.fc.{p}"),
        prefix="backbone.",
    ),
    _dialect(
        "Caffe2 ResNet",
        r"res2_0_branch2a_w",
        (r"conv1_w", "stem.conv1.weight"),
        (r"res_conv1_bn_s", "stem.conv1.norm.weight"),
        (r"res_conv1_bn_b", "stem.conv1.norm.bias"),
        *(
            (rf"res<s>_<b>_{source}{tail}", f"res{{s}}.{{b}}.{target}.{name}")
            for source, target in (
                ("branch1", "shortcut"),
                ("branch2a", "conv1"),
                ("branch2b", "conv2"),
                ("branch2c", "conv3"),
            )
            for tail, name in (("_w", "weight"), ("_bn_s", "norm.weight"), ("_bn_b", "norm.bias"))
        ),
        (r"(pred|fc1000)_w", "stem.fc.weight"),
        (r"(pred|fc1000)_b", "stem.fc.bias"),
    ),
    _dialect("Detectron2 ResNet", r"stem\.conv1\.weight", _UNCHANGED),
)


def _mmdet_detr(transformer: str, self_attention: str, cross_attention: str, mlp: str) -> list[tuple]:
    """Return rules for encoder, decoder and head of MMDetection's DETR.

    Args:
        transformer: Prefix of the keys of encoder and decoder.
        self_attention: Name of the attention within a layer's inputs.
        cross_attention: Name of the decoder's attention to the image.
        mlp: Name of a layer's MLP.
    """
    layer = transformer + r"(?P<c>encoder|decoder)\.layers\.<s>\."
    to = "transformer.{c}.{s}."
    return [
        (layer + self_attention + r"\.attn\.(?P<k>in_proj_|out_proj\.)P", to + "self_attn.{k}{p}"),
        (layer + cross_attention + r"\.attn\.(?P<k>in_proj_|out_proj\.)P", to + "cross_attn.{k}{p}"),
        (layer + mlp + r"\.layers\.0\.0\.P", to + "mlp.0.{p}"),
        (layer + mlp + r"\.layers\.1\.P", to + "mlp.3.{p}"),
        (layer + r"norms\.<n>\.P", to + "norm{n+1}.{p}"),
        (transformer + r"decoder\.post_norm\.P", "transformer.norm.{p}"),
        (r"bbox_head\.fc_cls\.P", "class_embed.{p}"),
        (r"bbox_head\.reg_ffn\.layers\.0\.0\.P", "bbox_embed.0.{p}"),
        (r"bbox_head\.reg_ffn\.layers\.1\.P", "bbox_embed.3.{p}"),
        (r"bbox_head\.fc_reg\.P", "bbox_embed.6.{p}"),
    ]


# Rules for a stage of MMDetection's Sparse R-CNN: source and target after the number of the stage.
_SPARSE_STAGE = (
    (r"attention\.attn\.(?P<k>in_proj_|out_proj\.)P", "self_attn.{k}{p}"),
    (r"attention_norm\.P", "norm1.{p}"),
    (r"instance_interactive_conv\.(?P<k>dynamic_layer|norm_in|norm_out)\.P", "interaction.{k}.{p}"),
    (r"instance_interactive_conv\.fc_layer\.P", "interaction.out_layer.{p}"),
    (r"instance_interactive_conv\.fc_norm\.P", "interaction.norm.{p}"),
    (r"instance_interactive_conv_norm\.P", "norm2.{p}"),
    (r"ffn\.layers\.0\.0\.P", "mlp.0.{p}"),
    (r"ffn\.layers\.1\.P", "mlp.3.{p}"),
    (r"ffn_norm\.P", "norm3.{p}"),
    (r"cls_fcs\.<n>\.P", "cls_layers.{n}.{p}"),
    (r"reg_fcs\.<n>\.P", "box_layers.{n}.{p}"),
    (r"fc_cls\.P", "cls_score.{p}"),
    (r"fc_reg\.P", "bbox_pred.{p}"),
)

# Layouts of a whole detector. The keys that begin with `prefix` belong to its trunk, in one of the layouts of `TRUNKS`.
DETECTORS = (
    _dialect("Detectron2 detector", r"backbone\.bottom_up\..+", _UNCHANGED, prefix="backbone.bottom_up."),
    _dialect(
        "MMDetection RetinaNet",
        r"bbox_head\.retina_cls\.weight",
        *_MMDET_FPN,
        (r"bbox_head\.cls_convs\.<i>\.conv\.P", "head.cls_subnet.{i*2}.{p}"),
        (r"bbox_head\.reg_convs\.<i>\.conv\.P", "head.bbox_subnet.{i*2}.{p}"),
        (r"bbox_head\.retina_cls\.P", "head.cls_score.{p}", "ratio_major_to_size_major"),
        (r"bbox_head\.retina_reg\.P", "head.bbox_pred.{p}", "ratio_major_to_size_major"),
        prefix="backbone.",
    ),
    _dialect(
        "MMDetection ATSS",
        r"bbox_head\.atss_cls\.weight",
        *_mmdet_towers("atss"),
        (r"bbox_head\.atss_centerness\.P", "head.centerness.{p}"),
        prefix="backbone.",
    ),
    _dialect(
        "MMDetection GFL",
        r"bbox_head\.gfl_cls\.weight",
        *_mmdet_towers("gfl"),
        (r"bbox_head\.integral\.project", (), "count_from_zero"),
        prefix="backbone.",
    ),
    _dialect(
        "MMDetection Mask R-CNN",
        r"roi_head\.mask_head\.conv_logits\.weight",
        *_MMDET_RPN,
        (r"roi_head\.bbox_head\.shared_fcs\.<i>\.P", "roi_heads.box_head.fc{i+1}.{p}"),
        (r"roi_head\.bbox_head\.fc_cls\.P", "roi_heads.box_predictor.cls_score.{p}"),
        (r"roi_head\.bbox_head\.fc_reg\.P", "roi_heads.box_predictor.bbox_pred.{p}"),
        *_mmdet_mask_head(r"", ""),
        prefix="backbone.",
    ),
    _dialect(
        "MMDetection Cascade Mask R-CNN",
        r"roi_head\.bbox_head\.0\.shared_fcs\.0\.weight",
        *_MMDET_RPN,
        (r"roi_head\.bbox_head\.<s>\.shared_convs\.<i>\.conv\.P", "roi_heads.box_head.{s}.conv{i+1}.{p}"),
        (rf"roi_head\.bbox_head\.<s>\.shared_convs\.<i>\.bn\.{_BN}", "roi_heads.box_head.{s}.conv{i+1}.norm.{p}"),
        (r"roi_head\.bbox_head\.<s>\.shared_fcs\.<i>\.P", "roi_heads.box_head.{s}.fc{i+1}.{p}"),
        (r"roi_head\.bbox_head\.<s>\.fc_cls\.P", "roi_heads.box_predictor.{s}.cls_score.{p}"),
        (r"roi_head\.bbox_head\.<s>\.fc_reg\.P", "roi_heads.box_predictor.{s}.bbox_pred.{p}"),
        *_mmdet_mask_head(r"<s>\.", "{s}."),
        prefix="backbone.",
    ),
    _dialect(
        "MMDetection DETR",
        r"query_embedding\.weight",
        (r"neck\.convs\.0\.conv\.P", "input_proj.{p}"),
        (r"query_embedding\.weight", "query_embed.weight"),
        *_mmdet_detr(r"", r"self_attn", r"cross_attn", r"ffn"),
        prefix="backbone.",
    ),
    _dialect(
        "MMDetection 2 DETR",
        r"bbox_head\.query_embedding\.weight",
        (r"bbox_head\.input_proj\.P", "input_proj.{p}"),
        (r"bbox_head\.query_embedding\.weight", "query_embed.weight"),
        *_mmdet_detr(r"bbox_head\.transformer\.", r"attentions\.0", r"attentions\.1", r"ffns\.0"),
        prefix="backbone.",
    ),
    _dialect(
        "MMDetection Sparse R-CNN",
        r"rpn_head\.init_proposal_bboxes\.weight",
        *_MMDET_FPN_OF_4,
        (r"rpn_head\.init_proposal_bboxes\.weight", "proposal_boxes.weight"),
        (r"rpn_head\.init_proposal_features\.weight", "proposal_features.weight"),
        *((rf"roi_head\.bbox_head\.<s>\.{source}", "stages.{s}." + target) for source, target in _SPARSE_STAGE),
        prefix="backbone.",
    ),
)
