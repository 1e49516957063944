"""What an evaluation says of its rows."""

from __future__ import annotations

from surefoot.stages.evaluate import summary


def row(prompt: str, before: str, after: str) -> dict[str, object]:
    lengths = {"length_before": 3, "length_after": 2, "finished_before": True, "finished_after": True}
    return {"prompt": prompt, "before": before, "after": after, "kl": 1.0, **lengths}


def test_one_answer_to_every_prompt_is_a_duplicate_although_no_two_prompts_are_equal() -> None:
    rows = [
        row("the film", " was long .", " is a joy ."),
        row("the plot", " was thin .", " Is a  joy ."),
        row("the cast", " was fine .", " is a joy ."),
        row("the end", " was near .", " is near ."),
    ]
    figures = summary(rows, (), 0)
    assert (figures["duplicates_before"], figures["duplicates_after"]) == (0.0, 0.75)
