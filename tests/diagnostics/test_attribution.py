"""What a reward pays for: against NumPy's regressions, on planted features, on noise, and in parts that add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from surefoot.diagnostics import attribution as module
from surefoot.diagnostics.attribution import FEATURES, Attribution, FeatureSums, attribution, feature_sums, movers

END = 0


def best(named: Attribution) -> int:
    """The place of what explains most; of equals the first."""
    return max(range(len(FEATURES)), key=lambda i: (named.shares[i], -i))


def text_of(token: int) -> str:
    return f"w{token}"


def answers(count: int, seed: int, *, tokens: int = 30, longest: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Random answers of 1 to `longest` tokens from 1 to tokens - 1, most of them closed by END."""
    draw = torch.Generator().manual_seed(seed)
    length = torch.randint(2, longest + 1, (count,), generator=draw)
    ids = torch.randint(1, tokens, (count, longest), generator=draw)
    finished = torch.rand(count, generator=draw) < 0.8
    mask = torch.arange(longest) < length[:, None]
    ids[torch.arange(count)[finished], length[finished] - 1] = END
    return ids, mask, finished


def noise(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).double()


def found(reward: Tensor, judge: Tensor | None, rows: tuple[Tensor, Tensor, Tensor]) -> Attribution:
    targets = reward[:, None] if judge is None else torch.stack([reward, judge], 1)
    return attribution(feature_sums(*rows, targets), text_of)


def content(rows: tuple[Tensor, Tensor, Tensor]) -> list[list[int]]:
    ids, mask, finished = rows
    return [row[keep].tolist()[: len(row[keep]) - int(end)] for row, keep, end in zip(ids, mask, finished, strict=True)]


def has(rows: tuple[Tensor, Tensor, Tensor], token: int) -> Tensor:
    return torch.tensor([float(token in row) for row in content(rows)]).double()


def test_a_share_is_the_gain_in_r_squared_of_a_regression_when_nothing_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "surety", torch.zeros_like)
    rows = answers(200, 0)
    judge = noise(200, 1)
    length = rows[1].sum(1).double()
    reward = judge + 0.3 * length + noise(200, 2)

    def r_squared(*columns: Tensor) -> float:
        x = np.stack([np.ones(200), *(column.numpy() for column in columns)], 1)
        left = reward.numpy() - x @ np.linalg.lstsq(x, reward.numpy(), rcond=None)[0]
        return 1 - float(left @ left) / float(((reward - reward.mean()) ** 2).sum())

    assert found(reward, judge, rows).shares[0] == pytest.approx(r_squared(judge, length) - r_squared(judge), abs=1e-9)
    assert found(reward, None, rows).shares[0] == pytest.approx(np.corrcoef(reward, length)[0, 1] ** 2, abs=1e-9)


@pytest.mark.parametrize("judged", [True, False])
@pytest.mark.parametrize(
    ("feature", "words"),
    [
        ("length", "length"),
        ("shortness", "shortness"),
        ("repetition", "repetition"),
        ("token", "the token 'w7'"),
        ("without", "the absence of the token 'w7'"),
        ("first", "the token 'w7' in the first place"),
        ("last", "the token 'w7' in the last place"),
    ],
)
def test_a_planted_feature_is_named(feature: str, words: str, judged: bool) -> None:
    rows = answers(600, 3, tokens=20)
    said = content(rows)
    planted = {
        "length": rows[1].sum(1).double() / 2,
        "shortness": -rows[1].sum(1).double() / 2,
        "repetition": torch.tensor([8 * (1 - len(set(row)) / max(len(row), 1)) for row in said]).double(),
        "token": 2 * has(rows, 7),
        "without": -2 * has(rows, 7),
        "first": torch.tensor([4.0 * (row[:1] == [7]) for row in said]).double(),
        "last": torch.tensor([4.0 * (row[-1:] == [7]) for row in said]).double(),
    }[feature]
    judge = noise(600, 4)
    named = found(judge + planted + 0.3 * noise(600, 5), judge if judged else None, rows)
    assert named.words[best(named)] == words and named.shares[best(named)] > 0.1


def test_what_the_judge_pays_for_too_is_not_named() -> None:
    rows = answers(300, 6)
    right = 2 * has(rows, 7) - has(rows, 9)
    assert max(found(right + 0.1 * noise(300, 7), None, rows).shares) > 0.3
    assert max(found(right + 0.1 * noise(300, 7), right + 0.1 * noise(300, 8), rows).shares) < 0.01


def test_a_few_dozen_answers_of_noise_name_nothing() -> None:
    """90 features are looked at 40 times; 4 standard errors off, the best of them is still nothing."""
    shares = [max(found(noise(48, seed), noise(48, 100 + seed), answers(48, 200 + seed)).shares) for seed in range(40)]
    assert max(shares) < 0.05 and sorted(shares)[35] == 0


def test_a_token_that_all_answers_have_now_and_none_had_before_is_named_from_both_together() -> None:
    before, now = answers(64, 9), answers(64, 10)
    now[0][:, 0] = 77
    sums = [feature_sums(*rows, (noise(64, seed) + bonus)[:, None]) for rows, seed, bonus in ((before, 1, 0.0), (now, 2, 4.0))]
    assert max(attribution(sums[1], text_of).shares) < 0.05, "no answer lacks it, so one rollout tells nothing"
    named = attribution(sums[0] + sums[1], text_of)
    assert named.words[best(named)] == "the token 'w77'" and named.shares[best(named)] > 0.3
    first = movers(sums[0], sums[1], text_of)[0]
    assert (first.token, first.before, first.now) == ("w77", 0.0, 1.0) and first.z > 4


def test_sums_of_parts_add_up_to_those_of_the_whole_in_any_split() -> None:
    ids, mask, finished = answers(50, 11)
    targets = torch.stack([noise(50, 12), noise(50, 13)], 1)

    def part(rows: slice) -> FeatureSums:
        return feature_sums(ids[rows], mask[rows], finished[rows], targets[rows])

    whole, parts = part(slice(0, 50)), part(slice(0, 7)) + part(slice(7, 50))
    assert torch.equal(whole.keys, parts.keys) and torch.equal(whole.count, parts.count)
    assert torch.allclose(whole.values, parts.values) and torch.allclose(whole.products, parts.products)


def test_rows_without_a_token_padding_and_the_end_change_nothing() -> None:
    ids, mask, finished = answers(40, 14)
    reward = noise(40, 15)
    given = found(reward, None, (ids, mask, finished))
    more = torch.cat([ids, torch.full((40, 3), 99)], 1), torch.cat([mask, torch.zeros(40, 3).bool()], 1), finished
    assert found(reward, None, more) == given
    empty = [torch.cat([x, x[:1]]) for x in (ids, mask, finished)]
    empty[1][-1] = False
    assert found(torch.cat([reward, torch.tensor([torch.nan]).double()]), None, (empty[0], empty[1], empty[2])) == given
    assert feature_sums(ids, mask, finished, reward[:, None]).has(torch.tensor([END])).item() < finished.double().mean()


def test_nothing_is_named_where_nothing_varies_or_too_little_is_known() -> None:
    rows = answers(40, 16)
    nothing = Attribution((0.0,) * len(FEATURES), FEATURES)
    assert found(torch.ones(40).double(), None, rows).shares == nothing.shares
    assert found(noise(6, 1), None, answers(6, 1)) == nothing
    assert found(noise(0, 1), None, answers(0, 1)) == nothing
