"""Commands of recipe keys: what they answer to an option that they do not have, and what their help adds."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from sparsify.errors import RecipeError
from sparsify.terminal.epilogs import as_setting, other_keys
from sparsify.terminal.run_options import WITH_OPTION


class RecipeCommand(TyperCommand):
    """A command of recipe keys; an option that is one, or a method's, is answered with what to write."""

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
    """`run`; its help lists the recipe keys without an option, which are looked up only when it is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        shown = self.epilog
        self.epilog = f"{shown}\n\n{other_keys(*WITH_OPTION)}"
        super().format_help(ctx, formatter)
        self.epilog = shown
