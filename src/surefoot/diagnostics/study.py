"""A study of over-optimisation, from what was measured to what it means: curves, laws, turns, equal KLs, and a verdict in words.

`curves.json` holds the measurements, every number of every prompt; `overoptimize.json` what `analysed` makes of them. Gains are
in deviations of the SFT model's answers, reward and judges alike, so that they can stand on one axis: 1 is as much as separates
a good answer of the SFT model (the best sixth) from its mean one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from surefoot.diagnostics.overoptimization import (
    TINY,
    Array,
    Curve,
    Fit,
    Turn,
    as_lists,
    best_of_n_curve,
    draws,
    estimate,
    fit,
    gain_at,
    mean_interval,
    turn,
)
from surefoot.diagnostics.verdict import Finding
from surefoot.errors import DataError

PROXY = "reward"  # the name under which the optimised score stands beside the judges
LEVELS = tuple(2.0**k for k in range(-1, 8))  # KLs at which variants are compared, nats a sequence
LINE_POINTS = 60


@dataclass(frozen=True, slots=True)
class Ways:
    """The two ways away from the SFT model, a curve for the reward and each judge: PPO's and that of best-of-n."""

    ppo: Mapping[str, Curve]
    best_of_n: Mapping[str, Curve]


def analysed(study: Mapping[str, Any], resamples: int) -> dict[str, Any]:
    """overoptimize.json of a study.

    Raises: DataError where a curve has no point, or there is one prompt alone.
    """
    main, judges = study["main"], list(study["judges"])
    ways = {v["name"]: _pooled([_ways(seed, v["name"], judges) for seed in study["seeds"]]) for v in study["variants"]}
    count = next(iter(ways.values())).ppo[main].gain.shape[1]
    which = draws(count, resamples)
    variants = []
    for variant in study["variants"]:
        name, own = variant["name"], ways[variant["name"]]
        fits = {key: fit(curve, which) for key, curve in own.ppo.items()}
        turns = {key: turn(curve, which) for key, curve in own.ppo.items()}
        found = _finding(name, own, fits[main], turns[main], main)
        variants.append(
            {
                "name": name,
                "settings": variant["settings"],
                "ppo": _way(own.ppo, fits, turns, which, "update"),
                "best_of_n": _way(
                    own.best_of_n,
                    {key: fit(curve, which) for key, curve in own.best_of_n.items()},
                    {key: turn(curve, which) for key, curve in own.best_of_n.items()},
                    which,
                    "n",
                ),
                "by_seed": [_seed(seed, name, judges, main) for seed in study["seeds"]],
                "stop": _stop(own.ppo[main], fits[main], turns[main]),
                "level": found.level,
                "sentence": found.sentence,
            }
        )
    compared = _compared(ways, [*judges, PROXY], which)
    said = [{"level": v["level"], "sentence": v["sentence"]} for v in variants]
    said += [{"level": f.level, "sentence": f.sentence} for f in _comparisons(compared, main)]
    return {
        "main": main,
        "judges": judges,
        "seeds": [seed["seed"] for seed in study["seeds"]],
        "num_prompts": count,
        "resamples": resamples,
        "sft": _sft(study["seeds"], judges, [v["name"] for v in study["variants"]]),
        "variants": variants,
        "at_equal_kl": compared,
        "verdict": said,
    }


def _ways(seed: Mapping[str, Any], name: str, judges: Sequence[str]) -> Ways:
    """One seed's curves of one variant. Each prompt's gain is over the mean of the SFT model's answers to that prompt."""
    own = seed["variants"][name]
    if not own["updates"]:
        raise DataError(f"variant {name}, seed {seed['seed']}: no look at the held-out prompts was recorded. Train it again.")
    pool_proxy = np.array(own["pool_proxy"])
    kl = np.array(own["kl"])
    ppo, best = {}, {}
    for key in (*judges, PROXY):
        pool = pool_proxy if key == PROXY else np.array(seed["pool"][key])
        seen = np.array(own["proxy"] if key == PROXY else own["gold"][key])
        baseline, deviation = pool.mean(1), max(float(pool.std()), TINY)
        ppo[key] = Curve("rl", tuple(own["updates"]), kl, (seen - baseline) / deviation)
        best[key] = best_of_n_curve(pool_proxy, pool / deviation, baseline / deviation)
    return Ways(ppo, best)


