"""What a mistyped `--config.KEY` is told: what is there instead."""

import os
import runpy


def unknown_key(argv) -> str | None:
    """Which --config.KEY is not in the config file, and which keys are."""
    files = [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
    overrides = [a for a in argv if a.startswith("--config.")]
    if not overrides or not files or not os.path.exists(files[-1].split(":")[0]):
        return None
    path, *form = files[-1].split(":", 1)
    config = runpy.run_path(path)["get_config"](*form)
    for argument in overrides:
        node, path = config, "config"
        for key in argument.removeprefix("--config.").split("=")[0].split("."):
            if not hasattr(node, "keys") or key not in node:
                valid = (
                    f"its keys are {', '.join(sorted(node.keys()))}"
                    if hasattr(node, "keys")
                    else "it is a value"
                )
                return f"{argument}: {path} has no {key!r}; {valid}"
            node, path = node[key], f"{path}.{key}"
    return None
