"""What reads slots and words: no order of slots matters, the blind see nothing, boxes stand for words, and the readout's numbers."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from small_questions import D, N, ask, config_of

from dias_lab.prediction import readout
from dias_lab.prediction.aloe import Aloe
from dias_lab.prediction.readout import Readout
from dias_lab.prediction.words import NO_ANSWER, OBJECT, Vocabulary, encoded

B, FRAMES = 4, 3
ASKED = [one for clip in range(6) for one in ask(clip)]


@pytest.fixture
def vocabulary():
    return Vocabulary.of(ASKED)


@pytest.fixture
def inputs(vocabulary):
    """Two questions for a word, two with a choice; a slot is left out."""
    torch.manual_seed(3)
    found = encoded(ASKED, vocabulary, "words", "-")
    rows, choices = torch.tensor([0, 1, 3, 4]), torch.tensor([0, 1, 0, 0])
    keep = torch.ones(B, FRAMES, N, dtype=torch.bool)
    keep[1, 0, 2] = False
    words = {"words": found.words[rows], "boxes": found.boxes[rows], "choice": found.choices[rows, choices]}
    return {"slots": torch.randn(B, FRAMES, N, D), "keep": keep, **words, "answer": found.answers[rows, choices]}


def made(kind, vocabulary, **options):
    torch.manual_seed(1)
    model = kind(config_of("-", **options.pop("fields", {})), D, vocabulary, **options)
    with torch.no_grad():
        model.mean += 0.2
        model.deviation *= 1.3
    return model


def told(model, inputs, **changes):
    output = model(**{**inputs, **changes})
    return torch.cat([output.logits, output.right[:, None]], dim=1)


COURSES = {"fields": {"slot_courses": True}}
KINDS = [(Aloe, {}), (Aloe, COURSES), (Readout, {})]


@pytest.mark.parametrize("kind, options", KINDS)
def test_no_order_of_slots_matters(kind, options, vocabulary, inputs):
    model = made(kind, vocabulary, **copy.deepcopy(options))
    order = torch.rand(B, FRAMES, N).argsort(dim=2)  # another one in each frame
    order = order[:, :1].expand_as(order) if options else order  # a course is of one slot throughout
    slots = inputs["slots"].gather(2, order[..., None].expand(-1, -1, -1, D))
    moved = told(model, inputs, slots=slots, keep=inputs["keep"].gather(2, order))
    torch.testing.assert_close(moved, told(model, inputs))


@pytest.mark.parametrize("options", [{}, COURSES])
def test_the_order_of_frames_and_of_words_matters(options, vocabulary, inputs):
    model = made(Aloe, vocabulary, **copy.deepcopy(options))
    before = told(model, inputs)
    assert (told(model, inputs, slots=inputs["slots"].flip(1)) - before).abs().max() > 1e-3
    assert (told(model, inputs, words=inputs["words"].roll(1, 1)) - before).abs().max() > 1e-3


@pytest.mark.parametrize("kind, options", KINDS)
def test_slots_that_are_left_out_are_not_seen(kind, options, vocabulary, inputs):
    model = made(kind, vocabulary, **copy.deepcopy(options))
    before = told(model, inputs)
    hidden = torch.where(inputs["keep"][..., None], inputs["slots"], 99.0)
    torch.testing.assert_close(told(model, inputs, slots=hidden), before)
    assert told(model, inputs, keep=inputs["keep"] & False).isfinite().all()


def test_the_course_of_a_slot_is_one_token(vocabulary, inputs):
    """So that it depends on which slot has which frames, where tokens of single frames do not."""
    apart, whole = (made(Aloe, vocabulary, fields={"slot_courses": one}) for one in (False, True))
    assert whole.project_slots.in_features == FRAMES * D and apart.project_slots.in_features == D
    slots, keep = inputs["slots"].clone(), torch.ones_like(inputs["keep"])
    slots[:, 1] = slots[:, 1].flip(1)  # in frame 1 slots have changed places
    for model, differs in ((apart, False), (whole, True)):
        gap = (told(model, inputs, slots=slots, keep=keep) - told(model, inputs, keep=keep)).abs().max()
        assert (gap > 1e-3) == differs


def test_the_blind_see_nothing(vocabulary, inputs):
    blind, seeing = made(Aloe, vocabulary, blind=True), made(Aloe, vocabulary)
    other = torch.randn_like(inputs["slots"])
    assert torch.equal(told(blind, inputs, slots=other, keep=~inputs["keep"]), told(blind, inputs))
    assert (told(seeing, inputs, slots=other) - told(seeing, inputs)).abs().max() > 1e-3
    assert (told(blind, inputs, words=inputs["words"].roll(1, 0)) - told(blind, inputs)).abs().max() > 1e-3


def test_a_box_takes_the_place_of_its_word(vocabulary, inputs):
    found = encoded(ASKED, vocabulary, "boxes", "-")
    assert found.words[0].tolist().count(OBJECT) == 1 and found.words[0, 2] == OBJECT and (found.words[1] != OBJECT).all()
    assert torch.equal(found.boxes[0, 2], torch.tensor([0.1, 0.2, 0.5, 0.6]))
    rows = torch.tensor([0, 2, 4, 6])
    model, given = made(Aloe, vocabulary), dict(inputs, words=found.words[rows], boxes=found.boxes[rows])
    before, change = told(model, given), torch.zeros(B, 4, 4)
    change[:, 2, 0] = 0.3
    assert (told(model, given, boxes=given["boxes"] + change) - before).abs().max() > 1e-4
    assert torch.equal(told(model, given, boxes=given["boxes"] + change.roll(1, 1)), before)  # there a word is read


def test_words_that_no_training_question_has(vocabulary):
    unknown = ASKED[0]._replace(words=["is", "the", "moon", "odd"], mentions={2: [0, 0, 1, 1]})
    with pytest.raises(ValueError, match=r"file: question 1 \(is the moon odd\) has words that no training question has: moon"):
        encoded([ASKED[0], unknown], vocabulary, "words", "file")
    assert encoded([unknown], vocabulary, "boxes", "file").words[0, 2] == OBJECT  # it is not read
    with pytest.raises(ValueError, match="question 0 .* is longer than the 4 words of training's"):
        encoded([ASKED[0]._replace(words=["is"] * 5)], vocabulary, "words", "file")
    with pytest.raises(ValueError, match=r"question 0 \(it is blue\) has words .*: blue"):
        encoded([ASKED[1]._replace(options=[["it", "is", "blue"], ["it", "is", "odd"]])], vocabulary, "words", "file")
    assert encoded([ASKED[0]._replace(answer="perhaps")], vocabulary, "words", "file").answers[0, 0] == NO_ANSWER


def test_the_vocabulary_is_of_the_training_questions_and_kept_with_the_weights(vocabulary):
    assert vocabulary.words == sorted({"is", "the", "star", "odd", "what", "it", "even"}) and vocabulary.answers == ["no", "yes"]
    assert vocabulary.longest == [4, 3] and vocabulary.common == {"word": "yes", "choice": False}
    one, other = made(Aloe, vocabulary), made(Aloe, vocabulary, fields={"seed": 5})
    with torch.no_grad():
        other.mean += 1
    other.load_trained_state(one.trained_state())
    assert all(torch.equal(value, other.trained_state()[name]) for name, value in one.trained_state().items())
    with pytest.raises(ValueError, match="weights are of another Aloe"):
        made(Aloe, Vocabulary.of(ASKED[:1])).load_trained_state(one.trained_state())
    with pytest.raises(ValueError, match="weights are of another Readout"):
        made(Readout, vocabulary).load_trained_state(one.trained_state())


def test_dropout_follows_from_its_keys(vocabulary, inputs):
    model, key = made(Aloe, vocabulary), torch.tensor([4, 5, 6, 7])
    before = told(model, inputs, draws={"dropout": key})
    torch.rand(3)
    assert torch.equal(told(model, inputs, draws={"dropout": key}), before)
    changed = told(model, inputs, draws={"dropout": key + torch.tensor([0, 9, 0, 0])}) != before
    assert changed.any(dim=1).tolist() == [False, True, False, False]
    assert (told(model, inputs) != before).any()


def test_the_readout_is_the_best_pair_of_the_best_frame(vocabulary, inputs):
    model = made(Readout, vocabulary)
    output = model(**inputs)
    slots = model.standardised(inputs["slots"])
    for clip in range(B):
        frames = []
        for frame in range(FRAMES):
            pairs = [pair for pair in itertools.permutations(range(N), 2) if inputs["keep"][clip, frame, list(pair)].all()]
            sums = [model.one(slots[clip, frame, i]) + model.other(slots[clip, frame, j]) for i, j in pairs]
            frames.append(model.score(torch.stack(sums).amax(0)))
        expected = torch.stack(frames).max()
        torch.testing.assert_close(output.logits[clip, 1], expected)
        bce = F.binary_cross_entropy_with_logits(expected, torch.tensor(1.0))
        torch.testing.assert_close(F.cross_entropy(output.logits[clip], torch.tensor(1)), bce)
    lone = torch.zeros_like(inputs["keep"])
    lone[:, :, 0] = True  # no pair anywhere: what is left is the bias
    torch.testing.assert_close(told(model, inputs, keep=lone)[:, 1], model.score.bias.expand(B))
    readout.check(ASKED[::2])
    with pytest.raises(ValueError, match="the readout reads no words: .*; these are 1, such as 'what is it', with the answers"):
        readout.check(ASKED[1::2])
