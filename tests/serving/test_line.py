from __future__ import annotations

from finetune.serving.line import Line


def line(*waiting: tuple[str, ...], gone: str = "") -> Line[str]:
    """Return a line of items that are named by what stands first, and whose they are by the rest."""
    made: Line[str] = Line(lambda item: item in gone.split())
    for item, *whose in waiting:
        made.put(item, *whose)
    return made


def taken(line: Line[str]) -> list[str]:
    items: list[str] = []
    while (item := line.take()) is not None:
        items.append(item)
    assert len(line) == 0
    return items


def test_who_waits_for_one_thing_stands_behind_one_of_each_other() -> None:
    busy = [(f"a{n}", "a") for n in range(4)]
    assert taken(line(*busy, ("b0", "b"), ("c0", "c"), ("b1", "b"))) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_a_client_has_one_turn_however_many_models_it_asks() -> None:
    busy = [(f"{model}{n}", "a", model) for model in ("x", "y", "z") for n in range(2)]
    assert taken(line(*busy, ("b0", "b", "x"), ("b1", "b", "x"))) == ["x0", "b0", "y0", "b1", "z0", "x1", "y1", "z1"]


def test_what_is_gone_takes_nobody_s_turn() -> None:
    waiting = [(f"{who}{n}", who) for who in "ab" for n in range(4)]
    assert taken(line(*waiting, gone="a0 a1 a2 b1")) == ["a3", "b0", "b2", "b3"]
    assert taken(line(*waiting, gone="a0 a1 a2 a3")) == ["b0", "b1", "b2", "b3"]


def test_of_each_who_waits_the_first_is_shown() -> None:
    waiting = line(("a0", "a", "x"), ("a1", "a", "y"), ("b0", "b", "x"), ("b1", "b", "x"))
    assert (list(waiting.firsts()), len(waiting)) == (["a0", "a1", "b0"], 4)
    waiting.take()
    assert (list(waiting.firsts()), len(waiting)) == (["b0", "a1"], 3)


def test_whoever_comes_again_stands_behind_who_waits() -> None:
    waiting = line(("a0", "a"), ("b0", "b"))
    assert waiting.take() == "a0"
    waiting.put("a1", "a")
    waiting.put("b1", "b")
    assert taken(waiting) == ["b0", "a1", "b1"]
