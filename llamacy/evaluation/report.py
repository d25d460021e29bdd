"""A divergence in full: llama.cpp's statistics under its names, as lines or as JSON."""

import math

from llamacy.evaluation.divergence import QUANTILES

PERCENT = 100
MEDIAN = 0.5
HEAD = (
    "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS            "
    "Same top p"
)


def running(i, found):
    """Return the line on a Divergence after window i."""
    ppl, ratio, kl, rms, top = found.perplexity, found.log_ratio, found.kl, found.rms_dp, found.same_top
    return (
        f"{i:4d}    {ppl.value:9.4f} ± {ppl.error:9.4f}    {ratio.value:10.5f} ± {ratio.error:10.5f}"
        f"    {kl.value:10.5f} ± {kl.error:10.5f}    {PERCENT * rms.value:6.3f} ± {PERCENT * rms.error:6.3f} %"
        f"    {PERCENT * top.value:6.3f} ± {PERCENT * top.error:6.3f} %"
    )


def _quantile_names(noun, shares):
    """Return [(name, share)]: maximum, the shares, minimum; the half is the median."""
    rows = [(f"Maximum {noun}", 1.0)]
    rows += [("Median  " + noun if share == MEDIAN else f"{PERCENT * share:4.1f}%   {noun}", share) for share in shares]
    return [*rows, (f"Minimum {noun}", 0.0)]


def lines(found):
    """Return what there is to say of a Divergence, a str with line ends."""
    ratio, plus = found.log_ratio, found.difference
    # of exp(x): the error is exp(x) times x's
    times = math.exp(ratio.value)
    rows = ["====== Perplexity statistics ======"]
    for name, (value, error) in (("PPL(Q)", found.perplexity), ("PPL(base)", found.base_perplexity)):
        rows.append(f"{'Mean ' + name:<30}: {value:10.6f} ± {error:10.6f}")
    rows.append(f"Cor(ln(PPL(Q)), ln(PPL(base))): {PERCENT * found.correlation:6.2f}%")
    rows.append(f"Mean ln(PPL(Q)/PPL(base))     : {ratio.value:10.6f} ± {ratio.error:10.6f}")
    rows.append(f"Mean PPL(Q)/PPL(base)         : {times:10.6f} ± {times * ratio.error:10.6f}")
    rows.append(f"Mean PPL(Q)-PPL(base)         : {plus.value:10.6f} ± {plus.error:10.6f}")
    rows += [
        "",
        "====== KL divergence statistics ======",
        f"Mean    KLD: {found.kl.value:10.6f} ± {found.kl.error:10.6f}",
    ]
    named = _quantile_names("KLD", QUANTILES)
    values = found.kl_quantiles([share for _, share in named])
    rows += [f"{name}: {value:10.6f}" for (name, _), value in zip(named, values, strict=True)]
    dp = found.dp
    rows += ["", "====== Token probability statistics ======"]
    rows.append(f"Mean    Δp: {PERCENT * dp.value:6.3f} ± {PERCENT * dp.error:5.3f} %")
    named = _quantile_names("Δp", sorted((*QUANTILES, 0.75, 0.25), reverse=True))
    values = found.dp_quantiles([share for _, share in named])
    rows += [f"{name}: {PERCENT * value:6.3f}%" for (name, _), value in zip(named, values, strict=True)]
    rms, top = found.rms_dp, found.same_top
    rows.append(f"RMS Δp    : {PERCENT * rms.value:6.3f} ± {PERCENT * rms.error:5.3f} %")
    rows.append(f"Same top p: {PERCENT * top.value:6.3f} ± {PERCENT * top.error:5.3f} %")
    return "\n".join(rows)


def as_dict(found):
    """Return a Divergence as JSON has it; shares are of 1."""
    facts = {"tokens": found.n_tokens, "correlation": found.correlation}
    for name in ("perplexity", "base_perplexity", "log_ratio", "difference", "kl", "dp", "rms_dp", "same_top"):
        facts[name], facts[f"{name}_stderr"] = getattr(found, name)
    shares = (1.0, *QUANTILES, 0.0)
    names = ["max", *(f"{PERCENT * share:g}%" for share in QUANTILES), "min"]
    facts["kl_quantiles"] = dict(zip(names, map(float, found.kl_quantiles(shares)), strict=True))
    facts["dp_quantiles"] = dict(zip(names, map(float, found.dp_quantiles(shares)), strict=True))
    return facts
