"""Questions about the built-in world with physics, answered by its simulator: what will happen, what did, and what would have.

A question names toys by their kinds, which are distinct in a clip. Frames 0..7 are seen; frame 7 + K is the horizon of the next K
frames. Where what is asked for happens in the frame before or after the end of what is seen, or of the horizon, or two hits whose
order is asked for in the same frame, the question is in doubt, and not asked.

Yes and no are as frequent in each bin of what is easily seen: how far apart two toys are and how fast they approach each other;
where a toy is and whether it flies left. Where a toy is taken away, bins are also of whether the two touch with it there, so that
half of the answers are not what happens.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dias_lab.config import nearest
from dias_lab.data import painting, toys
from dias_lab.data.painting import SIZE
from dias_lab.data.physics import Bodies, World
from dias_lab.data.questions import Question

OBSERVED = 8  # frames that are seen
LAST = OBSERVED - 1
WORDS = {kind: kind.replace(" ", "-") for kind in toys.KINDS}  # one word a kind
KINDS = {word: kind for kind, word in WORDS.items()}
ASKED = {
    "touch-8": "will the {} and the {} touch within the next 8 frames",
    "touch-16": "will the {} and the {} touch within the next 16 frames",
    "first-hit": "which toy does the {} hit first within the next 16 frames",
    "half": "is the {} in the left half 16 frames later",
    "order": "did the {} hit the {} before the {} did",
    "counterfactual": "without the {} would the {} and the {} touch",  # from the first frame on
    "count": "how many toys are there",
    "presence": "is there any {}",
}
HORIZONS = {"touch-8": LAST + 8, "touch-16": LAST + 16, "first-hit": LAST + 16, "half": LAST + 16, "counterfactual": 24}
MOST = {"first-hit": {"nothing": 1, "a toy": 3}}  # questions of each answer, a clip; of other kinds 1 or 2 of each
GAPS, APPROACH, STRIPS = (10, 20, 35), (-2, 0, 2), 6  # bins: pixels between discs, pixels a frame, strips of the picture


class Candidate(NamedTuple):
    kind: str
    named: tuple[str, ...]  # kinds of toys, in the order of the words
    bin: tuple
    answer: str | None  # None: in doubt


def answered(question: Question, world: World) -> str:
    """The simulator's answer. `world` needs kinds and bodies. ValueError: see `check`."""
    check(question, [world.kinds[segment - 1] for segment in world.bodies.there])
    return _answer(question.kind, _named(question), world.kinds, world.bodies)


def noisy(question: Question, world: World, sigma: float, random: np.random.Generator) -> str:
    """The answer of who simulates from the last frame that is seen, with Gaussian noise on speeds: sigma pixels a frame and axis.

    Where a toy is taken away, from the first frame; what has been seen is answered without noise. ValueError: see `check`.
    """
    truth = answered(question, world)
    if question.kind not in HORIZONS:
        return truth
    first = 0 if question.kind == "counterfactual" else LAST
    start = world.bodies.state(first)
    start[:, 2:] += random.normal(0, sigma, start[:, 2:].shape)
    return _answer(question.kind, _named(question), world.kinds, Bodies(start, world.bodies.radii), first)


def check(question: Question, kinds: Sequence[str]) -> None:
    """ValueError where the question is of no kind in ASKED, or about a toy that is none of these kinds (it may ask for that)."""
    if question.kind not in ASKED:
        raise ValueError(f"the simulator has no answer to {question.kind!r}{nearest(question.kind, ASKED)}")
    named, text = _named(question), " ".join(question.words)
    if len(set(named)) != len(named) or len(named) != ASKED[question.kind].count("{}"):
        raise ValueError(f"{text!r} should read {ASKED[question.kind]!r}, with as many different toys")
    if question.kind != "presence" and (missing := [kind for kind in named if kind not in kinds]):
        raise ValueError(f"{text!r}: the clip shows no {' and no '.join(missing)}; it shows {', '.join(kinds)}")