def _pooled(every: Sequence[Ways]) -> Ways:
    """The mean over seeds, at the points that all of them have."""
    return Ways(_mean([ways.ppo for ways in every]), _mean([ways.best_of_n for ways in every]))


def _mean(every: Sequence[Mapping[str, Curve]]) -> dict[str, Curve]:
    found = {}
    for key, first in every[0].items():
        curves = [ways[key] for ways in every]
        count = min(curve.gain.shape[1] for curve in curves)
        names = [name for name in first.names if all(name in curve.names for curve in curves)]
        if not names:
            raise DataError("the seeds have no update in common at which they were looked at. Use one overoptimize.eval_every.")
        places = [[curve.names.index(name) for name in names] for curve in curves]
        kl = np.mean([c.kl[place][:, :count] for c, place in zip(curves, places, strict=True)], axis=0)
        gain = np.mean([c.gain[place][:, :count] for c, place in zip(curves, places, strict=True)], axis=0)
        found[key] = Curve(first.kind, tuple(names), kl, gain)
    return found


def _way(
    curves: Mapping[str, Curve], fits: Mapping[str, Fit | None], turns: Mapping[str, Turn], which: Any, name: str
) -> dict[str, Any]:
    """Points, laws and turns of one way, for JSON."""
    any_curve = next(iter(curves.values()))
    heights = {key: mean_interval(curve.gain, which) for key, curve in curves.items()}
    kl = any_curve.kl.mean(1)
    points = [
        {name: label, "kl": round(float(kl[t]), 6), "gain": {key: _rounded(heights[key][t].as_dict()) for key in curves}}
        for t, label in enumerate(any_curve.names)
    ]
    return {
        "points": points,
        "fit": {key: None if found is None else _fitted(found, kl) for key, found in fits.items()},
        "turn": {key: _turned(found, curves[key]) for key, found in turns.items()},
    }


def _fitted(found: Fit, kl: Array) -> dict[str, Any]:
    grid = np.linspace(0.0, np.sqrt(kl.max()), LINE_POINTS) ** 2
    low, high = found.band(grid)
    interval = found.knee_interval
    return {
        "alpha": _rounded(found.alpha.as_dict()),
        "beta": _rounded(found.beta.as_dict()),
        "knee_kl": None if found.knee is None else round(found.knee, 4),
        "knee_interval": None if interval is None else [round(x, 4) if np.isfinite(x) else None for x in interval],
        "knee_share": round(found.knee_share, 4),
        "line": {"kl": as_lists(grid), "gain": as_lists(found.at(grid)), "low": as_lists(low), "high": as_lists(high)},
    }


def _turned(found: Turn, curve: Curve) -> dict[str, Any]:
    where = {"point": None, "kl": 0.0}
    if found.top is not None:
        where = {"point": curve.names[found.top], "kl": round(float(curve.kl[found.top].mean()), 6)}
    return {"top": where, "rise": _rounded(found.rise.as_dict()), "fall": _rounded(found.fall.as_dict())}


def _seed(seed: Mapping[str, Any], name: str, judges: Sequence[str], main: str) -> dict[str, Any]:
    """One seed's points without intervals, and its own law of the main judge."""
    ways = _ways(seed, name, judges)
    kl = ways.ppo[main].kl.mean(1)
    found = fit(ways.ppo[main], draws(ways.ppo[main].kl.shape[1], 100))
    points = [
        {"update": label, "kl": round(float(kl[t]), 6)}
        | {"gain": {key: round(float(curve.gain[t].mean()), 6) for key, curve in ways.ppo.items()}}
        for t, label in enumerate(ways.ppo[main].names)
    ]
    own = None if found is None else {"alpha": round(found.alpha.value, 6), "beta": round(found.beta.value, 6)}
    return {"seed": seed["seed"], "points": points, "fit": own}


