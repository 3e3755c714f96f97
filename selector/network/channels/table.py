"""Which rule each operator of PyTorch follows."""

from selector.network.channels import products, rules, slicing, statistics
from selector.network.channels.rules import Rule

_MOVING = (
    "permute transpose t unsqueeze squeeze expand clone alias detach repeat contiguous "
    "movedim lift_fresh swapaxes numpy_T unfold"
)
_REDUCING = (
    "sum mean amax amin max min var var_mean std norm linalg_vector_norm logsumexp prod median any "
    "all argmax argmin aminmax nansum"
)
_SPREADING = "_softmax _log_softmax _safe_softmax cumsum cumprod sort"
_ATTENDING = (
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention"
)
_BY_CHANNEL = (
    "native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm "
    "_native_batch_norm_legit miopen_batch_norm"
)
_FLAT = {
    1: "avg_pool1d upsample_nearest1d upsample_linear1d reflection_pad1d replication_pad1d "
    "adaptive_max_pool1d _adaptive_avg_pool1d max_pool1d_with_indices",
    2: "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d "
    "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa "
    "_upsample_bicubic2d_aa reflection_pad2d replication_pad2d grid_sampler_2d "
    "fractional_max_pool2d adaptive_avg_pool2d _upsample_nearest_exact2d max_pool2d",
    3: "max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d upsample_nearest3d "
    "upsample_trilinear3d adaptive_max_pool3d replication_pad3d reflection_pad3d grid_sampler_3d",
}


def _all(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_all(_MOVING, rules.moved),
    **_all("view _unsafe_view reshape _reshape_alias flatten", rules.viewed),
    **_all("cat stack", rules.cat),
    **_all(_REDUCING, statistics.reduced),
    **_all(_SPREADING, statistics.spread),
    **_all("split split_with_sizes unsafe_split chunk", slicing.split),
    **_all("select unbind", slicing.select),
    "slice": slicing.slices,
    "constant_pad_nd": slicing.pad,
    **_all("index index_select gather roll flip", slicing.picked),
    **_all("index_put _unsafe_index_put", slicing.placed),
    **_all("channel_shuffle pixel_shuffle pixel_unshuffle", slicing.shuffled),
    "glu": slicing.glu,
    "convolution": products.convolution,
    **_all("mm addmm", products.mm),
    **_all("bmm baddbmm", products.bmm),
    **_all("mv addmv dot vdot", products.mv),
    **_all(_ATTENDING, products.attention),
    **_all(_BY_CHANNEL, statistics.batch_norm),
    "native_layer_norm": statistics.layer_norm,
    "native_group_norm": statistics.group_norm,
    **_all("roi_align roi_pool", statistics.spatial(2)),
    "embedding": statistics.embedding,
    "im2col": statistics.unfolded,
    "col2im": statistics.refolded,
    **_all("tril triu", statistics.spatial(2)),
    "_to_copy": rules.same,
    "as_strided": rules.restrided,
    **{name: statistics.spatial(n) for n, names in _FLAT.items() for name in names.split()},
}

POINTWISE = frozenset(
    _all(
        "prelu _prelu_kernel native_dropout dropout masked_fill copy _weight_norm_interface "
        "leaky_relu hardtanh hardswish log_sigmoid_forward rrelu_with_noise zeros_like ones_like "
        "empty_like full_like rand_like randn_like bernoulli where clamp nan_to_num fill zero",
        rules.same,
    )
)
"""Operators that work element by element, though PyTorch does not mark them so."""

RESHAPING = frozenset(
    _all(
        "view _unsafe_view reshape expand slice split split_with_sizes unsafe_split repeat "
        "constant_pad_nd unbind unfold",
        rules.same,
    )
)
"""Operators that are given sizes, which the code of a module may keep as numbers."""
