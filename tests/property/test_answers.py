"""Laws of comparing answers: normalising twice is normalising once, for both sides alike."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hffm_flower.data.answers import majority, normalised

TEXTS = st.text(st.one_of(st.sampled_from("aAnN tTheE.,1'-?one\u2019;\t"), st.characters()))


@given(TEXTS)
def test_what_is_normalised_stays_as_it_is(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@given(TEXTS)
def test_white_space_does_not_matter(text: str) -> None:
    assert normalised(f"  {text.replace(' ', '   ')}\n") == normalised(text)


@given(st.text(st.characters(max_codepoint=127)))
def test_case_does_not_matter(text: str) -> None:
    assert normalised(text.upper()) == normalised(text.lower()) == normalised(text)


@given(st.lists(TEXTS, max_size=6), st.randoms(use_true_random=False))
def test_the_majority_does_not_depend_on_the_order(answers: list[str], random: Random) -> None:
    mixed = list(answers)
    random.shuffle(mixed)
    assert majority(mixed) == majority(answers)
    assert majority(answers) in {"", *map(normalised, answers)}


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        ("The Cat.", "cat"),
        ("two", "2"),
        ("none", "0"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("blue/green", "blue green"),
        ("yes, it is", "yes it is"),
        ("T-shirt", "t shirt"),
        ("dont", "dont"),
        ("don't", "dont"),
        ("a", ""),
        ("?", ""),
    ],
)
def test_words_that_mean_alike_are_one(answer: str, want: str) -> None:
    assert normalised(answer) == want


def test_the_commonest_answer_wins_by_what_it_means() -> None:
    assert majority(["the dog", "Cat", "dog.", "cats", "?"]) == "dog"
    assert majority(["b", "d", "c", "the"]) == "b"
    assert majority(["the", "?"]) == ""