def _sft(seeds: Sequence[Mapping[str, Any]], judges: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Mean and deviation of the SFT model's answers, by judge and by each variant's reward, means over the seeds."""

    def figures(pools: list[Array]) -> dict[str, float]:
        return {
            "mean": round(float(np.mean([pool.mean() for pool in pools])), 6),
            "deviation": round(float(np.mean([pool.std() for pool in pools])), 6),
        }

    found = {judge: figures([np.array(seed["pool"][judge]) for seed in seeds]) for judge in judges}
    return found | {f"{PROXY} of {n}": figures([np.array(seed["variants"][n]["pool_proxy"]) for seed in seeds]) for n in names}


def _stop(curve: Curve, found: Fit | None, seen: Turn) -> dict[str, Any] | None:
    """Where to stop, where the judge fell: at the law's top if it lies within what was measured, else at the top in the data."""
    if seen.fall.low <= 0:
        return None
    kl = curve.kl.mean(1)
    if found is not None and found.knee is not None and found.knee <= kl.max():
        at, source = found.knee, "fit"
    else:
        at, source = (0.0 if seen.top is None else float(kl[seen.top])), "data"
    nearest = int(np.abs(np.sqrt(np.r_[0.0, kl]) - np.sqrt(at)).argmin())
    return {"kl": round(at, 4), "update": 0 if nearest == 0 else curve.names[nearest - 1], "from": source}


def _finding(name: str, ways: Ways, found: Fit | None, seen: Turn, main: str) -> Finding:
    """What happened to the main judge of one variant, in a sentence or two."""
    curve, proxy = ways.ppo[main], ways.ppo[PROXY].gain.mean(1)
    kl, gain = curve.kl.mean(1), curve.gain.mean(1)
    further = f" ({kl.max():.1f} on the way)" if kl.max() > 1.1 * kl[-1] else ""
    end, last = f"KL {kl[-1]:.1f}{further}", gain[-1]
    if seen.fall.low <= 0:
        if seen.rise.low <= 0:
            return Finding("note", f"{name}: {main} did not move beyond chance up to {end}; the reward ends at {proxy[-1]:+.2f}.")
        turn_words = _knee_words(found, kl.max())
        return Finding(
            "good", f"{name}: no fall of {main} seen up to {end}, where it ends at {last:+.2f} deviations.{turn_words}"
        )
    fell = f"fell by {seen.fall.value:.2f} (95 % interval {seen.fall.low:.2f} to {seen.fall.high:.2f}) by {end}"
    top = 0.0 if seen.top is None else proxy[seen.top]
    went = f"while the reward went from {top:+.2f} to {proxy[-1]:+.2f}"
    stop = _stop(curve, found, seen)
    assert stop is not None  # it fell
    if seen.top is None or seen.rise.low <= 0:
        begun = f"{name}: {main} never rose above the SFT model beyond chance, and {fell}, {went}"
    else:
        begun = f"{name}: {main} rose to {gain[seen.top]:+.2f} deviations at KL {kl[seen.top]:.1f}, then {fell}, {went}"
    if proxy[-1] <= top:
        return Finding("warning", f"{begun}. Both fell, so the run broke; no reward was gamed. Lower ppo.learning_rate.")
    advice = f"Stop at KL {stop['kl']:.1f} (update {stop['update']})." if stop["kl"] > 0 else "Do not optimise this reward."
    return Finding("bad", f"{begun}: over-optimisation. {advice}{_knee_words(found, kl.max())}")


def _knee_words(found: Fit | None, largest: float) -> str:
    """Where the fitted law turns, as a sentence with a space in front; empty where nothing was fitted."""
    if found is None:
        return ""
    if found.knee is None:
        return " The fitted law has no top."
    beyond = "" if found.knee <= largest else ", beyond what was measured"
    if found.knee > 1e4:
        return " The fitted law turns far beyond what was measured."
    interval = ""
    if found.knee_interval is not None:
        low, high = found.knee_interval
        interval = f" (95 % interval {low:.1f} to {high:.1f})" if high <= 1e4 else f" (95 % interval from {low:.1f} on)"
    return f" The fitted law turns at KL {found.knee:.1f}{interval}{beyond}."


def _compared(ways: Mapping[str, Ways], keys: Sequence[str], which: Any) -> list[dict[str, Any]]:
    """Gains of all variants at equal KL, up to the smallest of their largest KLs, and differences from the first variant.

    Best-of-n stands beside PPO as far as its KL goes.
    """

    def largest(curves: Mapping[str, Curve]) -> float:
        return float(curves[keys[0]].kl.mean(1).max())

    levels = [level for level in LEVELS if level <= min(largest(own.ppo) for own in ways.values())]
    if not levels:
        return []
    first = next(iter(ways))
    found: dict[str, dict[str, Array]] = {
        name: {key: gain_at(own.ppo[key], levels, which) for key in keys} for name, own in ways.items()
    }
    best = {name: {key: gain_at(own.best_of_n[key], levels, which) for key in keys} for name, own in ways.items()}
    rows = []
    for i, level in enumerate(levels):
        row: dict[str, Any] = {"kl": level, "gain": {}, "against": {}, "best_of_n": {}}
        for name in ways:
            row["gain"][name] = {key: _rounded(estimate(found[name][key][:, i]).as_dict()) for key in keys}
            if name != first:
                gap = {key: found[name][key][:, i] - found[first][key][:, i] for key in keys}
                row["against"][name] = {key: _rounded(estimate(gap[key]).as_dict()) for key in keys}
            if level <= largest(ways[name].best_of_n):
                row["best_of_n"][name] = {key: _rounded(estimate(best[name][key][:, i]).as_dict()) for key in keys}
        rows.append(row)
    return rows


def _comparisons(compared: Sequence[Mapping[str, Any]], main: str) -> list[Finding]:
    """Each variant against the first at the largest KL that all have reached."""
    if not compared:
        return []
    row, said = compared[-1], []
    first = next(iter(row["gain"]))
    for name, gaps in row["against"].items():
        gap = gaps[main]
        clear = "beyond chance" if gap["low"] > 0 or gap["high"] < 0 else "within chance"
        said.append(
            Finding(
                "note",
                f"At KL {row['kl']:g}, {name} stands {gap['value']:+.2f} deviations of {main} from {first} "
                f"(95 % interval {gap['low']:+.2f} to {gap['high']:+.2f}, {clear}).",
            )
        )
    return said


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 6) for key, value in figures.items()}


