"""What a command says of itself: --help lists its flags, a mistyped flag is told which there are."""

import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

_HELP = {"-h", "-help", "--help", "--helpshort", "--helpfull"}


def run(main: Callable[[list[str]], Any]) -> None:
    """app.run for the commands without a study: wrong input ends them with one line and 1."""

    def told(argv: list[str]) -> Any:
        try:
            return main(argv)
        except (app.UsageError, ValueError, OSError) as error:
            sys.exit(f"error: {error}")

    app.run(told, flags_parser=parse)


def parse(argv: list[str]) -> list[str]:
    """`flags_parser` of app.run: --help prints and exits with 0, a mistake with one line and 1."""
    if wants_help(argv):
        show_help()
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"error: {explain(error)}")


def wants_help(argv: Sequence[str]) -> bool:
    """Whether help is asked for among the flags of the command, which end at "--"."""
    words = argv[: argv.index("--")] if "--" in argv else argv
    return any(word in _HELP for word in words)


def show_help(*more: str) -> None:
    """Print what the command says of itself, its flags and more lines; ends the process with 0."""
    print((sys.modules["__main__"].__doc__ or "").strip(), end="\n\n")
    for flag in own_flags():
        value = "" if flag.boolean else "=VALUE"
        default = (
            "" if flag.default in (None, "", []) else f" (default: {flag.default_as_str.strip(chr(39))})"
        )
        text = textwrap.fill(f"{flag.help}{default}", 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
        print(f"  --{flag.name}{value}\n{text}")
    for line in more:
        print(line)
    sys.exit(0)


def own_flags() -> list:
    """The flags that launch defines, by name; those of absl and the keys of a config are not among them."""
    found = {}
    for module, of_module in flags.FLAGS.flags_by_module_dict().items():
        if module == sys.argv[0] or module.startswith("launch."):
            found |= {flag.name: flag for flag in of_module if "." not in flag.name}
    return [found[name] for name in sorted(found)]


def explain(error: flags.Error) -> str:
    """A mistake in words: an unknown flag with the valid ones, a missing one with what it is."""
    if isinstance(error, flags.UnrecognizedFlagError):
        names = ", ".join(f"--{flag.name}" for flag in own_flags())
        return f"there is no flag --{error.flagname}; the flags are {names or '--help'}"
    for flag in own_flags():
        if f"--{flag.name} must have a value other than None" in str(error):
            return f"--{flag.name}=VALUE is missing: {flag.help}"
    return str(error)