def ask(worlds: Iterable[World], times: int = 1) -> tuple[list[Question], dict]:
    """Questions about clips 0, 1, ..., and how many there are. `times`: how many times as many may be about one clip."""
    found, boxes, counts = defaultdict(list), [], {kind: Counter() for kind in ASKED}
    for clip, world in enumerate(worlds):
        boxes.append(dict(zip(world.kinds, (painting.boxes_of(world.frame(0)[1]) / SIZE).tolist())))
        for one in _candidates(world):
            counts[one.kind]["in doubt" if one.answer is None else "candidates"] += 1
            found[one.kind] += [(clip, one)] if one.answer is not None else []
    random, questions, about = np.random.Generator(np.random.Philox(key=0)), [], {}
    for kind in counts:
        chosen = _balanced(kind, [found[kind][k] for k in random.permutation(len(found[kind]))], times)
        for clip, (_, named, _, answer) in chosen:
            words = ASKED[kind].format(*(WORDS[one] for one in named)).split()
            mentions = {words.index(WORDS[one]): boxes[clip][one] for one in named if kind != "presence"}  # a box would tell
            questions.append(Question(clip, kind, words, [], answer, mentions))
        answers, clips = Counter(one.answer for _, one in chosen), {clip for clip, _ in chosen}
        about[kind] = {**counts[kind], "asked": len(chosen), "clips": len(clips), "answers": dict(sorted(answers.items()))}
        if kind == "counterfactual":  # how often the answer is not what happens with the toy there
            for name, some in (("flips of candidates", found[kind]), ("flips", chosen)):
                about[kind][name] = round(sum(one.answer != one.bin[-1] for _, one in some) / max(len(some), 1), 4)
    questions.sort(key=lambda one: one.clip)
    return questions, {"observed": OBSERVED, "times": times, "clips": len(boxes), "kinds": about}


def _named(question: Question) -> list[str]:
    return [KINDS[word] for word in question.words if word in KINDS]


def _answer(kind: str, named: Sequence[str], kinds: list[str], bodies: Bodies, first: int = 0) -> str:
    """`first`: the number of the frame in which these bodies start."""
    there = [kinds[segment - 1] for segment in bodies.there]
    if kind in ("count", "presence"):
        return str(len(there)) if kind == "count" else _yes(named[0] in there)
    segments = [1 + kinds.index(one) for one in named]
    if kind == "half":
        return _yes(bodies.state(HORIZONS[kind] - first)[segments[0] - 1, 0] < SIZE / 2)
    if kind == "counterfactual":
        return _yes(_hits(bodies.without(segments[0]), segments[1:], 0, HORIZONS[kind]))
    if kind == "order":
        frames = [[hit[0] for hit in _hits(bodies, (one, segments[1]), 0, LAST)] for one in (segments[0], segments[2])]
        return _yes(frames[0] and frames[0][0] < min(frames[1], default=OBSERVED))
    hits = _hits(bodies, segments, LAST - first, HORIZONS[kind] - first)
    if kind == "first-hit":
        return WORDS[kinds[sum(hits[0][1:]) - segments[0] - 1]] if hits else "nothing"
    return _yes(hits)


def _yes(truth) -> str:
    return "yes" if truth else "no"


def _hits(bodies: Bodies, segments: Sequence[int], after: int, until: int) -> list[tuple[int, int, int]]:
    """Contacts in which all of these take part, in frames after + 1 to until."""
    return [hit for hit in bodies.contacts(until + 1) if hit[0] > after and set(segments) <= set(hit[1:])]


def _in_doubt(bodies: Bodies, segments: Sequence[int], after: int, until: int) -> bool:
    """Whether the first hit from `after` on is within a frame of either end."""
    hits = _hits(bodies, segments, after - 1, until + 1)
    return bool(hits) and hits[0][0] in (after, after + 1, until, until + 1)


