from dataclasses import replace

from hub.rules.audit import GENESIS, follow, verify


def chain(n):
    lines, number, previous = [], 0, GENESIS
    for i in range(n):
        line = follow(number, previous, 1.5 + i, "operator", "rollout.apply", f"r{i}", {"model": "digits@1"})
        lines.append((line, line.digest))
        number, previous = line.number, line.digest
    return lines


def test_an_untouched_chain_is_whole():
    assert verify(chain(5)) is None
    assert verify([]) is None


def test_a_changed_line_a_missing_line_and_a_rewritten_line_are_found():
    lines = chain(5)
    changed = replace(lines[2][0], who="somebody else")
    assert verify([*lines[:2], (changed, lines[2][1]), *lines[3:]]) == 3
    assert verify([*lines[:2], *lines[3:]]) == 3
    assert verify([*lines[:2], (changed, changed.digest), *lines[3:]]) == 4