def joined(studies: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Parts of a study as one: other seeds, other variants, or both; `names` are said where they do not fit.

    The variants stand in the order in which the parts name them, so that the first part's first is the one that others are
    compared with.

    Raises: DataError where the judges differ, a variant's settings or a seed's pools do, one stands twice, or one is missing.
    """
    first, variants, seeds = studies[0], dict[str, Any](), dict[int, dict[str, Any]]()
    for study, name in zip(studies, names, strict=True):
        if (study["judges"], study["main"]) != (first["judges"], first["main"]):
            raise DataError(f"overoptimize.join: {name} was judged by others than {names[0]}. Join parts of one study alone.")
        for variant in study["variants"]:
            if variants.setdefault(variant["name"], variant) != variant:
                raise DataError(f"overoptimize.join: {variant['name']} has other settings in {name}. Give it another name.")
        for seed in study["seeds"]:
            own = seeds.setdefault(seed["seed"], {"seed": seed["seed"], "pool": seed["pool"], "variants": {}})
            if own["pool"] != seed["pool"]:
                raise DataError(
                    f"overoptimize.join: {name} has other answers of the SFT model than another part with seed {seed['seed']}. "
                    "Join parts with one SFT model, one overoptimize.best_of and one overoptimize.num_prompts."
                )
            if twice := [variant for variant in seed["variants"] if variant in own["variants"]]:
                raise DataError(f"overoptimize.join: {twice[0]} of seed {seed['seed']} stands in {name} and in another part.")
            own["variants"] |= seed["variants"]
    for number, own in seeds.items():
        if missing := [variant for variant in variants if variant not in own["variants"]]:
            raise DataError(f"overoptimize.join: no part has {missing[0]} of seed {number}. Train it, or leave the seed out.")
    return {**first, "variants": list(variants.values()), "seeds": [seeds[number] for number in sorted(seeds)]}
