"""Commands that take recipe keys: how they answer an unknown option, and what they add to their help."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from sparsify.errors import RecipeError
from sparsify.terminal.epilogs import as_setting, other_keys
from sparsify.terminal.run_options import WITH_OPTION


class RecipeCommand(TyperCommand):
    """A command that takes recipe keys. If an unknown option is a recipe key or a method's option, its error says what to write."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            name = getattr(error, "option_name", "")
            known = {spelt for parameter in self.params for spelt in parameter.opts}
            advice = None if not name or name in known else as_setting(name, given)
            if advice is None:
                raise
            raise RecipeError(f"sparsify {ctx.info_name} has no option {name}. Write {advice}.") from error


class RunCommand(RecipeCommand):
    """The command `run`. Its help also lists the recipe keys without an option; they are only looked up when the help is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        shown = self.epilog
        self.epilog = f"{shown}\n\n{other_keys(*WITH_OPTION)}"
        super().format_help(ctx, formatter)
        self.epilog = shown
