"""Attention, as all backbones compute it.

Shape suffixes: B batch, T tokens, D width, H heads.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def split_heads(x_BTD: Tensor, heads: int) -> Tensor:
    """``[B, T, D] -> [B, H, T, D / H]``."""
    batch, tokens, _ = x_BTD.shape
    return x_BTD.view(batch, tokens, heads, -1).transpose(1, 2)


def attend(q_BTD: Tensor, k_BTD: Tensor, v_BTD: Tensor, mask_BT: Tensor, heads: int) -> Tensor:
    """Multi-head scaled dot-product attention over the tokens where ``mask_BT`` is true."""
    q, k, v = (split_heads(x_BTD, heads) for x_BTD in (q_BTD, k_BTD, v_BTD))
    out_BHTD = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BT[:, None, None, :])
    return out_BHTD.transpose(1, 2).flatten(-2)
