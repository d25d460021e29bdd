"""The llama of llamacy.kernels.reference.model once more, in torch, with autograd's gradients: an independent witness.

Written from the published model: rotary positions as complex products, attention by torch's own function sample by
sample, loss by torch.nn.functional.cross_entropy; nothing of the twin is used but its configuration.
"""

import torch
from torch.nn import functional

DTYPES = {"f64": torch.float64, "f32": torch.float32}


def tensors(arrays, dtype, requires_grad=False):
    """Return {name: tensor} of {name: array}; names of pairs become `name.a` and `name.b`."""
    flat = {}
    for name, value in arrays.items():
        flat |= {f"{name}.a": value[0], f"{name}.b": value[1]} if isinstance(value, tuple) else {name: value}
    return {name: torch.tensor(x, dtype=dtype, requires_grad=requires_grad) for name, x in flat.items()}


class TorchLlama:
    """A llama of torch tensors by GGUF name and LoRA tensors `<name>.a`, `<name>.b`, which autograd follows."""

    def __init__(self, config, weights, lora, scale):
        self.config, self.weights, self.lora, self.scale = config, weights, lora, scale

    def linear(self, name, x):
        """W x and the adapter's part."""
        y = functional.linear(x, self.weights[name])
        if f"{name}.a" not in self.lora:
            return y
        return y + self.scale * functional.linear(functional.linear(x, self.lora[f"{name}.a"]), self.lora[f"{name}.b"])

    def turn(self, x):
        """Rotary positions 0.. of x (T, heads, D): adjacent pairs as complex numbers times e^(i angle)."""
        exponent = torch.arange(0, self.config.head_dim, 2, dtype=torch.float64) / self.config.head_dim
        angles = torch.outer(torch.arange(len(x), dtype=torch.float64), self.config.rope_theta**-exponent)
        unit = torch.polar(torch.ones_like(angles), angles)[:, None].to(torch.complex128)
        pairs = torch.view_as_complex(x.double().reshape(*x.shape[:2], -1, 2))
        return torch.view_as_real(pairs * unit).reshape(x.shape).to(x.dtype)

    def norm(self, name, x):
        """torch's own RMS norm."""
        return functional.rms_norm(x, x.shape[-1:], self.weights[name], self.config.rms_eps)

    def layer(self, n, x):
        """One layer on one sample x (T, C)."""
        p, c = f"blk.{n}.", self.config
        h = self.norm(p + "attn_norm.weight", x)
        q = self.turn(self.linear(p + "attn_q.weight", h).view(len(x), c.n_head, -1)).transpose(0, 1)
        k = self.turn(self.linear(p + "attn_k.weight", h).view(len(x), c.n_head_kv, -1)).transpose(0, 1)
        v = self.linear(p + "attn_v.weight", h).view(len(x), c.n_head_kv, -1).transpose(0, 1)
        k, v = (t.repeat_interleave(c.n_head // c.n_head_kv, dim=0) for t in (k, v))
        attended = functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        x = x + self.linear(p + "attn_output.weight", attended.transpose(0, 1).reshape(len(x), -1))
        h = self.norm(p + "ffn_norm.weight", x)
        gated = functional.silu(self.linear(p + "ffn_gate.weight", h)) * self.linear(p + "ffn_up.weight", h)
        return x + self.linear(p + "ffn_down.weight", gated)

    def logits(self, tokens, segments):
        """Return logits (T, V), each sample computed on its own."""
        tokens, segments, parts = torch.as_tensor(tokens), torch.as_tensor(segments), []
        for segment in torch.unique_consecutive(segments):
            x = self.weights["token_embd.weight"][tokens[segments == segment]]
            for n in range(self.config.n_layer):
                x = self.layer(n, x)
            head = "output.weight" if "output.weight" in self.weights else "token_embd.weight"
            parts.append(self.linear(head, self.norm("output_norm.weight", x)))
        return torch.cat(parts)

    def loss(self, tokens, segments, targets):
        """Mean cross-entropy of the targets that are not negative."""
        targets = torch.as_tensor(targets).clamp(min=-1)
        return functional.cross_entropy(self.logits(tokens, segments), targets, ignore_index=-1)


def train(llama, tokens, segments, targets, steps, max_norm, **adamw):
    """AdamW steps on llama.lora in place; returns the losses and the gradient norms before clipping, as floats."""
    optimizer = torch.optim.AdamW(llama.lora.values(), **adamw)
    losses, norms = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = llama.loss(tokens, segments, targets)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(llama.lora.values(), max_norm)))
        losses.append(float(loss.detach()))
        optimizer.step()
    return losses, norms
