"""A mixture of experts in float64: which experts a token goes to, what they make of it, and back.

`linears` are a model's matrices by name (model.py), an expert's called "blk.0.ffn_up.5.weight"; axes as in layers.py,
and N experts, of which K are chosen for each token.
"""

from types import SimpleNamespace

import numpy as np

from llamacy.kernels.reference import layers


def route(logits, k, scores="softmax", renormalised=True, scale=1.0, selection=None, groups=(0, 0)):
    """Return the chosen experts (T, K), the likeliest first, and their weights (T, K) from logits (T, N).

    scores: "softmax" of all logits or "sigmoid" of each; selection (N,) is added to decide, not to weigh.
    groups (how many, how many used): only experts of the best groups are chosen, those whose two largest values (of
    sigmoids; else whose largest) come to most.
    `renormalised` divides the chosen scores by their sum; `scale` multiplies them in any case.
    """
    s = _scores(logits, scores)
    value = s if selection is None else s + selection
    if groups[0] > 1:
        apart = value.reshape(len(s), groups[0], -1)
        total = np.sort(apart, axis=2)[:, :, -(2 if scores == "sigmoid" else 1) :].sum(axis=2)
        left_out = np.argsort(-total, axis=1, kind="stable")[:, groups[1] :]
        np.put_along_axis(apart := apart.copy(), left_out[:, :, None], -np.inf, 1)
        value = apart.reshape(s.shape)
    chosen = np.argsort(-value, axis=1, kind="stable")[:, :k]
    weights = np.take_along_axis(s, chosen, 1)
    return chosen, scale * (weights / weights.sum(axis=1, keepdims=True) if renormalised else weights)


def route_backward(dweights, logits, chosen, scores="softmax", renormalised=True, scale=1.0):
    """Return dlogits (T, N) of dweights (T, K); which experts are chosen has no gradient."""
    s, dweights = _scores(logits, scores), scale * np.asarray(dweights, np.float64)
    if renormalised:
        own = np.take_along_axis(s, chosen, 1)
        total = own.sum(axis=1, keepdims=True)
        dweights = dweights / total - (dweights * own).sum(axis=1, keepdims=True) / total**2
    ds = np.zeros(s.shape)
    np.put_along_axis(ds, chosen, dweights, 1)
    if scores == "sigmoid":
        return ds * s * (1 - s)
    return s * (ds - (ds * s).sum(axis=1, keepdims=True))


def _scores(logits, kind):
    logits = np.asarray(logits, np.float64)
    return 1 / (1 + np.exp(-logits)) if kind == "sigmoid" else np.exp(layers.log_softmax(logits))


def names(layer, expert):
    """Return what an expert's three matrices are called."""
    return [f"blk.{layer}.ffn_{part}.{expert}.weight" for part in ("gate", "up", "down")]


def unstacked(weights):
    """Return each expert's own matrices and biases of `weights`, {name: array}, in which they are stacked."""
    found = {}
    for name, values in weights.items():
        if "_exps." in name:
            found |= {name.replace("_exps", f".{e}", 1): part for e, part in enumerate(values)}
    return found


def experts(linears, layer, x, routing, activation="swiglu"):
    """Return the experts' weighted sum (T, C) of x (T, C), and what the backward pass needs."""
    logits = router(linears, layer, x)
    selection = linears.weights.get(f"blk.{layer}.exp_probs_b.bias")
    chosen, weights = route(logits, **routing, selection=selection)
    out, kept = np.zeros(np.shape(x)), {}
    for e in range(logits.shape[1]):
        tokens, places = np.nonzero(chosen == e)
        if not len(tokens):
            continue
        of_gate, of_up, of_down = names(layer, e)
        gate, up = linears.forward(of_gate, x[tokens], tokens), linears.forward(of_up, x[tokens], tokens)
        hidden = layers.activate(activation, gate, up)
        y = linears.forward(of_down, hidden, tokens)
        out[tokens] += weights[tokens, places, None] * y
        kept[e] = SimpleNamespace(tokens=tokens, places=places, gate=gate, up=up, hidden=hidden, y=y)
    return out, SimpleNamespace(logits=logits, chosen=chosen, weights=weights, of=kept)


def experts_backward(linears, layer, dout, x, saved, routing, activation="swiglu"):
    """Return dx (T, C); the adapters' gradients go to linears.gradients."""
    dx, dweights = np.zeros(np.shape(x)), np.zeros(saved.weights.shape)
    for e, s in saved.of.items():
        of_gate, of_up, of_down = names(layer, e)
        dweights[s.tokens, s.places] = (dout[s.tokens] * s.y).sum(axis=1)
        dy = saved.weights[s.tokens, s.places, None] * dout[s.tokens]
        dhidden = linears.backward(of_down, dy, s.hidden, s.tokens)
        dgate, dup = layers.activate_backward(activation, dhidden, s.gate, s.up)
        dx[s.tokens] += linears.backward(of_gate, dgate, x[s.tokens], s.tokens)
        dx[s.tokens] += linears.backward(of_up, dup, x[s.tokens], s.tokens)
    how = {key: value for key, value in routing.items() if key not in ("k", "groups")}
    dlogits = route_backward(dweights, saved.logits, saved.chosen, **how)
    return dx + dlogits @ linears.weights[f"blk.{layer}.ffn_gate_inp.weight"]


def router(linears, layer, x):
    """Return the router's logits (T, N); its input is never rounded."""
    bias = linears.weights.get(f"blk.{layer}.ffn_gate_inp.bias", 0)
    return layers.linear(x, linears.weights[f"blk.{layer}.ffn_gate_inp.weight"]) + bias


def shared_weight(linears, layer, x):
    """Return what the shared expert's output is multiplied with, (T, 1): 1 where the layer has no gate for it."""
    gate = linears.weights.get(f"blk.{layer}.ffn_gate_inp_shexp.weight")
    return np.ones((len(x), 1)) if gate is None else 1 / (1 + np.exp(-layers.linear(x, gate)))


def shared_weight_backward(linears, layer, dweight, weight):
    """Return the gradient of x (T, C) of dweight (T, 1)."""
    gate = linears.weights.get(f"blk.{layer}.ffn_gate_inp_shexp.weight")
    return 0 if gate is None else (dweight * weight * (1 - weight)) @ np.asarray(gate, np.float64)
