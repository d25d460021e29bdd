"""Which matrices a run adapts, where expressions and layers say it; what matches nothing is refused by name."""

import dataclasses

from llamacy.errors import UsageError, shown
from llamacy.train.lora import matches, names_of, places, targets_of
from llamacy.train.options import TARGETS, is_expression


def settled(config, options):
    """Return the options with targets that name matrices of this model: no expressions, no layers any more.

    UsageError names the expression, layer or pattern that matches nothing.
    """
    everywhere = places(config, TARGETS)
    names = {tensor: names_of(tensor, config.architecture) for tensor in everywhere}
    expressions = [target for target in options.targets if is_expression(target)]
    for expression in (target for target in options.targets if target not in TARGETS):
        if not any(matches(expression, known) for known in names.values()):
            raise UsageError(
                f"--target-modules: {shown(expression)} matches no matrix of this model; {_such_as(names)}"
            )
    if expressions or options.layers:
        plain = [target for target in options.targets if target not in expressions]
        layers = _layers(config, options.layers)
        chosen = [
            tensor
            for tensor, place in everywhere.items()
            if (place.key in plain or tensor in plain or any(matches(each, names[tensor]) for each in expressions))
            and (not layers or place.layer in layers)
        ]
        if not chosen:
            raise UsageError("--layers: none of --target-modules is in these layers; name others")
        options = dataclasses.replace(options, targets=targets_of(config, chosen), layers=())
    trained = places(config, options.targets, options.num_layers)
    if not trained:
        raise UsageError("--target-modules: none of them is in the last --num-layers layers; name others")
    for flag, patterns in (("--rank-pattern", options.rank_pattern), ("--alpha-pattern", options.alpha_pattern)):
        for pattern, _ in patterns:
            if not any(matches(pattern, names[tensor]) for tensor in trained):
                adapted = {tensor: names[tensor] for tensor in trained}
                raise UsageError(f"{flag}: {shown(pattern)} matches no matrix that is trained; {_such_as(adapted)}")
    return options


def _such_as(names):
    return f"they are called as {next(iter(names.values()))[0]} is"


def _layers(config, ranges):
    """Return the set of layers in (first, last) ranges, last None for the end."""
    found = set()
    for first, last in ranges:
        last = config.n_layer - 1 if last is None else last
        if first >= config.n_layer or last >= config.n_layer:
            raise UsageError(f"--layers: the model has layers 0 to {config.n_layer - 1}, got {max(first, last)}")
        found.update(range(first, last + 1))
    return found
