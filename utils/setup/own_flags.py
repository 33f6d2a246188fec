"""How data of one's own are read, from the flags of a script."""

from typing import Protocol

from utils.tasks.own import Own


class OwnFlags(Protocol):
    """The flags that say how data of one's own are read, which every script has."""

    test_data: str
    prompt_column: str
    solution_column: str
    answer_column: str
    verifier: str


def own_data(flags: OwnFlags) -> Own:
    return Own(test_data=flags.test_data, prompt_column=flags.prompt_column, solution_column=flags.solution_column,
               answer_column=flags.answer_column, verifier=flags.verifier)