def _candidates(world: World) -> Iterator[Candidate]:
    """All that can be asked about a clip. Pairs are named in an order that is drawn."""
    kinds, bodies, random = world.kinds, world.bodies, np.random.Generator(np.random.Philox(key=world.seed))

    def candidate(kind: str, segments: Sequence[int], bin: tuple, doubt: bool = False) -> Candidate:
        named = tuple(kinds[segment - 1] for segment in segments)
        return Candidate(kind, named, bin, None if doubt else _answer(kind, named, kinds, bodies))

    yield candidate("count", (), ())
    for kind in toys.KINDS:
        yield Candidate("presence", (kind,), (), _yes(kind in kinds))
    for one in bodies.there:
        hits = _hits(bodies, [one], LAST, HORIZONS["first-hit"])
        doubt = _in_doubt(bodies, [one], LAST, HORIZONS["first-hit"]) or (len(hits) > 1 and hits[0][0] == hits[1][0])
        gaps = [_course(bodies, (one, other), LAST)[:1] for other in bodies.there if other != one]
        yield candidate("first-hit", [one], min(gaps, default=()), doubt)
        x, _, speed, _ = bodies.state(LAST)[one - 1].tolist()
        sides = {bool(bodies.state(HORIZONS["half"] + near)[one - 1, 0] < SIZE / 2) for near in (-1, 0, 1)}
        yield candidate("half", [one], (int(x * STRIPS / SIZE), speed < 0), len(sides) > 1)
    for a, b, c in itertools.permutations(bodies.there, 3):
        first = [_hits(bodies, pair, 0, LAST)[:1] for pair in ((a, b), (c, b))]
        if all(first):
            yield candidate("order", (a, b, c), (), first[0][0][0] == first[1][0][0])
    for pair in itertools.combinations(bodies.there, 2):
        pair = tuple(random.permutation(pair).tolist())
        for kind in ("touch-8", "touch-16"):
            yield candidate(kind, pair, _course(bodies, pair, LAST), _in_doubt(bodies, pair, LAST, HORIZONS[kind]))
        horizon = HORIZONS["counterfactual"]
        bin = (*_course(bodies, pair, 0), _yes(_hits(bodies, pair, 0, horizon)))
        for gone in _changing(bodies, pair):
            yield candidate("counterfactual", (gone, *pair), bin, _in_doubt(bodies.without(gone), pair, -1, horizon))


def _course(bodies: Bodies, pair: Sequence[int], frame: int) -> tuple[int, int]:
    """The bins of the gap between two bodies, and of the speed at which they approach each other."""
    a, b = (bodies.state(frame)[segment - 1] for segment in pair)
    (dx, dy, *_), (_, _, vx, vy) = b - a, b - a
    distance = float(np.sqrt(dx * dx + dy * dy))
    gap = distance - float(sum(bodies.radii[segment - 1] for segment in pair))
    return int(np.searchsorted(GAPS, gap)), int(np.searchsorted(APPROACH, -(dx * vx + dy * vy) / distance))


def _changing(bodies: Bodies, pair: Sequence[int]) -> list[int]:
    """Who else may change whether these two touch: who hit one of them before they touched, or hit who then did, and so on."""
    hits = [hit[1:] for hit in bodies.contacts(HORIZONS["counterfactual"] + 1)]
    before = list(itertools.takewhile(lambda two: set(two) != set(pair), hits))
    changing = set(pair)
    for two in reversed(before):
        changing |= set(two) if changing & set(two) else set()
    return sorted(changing - set(pair))


def _balanced(kind: str, found: list[tuple[int, Candidate]], times: int) -> list[tuple[int, Candidate]]:
    """As many of each answer in each bin, those first in the list; what is hit first is a toy three times as often as nothing."""
    most = MOST.get(kind) or dict.fromkeys(sorted({one.answer for _, one in found}), 1 if kind in ("count", "presence") else 2)
    bins, clips = defaultdict(lambda: defaultdict(list)), Counter()
    for clip, one in found:
        answer = one.answer if one.answer in most else "a toy"
        clips[clip, answer] += 1
        if clips[clip, answer] <= times * most[answer]:
            bins[one.bin][answer].append((clip, one))
    chosen = []
    for lists in bins.values() if len(most) > 1 else ():  # an answer that is always the same is no question
        share = min(len(lists[answer]) // most[answer] for answer in most)
        chosen += [one for answer in most for one in lists[answer][: share * most[answer]]]
    return chosen
