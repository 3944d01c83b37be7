"""Scores of answers to questions about clips, with intervals, and baselines that need no slots.

Sources: accuracy of each choice and of each question (all of its choices right), CLEVRER, Yi et al. 2020, arXiv:1910.01442.
A type's balanced accuracy is the mean, over the true answers, of the share that is right: one answer for all scores 1 / A.

Axes: C clips, A true answers of a type.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dias_lab.analysis.intervals import mean_text
from dias_lab.data import asked, physics
from dias_lab.data.clips import Clips
from dias_lab.data.draws import generator
from dias_lab.data.questions import Question

DRAWS = 2000  # of the bootstrap
SIGMA = 0.5  # pixels a frame: the deviation of the speeds that the noisy simulator knows


def scores(questions: Sequence[Question], given: Sequence, draws: int = DRAWS) -> dict:
    """Shares for each type, and their mean over types, with 95 % intervals of a bootstrap over clips (none without draws).

    `given`: the answers, as `Question.answer`; of a question with choices each choice counts, with the true answers True and
    False. {"balanced_accuracy", "low", "high", "questions", "clips", "types": {kind: the same, "accuracy", and with choices
    "per_option" and "per_question"}}.
    """
    clips = {clip: number for number, clip in enumerate(sorted({one.clip for one in questions}))}
    C, types, drawn = len(clips), {}, []
    often = np.random.default_rng(0).multinomial(C, np.full(C, 1 / C), size=draws).astype(float)  # [draws C]
    for kind in sorted({one.kind for one in questions}):
        own = [(one, answer) for one, answer in zip(questions, given, strict=True) if one.kind == kind]
        items = [(one.clip, *pair) for one, answer in own for pair in _pairs(one, answer)]
        true = sorted({answer for _, answer, _ in items})
        asked_for, right = np.zeros((2, C, len(true)))
        for clip, answer, found in items:
            place = clips[clip], true.index(answer)
            asked_for[place] += 1
            right[place] += found == answer
        shares = (often @ right) / np.maximum(often @ asked_for, 1e-9)
        drawn.append(_mean(shares, often @ asked_for > 0, axis=1))  # [draws]; not every draw has every answer, or type
        found = {"balanced_accuracy": float((right.sum(0) / asked_for.sum(0)).mean()), **_bounds(drawn[-1])}
        found |= {"accuracy": float(right.sum() / len(items)), "questions": len(own), "clips": len({one.clip for one, _ in own})}
        if any(one.options for one, _ in own):
            whole = [list(one.answer) == list(answer) for one, answer in own]
            found |= {"per_option": found["accuracy"], "per_question": float(np.mean(whole))}
        types[kind] = found
    mean = float(np.mean([one["balanced_accuracy"] for one in types.values()]))
    bounds = _bounds(_mean(np.array(drawn), np.isfinite(drawn), axis=0))
    return {"balanced_accuracy": mean, **bounds, "questions": len(questions), "clips": C, "types": types}


def by_clip(questions: Sequence[Question], given: Sequence) -> pd.DataFrame:
    """The balanced accuracy of each type as a mean over clips: rows are clips, columns types. For differences of two that answer
    the same questions, clip by clip.

    A clip's value is the accuracy and how its questions pull it, each answer's share being a ratio of two sums over clips
    (linearised): a mean over drawn clips varies as that ratio does. A clip that does not ask pulls nothing.
    """
    items = pd.DataFrame([
        (one.clip, one.kind, str(true), float(found == true))
        for one, answer in zip(questions, given, strict=True) for true, found in _pairs(one, answer)
    ], columns=["clip", "kind", "true", "right"])  # fmt: skip
    of_answer = items.groupby(["kind", "true"])["right"]
    often, answers = of_answer.transform("size"), items.groupby("kind")["true"].transform("nunique")
    pull = (items["right"] - of_answer.transform("mean")) * items["clip"].nunique() / (often * answers)
    whole = of_answer.mean().groupby("kind").mean()
    return pull.groupby([items["clip"], items["kind"]]).sum().unstack(fill_value=0.0) + whole


def _pairs(question: Question, answer) -> list[tuple]:
    """True and given answers: one, or of each choice."""
    return list(zip(question.answer, answer, strict=True)) if question.options else [(question.answer, answer)]


def _mean(values: np.ndarray, defined: np.ndarray, axis: int) -> np.ndarray:
    """Over what is defined; NaN where nothing is."""
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis) / defined.sum(axis)


def _bounds(drawn: np.ndarray) -> dict[str, float]:
    return dict(zip(("low", "high"), map(float, np.nanquantile(drawn, [0.025, 0.975])))) if len(drawn) else {}


def baselines(questions: Sequence[Question], common: dict[str, str | bool], store) -> dict[str, list]:
    """Answers by name: training's most common one of each type; of the built-in world with physics also its simulator's, which
    knows the last frame that is seen, and what it says where speeds are known up to noise."""
    majority = [common.get(one.kind) for one in questions]
    found = {"majority": [[answer] * len(one.options) if one.options else answer for one, answer in zip(questions, majority)]}
    if store.meta["dataset"] == "physics":
        clips, hard = Clips(store), physics.Difficulty(**store.meta["difficulty"])
        worlds = {clip: physics.World(int(clips.name(clip).split()[-1]), hard) for clip in {one.clip for one in questions}}
        random = [generator(0, 0, number, "noisy simulator") for number in range(len(questions))]
        noisy = [asked.noisy(one, worlds[one.clip], SIGMA, draw) for one, draw in zip(questions, random)]
        found |= {"simulator": [asked.answered(one, worlds[one.clip]) for one in questions]}
        found |= {f"simulator, speeds ± {SIGMA:g} pixels a frame": noisy}
    return found


def numbers(found: dict) -> dict[str, float]:
    """The columns of a table: balanced accuracy over all types and of each; with choices also the share of whole questions."""
    whole = {f"{kind}, per question": one["per_question"] for kind, one in found["types"].items() if "per_question" in one}
    return {"all": found["balanced_accuracy"]} | {kind: one["balanced_accuracy"] for kind, one in found["types"].items()} | whole


def cells(found: dict) -> dict[str, str]:
    """The same as text, x100, with the intervals that there are."""
    known = {"all": found} | found["types"]
    bounds = {name: f" [{100 * one['low']:.1f} to {100 * one['high']:.1f}]" for name, one in known.items() if "low" in one}
    return {name: mean_text(value, np.nan) + bounds.get(name, "") for name, value in numbers(found).items()}


def text(found: dict) -> str:
    """What a run scored, as lines: a column a run or baseline."""
    columns = {found.get("name", "run"): found} | found.get("baselines", {})
    lines = pd.DataFrame({name: cells(one) for name, one in columns.items()})
    told = f"balanced accuracy x100, {found['questions']} questions about {found['clips']} clips"
    told += f", of which {found['observed']} frames are seen and {found['rolled out']} rolled out" if "observed" in found else ""
    return f"{told}\n{lines.to_string()}"
