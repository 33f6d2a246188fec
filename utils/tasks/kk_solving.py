"""Knights and Knaves: what a claim means, when two puzzles are one, all solutions, the words, a derivation in steps.

A claim is a nested tuple over people 0, 1, ..., as in the authors' `statements`: ("telling-truth", i) "i is a knight",
("lying", i) "i is a knave", ("not", c), ("and", c, d), ("or", c, d), ("->", c, d) "if c then d", ("<=>", c, d).
Person i makes `claims[i]`. A role is True for a knight, False for a knave.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import product

Claim = tuple
JOINED = {"and": "{} and {}", "or": "{} or {}", "->": "if {}, then {}", "<=>": "{} if and only if {}"}


def holds(claim: Claim, roles: Mapping[int, bool] | Sequence[bool]) -> bool:
    """Whether the claim is true; `roles` has everybody whom it mentions."""
    connective, *parts = claim
    if connective in ("telling-truth", "lying"):
        return roles[parts[0]] == (connective == "telling-truth")
    values = [holds(part, roles) for part in parts]
    match connective:
        case "not":
            return not values[0]
        case "and":
            return all(values)
        case "or":
            return any(values)
        case "->":
            return values[1] or not values[0]
        case "<=>":
            return values[0] == values[1]
    raise ValueError(f"claim {claim!r}: unknown connective")


def mentioned(claim: Claim) -> list[int]:
    """The people in the claim, each once, in the order of its words."""
    if claim[0] in ("telling-truth", "lying"):
        return [claim[1]]
    return list(dict.fromkeys(person for part in claim[1:] for person in mentioned(part)))


def solutions(claims: Sequence[Claim]) -> list[tuple[bool, ...]]:
    """All assignments of roles under which exactly the knights' claims are true: each of the 2^n is tried."""
    return [
        roles
        for roles in product((True, False), repeat=len(claims))
        if all(holds(claim, roles) == role for claim, role in zip(claims, roles, strict=True))
    ]


def can_be(claim: Claim, value: bool, roles: Mapping[int, bool]) -> bool:
    """Whether the claim has this truth value for some roles of those who are not in `roles` yet."""
    free = [person for person in mentioned(claim) if person not in roles]
    return any(
        holds(claim, {**roles, **dict(zip(free, values, strict=True))}) == value
        for values in product((True, False), repeat=len(free))
    )


def identity(claims: Sequence[Claim], roles: Sequence[bool]) -> tuple[str, ...]:
    """Equal for two solved puzzles if they differ in names, the order of people and the wording of claims only.

    Each person has a colour: first the role, then, over and over, a hash of one's colour and of the roles under which
    one's claim holds, where people are told apart by their colours. (Puzzles that truly differ may still be equal here:
    rare, and of such a pair one puzzle is never made.) Each claim must depend on everybody whom it mentions.
    """
    colours = [role_name(role) for role in roles]
    for _ in claims:
        states = []
        for speaker, claim in enumerate(claims):
            people = mentioned(claim)
            told_apart = ["speaker" if person == speaker else colours[person] for person in people]
            meaning = sorted(
                sorted(zip(told_apart, values, strict=True))
                for values in product((True, False), repeat=len(people))
                if holds(claim, dict(zip(people, values, strict=True)))
            )
            states.append(repr((colours[speaker], meaning)))
        colours = [hashlib.sha256(state.encode()).hexdigest() for state in states]
    return tuple(sorted(colours))


# ---- words ---------------------------------------------------------------------------------------------------------


def role_name(role: bool) -> str:
    return "knight" if role else "knave"


def in_words(claim: Claim, names: Sequence[str]) -> str:
    """The claim as a clause; its parts are one person's role each, as English has no brackets for more."""
    connective, *parts = claim
    if connective in ("telling-truth", "lying"):
        return f"{names[parts[0]]} is a {role_name(connective == 'telling-truth')}"
    assert all(part[0] in ("telling-truth", "lying") for part in parts), claim
    if connective == "not":
        return in_words(parts[0], names).replace(" is a ", " is not a ")
    return JOINED[connective].format(*(in_words(part, names) for part in parts))


def roles_in_words(names: Sequence[str], roles: Sequence[bool]) -> list[str]:
    """The lines of an answer, without newlines: "(1) Anna is a knight", ..."""
    return [f"({i}) {name} is a {role_name(role)}" for i, (name, role) in enumerate(zip(names, roles, strict=True), 1)]


# ---- derivation ----------------------------------------------------------------------------------------------------


def next_person(claims: Sequence[Claim], roles: Mapping[int, bool]) -> int:
    """Whose role comes next after those in `roles`: the first whom their claims name, in order; else the first."""
    named = [person for speaker in roles for person in mentioned(claims[speaker])]
    return next(person for person in (*named, *range(len(claims))) if person not in roles)


def derive(claims: Sequence[Claim], names: Sequence[str]) -> list[str]:
    """The chunks that lead to a solution: a search in words, each line true under what is supposed at that point.

    Each person is first supposed to be a knight. Where that contradicts a claim, at once or later, a knave follows;
    where that contradicts a claim too, the latest supposition falls, and with it all that followed. The last chunks are
    the answer's lines. ValueError if there is no solution.
    """
    lines: list[str] = []

    def settle(roles: dict[int, bool], supposed: int | None) -> dict[int, bool] | None:
        """Everybody's role, in line with `roles`; None if there is none. `supposed`: the latest one in `roles`."""
        if len(roles) == len(claims):
            return roles
        person = next_person(claims, roles)
        for role in (True, False):
            extended = {**roles, person: role}
            liar = next((i for i in extended if not can_be(claims[i], extended[i], extended)), None)
            if liar is not None:
                lines.append(
                    f'If {names[person]} is a {role_name(role)}, "{in_words(claims[liar], names)}" is '
                    f"{'false' if extended[liar] else 'true'}, but {names[liar]} says it as a "
                    f"{role_name(extended[liar])}.\n"
                )
                continue
            lines.append(f"{'Suppose' if role else 'So'} {names[person]} is a {role_name(role)}. ")
            lines.append(f'Their claim "{in_words(claims[person], names)}" can be {"true" if role else "false"}.\n')
            settled = settle(extended, person if role else supposed)
            if settled is not None or not role:
                return settled
        if supposed is None:
            raise ValueError(f"claims {claims!r}: no assignment of roles fits")
        lines.append(f"No role is left for {names[person]}, so back to {names[supposed]}, who cannot be a knight.\n")
        return None

    roles = settle({}, None)
    *answer, last = roles_in_words(names, [roles[person] for person in range(len(claims))])
    return [*lines, f"Therefore, {answer[0]}\n", *(f"{line}\n" for line in answer[1:]), last]
