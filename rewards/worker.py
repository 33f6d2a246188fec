r"""A process of rewards/pool.py: [target, answer, seconds] as JSON in; "equal", "different" or "unparsable" out.

Two LaTeX texts are read by math-verify's ANTLR grammar and compared by its rules (SymPy). No text is given to its
extraction of plain expressions, which is `sympy.parse_expr`, hence `eval`. Two more ways lead from its grammar to
Python's compiler (math-verify 0.9.0, latex2sympy2_extended 1.11.0, sympy 1.14.0):

- every number goes through `sympy.Number(text)`, which is `eval`; the lexer lets only digits and `. , e + -` be a
  number;
- an infinite sum that is evaluated goes through `sympy.lambdify`, which writes names into a program as they are:
  `\sum_{n=1}^{\infty} \frac{\text{os.abc}^n}{n^3}` runs `return os.abc*(n + 1)**3`.

So `refuse_code` stands in front of the compiler from the first comparison on, for as long as the process lives: it
lets generated source through that consists of numbers and SymPy's own words, and nothing else. What it refuses does
not run; the comparison goes on without it. The process ends when its stdin does, and when it takes more memory or
processor time than it may.
"""

import logging
import os
import re
import sys
from typing import Any

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify
from math_verify.grader import should_treat_as_complex

from rewards.competition_math import split
from rewards.limits import limit_memory, serve, silence

NORMALIZATION = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none")
# Numbers, `from sympy import *`, and the arithmetic of exponents in sympy.polys.monomials: no other name, no attribute.
HARMLESS = re.compile(
    r"""(?: (?:def|return|if|else|None|from|sympy|import|Integer|Float|monomial_[a-z]+|[ABk]|[abr][0-9]+)\b
          | '?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?'?(?!\w) | [ \n():,=+*<>-] )*""",
    re.VERBOSE | re.IGNORECASE,
)


def compare(target: str, answer: str) -> str:
    """"unparsable" where the grammar has no such answer. A target that it does not have differs from every answer.

    For a target that is no equation each side of a chain in the answer must be equal to the last one."""
    chains = [[answer]] if "=" in target else [split(part, "=") for part in split(answer, ",")]
    pairs = [(target, ",".join(chain[-1] for chain in chains))]
    pairs += [(chain[-1], side) for chain in chains for side in chain[:-1]]
    verdicts = (compare_one(*pair) for pair in pairs)
    return next((verdict for verdict in verdicts if verdict != "equal"), "equal")


def compare_one(target: str, answer: str) -> str:
    try:
        parsed = parse(answer)
    except MemoryError:
        raise
    except Exception:  # the grammar's and SymPy's errors are of every kind
        return "unparsable"
    try:
        # Its own time limits are off: they are alarm signals, and the parent keeps the time.
        equal = verify([parse(target)], [parsed], timeout_seconds=None, raise_on_error=True)
    except MemoryError:
        raise
    except Exception:
        equal = False
    return "equal" if equal else "different"


def parse(text: str) -> Any:
    """The SymPy object that the whole of `text` stands for."""
    latex = normalize_latex(text, NORMALIZATION)
    return latex2sympy(latex, is_real=not should_treat_as_complex(latex), normalization_config=None)


def refuse_code(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: PermissionError where source that is not HARMLESS, nor a module's file, is to be compiled."""
    if event != "compile":
        return
    source, filename = arguments
    if isinstance(filename, bytes):
        filename = filename.decode(errors="replace")
    if isinstance(filename, str) and os.path.isabs(filename):
        return  # an import; eval, exec and lambdify name theirs <string> or <lambdifygenerated-1>
    if isinstance(source, bytes):
        source = source.decode(errors="replace")
    if not isinstance(source, str) or not HARMLESS.fullmatch(source):
        raise PermissionError("this process compiles no text")


def prepare() -> None:
    """Set the limits; import and generate what SymPy does at first use; from then on refuse code."""
    limit_memory()
    logging.disable()
    compare(r"\sqrt{x} + y", r"\frac{y^{2} - z}{x - 1}")
    sys.addaudithook(refuse_code)


def main() -> None:
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    prepare()
    silence()
    serve(compare, output)


if __name__ == "__main__":
    main()
