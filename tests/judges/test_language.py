"""What a language model is asked and what counts as an answer, with a scripted one."""

from collections.abc import Callable, Sequence

import pytest

from saecore.judges import Ask, LanguageJudge
from saecore.judges.base import ask
from saecore.judges.language import ROUNDS, describing, judging, read_description, read_numbers


class Scripted:
    """Answers by a function of the last message; ``at_hand`` are answers that cost nothing."""

    def __init__(self, answer: Callable[[str], str], at_hand: dict[Ask, str] | None = None) -> None:
        self.answer, self.at_hand, self.asked = answer, at_hand or {}, []

    def complete(self, asks: Sequence[Ask]) -> list[str]:
        self.asked.append(list(asks))
        return [self.answer(a.messages[-1][1]) for a in asks]

    def known(self, ask: Ask) -> str | None:
        return self.at_hand.get(ask)


def reader(content: str) -> str:
    """Names the token that is marked in every text, then the texts that hold it."""
    lines = [line.partition(". ")[2] for line in content.splitlines() if line[:1].isdigit()]
    if "<<" in content:
        return f"This neuron fires on {lines[0].split('<<')[1].split('>>')[0].strip()}."
    word = content.split("fires on ")[1].split(".")[0]
    return ", ".join(str(i) for i, line in enumerate(lines, 1) if f"{word} " in f"{line} ") or "None"


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("1, 3", [True, False, True, False]),
        ("2 and 4.", [False, True, False, True]),
        ("[1; 2]", [True, True, False, False]),
        ("3\n4", [False, False, True, True]),
        ("None", [False] * 4),
        ('"none."', [False] * 4),
        ("2, 2", [False, True, False, False]),
    ],
)
def test_numbers_are_read(answer, wanted):
    assert read_numbers(answer, 4) == wanted


@pytest.mark.parametrize(
    "answer", ["", "5", "0", "1, 2, 7", "The texts 1 and 2", "1, two", "1,,x", "9" * 5000, "-1", "1.5"]
)
def test_anything_else_is_no_answer(answer):
    assert read_numbers(answer, 4) is None


def test_a_long_answer_of_blanks_is_refused_at_once():
    assert read_numbers("1  ,  " * 20_000 + "x", 4) is None


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("This neuron fires on names of cities.", "names of cities"),
        ('"This neuron activates on verbs"', 'verbs"'),
        ("words in capitals", "words in capitals"),
        ("   ", None),
        ("This neuron fires on ...", None),
        ("word " * 200, None),
    ],
)
def test_descriptions_are_read(answer, wanted):
    assert read_description(answer) == wanted


def test_a_perfect_reader_scores_fully(trials):
    talk = Scripted(reader)
    judged = ask(LanguageJudge(talk), trials)
    assert [j.description for j in judged] == ["t5", "t6", "t7"]
    assert [j.accuracy for j in judged] == [j.accuracy_hard for j in judged] == [1.0] * 3
    assert [len(asks) for asks in talk.asked] == [3, 6]


def test_the_test_is_unmarked_and_the_description_is_marked(trials):
    content = describing(trials[0].top).messages[0][1]
    assert content.count("<< t5>>") >= len(trials[0].top) and f"\n{len(trials[0].top)}. " in content
    asked = judging("cats", trials[0].test).messages[0][1]
    assert "<<" not in asked and "fires on cats." in asked and f"\n{len(trials[0].test)}. " in asked


def test_what_cannot_be_read_is_put_again_with_a_reminder_then_counted(trials, caplog):
    talk = Scripted(lambda content: "I would rather not" if "Answer with" in content else "This neuron fires on t5")
    judge = LanguageJudge(talk)
    judged = ask(judge, trials[:1])
    assert judged[0].description == "t5" and judged[0].said is None and judged[0].accuracy != judged[0].accuracy
    assert (judge.malformed, judge.unanswered) == (2 * ROUNDS, 2)
    last = talk.asked[-1][0].messages
    assert [role for role, _ in last] == ["user", "assistant", "user", "assistant", "user"]
    assert last[1][1] == "I would rather not" and last[2][1].startswith("Answer with numbers from 1 to")
    assert "2 of 2 questions have no usable answer" in caplog.text


def test_only_what_was_malformed_is_put_again(trials):
    said: list[str] = []

    def stubborn(content: str) -> str:
        said.append(content)
        return "" if len(said) == 2 else "This neuron fires on t5"

    talk = Scripted(stubborn)
    judge = LanguageJudge(talk)
    assert judge.describe(trials) == ["t5"] * 3
    assert [len(asks) for asks in talk.asked] == [3, 1]
    assert (judge.malformed, judge.unanswered) == (1, 0)


def test_a_latent_without_a_description_is_not_judged(trials):
    talk = Scripted(lambda content: "" if "t5>>" in content or "no description" in content else reader(content))
    judged = ask(LanguageJudge(talk), trials)
    assert [j.description for j in judged] == [None, "t6", "t7"]
    assert judged[0].said is judged[0].hard_said is None and judged[1].accuracy == 1.0


def test_a_plan_counts_what_is_not_at_hand(trials):
    plan = LanguageJudge(Scripted(reader)).plan(trials, price_in=1.0, price_out=2.0)
    assert (plan.calls, plan.cached) == (9, 0)
    asks = [describing(t.top) for t in trials]
    asks += [judging("something " * 10, tests) for t in trials for tests in (t.test, t.hard)]
    assert plan.tokens_in == sum(sum(len(c) for _, c in a.messages) // 4 for a in asks)
    assert plan.tokens_out == 3 * 30 + sum(2 * len(t.test) + 2 * len(t.hard) for t in trials)
    assert plan.cost == pytest.approx((plan.tokens_in + 2 * plan.tokens_out) / 1e6)
    at_hand = {describing(trials[0].top): "This neuron fires on t5", judging("t5", trials[0].test): "None"}
    less = LanguageJudge(Scripted(reader, at_hand)).plan(trials, 1.0, 2.0)
    assert (less.calls, less.cached) == (9, 2) and less.cost < plan.cost
    assert str(less).startswith("9 calls, 2 of them answered already; for the others about ")
